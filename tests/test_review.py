"""Active learning as a person meets it: chosen, corrected, accepted, killed, refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import review
from data_prep.boxes import read_boxes, read_labelme
from data_prep.detector import create_detector, save_detector
from data_prep.fields import Box, Field, FieldSet, Findings
from data_prep.review import look_at, propose, read_rounds
from data_prep.uncertainty import disagreement, doubt
from tests.smears import TINY, edit_json, killed, ran, tiny_torch, write_smears

COUNT = 12


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    with tiny_torch(monkeypatch):
        yield


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> tuple[Path, FieldSet]:
    folder = tmp_path_factory.mktemp("smears") / "images"
    return folder, write_smears(folder, COUNT)


@pytest.fixture
def project(rendered, tmp_path) -> Path:
    """images/ of twelve fields, one of them in a sub-folder; the project is beside them."""
    shutil.copytree(rendered[0], tmp_path / "images")
    (tmp_path / "images/deep").mkdir()
    (tmp_path / "images/00.png").rename(tmp_path / "images/deep/00.png")
    return tmp_path / "review"


@pytest.fixture
def detector(tmp_path) -> Path:
    """The folder of a detector of random weights: full of doubt."""
    save_detector(create_detector(TINY, ("WBC",), "none"), tmp_path / "detector", {"images": 3})
    return tmp_path / "detector"


def run(project: Path, command: str, *more: str | Path) -> int:
    images = ("--images", project.parent / "images") if command == "select" else ()
    arguments = [command, "--project", project, *images, *more]
    return review.main([*map(str, arguments)])


def refused(capsys, *arguments) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return told


def tick(path: Path, *boxes: tuple[float, float, float, float]) -> None:
    """What a person does in Labelme: true boxes, and the flag."""
    shapes = [
        {"label": "WBC", "points": [[x0, y0], [x1, y1]], "shape_type": "rectangle", "flags": {}}
        for x0, y0, x1, y1 in boxes
    ]
    edit_json(path, shapes=shapes, flags={"reviewed": True})


def files_of(project: Path, number: int = 1) -> list[Path]:
    return sorted((project / f"round{number:02}").rglob("[!.]*.json"))


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


def test_rounds_are_counted_beyond_ninety_nine(project):
    for number in (2, 99, 100):
        (project / f"round{number:02}").mkdir(parents=True)
        record = {"detector": "", "images": {f"{number}.png": 0.0}}
        (project / f"round{number:02}/.round.json").write_text(json.dumps(record))
    (project / "round notes").mkdir()
    assert [one.number for one in read_rounds(project)] == [2, 99, 100]
    assert run(project, "select", "--count", "1") == 0
    assert (project / "round101").is_dir()


def test_a_killed_select_is_done_again(project):
    (project / ".round01.partial").mkdir(parents=True)
    (project / ".round01.partial/half.png").write_bytes(b"half")
    assert run(project, "select", "--count", "2") == 0
    assert not (project / ".round01.partial").exists()
    assert not (project / "round01/half.png").exists()


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


def test_status_counts_and_plots(project, detector, capsys):
    assert run(project, "select", "--count", "4") == 0
    assert run(project, "select", "--count", "3", "--detector", detector) == 0
    first, second, third, _ = files_of(project)
    tick(first, (1, 2, 30, 40))
    tick(second, (1, 2, 30, 40))
    assert run(project, "accept") == 0
    tick(third, (1, 2, 30, 40))
    spoil_half(files_of(project, 2)[0])
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


def test_weak_boxes_are_not_proposed():
    found = (Box("WBC", 1, 1, 5, 5, 0.8), Box("WBC", 1, 1, 6, 6, 0.2), Box("WBC", 2, 2, 4, 4))
    proposed = propose(Field("a.png", 9, 9, found), "net-1", 0.3)
    assert [box.score for box in proposed.boxes] == [0.8]
    assert proposed.boxes[0].own == {"labelme": {"description": "0.80", "detector": "net-1"}}
