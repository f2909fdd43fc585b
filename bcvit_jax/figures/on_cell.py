"""Do the kept patches lie on the cell? The share that does, beside what chance would give."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from bcvit_jax.figures.patches import shares
from bcvit_jax.intervals import percentiles, resample
from bcvit_jax.models import BCViTConfig
from bcvit_jax.shifts import background, optical_density

BLUE = 0.6
OPENING = 0.06
RULE = (
    f"optical density of red less {BLUE:g} of that of blue, smoothed; twice Otsu's threshold (the "
    "nucleus, then the cell among the rest); holes filled, opened by a disc of "
    f"{100 * OPENING:g} % of the side; of the pieces the one with most weight at the centre"
)
"""What `cell_mask` calls the cell."""

_LEAST, _MOST = 0.02, 0.95


def cell_mask(image: np.ndarray) -> np.ndarray | None:
    """The cell in the middle of uint8 [s, s, 3] as bool [s, s]; None where none can be told.

    Nuclei and the cytoplasm of white cells absorb red, red cells blue. Opening parts the cell from
    what touches it. A mask of less than 2 % or more than 95 % of the picture is none.
    """
    side = len(image)
    density = optical_density(image, background(image))
    density = ndimage.gaussian_filter(density, (side / 112, side / 112, 0))
    absorbed = np.maximum(density[..., 0] - BLUE * density[..., 2], 0)
    if np.ptp(absorbed) == 0:
        return None
    rest = absorbed[absorbed <= otsu(absorbed)]
    if np.ptp(rest) == 0:
        return None
    cell = np.asarray(ndimage.binary_fill_holes(absorbed > otsu(rest)))
    radius = max(1, round(OPENING * side))
    opened = ndimage.binary_opening(np.pad(cell, radius, mode="edge"), _disc(radius))
    pieces, count = ndimage.label(opened[radius:-radius, radius:-radius])  # pyright: ignore
    if not count:
        return None
    weight = np.exp(-8 * ((np.arange(side) + 0.5) / side - 0.5) ** 2)
    found = ndimage.sum(np.outer(weight, weight), pieces, np.arange(1, count + 1))
    mask = np.asarray(ndimage.binary_fill_holes(pieces == 1 + np.argmax(found)))
    return mask if _LEAST <= mask.mean() <= _MOST else None


def otsu(values: np.ndarray) -> float:
    """The threshold between two groups of values that differ most for their spread.

    Otsu, IEEE Trans. Syst. Man Cybern. 9, 1979, on a histogram of 256 bins.
    """
    count, edges = np.histogram(values, 256)
    middle = (edges[1:] + edges[:-1]) / 2
    below, total = np.cumsum(count)[:-1], np.cumsum(count * middle)
    between = (total[-1] * below / count.sum() - total[:-1]) ** 2 / (below * (count.sum() - below))
    return float(edges[1 + np.argmax(between)])


def _disc(radius: int) -> np.ndarray:
    across = np.arange(-radius, radius + 1)
    return across[:, None] ** 2 + across**2 <= radius**2


def image_shares(
    mask: np.ndarray | None, model: BCViTConfig, kept: np.ndarray, attention: np.ndarray
) -> tuple[float, float, float]:
    """How much of one image's kept patches [k], attention [h, patches] and patches is on the cell.

    A patch counts by the share of its pixels. NaN without a mask, or where nothing is kept.
    """
    if mask is None:
        return math.nan, math.nan, math.nan
    on = shares(mask, model.patch_size, model.stride)
    weight = attention.mean(axis=0)
    by_kept = float(on[kept].mean()) if len(kept) else math.nan
    return by_kept, float(on @ weight / weight.sum()), float(on.mean())


def summarise(on_cell: np.ndarray, chance: np.ndarray, group: np.ndarray) -> dict[str, Any]:
    """Mean share on the cell, the mean by chance and their ratio, with 95 % intervals.

    on_cell, chance: float [n], one an image; group: [n]. Groups are drawn anew, images of a group
    together.
    """
    place = np.unique(group, return_inverse=True)[1]
    per_group = [np.bincount(place, values) for values in (on_cell, chance, np.ones(len(place)))]
    found, expected, images = resample(np.stack(per_group, axis=1)).T
    return {
        "share": float(on_cell.mean()),
        "share_interval": percentiles(found / images),
        "chance": float(chance.mean()),
        "ratio": float(on_cell.sum() / chance.sum()),
        "ratio_interval": percentiles(found / expected),
    }


def by_class(
    values: Mapping[str, np.ndarray], labels: np.ndarray, names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """{class: {images, mean of each of `values`}}; values [n] and labels [n] of the same images."""
    return {
        str(names[label]): {"images": int((labels == label).sum())}
        | {name: float(each[labels == label].mean()) for name, each in values.items()}
        for label in np.unique(labels)
    }


def told(name: str, found: Mapping[str, Any]) -> str:
    """`kept: 93.1 % on the cell (92.6–93.6), by chance 51.0 %: 1.83 times (1.80–1.85)`."""
    share = f"{100 * found['share']:.1f} %"
    if found["share_interval"]:
        low, high = found["share_interval"]
        share += f" ({100 * low:.1f}\N{EN DASH}{100 * high:.1f})"
    ratio = f"{found['ratio']:.2f} times"
    if found["ratio_interval"]:
        low, high = found["ratio_interval"]
        ratio += f" ({low:.2f}\N{EN DASH}{high:.2f})"
    return f"{name}: {share} on the cell, by chance {100 * found['chance']:.1f} %: {ratio}"
