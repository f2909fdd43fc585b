"""Intervals of 95 %: of a proportion (Wilson), and of any figure by drawing groups anew.

Images of one donor, slide or field resemble each other, so a hundred of them tell less than a
hundred images of a hundred donors. Both intervals count groups for that reason; where every image
is its own group they are the ordinary ones.
"""

import math

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 2000
Z = float(stats.norm.ppf(0.5 + LEVEL / 2))

FEW_GROUPS = 30
"""With fewer, an interval from drawing them is rough, and is said to be."""

Interval = tuple[float, float]


def wilson(share: float, n: float) -> Interval | None:
    """Score interval of a proportion `share` of `n`; None where n is 0.

    Wilson, J. Am. Stat. Assoc. 22, 1927. `n` need not be whole: it may be an effective number.
    """
    if not n:
        return None
    ratio = Z * Z / n
    centre = (share + ratio / 2) / (1 + ratio)
    half = math.sqrt(ratio * share * (1 - share) + ratio * ratio / 4) / (1 + ratio)
    # At 0 and 1 the bound is exact, but rounding would leave 1e-17.
    low = 0.0 if share == 0 else max(0.0, centre - half)
    return low, 1.0 if share == 1 else min(1.0, centre + half)


def proportion(hit: np.ndarray, group: np.ndarray) -> Interval | None:
    """Wilson interval of the mean of hit, bool [n], of images in groups, int or str [n].

    n gives way to the number of independent images that would vary as much (Rao & Scott,
    Biometrics 48, 1992), and the normal quantile to Student's, as there are few groups (Dean &
    Pagano, J. Surv. Stat. Methodol. 3, 2015). Where all or none hit, nothing tells how alike the
    images of a group are: then a group counts once.
    """
    n = len(hit)
    if not n:
        return None
    place = np.unique(group, return_inverse=True)[1]
    groups, share = int(place.max()) + 1, float(np.mean(hit))
    if groups == n:
        return wilson(share, n)
    if groups == 1 or share in (0.0, 1.0):
        return wilson(share, groups)
    surplus = np.bincount(place, hit - share)
    variance = groups / (groups - 1) * float(surplus @ surplus) / n**2
    plain = share * (1 - share)
    effective = plain / max(variance, plain / n)
    return wilson(share, effective * (Z / float(stats.t.ppf(0.5 + LEVEL / 2, groups - 1))) ** 2)


def f1(true: np.ndarray, predicted: np.ndarray, group: np.ndarray) -> Interval | None:
    """Interval of the F1 of one class; true, predicted: bool [n], of the class or not.

    Of the images that are of the class or are called so, a share J is both, and F1 = 2J / (1 + J)
    grows with J: so the bounds of J, a proportion, are those of F1.
    """
    either = true | predicted
    bounds = proportion((true & predicted)[either], group[either])
    return bounds and (2 * bounds[0] / (1 + bounds[0]), 2 * bounds[1] / (1 + bounds[1]))


def resample(counts: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Sums of as many groups as there are, drawn with replacement: [resamples, ...].

    counts: [groups, ...], whole numbers that add up. Groups of equal counts are drawn together,
    by a multinomial, which is the same and far quicker where most groups hold one image.
    """
    groups = len(counts)
    if not groups:
        return np.zeros((resamples, *counts.shape[1:]))
    rows = counts.reshape(groups, -1).astype(np.float64)
    used = np.flatnonzero(rows.any(axis=0))
    kinds, times = np.unique(rows[:, used], axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(groups, times / groups, size=resamples)
    sums = np.zeros((resamples, rows.shape[1]))
    sums[:, used] = drawn @ kinds
    return sums.reshape(resamples, *counts.shape[1:])


def percentiles(values: np.ndarray) -> Interval | None:
    """The middle 95 % of resampled figures, leaving out NaN (undefined in that sample).

    None where all are equal: then resampling tells nothing (Efron & Tibshirani, An Introduction
    to the Bootstrap, 1993, chapter 13).
    """
    values = values[~np.isnan(values)]
    if not len(values) or np.ptp(values) < 1e-12:
        return None
    low, high = np.quantile(values, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return float(low), float(high)


def for_few_groups(interval: Interval | None, value: float, groups: int) -> Interval | None:
    """A drawn interval about `value`, made as much wider as Student's t is than the normal.

    Drawn groups vary by √(1 − 1/G) less than groups do, and how much is known from G of them alone;
    without this, of two networks that are equal one is called better two times in five by two
    donors, one time in eight by five.
    """
    if interval is None or groups < 2:
        return None
    quantile = float(stats.t.ppf(0.5 + LEVEL / 2, groups - 1))
    factor = quantile / Z * math.sqrt(groups / (groups - 1))
    return value - factor * (value - interval[0]), value + factor * (interval[1] - value)
