"""Equations 15-17 against hand-computed values and scikit-learn."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    classification_report,
    cohen_kappa_score,
    confusion_matrix,
    multilabel_confusion_matrix,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from bcvit_jax.metrics import Counts, add, count, mistakes, rates, summarise

jitted_count = jax.jit(count, static_argnums=3)


def random_scores(n: int, c: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, c, n).astype(np.int32)
    scores = rng.normal(size=(n, c)).astype(np.float32)
    scores[np.arange(n), labels] += 1.0
    return scores, labels


def count_all(scores, labels) -> Counts:
    """Counts without padding."""
    return jitted_count(scores, labels, np.ones(len(labels), bool), scores.shape[-1])


def test_three_classes_by_hand():
    # true A: A A A B;  true B: B C;  true C: C C B A
    confusion = np.array([[3, 1, 0], [0, 1, 1], [1, 1, 2]])
    summary = summarise(Counts(confusion, 10), ["A", "B", "C"])
    assert summary["n"] == 10
    assert summary["top1"] == 0.6
    assert [row["precision"] for row in summary["classes"]] == [3 / 4, 1 / 3, 2 / 3]
    assert [row["recall"] for row in summary["classes"]] == [3 / 4, 1 / 2, 2 / 4]
    assert [row["f1"] for row in summary["classes"]] == pytest.approx([3 / 4, 2 / 5, 4 / 7])
    assert [row["n"] for row in summary["classes"]] == [4, 2, 4]
    assert summary["macro_f1"] == pytest.approx((3 / 4 + 2 / 5 + 4 / 7) / 3)
    assert summary["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2 + 2 / 4) / 3)


@pytest.mark.parametrize(("n", "c"), [(400, 10), (300, 15), (60, 7)])
def test_equals_scikit_learn(n, c):
    scores, labels = random_scores(n, c)
    counts = count_all(scores, labels)
    summary = summarise(counts, [f"class{i}" for i in range(c)])
    predicted = scores.argmax(axis=-1)
    np.testing.assert_array_equal(counts.confusion, confusion_matrix(labels, predicted))
    by_class: Any = precision_recall_fscore_support(labels, predicted)
    for row, *expected in zip(summary["classes"], *by_class, strict=True):
        assert [row["precision"], row["recall"], row["f1"], row["n"]] == pytest.approx(expected)
    macro_f1 = precision_recall_fscore_support(labels, predicted, average="macro")[2]
    assert summary["top1"] == pytest.approx(accuracy_score(labels, predicted))
    assert summary["top5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
    assert summary["macro_f1"] == pytest.approx(macro_f1)
    assert summary["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert summary["cohen_kappa"] == pytest.approx(cohen_kappa_score(labels, predicted))
    for row, ((right, wrong), _) in zip(
        summary["classes"], multilabel_confusion_matrix(labels, predicted), strict=True
    ):
        assert row["specificity"] == pytest.approx(right / (right + wrong))


def test_many_matrices_at_once_are_each_alone():
    confusions = np.random.default_rng(0).integers(0, 4, (6, 5, 4, 4))
    confusions[0, 0, 2] = 0  # a class without images
    confusions[0, 1] = 0  # no image
    together = rates(confusions)
    for place in np.ndindex(6, 5):
        for key, value in rates(confusions[place]).items():
            np.testing.assert_array_equal(together[key][place], value)


def test_a_single_class_has_neither_specificity_nor_kappa():
    summary = summarise(Counts(np.array([[4, 0], [0, 0]]), 4), "AB")
    assert (summary["top1"], summary["cohen_kappa"]) == (1.0, None)
    assert [row["specificity"] for row in summary["classes"]] == [None, None]


def test_padding_and_labels_out_of_range_are_not_counted():
    scores, labels = random_scores(24, 8)
    mask = np.arange(24) < 17
    padded = jitted_count(scores, np.where(mask, labels, 3), mask, 8)
    alone = count_all(scores[:17], labels[:17])
    np.testing.assert_array_equal(padded.confusion, alone.confusion)
    assert int(padded.top5) == int(alone.top5)
    strange = count_all(scores[:2], np.array([-1, 8]))
    assert int(strange.confusion.sum()) == 0 and int(strange.top5) == 0


def test_counts_of_batches_add_up_under_jit_and_sharding():
    scores, labels = random_scores(64, 10)
    whole = count_all(scores, labels)
    parts = [count_all(scores[i : i + 16], labels[i : i + 16]) for i in range(0, 64, 16)]
    total = parts[0]
    for part in parts[1:]:
        total = add(total, part)
    devices = jax.devices()[: 2 ** (len(jax.devices()).bit_length() - 1)]
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    spread = jax.device_put(
        (scores, labels, np.ones(64, bool)), NamedSharding(mesh, PartitionSpec("data"))
    )
    sharded = jitted_count(*spread, 10)
    for other in (total, sharded):
        np.testing.assert_array_equal(other.confusion, whole.confusion)
        assert int(other.top5) == int(whole.top5)
        assert other.confusion.dtype == jnp.int32


def test_equal_scores_go_to_the_lower_class():
    counts = count_all(np.zeros((10, 10), np.float32), np.arange(10))
    assert counts.confusion[:, 0].tolist() == [1] * 10  # class 0 for every image
    assert int(counts.top5) == 5  # of which classes 0 to 4 are the first five


@pytest.mark.parametrize("where", ["own", "all"])
def test_a_score_that_is_no_number_is_no_hit(where):
    scores = np.zeros((1, 10), np.float32)
    scores[0, 2 if where == "own" else slice(None)] = np.nan
    assert int(count_all(scores, np.array([2])).top5) == 0


@pytest.mark.parametrize(("c", "told"), [(2, False), (5, False), (6, True)])
def test_top5_is_told_only_where_it_means_something(c, told):
    scores, labels = random_scores(50, c)
    counts = count_all(scores, labels)
    summary = summarise(counts, [str(i) for i in range(c)])
    assert (summary["top5"] is not None) == told
    if not told:
        assert int(counts.top5) == 50


def test_an_absent_class_is_undefined_and_left_out_of_the_means():
    # Class B has no image, but one A is taken for it; class D is there and never predicted.
    confusion = np.array([[3, 1, 0, 0], [0, 0, 0, 0], [0, 0, 2, 0], [1, 0, 1, 0]])
    summary = summarise(Counts(confusion, 8), "ABCD")
    b, d = summary["classes"][1], summary["classes"][3]
    assert (b["precision"], b["recall"], b["f1"], b["n"]) == (None, None, None, 0)
    assert (d["precision"], d["recall"], d["f1"], d["n"]) == (None, 0.0, 0.0, 2)
    true = np.repeat(np.arange(4), confusion.sum(axis=1))
    predicted = np.concatenate([np.repeat(np.arange(4), row) for row in confusion])
    present: dict[str, Any] = {"labels": [0, 2, 3], "output_dict": True, "zero_division": 0}
    report: Any = classification_report(true, predicted, **present)
    assert summary["macro_f1"] == pytest.approx(report["macro avg"]["f1-score"])
    assert summary["balanced_accuracy"] == pytest.approx(report["macro avg"]["recall"])
    assert summary["top1"] == 5 / 8


def test_no_image_at_all_gives_no_numbers():
    summary = summarise(Counts(np.zeros((6, 6), int), 0), "ABCDEF")
    assert summary["n"] == 0
    for key in ("top1", "top5", "macro_f1", "balanced_accuracy"):
        assert summary[key] is None


def test_names_must_fit_the_matrix():
    with pytest.raises(ValueError, match="3 class names"):
        summarise(Counts(np.eye(2, dtype=int), 2), "ABC")


def test_mistakes_come_commonest_first():
    confusion = np.array([[5, 1, 0], [3, 4, 0], [0, 0, 9]])
    assert mistakes(summarise(Counts(confusion, 22), "ABC")) == [
        {"true": "B", "predicted": "A", "n": 3, "share": 3 / 7},
        {"true": "A", "predicted": "B", "n": 1, "share": 1 / 6},
    ]
