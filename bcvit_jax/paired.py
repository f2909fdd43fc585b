"""Two networks asked about the same images: what differs, and by how much for certain.

Both see the same easy and hard images, so their difference is known better than either accuracy.
Several runs of one recipe are one network here: the mean of their figures.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from bcvit_jax import intervals
from bcvit_jax.metrics import rates

FIGURES = {"top1": "top-1", "macro_f1": "macro-F1"}


class McNemar(NamedTuple):
    """Images that only one of two networks recognised, and the exact two-sided p."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """McNemar's exact test of two bool [n], whether each image was recognised.

    Of the images that only one recognised, half should be either's (McNemar, Psychometrika 12,
    1947; exact: a binomial). It takes images as independent of each other.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n = only_first + only_second
    p = float(stats.binomtest(only_first, n).pvalue) if n else 1.0
    return McNemar(only_first, only_second, p)


def drawn_figures(
    label: np.ndarray, predicted: np.ndarray, group: np.ndarray, classes: int
) -> dict[str, np.ndarray]:
    """FIGURES of every run on the same images, drawn anew group by group: each [runs, resamples].

    label: int [n]; predicted: int [runs, n]; group: [n].
    """
    kinds, kind = np.unique(np.stack([label, *predicted]), axis=1, return_inverse=True)
    kind = kind.reshape(-1)
    count = kinds.shape[1]
    place = np.unique(group, return_inverse=True)[1]
    groups = int(place.max(initial=-1)) + 1
    if groups == len(label):  # what `resample` would find out for itself, in more memory
        shares = np.bincount(kind, minlength=count) / groups
        rng = np.random.default_rng(0)
        drawn = rng.multinomial(groups, shares, size=intervals.RESAMPLES)
    else:
        counts = np.bincount(place * count + kind, minlength=groups * count)
        drawn = intervals.resample(counts.reshape(groups, count), intervals.RESAMPLES)
    cells, found = np.eye(classes * classes), {name: [] for name in FIGURES}
    for said in kinds[1:]:
        confusion = drawn @ cells[kinds[0] * classes + said]
        figures = rates(confusion.reshape(-1, classes, classes))
        for name in FIGURES:
            found[name].append(figures[name])
    return {name: np.array(values) for name, values in found.items()}


def summary(
    label: np.ndarray, predicted: np.ndarray, group: np.ndarray, classes: int
) -> dict[str, dict[str, Any]]:
    """value (mean of the runs), runs and interval of each of FIGURES; arrays as in
    `drawn_figures`."""
    drawn, found = drawn_figures(label, predicted, group, classes), {}
    exact = [_figures(label, said, classes) for said in predicted]
    groups = len(np.unique(group))
    for name in FIGURES:
        values = [figures[name] for figures in exact]
        value = float(np.mean(values))
        interval = intervals.percentiles(drawn[name].mean(axis=0))
        interval = intervals.for_few_groups(interval, value, groups)
        interval = interval and (max(0.0, interval[0]), min(1.0, interval[1]))
        right = label == predicted
        if interval is None and name == "top1" and (right == right[0]).all():
            interval = intervals.proportion(right[0], group)
        found[name] = {"value": value, "runs": values, "interval": interval}
    return found


def difference(
    label: np.ndarray, first: np.ndarray, second: np.ndarray, group: np.ndarray, classes: int
) -> dict[str, dict[str, Any]]:
    """value and interval of the mean of `first`'s runs less that of `second`'s, for FIGURES.

    first, second: int [runs, n], what each run said. The interval is None where no drawing differs
    from another, as of two networks that say the same, or of images of one group.
    """
    both = drawn_figures(label, np.concatenate([first, second]), group, classes)
    groups, found = len(np.unique(group)), {}
    for name in FIGURES:
        one, other = (
            float(np.mean([_figures(label, said, classes)[name] for said in runs]))
            for runs in (first, second)
        )
        drawn = both[name][: len(first)].mean(axis=0) - both[name][len(first) :].mean(axis=0)
        interval = intervals.for_few_groups(intervals.percentiles(drawn), one - other, groups)
        found[name] = {"value": one - other, "interval": interval}
    return found


def verdict(found: dict[str, Any]) -> str:
    """What a difference and its interval say: better, worse, that none is seen, or nothing."""
    interval = found["interval"]
    if interval is None and found["value"]:
        return "not known"
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "no difference seen"
    return "better" if found["value"] > 0 else "worse"


def _figures(label: np.ndarray, said: np.ndarray, classes: int) -> dict[str, float]:
    counts = np.bincount(label * classes + said, minlength=classes * classes)
    figures = rates(counts.reshape(classes, classes))
    return {name: float(figures[name]) for name in FIGURES}
