"""MS COCO's detection format ⇄ fields (cocodataset.org/#format-data), and Label Studio's tasks.

CVAT reads the file under "Upload annotations", format "COCO 1.0": the file as it is, or a zip
archive that holds it as annotations/instances_default.json.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from data_prep.fields import (
    OTHER,
    Box,
    Fault,
    Field,
    FieldSet,
    Findings,
    finite,
    image_path,
    image_size,
    label_of,
    labels_of,
    mend_boxes,
    number,
    others_of,
    shown,
)

LISTS = ("images", "annotations", "categories")
IMAGE_KEYS = frozenset({"file_name", "width", "height", OTHER})
BOX_KEYS = frozenset({"image_id", "bbox", "score", OTHER})
OUTLINE_KEYS = frozenset({"area", "segmentation"})  # right only while the box is the same


def fields_from_coco(content: Any, findings: Findings) -> FieldSet:
    """All images of a COCO file with their boxes; what is wrong with it goes to `findings`."""
    if not isinstance(content, Mapping) or any(not _rows(content.get(key)) for key in LISTS):
        findings.faults.append(f"It is no COCO file: it needs the lists {', '.join(LISTS)}")
        return FieldSet((), ())
    categories = _by_id("category", content["categories"], findings)
    names: dict[Any, str] = {}
    for key, row in categories.items():
        try:
            label = label_of(row.get("name"))
            if label in names.values():
                raise Fault(f"has the name {label}, as another category has")
            names[key] = label
        except Fault as fault:
            names[key] = ""
            findings.faults.append(f"category {key} {fault}")
    images = _by_id("image", content["images"], findings)
    boxes_of: dict[Any, list[Box]] = {key: [] for key in images}
    for key, row in _by_id("annotation", content["annotations"], findings).items():
        try:
            image = _known(row, "image_id", images)
            boxes_of[image].append(_box(row, names[_known(row, "category_id", names)]))
        except Fault as fault:
            findings.faults.append(f"annotation {key} {fault}")
    fields: dict[str, Field] = {}
    for key, row in images.items():
        try:
            image = image_path(row.get("file_name"))
            width, height = image_size(row.get("width"), row.get("height"))
            if image in fields:
                raise Fault(f"is {image}, which is listed twice")
            own = _own(row, IMAGE_KEYS)
        except Fault as fault:
            findings.faults.append(f"image {key} {fault}")
            continue
        boxes = mend_boxes(image, boxes_of[key], width, height, findings)
        fields[image] = Field(image, width, height, boxes, own)
    info = content.get("info")
    rest = {key: value for key, value in content.items() if key not in ("info", *LISTS)}
    rest["categories"] = {names[key]: row for key, row in categories.items()}
    info = info if isinstance(info, Mapping) else {}
    return FieldSet(tuple(fields.values()), tuple(names.values()), info, {"coco": rest})


def _rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, Mapping) for row in value)


def _by_id(
    what: str, rows: Iterable[Mapping[str, Any]], findings: Findings
) -> dict[Any, Mapping[str, Any]]:
    """The rows by their ids; faults are ids that stand twice or are no number (or text)."""
    found: dict[Any, Mapping[str, Any]] = {}
    for index, row in enumerate(rows, 1):
        key = row.get("id")
        if not isinstance(key, int | str) or isinstance(key, bool):
            findings.faults.append(f"{what} {index} has the id {shown(key)}: a number is needed")
        elif key in found:
            findings.faults.append(f"{what} {index} has the id {shown(key)}, as another one has")
        else:
            found[key] = row
    return found


def _known(row: Mapping[str, Any], key: str, ids: Mapping[Any, Any]) -> Any:
    value = row.get(key)
    if not isinstance(value, int | str) or isinstance(value, bool) or value not in ids:
        raise Fault(f"has the {key} {shown(value)}, which is not listed")
    return value


def _own(row: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    rest = {key: value for key, value in row.items() if key not in known}
    return {**others_of(row.get(OTHER)), "coco": rest}


def _box(row: Mapping[str, Any], label: str) -> Box:
    corners = row.get("bbox")
    if not isinstance(corners, list) or len(corners) != 4:
        raise Fault(f"has the bbox {shown(corners)}: x, y, width and height are needed")
    x, y, width, height = (finite(value) for value in corners)
    score = None if row.get("score") is None else finite(row["score"])
    known = set(BOX_KEYS)
    if row.get("iscrowd") in (0, None):
        known |= {"iscrowd"}
    if not row.get("segmentation"):
        known |= OUTLINE_KEYS
    else:
        known -= {"bbox"}
    return Box(label, x, y, x + width, y + height, score, _own(row, known))


def coco_from_fields(fields: FieldSet) -> dict[str, Any]:
    """The content of a COCO file; ids that came from one are kept, where they differ."""
    categories = _categories(fields)
    category = {row["name"]: row["id"] for row in categories}
    image_ids = _ids(item.own.get("coco", {}).get("id") for item in fields.fields)
    boxes = [box for item in fields.fields for box in item.boxes]
    box_ids = iter(_ids(box.own.get("coco", {}).get("id") for box in boxes))
    images, annotations = [], []
    for item, image_id in zip(fields.fields, image_ids, strict=True):
        row = {"id": image_id, "file_name": item.image, "width": item.width, "height": item.height}
        images.append(_with_rest(row, item.own))
        for box in item.boxes:
            width, height = number(box.x1 - box.x0), number(box.y1 - box.y0)
            row = {
                "id": next(box_ids),
                "image_id": image_id,
                "category_id": category[box.label],
                "bbox": [number(box.x0), number(box.y0), width, height],
                **_outline(box, item),
                **({} if box.score is None else {"score": box.score}),
            }
            annotations.append(_with_rest(row, box.own))
    rest = {"licenses": [], **fields.own.get("coco", {})}
    lists = {"images": images, "annotations": annotations, "categories": categories}
    return {"info": dict(fields.info), **rest, **lists}


def _with_rest(row: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The row, then the kept keys that it does not have, then those of other formats."""
    rest = {key: value for key, value in own.get("coco", {}).items() if key not in row}
    others = {name: value for name, value in own.items() if name != "coco"}
    return {**row, **rest, **({OTHER: others} if others else {})}


def _outline(box: Box, item: Field) -> dict[str, Any]:
    """Area, segmentation and iscrowd: as they were, if the box is the one that came with them."""
    own = box.own.get("coco", {})
    iscrowd = own.get("iscrowd", 0)
    try:
        x, y, width, height = (finite(value) for value in own.get("bbox", ()))
    except (Fault, TypeError, ValueError):
        same = False
    else:
        kept = (max(x, 0), max(y, 0), min(x + width, item.width), min(y + height, item.height))
        same = all(abs(a - b) < 0.01 for a, b in zip(kept, box.corners, strict=True))
    area = number(number(box.x1 - box.x0) * number(box.y1 - box.y0))
    if not same:
        return {"area": area, "segmentation": [], "iscrowd": iscrowd}
    area, segmentation = own.get("area", area), own.get("segmentation", [])
    return {"area": area, "segmentation": segmentation, "iscrowd": iscrowd}


def _categories(fields: FieldSet) -> list[dict[str, Any]]:
    """A row for each label, by id: the row of the file that was read, or the boxes' commonest id.

    Only the boxes carry the ids where a folder of files lies between two COCO files.
    """
    rows = fields.own.get("coco", {}).get("categories", {})
    votes: dict[str, Counter[int]] = {}
    for box in (box for item in fields.fields for box in item.boxes):
        value = box.own.get("coco", {}).get("category_id")
        if isinstance(value, int):
            votes.setdefault(box.label, Counter())[value] += 1
    labels = labels_of(fields.fields, fields.labels)
    wanted = []
    for label in labels:
        if label in rows:
            wanted.append(rows[label]["id"])
        else:
            wanted.append(votes[label].most_common(1)[0][0] if label in votes else None)
    categories = [
        {"id": key, "name": label, "supercategory": "", **_without(rows.get(label, {}))}
        for label, key in zip(labels, _ids(wanted), strict=True)
    ]
    return sorted(categories, key=lambda row: row["id"])


def _without(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("id", "name")}


def _ids(wanted: Iterable[Any]) -> list[int]:
    """The wanted ids where they are whole numbers and new, else the first free ones."""
    wanted = list(wanted)
    whole = [isinstance(value, int) and not isinstance(value, bool) for value in wanted]
    taken = {value for value, fits in zip(wanted, whole, strict=True) if fits}
    free = (value for value in itertools.count(1) if value not in taken)
    ids, seen = [], set()
    for value, fits in zip(wanted, whole, strict=True):
        ids.append(value if fits and value not in seen else next(free))
        seen.add(ids[-1])
    return ids


def label_studio_from_fields(fields: FieldSet, prefix: str = "") -> list[dict[str, Any]]:
    """Label Studio tasks with the boxes as predictions (labelstud.io/guide/predictions).

    The labelling set-up needs <Image name="image" value="$image"/> and <RectangleLabels
    name="label" toName="image">; `prefix` stands before each path, then quoted as part of a URL.
    """
    model = fields.info.get("detector")
    tasks = []
    for item in fields.fields:
        results = []
        for index, box in enumerate(item.boxes, 1):
            across, down = 100 / item.width, 100 / item.height
            value = {
                "x": box.x0 * across,
                "y": box.y0 * down,
                "width": (box.x1 - box.x0) * across,
                "height": (box.y1 - box.y0) * down,
                "rotation": 0,
                "rectanglelabels": [box.label],
            }
            row = {
                "id": f"{item.image}#{index}",
                "type": "rectanglelabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": item.width,
                "original_height": item.height,
                "image_rotation": 0,
                "value": value,
            }
            results.append(row if box.score is None else {**row, "score": box.score})
        prediction: dict[str, Any] = {"model_version": str(model)} if model else {}
        prediction["result"] = results
        scores = [box.score for box in item.boxes if box.score is not None]
        if scores:
            prediction["score"] = sum(scores) / len(scores)
        image = prefix + quote(item.image) if prefix else item.image
        tasks.append({"data": {"image": image}, "predictions": [prediction]})
    return tasks
