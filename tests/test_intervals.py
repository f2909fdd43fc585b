"""Intervals hold the true value as often as they say, with grouped images too."""

from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, f1_score

from bcvit_jax import intervals
from bcvit_jax.metrics import rates

SIMULATIONS = 400
BY_CHANCE = 3 * np.sqrt(0.95 * 0.05 / SIMULATIONS)  # three standard errors of a coverage of 95 %


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 20), (7, 10), (81, 263), (998, 1000)])
def test_wilson_is_that_of_scipy(hits, n):
    expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert intervals.wilson(hits / n, n) == pytest.approx([expected.low, expected.high], abs=1e-12)


def test_the_example_of_a_textbook():
    # Newcombe, Stat. Med. 17, 1998, table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert intervals.wilson(hits / n, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [20, 100, 500])
def test_wilson_covers_exactly_counted(n):
    hits = np.arange(n + 1)
    low, high = np.array([intervals.wilson(h / n, n) for h in hits]).T
    shares = np.linspace(0.02, 0.98, 97)
    covered = [stats.binom.pmf(hits, n, p)[(low <= p) & (p <= high)].sum() for p in shares]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)
    assert min(covered) > 0.83  # the known dips of every interval of a proportion near 0 and 1


def test_nothing_to_tell_and_nothing_to_tell_apart():
    none = np.zeros(0, bool)
    assert intervals.wilson(0.0, 0) is None
    assert intervals.proportion(none, none.astype(str)) is None
    assert intervals.f1(np.zeros(3, bool), np.zeros(3, bool), np.arange(3)) is None
    assert intervals.percentiles(np.full(9, np.nan)) is None
    assert intervals.percentiles(np.full(9, 0.5)) is None
    low, high = intervals.proportion(np.ones(40, bool), np.zeros(40)) or (0, 0)
    assert (low, high) == (pytest.approx(0.2065, abs=1e-4), 1.0)  # forty images of one donor: one


def test_groups_of_one_are_images_and_copies_add_nothing():
    hit = np.random.default_rng(0).random(200) < 0.8
    alone = intervals.proportion(hit, np.arange(200))
    assert alone == intervals.wilson(hit.mean(), 200)
    copied = intervals.proportion(np.tile(hit, 5), np.tile(np.arange(200), 5))
    assert copied == pytest.approx(alone, abs=2e-3)


def grouped(rng: np.random.Generator, groups: int = 60, each: int = 12, share: float = 0.8):
    """Images of groups that are more alike than images of different ones (correlation 0.2)."""
    of_group = rng.beta(4 * share, 4 * (1 - share), groups)
    return rng.random((groups, each)) < of_group[:, None], np.repeat(np.arange(groups), each)


def test_a_proportion_of_grouped_images_is_covered_and_plain_wilson_fails():
    rng, found, plain = np.random.default_rng(1), [], []
    for _ in range(SIMULATIONS):
        hit, group = grouped(rng)
        for bounds, kept in (
            (intervals.proportion(hit.ravel(), group), found),
            (intervals.wilson(hit.mean(), hit.size), plain),
        ):
            low, high = bounds or (1, 0)
            kept.append(low <= 0.8 <= high)
    assert np.mean(found) == pytest.approx(0.95, abs=BY_CHANCE)
    assert np.mean(plain) < 0.8


def test_f1_is_covered():
    rng, covered = np.random.default_rng(2), []
    p = np.array([0.12, 0.03, 0.05, 0.80])  # both, true only, called only, neither
    expected = 2 * p[0] / (2 * p[0] + p[1] + p[2])
    for _ in range(SIMULATIONS):
        kind = rng.choice(4, 300, p=p)
        low, high = intervals.f1(kind < 2, (kind == 0) | (kind == 2), np.arange(300)) or (1, 0)
        covered.append(low <= expected <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=BY_CHANCE)


def draw(rng: np.random.Generator, groups: int, each: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions [groups, each] of three classes; some groups are harder."""
    label = rng.choice(3, (groups, each), p=(0.5, 0.3, 0.2))
    right = rng.random((groups, each)) < rng.beta(3.0, 1.0, groups)[:, None]
    other = (label + rng.integers(1, 3, label.shape)) % 3
    return label, np.where(right, label, other)


def confusions(label: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """One matrix a row."""
    one_hot = np.eye(3, dtype=int)
    return np.einsum("gni,gnj->gij", one_hot[label], one_hot[predicted])


def test_the_bootstrap_over_groups_covers_where_one_over_images_does_not():
    rng = np.random.default_rng(3)
    truth = rates(confusions(*draw(rng, 400_000)).sum(axis=0))
    keys = ("top1", "macro_f1", "balanced_accuracy", "cohen_kappa")
    over = {"groups": {key: [] for key in keys}, "images": {key: [] for key in keys}}
    for simulation in range(SIMULATIONS):
        label, predicted = draw(rng, 100)
        parts = {"groups": confusions(label, predicted)}
        if simulation < 100:
            parts["images"] = confusions(label.reshape(-1, 1), predicted.reshape(-1, 1))
        for kind, part in parts.items():
            figures = rates(intervals.resample(part, 300, simulation))
            for key in keys:
                low, high = intervals.percentiles(figures[key]) or (1, 0)
                over[kind][key].append(low <= truth[key] <= high)
    for key in keys:
        # A percentile interval of 100 groups is known to be a little narrow.
        assert 0.95 - BY_CHANCE - 0.01 <= np.mean(over["groups"][key]) <= 0.95 + BY_CHANCE
        assert np.mean(over["images"][key]) < 0.9


def test_resampling_is_drawing_the_images_of_whole_groups():
    """Against the plain way, with scikit-learn: draw groups, put their images together, compute."""
    rng = np.random.default_rng(4)
    label, predicted = draw(rng, 40)
    figures = rates(intervals.resample(confusions(label, predicted), 2000))
    plain = {"macro_f1": [], "balanced_accuracy": [], "cohen_kappa": []}
    for _ in range(300):
        chosen = rng.integers(0, 40, 40)
        true, said = label[chosen].ravel(), predicted[chosen].ravel()
        plain["macro_f1"].append(f1_score(true, said, average="macro"))
        plain["balanced_accuracy"].append(balanced_accuracy_score(true, said))
        plain["cohen_kappa"].append(cohen_kappa_score(true, said))
    for key, values in plain.items():
        same: Any = stats.ks_2samp(figures[key], values)
        assert same.pvalue > 0.01, key


def test_resampling_keeps_the_number_of_groups_and_the_seed():
    counts = np.random.default_rng(5).integers(0, 3, (50, 4))
    counts[:, 3] = 1
    sums = intervals.resample(counts, 300)
    assert sums.shape == (300, 4) and (sums[:, 3] == 50).all()
    np.testing.assert_array_equal(sums, intervals.resample(counts, 300))
    assert not np.array_equal(sums, intervals.resample(counts, 300, seed=1))
    assert (intervals.resample(np.zeros((0, 4), int), 5) == 0).all()
