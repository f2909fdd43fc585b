"""The detect command as a person meets it: trained, judged, used, killed, refused."""

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file

from data_prep import detect
from data_prep.boxes import read_boxes
from data_prep.detect import SMALL, split_fields
from data_prep.detector import detect as find_boxes
from data_prep.detector import load_detector, read_picture
from data_prep.errors import BuildError
from data_prep.fields import FieldSet
from tests.smears import ROOT, TINY, edit_json, killed, ran, tiny_torch, write_smears

BRIEF = ("--weights", "none", "--epochs", "3", "--batch-size", "2", "--size", "32")


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    with tiny_torch(monkeypatch):
        yield


@pytest.fixture
def smears(tmp_path) -> FieldSet:
    """Six fields in images/, their boxes in boxes.json."""
    return write_smears(tmp_path / "images", 6)


@pytest.fixture
def tiny_command(monkeypatch):
    """The command knows the tiny network, too."""
    monkeypatch.setattr(detect, "SMALL", TINY)


def run(folder: Path, command: str | Path, *more: str | Path) -> int:
    """A sub-command on the smears of the folder."""
    arguments = ["--images", folder / "images", "--out", folder / "out"]
    if command != "predict":
        arguments += ["--boxes", folder / "boxes.json"]
    return detect.main([*map(str, (command, *arguments, *more))])


def refused(capsys, *arguments) -> str:
    """The sentence of a command that ends with 2."""
    capsys.readouterr()
    assert run(*arguments) == 2
    told = capsys.readouterr()
    assert "Traceback" not in told.err and told.err.count("\n") == 1, told.err
    return told.err


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_train_evaluate_predict(smears, tmp_path, tiny_command, capsys):
    small = ("--architecture", TINY, "--weights", "none", "--epochs", "10", "--batch-size", "2")
    more = ("--hold-out", "0.34", "--learning-rate", "0.003")
    assert run(tmp_path, "train", *small, *more) == 0
    out = tmp_path / "out"
    told = capsys.readouterr().out
    assert "Training on 4 images" in told and "epoch 10 of 10: loss" in told
    log = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in log] == list(range(1, 11))
    assert log[-1]["loss"] < log[0]["loss"]
    card = json.loads((out / "detector.json").read_text())
    assert (card["images"], card["labels"], card["weights"]) == (4, ["WBC"], "none")
    assert card["recipe"]["epochs"] == 10 and card["versions"]["torch"] == torch.__version__
    assert not (out / "training.pt").exists()
    held_out = read_boxes(out / "held_out.json", tmp_path / "images")
    report = json.loads((out / "evaluation.json").read_text())
    assert report["images"] == len(held_out.fields) == 2 and report["detector"] == card["id"]
    assert set(report["average_precision"]) == {"all", "WBC"}
    total = sum(len(item.boxes) for item in held_out.fields)
    assert report["cells"]["found"] + report["cells"]["missed"] == total

    arguments = ("--detector", out, "--out", tmp_path / "found.json", "--min-score", "0.2")
    assert run(tmp_path, "predict", *arguments, "--overlays", tmp_path / "drawn") == 0
    found = read_boxes(tmp_path / "found.json", tmp_path / "images")
    assert found.info["detector"] == card["id"] and len(found.fields) == 6
    (expected,) = find_boxes(load_detector(out), [read_picture(tmp_path / "images/03.png")])
    sure = [(box.corners, box.score) for box in expected if (box.score or 0) >= 0.2]
    assert [(box.corners, box.score) for box in found.fields[3].boxes] == sure
    assert sorted(contents(tmp_path / "drawn")) == [f"0{number}.png.png" for number in range(6)]

    assert run(tmp_path, "evaluate", "--detector", out, "--out", tmp_path / "judged") == 0
    table = capsys.readouterr().out
    assert "label     AP   AP50   AP75  AR100" in table and "boxes found" in table
    arguments = ("--predictions", tmp_path / "judged/predictions.json", "--out", tmp_path / "again")
    assert run(tmp_path, "evaluate", *arguments) == 0
    reports = [
        json.loads((tmp_path / n / "evaluation.json").read_text()) for n in ("judged", "again")
    ]
    assert reports[0] == reports[1]
    # Found on all six fields, it is judged on the two that were held out.
    held = ("--boxes", out / "held_out.json", "--detector", out, "--out", tmp_path / "held")
    assert run(tmp_path, "evaluate", *held) == 0
    again = json.loads((tmp_path / "held/evaluation.json").read_text())
    assert again["average_precision"] == report["average_precision"]


def test_a_training_that_was_killed_gives_the_same_detector(smears, tmp_path):
    arguments = ("--images", tmp_path / "images", "--boxes", tmp_path / "boxes.json", *BRIEF)
    arguments = ("train", *arguments, "--architecture", SMALL, "--epochs", "2")
    # Every epoch renames the state, then the log: it dies when the second state is about to be.
    killed(3, "before", "data_prep.detect", *arguments, "--out", tmp_path / "killed")
    left = sorted(path.name for path in (tmp_path / "killed").iterdir() if path.name[0] != ".")
    assert left == ["training.jsonl", "training.pt"]
    ran("data_prep.detect", *arguments, "--out", tmp_path / "killed")
    assert detect.main([*map(str, arguments), "--out", str(tmp_path / "whole")]) == 0
    one, other = (load_file(tmp_path / n / "detector.safetensors") for n in ("killed", "whole"))
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)
    cards = [(tmp_path / n / "detector.json").read_text() for n in ("killed", "whole")]
    assert cards[0] == cards[1]
    logs = [(tmp_path / n / "training.jsonl").read_text() for n in ("killed", "whole")]
    rows = [[json.loads(line) for line in log.splitlines()] for log in logs]
    assert [row["epoch"] for row in rows[0]] == [1, 2]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]


def changed_boxes(folder: Path, **row) -> Path:
    """A COCO file like the truth, its first annotation changed."""
    content = json.loads((folder / "boxes.json").read_text())
    content["annotations"][0].update(row)
    (folder / "changed.json").write_text(json.dumps(content))
    return folder / "changed.json"


def test_bad_boxes_are_refused(smears, tmp_path, capsys):
    for bbox in ([float("nan"), 1, 5, 5], [1, 2, 3], ["1", 2, 3, 4], [1, 2, float("inf"), 4]):
        bad = changed_boxes(tmp_path, bbox=bbox)
        for more in (("train", "--boxes", bad, *BRIEF), ("evaluate", "--predictions", bad)):
            capsys.readouterr()
            assert run(tmp_path, *more) == 2
            told = capsys.readouterr().err
            assert "cannot be used, in one place" in told and "Traceback" not in told
    assert not (tmp_path / "out").exists()


def test_missing_and_broken_images_are_refused(smears, tmp_path, tiny_command, capsys):
    whole = (tmp_path / "images/03.png").read_bytes()
    (tmp_path / "images/03.png").unlink()
    assert run(tmp_path, "train", *BRIEF) == 2
    assert "03.png is not in" in capsys.readouterr().err
    Image.new("RGB", (60, 50)).save(tmp_path / "images/03.png")
    assert run(tmp_path, "train", *BRIEF) == 2
    assert "03.png has 60 x 50 pixels, its boxes 128 x 96" in capsys.readouterr().err
    Image.open(io.BytesIO(whole)).save(photograph := io.BytesIO(), "JPEG")
    (tmp_path / "images/03.png").write_bytes(photograph.getvalue()[:-500])  # its head is whole
    told = refused(capsys, tmp_path, "train", *BRIEF, "--architecture", TINY)
    assert "03.png cannot be decoded" in told
    assert not (tmp_path / "out/detector.json").exists()
    for place in ("nowhere", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        arguments = ("--images", tmp_path / place, "--detector", tmp_path / "x")
        arguments = (*arguments, "--out", tmp_path / "found.json")
        told = refused(capsys, tmp_path, "predict", *arguments)
        assert "is not a folder" in told or "holds no PNG" in told


def test_a_pickle_with_code_is_refused_by_the_command(smears, tmp_path, capsys):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"model": Code()}))
    told = refused(capsys, tmp_path, "train", "--weights", tmp_path / "weights.pth")
    assert "is a pickle that holds more than weights" in told
    assert not (tmp_path / "executed").exists() and not (tmp_path / "out").exists()


def test_without_a_network_nothing_is_left_behind(smears, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", fail)
    told = refused(capsys, tmp_path, "train", "--architecture", SMALL)
    assert "cannot be downloaded" in told and "or none to train from nothing" in told
    assert not (tmp_path / "out").exists()


@pytest.fixture
def trained(smears, tmp_path, tiny_command, capsys) -> Path:
    """A detector in out/."""
    more = ("--architecture", TINY, "--weights", "none", "--epochs", "1", "--batch-size", "6")
    assert run(tmp_path, "train", *more) == 0
    capsys.readouterr()
    return tmp_path / "out"


def test_nothing_is_overwritten_unasked(trained, tmp_path, capsys):
    before = contents(trained)
    again = ("train", "--architecture", TINY, *BRIEF)
    assert "detector.json exists: give --overwrite" in refused(capsys, tmp_path, *again)
    predict = ("predict", "--detector", trained)
    found, drawn = tmp_path / "found.json", tmp_path / "images"
    found.write_text("mine")
    told = refused(capsys, tmp_path, *predict, "--out", found)
    assert "found.json exists: give --overwrite" in told and found.read_text() == "mine"
    told = refused(capsys, tmp_path, *predict, "--out", tmp_path / "x.json", "--overlays", drawn)
    assert "images exists" in told
    told = refused(capsys, tmp_path, *predict, "--out", tmp_path / "images", "--overwrite")
    assert "is a folder" in told
    told = refused(capsys, tmp_path, *predict, "--out", found / "x.json")
    assert "found.json is a file" in told
    for name in ("evaluation.json", "predictions.json", "worst.png"):
        (tmp_path / "judged").mkdir(exist_ok=True)
        (tmp_path / "judged" / name).write_text("mine")
        more = ("--detector", trained, "--out", tmp_path / "judged")
        assert f"{name} exists" in refused(capsys, tmp_path, "evaluate", *more)
        assert contents(tmp_path / "judged") == {name: b"mine"}
        (tmp_path / "judged" / name).unlink()
    assert contents(trained) == before
    assert run(tmp_path, *again, "--overwrite") == 0
    assert contents(trained)["detector.json"] != before["detector.json"]


def test_held_out_boxes_of_another_run_are_kept(smears, tmp_path, tiny_command, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/held_out.json").write_text("mine")
    more = ("--architecture", TINY, *BRIEF, "--hold-out", "0.34")
    assert "would be overwritten" in refused(capsys, tmp_path, "train", *more)
    assert contents(tmp_path / "out") == {"held_out.json": b"mine"}


def test_a_detector_that_was_changed_or_is_another_is_refused(trained, tmp_path, capsys):
    evaluate = ("evaluate", "--detector", trained, "--out", tmp_path / "judged")
    content = json.loads((tmp_path / "boxes.json").read_text())
    content["categories"][0]["name"] = "leukocyte"
    (tmp_path / "other.json").write_text(json.dumps(content))
    told = refused(capsys, tmp_path, *evaluate, "--boxes", tmp_path / "other.json")
    assert "finds WBC, but the true boxes are labelled leukocyte" in told
    told = refused(capsys, tmp_path, *evaluate, "--labels", "RBC")
    assert "--labels names RBC, but the boxes are labelled WBC" in told
    weights = trained / "detector.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    told = refused(capsys, tmp_path, *evaluate)
    assert "is missing or not the file that detector.json was written with" in told
    edit_json(trained / "detector.json", architecture="resnet")
    assert '"resnet" is unknown here' in refused(capsys, tmp_path, *evaluate)
    assert "detector.json is not there" in refused(
        capsys, tmp_path, "evaluate", "--detector", tmp_path / "images"
    )
    assert not (tmp_path / "judged").exists()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("--epochs", "0"), "--epochs must be at least 1"),
        (("--batch-size", "1"), "--batch-size must be at least 2"),
        (("--seed", "-1"), "--seed must be at least 0"),
        (("--hold-out", "1"), "--hold-out is 1.0, but must be from 0 to 0.99"),
        (("--hold-out", "nan"), "--hold-out is nan"),
        (("--hold-out", "0.1"), "keeps 0 of 6 images aside, without a box"),
        (("--learning-rate", "inf"), "--learning-rate is inf"),
        (("--jitter", "-1"), "--jitter is -1.0"),
        (("--labels", ","), "--labels names no label"),
        (("--size", "8"), "The size is 8, but must be from 32"),
        (("--weights", "IMAGENET"), "is none of fasterrcnn_mobilenet"),
        (("--boxes", "nowhere.json"), "nowhere.json is not there"),
    ],
)
def test_options_of_training_are_judged(smears, tmp_path, capsys, more, why):
    assert why in refused(capsys, tmp_path, "train", "--architecture", SMALL, *BRIEF, *more)
    assert not (tmp_path / "out").exists()


def test_the_held_out_part_is_chosen_by_seed_and_share(smears):
    train, held_out = split_fields(smears, 0.34, 0)
    again = split_fields(smears, 0.34, 0)
    assert (train, held_out) == again and len(held_out.fields) == 2
    images = [item.image for part in (train, held_out) for item in part.fields]
    assert sorted(images) == [item.image for item in smears.fields]
    others = [split_fields(smears, 0.34, seed)[1] for seed in range(1, 9)]
    assert any(other != held_out for other in others)
    assert split_fields(smears, 0.0, 0)[1].fields == ()


def test_help_needs_no_torch_and_its_lack_is_a_sentence(smears, tmp_path):
    code = (
        "import importlib.util, sys;"
        "sys.modules.update(torch=None, torchvision=None);"
        "find = importlib.util.find_spec;"
        "importlib.util.find_spec = lambda n, *a: None if n == 'torch' else find(n, *a);"
        "from data_prep import detect, review;"
        "command = dict(detect=detect, review=review)[sys.argv[1]];"
        "sys.exit(command.main(sys.argv[2:]))"
    )

    def ended(*arguments: str | Path) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)

    for arguments in (("detect", "train", "--help"), ("review", "--help")):
        assert ended(*arguments).returncode == 0
    arguments = ("--images", tmp_path / "images", "--detector", tmp_path, "--out", tmp_path / "x")
    told = ended("detect", "predict", *arguments)
    assert told.returncode == 2
    assert told.stderr.startswith("torch is not installed: pip install -e '.[data-prep]'")


def test_hidden_files_are_no_images(tmp_path):
    for name in ("b.PNG", "a/c.jpg", ".hidden.png", ".round01.partial/d.png", "e.txt", "f.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert list(detect.find_image_files(tmp_path)) == ["a/c.jpg", "b.PNG"]
    with pytest.raises(BuildError, match="is not a folder"):
        list(detect.find_image_files(tmp_path / "e.txt"))
