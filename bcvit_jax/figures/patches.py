"""Which pixels a patch covers, and what numbers on patches are worth on pixels."""

import numpy as np

from bcvit_jax.models.layers import grid_shape


def corners(size: int, patch: int, stride: int) -> np.ndarray:
    """int [n, 2]: top and left pixel of each patch of equation 1, row by row.

    A network with a convolutional stem also sees a rim of pixels around its patches.
    """
    rows, columns = grid_shape(size, size, patch, stride)
    down, across = np.divmod(np.arange(rows * columns), columns)
    return np.stack([down, across], axis=1) * stride


def pixel_means(values: np.ndarray, size: int, patch: int, stride: int) -> np.ndarray:
    """values [..., n], one a patch -> [..., size, size]: the mean over the patches on a pixel.

    0 where no patch lies, as at the right and lower edge where the stride does not divide the rest.
    """
    total = np.zeros((*values.shape[:-1], size, size))
    covering = np.zeros((size, size))
    for place, (top, left) in enumerate(corners(size, patch, stride)):
        total[..., top : top + patch, left : left + patch] += values[..., place, None, None]
        covering[top : top + patch, left : left + patch] += 1
    return total / np.maximum(covering, 1)


def shares(mask: np.ndarray, patch: int, stride: int) -> np.ndarray:
    """float [n]: the share of each patch's pixels that lie in `mask`, bool [size, size]."""
    sums = np.pad(mask, ((1, 0), (1, 0))).cumsum(0, dtype=float).cumsum(1)
    top, left = corners(len(mask), patch, stride).T
    low, right = top + patch, left + patch
    inside = sums[low, right] - sums[top, right] - sums[low, left] + sums[top, left]
    return inside / patch**2
