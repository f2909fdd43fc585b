"""From images of cells to the TFDS data set that training reads; needs no TensorFlow.

    python -m data_prep.build folder --images TREE --out DIR [--groups groups.csv] …
    python -m data_prep.build crops --manifest CROPS/manifest.csv --out DIR
    python -m data_prep.build lmu --images AML-Cytomorphology_LMU --out DIR [--boxes boxes.json]
    python -m data_prep.build synthetic --out DIR

The data set is built beside DIR and renamed, so DIR is always whole. 5,800 JPEG of 360 x 363
pixels take about a minute on two cores.
"""

import argparse
import contextlib
import csv
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.command import run_command, say
from data_prep.crop import add_rule_options, names, rule_of
from data_prep.place import check_apart, check_out, clear_dead, folder_beside, put_in_place

if TYPE_CHECKING:
    from data_prep.plan import Plan

MARK = "dataset_info.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 2 after a BuildError, 130 after Ctrl-C."""
    return run_command(_parser(), arguments, "Stopped; nothing was built.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.build", description="Build the data set that training reads."
    )
    commands = parser.add_subparsers(required=True, metavar="folder | crops | lmu | synthetic")

    folder = commands.add_parser("folder", help="from a tree of class folders with images")
    folder.set_defaults(run=run_folder)
    folder.add_argument("--images", type=Path, required=True, help="TREE/CLASS/*.png, jpg or tiff")
    folder.add_argument(
        "--groups",
        type=Path,
        help="CSV with the columns path,donor or path,slide: a group is kept in one fold "
        "(default: groups.csv in TREE, if there is one)",
    )

    crops = commands.add_parser("crops", help="from the crops of python -m data_prep.crop")
    crops.set_defaults(run=run_crops)
    crops.add_argument("--manifest", type=Path, required=True, help="CROPS/manifest.csv")
    crops.add_argument(
        "--groups",
        type=Path,
        help="CSV with the columns path,donor or path,slide, its paths those of the fields "
        "(default: the crops of one field are kept in one fold)",
    )

    lmu = commands.add_parser("lmu", help="from AML-Cytomorphology_LMU as TCIA ships it")
    lmu.set_defaults(run=run_lmu, label_from="folder")
    lmu.add_argument("--images", type=Path, required=True, help="its folder of class folders")
    lmu.add_argument("--all-classes", action="store_true", help="fifteen, not the paper's ten")
    lmu.add_argument("--partial", action="store_true", help="although images are missing or extra")
    lmu.add_argument(
        "--boxes", type=Path, help="crop along these boxes first; the next five options are for it"
    )
    add_rule_options(lmu)

    for command in (folder, crops):
        command.add_argument("--classes", type=names, default=(), help="only these, as in BAS,EOS")
        command.add_argument(
            "--min-images", type=int, default=0, metavar="N", help="leave smaller classes out"
        )
    for command in (folder, crops, lmu):
        command.add_argument(
            "--skip-bad",
            action="store_true",
            help="leave bad files out and list them in skipped.csv",
        )

    synthetic = commands.add_parser("synthetic", help="render cells: no images needed")
    synthetic.set_defaults(run=run_synthetic)
    synthetic.add_argument("--images-per-class", type=int, default=150, metavar="N")
    synthetic.add_argument("--size", type=int, default=96, metavar="PX", help="side of an image")

    for command in (folder, crops, lmu, synthetic):
        command.add_argument("--out", type=Path, required=True, help="folder of the data set")
        command.add_argument("--folds", type=int, default=5, help="default 5")
        command.add_argument("--seed", type=int, default=0, help="of the split, default 0")
        command.add_argument("--overwrite", action="store_true", help="replace the data set --out")
        command.add_argument("--workers", type=int, help="processes (default: one a core)")
    return parser


def run_folder(options: argparse.Namespace) -> None:
    """The sub-command `folder`."""
    check_apart(options.images, options.out)

    def plan(spool: Path) -> "Plan":
        from data_prep.plan import make_plan

        return make_plan(
            options.images,
            spool,
            options.groups,
            options.classes,
            options.min_images,
            skip_bad=options.skip_bad,
            **_split(options),
        )

    build("data_prep.build folder", options, plan)


def run_crops(options: argparse.Namespace) -> None:
    """The sub-command `crops`: the labelled rows of a manifest, grouped by field or donor."""
    check_apart(options.manifest.parent, options.out, "--manifest")

    def plan(spool: Path) -> "Plan":
        from data_prep.manifest import read_manifest
        from data_prep.plan import plan_images
        from data_prep.tree import choose_classes, read_groups

        manifest = read_manifest(options.manifest)
        chosen, dropped = choose_classes(
            manifest.crops, options.classes, options.min_images, "labels of the crops"
        )
        kind, group_of = "image", manifest.source_of
        if options.groups:
            wanted = {group_of[crop] for crops in chosen.values() for crop in crops}
            kind, donors = read_groups(options.groups, None, sorted(wanted))
            group_of = {c: donors[s] for c, s in manifest.source_of.items() if s in donors}
        plan = plan_images(
            options.manifest.parent,
            chosen | dropped,
            spool,
            kind,
            group_of,
            options.min_images,
            skip_bad=options.skip_bad,
            **_split(options),
        )
        if manifest.unlabelled:
            plan.notes.insert(0, f"Crops without a label are left out: {manifest.unlabelled}.")
        return plan

    build("data_prep.build crops", options, plan)


def run_lmu(options: argparse.Namespace) -> None:
    """The sub-command `lmu`: its classes counted, and its fields cropped first if asked."""
    check_apart(options.images, options.out)
    rule = rule_of(options)

    def plan(spool: Path) -> "Plan":
        from data_prep.lmu import crop_lmu, find_lmu
        from data_prep.plan import plan_images

        root, group_of, whole = options.images, {}, []
        found, notes = find_lmu(root, options.all_classes, options.partial)
        for note in notes:
            say(note)
        if options.boxes:
            found, group_of, whole = crop_lmu(
                root, found, options.boxes, rule, spool.parent, options.workers
            )
            root = spool.parent / "crops"
        plan = plan_images(
            root, found, spool, "image", group_of, skip_bad=options.skip_bad, **_split(options)
        )
        if whole:
            reasons = Counter(reason for _, reason in whole)
            counts = ", ".join(f"{reason} ({count})" for reason, count in reasons.items())
            plan.notes.append(f"Fields that stay uncropped (uncropped.csv): {counts}.")
            plan.tables["uncropped.csv"] = [("path", "reason"), *whole]
        return plan

    tool = "data_prep.build lmu" + " --partial" * options.partial + " --boxes" * bool(options.boxes)
    build(tool, options, plan)


def run_synthetic(options: argparse.Namespace) -> None:
    """The sub-command `synthetic`: render a tree, then build it like any other."""
    from data_prep.plan import make_plan
    from data_prep.synthetic import render_dataset

    check_out(options.out, options.overwrite, MARK, "a data set")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "synthetic")
        render_dataset(tree, options.images_per_class, options.size, options.seed, options.workers)
        build(
            "data_prep.build synthetic",
            options,
            lambda spool: make_plan(tree, spool, tree / "groups.csv", **_split(options)),
        )


def _split(options: argparse.Namespace) -> dict[str, Any]:
    return {"folds": options.folds, "seed": options.seed, "workers": options.workers}


def build(tool: str, options: argparse.Namespace, make_plan: Callable[[Path], "Plan"]) -> None:
    """Make the plan, print it, write the data set beside `options.out`, and put it in place.

    `make_plan` gets an empty folder for the images; the folder around it is removed at the end.
    """
    out = options.out.resolve()
    clear_dead(out)
    check_out(out, options.overwrite, MARK, "a data set")
    with folder_beside(out) as partial:
        spool = partial / "spool"
        spool.mkdir()
        plan = make_plan(spool)
        for text in (*plan.notes, plan.table()):
            say(text)
        finished = write_dataset(plan, tool, partial / "tfds")
        if plan.skipped:
            skipped = ((scan.source, scan.reason) for scan in plan.skipped)
            plan.tables["skipped.csv"] = [("path", "reason"), *skipped]
        for name, rows in plan.tables.items():
            _write_table(finished / name, rows)
        put_in_place(finished, out, options.overwrite, partial)
    if plan.skipped:
        say(f"{len(plan.skipped)} bad files were left out: see {options.out / 'skipped.csv'}.")
    separated = {"donor": "by donor", "slide": "by slide, not by donor"}
    how = separated.get(plan.group_kind, "by image: cells of one donor may stand in several folds")
    say(f"{options.out}: {len(plan.examples)} images in {plan.folds} folds, separated {how}.")


def _write_table(path: Path, rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows(rows)


def write_dataset(plan: "Plan", tool: str, data_dir: Path) -> Path:
    """Write the planned data set with TFDS; returns its folder, which may be moved anywhere."""
    import tensorflow_datasets as tfds

    from data_prep.cells.cells_dataset_builder import Builder

    tfds.disable_progress_bar()
    builder = Builder(plan=plan, tool=tool, data_dir=data_dir)
    with contextlib.redirect_stdout(None):  # TFDS announces a download
        builder.download_and_prepare()
    return Path(builder.data_dir)


if __name__ == "__main__":
    sys.exit(main())
