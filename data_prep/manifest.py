"""manifest.csv of `data_prep.crop`, read back after a person has filled in labels."""

import csv
from dataclasses import dataclass
from pathlib import Path

from data_prep.cut import file_sha256
from data_prep.errors import BuildError
from data_prep.fields import Fault, image_path
from data_prep.tree import listing

NEEDED = ("crop", "source", "label", "sha256")


@dataclass(frozen=True)
class Manifest:
    """The labelled crops: label -> crops in order, crop -> its field; and how many have none."""

    crops: dict[str, list[str]]
    source_of: dict[str, str]
    unlabelled: int


def read_manifest(path: Path) -> Manifest:
    """Read and check the table, and the SHA-256 of each labelled crop beside it.

    Where it has no label, the one in review.csv beside it is taken. Raises BuildError with all
    faults at once.
    """
    rows = _read_table(path, NEEDED)
    review = path.with_name("review.csv")
    reviewed = _read_table(review, ("crop", "label")) if review.is_file() else []
    label_of = {row["crop"]: row["label"] for row in reviewed if row["label"]}
    crops: dict[str, list[str]] = {}
    source_of: dict[str, str] = {}
    faults, unlabelled = [], 0
    for line, row in enumerate(rows, 2):
        label = label_of.pop(row["crop"], row["label"]) if row["crop"] else row["label"]
        if not label:
            unlabelled += 1
            continue
        try:
            if row["label"] not in ("", label):
                raise Fault(f"has two labels, {row['label']} here and {label} in {review.name}")
            crop = _checked(path.parent, row | {"label": label})
            if crop in source_of:
                raise Fault("is listed twice")
        except Fault as fault:
            faults.append(f"row {line}, {row['crop'] or '(no crop)'} {fault}")
            continue
        source_of[crop] = row["source"]
        crops.setdefault(label, []).append(crop)
    faults += [f"{review.name}, {crop} is not in the manifest" for crop in label_of]
    if faults:
        raise BuildError(listing(f"{path} cannot be used, in {len(faults)} places", faults))
    if not crops:
        raise BuildError(
            f"{path} has no row with a label ({unlabelled} without): fill in the column label, "
            "there or in review.csv."
        )
    return Manifest({label: crops[label] for label in sorted(crops)}, source_of, unlabelled)


def _read_table(path: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    """The needed columns of every row, without spaces around; raises BuildError."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            columns = list(table.fieldnames or ())
            rows = [{name: (row.get(name) or "").strip() for name in needed} for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BuildError(f"{path} cannot be read as a CSV file in UTF-8: {error}.") from error
    if missing := [name for name in needed if name not in columns]:
        raise BuildError(
            f"{path} has no column {', '.join(missing)}: its first line must name the columns "
            f"{', '.join(needed)}, with commas between."
        )
    return rows


def _checked(folder: Path, row: dict[str, str]) -> str:
    """The path of the row's crop under `folder`; raises Fault."""
    crop = image_path(row["crop"])
    if not row["source"]:
        raise Fault("has no source")
    if "\n" in row["label"] or "\r" in row["label"]:
        raise Fault("has a label of several lines")
    try:
        sha256 = file_sha256(folder / crop)
    except OSError as error:
        raise Fault(f"cannot be read ({error.strerror})") from error
    if sha256 != row["sha256"].lower():
        raise Fault("is not the file that was cropped (its SHA-256 differs): crop it again")
    return crop
