"""Rounds of review: only what a person has ticked is taken, whole, once, and with its picture."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.boxes import read_boxes
from data_prep.rounds import read_rounds
from tests.reviewing import COUNT, files_of, new_project, refused, run, tick
from tests.smears import edit_json, killed, ran, write_smears


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("smears") / "images"
    write_smears(folder, COUNT)
    return folder


@pytest.fixture
def project(rendered, tmp_path) -> Path:
    return new_project(rendered, tmp_path)


def test_rounds_are_counted_beyond_ninety_nine(project):
    for number in (2, 99, 100):
        (project / f"round{number:02}").mkdir(parents=True)
        record = {"detector": "", "images": {f"{number}.png": 0.0}}
        (project / f"round{number:02}/.round.json").write_text(json.dumps(record))
    (project / "round notes").mkdir()
    assert [one.number for one in read_rounds(project)] == [2, 99, 100]
    assert run(project, "select", "--count", "1") == 0
    assert (project / "round101").is_dir()


def test_only_reviewed_files_are_accepted_and_only_once(project, capsys):
    assert run(project, "select", "--count", "4") == 0
    capsys.readouterr()
    assert run(project, "accept") == 0
    assert "0 accepted, 4 not reviewed yet" in capsys.readouterr().out
    assert not (project / "labelled.json").exists()
    first, second, third, _ = files_of(project)
    tick(first, (10, 20, 40, 50), (60.25, 10.5, 90.75, 44.125))
    tick(second)  # a field without a cell
    edit_json(third, flags={"reviewed": False})
    assert run(project, "accept") == 0
    told = capsys.readouterr().out
    assert "2 accepted, 2 not reviewed yet; now 2 images, 2 boxes (2 WBC)" in told
    labelled = read_boxes(project / "labelled.json", project.parent / "images")
    assert [len(item.boxes) for item in labelled.fields] == [2, 0]
    box = labelled.fields[0].boxes[1]
    assert box.corners == (60.25, 10.5, 90.75, 44.125) and box.score is None
    assert labelled.fields[0].own["review"] == {"round": 1}

    before = (project / "labelled.json").read_bytes()
    assert run(project, "accept") == 0
    assert "0 accepted" in capsys.readouterr().out
    assert (project / "labelled.json").read_bytes() == before
    tick(third, (5, 5, 20, 20))
    assert run(project, "accept") == 0
    labelled = read_boxes(project / "labelled.json")
    assert len(labelled.fields) == 3 and sum(len(item.boxes) for item in labelled.fields) == 3


def test_what_labelled_json_held_before_is_kept(project):
    content = {
        "info": {"description": "mine"},
        "licenses": [{"id": 4, "name": "CC BY"}],
        "images": [{"id": 7, "file_name": "x.png", "width": 9, "height": 9, "donor": "A"}],
        "annotations": [
            {"id": 70, "image_id": 7, "category_id": 3, "bbox": [1, 1, 5, 5], "mine": 1}
        ],
        "categories": [{"id": 3, "name": "RBC", "supercategory": "cell"}],
    }
    project.mkdir()
    (project / "labelled.json").write_text(json.dumps(content))
    assert run(project, "select", "--count", "1") == 0
    tick(files_of(project)[0], (1, 1, 9, 9))
    assert run(project, "accept") == 0
    after = json.loads((project / "labelled.json").read_text())
    assert after["info"] == content["info"] and after["licenses"] == content["licenses"]
    assert content["images"][0] in after["images"] and len(after["images"]) == 2
    row = next(row for row in after["annotations"] if row["id"] == 70)
    assert row["mine"] == 1 and row["image_id"] == 7 and row["bbox"] == [1, 1, 5, 5]
    assert content["categories"][0] in after["categories"]


def test_boxes_that_were_changed_later_need_a_word(project, capsys):
    assert run(project, "select", "--count", "2") == 0
    first, second = files_of(project)
    tick(first, (10, 20, 40, 50))
    assert run(project, "accept") == 0
    before = (project / "labelled.json").read_bytes()
    tick(first, (10, 20, 40, 51))
    tick(second, (1, 2, 30, 40))
    told = refused(capsys, project, "accept")
    assert "1 images accepted before have other boxes now" in told and "--replace" in told
    assert (project / "labelled.json").read_bytes() == before
    assert run(project, "accept", "--replace") == 0
    assert "1 accepted, 1 replaced" in capsys.readouterr().out
    labelled = read_boxes(project / "labelled.json")
    corners = {box.corners for item in labelled.fields for box in item.boxes}
    assert corners == {(10, 20, 40, 51), (1, 2, 30, 40)}


def test_what_is_mended_is_told(project, capsys):
    assert run(project, "select", "--count", "1") == 0
    (path,) = files_of(project)
    tick(path, (100, 50, 400, 500), (7, 7, 7, 9))
    assert run(project, "accept") == 0
    told = capsys.readouterr().out
    assert "reaches over the border and is clipped" in told
    assert "has no area and is left out" in told
    assert read_boxes(project / "labelled.json").fields[0].boxes[0].corners == (100, 50, 128, 96)


def spoil_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def spoil_swap(path: Path) -> None:
    """Another picture of the same size under the same name."""
    image = path.with_suffix(".png")
    pixels = np.asarray(Image.open(image)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(image)


def spoil_size(path: Path) -> None:
    Image.new("RGB", (30, 20)).save(path.with_suffix(".png"))


def spoil_image(path: Path) -> None:
    path.with_suffix(".png").unlink()


def spoil_nan(path: Path) -> None:
    tick(path, (float("nan"), 1, 5, 5))


def spoil_path(path: Path) -> None:
    """A picture that is not of this round."""
    shutil.copy(path.with_suffix(".png"), path.with_name("stranger.png"))
    edit_json(path, imagePath="stranger.png")


def spoil_twice(path: Path) -> None:
    shutil.copy(path, path.with_name("zzz.json"))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (spoil_half, "is no whole JSON file"),
        (spoil_swap, "which is missing or was changed"),
        (spoil_size, "which is missing or was changed"),
        (spoil_image, "which is missing or was changed"),
        (spoil_nan, "where a number is needed"),
        (spoil_path, "stranger.png, which was not chosen in this round"),
        (spoil_twice, "describes"),
    ],
)
def test_a_spoilt_file_stops_the_whole_acceptance(project, capsys, spoil, why):
    assert run(project, "select", "--count", "3") == 0
    for path in files_of(project):
        tick(path, (1, 2, 30, 40))
    spoilt = next(path for path in files_of(project) if path.parent.name != "deep")
    spoil(spoilt)
    told = refused(capsys, project, "accept")
    assert why in told and "in one place" in told
    assert not (project / "labelled.json").exists()
    if spoil is not spoil_half:
        edit_json(spoilt, flags={"reviewed": False})
        assert run(project, "accept") == 0  # what nobody has ticked is no one's fault


@pytest.mark.parametrize(
    "record", ['{"detector": "", "images": {"a.p', "[]", '{"images": {}}', '{"detector": ""}', None]
)
@pytest.mark.parametrize("command", ["select", "accept", "status"])
def test_a_round_without_a_whole_record_stops_everything(project, capsys, record, command):
    folder = project / "round01"
    folder.mkdir(parents=True)
    if record is not None:
        (folder / ".round.json").write_text(record)
    told = refused(capsys, project, command)
    assert ".round.json" in told and "put it back, or move that folder" in told
    assert told.count("\n") == 1
    assert [path.name for path in project.iterdir()] == ["round01"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_killed_accept_loses_nothing_and_doubles_nothing(project, when):
    assert run(project, "select", "--count", "4") == 0
    first, *others = files_of(project)
    tick(first, (1, 2, 30, 40))
    assert run(project, "accept") == 0
    before = (project / "labelled.json").read_bytes()
    for path in others:
        tick(path, (5, 6, 20, 22), (50, 60, 70, 80))
    killed(1, when, "data_prep.review", "accept", "--project", project)
    after = (project / "labelled.json").read_bytes()
    assert (after == before) == (when == "before")
    told = ran("data_prep.review", "accept", "--project", project)
    assert f"{3 if when == 'before' else 0} accepted" in told
    labelled = read_boxes(project / "labelled.json", project.parent / "images")
    assert len(labelled.fields) == 4 and sum(len(item.boxes) for item in labelled.fields) == 7


def test_a_turned_photograph_goes_through_the_loop(project):
    images = project.parent / "images"
    for path in images.rglob("*.png"):
        path.unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (96, 128), "white").save(images / "a.jpg", exif=exif)
    assert run(project, "select", "--count", "1") == 0
    (path,) = files_of(project)
    content = json.loads(path.read_text())
    assert (content["imageWidth"], content["imageHeight"]) == (128, 96)
    tick(path, (100, 10, 120, 30))
    assert run(project, "accept") == 0
    (item,) = read_boxes(project / "labelled.json", images).fields
    assert (item.width, item.height, item.boxes[0].corners) == (128, 96, (100, 10, 120, 30))
