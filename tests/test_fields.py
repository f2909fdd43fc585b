"""Fields, boxes and the rules that all formats share, as tables."""

import math
import random

import pytest

from data_prep.errors import BuildError
from data_prep.fields import (
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

NAN, INF = math.nan, math.inf


def uniform(rng: random.Random, low: float, high: float) -> tuple[float, float, float, float]:
    a, b, c, d = (rng.uniform(low, high) for _ in range(4))
    return a, b, c, d


@pytest.mark.parametrize(
    ("corners", "expected", "note"),
    [
        ((1, 2, 30, 40), (1, 2, 30, 40), ""),
        ((30, 40, 1, 2), (1, 2, 30, 40), ""),
        ((1, 40, 30, 2), (1, 2, 30, 40), ""),
        ((0, 0, 100, 50), (0, 0, 100, 50), ""),
        ((1.23456789, 2, 3, 4), (1.2346, 2, 3, 4), ""),
        ((-5, -0.5, 10, 60), (0, 0, 10, 50), "reaches over the border and is clipped"),
        ((-1e300, 3, 1e300, 9), (0, 3, 100, 9), "reaches over the border and is clipped"),
        ((100, 0, 120, 50), None, "lies outside the image and is left out"),
        ((-9, -9, 0, 20), None, "lies outside the image and is left out"),
        ((7, 2, 7, 40), None, "has no area and is left out"),
        ((7, 40, 9, 40), None, "has no area and is left out"),
        ((7, 2, 7.00001, 40), None, "has no area and is left out"),
        ((-9, 5, -9, 5), None, "has no area and is left out"),
    ],
)
def test_boxes_are_put_inside_the_image(corners, expected, note):
    findings = Findings()
    boxes = mend_boxes("a.jpg", [Box("WBC", *corners)], 100, 50, findings)
    assert [box.corners for box in boxes] == ([expected] if expected else [])
    assert findings.notes == ([f"a.jpg: box 1 (WBC) {note}"] if note else [])
    assert not findings.faults


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        (Box("WBC", NAN, 2, 3, 4), "has the corners (nan, 2, 3, 4): numbers are needed"),
        (Box("WBC", 1, 2, INF, 4), "has the corners (1, 2, inf, 4): numbers are needed"),
        (Box("WBC", 1, 2, 3, 4, NAN), "has the score nan: a number is needed"),
    ],
)
def test_what_is_not_finite_is_a_fault(box, fault):
    findings = Findings()
    assert mend_boxes("a.jpg", [Box("RBC", 1, 1, 2, 2), box], 9, 9, findings)[0].label == "RBC"
    assert findings.faults == [f"a.jpg: box 2 (WBC) {fault}"]


def test_mended_boxes_are_inside_in_order_and_stay_as_they_are():
    rng = random.Random(0)
    for _ in range(500):
        width, height = rng.randint(1, 50), rng.randint(1, 50)
        boxes = [Box("a", *uniform(rng, -20, 70)) for _ in range(3)]
        mended = mend_boxes("x", boxes, width, height, Findings())
        assert all(0 <= box.x0 < box.x1 <= width for box in mended)
        assert all(0 <= box.y0 < box.y1 <= height for box in mended)
        again = Findings()
        assert mend_boxes("x", mended, width, height, again) == mended
        assert not again.notes


@pytest.mark.parametrize(
    ("text", "folder", "root", "expected"),
    [
        ("a.jpg", "", "", "a.jpg"),
        ("./sub//a b.jpg", "", "", "sub/a b.jpg"),
        ("sub\\é#.jpg", "", "", "sub/é#.jpg"),
        ("sub/../a.jpg", "", "", "a.jpg"),
        ("../other/x.jpg", "boxes", "", "other/x.jpg"),
        ("..\\..\\img\\x.jpg", "/d/ann/deep", "/d/img", "x.jpg"),
        ("../img/x.jpg", "/d/ann", "/d/img", "x.jpg"),
        ("../img/x.jpg", "/d/ann", "/d", "img/x.jpg"),
        ("x.jpg", "/d/img/sub", "/d/img", "sub/x.jpg"),
        ("..x.jpg", "", "", "..x.jpg"),
    ],
)
def test_image_paths_are_under_the_folder_of_images(text, folder, root, expected):
    assert image_path(text, folder, root) == expected


@pytest.mark.parametrize(
    ("text", "folder", "root", "fault"),
    [
        ("../x.jpg", "", "", "outside the folder of images: give that with --images"),
        ("sub/../../x.jpg", "", "", "outside the folder of images"),
        ("../../img/x.jpg", "boxes", "", "outside the folder of images"),
        ("../img2/x.jpg", "/d/img", "/d/img", "outside the folder of images"),
        (".", "", "", "outside the folder of images"),
        ("/etc/passwd", "", "", "a path relative to the folder of images is needed"),
        ("C:\\a.jpg", "", "", "a path relative to the folder of images is needed"),
        ("\\\\host\\a.jpg", "", "", "a path relative to the folder of images is needed"),
        ("", "", "", "which is no path"),
        (None, "", "", "names the image None, which is no path"),
        (["a.jpg"], "", "", "which is no path"),
        ("a\0.jpg", "", "", "with a character that no name has"),
        ("a\ud800.jpg", "", "", "with a character that no name has"),
    ],
)
def test_other_image_paths_are_faults(text, folder, root, fault):
    with pytest.raises(Fault) as error:
        image_path(text, folder, root)
    assert fault in str(error.value)


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        (label_of, "WBC", "WBC"),
        (label_of, " <&\"'> ", "<&\"'>"),
        (label_of, "лимфоцит 🩸", "лимфоцит 🩸"),
        (label_of, "", "has the label '': a name is needed"),
        (label_of, " \t", "a name is needed"),
        (label_of, 5, "has the label 5: a name is needed"),
        (label_of, ["WBC"], "a name is needed"),
        (label_of, "W\nBC", "with a character that no name has"),
        (label_of, "W\ud800", "with a character that no name has"),
        (finite, 3, 3.0),
        (finite, -2.5, -2.5),
        (finite, True, "has True where a number is needed"),
        (finite, "3", "has '3' where a number is needed"),
        (finite, None, "has None where a number is needed"),
        (finite, NAN, "has nan where a number is needed"),
        (finite, 10**400, "where a number is needed"),
        (others_of, None, {}),
        (others_of, {"coco": {"id": 1}}, {"coco": {"id": 1}}),
        (others_of, {"coco": 1}, "has other_formats {'coco': 1}: mend or remove that"),
        (others_of, [1], "has other_formats [1]"),
    ],
)
def test_values_of_files(function, value, expected):
    """A text that is expected of another value is the end of a fault."""
    if isinstance(expected, str) and expected != str(value).strip():
        with pytest.raises(Fault) as error:
            function(value)
        assert expected in str(error.value)
    else:
        assert function(value) == expected


@pytest.mark.parametrize("size", [(640, 480), (640.0, 480.0)])
def test_image_sizes(size):
    width, height = image_size(*size)
    assert (width, height) == (640, 480)
    assert isinstance(width, int)


@pytest.mark.parametrize(
    "value", [0, -1, 1.5, NAN, INF, 10**400, 1e300, True, "640", None, [640], {}]
)
def test_other_image_sizes_are_faults(value):
    for size in ((value, 480), (480, value)):
        with pytest.raises(Fault, match="two whole numbers from 1 to 10000000 are needed"):
            image_size(*size)


@pytest.mark.parametrize(
    ("value", "text"), [(3.0, "3"), (2.5, "2.5"), (1 / 3, "0.3333"), (-0.00001, "0")]
)
def test_numbers_as_they_are_written(value, text):
    assert str(number(value)) == text


def test_quoted_values_fit_a_line():
    assert shown("a") == "'a'"
    assert len(shown("a" * 10**6)) == 78


def test_labels_known_ones_first_and_the_choice_of_some():
    boxes = (Box("RBC", 0, 0, 1, 1), Box("WBC", 0, 0, 1, 1), Box("Platelets", 0, 0, 1, 1))
    fields = (Field("a.jpg", 9, 9, boxes), Field("b.jpg", 9, 9))
    assert labels_of(fields) == ("Platelets", "RBC", "WBC")
    assert labels_of(fields, ["WBC", "blast"]) == ("WBC", "blast", "Platelets", "RBC")
    whole = FieldSet(fields, labels_of(fields), {"detector": "d"})
    some = whole.of_labels(["WBC", "RBC", "WBC"])
    assert some.labels == ("WBC", "RBC")
    assert [len(item.boxes) for item in some.fields] == [2, 0]
    assert some.info == whole.info
    assert [item.image for item in whole.of_images(["b.jpg", "c.jpg"]).fields] == ["b.jpg"]
    with pytest.raises(BuildError, match="--labels names blast, but the boxes are labelled Plat"):
        whole.of_labels(["WBC", "blast"])


def test_faults_are_raised_all_at_once():
    findings = Findings()
    findings.raise_faults("x.json")
    findings.faults += ["a: b", "c: d"]
    with pytest.raises(BuildError) as error:
        findings.raise_faults("x.json")
    assert str(error.value) == "x.json cannot be used, in 2 places:\n  a: b\n  c: d"
