"""Crops of cells: their pixels, names, labels and manifest; stopped, killed, refused."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import crop
from data_prep.cut import cut, unique_stems, window_of
from data_prep.place import partial_of
from data_prep.synthetic import render_field
from data_prep.workers import AHEAD, run_in_order

ROOT = Path(__file__).resolve().parents[1]
ONE = (40, 30, 80, 60)  # a box of 40 × 30 pixels
TWO = (100, 70, 120, 110)


def noise(seed: int, width: int = 160, height: int = 120) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_boxes(path: Path, fields: dict[str, list[tuple]], size=(160, 120)) -> Path:
    """A COCO file: image -> (x0, y0, x1, y1[, label[, score]]) of each box."""
    labels = ["WBC", "RBC", "BAS", "EOS"]
    images, annotations = [], []
    for number, (name, boxes) in enumerate(fields.items(), 1):
        width, height = size
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for x0, y0, x1, y1, *more in boxes:
            row = {
                "id": len(annotations) + 1,
                "image_id": number,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
            }
            row["category_id"] = labels.index(more[0] if more else "WBC")
            annotations.append(row | ({"score": more[1]} if len(more) > 1 else {}))
    categories = [{"id": number, "name": name} for number, name in enumerate(labels)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content | {"info": {"detector": "frcnn-1"}}))
    return path


@pytest.fixture
def smears(tmp_path) -> Path:
    """Six fields of noise in class folders, and boxes.json beside: one cell, two, none, none."""
    root = tmp_path / "smears"
    names = ("BAS/1.png", "BAS/2.png", "EOS/1.png", "EOS/deep/2.png", "EOS/3.png", "loose.png")
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(seed)).save(root / name)
    boxes = {
        "BAS/1.png": [ONE],
        "BAS/2.png": [TWO, ONE],
        "EOS/1.png": [],
        "EOS/deep/2.png": [(*ONE, "WBC", 0.9), (*TWO, "WBC", 0.3)],
        "loose.png": [ONE],
    }
    write_boxes(tmp_path / "boxes.json", boxes)
    return root


def run(smears: Path, *more: str | Path, workers: int = 1) -> int:
    folder = smears.parent
    arguments = ["--boxes", folder / "boxes.json", "--images", smears, "--out", folder / "out"]
    return crop.main([*map(str, (*arguments, *more)), "--workers", str(workers)])


def rows_in(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    ("box", "margin", "square", "window"),
    [
        ((10, 20, 50, 50), 0, False, (10, 20, 50, 50)),
        ((10, 20, 50, 50), 0, True, (10, 15, 50, 55)),
        ((10, 20, 50, 50), 0.25, True, (0, 5, 60, 65)),
        ((10, 20, 50, 50), 0.25, False, (0, 10, 60, 60)),
        ((0, 0, 10, 20), 0.15, True, (-8, -3, 18, 23)),
        ((10.4, 20.4, 12.4, 22.4), 0, True, (10, 20, 12, 22)),
        ((5.2, 5.2, 5.3, 5.3), 0, True, (5, 5, 6, 6)),
    ],
)
def test_a_window_is_the_box_with_its_margin(box, margin, square, window):
    assert window_of(box, margin, square) == window


@pytest.mark.parametrize("border", ["reflect", "edge", "white"])
@pytest.mark.parametrize(
    "window", [(-5, -3, 9, 11), (3, 2, 30, 25), (-40, -40, 50, 50), (1, 2, 7, 8)]
)
def test_beyond_the_border_the_rule_holds(border, window):
    picture = noise(0, 20, 16)
    rule = {"mode": border} if border != "white" else {"mode": "constant", "constant_values": 255}
    padded = np.pad(picture, ((60, 60), (60, 60), (0, 0)), **rule)  # type: ignore[arg-type]
    x0, y0, x1, y1 = window
    expected = padded[60 + y0 : 60 + y1, 60 + x0 : 60 + x1]
    np.testing.assert_array_equal(cut(picture, window, border), expected)


def test_a_field_one_pixel_wide_can_be_mirrored():
    assert cut(noise(0, 1, 3), (-2, -4, 3, 7), "reflect").shape == (11, 5, 3)


def test_names_never_meet():
    names = unique_stems(["x/a.jpg", "x/a.png", "x/b.png", "x/a.jpg.tiff", "y/a.jpg", "x/s.1.png"])
    assert names == {
        "x/a.jpg": "x/a.jpg",
        "x/a.png": "x/a.png",
        "x/a.jpg.tiff": "x/a.jpg.tiff",
        "x/b.png": "x/b",
        "y/a.jpg": "y/a",
        "x/s.1.png": "x/s.1",
    }


@pytest.mark.parametrize("box", [(0.6, 30, 40, 60), (120, 30, 160, 60), (40, 89, 60, 119.5)])
def test_a_cell_cut_by_the_border_is_reviewed(smears, tmp_path, box):
    boxes = {"BAS/1.png": [box], "EOS/1.png": [(2, 30, 40, 60)]}
    write_boxes(tmp_path / "boxes.json", boxes)
    assert run(smears) == 0
    (cut_off,) = rows_in(tmp_path / "out/review.csv")
    assert cut_off["crop"] == "unlabelled/BAS/1_1.png"
    assert cut_off["reason"] == "cut by the border of the field"
    assert (tmp_path / "out/EOS/1.png").is_file()
    # A person who boxed and labelled the visible part of a cell has seen that it is cut.
    assert run(smears, "--label-from", "box", "--overwrite") == 0
    assert not rows_in(tmp_path / "out/review.csv")


def test_one_cell_takes_the_label_along_and_others_are_reviewed(smears, tmp_path, capsys):
    assert run(smears, "--margin", "0", "--no-square") == 0
    out = tmp_path / "out"
    rows = {row["crop"]: row for row in rows_in(out / "manifest.csv")}
    two = "2 cells in the field"
    expected = {
        "BAS/1.png": ("BAS/1.png", "BAS", "", ONE, ""),
        "unlabelled/BAS/2_1.png": ("BAS/2.png", "", two, ONE, ""),
        "unlabelled/BAS/2_2.png": ("BAS/2.png", "", two, TWO, ""),
        "EOS/deep/2.png": ("EOS/deep/2.png", "EOS", "", ONE, "0.9"),
        "unlabelled/loose_1.png": ("loose.png", "", "field in no class folder", ONE, ""),
    }
    assert set(rows) == set(expected)
    for name, (source, label, reason, (x0, y0, x1, y1), score) in expected.items():
        row, data = rows[name], (out / name).read_bytes()
        told = (row["source"], row["label"], row["reason"], row["score"], row["detector"])
        assert told == (source, label, reason, score, "frcnn-1")
        assert [float(row[edge]) for edge in ("x0", "y0", "x1", "y1")] == [x0, y0, x1, y1]
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["source_sha256"] == hashlib.sha256((smears / source).read_bytes()).hexdigest()
        field = np.asarray(Image.open(smears / source))
        np.testing.assert_array_equal(np.asarray(Image.open(out / name)), field[y0:y1, x0:x1])
    assert [row["crop"] for row in rows_in(out / "review.csv")] == [
        name for name, row in rows.items() if not row["label"]
    ]
    assert rows_in(out / "without_cells.csv") == [
        {"source": "EOS/1.png", "reason": "no box"},
        {"source": "EOS/3.png", "reason": "not among the boxes"},
    ]
    told = capsys.readouterr().out
    assert "5 crops of 4 fields; 2 with a label (BAS 1, EOS 1); 3 to review" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxes.json", "out", "smears"]


def test_a_rendered_field_gives_each_of_its_cells(tmp_path):
    picture, found = render_field(np.random.default_rng(5), 320, 240, white_cells=3)
    (tmp_path / "smears").mkdir()
    Image.fromarray(picture).save(tmp_path / "smears" / "1.png")
    white = [box for box in found if box.label not in ("RBC", "PLT")]
    corners = [(b.x0, b.y0, b.x1, b.y1) for b in white]
    reds = [(b.x0, b.y0, b.x1, b.y1, "RBC") for b in found if b.label == "RBC"]
    write_boxes(tmp_path / "boxes.json", {"1.png": [*corners, *reds]}, (320, 240))
    assert run(tmp_path / "smears", "--labels", "WBC", "--margin", "0.5") == 0
    padded = np.pad(picture, ((200, 200), (200, 200), (0, 0)), mode="reflect")
    rows = rows_in(tmp_path / "out" / "manifest.csv")
    assert len(rows) == len(white) == 3
    for row, (x0, y0, x1, y1) in zip(rows, sorted(corners, key=lambda c: c[1]), strict=True):
        pixels = np.asarray(Image.open(tmp_path / "out" / row["crop"]))
        side = 2 * max(x1 - x0, y1 - y0)
        assert pixels.shape == (side, side, 3)
        top, left = (200 + (low + high + 1 - side) // 2 for low, high in ((y0, y1), (x0, x1)))
        np.testing.assert_array_equal(pixels, padded[top : top + side, left : left + side])


def test_labels_can_come_from_the_boxes_or_from_nowhere(smears, tmp_path):
    boxes = {"BAS/1.png": [(*ONE, "BAS"), (*TWO, "EOS")], "loose.png": [(*ONE, "EOS")]}
    write_boxes(tmp_path / "boxes.json", boxes)
    assert run(smears, "--label-from", "box", "--labels", "BAS,EOS") == 0
    rows = rows_in(tmp_path / "out" / "manifest.csv")
    assert [(row["crop"], row["label"]) for row in rows] == [
        ("BAS/BAS/1_1.png", "BAS"),
        ("EOS/BAS/1_2.png", "EOS"),
        ("EOS/loose_1.png", "EOS"),
    ]
    more = ("--label-from", "none", "--labels", "BAS,EOS", "--overwrite")
    assert run(smears, *more) == 0
    assert {row["label"] for row in rows_in(tmp_path / "out" / "manifest.csv")} == {""}
    assert len(rows_in(tmp_path / "out" / "review.csv")) == 3


def test_a_turned_photograph_is_cropped_as_it_is_shown(tmp_path, capsys):
    (tmp_path / "smears" / "BAS").mkdir(parents=True)
    picture = Image.fromarray(noise(1))
    exif = picture.getexif()
    exif[0x0112] = 6  # shown turned by a quarter
    path = tmp_path / "smears" / "BAS" / "1.png"
    picture.save(path, exif=exif)
    write_boxes(tmp_path / "boxes.json", {"BAS/1.png": [ONE]})
    assert run(tmp_path / "smears") == 2
    assert "as stored, not as shown (EXIF)" in capsys.readouterr().err
    write_boxes(tmp_path / "boxes.json", {"BAS/1.png": [ONE]}, (120, 160))
    assert run(tmp_path / "smears", "--margin", "0", "--no-square") == 0
    shown = np.rot90(noise(1), -1)
    pixels = np.asarray(Image.open(tmp_path / "out" / "BAS" / "1.png"))
    np.testing.assert_array_equal(pixels, shown[30:60, 40:80])


def test_equal_boxes_are_one_cell_and_those_without_area_none(smears, tmp_path, capsys):
    boxes = [(*ONE, "WBC", 0.6), (*ONE, "WBC", 0.8), (7, 7, 7, 20)]
    write_boxes(tmp_path / "boxes.json", {"BAS/1.png": boxes})
    assert run(smears) == 0
    (row,) = rows_in(tmp_path / "out" / "manifest.csv")
    assert (row["label"], row["score"]) == ("BAS", "0.8")
    told = capsys.readouterr().out
    assert "has no area" in told and "cropped once: 1" in told


@pytest.mark.parametrize(
    ("boxes", "arguments", "told"),
    [
        ({"BAS/9.png": [ONE]}, (), "BAS/9.png is not in"),
        ({"BAS/1.png": [ONE, (*TWO, "RBC")]}, (), r"labelled WBC (1), RBC (1): say with --labels"),
        ({"BAS/1.png": [ONE]}, ("--labels", "wbc"), "--labels names wbc"),
        ({"BAS/1.png": [(*ONE, "WBC", 0.2)]}, (), "no box with a score of 0.5 or more (1)"),
        ({"BAS/1.png": [ONE]}, ("--margin", "-1"), "--margin is -1.0"),
        ({"BAS/1.png": [ONE]}, ("--margin", "nan"), "--margin is nan"),
        ({"BAS/1.png": [ONE]}, ("--min-score", "50"), "--min-score is 50.0"),
        ({"BAS/1.png": [ONE]}, ("--images", "nowhere"), "nowhere is not a folder"),
        ({"BAS/1.png": [ONE]}, ("--boxes", "nowhere"), "nowhere is not there"),
        ({"BAS/1.png": [ONE]}, ("--out", "."), "overlap"),
    ],
)
def test_a_mistake_is_told_before_the_work(
    smears, tmp_path, capsys, monkeypatch, boxes, arguments, told
):
    write_boxes(tmp_path / "boxes.json", boxes)
    monkeypatch.chdir(tmp_path)
    assert run(smears, *arguments) == 2
    assert told in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxes.json", "smears"]


def test_folders_of_splits_are_no_labels(smears, tmp_path, capsys):
    (smears / "BAS").rename(smears / "train")
    write_boxes(tmp_path / "boxes.json", {"train/1.png": [ONE]})
    assert run(smears) == 2
    assert "are splits (train), not classes" in capsys.readouterr().err


def test_what_is_there_is_replaced_only_when_asked(smears, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    assert run(smears, "--overwrite") == 2
    assert "is not a folder of crops" in capsys.readouterr().err
    (tmp_path / "out" / "thesis.txt").unlink()
    assert run(smears) == 0  # an empty folder is filled
    before = files_of(tmp_path / "out")
    assert run(smears, "--margin", "0") == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert files_of(tmp_path / "out") == before
    assert run(smears, "--margin", "0", "--overwrite") == 0
    assert files_of(tmp_path / "out").keys() == before.keys()
    assert files_of(tmp_path / "out") != before


def test_labels_filled_in_by_hand_are_not_overwritten(smears, tmp_path, capsys):
    assert run(smears) == 0
    review = tmp_path / "out" / "review.csv"
    review.write_text(review.read_text().replace(",,2 cells", ",BAS,2 cells"))
    assert run(smears, "--margin", "0", "--overwrite") == 2
    assert "review.csv was changed since it was written" in capsys.readouterr().err
    review.rename(tmp_path / "mine.csv")
    assert run(smears, "--margin", "0", "--overwrite") == 0


def test_bad_fields_stop_the_command_or_are_skipped(smears, tmp_path, capsys):
    cut_off = smears / "BAS" / "2.png"
    Image.fromarray(noise(1)).save(cut_off, "JPEG")
    whole = cut_off.read_bytes()
    cut_off.write_bytes(whole[:3000])
    assert run(smears) == 2
    error = capsys.readouterr().err
    assert "1 of 4 fields cannot be used" in error and "BAS/2.png: cannot be decoded" in error
    assert not (tmp_path / "out").exists()
    assert run(smears, "--skip-bad") == 0
    assert len(rows_in(tmp_path / "out" / "manifest.csv")) == 3
    assert rows_in(tmp_path / "out" / "skipped.csv")[0]["source"] == "BAS/2.png"
    cut_off.write_bytes(whole)
    assert run(smears, "--overwrite") == 0
    assert len(rows_in(tmp_path / "out" / "manifest.csv")) == 5


@pytest.fixture
def many(tmp_path) -> Path:
    """160 fields of noise, which is five batches; boxes.json beside."""
    root = tmp_path / "many"
    (root / "BAS").mkdir(parents=True)
    for number in range(4):
        Image.fromarray(noise(number, 240, 240)).save(tmp_path / f"{number}.png")
    for number in range(160):
        (root / "BAS" / f"{number:03}.png").hardlink_to(tmp_path / f"{number % 4}.png")
    boxes: dict[str, list[tuple]] = {f"BAS/{n:03}.png": [(20, 30, 220, 210)] for n in range(160)}
    write_boxes(tmp_path / "boxes.json", boxes, (240, 240))
    return root


def start(many: Path) -> subprocess.Popen:
    """The command with two processes, stopped from outside as soon as a batch is finished."""
    folder = many.parent
    paths = ["--boxes", folder / "boxes.json", "--images", many, "--out", folder / "out"]
    command = [sys.executable, "-m", "data_prep.crop", "--workers", "2", *map(str, paths)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 30
    while not list(folder.glob("out.partial/parts/0*.json")) and time.monotonic() < limit:
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_killed_command_goes_on_and_leaves_the_same_files(many, tmp_path, number, status, capsys):
    process = start(many)
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert process.returncode == status and "Traceback" not in told
    if number == signal.SIGINT:
        assert "the same command goes on" in told
    done = sorted(tmp_path.glob("out.partial/parts/0*.json"))
    assert 0 < len(done) < 5 and not (tmp_path / "out").exists()
    crop_of = {path: json.loads(path.read_text())["rows"][0][0] for path in done}
    made = {name: (tmp_path / "out.partial/crops" / name).stat() for name in crop_of.values()}

    assert run(many, "--margin", "0") == 2
    assert "the beginning of another request" in capsys.readouterr().err
    assert run(many) == 0
    resumed = files_of(tmp_path / "out")
    assert len(rows_in(tmp_path / "out" / "manifest.csv")) == 160
    for name, before in made.items():
        assert (tmp_path / "out" / name).stat().st_mtime_ns == before.st_mtime_ns
    assert not list(tmp_path.glob("*.partial*"))
    if number == signal.SIGKILL:
        (tmp_path / "out").rename(tmp_path / "resumed")
        assert run(many) == 0
        assert files_of(tmp_path / "out") == resumed


def test_a_finished_batch_is_kept_only_if_it_is_true(smears, tmp_path, monkeypatch):
    monkeypatch.setattr(crop, "BATCH", 1)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(crop, "put_in_place", stop)
        assert run(smears) == 130
    crops = partial_of(tmp_path / "out") / "crops"
    (crops / "BAS/1.png").write_bytes(b"spoiled")
    (crops / "unlabelled/BAS/2_1.png").unlink()
    Image.fromarray(noise(77)).save(smears / "loose.png")  # the field itself has changed
    assert run(smears) == 0
    resumed = files_of(tmp_path / "out")
    assert run(smears, "--overwrite") == 0
    assert files_of(tmp_path / "out") == resumed


def test_a_command_killed_at_its_very_end_is_finished(smears, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(
            "data_prep.place.shutil.rmtree", lambda *_, **__: (_ for _ in ()).throw(OSError)
        )
        assert run(smears) == 2
    assert (tmp_path / "out").exists() and partial_of(tmp_path / "out").exists()
    assert run(smears) == 0
    assert "was finished already" in capsys.readouterr().out
    assert not partial_of(tmp_path / "out").exists()


def test_a_command_killed_while_replacing_gives_back_what_was_there(smears, tmp_path, capsys):
    assert run(smears) == 0
    before = files_of(tmp_path / "out")
    partial = partial_of(tmp_path / "out")
    partial.mkdir()
    (partial / "request.json").write_text("{}")
    (tmp_path / "out").rename(partial / "replaced")
    assert run(smears) == 2
    assert "another request" in capsys.readouterr().err
    assert files_of(tmp_path / "out") == before


def test_a_folder_in_use_or_of_another_kind_is_left_alone(smears, tmp_path, capsys):
    fcntl = pytest.importorskip("fcntl")
    partial = partial_of(tmp_path / "out")
    partial.mkdir()
    (partial / "mine.txt").touch()
    assert run(smears) == 2
    assert "is in the way" in capsys.readouterr().err
    (partial / "mine.txt").rename(partial / ".mine")
    with (partial / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(smears) == 2
        assert "is being filled by another process" in capsys.readouterr().err


def test_help_is_fast_and_cropping_needs_no_torch(smears):
    code = (
        "import sys; from data_prep import crop\n"
        "assert not {'numpy', 'PIL', 'tqdm'} & set(sys.modules)\n"
        f"assert crop.main({['--boxes', str(smears.parent / 'boxes.json')]!r} + "
        f"['--images', {str(smears)!r}, '--out', {str(smears.parent / 'out')!r}]) == 0\n"
        "assert not {'torch', 'tensorflow', 'tensorflow_datasets', 'jax'} & set(sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=smears.parent, env=environment, check=True)


def test_tasks_are_run_in_order_with_few_of_them_ahead(tmp_path):
    tasks = [(tmp_path / f"{number:03}",) for number in range(60)]
    results = run_in_order(os.mkdir, tasks, workers=2)
    next(results)
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) <= 2 * AHEAD
    assert sum(1 for _ in results) == 59
    assert len(list(tmp_path.iterdir())) == 60
    assert list(run_in_order(divmod, [(n, 7) for n in range(50)], workers=2)) == [
        divmod(n, 7) for n in range(50)
    ]


def test_real_fields_with_several_labels_are_cropped(shared_data, tmp_path, capsys):
    images = shared_data / "pbc_boxes" / "images"
    paths = ["--boxes", images.parent / "instances.json", "--images", images]
    arguments = [str(value) for value in (*paths, "--out", tmp_path / "out", "--workers", "2")]
    assert crop.main(arguments) == 2
    assert "say with --labels which are cells" in capsys.readouterr().err
    assert crop.main([*arguments, "--labels", "WBC"]) == 0
    rows = rows_in(tmp_path / "out" / "manifest.csv")
    without = rows_in(tmp_path / "out" / "without_cells.csv")
    assert len({row["source"] for row in rows} | {row["source"] for row in without}) == 500
    assert len(rows) == 524  # 529 boxes, five of them given twice
    for row in rows[::50]:
        with Image.open(tmp_path / "out" / row["crop"]) as picture:
            longer = max(float(row["x1"]) - float(row["x0"]), float(row["y1"]) - float(row["y0"]))
            assert picture.width == picture.height == int(1.3 * longer + 0.5)
