"""The canvas of a rendered smear, and its red cells and platelets.

Everything is drawn as dye amounts (`data_prep.stain`) in micrometres; white cells are in
`data_prep.white_cell`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep import shapes
from data_prep.shapes import Field, coverage, smooth_noise
from data_prep.stain import AZURE, EOSIN, HAEMOGLOBIN, PURPLE

Place = tuple[slice, slice]
Disc = tuple[float, float, float]  # x, y, radius in µm: room taken on the canvas


@dataclass(frozen=True)
class Drawn:
    """What a drawing left on the canvas."""

    box: tuple[int, int, int, int] | None  # x0, y0, x1, y1 in pixels, half-open; None: off canvas
    place: Place  # where on the canvas the masks lie
    cell: NDArray[np.bool_]
    nucleus: NDArray[np.bool_]


class Canvas:
    """Dye amounts [4, height, width] of a smear with `pixels_per_um` pixels to the micrometre."""

    def __init__(self, width: int, height: int, pixels_per_um: float) -> None:
        self.width, self.height, self.pixels_per_um = width, height, pixels_per_um
        self.amounts = np.zeros((4, height, width), dtype=np.float32)

    def window(self, centre: tuple[float, float], reach: float) -> tuple[Place, Field, Field]:
        """The part of the canvas within `reach` µm of `centre`, and x, y in µm from the centre.

        Of a square outside the canvas one row or column at the border stays.
        """
        columns, x = self._span(centre[0], reach, self.width)
        rows, y = self._span(centre[1], reach, self.height)
        x, y = np.broadcast_arrays(x[None, :], y[:, None])
        return (rows, columns), x, y

    def _span(self, centre: float, reach: float, length: int) -> tuple[slice, Field]:
        start = int((centre - reach) * self.pixels_per_um)
        stop = int((centre + reach) * self.pixels_per_um) + 1
        start = min(max(start, 0), length - 1)
        stop = max(min(stop, length), start + 1)
        middle = np.arange(start, stop, dtype=np.float32) + np.float32(0.5)
        return slice(start, stop), middle / np.float32(self.pixels_per_um) - np.float32(centre)

    def cover(self, place: Place, alpha: Field, layer: Field) -> None:
        """Lay the dye amounts `layer` [4, h, w] over what is there, hiding it by `alpha`."""
        part = self.amounts[:, place[0], place[1]]
        part += alpha * (layer - part)

    def drawn(self, place: Place, cell: Field, nucleus: Field | None = None) -> Drawn:
        """The record of a cell from the coverage of its body and nucleus in the window."""
        mask = cell >= 0.5
        rows, columns = (
            np.flatnonzero(mask.any(axis=1)),
            np.flatnonzero(mask.any(axis=0)),
        )
        box = None
        if len(rows):
            x, y = place[1].start, place[0].start
            box = (
                x + int(columns[0]),
                y + int(rows[0]),
                x + int(columns[-1]) + 1,
                y + int(rows[-1]) + 1,
            )
        inner = np.zeros_like(mask) if nucleus is None else nucleus >= 0.5
        return Drawn(box, place, mask, inner & mask)


def turned(x: Field, y: Field, angle: float) -> tuple[Field, Field]:
    """Coordinates in a frame turned by `angle` radians."""
    cos, sin = math.cos(angle), math.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def draw_red_cell(
    canvas: Canvas, centre: tuple[float, float], radius: float, rng: np.random.Generator
) -> Drawn:
    """Draw a biconcave disc; where red cells overlap, their absorption adds."""
    place, x, y = canvas.window(centre, radius * 1.35 + 0.5)
    u, v = turned(x, y, rng.uniform(0, np.pi))
    stretch = math.exp(abs(rng.normal(0.0, 0.07)))
    waves = shapes.draw_waves(rng, [0.02, 0.02, 0.01, 0.006])
    edge = shapes.wavy_disc(u * stretch, v / stretch, radius, waves)
    if rng.random() < 0.02:  # crenated
        edge += np.float32(0.07 * radius) * np.cos(rng.integers(9, 14) * np.arctan2(v, u))
    disc = coverage(edge, canvas.pixels_per_um)
    middle = np.hypot(u - rng.normal(0, 0.25), v - rng.normal(0, 0.25)) / radius
    pallor = rng.uniform(0.4, 0.95) if rng.random() < 0.85 else 0.05
    thickness = 1.0 - pallor / (1.0 + (middle / rng.uniform(0.34, 0.52)) ** 6)
    thickness *= 1.0 - 0.5 * np.exp(np.minimum(edge, 0.0) / 0.25)  # thin, rounded edge
    amount = rng.uniform(0.8, 1.15) * disc * thickness
    canvas.amounts[HAEMOGLOBIN][place] += amount
    canvas.amounts[EOSIN][place] += 0.06 * amount
    return canvas.drawn(place, disc)


def draw_platelet(canvas: Canvas, centre: tuple[float, float], rng: np.random.Generator) -> Drawn:
    """Draw a platelet, 1.5 to 3.5 µm: pale blue with purple granules in the middle."""
    radius = rng.uniform(0.75, 1.75)
    place, x, y = canvas.window(centre, radius * 1.6 + 0.5)
    u, v = turned(x, y, rng.uniform(0, np.pi))
    body = coverage(
        shapes.wavy_disc(u, v, radius, shapes.draw_waves(rng, [0.07, 0.05, 0.04, 0.03])),
        canvas.pixels_per_um,
    )
    texture = smooth_noise(rng, u.shape, 0.5 * canvas.pixels_per_um)
    core = np.exp(-((np.hypot(u, v) / (0.6 * radius)) ** 2))
    layer = np.zeros((4, *u.shape), dtype=np.float32)
    layer[AZURE] = 0.22
    layer[PURPLE] = np.clip(core * (0.45 + 0.3 * texture), 0.05, 1.0)
    canvas.cover(place, 0.95 * body, layer)
    return canvas.drawn(place, body)


def free_spot(
    canvas: Canvas,
    taken: list[Disc],
    radius: float,
    overlap: float,
    rng: np.random.Generator,
) -> tuple[float, float] | None:
    """A random spot (µm) for a disc that overlaps none of `taken` by more than `overlap`.

    It may be cut off by the border. None after 30 tries.
    """
    width, height = (
        canvas.width / canvas.pixels_per_um,
        canvas.height / canvas.pixels_per_um,
    )
    for _ in range(30):
        x = float(rng.uniform(-0.6 * radius, width + 0.6 * radius))
        y = float(rng.uniform(-0.6 * radius, height + 0.6 * radius))
        if all(math.hypot(x - a, y - b) > radius + r - overlap for a, b, r in taken):
            return x, y
    return None


def strew_red_cells(
    canvas: Canvas, white_cells: list[Disc], crowding: float, rng: np.random.Generator
) -> list[Drawn]:
    """Strew red cells, 6.6 to 8 µm wide, around the `white_cells`; some overlap each other.

    `crowding` is the share of the area they would cover side by side.
    """
    area = (canvas.width / canvas.pixels_per_um + 4) * (canvas.height / canvas.pixels_per_um + 4)
    taken = list(white_cells)
    drawn = []
    for _ in range(int(crowding * area / 41.0) + 1):  # 41 µm²: the mean red cell
        radius = rng.uniform(3.3, 4.0)
        overlap = rng.uniform(0.0, 0.5) if rng.random() < 0.75 else rng.uniform(0.5, 4.0)
        spot = free_spot(canvas, taken, radius, overlap, rng)
        # A red cell may lie under the edge of a white one, never vanish behind it.
        if spot is None or any(math.hypot(spot[0] - a, spot[1] - b) < r for a, b, r in white_cells):
            continue
        taken.append((*spot, radius))
        drawn.append(draw_red_cell(canvas, spot, radius, rng))
    return drawn


def strew_platelets(
    canvas: Canvas, white_cells: list[Disc], count: int, rng: np.random.Generator
) -> list[Drawn]:
    """Strew `count` platelets clear of the `white_cells`."""
    spots = [free_spot(canvas, white_cells, 1.5, 0.0, rng) for _ in range(count)]
    return [draw_platelet(canvas, spot, rng) for spot in spots if spot is not None]
