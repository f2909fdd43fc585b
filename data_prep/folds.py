"""Stratified grouped folds: which images belong together, and which fold each group goes to."""

import hashlib
from collections.abc import Hashable, Iterable, Sequence

import numpy as np


def join_groups(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """The component of each item, as the index of its first member; equal keys join items.

    keys[i] are the things that item i shares with others: its donor, its pixels' digest.
    """
    parent: list[int] = list(range(len(keys)))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    first: dict[Hashable, int] = {}
    for item, shared in enumerate(keys):
        for key in shared:
            low, high = sorted((root(first.setdefault(key, item)), root(item)))
            parent[high] = low
    return [root(item) for item in range(len(keys))]


def assign_folds(
    labels: Sequence[int], groups: Sequence[str], folds: int, seed: int = 0
) -> list[int]:
    """The fold 0 … folds-1 of each image, so that a group stays whole and every fold is a sample.

    Minimised is sum_c 1/n_c^2 sum_f n_fc^2 (every class evenly over the folds, rare classes as
    much as common ones) plus, with little weight, the same of the fold sizes: greedily, the groups
    that weigh most first, then by moving and swapping the heaviest until nothing improves. Ties
    follow a hash of seed and group, so the order of the images does not matter. Single images
    are spread to within one a class and fold, and no fold stays empty if the groups suffice.
    """
    names = sorted(set(groups), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    number = {name: index for index, name in enumerate(names)}
    counts = np.zeros((len(names), max(labels) + 1), np.int64)
    np.add.at(counts, ([number[group] for group in groups], labels), 1)
    # Each class as a share of itself, and the size of the fold as a last column of little weight.
    totals = np.maximum(counts.sum(0), 1)
    sizes = counts.sum(1, keepdims=True)
    shares = np.hstack([counts / totals, 1e-3 * sizes / sizes.sum()])
    fold_of = np.zeros(len(names), np.int64)
    load = np.zeros((folds, shares.shape[1]))
    order = np.argsort(-shares.sum(1).round(12), kind="stable")
    for group in order:
        fold_of[group] = _least(load @ shares[group])
        load[fold_of[group]] += shares[group]
    _improve(shares, fold_of, load, order[sizes[order, 0] > 1][:1000])
    return [int(fold_of[number[group]]) for group in groups]


def _least(costs: np.ndarray) -> int:
    """Index of the first of the smallest costs, rounding errors aside."""
    return int(np.argmax(costs <= costs.min() + 1e-12))


def _improve(
    shares: np.ndarray, fold_of: np.ndarray, load: np.ndarray, movable: np.ndarray, passes: int = 20
) -> None:
    """Move or swap groups, in place, while it lowers sum(load**2); shares [g, c], load [f, c]."""
    for _ in range(passes):
        before = fold_of.copy()
        for group in movable:
            here, share = fold_of[group], shares[group]
            # Change of the cost / 2 if `group` moves to fold f: share.(load_f - load_here + share).
            change = load @ share - (load[here] - share) @ share
            change[here] = 0.0
            there = _least(change)
            if change[there] < -1e-12:
                load[here] -= share
                load[there] += share
                fold_of[group] = there
                continue
            # And if it changes places with group g: d.(load_there - load_here + d), d = ours - g's.
            others = movable[fold_of[movable] != here]
            difference = share - shares[others]
            gap = load[fold_of[others]] - load[here] + difference
            change = (difference * gap).sum(1)
            if len(others) and change.min() < -1e-12:
                other = others[_least(change)]
                there, difference = fold_of[other], share - shares[other]
                load[here] -= difference
                load[there] += difference
                fold_of[group], fold_of[other] = there, here
        if np.array_equal(before, fold_of):
            return
