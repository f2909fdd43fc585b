"""Active learning as a person meets it: chosen, corrected, accepted, killed, refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.boxes import read_boxes, read_labelme
from data_prep.detector import create_detector, save_detector
from data_prep.fields import Box, Field, Findings
from data_prep.review import look_at, propose, read_rounds
from data_prep.uncertainty import disagreement, doubt
from tests.reviewing import COUNT, files_of, new_project, refused, run, tick
from tests.smears import TINY, edit_json, tiny_torch, write_smears


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    with tiny_torch(monkeypatch):
        yield


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("smears") / "images"
    write_smears(folder, COUNT)
    return folder


@pytest.fixture
def project(rendered, tmp_path) -> Path:
    return new_project(rendered, tmp_path)


@pytest.fixture
def detector(tmp_path) -> Path:
    """The folder of a detector of random weights: full of doubt."""
    save_detector(create_detector(TINY, ("WBC",), "none"), tmp_path / "detector", {"images": 3})
    return tmp_path / "detector"


def test_the_first_round_is_random_and_has_no_boxes(project, capsys):
    assert run(project, "select", "--count", "5", "--seed", "3") == 0
    assert "5 of 12 images, chosen at random, without boxes" in capsys.readouterr().out
    (one,) = read_rounds(project)
    assert len(one.images) == len(one.sha256) == 5 and one.detector == ""
    for name in one.images:
        copied, first = one.folder / name, project.parent / "images" / name
        assert copied.read_bytes() == first.read_bytes()
    contents = [json.loads(path.read_text()) for path in files_of(project)]
    assert [content["flags"] for content in contents] == [{"reviewed": False}] * 5
    assert all(content["shapes"] == [] for content in contents)
    fields = read_boxes(one.folder)
    assert [item.image for item in fields.fields] == sorted(one.images)

    chosen = set(one.images)
    shutil.rmtree(project)
    assert run(project, "select", "--count", "5", "--seed", "3") == 0
    assert set(read_rounds(project)[0].images) == chosen
    others = []
    for seed in range(4, 8):
        shutil.rmtree(project)
        assert run(project, "select", "--count", "5", "--seed", str(seed)) == 0
        others.append(set(read_rounds(project)[0].images))
    assert any(other != chosen for other in others)


def test_proposals_say_who_found_them_and_how_sure(project, detector, capsys):
    more = ("--detector", detector, "--count", "4", "--min-score", "0.4")
    assert run(project, "select", *more) == 0
    name = json.loads((detector / "detector.json").read_text())["id"]
    assert f"proposed by {name}" in capsys.readouterr().out
    (one,) = read_rounds(project)
    assert one.detector == name and all(worth > 0 for worth in one.images.values())
    boxes = 0
    for path in files_of(project):
        content = json.loads(path.read_text())
        assert content["flags"] == {"reviewed": False} and content["detector"] == name
        for shape in content["shapes"]:
            assert shape["detector"] == name and shape["shape_type"] == "rectangle"
            assert shape["score"] >= 0.4 and shape["description"] == f"{shape['score']:.2f}"
        item = read_labelme(path, one.folder, findings := Findings())
        assert not findings.faults and not findings.notes
        assert [box.score for box in item.boxes] == [s["score"] for s in content["shapes"]]
        boxes += len(item.boxes)
    assert boxes


def test_worth_is_doubt_and_disagreement(project, detector):
    from data_prep.detector import load_detector, read_picture, two_views

    loaded, images = load_detector(detector), project.parent / "images"
    views = look_at(loaded, ["01.png", "deep/00.png"], images, progress=False)
    for index, name in enumerate(("01.png", "deep/00.png")):
        plain, back, feature = two_views(loaded, read_picture(images / name))
        assert views.fields[index] == Field(name, 128, 96, plain)
        assert views.worth[index] == doubt(plain) + disagreement(plain, back)
        np.testing.assert_array_equal(views.features[index], feature)


def test_no_image_is_chosen_twice_and_none_that_is_labelled(project, detector, capsys):
    content = {
        "images": [{"id": 1, "file_name": "05.png", "width": 128, "height": 96}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}],
        "categories": [{"id": 1, "name": "WBC"}],
    }
    project.mkdir()
    (project / "labelled.json").write_text(json.dumps(content))
    for _ in range(2):
        assert run(project, "select", "--count", "4", "--detector", detector) == 0
    shutil.rmtree(project / "round01")  # moved away by hand; its images come back
    assert run(project, "select", "--count", "99") == 0
    rounds = read_rounds(project)
    assert [one.folder.name for one in rounds] == ["round02", "round03"]
    names = [name for one in rounds for name in one.images]
    assert len(names) == len(set(names)) == COUNT - 1 and "05.png" not in names
    assert "labelled or in a round already" in refused(capsys, project, "select")


def test_copies_in_rounds_are_no_new_images(project):
    inside = project.parent / "images/review"
    for _ in range(2):
        assert run(inside, "select", "--images", project.parent / "images", "--count", "4") == 0
    names = [name for one in read_rounds(inside) for name in one.images]
    assert len(set(names)) == 8 and not any(name.startswith("review/") for name in names)


def test_a_killed_select_is_done_again(project):
    (project / ".round01.partial").mkdir(parents=True)
    (project / ".round01.partial/half.png").write_bytes(b"half")
    assert run(project, "select", "--count", "2") == 0
    assert not (project / ".round01.partial").exists()
    assert not (project / "round01/half.png").exists()


def test_damaged_projects_and_options_are_sentences(project, capsys):
    for command in ("accept", "status"):
        assert "has no round: choose images with `select`" in refused(capsys, project, command)
    for more, why in (
        (("--count", "0"), "--count is 0"),
        (("--random", "1.5"), "--random is 1.5"),
        (("--min-score", "nan"), "--min-score is nan"),
        (("--images", "nowhere"), "nowhere is not a folder"),
        (("--detector", "nowhere"), "detector.json is not there"),
    ):
        assert why in refused(capsys, project, "select", *more)
    assert run(project, "select", "--count", "1") == 0
    (project / "labelled.json").write_text('{"images": [')
    for command in ("select", "accept", "status"):
        assert "labelled.json is no whole JSON file" in refused(capsys, project, command)
    assert (project / "labelled.json").read_text() == '{"images": ['


def test_status_counts_and_plots(project, detector, capsys):
    assert run(project, "select", "--count", "4") == 0
    assert run(project, "select", "--count", "3", "--detector", detector) == 0
    first, second, third, _ = files_of(project)
    tick(first, (1, 2, 30, 40))
    tick(second, (1, 2, 30, 40))
    assert run(project, "accept") == 0
    tick(third, (1, 2, 30, 40))
    files_of(project, 2)[0].write_text('{"shapes": [')
    capsys.readouterr()
    assert run(project, "status") == 0
    told = capsys.readouterr().out
    lines = [line.split() for line in told.splitlines()]
    assert lines[1] == ["round01", "4", "3", "2", "at", "random"]
    assert lines[2][:4] == ["round02", "3", "0", "0"] and lines[2][4].startswith(TINY)
    assert "not counted: round02/" in told and "labelled: 2 images, 2 boxes (2 WBC)" in told
    assert not (project / "status.png").exists()

    for number, ap in ((2, 0.5), (1, 0.25)):
        folder = project / f"detector{number:02}"
        shutil.copytree(detector, folder)
        edit_json(folder / "detector.json", images=10 * number)
        figures = {"average_precision": {"all": {"AP": ap, "AP50": 2 * ap}}}
        (folder / "evaluation.json").write_text(json.dumps(figures))
    for name, text in (("half", '{"aver'), ("list", "[]"), ("none", '{"average_precision": {}}')):
        (project / name).mkdir()
        (project / name / "evaluation.json").write_text(text)
        shutil.copy(detector / "detector.json", project / name / "detector.json")
    assert run(project, "status") == 0
    told = capsys.readouterr().out
    assert "detector01: trained on 10 images, AP 0.250, AP50 0.500" in told
    assert "detector02: trained on 20 images, AP 0.500, AP50 1.000" in told
    assert "half:" not in told and "list:" not in told and "none:" not in told
    with Image.open(project / "status.png") as plot:
        assert plot.size == (720, 480)


def test_weak_boxes_are_not_proposed():
    found = (Box("WBC", 1, 1, 5, 5, 0.8), Box("WBC", 1, 1, 6, 6, 0.2), Box("WBC", 2, 2, 4, 4))
    proposed = propose(Field("a.png", 9, 9, found), "net-1", 0.3)
    assert [box.score for box in proposed.boxes] == [0.8]
    assert proposed.boxes[0].own == {"labelme": {"description": "0.80", "detector": "net-1"}}
