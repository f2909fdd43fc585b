"""McNemar and paired intervals against sums written out, and against what they promise."""

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from bcvit_jax.paired import difference, drawn_figures, mcnemar, summary, verdict


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 1), (3, 3), (2, 9), (11, 4), (40, 71)])
def test_mcnemar_is_the_sum_of_a_binomial(only_first, only_second):
    first = np.repeat([True, False, True, False], [only_first, only_second, 30, 7])
    second = np.repeat([False, True, True, False], [only_first, only_second, 30, 7])
    n, few = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, i) for i in range(few + 1)) / 2**n
    found = mcnemar(first, second)
    assert found[:2] == (only_first, only_second)
    assert found.p == pytest.approx(min(1.0, 2 * tail))


def test_networks_that_agree_have_nothing_to_test():
    right = np.array([True, False, True])
    assert mcnemar(right, right) == (0, 0, 1.0)


def make_answers(runs: int, n: int = 200, classes: int = 4, seed: int = 0):
    rng = np.random.default_rng(seed)
    label = np.arange(n) % classes
    said = np.where(rng.random((runs, n)) < 0.7, label, rng.integers(0, classes, (runs, n)))
    return label, said


def test_figures_are_the_means_of_the_runs():
    label, said = make_answers(3)
    found = summary(label, said, np.arange(200), 4)
    top1 = [accuracy_score(label, run) for run in said]
    f1 = [f1_score(label, run, average="macro") for run in said]
    assert found["top1"]["runs"] == pytest.approx(top1)
    assert found["top1"]["value"] == pytest.approx(np.mean(top1))
    assert found["macro_f1"]["value"] == pytest.approx(np.mean(f1))
    low, high = found["macro_f1"]["interval"]
    assert low < np.mean(f1) < high


def test_resamples_are_those_of_images_or_of_groups_drawn_with_replacement():
    """Spread of an accuracy: √(p(1−p)/n) for images, and for pairs of twins that of n/2."""
    label, said = make_answers(1)
    p, n = float((label == said[0]).mean()), 200
    alone = drawn_figures(label, said, np.arange(n), 4)["top1"][0]
    assert alone.std() == pytest.approx(math.sqrt(p * (1 - p) / n), rel=0.06)
    twice, groups = np.repeat(said, 2, axis=1), np.repeat(np.arange(n), 2)
    twins = drawn_figures(np.repeat(label, 2), twice, groups, 4)["top1"][0]
    assert twins.std() == pytest.approx(math.sqrt(p * (1 - p) / n), rel=0.06)
    assert twins.mean() == pytest.approx(p, abs=0.01)


def test_pairing_takes_away_what_both_networks_share():
    label, said = make_answers(1)
    other = said.copy()
    other[:, :10] = label[:10]
    apart = summary(label, said, np.arange(200), 4)["top1"]["interval"]
    found = difference(label, other, said, np.arange(200), 4)["top1"]
    assert found["value"] == pytest.approx((other == label).mean() - (said == label).mean())
    assert found["interval"][1] - found["interval"][0] < 0.5 * (apart[1] - apart[0])


def test_the_same_answers_show_no_difference():
    label, said = make_answers(2)
    found = difference(label, said, said, np.arange(200), 4)["top1"]
    assert found == {"value": 0.0, "interval": None}
    assert verdict(found) == "no difference seen"


@pytest.mark.parametrize(
    ("value", "interval", "said"),
    [
        (0.02, (0.01, 0.03), "better"),
        (-0.02, (-0.03, -0.01), "worse"),
        (0.02, (-0.01, 0.05), "no difference seen"),
        (0.02, (0.0, 0.05), "no difference seen"),
        (0.02, None, "not known"),
    ],
)
def test_the_verdict_asks_the_interval(value, interval, said):
    assert verdict({"value": value, "interval": interval}) == said


def test_intervals_hold_the_true_difference_as_often_as_they_say(monkeypatch):
    """Two networks of 0.80 and 0.72 whose errors go together, each group five images alike."""
    monkeypatch.setattr("bcvit_jax.intervals.RESAMPLES", 400)
    rng = np.random.default_rng(1)
    hits, trials, groups, size = 0, 300, 80, 5
    label = np.zeros(groups * size, int)
    for _ in range(trials):
        hard = rng.random(groups).repeat(size) * 0.5 + rng.random(groups * size) * 0.5
        # The sum of two uniform halves: its quantiles in closed form.
        first = (hard > math.sqrt(0.20 / 2)).astype(int)
        second = (hard + rng.normal(0, 1e-9, len(hard)) > math.sqrt(0.28 / 2)).astype(int)
        low, high = difference(
            label, 1 - first[None], 1 - second[None], np.repeat(np.arange(groups), size), 2
        )["top1"]["interval"]
        hits += low <= 0.08 <= high
    assert 0.90 <= hits / trials <= 0.985


@pytest.mark.parametrize("donors", [2, 3, 6])
def test_few_donors_call_no_network_better_too_often(donors, monkeypatch):
    """Two networks equal over all donors, each of whom suits one of them a little better."""
    monkeypatch.setattr("bcvit_jax.intervals.RESAMPLES", 300)
    rng = np.random.default_rng(2)
    size, trials, found = 200, 200, 0
    label, group = np.zeros(donors * size, int), np.repeat(np.arange(donors), size)
    for _ in range(trials):
        suits = rng.normal(0, 0.05, donors).repeat(size)
        first, second = (
            (rng.random(len(label)) > 0.8 + way * suits / 2).astype(int) for way in (1, -1)
        )
        found += verdict(difference(label, first[None], second[None], group, 2)["top1"]) != (
            "no difference seen"
        )
    assert found / trials < 0.1


def test_of_one_group_nothing_is_known_of_other_images():
    label, said = make_answers(2)
    found = difference(label, said[:1], said[1:], np.zeros(200), 4)["top1"]
    assert found["value"] != 0 and found["interval"] is None
    assert verdict(found) == "not known"
