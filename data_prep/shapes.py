"""Drawing primitives of the rendered smears: signed distances, smooth noise, scattered discs.

Lengths are micrometres unless a name says pixels. A signed distance is negative inside, positive
outside and roughly Euclidean near the outline, so that `coverage` can anti-alias the edge without
supersampling. Combinations follow Quilez, "2D distance functions" and "smooth minimum".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating]


def coverage(distance: Field, pixels_per_um: float, softness: float = 1.0) -> Field:
    """Share of each pixel inside the outline, in [0, 1]; the edge is `softness` pixels wide."""
    return np.clip(0.5 - distance * (pixels_per_um / softness), 0.0, 1.0)


def disc(x: Field, y: Field, centre: tuple[float, float], radius: float) -> Field:
    """Signed distance to a circle."""
    return np.hypot(x - centre[0], y - centre[1]) - radius


def ellipse(
    x: Field,
    y: Field,
    centre: tuple[float, float],
    axes: tuple[float, float],
    angle: float = 0.0,
) -> Field:
    """Approximate signed distance to an ellipse of semi-axes `axes`, turned by `angle` radians."""
    cos, sin = math.cos(angle), math.sin(angle)
    dx, dy = x - centre[0], y - centre[1]
    along, across = (cos * dx + sin * dy) / axes[0], (cos * dy - sin * dx) / axes[1]
    level = np.hypot(along, across)
    steepness = np.hypot(along / axes[0], across / axes[1])
    return level * (level - 1.0) / np.maximum(steepness, 1e-4)


def capsule(
    x: Field,
    y: Field,
    start: tuple[float, float],
    end: tuple[float, float],
    radius: float,
) -> Field:
    """Signed distance to a line segment thickened by `radius`: the bridge between two lobes."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    share = ((x - start[0]) * dx + (y - start[1]) * dy) / max(dx * dx + dy * dy, 1e-6)
    share = np.clip(share, 0.0, 1.0)
    return np.hypot(x - start[0] - share * dx, y - start[1] - share * dy) - radius


def arc(x: Field, y: Field, radius: float, half_span: float, thickness: Field | float) -> Field:
    """Signed distance to a circular arc with round ends.

    The arc is centred on angle 0 and reaches `half_span` radians to either side; `thickness` is
    its half-width, a number or one value a pixel.
    """
    angle = np.clip(np.arctan2(y, x), -half_span, half_span)
    return np.hypot(x - radius * np.cos(angle), y - radius * np.sin(angle)) - thickness


def smooth_union(a: Field, b: Field, blend: float) -> Field:
    """Union whose inner corner is rounded over about `blend` micrometres."""
    overlap = np.maximum(blend - np.abs(a - b), 0.0) / blend
    return np.minimum(a, b) - overlap * overlap * (blend / 4)


def smooth_subtract(a: Field, b: Field, blend: float) -> Field:
    """The shape `a` without `b`, the new corners rounded over about `blend` micrometres."""
    return -smooth_union(-a, b, blend)


def wavy_disc(x: Field, y: Field, radius: float, waves: NDArray[np.float64]) -> Field:
    """Signed distance to a circle with a wavy outline.

    `waves` [k, 2] holds amplitude (share of the radius) and phase of the angular orders 2, 3, ….
    """
    angle = np.arctan2(y, x)
    outline = np.ones_like(angle)
    for order, (amplitude, phase) in enumerate(waves, start=2):
        outline += np.float32(amplitude) * np.cos(order * angle + np.float32(phase))
    return np.hypot(x, y) - radius * outline


def draw_waves(
    rng: np.random.Generator, amplitudes: Sequence[float] | Field
) -> NDArray[np.float64]:
    """Random waves [k, 2] for `wavy_disc`, with the standard deviation of each amplitude."""
    amplitude = rng.normal(0.0, amplitudes)
    return np.stack([amplitude, rng.uniform(0, 2 * np.pi, len(amplitude))], axis=1)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], grain: float) -> Field:
    """Gaussian noise [h, w] of unit variance whose features are about `grain` pixels wide.

    A random lattice under cubic B-splines: each pixel is a sum over 4 by 4 lattice points.
    """
    first_row, row_weights = _spline(rng, shape[0], grain)
    first_column, column_weights = _spline(rng, shape[1], grain)
    size = (int(first_row[-1]) + 4, int(first_column[-1]) + 4)
    lattice = rng.standard_normal(size, dtype=np.float32)
    steps = np.arange(4)[:, None]
    rows = (row_weights[:, :, None] * lattice[first_row + steps]).sum(axis=0)
    return (column_weights[:, :, None] * rows.T[first_column + steps]).sum(axis=0).T


def _spline(
    rng: np.random.Generator, length: int, grain: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """First lattice point [length] and weights [4, length], scaled to unit sum of squares."""
    position = np.arange(length) / max(grain / 1.6, 1.0) + rng.random()
    first = np.floor(position).astype(np.int64)
    t = (position - first).astype(np.float32)
    weights = np.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    )
    return first, weights / np.sqrt((weights**2).sum(axis=0))


def scatter_discs(
    shape: tuple[int, int],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    radius: NDArray[np.float64],
    strength: NDArray[np.float64],
) -> Field:
    """Anti-aliased discs, the strongest on top: [h, w].

    Centres and radii [n] are in pixels; a disc smaller than a pixel fades instead of vanishing.
    """
    field = np.zeros(shape, dtype=np.float32)
    if len(x) == 0:
        return field
    reach = int(np.ceil(radius.max())) + 1
    offset = np.arange(-reach, reach + 1)
    columns = np.floor(x).astype(np.int64)[:, None, None] + offset[None, None, :]
    rows = np.floor(y).astype(np.int64)[:, None, None] + offset[None, :, None]
    distance = np.hypot(columns - x[:, None, None], rows - y[:, None, None])
    value = np.clip(radius[:, None, None] - distance + 0.5, 0.0, 1.0) * strength[:, None, None]
    columns, rows = np.broadcast_arrays(columns, rows)
    seen = (value > 0) & (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    np.maximum.at(field, (rows[seen], columns[seen]), value[seen].astype(np.float32))
    return field
