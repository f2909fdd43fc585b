"""COCO files: what is kept, what is refused, and that pycocotools reads what is written."""

import contextlib
import copy
import io
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from data_prep.coco import coco_from_fields, fields_from_coco, label_studio_from_fields
from data_prep.fields import Box, Field, FieldSet, Findings
from data_prep.labelme import field_from_labelme, labelme_from_field
from data_prep.voc import field_from_voc, voc_from_field

RLE = {"counts": [10, 5, 4785], "size": [80, 60]}


def content() -> dict:
    """Two images, three boxes: one with a polygon, a crowd, one with a score; ids with gaps."""
    return {
        "info": {"year": 2026, "detector": "d1"},
        "licenses": [{"id": 1, "name": "CC BY 4.0"}],
        "images": [
            {"id": 7, "file_name": "sub/b.jpg", "width": 100, "height": 80, "license": 1},
            {"id": 3, "file_name": "a.jpg", "width": 60, "height": 80},
        ],
        "annotations": [
            {
                "id": 12,
                "image_id": 7,
                "category_id": 5,
                "bbox": [10.5, 20, 30, 40],
                "area": 600.5,
                "segmentation": [[10.5, 20, 40.5, 20, 20, 60]],
                "iscrowd": 0,
                "attributes": {"occluded": True},
            },
            {
                "id": 11,
                "image_id": 7,
                "category_id": 2,
                "bbox": [0, 0, 10, 5],
                "area": 50,
                "segmentation": [],
                "iscrowd": 0,
                "score": 0.5,
            },
            {
                "id": 2,
                "image_id": 3,
                "category_id": 5,
                "bbox": [1, 2, 3, 4],
                "area": 5,
                "segmentation": RLE,
                "iscrowd": 1,
            },
        ],
        "categories": [
            {"id": 2, "name": "WBC", "supercategory": "cell"},
            {"id": 5, "name": "RBC", "supercategory": "cell", "keypoints": []},
            {"id": 9, "name": "Platelets", "supercategory": ""},
        ],
        "own_key": 1,
    }


def read(value) -> tuple[FieldSet, Findings]:
    findings = Findings()
    return fields_from_coco(value, findings), findings


def by_id(rows) -> dict:
    return {row["id"]: row for row in rows}


def test_fields_of_a_coco_file():
    fields, findings = read(content())
    assert not findings.faults and not findings.notes
    assert fields.labels == ("WBC", "RBC", "Platelets")
    assert [(item.image, item.width, item.height) for item in fields.fields] == [
        ("sub/b.jpg", 100, 80),
        ("a.jpg", 60, 80),
    ]
    boxes = [[(box.label, box.corners, box.score) for box in item.boxes] for item in fields.fields]
    assert boxes == [
        [("RBC", (10.5, 20, 40.5, 60), None), ("WBC", (0, 0, 10, 5), 0.5)],
        [("RBC", (1, 2, 4, 6), None)],
    ]


def test_coco_comes_back_whole():
    assert coco_from_fields(read(content())[0]) == content()


def through_labelme(fields: FieldSet) -> FieldSet:
    items = []
    for item in fields.fields:
        text = json.dumps(labelme_from_field(item))
        items.append(field_from_labelme(json.loads(text), "", "", Findings()))
    return FieldSet(tuple(items), tuple(sorted({b.label for item in items for b in item.boxes})))


def through_voc(fields: FieldSet) -> FieldSet:
    items = [field_from_voc(voc_from_field(item), "", Findings()) for item in fields.fields]
    return FieldSet(tuple(items), tuple(sorted({b.label for item in items for b in item.boxes})))


@pytest.mark.parametrize("way", [through_labelme, through_voc])
def test_ids_outlines_and_extra_keys_come_back_through_other_formats(way):
    written = coco_from_fields(way(read(content())[0]))
    for key in ("images", "annotations"):
        rows = [{k: v for k, v in row.items() if k != "other_formats"} for row in written[key]]
        assert by_id(rows) == by_id(content()[key])
    assert [(row["id"], row["name"]) for row in written["categories"]] == [(2, "WBC"), (5, "RBC")]
    again = coco_from_fields(way(read(copy.deepcopy(written))[0]))
    assert json.dumps(again["annotations"]) == json.dumps(written["annotations"])


def test_a_moved_box_loses_its_outline_only():
    fields = read(content())[0]
    item = fields.fields[0]
    moved = replace(item.boxes[0], x0=11.5)
    written = coco_from_fields(replace(fields, fields=(replace(item, boxes=(moved,)),)))
    row = written["annotations"][0]
    assert row["bbox"] == [11.5, 20, 29, 40] and row["area"] == 29 * 40
    assert row["segmentation"] == []
    assert row["id"] == 12 and row["attributes"] == {"occluded": True}


def test_new_boxes_get_free_ids_and_new_labels_free_categories():
    fields = read(content())[0]
    first, second = fields.fields
    own = first.boxes[1].own
    boxes = (*first.boxes, Box("blast", 1, 1, 2, 2), Box("WBC", 3, 3, 9, 9, own=own))
    new = Field("c.jpg", 9, 9)
    written = coco_from_fields(replace(fields, fields=(replace(first, boxes=boxes), second, new)))
    assert [row["id"] for row in written["images"]] == [7, 3, 1]
    assert [row["id"] for row in written["annotations"]] == [12, 11, 1, 3, 2]
    names = {row["name"]: row["id"] for row in written["categories"]}
    assert names == {"WBC": 2, "RBC": 5, "Platelets": 9, "blast": 1}


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        (lambda c: [c], ["It is no COCO file: it needs the lists images, annotations, categories"]),
        (lambda c: {**c, "images": {}}, ["It is no COCO file"]),
        (lambda c: {**c, "images": [5]}, ["It is no COCO file"]),
        (lambda c: c["images"][0].update(id=3), [
            "image 2 has the id 3, as another one has", "annotation 12 has the image_id 7, which",
            "annotation 11 has the image_id 7, which"]),
        (lambda c: c["images"][1].update(id=[1]), ["image 2 has the id [1]: a number is needed",
                                                   "annotation 2 has the image_id 3, which"]),
        (lambda c: c["images"][1].update(id=True), ["image 2 has the id True", "annotation 2 "]),
        (lambda c: c["images"][1].update(width="60"), ["image 3 has the size '60' x 80: two"]),
        (lambda c: c["images"][1].update(file_name=None), ["image 3 names the image None, which"]),
        (lambda c: c["images"][1].update(file_name="..\\a.jpg"), ["which lies outside the folder"]),
        (lambda c: c["images"][1].update(file_name="./sub\\b.jpg"),
         ["image 3 is sub/b.jpg, which is listed twice"]),
        (lambda c: c["annotations"][0].update(id=2), ["annotation 3 has the id 2, as another one"]),
        (lambda c: c["annotations"][0].update(image_id=99), [
            "annotation 12 has the image_id 99, which is not listed"]),
        (lambda c: c["annotations"][0].update(image_id={}), ["annotation 12 has the image_id {}"]),
        (lambda c: c["annotations"][0].update(category_id=[5]), [
            "annotation 12 has the category_id [5], which is not listed"]),
        (lambda c: c["annotations"][0].update(category_id=True), ["annotation 12 has the"]),
        (lambda c: c["annotations"][0].update(bbox=None), [
            "annotation 12 has the bbox None: x, y, width and height are needed"]),
        (lambda c: c["annotations"][0].update(bbox="1234"), ["annotation 12 has the bbox '1234'"]),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, "3", 4]), ["12 has '3' where a number"]),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, math.nan, 4]), ["has nan where a num"]),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, True, 4]), ["has True where a number"]),
        (lambda c: c["annotations"][0].update(bbox=[1.5e308, 2, 1.5e308, 4]), [
            "sub/b.jpg: box 1 (RBC) has the corners (1.5e+308, 2.0, inf, 6.0): numbers are"]),
        (lambda c: c["annotations"][1].update(score=math.nan), ["annotation 11 has nan where a"]),
        (lambda c: c["annotations"][1].update(score=True), ["annotation 11 has True where a numb"]),
        (lambda c: c["categories"][1].update(name="WBC"), [
            "category 5 has the name WBC, as another category has"]),
        (lambda c: c["categories"][1].update(name=None), ["category 5 has the label None"]),
        (lambda c: c["categories"][1].update(id=[5]), ["category 2 has the id [5]",
         "annotation 12 has the category_id 5, which", "annotation 2 has the category_id 5"]),
        (lambda c: c["annotations"][0].update(other_formats=1), ["annotation 12 has other"]),
        (lambda c: c["images"][0].update(other_formats=1), ["image 7 has other_formats 1"]),
    ],
)  # fmt: skip
def test_all_faults_are_told_at_once(change, faults):
    value = content()
    changed = change(value)
    _, findings = read(value if changed is None else changed)
    assert len(findings.faults) == len(faults)
    for fault, start in zip(findings.faults, faults, strict=True):
        assert start in fault


def test_boxes_outside_the_image_are_clipped_or_left_out_with_a_note():
    value = content()
    value["annotations"][1]["bbox"] = [-5, -5, 10, 10]
    value["annotations"][2]["bbox"] = [200, 0, 10, 10]
    fields, findings = read(value)
    assert findings.notes == [
        "sub/b.jpg: box 2 (WBC) reaches over the border and is clipped",
        "a.jpg: box 1 (RBC) lies outside the image and is left out",
    ]
    assert fields.fields[0].boxes[1].corners == (0, 0, 5, 5)
    first = coco_from_fields(fields)
    assert coco_from_fields(read(copy.deepcopy(first))[0]) == first


def test_pycocotools_indexes_and_loads_what_is_written(tmp_path):
    from pycocotools.coco import COCO

    path = tmp_path / "instances_default.json"
    path.write_text(json.dumps(coco_from_fields(read(content())[0])))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
        assert sorted(coco.getImgIds()) == [3, 7]
        assert coco.getAnnIds(imgIds=[7], catIds=coco.getCatIds(catNms=["RBC"])) == [12]
        assert coco.getAnnIds(iscrowd=True) == [2]
        rows = [row for row in coco.loadAnns(coco.getAnnIds()) if "score" in row]
        results: Any = coco.loadRes(copy.deepcopy(rows))  # pyright: ignore
        assert results.loadAnns(results.getAnnIds())[0]["bbox"] == [0, 0, 10, 5]
    # The area of a box without an outline is what pycocotools itself works out.
    assert rows[0]["area"] == results.loadAnns(results.getAnnIds())[0]["area"]


def test_the_file_has_what_cvat_asks_for():
    """CVAT's importer wants all top lists, licenses too; boxes need iscrowd and no outline."""
    boxes = (Box("<WBC> & co", 1, 2, 3, 4), Box("ümlaut", 1.25, 2, 3, 4, 0.5))
    value = coco_from_fields(FieldSet((Field("a.jpg", 9, 9, boxes),), ("unused",)))
    assert list(value) == ["info", "licenses", "images", "annotations", "categories"]
    assert value["images"] == [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}]
    assert value["annotations"] == [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 2,
            "bbox": [1, 2, 2, 2],
            "area": 4,
            "segmentation": [],
            "iscrowd": 0,
        },
        {
            "id": 2,
            "image_id": 1,
            "category_id": 3,
            "bbox": [1.25, 2, 1.75, 2],
            "area": 3.5,
            "segmentation": [],
            "iscrowd": 0,
            "score": 0.5,
        },
    ]
    assert [row["name"] for row in value["categories"]] == ["unused", "<WBC> & co", "ümlaut"]


def test_label_studio_gets_percentages_of_the_image():
    boxes = (Box("WBC", 10, 20, 30, 60, 0.5), Box("RBC", 0, 0, 100, 80, 1.0))
    fields = FieldSet((Field("s b/a#1.jpg", 100, 80, boxes), Field("c.jpg", 9, 9)), ())
    task, empty = label_studio_from_fields(replace(fields, info={"detector": "d1"}), "/data/?d=")
    assert task["data"] == {"image": "/data/?d=s%20b/a%231.jpg"}
    prediction = task["predictions"][0]
    assert prediction["model_version"] == "d1" and prediction["score"] == 0.75
    first, second = prediction["result"]
    assert first["value"] == {
        "x": 10,
        "y": 25,
        "width": 20,
        "height": 50,
        "rotation": 0,
        "rectanglelabels": ["WBC"],
    }
    assert (first["type"], first["from_name"], first["to_name"]) == (
        "rectanglelabels", "label", "image"
    )  # fmt: skip
    assert (first["original_width"], first["original_height"], first["score"]) == (100, 80, 0.5)
    assert first["id"] != second["id"]
    assert second["value"]["width"] == second["value"]["height"] == 100
    assert empty == {
        "data": {"image": "/data/?d=c.jpg"},
        "predictions": [{"model_version": "d1", "result": []}],
    }
    assert label_studio_from_fields(fields)[0]["data"] == {"image": "s b/a#1.jpg"}


def test_random_boxes_come_back_to_a_ten_thousandth_of_a_pixel():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 900, (200, 2, 2))
    boxes = tuple(
        Box(f"l{index % 7}", *np.sort(pair, 0).ravel().tolist())
        for index, pair in enumerate(corners)
    )
    fields = FieldSet((Field("a.jpg", 1000, 1000, boxes),), ())
    first = coco_from_fields(fields)
    back, _ = read(copy.deepcopy(first))
    for old, new in zip(boxes, back.fields[0].boxes, strict=True):
        assert new.label == old.label
        assert new.corners == pytest.approx(old.corners, abs=2e-4)
    assert coco_from_fields(back) == first
