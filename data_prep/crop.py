"""One PNG a cell, cut out of smear fields along their boxes, with a manifest.

    python -m data_prep.crop --boxes boxes.json --images FIELDS --out CROPS --labels WBC
    python -m data_prep.build crops --manifest CROPS/manifest.csv --out DIR

A field in a class folder (FIELDS/BAS/1.jpg) that holds one whole cell gives it its label:
BAS/1.png. All other crops go to the folder `unlabelled` and are listed in review.csv: fill in its
column `label` for those that the data set shall have. Stopped or killed, the same command goes on
from OUT.partial and leaves the same files.
"""

import argparse
import contextlib
import csv
import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.command import names, run_command, say
from data_prep.errors import BuildError
from data_prep.place import (
    REQUEST,
    check_apart,
    check_out,
    kept_folder,
    partial_of,
    put_in_place,
    write_whole,
)

if TYPE_CHECKING:
    from data_prep.cut import Cells, Row, Rule

BATCH = 32  # fields a task
MARK = "crops.json"
TABLES = ("manifest.csv", "review.csv")  # where a person may fill in labels
VERSION = 2  # of the crops that one request gives


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.crop", description="Cut single cells out of smear fields."
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--boxes", type=Path, required=True, help="a COCO file, or a folder of Labelme or VOC files"
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of the fields")
    parser.add_argument("--out", type=Path, required=True, help="folder of the crops")
    parser.add_argument(
        "--label-from",
        choices=("folder", "box", "none"),
        default="folder",
        help="what gives a crop its label (default: the class folder of a field with one cell)",
    )
    add_rule_options(parser)
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave bad files out and list them in skipped.csv"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the crops in --out")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    return run_command(parser, arguments, "Stopped; the same command goes on from here.")


def add_rule_options(parser: argparse.ArgumentParser) -> None:
    """The options of rule_of."""
    parser.add_argument("--labels", type=names, default=(), help="which boxes are cells, as in WBC")
    parser.add_argument(
        "--margin",
        type=float,
        default=0.15,
        help="added on each side, as a share of the box's longer side (default 0.15)",
    )
    parser.add_argument(
        "--square",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="widen the shorter side to the longer one (default), or keep the box's form",
    )
    parser.add_argument(
        "--border",
        choices=("reflect", "edge", "white"),
        default="reflect",
        help="beyond the border the field is mirrored (default), its edge drawn out, or white",
    )
    parser.add_argument(
        "--min-score", type=float, default=0.5, help="leave out boxes scored lower (default 0.5)"
    )


def rule_of(options: argparse.Namespace) -> "Rule":
    """How the options ask to crop; raises BuildError."""
    from data_prep.cut import Rule

    return Rule(
        options.labels,
        options.margin,
        options.square,
        options.border,
        options.min_score,
        getattr(options, "label_from", "folder"),
    )


@dataclass(frozen=True)
class Plan:
    """All that is asked for, before the first image is decoded."""

    images: Path
    rule: "Rule"
    fields: list["Cells"]
    without: list[tuple[str, str]]  # field, reason
    detector: str

    def request(self) -> dict[str, Any]:
        """What tells one request from another; the hash is over all fields and boxes."""
        digest = hashlib.sha256(f"{VERSION} {BATCH} {self.without}".encode("utf-8", "replace"))
        for field in self.fields:
            digest.update(repr(astuple(field)).encode("utf-8", "replace"))
        rule = asdict(self.rule) | {"labels": list(self.rule.labels)}
        return {"detector": self.detector, **rule, "cells_sha256": digest.hexdigest()}


def make_plan(boxes: Path, images: Path, rule: "Rule", only: Collection[str] | None = None) -> Plan:
    """Read the boxes, check them against the images, and say what is odd; raises BuildError.

    `only` are the fields that are wanted: by default all images, with boxes or without.
    """
    from data_prep.boxes import read_boxes
    from data_prep.cut import choose_cells
    from data_prep.tree import images_under

    found = read_boxes(boxes, images, notes=True)
    if only is None:
        only = set(images_under(images, images))
    else:
        found = found.of_images(only)
    chosen, without, notes = choose_cells(found, rule, only)
    for note in notes:
        say(note)
    return Plan(images, rule, chosen, without, str(found.info.get("detector", "")))


def run(options: argparse.Namespace) -> None:
    """Check, crop beside --out, write the tables, put all in place and say what there is."""
    from data_prep.cut import file_sha256
    from data_prep.tree import listing

    rule, out = rule_of(options), options.out.resolve()
    check_apart(options.images, out)
    if not partial_of(out).exists():  # else it depends on what a killed command has left
        _check_out(out, options.overwrite)
    plan = make_plan(options.boxes, options.images, rule)
    request = plan.request()
    if not options.overwrite and _was_finished(out, request):
        shutil.rmtree(partial_of(out))
        say(f"{options.out} was finished already.")
        return
    with kept_folder(out, request, options.overwrite) as partial:
        _check_out(out, options.overwrite)
        bad = write_crops(plan, partial / "crops", partial / "parts", options.workers)
        if bad and not (options.skip_bad and len(bad) < len(plan.fields)):
            lines = [f"{source}: {reason}" for source, reason in bad]
            mend = "mend them and run this again, or leave them out with --skip-bad"
            what = f"{len(bad)} of {len(plan.fields)} fields cannot be used ({mend})"
            raise BuildError(listing(what, lines))
        summary = _write_tables(plan, bad, partial / "parts", partial / "crops")
        tables = {name: file_sha256(partial / "crops" / name) for name in TABLES}
        mark = request | {"tables_sha256": tables}
        write_whole(partial / "crops" / MARK, json.dumps(mark, indent=2) + "\n")
        put_in_place(partial / "crops", out, options.overwrite, partial)
    say(f"{options.out}: {summary}")


def _check_out(out: Path, overwrite: bool) -> None:
    """As check_out; labels that a person has filled in are not overwritten either."""
    from data_prep.cut import file_sha256

    check_out(out, overwrite, MARK, "a folder of crops")
    for name, known in _read_mark(out / MARK).get("tables_sha256", {}).items():
        if (out / name).is_file() and file_sha256(out / name) != known:
            raise BuildError(
                f"{out / name} was changed since it was written, as by filling in labels: move it "
                "out of that folder first, or choose another --out."
            )


def _was_finished(out: Path, request: dict[str, Any]) -> bool:
    """Whether only the last clearing up is missing: the crops of this request are in place."""
    done, begun = _read_mark(out / MARK), _read_mark(partial_of(out) / REQUEST)
    return begun == request and request.items() <= done.items()


def _read_mark(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_crops(
    plan: Plan, crops: Path, parts: Path, workers: int | None = None
) -> list[tuple[str, str]]:
    """Make all crops of the plan, batch by batch, each with a part of the manifest in `parts`.

    Batches that are there and true are kept. Returns (field, reason) for fields that are bad.
    """
    from tqdm import tqdm

    from data_prep.cut import crop_batch
    from data_prep.workers import run_in_order

    crops.mkdir(exist_ok=True)
    parts.mkdir(exist_ok=True)
    starts = range(0, len(plan.fields), BATCH)
    batches = [plan.fields[start : start + BATCH] for start in starts]
    tasks = [
        (plan.images, batch, plan.rule, plan.detector, crops, parts / f"{number:06}.json")
        for number, batch in enumerate(batches)
    ]
    bad = []
    bar = tqdm(total=len(plan.fields), desc="cropping", unit=" images", disable=None)
    with bar, contextlib.closing(run_in_order(crop_batch, tasks, workers)) as results:
        for batch, bad_of_batch in zip(batches, results, strict=True):
            bad += bad_of_batch
            bar.update(len(batch))
    return bad


def rows_of(parts: Path) -> Iterator["Row"]:
    """The rows of all parts, in order."""
    from data_prep.cut import read_part

    for part in sorted(parts.glob("*.json")):
        yield from read_part(part)


def _write_tables(plan: Plan, bad: list[tuple[str, str]], parts: Path, crops: Path) -> str:
    """manifest.csv, review.csv, without_cells.csv, skipped.csv; returns what is in them."""
    from data_prep.cut import Row

    columns = tuple(field.name for field in fields(Row))
    labels, count, review = Counter(), 0, 0
    with (
        _table(crops / "manifest.csv", columns) as manifest,
        _table(crops / "review.csv", columns) as to_review,
    ):
        for row in rows_of(parts):
            manifest.writerow(astuple(row))
            count += 1
            if row.label:
                labels[row.label] += 1
            else:
                to_review.writerow(astuple(row))
                review += 1
    for name, rows in (("without_cells.csv", plan.without), ("skipped.csv", bad)):
        if rows:
            with _table(crops / name, ("source", "reason")) as table:
                table.writerows(rows)
    counts = ", ".join(f"{label} {number}" for label, number in sorted(labels.items()))
    texts = [
        f"{count} crops of {len(plan.fields) - len(bad)} fields",
        f"{labels.total()} with a label" + (f" ({counts})" if counts else ""),
        f"{review} to review (review.csv)" if review else "",
        f"{len(plan.without)} fields without cells (without_cells.csv)" if plan.without else "",
        f"{len(bad)} bad fields left out (skipped.csv)" if bad else "",
    ]
    return "; ".join(text for text in texts if text) + "."


@contextlib.contextmanager
def _table(path: Path, columns: Sequence[str]) -> Iterator[Any]:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        yield writer


if __name__ == "__main__":
    sys.exit(main())
