"""Folds: whole groups, every class spread evenly, the same on every machine."""

import numpy as np
import pytest

from data_prep.folds import assign_folds, join_groups


def counts_of(labels, folds, number: int = 5) -> np.ndarray:
    counts = np.zeros((max(labels) + 1, number), int)
    np.add.at(counts, (labels, folds), 1)
    return counts


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([], []),
        ([["a"], ["b"], ["a"]], [0, 1, 0]),
        ([["a", "x"], ["b", "y"], ["c", "x"], ["b", "z"], ["d", "z"]], [0, 1, 0, 1, 1]),
        ([["c"], ["a"], ["b", "c"], ["a", "b"]], [0, 0, 0, 0]),
    ],
)
def test_items_that_share_a_key_are_joined(keys, expected):
    assert join_groups(keys) == expected


def test_single_images_are_spread_to_within_one_a_class_and_fold():
    labels = np.repeat(range(4), [100, 33, 7, 3]).tolist()
    folds = assign_folds(labels, [str(i) for i in range(len(labels))], 5)
    counts = counts_of(labels, folds)
    assert (counts.max(1) - counts.min(1)).tolist() == [0, 1, 1, 1]
    assert np.ptp(counts.sum(0)) <= 1


def test_groups_stay_whole_and_classes_stay_even():
    rng = np.random.default_rng(0)
    labels = rng.choice(6, 3000, p=[0.5, 0.25, 0.15, 0.06, 0.03, 0.01]).tolist()
    groups = [f"donor{donor}" for donor in rng.zipf(1.3, 3000) % 100]
    folds = assign_folds(labels, groups, 5)
    homes = {group: set() for group in groups}
    for group, fold in zip(groups, folds, strict=True):
        homes[group].add(fold)
    assert all(len(home) == 1 for home in homes.values())
    single = [f"donor{donor}" for donor in rng.permutation(3000) % 100]
    counts = counts_of(labels, assign_folds(labels, single, 5))
    common = counts[:4] / counts[:4].sum(1, keepdims=True)
    assert abs(common - 0.2).max() < 0.02


def test_a_pair_of_opposite_groups_is_balanced_by_moving():
    labels = [0] * 6 + [1] * 6 + [0, 1] * 6
    groups = ["a"] * 6 + ["b"] * 6 + [f"c{i // 2}" for i in range(12)]
    counts = counts_of(labels, assign_folds(labels, groups, 2), 2)
    assert counts.tolist() == [[6, 6], [6, 6]]


def test_folds_do_not_depend_on_the_order_of_images():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 90).tolist()
    groups = [f"g{i}" for i in rng.integers(0, 40, 90)]
    folds = assign_folds(labels, groups, 5)
    order = rng.permutation(90)
    shuffled = assign_folds([labels[i] for i in order], [groups[i] for i in order], 5)
    assert shuffled == [folds[i] for i in order]


def test_the_seed_chooses_another_equally_good_split():
    labels, groups = [0] * 20, [str(i) for i in range(20)]
    first, again, other = (assign_folds(labels, groups, 5, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert counts_of(labels, other).tolist() == [[4] * 5]


@pytest.mark.parametrize(
    "sizes", [[50, 1, 1, 1, 1], [1, 1, 1, 1, 1], [9, 9, 9, 1, 1], [3, 3, 3, 3, 3, 3]]
)
def test_no_fold_is_empty_if_there_are_enough_groups(sizes):
    groups = [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]
    labels = [i % 2 for i, size in enumerate(sizes) for _ in range(size)]
    assert set(assign_folds(labels, groups, 5)) == set(range(5))
