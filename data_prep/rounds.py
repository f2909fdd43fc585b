"""Rounds of review on disk: folders of images with Labelme files, and a record of the choice."""

import hashlib
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.boxes import read_labelme, write_labelme
from data_prep.errors import BuildError
from data_prep.fields import Fault, Field, FieldSet, Findings, labels_of
from data_prep.files import json_text, read_json, size_of_image

RECORD = ".round.json"
MEND = "put it back, or move that folder out of the project"


@dataclass(frozen=True)
class Round:
    """A round of review: its folder and what was recorded when its images were chosen."""

    folder: Path
    detector: str
    images: dict[str, float]  # with what each was worth
    sha256: dict[str, str]  # of the image files

    @property
    def number(self) -> int:
        return int(self.folder.name.removeprefix("round"))


def read_rounds(project: Path) -> list[Round]:
    """All rounds in order; raises BuildError for a folder that lost its record."""
    rounds = []
    for folder in project.glob("round*"):
        if not re.fullmatch(r"round\d+", folder.name) or not folder.is_dir():
            continue
        try:
            record = read_json(folder / RECORD)
            images, sha256 = dict(record["images"]), dict(record.get("sha256", {}))
            rounds.append(Round(folder, str(record["detector"]), images, sha256))
        except Fault as fault:
            raise BuildError(f"{folder / RECORD} {fault}: {MEND}.") from fault
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BuildError(f"{folder / RECORD} is no record of a round: {MEND}.") from error
    return sorted(rounds, key=lambda one: one.number)


def sha256_of(path: Path) -> str:
    """SHA-256 hex of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_round(
    folder: Path, fields: Sequence[Field], images: Path, record: dict[str, Any]
) -> None:
    """Copies of the images with a Labelme file each, made beside and renamed to `folder`."""
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():  # of a killed run
        shutil.rmtree(partial)
    for item in fields:
        place = partial / item.image
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(images / item.image, place)
    write_labelme(FieldSet(tuple(fields), labels_of(fields)), partial)
    (partial / RECORD).write_text(json_text(record), encoding="utf-8")
    partial.rename(folder)


def reviewed_fields(one: Round, findings: Findings) -> Iterator[Field]:
    """The fields of a round that a person has ticked, as truth: scores are gone.

    A file that is half-written, or whose picture is not the one that was chosen, is a fault.
    """
    place_of: dict[str, str] = {}
    for path in sorted(one.folder.rglob("*.json")):
        if path.name.startswith("."):
            continue
        place = f"{one.folder.name}/{path.relative_to(one.folder).as_posix()}"
        own = Findings()
        try:
            item = read_labelme(path, one.folder, own, place)
            flags = item.own["labelme"].get("flags")
            if not isinstance(flags, dict) or flags.get("reviewed") is not True:
                continue
            _check_image(one, item)
            if item.image in place_of:
                raise Fault(f"describes {item.image}, as {place_of[item.image]} does")
        except Fault as fault:
            findings.faults.append(f"{place} {fault}")
            continue
        findings.faults += own.faults
        findings.notes += own.notes
        place_of[item.image] = place
        boxes = tuple(replace(box, score=None, own={}) for box in item.boxes)
        yield replace(item, boxes=boxes, own={"review": {"round": one.number}})


def _check_image(one: Round, item: Field) -> None:
    """Raise Fault if the picture beside a reviewed file is not the one that was chosen."""
    path = one.folder / item.image
    if item.image not in one.images:
        raise Fault(f"names the image {item.image}, which was not chosen in this round")
    digest = sha256_of(path) if path.is_file() else None
    if size_of_image(path) != (item.width, item.height) or (
        digest != one.sha256.get(item.image, digest)
    ):
        raise Fault(f"does not fit its image {item.image}, which is missing or was changed")
