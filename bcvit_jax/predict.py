"""Predict cells with an exported network: `python -m bcvit_jax.predict --model DIR IMAGES …`.

Images are read, decoded and predicted as a stream: any number of them in little memory.
"""

import argparse
import csv
import dataclasses
import itertools
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bcvit_jax.errors import UserError, fail
from bcvit_jax.results import Bad, Prediction, Results

_HELP = """\
Predict single-cell images, or score a labelled data set.

  python -m bcvit_jax.predict --model DIR cells/ --out results.csv
  python -m bcvit_jax.predict --model DIR a.png b.tif list.csv --out results.csv
  python -m bcvit_jax.predict --model DIR --data data/other --out other.csv

DIR is a folder of python -m bcvit_jax.export. A folder is searched for images (names that begin
with a dot are passed over), a .csv has a column `path` (relative to it). Beside results.csv are
written results.json (counts, settings), results.html (thumbnails, the least certain first) and,
where an image can't be read, results.bad.csv. What ends early, as by Ctrl-C, leaves the rows so far
in results.csv.partial. A cell whose most probable class stays below --threshold is marked
unidentified.
--turns 8 looks at every picture turned and mirrored too and averages: fewer mistakes, and eight
times the network's time.
--data scores a data set of data_prep.build, of another laboratory too: classes are matched by name
(--map SNE=NGS,… for other names; capitals don't matter), and those that the network does not know
are named and left out. Of the data set that DIR was trained on, only folds are scored that none of
its networks was trained on.
"""


def find_images(sources: Iterable[str]) -> Iterator[Path]:
    """The image files that files, folders and manifests name, in order.

    In a folder, files and folders whose names begin with a dot are passed over.
    Errors: UserError for a source that is not there, or a manifest without a column `path`.
    """
    from data_prep.images import OTHER_SUFFIXES, SUFFIXES

    for source in map(Path, sources):
        if source.is_dir():
            for folder, folders, names in os.walk(source):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                for name in sorted(name for name in names if not name.startswith(".")):
                    if Path(name).suffix.lower() in SUFFIXES | OTHER_SUFFIXES:
                        yield Path(folder, name)
        elif source.suffix.lower() == ".csv":
            yield from _manifest(source)
        else:
            yield source


def _manifest(file: Path) -> Iterator[Path]:
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            rows = csv.DictReader(opened)
            if "path" not in (rows.fieldnames or []):
                raise UserError(f"{file} has no column `path`; name the images' column so")
            for row in rows:
                if row["path"]:
                    yield file.parent / row["path"]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} can't be read as a list of images ({error})") from None


def check_sources(sources: Iterable[str]) -> None:
    """UserError for the sources that are not there or hold nothing, before any work starts."""
    sources = list(sources)
    if missing := [source for source in sources if not Path(source).exists()]:
        raise UserError(f"there is no {', '.join(missing)}; name image files, folders or a .csv")
    if next(find_images(sources), None) is None:
        raise UserError(f"{', '.join(sources)} holds no images (PNG, JPEG, TIFF, BMP)")


def read(path: Path, preprocessing) -> Any:
    """The network's input from an image file, uint8 [s, s, 3], or Bad."""
    from data_prep.images import BadImage, read_rgb

    try:
        with open(path, "rb") as file:
            return preprocessing(read_rgb(file))
    except BadImage as error:
        return Bad(str(path), str(error))
    except OSError as error:
        return Bad(str(path), error.strerror or str(error))


def predictions(
    classifier, paths: Iterable[Path], batch_size: int, threads: int
) -> Iterator[Prediction | Bad]:
    """Every image in order. Threads read ahead of the network, by four batches at most."""
    import numpy as np

    from bcvit_jax.exported import BatchStep

    step = BatchStep(classifier, batch_size)
    waiting: deque[tuple[list, Any]] = deque()

    def finish() -> Iterator[Prediction | Bad]:
        items, results = waiting.popleft()
        logits, kept = (np.asarray(part) for part in results) if results else ((), ())
        place = 0
        for path, image in items:
            if isinstance(image, Bad):
                yield image
                continue
            yield Prediction(str(path), image, _softmax(logits[place]), kept[place])
            place += 1

    with ThreadPoolExecutor(threads) as pool:
        ahead = _ahead(pool, paths, classifier.preprocessing, 4 * batch_size)
        while items := list(itertools.islice(ahead, batch_size)):
            images = [image for _, image in items if not isinstance(image, Bad)]
            waiting.append((items, step(images) if images else None))
            if len(waiting) > 1:  # one batch late, so that the device never waits
                yield from finish()
        while waiting:
            yield from finish()


def _ahead(pool, paths: Iterable[Path], preprocessing, most: int) -> Iterator[tuple[Path, Any]]:
    paths = iter(paths)
    running: deque = deque()
    while True:
        for path in itertools.islice(paths, most - len(running)):
            running.append((path, pool.submit(read, path, preprocessing)))
        if not running:
            return
        path, future = running.popleft()
        yield path, future.result()


def _softmax(logits):
    import numpy as np

    shifted = np.exp(logits - logits.max())
    return (shifted / shifted.sum()).astype(np.float32)


def predict_images(classifier, sources: list[str], out: Path, options) -> dict[str, Any]:
    """Predict the images of `sources` and write all results; returns what results.json holds."""
    from bcvit_jax.files import write_whole
    from bcvit_jax.gallery import Gallery
    from bcvit_jax.journal import progress

    names = classifier.class_names
    gallery = Gallery(names, options.threshold)
    start = time.perf_counter()
    with (
        Results(out, names, options.top, options.threshold) as results,
        progress("predict", None, "img") as bar,
    ):
        stream = predictions(classifier, find_images(sources), options.batch_size, options.threads)
        for item in stream:
            results.add(item)
            if isinstance(item, Prediction):
                gallery.add(item.path, item.image, item.probabilities)
            bar.update(1)
    seconds = time.perf_counter() - start
    done = sum(results.counts.values())
    summary = {
        "images": done,
        "bad": results.bad,
        "unidentified": results.unidentified,
        "threshold": options.threshold,
        "turns": options.turns,
        "counts": {name: results.counts[name] for name in names},
        "unidentified_counts": {name: results.unidentified_counts[name] for name in names},
        "images_per_second": round((done + results.bad) / seconds, 2),
        "model": {k: classifier.card.get(k) for k in ("title", "commit", "networks", "dataset")},
    }
    write_whole(out.with_suffix(".html"), gallery.page(summary, out.name).encode())
    write_whole(out.with_suffix(".json"), (json.dumps(summary, indent=1) + "\n").encode())
    return summary


def _renamed(text: str) -> dict[str, str]:
    """--map as {THEIRS: OURS}."""
    pairs = [[name.strip() for name in part.split("=")] for part in text.split(",") if part]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise UserError(f"--map is {text!r}; it must be THEIRS=OURS,THEIRS=OURS")
    counts = Counter(theirs.casefold() for theirs, _ in pairs)
    if twice := [theirs for theirs, _ in pairs if counts[theirs.casefold()] > 1]:
        raise UserError(f"--map names {' and '.join(twice)}; give every class one name, once")
    return dict(pairs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bcvit_jax.predict",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="*", help="image files, folders, .csv lists")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("results.csv"), metavar="FILE.csv")
    parser.add_argument("--data", metavar="DATASET", help="score this labelled data set instead")
    parser.add_argument(
        "--folds", default="", metavar="FOLD,…", help="of --data (all that were not trained on)"
    )
    parser.add_argument("--map", default="", metavar="THEIRS=OURS,…", help="class names of --data")
    parser.add_argument("--top", type=int, default=3, help="most probable classes named (3)")
    parser.add_argument("--threshold", type=float, default=0.5, help="for unidentified (0.5)")
    parser.add_argument(
        "--turns", type=int, default=1, help="ways a picture is turned, 1, 2, 4 or 8; averaged (1)"
    )
    parser.add_argument("--batch-size", type=int, default=64, dest="batch_size")
    parser.add_argument("--threads", type=int, default=max(2, os.cpu_count() or 2))
    return parser


def _check(options) -> None:
    rules = {
        "--top": (options.top >= 1, options.top, "be at least 1"),
        "--threshold": (0 <= options.threshold <= 1, options.threshold, "lie in [0, 1]"),
        "--turns": (options.turns in (1, 2, 4, 8), options.turns, "be 1, 2, 4 or 8"),
        "--batch-size": (options.batch_size >= 1, options.batch_size, "be at least 1"),
        "--threads": (options.threads >= 1, options.threads, "be at least 1"),
        "--folds": (bool(options.data) or not options.folds, options.folds, "name folds of --data"),
        "--map": (bool(options.data) or not options.map, options.map, "name classes of --data"),
        "--out": (options.out.suffix == ".csv", options.out, "end in .csv"),
    }
    for name, (holds, value, rule) in rules.items():
        if not holds:
            raise UserError(f"{name} is {value}; it must {rule}")
    if bool(options.images) == bool(options.data):
        raise UserError("name images to predict, or a data set to score with --data")
    ends = (".csv", ".json", ".html", ".npz", ".bad.csv", ".csv.partial", ".bad.csv.partial")
    if there := [str(p) for end in ends if (p := options.out.with_suffix(end)).exists()]:
        raise UserError(f"{', '.join(there)} is there already; choose another --out, or delete it")


def main(arguments: list[str]) -> int:
    """The command line's work; returns the exit status, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        _check(options)
        renamed = _renamed(options.map)
        if options.images:
            check_sources(options.images)
        from bcvit_jax.exported import from_pretrained

        classifier = dataclasses.replace(from_pretrained(options.model), turns=options.turns)
        if options.data:
            from bcvit_jax.data import open_dataset
            from bcvit_jax.score import score

            score(classifier, open_dataset(options.data), options.out, renamed, options)
            _say(f"\n{options.out}, {options.out.with_suffix('.json')}")
            return 0
        summary = predict_images(classifier, options.images, options.out, options)
    except (UserError, OSError, FloatingPointError) as error:
        return fail(error)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    _say(told(summary, options.out))
    return 0 if summary["images"] else 1


def _say(text: str) -> None:
    """Print; bytes of a file name that are no UTF-8 are escaped."""
    print(text.encode("utf-8", "backslashreplace").decode())


def told(summary: Mapping[str, Any], out: Path) -> str:
    """What was predicted, for a terminal."""
    from bcvit_jax.summary import aligned

    rows = [["class", "cells", "share", "unidentified"]]
    total = max(summary["images"], 1)
    for name, count in summary["counts"].items():
        doubtful = summary["unidentified_counts"][name]
        rows.append([name, str(count), f"{100 * count / total:.1f} %", str(doubtful)])
    lines = aligned(rows)
    lines.append(
        f"\n{summary['images']} cells, {summary['unidentified']} of them unidentified (no class "
        f"reaches {summary['threshold']:g}); {summary['images_per_second']:g} images/s"
    )
    if summary["bad"]:
        lines.append(f"{summary['bad']} images can't be read: {out.with_suffix('.bad.csv')}")
    lines.append(f"{out}, {out.with_suffix('.html')}")
    return "\n".join(lines)


if __name__ == "__main__":
    from bcvit_jax import runtime

    runtime.restart_with_settings()
    sys.exit(main(sys.argv[1:]))
