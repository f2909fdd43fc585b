"""How good boxes are: COCO's average precision by pycocotools, and counts at a working point."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.errors import BuildError
from data_prep.fields import Box, Field, FieldSet


@dataclass(frozen=True)
class Match:
    """The boxes of one field compared: pairs (truth, found), and what is left on either side."""

    image: str
    pairs: tuple[tuple[Box, Box], ...]
    missed: tuple[Box, ...]
    false: tuple[Box, ...]

    @property
    def errors(self) -> int:
        return len(self.missed) + len(self.false)


def overlaps(boxes: Sequence[Box], others: Sequence[Box]) -> np.ndarray:
    """Intersection over union of every two boxes, float64 [n, m]."""
    common, areas, other_areas = _areas(boxes, others)
    return common / np.maximum(areas + other_areas - common, 1e-12)


def _areas(
    boxes: Sequence[Box], others: Sequence[Box]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Areas of the intersections [n, m], of the boxes [n, 1] and of the others [1, m]."""
    a = np.array([box.corners for box in boxes], np.float64).reshape(-1, 1, 4)
    b = np.array([box.corners for box in others], np.float64).reshape(1, -1, 4)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    area_a, area_b = (np.prod(x[..., 2:] - x[..., :2], axis=-1) for x in (a, b))
    return np.prod(np.maximum(sides, 0.0), axis=-1), area_a, area_b


def is_crowd(box: Box) -> bool:
    """Whether COCO calls the box a crowd: cells in it are neither missed nor false."""
    return bool(box.own.get("coco", {}).get("iscrowd", 0))


def match_boxes(truth: Field, found: Field, min_score: float = 0.5, iou: float = 0.5) -> Match:
    """Pair the boxes found with a score of at least `min_score` with the true ones, best first.

    A pair has the same label and an overlap of at least `iou`; each box is in one pair at most.
    """
    boxes = [box for box in found.boxes if box.score is None or box.score >= min_score]
    boxes.sort(key=lambda box: -(1.0 if box.score is None else box.score))
    true = [box for box in truth.boxes if not is_crowd(box)]
    crowds = [box for box in truth.boxes if is_crowd(box)]
    overlap, (common, area, _) = overlaps(boxes, true), _areas(boxes, crowds)
    free, pairs, false = set(range(len(true))), [], []
    for row, box in enumerate(boxes):
        same = [at for at in free if true[at].label == box.label and overlap[row, at] >= iou]
        if same:
            best = max(same, key=lambda at: overlap[row, at])
            free.remove(best)
            pairs.append((true[best], box))
        elif not any(
            crowd.label == box.label and common[row, at] >= iou * area[row, 0]
            for at, crowd in enumerate(crowds)
        ):
            false.append(box)
    missed = tuple(true[at] for at in sorted(free))
    return Match(truth.image, tuple(pairs), missed, tuple(false))


def pair_fields(truth: FieldSet, found: FieldSet) -> list[tuple[Field, Field]]:
    """Each true field with what was found in it, perhaps nothing; raises BuildError for others."""
    by_image = {item.image: item for item in found.fields}
    unknown = sorted(set(by_image) - {item.image for item in truth.fields})
    if unknown:
        raise BuildError(
            f"{len(unknown)} images of the predictions have no true boxes, as {unknown[0]}: "
            "predict the images of --boxes."
        )
    pairs = [
        (item, by_image.get(item.image, Field(item.image, item.width, item.height)))
        for item in truth.fields
    ]
    for item, other in pairs:
        if (item.width, item.height) != (other.width, other.height):
            raise BuildError(
                f"{item.image} has {item.width} x {item.height} pixels, but the predictions are "
                f"for {other.width} x {other.height}: predict the same images."
            )
    return pairs


def average_precision(truth: FieldSet, found: FieldSet) -> dict[str, dict[str, float]]:
    """AP, AP50, AP75 and AR100 (COCO's definitions, 0 … 1) for each label of `truth` and "all".

    Boxes without a score count as sure ones (1.0). A label without true boxes has no figures.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise BuildError(
            "pycocotools is not installed: pip install -e '.[data-prep]' brings what detection "
            "needs."
        ) from error

    pairs = pair_fields(truth, found)
    number = {label: index for index, label in enumerate(truth.labels, 1)}
    true = _rows([item for item, _ in pairs], number)
    rows = _rows([item for _, item in pairs], number)
    with_boxes = {row["category_id"] for row in true if not row["iscrowd"]}
    labels = [label for label in truth.labels if number[label] in with_boxes]
    if not rows or not labels:
        return {name: dict(AP=0.0, AP50=0.0, AP75=0.0, AR100=0.0) for name in _names(labels)}
    with contextlib.redirect_stdout(io.StringIO()):
        coco: Any = COCO()
        coco.dataset = {
            "images": [{"id": index} for index in range(1, len(pairs) + 1)],
            "categories": [{"id": index, "name": label} for label, index in number.items()],
            "annotations": true,
        }
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(rows), "bbox")
        judge.params.catIds = [number[label] for label in labels]
        judge.params.areaRng, judge.params.areaRngLbl = judge.params.areaRng[:1], ["all"]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][
        ..., 0, -1
    ]  # [overlap, recall, label], all sizes, 100 boxes
    recall = judge.eval["recall"][..., 0, -1]  # [overlap, label]
    each = zip(np.moveaxis(precision, -1, 0), np.moveaxis(recall, -1, 0), strict=True)
    figures = [_figures(*one) for one in each]
    means = {key: float(np.mean([one[key] for one in figures])) for key in figures[0]}
    return dict(zip(_names(labels), [means, *figures], strict=True))


def _names(labels: Sequence[str]) -> list[str]:
    return ["all", *labels] if labels else []


def _figures(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """COCO's figures of one label; the overlaps are 0.5, 0.55, … 0.95."""
    return {
        "AP": float(precision.mean()),
        "AP50": float(precision[0].mean()),
        "AP75": float(precision[5].mean()),
        "AR100": float(recall.mean()),
    }


def _rows(fields: Sequence[Field], number: dict[str, int]) -> list[dict[str, Any]]:
    rows = []
    for index, item in enumerate(fields, 1):
        for box in item.boxes:
            if box.label in number:
                sides = [box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0]
                rows.append(
                    {
                        "id": len(rows) + 1,
                        "image_id": index,
                        "category_id": number[box.label],
                        "bbox": sides,
                        "area": sides[2] * sides[3],
                        "iscrowd": int(is_crowd(box)),
                        "score": 1.0 if box.score is None else box.score,
                    }
                )
    return rows


def working_point(matches: Sequence[Match]) -> dict[str, int]:
    """How many boxes were found, missed and false in all fields."""
    return {
        "found": sum(len(match.pairs) for match in matches),
        "missed": sum(len(match.missed) for match in matches),
        "false": sum(len(match.false) for match in matches),
    }
