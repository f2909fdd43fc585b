"""From a tree of class folders to the TFDS data set that training reads; needs no TensorFlow.

    python -m data_prep.build folder --images TREE --out DIR [--groups groups.csv] …
    python -m data_prep.build synthetic --out DIR

The data set is built beside DIR and renamed, so DIR is always whole. 5,800 JPEG of 360 x 363
pixels take about a minute on two cores.
"""

import argparse
import contextlib
import csv
import glob
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from data_prep.errors import BuildError

if TYPE_CHECKING:
    from data_prep.plan import Plan
    from data_prep.scan import Scan


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 2 after a BuildError, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up, then end
    try:
        options.run(options)
    except BuildError as error:
        _say(str(error), sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; nothing was built.", file=sys.stderr)
        return 130
    except OSError as error:  # no space left, no permission
        print(f"The build stopped: {error}.", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _say(text: str, stream: TextIO) -> None:
    """Print at once; of file names, what no terminal can show is escaped."""
    print(text.encode("utf-8", "backslashreplace").decode(), file=stream, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.build", description="Build the data set that training reads."
    )
    commands = parser.add_subparsers(required=True, metavar="folder | synthetic")

    folder = commands.add_parser("folder", help="from a tree of class folders with images")
    folder.set_defaults(run=run_folder)
    folder.add_argument("--images", type=Path, required=True, help="TREE/CLASS/*.png, jpg or tiff")
    folder.add_argument(
        "--groups",
        type=Path,
        help="CSV with the columns path,donor or path,slide: a group is kept in one fold "
        "(default: groups.csv in TREE, if there is one)",
    )
    folder.add_argument("--classes", type=_names, default=(), help="only these, as in BAS,EOS")
    folder.add_argument(
        "--min-images", type=int, default=0, metavar="N", help="leave smaller classes out"
    )
    folder.add_argument(
        "--skip-bad", action="store_true", help="leave bad files out and list them in skipped.csv"
    )

    synthetic = commands.add_parser("synthetic", help="render cells: no images needed")
    synthetic.set_defaults(run=run_synthetic)
    synthetic.add_argument("--images-per-class", type=int, default=150, metavar="N")
    synthetic.add_argument("--size", type=int, default=96, metavar="PX", help="side of an image")

    for command in (folder, synthetic):
        command.add_argument("--out", type=Path, required=True, help="folder of the data set")
        command.add_argument("--folds", type=int, default=5, help="default 5")
        command.add_argument("--seed", type=int, default=0, help="of the split, default 0")
        command.add_argument("--overwrite", action="store_true", help="replace the data set --out")
        command.add_argument("--workers", type=int, help="processes (default: one a core)")
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def run_folder(options: argparse.Namespace) -> None:
    """The sub-command `folder`."""
    _check_apart(options.images, options.out)
    build(
        "data_prep.build folder",
        options,
        options.images,
        groups=options.groups,
        classes=options.classes,
        min_images=options.min_images,
        skip_bad=options.skip_bad,
    )


def run_synthetic(options: argparse.Namespace) -> None:
    """The sub-command `synthetic`: render a tree, then build it like any other."""
    from data_prep.synthetic import render_dataset

    _check_out(options.out, options.overwrite)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "synthetic")
        render_dataset(tree, options.images_per_class, options.size, options.seed, options.workers)
        build("data_prep.build synthetic", options, tree, groups=tree / "groups.csv")


def build(tool: str, options: argparse.Namespace, images: Path, **choices) -> None:
    """Make the plan, print it, write the data set beside `options.out`, and put it in place."""
    from data_prep.plan import make_plan

    _check_out(options.out, options.overwrite)
    out = options.out.resolve()
    with _folder_beside(out) as partial:
        spool = partial / "spool"
        spool.mkdir()
        plan = make_plan(
            images,
            spool,
            folds=options.folds,
            seed=options.seed,
            workers=options.workers,
            **choices,
        )
        for text in (*plan.notes, plan.table()):
            _say(text, sys.stdout)
        finished = write_dataset(plan, tool, partial / "tfds")
        _list_skipped(plan.skipped, finished / "skipped.csv")
        _put_in_place(finished, out, options.overwrite, partial / "replaced")
    if plan.skipped:
        print(f"{len(plan.skipped)} bad files were left out: see {options.out / 'skipped.csv'}.")
    separated = {"donor": "by donor", "slide": "by slide, not by donor"}
    how = separated.get(plan.group_kind, "by image: cells of one donor may stand in several folds")
    print(f"{options.out}: {len(plan.examples)} images in {plan.folds} folds, separated {how}.")


def _list_skipped(skipped: Sequence["Scan"], path: Path) -> None:
    if skipped:
        with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            rows = csv.writer(file)
            rows.writerow(("path", "reason"))
            rows.writerows((scan.source, scan.reason) for scan in skipped)


def write_dataset(plan: "Plan", tool: str, data_dir: Path) -> Path:
    """Write the planned data set with TFDS; returns its folder, which may be moved anywhere."""
    import tensorflow_datasets as tfds

    from data_prep.cells.cells_dataset_builder import Builder

    tfds.disable_progress_bar()
    builder = Builder(plan=plan, tool=tool, data_dir=data_dir)
    with contextlib.redirect_stdout(None):  # TFDS announces a download
        builder.download_and_prepare()
    return Path(builder.data_dir)


def _check_apart(images: Path, out: Path) -> None:
    inside, outside = images.resolve(), out.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise BuildError(f"--out {out} and --images {images} overlap: choose a folder elsewhere.")


def _check_out(out: Path, overwrite: bool) -> None:
    if not (out.exists() or out.is_symlink()) or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "dataset_info.json").is_file():
        raise BuildError(f"{out} exists and is not a data set: choose another --out.")
    if not overwrite:
        raise BuildError(f"{out} exists: give --overwrite to replace it, or another --out.")


@contextlib.contextmanager
def _folder_beside(out: Path) -> Iterator[Path]:
    """A new folder OUT.partial-PID that is removed at the end, whatever happens."""
    for left in out.parent.glob(f"{glob.escape(out.name)}.partial-*"):
        _say(f"{left} is left from a killed build: remove it, unless one runs.", sys.stderr)
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(finished: Path, out: Path, overwrite: bool, replaced: Path) -> None:
    """Rename the finished folder to `out`; a data set already there goes only now."""
    if overwrite and out.exists():
        out.rename(replaced)
    try:
        finished.rename(out)
    except BaseException:
        if replaced.exists():
            replaced.rename(out)
        raise


if __name__ == "__main__":
    sys.exit(main())
