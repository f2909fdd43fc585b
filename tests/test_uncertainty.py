"""The choice of images: what is doubtful, what is unlike, and a part by chance alone."""

import numpy as np
import pytest

from data_prep.fields import Box
from data_prep.uncertainty import choose, disagreement, doubt, farthest_first


def box(score: float | None, x: float = 0, size: float = 10) -> Box:
    return Box("WBC", x, 0, x + size, size, score)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([], 0), ([0.5], 1), ([1.0], 0), ([0.25], 0.5), ([0.9, 0.6, 0.05], 0.8), ([None], 0)],
)
def test_doubt_is_that_of_the_box_nearest_to_a_half(scores, expected):
    assert doubt([box(score) for score in scores]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([], [], 0),
        ([box(0.9)], [], 1),
        ([], [box(0.9)], 1),
        ([box(0.2)], [], 0),  # too weak to count as seen
        ([box(0.9)], [box(0.4)], 0),
        ([box(0.9)], [box(0.9, x=5)], 2 / 3),
        ([box(0.9)], [box(0.9), box(0.9, x=50)], 1 / 3),
        ([box(0.9)], [box(0.9, x=50)], 1),
    ],
)
def test_disagreement_of_two_views(one, other, expected):
    assert disagreement(one, other) == pytest.approx(expected)
    assert disagreement(other, one) == pytest.approx(expected)


def unit_rows(count: int, width: int = 4, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_farthest_first_is_what_its_name_says():
    features = unit_rows(30)
    candidates = [5, 3, 28, 7, 9, 11, 0, 20, 21, 22]
    chosen = farthest_first(candidates, features, 6)
    assert chosen[0] == 5 and len(set(chosen)) == 6 and set(chosen) <= set(candidates)
    for place in range(1, 6):
        nearest = {
            at: min(1 - features[at] @ features[before] for before in chosen[:place])
            for at in candidates
            if at not in chosen[:place]
        }
        assert nearest[chosen[place]] == pytest.approx(max(nearest.values()))
    assert sorted(farthest_first(candidates, features, 99)) == sorted(candidates)
    assert farthest_first([], features, 3) == [] and farthest_first([1], features, 0) == []


def test_pictures_that_are_alike_are_not_chosen_together():
    features = np.repeat(unit_rows(3, 3), 10, axis=0)  # three groups of ten copies
    worth = [1.0] * 10 + [0.9] * 10 + [0.8] * 10
    chosen = choose(worth, features, 3, seed=0, at_random=0.0, candidates=10)
    assert sorted(at // 10 for at in chosen) == [0, 1, 2]


def test_the_choice_is_decided_by_the_seed_and_falls_on_the_worthy():
    worth = list(np.linspace(0, 1, 200))
    features = unit_rows(200)
    chosen = choose(worth, features, 20, seed=3)
    assert chosen == choose(worth, features, 20, seed=3) != choose(worth, features, 20, seed=4)
    assert len(set(chosen)) == 20
    # 18 of the 54 worthiest that are not drawn at random; two of all.
    assert sum(at >= 200 - 56 for at in chosen) >= 18


def test_a_tenth_is_drawn_from_all_alike():
    worth = list(np.linspace(0, 1, 100))
    features = unit_rows(100)
    hits = np.zeros(100)
    for seed in range(600):
        chosen = choose(worth, features, 10, seed)
        hits[chosen] += 1
    hits = hits[:60]  # none of these is among the 27 worthiest
    assert (hits > 0).all()
    # One of the ten is drawn: each of the 100 with chance 1/100, in 600 rounds 6 times.
    assert hits.sum() == pytest.approx(360, abs=60)
    chi_square = ((hits - hits.mean()) ** 2 / hits.mean()).sum()
    assert chi_square < 100  # 59 degrees of freedom: exceeded by chance once in a thousand


def test_all_equal_is_by_chance_and_few_are_all():
    features = np.zeros((50, 1))
    drawn = [frozenset(choose([0.0] * 50, features, 5, seed)) for seed in range(100)]
    counts = np.bincount([at for one in drawn for at in one], minlength=50)
    assert counts.min() > 0 and counts.max() < 30
    assert sorted(choose([0.0] * 4, features[:4], 9, 0)) == [0, 1, 2, 3]
