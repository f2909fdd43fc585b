"""Crops of cells out of fields: which boxes, which pixels, which names and labels.

A crop is the box with a margin, made square around its middle. What it shows beyond the border of
the field follows a stated rule: by default the picture is mirrored, which adds no new colour. A
cell that the border cuts then looks whole and is not: its field's label does not go along.
"""

import hashlib
import json
import math
import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.errors import BuildError
from data_prep.fields import Box, Field, FieldSet
from data_prep.images import MAX_PIXELS, BadImage, encode_png
from data_prep.place import write_whole
from data_prep.scan import read_file
from data_prep.tree import SPLIT_NAMES, listing

BORDERS = ("reflect", "edge", "white")
AT_BORDER = 1.0  # pixels: a box that comes this near to the border holds a cell that it cuts
UNLABELLED = "unlabelled"  # the folder of crops without a label
Window = tuple[int, int, int, int]


@dataclass(frozen=True)
class Rule:
    """Which boxes are cells, how they are cut, and where their labels come from."""

    labels: tuple[str, ...] = ()  # of the boxes that are cells; empty where there is but one
    margin: float = 0.15  # on each side, as a share of the box's longer side
    square: bool = True
    border: str = "reflect"
    min_score: float = 0.5  # of boxes that have a score
    label_from: str = "folder"  # or "box", or "none"

    def __post_init__(self) -> None:
        if not 0 <= self.margin <= 2:
            raise BuildError(f"--margin is {self.margin}, but may be 0 to 2 of the longer side.")
        if not 0 <= self.min_score <= 1:
            raise BuildError(f"--min-score is {self.min_score}, but a score lies between 0 and 1.")
        if self.border not in BORDERS:
            raise BuildError(f"--border is {self.border}, but may be {', '.join(BORDERS)}.")


@dataclass(frozen=True, slots=True)
class Cell:
    """One crop to make: its file, its label or the reason why it has none, and its box."""

    crop: str  # path under the folder of crops
    label: str
    reason: str
    box: tuple[float, float, float, float]
    score: float | None


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of one field."""

    source: str  # the field's path under the images
    width: int
    height: int
    cells: tuple[Cell, ...]


def window_of(box: tuple[float, float, float, float], margin: float, square: bool) -> Window:
    """The pixels x0 ≤ x < x1, y0 ≤ y < y1 of a crop, which may lie outside the field."""
    x0, y0, x1, y1 = box
    longer = max(x1 - x0, y1 - y0)
    edges = []
    for low, high in ((x0, x1), (y0, y1)):
        length = (longer if square else high - low) + 2 * margin * longer
        pixels = max(1, math.floor(length + 0.5))
        start = math.floor((low + high - pixels) / 2 + 0.5)
        edges.append((start, start + pixels))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def cut(rgb: np.ndarray, window: Window, border: str) -> np.ndarray:
    """The pixels of the window; beyond the border the picture is mirrored, drawn out, or white."""
    x0, y0, x1, y1 = window
    height, width = rgb.shape[:2]
    if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height:
        return rgb[y0:y1, x0:x1]
    across, down = np.arange(x0, x1), np.arange(y0, y1)
    columns, rows = _inside(across, width, border), _inside(down, height, border)
    pixels = rgb[rows][:, columns]
    if border == "white":
        pixels[(down < 0) | (down >= height)] = 255
        pixels[:, (across < 0) | (across >= width)] = 255
    return pixels


def _inside(places: np.ndarray, length: int, border: str) -> np.ndarray:
    """For each place on an axis, the pixel 0 … length-1 that is shown there."""
    if border != "reflect":
        return places.clip(0, length - 1)
    period = max(2 * (length - 1), 1)  # … 2 1 0 1 2 …: the pixel at the border stands once
    folded = places % period
    return np.minimum(folded, period - folded) if length > 1 else folded * 0


def choose_cells(
    fields: FieldSet, rule: Rule, images: Iterable[str]
) -> tuple[list[Cells], list[tuple[str, str]], list[str]]:
    """The crops of every field in order of its path, (field, reason) without cells, and notes.

    `images` are all fields there are, also those without a box. Raises BuildError.
    """
    present = Counter(box.label for field in fields.fields for box in field.boxes)
    if not rule.labels and len(present) > 1:
        counts = ", ".join(f"{label} ({count})" for label, count in present.items())
        raise BuildError(f"The boxes are labelled {counts}: say with --labels which are cells.")
    if rule.labels:
        fields = fields.of_labels(rule.labels)
    if rule.label_from == "box":
        _check_folder_names(box.label for field in fields.fields for box in field.boxes)
    listed = {field.image: field for field in fields.fields}
    stems = unique_stems({*images, *listed})
    chosen, without, twice = [], [], 0
    for source in sorted(stems):
        field = listed.get(source)
        if field is None:
            without.append((source, "not among the boxes"))
            continue
        boxes = {box.corners: box for box in sorted(field.boxes, key=_order)}
        twice += len(field.boxes) - len(boxes)
        boxes = [box for box in boxes.values() if box.score is None or box.score >= rule.min_score]
        if not boxes:
            low = f"no box with a score of {rule.min_score} or more" if field.boxes else "no box"
            without.append((source, low))
            continue
        chosen.append(
            Cells(source, field.width, field.height, name_cells(field, boxes, stems[source], rule))
        )
    _check(chosen, without, rule)
    notes = [f"Boxes given twice are cropped once: {twice}."] if twice else []
    return chosen, without, notes


def _order(box: Box) -> tuple[float, ...]:
    """From top to bottom, then from left to right; of equal boxes the best score comes last."""
    return box.y0, box.x0, box.y1, box.x1, -1 if box.score is None else box.score


def name_cells(field: Field, boxes: Sequence[Box], stem: str, rule: Rule) -> tuple[Cell, ...]:
    """The field's crops: CLASS/FIELD.png for the only one, unlabelled/CLASS/FIELD_1.png … else."""
    folder, slash, _ = field.image.partition("/")
    reasons = []
    if rule.label_from == "none":
        reasons.append("labels are not taken (--label-from none)")
    elif rule.label_from == "folder":
        if len(boxes) > 1:
            reasons.append(f"{len(boxes)} cells in the field")
        if not slash or folder == UNLABELLED:
            reasons.append("field in no class folder")
        if len(boxes) == 1 and is_cut(boxes[0].corners, field.width, field.height):
            reasons.append("cut by the border of the field")
    cells = []
    for number, box in enumerate(boxes, 1):
        label, crop = "", f"{UNLABELLED}/{stem}_{number}.png"
        if not reasons and rule.label_from == "folder":
            label, crop = folder, f"{stem}.png"
        elif not reasons:
            label, crop = box.label, f"{box.label}/{stem}_{number}.png"
        cells.append(Cell(crop, label, "; ".join(reasons), box.corners, box.score))
    return tuple(cells)


def is_cut(box: tuple[float, float, float, float], width: int, height: int) -> bool:
    """Whether the border of a field of width × height pixels cuts the cell in this box."""
    x0, y0, x1, y1 = box
    return min(x0, y0, width - x1, height - y1) <= AT_BORDER


def unique_stems(sources: Iterable[str]) -> dict[str, str]:
    """For each path, itself without its suffix; with it where the other would name two."""
    without = {source: posixpath.splitext(source)[0] for source in sources}
    times = Counter(without.values())
    return {
        source: stem if times[stem] == 1 and stem not in without else source
        for source, stem in without.items()
    }


def _check_folder_names(labels: Iterable[str]) -> None:
    for label in sorted(set(labels)):
        unfit = not label.strip() or label[0] == "." or label == UNLABELLED
        if unfit or set(label) & set('/\\\n\r:"'):
            raise BuildError(f"The box label {label!r} cannot name a folder: rename it.")


def _check(chosen: list[Cells], without: list[tuple[str, str]], rule: Rule) -> None:
    """Raise BuildError for a request without a crop, with split folders, or with huge crops."""
    if not chosen:
        reasons = ", ".join(f"{why} ({n})" for why, n in Counter(w for _, w in without).items())
        raise BuildError(f"No field has a cell to crop: {reasons or 'there is no field'}.")
    labels = {cell.label for field in chosen for cell in field.cells} - {""}
    if labels and SPLIT_NAMES.issuperset(label.lower() for label in labels):
        raise BuildError(
            f"The folders of the images are splits ({', '.join(sorted(labels))}), not classes: "
            "give --label-from box or none, or a tree whose folders are the classes."
        )
    large = []
    for field in chosen:
        for cell in field.cells:
            x0, y0, x1, y1 = window_of(cell.box, rule.margin, rule.square)
            if (x1 - x0) * (y1 - y0) > MAX_PIXELS:
                large.append(f"{field.source}: {x1 - x0} x {y1 - y0}")
    if large:
        limit = f"crops have more than {MAX_PIXELS // 10**6} million pixels"
        raise BuildError(listing(f"{len(large)} {limit}: give a smaller --margin", large))


@dataclass(frozen=True, slots=True)
class Row:
    """One crop that has been made: a line of the manifest."""

    crop: str
    source: str
    label: str
    reason: str
    x0: float
    y0: float
    x1: float
    y1: float
    score: float | None
    detector: str
    sha256: str  # of the crop's file
    source_sha256: str  # of the field's file


def crop_batch(
    images: Path, batch: Sequence[Cells], rule: Rule, detector: str, crops: Path, part: Path
) -> list[tuple[str, str]]:
    """Write the crops of these fields under `crops`, then their rows to the JSON file `part`.

    A batch whose part tells the truth about files that are all there is not made again. Returns
    (field, reason) for each field that cannot be read.
    """
    if _is_true(part, images, crops):
        return []
    rows, bad = [], []
    for field in batch:
        try:
            rgb, source_sha256 = read_file(images, field.source)
            if rgb.shape[:2] != (field.height, field.width):
                size = f"{rgb.shape[1]} x {rgb.shape[0]} pixels"
                raise BadImage(f"has {size}, its boxes {field.width} x {field.height}")
        except BadImage as error:
            bad.append((field.source, str(error)))
            for cell in field.cells:  # made while the file was still good
                (crops / cell.crop).unlink(missing_ok=True)
            continue
        for cell in field.cells:
            png = encode_png(cut(rgb, window_of(cell.box, rule.margin, rule.square), rule.border))
            path = crops / cell.crop
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png)
            sha256 = hashlib.sha256(png).hexdigest()
            names = (cell.crop, field.source, cell.label, cell.reason)
            rows.append((*names, *cell.box, cell.score, detector, sha256, source_sha256))
    write_whole(part, json.dumps({"rows": rows, "bad": bad}))
    return bad


def read_part(part: Path) -> list[Row]:
    """The rows of a finished batch."""
    return [Row(*row) for row in json.loads(part.read_text(encoding="utf-8"))["rows"]]


def _is_true(part: Path, images: Path, crops: Path) -> bool:
    """Whether the part is there, without bad fields, and all files are those that it names."""
    try:
        content = json.loads(part.read_text(encoding="utf-8"))
        rows = [Row(*row) for row in content["rows"]]
        sources = {row.source: row.source_sha256 for row in rows}
        files = {images / source: sha256 for source, sha256 in sources.items()}
        files |= {crops / row.crop: row.sha256 for row in rows}
        return not content["bad"] and all(file_sha256(p) == known for p, known in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
