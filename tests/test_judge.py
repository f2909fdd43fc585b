"""The command that judges: the truth is perfect, what is not asked for is not counted."""

import json
from pathlib import Path

import pytest

from data_prep import boxes, detect
from data_prep.coco import coco_from_fields
from data_prep.fields import FieldSet
from data_prep.files import write_json
from tests.smears import write_smears


@pytest.fixture
def smears(tmp_path) -> FieldSet:
    """Four fields in images/, their boxes in boxes.json."""
    return write_smears(tmp_path / "images", 4)


def evaluate(folder: Path, predictions: Path) -> int:
    arguments = ["evaluate", "--images", folder / "images", "--boxes", folder / "boxes.json"]
    arguments += ["--predictions", predictions, "--out", folder / "out"]
    return detect.main([*map(str, arguments)])


def test_truth_as_predictions_is_perfect(smears, tmp_path, capsys):
    assert evaluate(tmp_path, tmp_path / "boxes.json") == 0
    assert "0 false; see" in capsys.readouterr().out
    report = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert set(report["average_precision"]["all"].values()) == {1.0}
    assert report["cells"]["missed"] == report["cells"]["false"] == 0 and report["worst"] == []
    assert not (tmp_path / "out/worst.png").exists()


@pytest.mark.parametrize("source", ["bccd", "pbc_boxes"])
def test_truth_as_predictions_is_perfect_on_real_boxes(shared_data, source, tmp_path):
    images = shared_data / source / ("JPEGImages" if source == "bccd" else "images")
    truth = shared_data / source / ("Annotations" if source == "bccd" else "instances.json")
    as_coco = tmp_path / "boxes.json"
    assert boxes.main(["--from", str(truth), "--to", "coco", "--out", str(as_coco)]) == 0
    arguments = ["evaluate", "--images", images, "--boxes", truth, "--predictions", as_coco]
    assert detect.main([*map(str, arguments), "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert len(report["average_precision"]) == 4
    for figures in report["average_precision"].values():
        assert figures["AP"] == pytest.approx(1.0, abs=1e-12)


def test_labels_that_are_not_judged_are_not_false(smears, tmp_path):
    content = coco_from_fields(smears)
    content["categories"].append({"id": 9, "name": "RBC"})
    rows = content["annotations"]
    content["annotations"] = [*rows, {**rows[0], "id": 99, "category_id": 9}]
    write_json(tmp_path / "found.json", content)
    assert evaluate(tmp_path, tmp_path / "found.json") == 0
    report = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert report["cells"]["false"] == 0
