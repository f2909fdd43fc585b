"""Every image once, predictions that come back as they were, figures recomputed from the files."""

import csv
import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, top_k_accuracy_score

from bcvit_jax import evaluate
from bcvit_jax.errors import UserError
from bcvit_jax.evaluate import (
    Predictions,
    evaluate_fold,
    load_predictions,
    save_predictions,
    summarise_run,
    table,
)
from bcvit_jax.metrics import summarise

C = 7
N = 21


@dataclasses.dataclass(frozen=True)
class Cells:
    """A data set of one fold that has no images, only their number, label and names."""

    labels: dict
    sources: dict
    groups: dict
    class_names: tuple


def make_cells(n: int = N, seed: int = 0) -> Cells:
    labels = np.random.default_rng(seed).integers(0, C, n).astype(np.int32)
    sources = np.array([f"{label}/cell_{i:03d}.png" for i, label in enumerate(labels)], dtype=str)
    groups = np.array([f"g{i // 2}" for i in range(n)], dtype=str)
    names = ("BAS", "EBO", "EOS", "LYT", "MMZ", "MON", "MYB")
    return Cells({"fold0": labels}, {"fold0": sources}, {"fold0": groups}, names)


def make_batches(cells: Cells, order, size: int = 8):
    """Padded batches in any order; an image's only pixel is its number."""
    labels = cells.labels["fold0"]
    for start in range(0, len(order), size):
        index = np.resize(np.asarray(order[start : start + size], np.int64), size)
        mask = np.arange(size) < len(order[start : start + size])
        yield {
            "image": index.astype(np.uint8).reshape(size, 1, 1, 1),
            "label": labels[np.clip(index, 0, len(labels) - 1)],
            "index": index,
            "mask": mask,
        }


def network(params, images):
    """Looks up the logits of the image's number; keeps the patches number, number + 1."""
    number = images[:, 0, 0, 0].astype(jnp.int32)
    return params[number], number[:, None] + jnp.arange(2)[None, :]


def make_logits(cells: Cells, seed: int = 1) -> np.ndarray:
    labels = cells.labels["fold0"]
    logits = np.random.default_rng(seed).normal(size=(len(labels), C)).astype(np.float32)
    logits[np.arange(len(labels)), labels] += 1
    return logits


def make_predictions(fold: str = "fold0", n: int = N, seed: int = 1) -> Predictions:
    cells = make_cells(n, seed)
    params = jnp.asarray(make_logits(cells, seed))
    found, _ = evaluate_fold(network, params, cells, "fold0", make_batches(cells, range(n)))
    return dataclasses.replace(found, fold=fold)


@pytest.mark.parametrize("order", [range(N), range(N - 1, -1, -1)])
@pytest.mark.parametrize("size", [1, 8, 32])
def test_every_image_has_its_own_prediction_in_the_order_of_the_fold(order, size):
    cells = make_cells()
    logits = make_logits(cells)
    batches = make_batches(cells, list(order), size)
    found, counts = evaluate_fold(jax.jit(network), jnp.asarray(logits), cells, "fold0", batches)
    expected = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-5)
    assert found.probabilities.dtype == np.float32
    np.testing.assert_array_equal(found.predicted, logits.argmax(axis=-1))
    np.testing.assert_array_equal(found.label, cells.labels["fold0"])
    np.testing.assert_array_equal(found.source, cells.sources["fold0"])
    np.testing.assert_array_equal(found.group, cells.groups["fold0"])
    np.testing.assert_array_equal(found.kept, np.arange(N)[:, None] + np.arange(2))
    np.testing.assert_array_equal(counts.confusion, found.count().confusion)
    assert counts.confusion.sum() == N and counts.top5 == found.count().top5


def test_bfloat16_logits_become_float32_probabilities():
    cells = make_cells()
    logits = jnp.asarray(make_logits(cells), jnp.bfloat16)
    found, _ = evaluate_fold(network, logits, cells, "fold0", make_batches(cells, range(N)))
    np.testing.assert_allclose(found.probabilities.sum(axis=-1), 1, rtol=1e-6)


def test_a_network_that_keeps_nothing():
    cells = make_cells()

    def plain(params, images):
        logits, kept = network(params, images)
        return logits, kept[:, :0]

    batches = make_batches(cells, range(N))
    found, _ = evaluate_fold(plain, jnp.asarray(make_logits(cells)), cells, "fold0", batches)
    assert found.kept.shape == (N, 0)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (range(N - 1), "left out 1 and repeated 0 of 21"),
        ([*range(N), 4], "left out 0 and repeated 1 of 21"),
        ([], "left out 21"),
        ([*range(N), N], "which holds 21"),
    ],
)
def test_a_missing_or_doubled_image_is_an_error(order, message):
    cells = make_cells()
    params = jnp.asarray(make_logits(cells))
    with pytest.raises(RuntimeError, match=message):
        evaluate_fold(network, params, cells, "fold0", make_batches(cells, list(order)))


def test_a_label_of_another_data_set_is_an_error():
    cells = make_cells()
    other = dataclasses.replace(cells, labels={"fold0": (cells.labels["fold0"] + 1) % C})
    with pytest.raises(RuntimeError, match="label that differs"):
        evaluate_fold(
            network, jnp.zeros((N, C)), cells, "fold0", make_batches(other, list(range(N)))
        )


def test_broken_weights_name_an_image():
    cells = make_cells()
    logits = make_logits(cells)
    logits[[5, 9], 2] = np.nan
    with pytest.raises(FloatingPointError, match=r"2 of 21 images \(first: ./cell_005.png"):
        evaluate_fold(
            network, jnp.asarray(logits), cells, "fold0", make_batches(cells, list(range(N)))
        )


def test_the_next_batch_is_under_way_before_the_last_is_fetched(monkeypatch):
    events = []
    fetch = evaluate.fetch

    def step(params, images):
        events.append("step")
        return network(params, images)

    def watched(array):
        events.append("fetch")
        return fetch(array)

    monkeypatch.setattr(evaluate, "fetch", watched)
    cells = make_cells()
    params = jnp.asarray(make_logits(cells))
    evaluate_fold(step, params, cells, "fold0", make_batches(cells, range(N)))
    both = ["fetch", "fetch"]
    assert events == ["step", "step", *both, "step", *both, *both, *both]  # the last: the counts


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
