"""Predictions that come back as they were, and figures recomputed from their files."""

import csv
import dataclasses
import os

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, top_k_accuracy_score

from bcvit_jax.errors import UserError
from bcvit_jax.predictions import Predictions, load_predictions, save_predictions
from bcvit_jax.summary import summarise_run
from tests.evaluation import make_predictions


def test_predictions_come_back_bit_for_bit(tmp_path):
    found = make_predictions()
    save_predictions(tmp_path / "fold0" / "predictions", found)
    back = load_predictions(tmp_path / "fold0" / "predictions")
    for field in dataclasses.fields(Predictions):
        before, after = getattr(found, field.name), getattr(back, field.name)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)
        else:
            assert before == after
    assert sorted(os.listdir(tmp_path / "fold0")) == ["predictions.csv", "predictions.npz"]


def test_the_csv_holds_what_the_figures_are_made_of(tmp_path):
    found = make_predictions(n=60)
    save_predictions(tmp_path / "predictions", found)
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = found.class_names
    head = ["source", "group", "fold", "label", "predicted", "correct"]
    assert list(rows[0]) == [*head, *(f"p_{name}" for name in names), "kept"]
    label = [names.index(row["label"]) for row in rows]
    predicted = [names.index(row["predicted"]) for row in rows]
    probabilities = np.array([[row[f"p_{name}"] for name in names] for row in rows], np.float32)
    np.testing.assert_array_equal(probabilities, found.probabilities)
    assert rows[3]["kept"] == "3 4"
    assert [row["correct"] for row in rows] == [
        str(int(a == b)) for a, b in zip(label, predicted, strict=True)
    ]
    summary = summarise_run([found])["pooled"]
    # A probability in float32 need not add to 1 in scikit-learn's eyes: ranks are all it needs.
    assert summary["top5"] == pytest.approx(top_k_accuracy_score(label, probabilities, k=5))
    assert summary["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(label, predicted))
    assert summary["macro_f1"] == pytest.approx(f1_score(label, predicted, average="macro"))


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    old, new = make_predictions(seed=1), make_predictions(seed=2)
    save_predictions(tmp_path / "predictions", old)

    def no_room(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", no_room)
    with pytest.raises(OSError, match="No space"):
        save_predictions(tmp_path / "predictions", new)
    back = load_predictions(tmp_path / "predictions")
    np.testing.assert_array_equal(back.probabilities, old.probabilities)
    assert sorted(os.listdir(tmp_path)) == ["predictions.csv", "predictions.npz"]


def test_unreadable_predictions_are_named(tmp_path):
    path = tmp_path / "predictions"
    with pytest.raises(UserError, match=r"no predictions at .*predictions\.npz"):
        load_predictions(path)
    save_predictions(path, make_predictions())
    whole = (tmp_path / "predictions.npz").read_bytes()
    flipped = whole[:700] + bytes([whole[700] ^ 4]) + whole[701:]
    for broken in (b"", b"not an archive", whole[: len(whole) // 2], flipped):
        (tmp_path / "predictions.npz").write_bytes(broken)
        with pytest.raises(UserError, match="not a whole file"):
            load_predictions(path)


def test_a_file_without_groups_takes_each_image_as_its_own(tmp_path):
    found = make_predictions()
    npz, _ = save_predictions(tmp_path / "predictions", found)
    with np.load(npz) as arrays:
        kept = {name: arrays[name] for name in arrays if name != "group"}
    np.savez_compressed(npz, **kept)
    back = load_predictions(tmp_path / "predictions")
    np.testing.assert_array_equal(back.group, found.source)
