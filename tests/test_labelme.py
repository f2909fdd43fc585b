"""Labelme's shapes and keys: what becomes a box, what survives, what is refused."""

import json
import math

import pytest

from data_prep.fields import Box, Fault, Field, Findings
from data_prep.labelme import field_from_labelme, labelme_from_field


def shape(kind="rectangle", points=((10, 20), (30, 50)), **more):
    return {"label": "WBC", "points": [list(p) for p in points], "shape_type": kind, **more}


def content(*shapes, **more):
    head = {"version": "4.2.9", "flags": {"reviewed": True}, "shapes": list(shapes)}
    size = {"imagePath": "a.jpg", "imageData": None, "imageHeight": 80, "imageWidth": 100}
    return {**head, **size, **more}


def read(value, **more) -> tuple[Field, Findings]:
    findings = Findings()
    return field_from_labelme(value, "a.json", "", findings, **more), findings


ROOT = math.sqrt(50)


@pytest.mark.parametrize(
    ("kind", "points", "corners"),
    [
        ("rectangle", [(10, 20), (30, 50)], (10, 20, 30, 50)),
        ("rectangle", [(30, 20), (10, 50)], (10, 20, 30, 50)),
        ("rectangle", [(30, 50), (10, 20)], (10, 20, 30, 50)),
        ("rectangle", [(10, 20), (30, 20), (30, 50), (10, 50)], (10, 20, 30, 50)),
        ("polygon", [(10, 20), (30, 25), (12, 50)], (10, 20, 30, 50)),
        (None, [(10, 20), (30, 25), (12, 50)], (10, 20, 30, 50)),
        ("oriented_rectangle", [(20, 20), (30, 30), (20, 40), (10, 30)], (10, 20, 30, 40)),
        ("rotation", [(20, 20), (30, 30), (20, 40), (10, 30)], (10, 20, 30, 40)),
        ("circle", [(40, 40), (43, 44)], (35, 35, 45, 45)),
        ("circle", [(40, 40), (35, 45)], (40 - ROOT, 40 - ROOT, 40 + ROOT, 40 + ROOT)),
        ("mask", [(10, 20), (29, 49)], (10, 20, 30, 50)),
    ],
)
def test_every_shape_with_an_area_becomes_its_bounding_box(kind, points, corners):
    field, findings = read(content(shape(kind, points, mask="iVBO")))
    assert field.boxes[0].corners == pytest.approx(corners, abs=1e-4)
    assert not findings.notes and not findings.faults
    written = labelme_from_field(field)["shapes"][0]
    if kind == "rectangle":
        assert written["points"] == [[10, 20], [30, 50]]
    else:
        assert written["points"] == [list(p) for p in points]
        assert written["mask"] == "iVBO"
    assert written["shape_type"] == (kind or "polygon")


@pytest.mark.parametrize("kind", ["point", "points", "line", "linestrip"])
def test_shapes_without_area_are_noted_and_come_back(kind):
    mark = shape(kind, [(1, 2)], label=None, odd=[1])
    field, findings = read(content(mark, shape()))
    assert len(field.boxes) == 1
    assert findings.notes == [f"a.json: shape 1 is a {kind}, which has no area: no box"]
    assert labelme_from_field(field)["shapes"][1] == mark


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"label": 5}, "has the label 5: a name is needed"),
        ({"label": ""}, "has the label '': a name is needed"),
        ({"points": "1234"}, "has the points '1234': pairs of numbers are needed"),
        ({"points": ["12", "34"]}, "pairs of numbers are needed"),
        ({"points": [[1, 2, 3], [4, 5, 6]]}, "pairs of numbers are needed"),
        ({"points": [[1, True], [4, 5]]}, "has True where a number is needed"),
        ({"points": [[1, math.nan], [4, 5]]}, "has nan where a number is needed"),
        ({"points": [[1, 10**400], [4, 5]]}, "where a number is needed"),
        ({"points": [[1, 2]]}, "is a rectangle of 1 points, but needs 2"),
        ({"points": []}, "is a rectangle of 0 points, but needs 2"),
        ({"points": [[1, 2], [3, 4]], "shape_type": "polygon"}, "of 2 points, but needs 3"),
        ({"points": [[1, 2]], "shape_type": "circle"}, "is a circle of 1 points, but needs 2"),
        ({"shape_type": "ellipse"}, "has the shape_type 'ellipse', but the types are rectangle,"),
        ({"shape_type": ["mask"]}, "has the shape_type ['mask'], but the types are"),
        ({"score": math.nan}, "has nan where a number is needed"),
        ({"score": "0.9"}, "has '0.9' where a number is needed"),
        ({"other_formats": 3}, "has other_formats 3: mend or remove that"),
    ],
)
def test_what_is_no_shape_is_a_fault_with_its_number(changed, fault):
    field, findings = read(content(shape(), {**shape(), **changed}, 7))
    assert len(field.boxes) == 1
    assert len(findings.faults) == 2
    assert findings.faults[0].startswith("a.json: shape 2 ")
    assert fault in findings.faults[0]
    assert findings.faults[1] == "a.json: shape 3 is 7, which is no shape"


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ([], "is no Labelme file: it has no list of shapes"),
        ({"shapes": {}}, "is no Labelme file: it has no list of shapes"),
        (content(imagePath=None), "names the image None, which is no path"),
        (content(imagePath="../a.jpg"), "which lies outside the folder of images"),
        (content(imageWidth=None), "has the size None x 80: two whole numbers"),
        (content(imageWidth="100"), "has the size '100' x 80: two whole numbers"),
        (content(imageWidth=None, imageHeight=None), "and its image cannot be read"),
        (content(other_formats=[]), "has other_formats []"),
    ],
)
def test_what_is_no_labelme_file_is_a_fault(value, fault):
    with pytest.raises(Fault) as error:
        read(value)
    assert fault in str(error.value)


def test_the_size_of_the_image_stands_in_for_a_missing_one():
    assert read(content(imageWidth=None, imageHeight=None), size=(7, 5))[0].width == 7


def test_unknown_keys_survive_and_the_second_pass_changes_no_byte():
    value = content(
        shape(group_id=3, description="d", flags={"dense": True}, score=0.25, mine={"a": [1]}),
        shape("polygon", [(-5, 20), (30, 25), (12, 90)], difficult=None),
        shape("linestrip", [(1, 1), (2, 2)]),
        imageData="iVBORw0KGgo=",
        imagePath="sub\\a.jpg",
        lineColor=[0, 255, 0, 128],
        other_formats={"coco": {"id": 9}},
    )
    field, findings = read(value)
    assert field.image == "sub/a.jpg"
    assert field.boxes[0].score == 0.25
    assert len(findings.notes) == 2  # one is clipped, one has no area
    first = labelme_from_field(field)
    assert first["imageData"] is None
    assert first["lineColor"] == [0, 255, 0, 128]
    assert first["flags"] == {"reviewed": True} and first["version"] == "4.2.9"
    assert first["other_formats"] == {"coco": {"id": 9}}
    assert first["shapes"][0] == {**value["shapes"][0], "points": [[10, 20], [30, 50]]}
    assert first["shapes"][1]["points"] == value["shapes"][1]["points"]
    assert first["shapes"][2] == value["shapes"][2]
    assert json.dumps(labelme_from_field(read(first)[0])) == json.dumps(first)


def test_a_box_that_was_moved_is_written_as_a_rectangle():
    outline = shape("mask", [(10, 20), (29, 49)], mask="iVBO", group_id=3)
    box = read(content(outline))[0].boxes[0]
    moved = Box(box.label, 11, 20, 30, 50, own=box.own)
    written = labelme_from_field(Field("a.jpg", 100, 80, (moved,)))["shapes"][0]
    assert written["shape_type"] == "rectangle" and written["points"] == [[11, 20], [30, 50]]
    assert "mask" not in written and written["group_id"] == 3


@pytest.mark.parametrize(
    "own",
    [
        {"shapes": 5, "version": None},
        {"points": [1], "shape_type": ["x"]},
        {"points": "x", "shape_type": 0, "label": "other", "score": 5},
    ],
)
def test_spoilt_keys_of_another_format_do_no_harm(own):
    box = Box("WBC", 1, 2, 3, 4, own={"labelme": own})
    written = labelme_from_field(Field("a.jpg", 9, 9, (box,), {"labelme": own}))
    field, findings = read(json.loads(json.dumps(written)))
    assert not findings.faults
    assert field.boxes[0].label == "WBC" and field.boxes[0].corners == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("folder", "root", "expected"),
    [
        ("", "", "sub/a.jpg"),
        ("sub", "", "a.jpg"),
        ("/d/img/sub", "/d/img", "a.jpg"),
        ("/d/ann", "/d/img", "../img/sub/a.jpg"),
    ],
)
def test_the_image_is_named_from_where_the_file_will_lie(folder, root, expected):
    field = Field("sub/a.jpg", 100, 80)
    written = labelme_from_field(field, folder, root)
    assert written["imagePath"] == expected
    assert field_from_labelme(written, "", folder, Findings(), root=root).image == field.image
