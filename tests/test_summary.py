"""The figures over folds: means, deviations, all pooled, and the table of the terminal."""

import dataclasses

import numpy as np
import pytest

from bcvit_jax.errors import UserError
from bcvit_jax.metrics import summarise
from bcvit_jax.predictions import Predictions
from bcvit_jax.summary import summarise_run, table
from tests.evaluation import make_predictions


def test_mean_and_deviation_over_folds_and_all_pooled():
    folds = [make_predictions(f"fold{i}", 20 + 5 * i, seed=i) for i in range(3)]
    summary = summarise_run(folds)
    assert [fold["fold"] for fold in summary["folds"]] == ["fold0", "fold1", "fold2"]
    for metric, spread in summary["mean"].items():
        values = [fold[metric] for fold in summary["folds"]]
        assert spread["mean"] == pytest.approx(np.mean(values))
        assert spread["sd"] == pytest.approx(np.std(values, ddof=1))
    together = dataclasses.replace(
        folds[0],
        label=np.concatenate([fold.label for fold in folds]),
        probabilities=np.concatenate([fold.probabilities for fold in folds]),
    )
    assert summary["pooled"] == summarise(together.count(), together.class_names)


def test_one_fold_has_no_deviation():
    summary = summarise_run([make_predictions()])
    assert summary["mean"]["top1"] == {"mean": summary["pooled"]["top1"], "sd": None}


def test_folds_that_do_not_belong_together_are_refused():
    one = make_predictions()
    with pytest.raises(UserError, match="at least one"):
        summarise_run([])
    with pytest.raises(UserError, match="name one twice"):
        summarise_run([one, one])
    other = dataclasses.replace(one, fold="fold1", class_names=tuple("ABCDEFG"))
    with pytest.raises(UserError, match=r"the classes of fold1 \(A, B"):
        summarise_run([one, other])


def test_the_table_of_the_terminal():
    label = np.array([0, 0, 1, 1], np.int32)
    parts = {"source": label.astype(str), "group": label.astype(str), "label": label}
    kept = np.zeros((4, 0), np.int32)
    right = np.eye(2, dtype=np.float32)
    names = ("BAS", "EBO")
    a = Predictions(
        "fold0", probabilities=right[[0, 0, 1, 1]], **parts, kept=kept, class_names=names
    )
    b = Predictions(
        "fold1", probabilities=right[[0, 1, 1, 1]], **parts, kept=kept, class_names=names
    )
    assert table(summarise_run([a])).splitlines() == [
        "class  precision  recall     F1  n",
        "──────────────────────────────────",
        "BAS        1.000   1.000  1.000  2",
        "EBO        1.000   1.000  1.000  2",
        "",
        "        top-1  top-5  macro-F1  balanced accuracy   kappa  n",
        "────────────────────────────────────────────────────────────",
        "fold0  1.0000      \N{EN DASH}    1.0000             1.0000  1.0000  4",
    ]
    rows = table(summarise_run([a, b])).splitlines()
    assert [row.split("  ")[0] for row in rows[-4:]] == ["fold0", "fold1", "mean ± sd", "pooled"]
    assert "0.8750 ± 0.1768" in rows[-2]
    assert rows[-1].split()[1] == "0.8750"
