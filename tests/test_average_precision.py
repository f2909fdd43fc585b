"""Average precision: COCO's, as another program computes it; the matches behind the pictures."""

import contextlib
import io

import numpy as np
import pytest

from data_prep.average_precision import (
    average_precision,
    match_boxes,
    overlaps,
    pair_fields,
    working_point,
)
from data_prep.errors import BuildError
from data_prep.fields import Box, Field, FieldSet

LABELS = ("WBC", "RBC", "PLT", "NRBC")  # of the last there is no true box
CROWD = {"coco": {"iscrowd": 1}}


def random_set(seed: int) -> tuple[FieldSet, FieldSet]:
    """True boxes and found ones: moved, doubled, missed, invented, of all sizes, with crowds."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for number in range(25):
        true, guesses = [], []
        for _ in range(rng.integers(0, 9)):
            x, y = rng.uniform(0, 500, 2)
            w, h = np.exp(rng.uniform(1, 5.5, 2))
            label = LABELS[rng.integers(0, 3)]
            own = CROWD if rng.random() < 0.15 else {}
            true.append(Box(label, x, y, x + w, y + h, own=own))
            for _ in range(rng.choice(3, p=[0.15, 0.7, 0.15])):
                a, b = rng.normal(0, 0.06 * w, 2), rng.normal(0, 0.06 * h, 2)
                name = label if rng.random() < 0.9 else LABELS[rng.integers(0, 4)]
                score = round(rng.uniform(0.05, 1), 2)  # many ties
                corners = (x + a[0], y + b[0], x + w + abs(a[1]), y + h + abs(b[1]))
                guesses.append(Box(name, *corners, score))
        for _ in range(rng.integers(0, 4)):
            x, y = rng.uniform(0, 500, 2)
            guesses.append(Box(LABELS[rng.integers(0, 4)], x, y, x + 40, y + 30, rng.random()))
        truth.append(Field(f"{number}.png", 640, 480, tuple(true)))
        if number % 7:  # some images are not among the predictions
            found.append(Field(f"{number}.png", 640, 480, tuple(guesses)))
    rng.shuffle(found)
    return FieldSet(tuple(truth), LABELS), FieldSet(tuple(found), LABELS)


def reference(truth: FieldSet, found: FieldSet, label: str | None) -> dict[str, float]:
    """The same figures by faster-coco-eval."""
    from faster_coco_eval import COCO, COCOeval_faster

    def rows(fields: FieldSet) -> list[dict]:
        number = {item.image: index for index, item in enumerate(truth.fields, 1)}
        found = [
            {
                "image_id": number[item.image],
                "category_id": LABELS.index(box.label) + 1,
                "bbox": [box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0],
                "area": (box.x1 - box.x0) * (box.y1 - box.y0),
                "iscrowd": box.own.get("coco", {}).get("iscrowd", 0),
                "score": box.score,
            }
            for item in fields.fields
            for box in item.boxes
        ]
        return [{**row, "id": index} for index, row in enumerate(found, 1)]

    images = [
        {"id": index, "file_name": item.image, "width": 640, "height": 480}
        for index, item in enumerate(truth.fields, 1)
    ]
    categories = [{"id": index, "name": name} for index, name in enumerate(LABELS, 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO({"images": images, "categories": categories, "annotations": rows(truth)})
        judge = COCOeval_faster(coco, coco.loadRes(rows(found)), "bbox")
        if label is not None:
            judge.params.catIds = [LABELS.index(label) + 1]
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {name: judge.stats[at] for name, at in (("AP", 0), ("AP50", 1), ("AP75", 2))} | {
        "AR100": judge.stats[8]
    }


@pytest.mark.parametrize("seed", range(4))
def test_it_is_what_another_program_computes(seed):
    truth, found = random_set(seed)
    figures = average_precision(truth, found)
    assert list(figures) == ["all", "WBC", "RBC", "PLT"]
    for name, row in figures.items():
        assert row == pytest.approx(
            reference(truth, found, None if name == "all" else name), abs=1e-6
        )
    assert 0.05 < figures["all"]["AP"] < figures["all"]["AP50"] < 0.95


def test_the_truth_itself_is_perfect_and_nothing_is_nothing():
    truth, _ = random_set(0)
    perfect = average_precision(truth, truth)
    assert all(value == 1.0 for row in perfect.values() for value in row.values())
    empty = FieldSet((), ())
    assert average_precision(truth, empty)["all"] == dict(AP=0.0, AP50=0.0, AP75=0.0, AR100=0.0)
    assert average_precision(FieldSet(truth.fields[:0], LABELS), empty) == {}
    crowd = Field("a", 9, 9, (Box("WBC", 1, 1, 5, 5, own=CROWD),))
    assert average_precision(FieldSet((crowd,), LABELS), empty) == {}


def test_overlaps_are_intersections_over_unions():
    boxes = [Box("a", 0, 0, 4, 4), Box("a", 2, 2, 6, 6), Box("a", 4, 0, 8, 4)]
    np.testing.assert_allclose(
        overlaps(boxes, boxes), [[1, 1 / 7, 0], [1 / 7, 1, 1 / 7], [0, 1 / 7, 1]]
    )
    assert overlaps(boxes, []).shape == (3, 0) and overlaps([], boxes).shape == (0, 3)


WHITE, RED = Box("WBC", 0, 0, 10, 10), Box("RBC", 20, 0, 30, 10)


@pytest.mark.parametrize(
    ("true", "found", "counts"),
    [
        ([WHITE], [Box("WBC", 0, 0, 10, 9, 0.9)], (1, 0, 0)),
        ([WHITE], [], (0, 1, 0)),
        ([], [Box("WBC", 0, 0, 10, 9, 0.9)], (0, 0, 1)),
        ([WHITE], [Box("WBC", 0, 0, 10, 9, 0.4)], (0, 1, 0)),  # below the working point
        ([WHITE], [Box("WBC", 0, 0, 10, 9)], (1, 0, 0)),  # no score: sure
        ([WHITE], [Box("RBC", 0, 0, 10, 9, 0.9)], (0, 1, 1)),  # another label
        ([WHITE], [Box("WBC", 0, 0, 10, 4, 0.9)], (0, 1, 1)),  # overlap 0.4
        ([WHITE], [Box("WBC", 0, 0, 10, 5, 0.9)], (1, 0, 0)),  # overlap 0.5
        ([WHITE], [WHITE, Box("WBC", 0, 0, 10, 9, 0.9)], (1, 0, 1)),  # one box, one pair
        ([WHITE, RED], [RED, WHITE], (2, 0, 0)),
        ([Box("WBC", 0, 0, 90, 90, own=CROWD)], [WHITE, WHITE], (0, 0, 0)),
        ([Box("WBC", 0, 0, 90, 90, own=CROWD)], [RED], (0, 0, 1)),
        ([Box("WBC", 0, 0, 90, 90, own=CROWD), WHITE], [WHITE], (1, 0, 0)),
    ],
)
def test_boxes_are_matched(true, found, counts):
    match = match_boxes(Field("a", 99, 99, tuple(true)), Field("a", 99, 99, tuple(found)))
    assert working_point([match]) == dict(zip(("found", "missed", "false"), counts, strict=True))
    assert match.errors == counts[1] + counts[2]


def test_the_surest_box_takes_the_best_truth():
    true = (Box("WBC", 0, 0, 10, 10), Box("WBC", 2, 0, 12, 10))
    found = (Box("WBC", 0, 0, 10, 10, 0.6), Box("WBC", 1.5, 0, 11.5, 10, 0.9))
    match = match_boxes(Field("a", 99, 99, true), Field("a", 99, 99, found))
    assert match.pairs == ((true[1], found[1]), (true[0], found[0]))


def test_predictions_of_other_images_are_refused():
    truth = FieldSet((Field("a", 9, 9), Field("b", 9, 9)), ("WBC",))
    one = Field("b", 9, 9, (WHITE,))
    assert pair_fields(truth, FieldSet((one,), ())) == [
        (truth.fields[0], Field("a", 9, 9)),
        (truth.fields[1], one),
    ]
    with pytest.raises(BuildError, match="1 images of the predictions have no true boxes, as c"):
        pair_fields(truth, FieldSet((Field("c", 9, 9),), ()))
    with pytest.raises(BuildError, match="a has 9 x 9 pixels, but the predictions are for 18 x 18"):
        pair_fields(truth, FieldSet((Field("a", 18, 18),), ()))
