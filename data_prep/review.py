"""Active learning: choose the images worth labelling, propose boxes, take back the corrected ones.

    python -m data_prep.review select --images smears --project review --count 40
    labelme review/round01          # correct the boxes, then tick the flag "reviewed"
    python -m data_prep.review accept --project review
    python -m data_prep.detect train --boxes review/labelled.json --images smears \\
        --out review/detector01
    python -m data_prep.detect evaluate --boxes test.json --images smears \\
        --detector review/detector01 --out review/detector01
    python -m data_prep.review select --images smears --project review --detector review/detector01
    python -m data_prep.review status --project review

Judge every detector on the same labelled images, of which no round takes any: `status` plots those
figures. `simulate` replays this on labelled images: active choice against random choice.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_prep.boxes import read_boxes, summary
from data_prep.coco import coco_from_fields
from data_prep.command import names, run_command, say
from data_prep.detect import SMALL, check_share, find_image_files, load_detector
from data_prep.errors import BuildError
from data_prep.fields import Fault, Field, FieldSet, Findings, labels_of
from data_prep.files import read_json, size_of_image, write_json
from data_prep.rounds import read_rounds, reviewed_fields, sha256_of, write_round
from data_prep.tree import listing
from data_prep.uncertainty import choose, disagreement, doubt

LABELLED = "labelled.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    return run_command(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.review",
        description="Label few images, the ones that teach a detector most.",
    )
    commands = parser.add_subparsers(required=True, metavar="select | accept | status | simulate")
    select = commands.add_parser("select", help="choose images and write Labelme files for them")
    select.set_defaults(run=run_select)
    select.add_argument("--images", type=Path, required=True, help="folder of all smear images")
    select.add_argument("--detector", type=Path, help="its folder (without one: random images)")
    select.add_argument("--count", type=int, default=40, help="images to choose; default 40")
    select.add_argument("--random", type=float, default=0.1, help="share at random; default 0.1")
    select.add_argument("--min-score", type=float, default=0.3, help="of a proposed box")
    select.add_argument("--seed", type=int, default=0)
    accept = commands.add_parser("accept", help="take the reviewed files into labelled.json")
    accept.set_defaults(run=run_accept)
    accept.add_argument(
        "--replace", action="store_true", help="take the new boxes of images accepted before"
    )
    status = commands.add_parser("status", help="rounds, counts and average precision so far")
    status.set_defaults(run=run_status)
    for command in (select, accept, status):
        command.add_argument("--project", type=Path, default=Path("review"), help="default: review")

    simulate = commands.add_parser("simulate", help="active against random, on labelled images")
    simulate.set_defaults(run=run_simulate)
    simulate.add_argument("--boxes", type=Path, required=True, help="true boxes")
    simulate.add_argument("--images", type=Path, required=True, help="folder of the images")
    simulate.add_argument("--out", type=Path, required=True, help="folder for the results")
    simulate.add_argument("--labels", type=names, help="only boxes with these labels, as WBC")
    simulate.add_argument("--hold-out", type=float, default=0.2, help="share to judge on")
    simulate.add_argument("--first", type=int, default=20, help="images of the first round")
    simulate.add_argument("--count", type=int, default=20, help="images of each further round")
    simulate.add_argument("--rounds", type=int, default=4, help="trainings a run; default 4")
    simulate.add_argument("--seeds", type=int, default=3, help="runs of each kind; default 3")
    simulate.add_argument("--steps", type=int, default=150, help="of each training; default 150")
    simulate.add_argument("--size", type=int, default=192, help="shorter side; default 192")
    simulate.add_argument("--architecture", default=SMALL, help=f"default {SMALL}")
    simulate.add_argument("--weights", default="none", help="to begin with; default none")
    return parser


# Select


def run_select(options: argparse.Namespace) -> None:
    """The sub-command `select`."""
    if options.count < 1:
        raise BuildError(f"--count is {options.count}, but must be at least 1.")
    check_share("--random", options.random)
    check_share("--min-score", options.min_score)
    project: Path = options.project
    rounds = read_rounds(project)
    seen = {image for one in rounds for image in one.images}
    seen.update(item.image for item in read_labelled(project).fields)
    images = find_image_files(options.images)
    pool = [
        image for image in _outside_rounds(images, options.images, project) if image not in seen
    ]
    if not pool:
        raise BuildError(f"All images of {options.images} are labelled or in a round already.")
    detector = load_detector(options.detector) if options.detector else None
    views = look_at(detector, pool, options.images)
    chosen = choose(
        views.worth, views.features, options.count, options.seed + len(rounds), options.random
    )
    folder = project / f"round{max((one.number for one in rounds), default=0) + 1:02}"
    record = {
        "detector": detector.id if detector else "",
        "seed": options.seed,
        "images": {pool[at]: round(views.worth[at], 4) for at in chosen},
        "sha256": {pool[at]: sha256_of(options.images / pool[at]) for at in sorted(chosen)},
    }
    proposed = [
        propose(views.fields[at], record["detector"], options.min_score)
        for at in sorted(chosen, key=lambda at: pool[at])
    ]
    write_round(folder, proposed, options.images, record)
    how = f"proposed by {detector.id}" if detector else "chosen at random, without boxes"
    say(
        f"{folder}: {len(chosen)} of {len(pool)} images, {how}.\nCorrect them (labelme {folder}), "
        'tick the flag "reviewed" of each, then: '
        f"python -m data_prep.review accept --project {project}"
    )


def _outside_rounds(images: Iterable[str], folder: Path, project: Path) -> Iterator[str]:
    """The images under `folder` but for the copies in rounds, where the project lies in it."""
    beside = Path(os.path.relpath(project.resolve(), folder.resolve())).as_posix()
    copies = re.compile(("" if beside == "." else re.escape(f"{beside}/")) + r"round\d+/")
    return (image for image in images if not copies.match(image))


@dataclass(frozen=True)
class Views:
    """What a detector saw in unlabelled images: found boxes, worth [n], features [n, d]."""

    fields: list[Field]
    worth: list[float]
    features: np.ndarray


def look_at(detector: Any, pool: Sequence[str], images: Path, progress: bool = True) -> Views:
    """Boxes, worth and features of each image; without a detector all are worth the same."""
    fields, worth, features = [], [], []
    for image in tqdm(pool, desc="looking", unit=" images", disable=None if progress else True):
        if detector is None:
            size = size_of_image(images / image)
            if size is None:
                raise BuildError(f"{images / image} cannot be read as an image: remove or mend it.")
            fields.append(Field(image, *size))
            worth.append(0.0)
            features.append(np.zeros(1))
            continue
        from data_prep.detector import read_picture, two_views

        picture = read_picture(images / image)
        boxes, mirrored, feature = two_views(detector, picture)
        fields.append(Field(image, picture.shape[2], picture.shape[1], boxes))
        worth.append(doubt(boxes) + disagreement(boxes, mirrored))
        features.append(feature)
    return Views(fields, worth, np.array(features))


def propose(item: Field, detector: str, min_score: float) -> Field:
    """The field as a person gets it: sure enough boxes with score and detector, not reviewed."""
    boxes = tuple(
        replace(box, own={"labelme": {"description": f"{box.score:.2f}", "detector": detector}})
        for box in item.boxes
        if box.score is not None and box.score >= min_score
    )
    own = {"labelme": {"flags": {"reviewed": False}, "detector": detector}}
    return replace(item, boxes=boxes, own=own)


# Accept and status


def read_labelled(project: Path) -> FieldSet:
    """The accepted fields so far; none before the first."""
    path = project / LABELLED
    return read_boxes(path) if path.is_file() else FieldSet((), ())


def run_accept(options: argparse.Namespace) -> None:
    """The sub-command `accept`: merge what was reviewed; the file is replaced at once or not."""
    project: Path = options.project
    rounds = read_rounds(project)
    if not rounds:
        raise BuildError(f"{project} has no round: choose images with `select` first.")
    before = read_labelled(project)
    findings = Findings()
    reviewed = [item for one in rounds for item in reviewed_fields(one, findings)]
    findings.raise_faults(str(project))
    if findings.notes:
        say(listing("Left out of the reviewed files, or mended", findings.notes))
    by_image = {item.image: item for item in before.fields}
    new = [item for item in reviewed if item.image not in by_image]
    changed = [
        item
        for item in reviewed
        if item.image in by_image and _boxes_of(item) != _boxes_of(by_image[item.image])
    ]
    if changed and not options.replace:
        raise BuildError(
            f"{len(changed)} images accepted before have other boxes now, as {changed[0].image}: "
            "--replace takes the new ones."
        )
    by_image.update((item.image, item) for item in (*new, *changed))
    fields = tuple(by_image[image] for image in sorted(by_image))
    after = replace(before, fields=fields, labels=labels_of(fields, before.labels))
    if new or changed:
        write_json(project / LABELLED, coco_from_fields(after), overwrite=True)
    again = f", {len(changed)} replaced" if changed else ""
    waiting = sum(len(one.images) for one in rounds) - len(reviewed)
    say(
        f"{project / LABELLED}: {len(new)} accepted{again}, {waiting} not reviewed yet; now "
        f"{summary(after)}."
    )


def _boxes_of(item: Field) -> list[tuple[Any, ...]]:
    return sorted((box.label, *box.corners) for box in item.boxes)


def run_status(options: argparse.Namespace) -> None:
    """The sub-command `status`: a table, and the plot status.png once a detector was judged."""
    project: Path = options.project
    rounds, labelled = read_rounds(project), read_labelled(project)
    if not rounds:
        raise BuildError(f"{project} has no round: choose images with `select` first.")
    lines = ["round    selected  reviewed  accepted  by"]
    accepted, findings = {item.image for item in labelled.fields}, Findings()
    for one in rounds:
        done = len(list(reviewed_fields(one, findings)))
        taken = len(accepted & set(one.images))
        lines.append(
            f"{one.folder.name:8} {len(one.images):8}  {done:8}  {taken:8}  "
            f"{one.detector or 'at random'}"
        )
    lines += [f"not counted: {fault}" for fault in findings.faults]
    lines.append(f"labelled: {summary(labelled)}")
    points = judged_detectors(project)
    lines += [
        f"{folder}: trained on {images} images, AP {ap:.3f}, AP50 {ap50:.3f}"
        for folder, images, ap, ap50 in points
    ]
    if points:
        from data_prep.curves import draw_status

        draw_status(points, project / "status.png")
        lines.append(f"Plot: {project / 'status.png'}")
    say("\n".join(lines))


def judged_detectors(project: Path) -> list[tuple[str, int, float, float]]:
    """Folder, images trained on, AP and AP50 of each detector in the project that was judged."""
    points = []
    for path in sorted(project.glob("*/evaluation.json")):
        try:
            images = int(read_json(path.parent / "detector.json")["images"])
            figures = read_json(path)["average_precision"]["all"]
            ap, ap50 = float(figures["AP"]), float(figures["AP50"])
            points.append((path.parent.name, images, ap, ap50))
        except (Fault, ValueError, KeyError, TypeError):  # not of a detector, or half-written
            continue
    return points


def run_simulate(options: argparse.Namespace) -> None:
    """The sub-command `simulate`."""
    from data_prep.simulation import simulate

    say(simulate(options))


if __name__ == "__main__":
    sys.exit(main())
