"""Fields of a smear with their boxes: what Labelme, COCO and VOC files are read into.

Pixels are counted from the upper left corner of the image as a person sees it (EXIF orientation
applied); a box covers x0 ≤ x < x1 and y0 ≤ y < y1.
"""

import math
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from data_prep.errors import BuildError
from data_prep.tree import listing

DECIMALS = 4  # of coordinates that are written, in pixels
MAX_SIDE = 10**7  # of an image, in pixels
# The key (in XML: the element) under which a file of one format keeps what others know.
OTHER = "other_formats"
UNWRITABLE = re.compile("[\0-\x1f\x7f\ud800-\udfff\ufffe\uffff]")  # in a name, or in XML


class Fault(ValueError):
    """What is wrong with one file, image or box, as the end of the sentence `PLACE: …`."""


@dataclass(frozen=True, slots=True)
class Box:
    """One labelled box in pixels; `own` holds what only one format knows, under its name.

    As in {"coco": {"id": 7, "iscrowd": 1}, "labelme": {"group_id": 3}}.
    """

    label: str
    x0: float
    y0: float
    x1: float
    y1: float
    score: float | None = None
    own: Mapping[str, Any] = field(default_factory=dict)

    @property
    def corners(self) -> tuple[float, float, float, float]:
        return self.x0, self.y0, self.x1, self.y1


@dataclass(frozen=True, slots=True)
class Field:
    """One image, named by its path under the folder of images (with slashes), and its boxes."""

    image: str
    width: int
    height: int
    boxes: tuple[Box, ...] = ()
    own: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FieldSet:
    """Fields in order, all labels in order (also those without a box), and the set's own data."""

    fields: tuple[Field, ...]
    labels: tuple[str, ...]
    info: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)

    def of_labels(self, labels: Iterable[str]) -> "FieldSet":
        """The same fields with the boxes of these labels only; raises BuildError for others."""
        labels = tuple(dict.fromkeys(labels))
        if unknown := [label for label in labels if label not in self.labels]:
            raise BuildError(
                f"--labels names {', '.join(unknown)}, but the boxes are labelled "
                f"{', '.join(self.labels) or '(there are none)'}."
            )
        fields = (
            replace(item, boxes=tuple(box for box in item.boxes if box.label in labels))
            for item in self.fields
        )
        return replace(self, fields=tuple(fields), labels=labels)

    def of_images(self, images: Iterable[str]) -> "FieldSet":
        """The fields of these images, in the set's own order."""
        wanted = set(images)
        return replace(self, fields=tuple(item for item in self.fields if item.image in wanted))


@dataclass
class Findings:
    """What reading found: `faults` forbid to go on, `notes` say what was mended or left out."""

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def raise_faults(self, what: str) -> None:
        """Raise one BuildError that lists all faults, if there are any."""
        if self.faults:
            places = "one place" if len(self.faults) == 1 else f"{len(self.faults)} places"
            raise BuildError(listing(f"{what} cannot be used, in {places}", self.faults))


def mend_boxes(
    place: str, boxes: Iterable[Box], width: int, height: int, findings: Findings
) -> tuple[Box, ...]:
    """Corners in order and inside the image; boxes left without area go, with a note on each.

    A coordinate or score that is not a finite number is a fault.
    """
    kept = []
    for index, box in enumerate(boxes, 1):
        name = f"{place}: box {index} ({box.label})"
        if not all(math.isfinite(value) for value in box.corners):
            findings.faults.append(f"{name} has the corners {box.corners}: numbers are needed")
            continue
        if box.score is not None and not math.isfinite(box.score):
            findings.faults.append(f"{name} has the score {box.score}: a number is needed")
            continue
        (x0, x1), (y0, y1) = sorted((box.x0, box.x1)), sorted((box.y0, box.y1))
        clipped = (max(x0, 0), max(y0, 0), min(x1, width), min(y1, height))
        inside = tuple(round(value, DECIMALS) for value in clipped)
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            outside = x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0
            why = "lies outside the image" if outside and x0 < x1 and y0 < y1 else "has no area"
            findings.notes.append(f"{name} {why} and is left out")
            continue
        if clipped != (x0, y0, x1, y1):
            findings.notes.append(f"{name} reaches over the border and is clipped")
        kept.append(replace(box, x0=inside[0], y0=inside[1], x1=inside[2], y1=inside[3]))
    return tuple(kept)


def shown(value: Any) -> str:
    """A value as a fault quotes it, cut to a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def label_of(value: Any) -> str:
    """A label without the white space around it; raises Fault for what is no name."""
    if not isinstance(value, str) or not value.strip():
        raise Fault(f"has the label {shown(value)}: a name is needed")
    if UNWRITABLE.search(value.strip()):
        raise Fault(f"has the label {shown(value)}, with a character that no name has")
    return value.strip()


def finite(value: Any) -> float:
    """A finite number of a JSON file; raises Fault for all else, also for texts and true."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            if math.isfinite(value := float(value)):
                return value
        except OverflowError:
            pass
    raise Fault(f"has {shown(value)} where a number is needed")


def image_path(text: Any, folder: str = "", root: str = "") -> str:
    """A path under the folder of images, normalised: slashes, no `..`; raises Fault.

    The text is relative to `folder`, where the file lies that names the image. `folder` is an
    absolute path if `root`, the folder of images, is given, else a path under that.
    """
    if not isinstance(text, str) or not text.strip():
        raise Fault(f"names the image {shown(text)}, which is no path")
    if UNWRITABLE.search(text):
        raise Fault(f"names the image {shown(text)}, with a character that no name has")
    slashes = text.replace("\\", "/")
    if slashes.startswith("/") or re.match("[A-Za-z]:", slashes):
        raise Fault(
            f"names the image {shown(text)}: a path relative to the folder of images is needed"
        )
    path = posixpath.normpath(posixpath.join(folder, slashes))
    if root:
        path = posixpath.relpath(path, root)
    if path in (".", "..") or path.startswith("../"):
        raise Fault(
            f"names the image {shown(text)}, which lies outside the folder of images: "
            "give that with --images"
        )
    return path


def image_size(width: Any, height: Any) -> tuple[int, int]:
    """Width and height as positive whole numbers; raises Fault."""
    for value in (width, height):
        whole = isinstance(value, int | float) and not isinstance(value, bool)
        if not whole or not 1 <= value <= MAX_SIDE or value != int(value):
            raise Fault(
                f"has the size {shown(width)} x {shown(height)}: two whole numbers from 1 to "
                f"{MAX_SIDE} are needed"
            )
    return int(width), int(height)


def others_of(value: Any) -> dict[str, Mapping[str, Any]]:
    """What a file keeps of other formats, by format; raises Fault if that was spoilt."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(v, Mapping) for v in value.values()):
        raise Fault(f"has {OTHER} {shown(value)}: mend or remove that")
    return dict(value)


def number(value: float) -> float | int:
    """A coordinate as it is written: rounded, and without a point if it is whole."""
    value = round(value, DECIMALS)
    return int(value) if value == int(value) else value


def labels_of(fields: Iterable[Field], known: Iterable[str] = ()) -> tuple[str, ...]:
    """The `known` labels in their order, then those of the boxes in alphabetical order."""
    known = tuple(known)
    used = {box.label for item in fields for box in item.boxes}
    return (*known, *sorted(used.difference(known)))
