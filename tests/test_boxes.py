"""The boxes command as a person meets it: files in, files out, and its sentences."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import boxes
from data_prep.errors import BuildError
from data_prep.fields import Box, Field, FieldSet, Findings
from data_prep.files import replace_file
from data_prep.images import read_rgb


def run(*arguments: str | Path) -> int:
    return boxes.main([*map(str, arguments)])


def labelme(**more) -> dict:
    shape = {"label": "WBC", "points": [[30, 40], [10, 20]], "shape_type": "rectangle"}
    head = {"version": "5.5.0", "flags": {}, "shapes": [shape], "imagePath": "a.png"}
    return {**head, "imageData": None, "imageHeight": 80, "imageWidth": 100, **more}


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def picture(path: Path, size: tuple[int, int] = (100, 80), orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, "white").save(path, exif=exif)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def refused(capsys, *arguments: str | Path) -> str:
    """The sentence of a command that ends with 2, without a traceback."""
    capsys.readouterr()
    assert run(*arguments) == 2
    text = capsys.readouterr()
    assert "Traceback" not in text.err
    return text.err


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A folder of images with Labelme files: shapes of all kinds, a sub-folder, odd keys."""
    rng = random.Random(0)
    root = tmp_path / "smears"
    for index in range(12):
        folder = root / ("sub é" if index % 3 else ".")
        picture(folder / f"{index:02}.png")
        shapes = []
        for kind, count in (("rectangle", 2), ("polygon", 5), ("circle", 2), ("mask", 2)):
            points = [[rng.uniform(-5, 105), rng.uniform(-5, 85)] for _ in range(count)]
            label = rng.choice(["WBC", "RBC", "<Plättchen>"])
            more = {"score": rng.random()} if index % 2 else {"mine": [index, None]}
            shapes.append({"label": label, "points": points, "shape_type": kind, **more})
        shapes.append({"label": "edge", "points": [[1, 2], [3, 4]], "shape_type": "line"})
        name = {"imagePath": f"{index:02}.png", "shapes": shapes, "note": {"a": index}}
        write(folder / f"{index:02}.json", labelme(**name))
    return root


def test_labelme_through_coco_and_voc_changes_no_byte_on_the_second_pass(corpus, tmp_path, capsys):
    files = {}
    for number, way in enumerate(("coco", "voc", "coco", "voc")):
        source = corpus if number == 0 else tmp_path / f"labelme{number - 1}"
        between = tmp_path / f"{way}{number}" / ("x.json" if way == "coco" else "")
        out = tmp_path / f"labelme{number}"
        assert run("--from", source, "--images", corpus, "--to", way, "--out", between) == 0
        assert run("--from", between, "--images", corpus, "--to", "labelme", "--out", out) == 0
        files[number] = contents(out)
    assert list(files[0]) and files[0] == files[1] == files[2] == files[3]
    assert "is a line, which has no area: no box" in capsys.readouterr().out

    def facts(source: Path) -> list:
        """Labels, corners, scores and all that only Labelme knows."""
        return [
            (item.image, item.own["labelme"], box.label, box.corners, box.score, box.own["labelme"])
            for item in boxes.read_boxes(source, corpus).fields
            for box in item.boxes
            if "labelme" in box.own
        ]

    assert len(facts(corpus)) > 40 and facts(tmp_path / "labelme3") == facts(corpus)
    written = json.loads(files[3]["sub é/01.json"])
    assert written["note"] == {"a": 1} and written["shapes"][-1]["label"] == "edge"
    assert written["imagePath"] == "../../smears/sub é/01.png"


def test_coco_through_labelme_keeps_every_row(corpus, tmp_path):
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    assert run("--from", corpus, "--to", "coco", "--out", first) == 0
    content = json.loads(first.read_text())
    random.Random(1).shuffle(content["annotations"])
    for index, row in enumerate(content["annotations"]):
        row.update(id=1000 - index, iscrowd=index % 2, segmentation=[[1, 2, 3, 4, 5, index]])
        row.update(area=17.5, mine=index)
    for row in content["images"]:
        row.update(id=51 - row["id"], license=1)
    for row in content["annotations"]:
        row["image_id"] = 51 - row["image_id"]
    write(first, content)
    assert run("--from", first, "--images", corpus, "--to", "labelme", "--out", tmp_path / "l") == 0
    assert run("--from", tmp_path / "l", "--images", corpus, "--to", "coco", "--out", second) == 0
    back = json.loads(second.read_text())
    assert back["categories"] == content["categories"]
    for key in ("images", "annotations"):
        assert sorted(back[key], key=lambda row: row["id"]) == sorted(
            content[key], key=lambda row: row["id"]
        )


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json", '{"shapes": [', "a.json is no whole JSON file (line 1, column 13: Expecting"),
        ("a.json", "", "a.json is no whole JSON file (line 1, column 1"),
        ("a.json", "[]", "a.json is no Labelme file: it has no list of shapes"),
        ("a.json", "[" * 100_000, "a.json is nested too deeply"),
        ("a.json", "1" * 5000, "a.json holds a number of thousands of digits"),
        ("a.json", labelme(imagePath="..\\a.png"), "a.json names the image '..\\\\a.png', which"),
        ("a.json", labelme(imagePath="/a.png"), "a.json names the image '/a.png': a path relative"),
        ("a.json", labelme(imageWidth=None, imageHeight=None), "a.json has no imageWidth and"),
        ("a.json", labelme(shapes=[{"label": 3}]), "a.json: shape 1 has the label 3: a name is"),
        ("a.json", labelme(shapes=[3]), "a.json: shape 1 is 3, which is no shape"),
        ("a.xml", "<annotation>", "a.xml is no whole XML file"),
        ("a.xml", '<!DOCTYPE a [<!ENTITY b "b">]><a/>', "a.xml declares a document type"),
    ],
)  # fmt: skip
def test_a_bad_file_is_answered_by_a_sentence(name, content, sentence, tmp_path, capsys):
    bad = write(tmp_path / "in" / name, content)
    other = write(tmp_path / "in" / f"b{bad.suffix}", "<" if bad.suffix == ".xml" else "{")
    error = refused(capsys, "--from", tmp_path / "in", "--to", "coco", "--out", tmp_path / "o.json")
    assert error.startswith(f"{tmp_path / 'in'} cannot be used, in 2 places:\n  {sentence}")
    assert f"\n  {other.name}" in error  # all at once
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    if bad.suffix == ".xml" or content not in ("[]", "1" * 5000):  # those are read as COCO
        alone = refused(capsys, "--from", bad, "--to", "voc", "--out", tmp_path / "o")
        assert alone.startswith(f"{bad} cannot be used, in one place:\n  {sentence}")


def test_bytes_that_are_no_text_and_a_byte_order_mark(tmp_path, capsys):
    path = write(tmp_path / "in" / "a.json", labelme())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert run("--from", path, "--to", "coco", "--out", tmp_path / "o.json") == 0
    path.write_bytes(json.dumps(labelme()).encode("utf-16"))
    error = refused(capsys, "--from", path, "--to", "coco", "--out", tmp_path / "p.json")
    assert "a.json is not text in UTF-8" in error


def test_a_gigabyte_of_image_data_is_not_read(tmp_path, capsys):
    import tracemalloc

    path = write(tmp_path / "in" / "a.json", "{")
    os.truncate(path, 2**30)
    tracemalloc.start()
    try:
        error = refused(capsys, "--from", path.parent, "--to", "coco", "--out", tmp_path / "o.json")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert (
        "a.json has 1024 MiB, but an annotation file may have 256: if it holds imageData" in error
    )


def test_nothing_is_overwritten_unasked(corpus, tmp_path, capsys):
    before = contents(corpus)
    error = refused(capsys, "--from", corpus, "--to", "labelme", "--out", corpus)
    assert error.startswith(
        f"{corpus / '00.json'} and 11 more files would be overwritten: give --o"
    )
    assert contents(corpus) == before
    out = write(tmp_path / "o.json", "mine")
    assert "would be overwritten" in refused(capsys, "--from", corpus, "--to", "coco", "--out", out)
    assert out.read_text() == "mine"
    assert run("--from", corpus, "--to", "coco", "--out", out, "--overwrite") == 0
    error = refused(capsys, "--from", out, "--to", "coco", "--out", tmp_path, "--overwrite")
    assert error == f"{tmp_path} is a folder: give the name of a file.\n"
    error = refused(capsys, "--from", out, "--to", "voc", "--out", out / "below")
    assert "stopped: " in error


def test_one_file_that_is_there_stops_all(corpus, tmp_path, capsys):
    there = write(tmp_path / "out" / "sub é" / "11.xml", "mine")
    refused(capsys, "--from", corpus, "--to", "voc", "--out", tmp_path / "out")
    assert contents(tmp_path / "out") == {"sub é/11.xml": b"mine"}
    assert there.read_text() == "mine"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tiff"])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
def test_the_size_of_an_image_is_the_one_a_person_sees(suffix, orientation, tmp_path):
    path = picture(tmp_path / f"a{suffix}", (30, 20), orientation)
    with path.open("rb") as file:
        height, width, _ = read_rgb(file).shape
    assert boxes.size_of_image(path) == (width, height)
    assert (width, height) == ((30, 20) if orientation < 5 else (20, 30))


def test_images_are_checked_against_their_boxes(tmp_path, capsys):
    root = tmp_path / "in"
    for name, size, orientation in (("turned", (100, 80), 6), ("other", (50, 40), 1)):
        picture(root / f"{name}.jpg", size, orientation)
        write(root / f"{name}.json", labelme(imagePath=f"{name}.jpg"))
    write(root / "missing.json", labelme(imagePath="missing.jpg"))
    write(root / "broken.json", labelme(imagePath="broken.jpg"))
    write(root / "broken.jpg", "no image")
    error = refused(
        capsys, "--from", root, "--images", root, "--to", "voc", "--out", tmp_path / "o"
    )
    assert error.splitlines()[1:] == [
        "  broken.jpg cannot be read as a PNG, JPEG, TIFF or BMP image",
        f"  missing.jpg is not in {root}",
        "  other.jpg has 50 x 40 pixels, its boxes 100 x 80",
        "  turned.jpg has 80 x 100 pixels, its boxes 100 x 80: they were drawn on the picture as "
        "stored, not as shown (EXIF)",
    ]
    none = tmp_path / "none"
    error = refused(
        capsys, "--from", root, "--images", none, "--to", "voc", "--out", tmp_path / "o"
    )
    assert "lies outside the folder of images" in error
    coco = write(tmp_path / "c.json", {"images": [], "annotations": [], "categories": []})
    error = refused(capsys, "--from", coco, "--images", none, "--to", "coco", "--out", none)
    assert f"--images {none} is not a folder" in error


def test_a_labelme_file_without_a_size_takes_that_of_the_image(tmp_path):
    picture(tmp_path / "a.png", (60, 50))
    path = write(tmp_path / "a.json", labelme(imageWidth=None, imageHeight=None))
    findings = Findings()
    field = boxes.read_labelme(path, tmp_path, findings)
    assert (field.width, field.height) == (60, 50) and not findings.faults


@pytest.mark.parametrize("linked", ["", "boxes", "images"])
def test_boxes_beside_the_images_and_links_to_either(linked, tmp_path, monkeypatch):
    """Labelme files in a folder of their own, with ../ in imagePath; also through links."""
    folders = {"boxes": tmp_path / "ann" / "deep", "images": tmp_path / "img"}
    picture(folders["images"] / "sub" / "a.png")
    write(folders["boxes"] / "a.json", labelme(imagePath="../../img/sub/a.png"))
    if linked:
        link = tmp_path / "elsewhere" / "link"
        link.parent.mkdir()
        link.symlink_to(folders[linked])
        folders[linked] = link
    fields = boxes.read_boxes(folders["boxes"], folders["images"])
    assert [item.image for item in fields.fields] == ["sub/a.png"]
    monkeypatch.chdir(tmp_path)  # relative paths say the same
    relative = {name: Path(os.path.relpath(path)) for name, path in folders.items()}
    assert boxes.read_boxes(relative["boxes"], relative["images"]) == fields
    boxes.write_labelme(fields, tmp_path / "new" / "x", relative["images"])
    again = boxes.read_boxes(tmp_path / "new" / "x", folders["images"])
    assert [item.image for item in again.fields] == ["sub/a.png"]


def test_a_linked_folder_inside_the_images(tmp_path):
    picture(tmp_path / "real" / "a.png")
    path = write(tmp_path / "real" / "a.json", labelme())
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "sub").symlink_to(path.parent)
    field = boxes.read_labelme(tmp_path / "img" / "sub" / "a.json", tmp_path / "img", Findings())
    assert field.image == "sub/a.png"


def test_folders_that_are_not_one_format(tmp_path, capsys):
    write(tmp_path / "in" / ".checkpoints" / "a.json", labelme())
    write(tmp_path / "in" / ".a.xml", "")
    out = ("--to", "coco", "--out", tmp_path / "o.json")
    assert "holds no JSON or XML files" in refused(capsys, "--from", tmp_path / "in", *out)
    write(tmp_path / "in" / "a.json", labelme())
    assert run("--from", tmp_path / "in", *out) == 0
    write(tmp_path / "in" / "b.xml", "<annotation/>")
    assert "holds JSON and XML files" in refused(capsys, "--from", tmp_path / "in", *out)
    assert "is not there" in refused(capsys, "--from", tmp_path / "none", *out)
    (tmp_path / "in" / "b.xml").unlink()
    write(tmp_path / "in" / "sub" / "a.json", labelme(imagePath="../a.png"))
    error = refused(capsys, "--from", tmp_path / "in", *out)
    assert "sub/a.json describes a.png, as a.json does" in error


def set_of(*images: str) -> FieldSet:
    box = Box("WBC", 1, 2, 3, 4)
    return FieldSet(tuple(Field(image, 9, 9, (box,)) for image in images), ("WBC",))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("a/x.jpg\n# y.png\n\n", ["a/x.jpg"]),
        ("\ufeffy\na/x\n", ["y.png", "a/x.jpg"]),
        ("y.png", ["y.png"]),
        ("#1.jpg\nz.b.c", ["z.b.c.jpg"]),
        ("x.jpg", "x.jpg: may be a/x.jpg or b/x.jpg"),
        (
            "x\nnone\n",
            "in 2 lines:\n  x: may be a/x.jpg or b/x.jpg\n  none: is not among the images",
        ),
        ("y.jpg", "y.jpg: is not among the images"),
    ],
)
def test_only_some_images(lines, expected, tmp_path):
    fields = set_of("y.png", "a/x.jpg", "b/x.jpg", "z.b.c.jpg")
    path = tmp_path / "list.txt"
    path.write_text(lines, encoding="utf-8")
    if isinstance(expected, str):
        with pytest.raises(BuildError) as error:
            boxes.only(fields, path)
        assert expected in str(error.value)
    else:
        assert sorted(item.image for item in boxes.only(fields, path).fields) == sorted(expected)


def test_only_and_labels_on_the_command_line(corpus, tmp_path, capsys):
    out = tmp_path / "o.json"
    listed = write(tmp_path / "list", "00\n01.png\nsub é/02.png\n")
    choice = ("--only", listed, "--labels", " WBC, <Plättchen>")
    assert run("--from", corpus, "--to", "coco", "--out", out, *choice) == 0
    content = json.loads(out.read_text())
    assert [row["file_name"] for row in content["images"]] == [
        "00.png",
        "sub é/01.png",
        "sub é/02.png",
    ]
    assert [row["name"] for row in content["categories"]] == ["WBC", "<Plättchen>"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"{out}: 3 images, {len(content['annotations'])} boxes (")
    again = ("--from", out, "--to", "coco", "--out", tmp_path / "p.json")
    assert "--labels names blast, but the boxes are labelled WBC, <Plä" in refused(
        capsys, *again, "--labels", "blast"
    )
    assert "--labels names no label" in refused(capsys, *again, "--labels", ",")
    assert "cannot be read (No such file" in refused(capsys, *again, "--only", tmp_path / "none")


def test_images_with_one_stem_would_have_one_file(tmp_path, capsys):
    write(tmp_path / "in" / "a.json", labelme())
    write(tmp_path / "in" / "b.json", labelme(imagePath="a.jpg"))
    assert run("--from", tmp_path / "in", "--to", "coco", "--out", tmp_path / "c.json") == 0
    error = refused(capsys, "--from", tmp_path / "c.json", "--to", "voc", "--out", tmp_path / "v")
    assert error == (
        "Several images would have one file: rename them:\n  a.xml: of a.jpg and a.png\n"
    )
    assert not (tmp_path / "v").exists()


def test_what_another_format_cannot_hold_stops_the_command(tmp_path, capsys):
    content = json.dumps(labelme(note=0)).replace('"note": 0', '"note": NaN')
    write(tmp_path / "in" / "a.json", content)
    for way, sentence in (("coco", "cannot be written as JSON"), ("voc", "number that is not fin")):
        error = refused(capsys, "--from", tmp_path / "in", "--to", way, "--out", tmp_path / "o")
        assert sentence in error
        assert not (tmp_path / "o").exists()


def test_half_a_surrogate_pair_survives(tmp_path):
    content = json.dumps(labelme(note="\ud83e"))
    write(tmp_path / "in" / "a.json", content)
    for number, way in enumerate(("coco", "voc", "labelme")):
        out = tmp_path / f"{number}.json" if way == "coco" else tmp_path / way
        assert run("--from", tmp_path / "in", "--to", way, "--out", out) == 0
        assert boxes.read_boxes(out).fields[0].own["labelme"]["note"] == "\ud83e"


def test_label_studio_is_written(corpus, tmp_path):
    out = tmp_path / "tasks.json"
    prefix = "/data/local-files/?d=smears/"
    assert run("--from", corpus, "--to", "label-studio", "--out", out, "--prefix", prefix) == 0
    tasks = json.loads(out.read_text())
    assert len(tasks) == 12
    assert tasks[1]["data"]["image"].startswith(prefix)
    for task in tasks:
        for row in task["predictions"][0]["result"]:
            value = row["value"]
            assert 0 <= value["x"] < value["x"] + value["width"] <= 100 + 1e-9
            assert 0 <= value["y"] < value["y"] + value["height"] <= 100 + 1e-9


def test_notes_are_shown_but_not_thousands(tmp_path, capsys):
    write(
        tmp_path / "in" / "a.json",
        labelme(shapes=[labelme()["shapes"][0] | {"shape_type": "line"}] * 99),
    )
    assert run("--from", tmp_path / "in", "--to", "coco", "--out", tmp_path / "o.json") == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{tmp_path / 'in'}: 99 notes:\n  a.json: shape 1 is a line, which has")
    assert "… and 79 more" in text and text.endswith("o.json: 1 images, 0 boxes\n")


def test_replacing_a_file_leaves_the_old_one_if_writing_fails(tmp_path):
    path = write(tmp_path / "a.json", "old")

    def fail(file):
        file.write(b"new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, fail)
    assert contents(tmp_path) == {"a.json": b"old"}


def corners(fields: FieldSet) -> dict[str, np.ndarray]:
    return {
        item.image: np.array([[*box.corners, fields.labels.index(box.label)] for box in item.boxes])
        for item in fields.fields
    }


@pytest.mark.parametrize("name", ["bccd", "pbc_boxes"])
def test_real_boxes_come_back_through_all_formats(name, shared_data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # of 1,000 files, half the time
    folder = shared_data / name
    source, images, notes, counts = {
        "bccd": ("Annotations", "JPEGImages", 2, "364 images, 4886 boxes"),
        "pbc_boxes": ("instances.json", "images", 0, "500 images, 9170 boxes"),
    }[name]
    source, images = folder / source, folder / images
    coco, voc, marks = tmp_path / "coco.json", tmp_path / "voc", tmp_path / "labelme"
    assert run("--from", source, "--images", images, "--to", "coco", "--out", coco) == 0
    printed = capsys.readouterr().out
    assert counts in printed
    assert printed.count("has no area and is left out") == notes
    assert run("--from", coco, "--images", images, "--to", "labelme", "--out", marks) == 0
    assert run("--from", marks, "--images", images, "--to", "voc", "--out", voc) == 0
    last = tmp_path / "last.json"
    assert run("--from", voc, "--images", images, "--to", "coco", "--out", last) == 0
    sets = [boxes.read_boxes(path, images) for path in (coco, marks, voc, last)]
    assert {item.labels for item in sets} >= {("Platelets", "RBC", "WBC")}
    first = corners(sets[0])
    assert sum(map(len, first.values())) == int(counts.split()[2])
    for other in sets[1:]:
        order = [sets[0].labels.index(label) for label in other.labels]
        for image, rows in corners(other).items():
            rows[:, 4] = [order[int(label)] for label in rows[:, 4]]
            np.testing.assert_array_equal(rows, first[image])

    from pycocotools.coco import COCO

    index = COCO(str(last))
    assert len(index.getAnnIds()) == int(counts.split()[2])
    assert len(index.getImgIds()) == len(first)
    if name == "pbc_boxes":
        was = {row["id"]: row for row in json.loads(source.read_text())["annotations"]}
        now = {row["id"]: row for row in json.loads(last.read_text())["annotations"]}
        assert now.keys() == was.keys()
        for key, row in was.items():
            assert {**now[key], **row, "area": 0} == {**now[key], "area": 0}  # ids of all kinds
            assert now[key]["area"] == pytest.approx(row["area"], abs=0.01)
