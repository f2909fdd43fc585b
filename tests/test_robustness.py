"""Accuracy under shifts: the run's own figures where nothing is changed, gone on with, refused."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bcvit_jax import robustness
from bcvit_jax.curves import figures, summarise
from bcvit_jax.errors import UserError
from bcvit_jax.experiment import run
from bcvit_jax.shifts import SHIFTS
from bcvit_jax.signals import Signals
from bcvit_jax.trained import choose
from tests.tiny_run import train

FEW = {name: SHIFTS[name] for name in ("stain_strength", "magnification", "position")}


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory) -> Path:
    """The folder of a small run that saw other magnifications, with one finished fold."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    sizes = {"model__depth": 1, "data__centre_crop": 0.9, "data__cache_size": 40}
    zoom = "(0.7, 1.4)"
    return train(workdir, tiny_dataset, epochs=1, data__augment__zoom=zoom, **sizes)


@pytest.fixture
def few(monkeypatch):
    """Three of the shifts, so that a test is short."""
    for module in ("robustness", "curves"):
        monkeypatch.setattr(f"bcvit_jax.{module}.SHIFTS", FEW)


def test_measures_the_run_and_goes_on_where_it_was(trained, few, capsys, monkeypatch):
    assert robustness.main(["--workdir", str(trained)]) == 0
    shown = capsys.readouterr().out
    assert "fold0  position" in shown and "worst at a stated strength" in shown
    content = json.loads((trained / "robustness.json").read_text())
    report = json.loads((trained / "report.json").read_text())["pooled"]
    assert content["clean"]["top1"] == pytest.approx(report["top1"])
    assert content["clean"]["balanced_accuracy"] == pytest.approx(report["balanced_accuracy"])
    assert content["finished"] and content["images"] == 12
    assert content["augment"] == {"zoom": [0.7, 1.4]}
    assert "worst at a strength beyond all training" in shown
    for kind, worst in (("stated", "worst"), ("untrained", "worst_untrained")):
        found = [
            point["balanced_accuracy"]
            for curve in content["shifts"].values()
            for point in curve["points"]
            if point[kind]
        ]
        assert len(found) == 5 and content[worst]["balanced_accuracy"] == min(found)
        assert content[f"mean_at_{kind}"] == pytest.approx(np.mean(found))
    assert (trained / "robustness.png").read_bytes().startswith(b"\x89PNG")
    with open(trained / "robustness.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(shift.grid) + 1 for shift in FEW.values())
    assert {row["images"] for row in rows} == {"12"}

    del content["folds"]["fold0"]["correct"]["position"]
    (trained / "robustness.json").write_text(json.dumps(content))
    asked = []
    correct = robustness.Subject.correct
    monkeypatch.setattr(
        robustness.Subject,
        "correct",
        lambda self, name, threads: asked.append(name) or correct(self, name, threads),
    )
    assert robustness.main(["--workdir", str(trained)]) == 0
    assert asked == ["position"]
    assert json.loads((trained / "robustness.json").read_text())["shifts"] == content["shifts"]
    made_of = content["made_of"]
    assert robustness._earlier(trained / "robustness.json", made_of).keys() == {"fold0"}
    assert robustness._earlier(trained / "robustness.json", made_of | {"limit": 5}) == {}


def test_a_limit_takes_the_classes_in_turn_and_the_same_images_every_time():
    labels = np.repeat([0, 1, 2], [50, 20, 3])
    chosen = choose(labels, 12)
    assert np.bincount(labels[chosen]).tolist() == [5, 4, 3]
    np.testing.assert_array_equal(chosen, choose(labels, 12))
    np.testing.assert_array_equal(choose(labels, 0), np.arange(73))


def test_figures_are_of_all_images_and_of_the_classes_that_have_some():
    found = figures([8, 1, 0], [8, 2, 0])
    assert found == {"top1": 0.9, "balanced_accuracy": 0.75}


def test_folds_are_pooled(monkeypatch):
    monkeypatch.setattr("bcvit_jax.curves.SHIFTS", {"blur": SHIFTS["blur"]})
    count = len(SHIFTS["blur"].grid)
    one = {"images": [2, 2], "correct": {"clean": [[2, 2]], "blur": [[1, 0]] * count}}
    other = {"images": [6, 2], "correct": {"clean": [[3, 2]], "blur": [[5, 2]] * count}}
    summary = summarise({"fold0": one, "fold1": other})
    assert summary["clean"] == {"top1": 9 / 12, "balanced_accuracy": (5 / 8 + 1) / 2}
    assert summary["worst"] == {
        "shift": "blur",
        "strength": 1.0,
        "top1": 8 / 12,
        "balanced_accuracy": (6 / 8 + 2 / 4) / 2,
    }
    strengths = [point["strength"] for point in summary["shifts"]["blur"]["points"]]
    assert strengths == [0.0, *SHIFTS["blur"].grid]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--limit", "-1"], "--limit is -1; it must be 0 or more"),
        (["--threads", "0"], "--threads is 0; it must be 1 or more"),
        ([], "no config.json: it is no finished run"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(flags, words, tmp_path, capsys):
    assert robustness.main(["--workdir", str(tmp_path), *flags]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1


def test_another_data_set_is_refused(trained, tmp_path, capsys):
    copy = shutil.copytree(trained, tmp_path / "run")
    origin = json.loads((copy / "provenance.json").read_text())
    (copy / "provenance.json").write_text(json.dumps(origin | {"dataset_fingerprint": "0"}))
    assert robustness.main(["--workdir", str(copy)]) == 2
    assert "was trained on another data set" in capsys.readouterr().err


def test_a_run_whose_pictures_are_not_made_any_more_is_refused(trained, few, capsys, monkeypatch):
    """Its network saw others; a run goes on for no further fold either."""
    origin = json.loads((trained / "provenance.json").read_text())
    assert origin["preprocessing_form"] == ""
    monkeypatch.setattr("bcvit_jax.normalisation.Normalisation.__str__", lambda self: "stain9")
    assert robustness.main(["--workdir", str(trained)]) == 2
    assert "trained with another form of normalise_stain" in capsys.readouterr().err
    config = json.loads((trained / "config.json").read_text())
    with pytest.raises(UserError, match="another form"):
        run(config | {"folds": [0, 1]}, trained, Signals())
    run(config, trained, Signals())  # which is finished
