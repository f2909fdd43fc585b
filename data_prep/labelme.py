"""Labelme's JSON files ⇄ fields (github.com/wkentaro/labelme, its label files and shapes).

Labelme's own keys that a field has no place for, and keys that it does not know itself, are kept
and written back. `imageData`, a second copy of the picture, is not: the image file is the picture.
"""

import math
import posixpath
from collections.abc import Mapping
from typing import Any

from data_prep.fields import (
    OTHER,
    Box,
    Fault,
    Field,
    Findings,
    finite,
    image_path,
    image_size,
    label_of,
    mend_boxes,
    others_of,
    shown,
)

VERSION = "5.5.0"  # of the file format, written where a file brings none
# Fewest points of the shapes with an area. "rotation" is what X-AnyLabeling calls the oriented one.
POINTS = {
    "rectangle": 2,
    "circle": 2,
    "mask": 2,
    "polygon": 3,
    "oriented_rectangle": 3,
    "rotation": 3,
}
SHAPE = {"group_id": None, "description": "", "flags": {}}  # what a shape has if it says nothing
WITHOUT_AREA = ("point", "points", "line", "linestrip")


def field_from_labelme(
    content: Any,
    place: str,
    folder: str,
    findings: Findings,
    size: tuple[int, int] | None = None,
    root: str = "",
) -> Field:
    """One Labelme file as a field; `folder` and `root` as for image_path.

    Every shape with an area becomes its bounding box; the others are noted, and come back when the
    field is written. `size` is that of the image file, for files that bring none. Raises Fault.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get("shapes"), list):
        raise Fault("is no Labelme file: it has no list of shapes")
    image = image_path(content.get("imagePath"), folder, root)
    width, height = content.get("imageWidth"), content.get("imageHeight")
    if width is None and height is None:
        if size is None:
            raise Fault("has no imageWidth and imageHeight, and its image cannot be read")
        width, height = size
    width, height = image_size(width, height)
    boxes, others = [], []
    for index, shape in enumerate(content["shapes"], 1):
        where = f"{place}: shape {index}"
        try:
            kind = _kind(shape)
            if kind in WITHOUT_AREA:
                findings.notes.append(f"{where} is a {kind}, which has no area: no box")
                others.append(shape)
                continue
            boxes.append(_box(shape, kind))
        except Fault as fault:
            findings.faults.append(f"{where} {fault}")
    known = {"shapes", "imagePath", "imageData", "imageHeight", "imageWidth", OTHER}
    own = {key: value for key, value in content.items() if key not in known}
    if others:
        own["shapes"] = others
    boxes = mend_boxes(place, boxes, width, height, findings)
    return Field(image, width, height, boxes, {**others_of(content.get(OTHER)), "labelme": own})


def _kind(shape: Any) -> str:
    if not isinstance(shape, Mapping):
        raise Fault(f"is {shown(shape)}, which is no shape")
    kind = shape.get("shape_type")
    if kind is None:
        return "polygon"  # as Labelme reads it
    if kind not in (kinds := (*POINTS, *WITHOUT_AREA)):
        raise Fault(f"has the shape_type {shown(kind)}, but the types are {', '.join(kinds)}")
    return kind


def _box(shape: Mapping[str, Any], kind: str) -> Box:
    label = label_of(shape.get("label"))
    x0, y0, x1, y1 = bounds(kind, _points(shape.get("points")))
    score = shape.get("score")
    known = {"label", "score", OTHER}
    if kind == "rectangle":
        known |= {"points", "shape_type"}
    rest = {key: value for key, value in shape.items() if key not in known}
    rest = {key: value for key, value in rest.items() if key not in SHAPE or value != SHAPE[key]}
    own = {**others_of(shape.get(OTHER)), **({"labelme": rest} if rest else {})}
    return Box(label, x0, y0, x1, y1, None if score is None else finite(score), own)


def _points(points: Any) -> list[tuple[float, float]]:
    if not isinstance(points, list) or any(
        not isinstance(point, list) or len(point) != 2 for point in points
    ):
        raise Fault(f"has the points {shown(points)}: pairs of numbers are needed")
    return [(finite(x), finite(y)) for x, y in points]


def bounds(kind: str, points: list[tuple[float, float]]) -> tuple[float, float, float, float]:
    """Bounding box x0, y0, x1, y1 of a Labelme shape; raises Fault for too few points.

    A circle is its centre and a point of it; a mask its first and its last pixel.
    """
    if len(points) < POINTS[kind]:
        raise Fault(f"is a {kind} of {len(points)} points, but needs {POINTS[kind]}")
    if kind == "circle":
        (x, y), (a, b) = points[:2]
        radius = math.hypot(a - x, b - y)
        return x - radius, y - radius, x + radius, y + radius
    xs, ys = zip(*points, strict=True)
    far = 1 if kind == "mask" else 0
    return min(xs), min(ys), max(xs) + far, max(ys) + far


def labelme_from_field(item: Field, folder: str = "", root: str = "") -> dict[str, Any]:
    """The content of the Labelme file of a field; it will lie in `folder`, see image_path.

    A shape that came from Labelme is written as it was, unless its box or image has changed.
    """
    own = dict(item.own.get("labelme", {}))
    others = own.pop("shapes", None)
    shapes = [_shape(box, item) for box in item.boxes]
    content = {
        "version": own.pop("version", VERSION),
        "flags": own.pop("flags", {}),
        "shapes": shapes + (others if isinstance(others, list) else []),
        "imagePath": posixpath.relpath(posixpath.join(root, item.image), folder or root or "."),
        "imageData": None,
        "imageHeight": item.height,
        "imageWidth": item.width,
    }
    return _with_rest(content, own, item.own)


def _shape(box: Box, item: Field) -> dict[str, Any]:
    own = dict(box.own.get("labelme", {}))
    kind, points = own.pop("shape_type", None), own.pop("points", None)
    kind = "polygon" if kind is None else kind
    if not _same_box(kind, points, box, item):
        kind, points = "rectangle", [[float(box.x0), float(box.y0)], [float(box.x1), float(box.y1)]]
        own.pop("mask", None)
    shape = {
        "label": box.label,
        "points": points,
        "group_id": own.pop("group_id", SHAPE["group_id"]),
        "description": own.pop("description", SHAPE["description"]),
        "shape_type": kind,
        "flags": own.pop("flags", {}),
    }
    if box.score is not None:
        shape["score"] = box.score
    return _with_rest(shape, own, box.own)


def _with_rest(
    content: dict[str, Any], own: Mapping[str, Any], all_formats: Mapping[str, Any]
) -> dict[str, Any]:
    """The content, then the kept keys that it does not have, then those of other formats."""
    rest = {key: value for key, value in own.items() if key not in content}
    others = {name: value for name, value in all_formats.items() if name != "labelme"}
    return {**content, **rest, **({OTHER: others} if others else {})}


def _same_box(kind: Any, points: Any, box: Box, item: Field) -> bool:
    """Whether the kept shape still has the box's bounds (inside the image), to 0.01 px."""
    if not isinstance(kind, str) or kind not in POINTS:
        return False
    try:
        x0, y0, x1, y1 = bounds(kind, _points(points))
    except Fault:
        return False
    clipped = (max(x0, 0), max(y0, 0), min(x1, item.width), min(y1, item.height))
    return all(abs(a - b) < 0.01 for a, b in zip(clipped, box.corners, strict=True))
