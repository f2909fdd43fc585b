"""White cells of a rendered smear: what one looks like, and how it is drawn.

`CellType` describes a type, `draw_white_cell` draws one cell of it. The ten types themselves are
the table in `data_prep.synthetic`. Lengths are micrometres; `u`, `v` are coordinates in the
cell's own frame, whose nucleus is shifted towards positive `u`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data_prep import shapes
from data_prep.shapes import Field, coverage, smooth_noise
from data_prep.smear import Canvas, Drawn, turned
from data_prep.stain import AZURE, PURPLE

Range = tuple[float, float]
Tint = tuple[float, float, float, float]  # azure, purple, eosin, haemoglobin


@dataclass(frozen=True)
class Nucleus:
    """Shape and chromatin. `share` is nucleus area / cell area (the N:C ratio seen in 2-D)."""

    shape: str  # a key of NUCLEUS_SHAPES
    share: Range
    density: Range  # purple dye; 1 = a dense nucleus
    clumping: Range  # how strongly chromatin and the gaps between it differ
    grain: float  # size of the chromatin clumps
    lobes: tuple[int, int] = (1, 1)  # of a lobed nucleus
    off_centre: Range = (0.0, 0.1)  # shift, as a share of the cell's radius
    nucleoli: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Cytoplasm:
    """Dye amounts of the ground substance, its texture and the outline of the cell."""

    azure: Range = (0.0, 0.0)
    purple: Range = (0.0, 0.0)
    eosin: Range = (0.0, 0.0)
    haemoglobin: Range = (0.0, 0.0)
    mottling: float = 0.1
    rim: float = 0.0  # how much darker at the edge of the cell
    pale_zone: float = 0.0  # Golgi zone beside the nucleus: share of the dye that is missing
    vacuoles: tuple[int, int] = (0, 0)
    ragged: float = 0.02  # waviness of the outline, share of the radius


@dataclass(frozen=True)
class Granules:
    """One population of granules: number to the µm² of cytoplasm, radius, dye."""

    tint: Tint
    per_um2: Range
    radius: Range
    amount: Range
    over_nucleus: float = 0.0  # share of the dye seen over the nucleus; 0: none lie there


@dataclass(frozen=True)
class CellType:
    """Morphology of one white-cell type; ranges are drawn from uniformly."""

    code: str
    name: str
    diameter: Range
    nucleus: Nucleus
    cytoplasm: Cytoplasm
    granules: tuple[Granules, ...] = ()


@dataclass(frozen=True)
class Outline:
    """Geometry of one cell in its window, all [h, w]."""

    u: Field
    v: Field
    radius: float
    scale: float  # pixels to the micrometre
    edge: Field  # signed distance to the cell's edge
    membrane: Field  # signed distance to the nucleus
    cell: Field  # coverage
    nucleus: Field  # coverage

    def noise(self, rng: np.random.Generator, grain: float) -> Field:
        """Smooth noise whose features are `grain` µm wide."""
        return smooth_noise(rng, self.u.shape, grain * self.scale)


def draw_white_cell(
    canvas: Canvas,
    kind: CellType,
    centre: tuple[float, float],
    rng: np.random.Generator,
) -> Drawn:
    """Draw one cell of type `kind` at `centre` (µm), turned at random, over what is there."""
    radius = rng.uniform(*kind.diameter) / 2
    place, x, y = canvas.window(centre, radius * 1.45 + 1.0)
    cell = _outline(rng, kind, x, y, radius, canvas.pixels_per_um)
    layer = _ground_substance(rng, kind.cytoplasm, cell)
    layer += cell.nucleus * (_chromatin(rng, kind.nucleus, cell) - layer)
    for granules in kind.granules:
        _add_granules(rng, granules, cell, layer)
    vacuoles = _spots(rng, cell, radius, kind.cytoplasm.vacuoles, (0.35, 0.75))
    layer *= 1.0 - vacuoles * (0.85 - 0.45 * cell.nucleus)
    canvas.cover(place, cell.cell, layer)
    return canvas.drawn(place, cell.cell, cell.nucleus)


def _outline(
    rng: np.random.Generator,
    kind: CellType,
    x: Field,
    y: Field,
    radius: float,
    scale: float,
) -> Outline:
    """A slightly oval, wavy cell and the nucleus within it."""
    u, v = turned(x, y, rng.uniform(0, 2 * np.pi))
    stretch = math.exp(rng.normal(0.0, 0.05))
    waves = shapes.draw_waves(rng, kind.cytoplasm.ragged / np.arange(1, 9) ** 0.75)
    edge = shapes.wavy_disc(u * stretch, v / stretch, radius, waves)
    # Bending the plane a little keeps every nucleus from being a geometric figure.
    bend = 0.03 * radius
    shift = radius * rng.uniform(*kind.nucleus.off_centre)
    u_bent = u - shift + bend * smooth_noise(rng, u.shape, 2.5 * scale)
    v_bent = v + bend * smooth_noise(rng, u.shape, 2.5 * scale)
    membrane = NUCLEUS_SHAPES[kind.nucleus.shape](rng, u_bent, v_bent, radius, kind.nucleus)
    membrane = np.maximum(membrane, edge + 0.12)
    cell, nucleus = coverage(edge, scale), coverage(membrane, scale)
    return Outline(u, v, radius, scale, edge, membrane, cell, nucleus)


def _ground_substance(rng: np.random.Generator, look: Cytoplasm, cell: Outline) -> Field:
    """Dye amounts [4, h, w] of the cytoplasm without granules."""
    tint = [rng.uniform(*dye) for dye in (look.azure, look.purple, look.eosin, look.haemoglobin)]
    texture = 1.0 + look.mottling * (cell.noise(rng, 0.5) + cell.noise(rng, 1.6))
    texture *= 1.0 + look.rim * np.exp(np.minimum(cell.edge, 0.0) / 0.7)
    texture += 0.25 * np.exp(-((cell.edge + 0.2) ** 2) / 0.04)  # the cell membrane
    beside = rng.normal(0.0, 0.1 * cell.radius)
    zone = np.hypot(cell.u + 0.45 * cell.radius, cell.v - beside) / (0.38 * cell.radius)
    texture *= 1.0 - look.pale_zone * np.exp(-(zone**2))
    texture *= 1.0 - 0.3 * np.exp(-np.maximum(cell.membrane, 0.0) / 0.3)  # perinuclear halo
    return np.array(tint, dtype=np.float32)[:, None, None] * np.maximum(texture, 0.0)


def _chromatin(rng: np.random.Generator, look: Nucleus, cell: Outline) -> Field:
    """Dye amounts [4, h, w] of the nucleus: clumps with bright gaps, dark edge, pale nucleoli."""
    clumps = cell.noise(rng, look.grain) + 0.5 * cell.noise(rng, look.grain / 2)
    gaps = np.clip(1.1 * clumps - 0.15, -0.5, 1.8) * rng.uniform(*look.clumping)
    edge = np.exp(-((np.minimum(cell.membrane, 0.0) / 0.35) ** 2))
    nucleoli = _spots(rng, cell, 0.6 * cell.radius, look.nucleoli, (0.75, 1.15))
    purple = rng.uniform(*look.density) * (1.0 - gaps * (1.0 - 0.7 * edge) + 0.1 * edge)
    layer = np.zeros((4, *cell.u.shape), dtype=np.float32)
    layer[PURPLE] = np.maximum(purple * (1.0 - 0.65 * nucleoli), 0.05)
    layer[AZURE] = 0.25 * nucleoli
    return layer


def _add_granules(rng: np.random.Generator, look: Granules, cell: Outline, layer: Field) -> None:
    """Scatter one population of granules into the dye amounts `layer` [4, h, w], in place."""
    free = (cell.edge < -0.15) & ((cell.nucleus < 0.5) | (look.over_nucleus > 0))
    rows, columns = np.nonzero(free)
    count = int(len(rows) / cell.scale**2 * rng.uniform(*look.per_um2))
    if count == 0:
        return
    chosen = rng.integers(0, len(rows), count)
    dots = shapes.scatter_discs(
        cell.u.shape,
        x=columns[chosen] + rng.uniform(-0.5, 0.5, count),
        y=rows[chosen] + rng.uniform(-0.5, 0.5, count),
        radius=rng.uniform(*look.radius, count) * cell.scale,
        strength=rng.uniform(*look.amount, count),
    )
    dots *= cell.cell * (1.0 - (1.0 - look.over_nucleus) * cell.nucleus)
    for dye, share in enumerate(look.tint):
        if share:
            layer[dye] = np.maximum(layer[dye], share * dots + 0.35 * layer[dye])


def _spots(
    rng: np.random.Generator,
    cell: Outline,
    reach: float,
    numbers: tuple[int, int],
    sizes: Range,
) -> Field:
    """Coverage of round spots spread over a disc of radius `reach`: vacuoles, nucleoli."""
    spots = np.zeros_like(cell.u)
    for _ in range(int(rng.integers(numbers[0], numbers[1] + 1))):
        distance, angle = (
            reach * math.sqrt(rng.uniform(0.05, 0.75)),
            rng.uniform(0, 2 * np.pi),
        )
        centre = (distance * math.cos(angle), distance * math.sin(angle))
        spot = shapes.disc(cell.u, cell.v, centre, rng.uniform(*sizes))
        spots = np.maximum(spots, coverage(spot, cell.scale, softness=1.5))
    return spots


# Nucleus shapes: (rng, u, v, cell radius, look) -> signed distance. Each fills about `look.share`
# of the cell's area.


def _round(rng: np.random.Generator, u: Field, v: Field, radius: float, look: Nucleus) -> Field:
    own = radius * math.sqrt(rng.uniform(*look.share))
    stretch = math.exp(abs(rng.normal(0.0, 0.05)))
    return shapes.ellipse(u, v, (0, 0), (own * stretch, own / stretch), rng.uniform(0, np.pi))


def _oval(rng: np.random.Generator, u: Field, v: Field, radius: float, look: Nucleus) -> Field:
    """An egg, flattened on the side towards the middle of the cell."""
    own = radius * math.sqrt(rng.uniform(*look.share))
    stretch = rng.uniform(1.12, 1.28)
    egg = shapes.ellipse(u, v, (0, 0), (own / stretch, own * stretch))
    flat = -(u + own * rng.uniform(0.55, 0.75))
    return shapes.smooth_subtract(egg, -flat, 1.0)


def _kidney(rng: np.random.Generator, u: Field, v: Field, radius: float, look: Nucleus) -> Field:
    """A bean, dented on one side by about a third of its breadth."""
    own = radius * math.sqrt(rng.uniform(*look.share) * 1.12)
    stretch = rng.uniform(1.25, 1.4)
    body = shapes.ellipse(u, v, (0, 0), (own / stretch, own * stretch))
    bite = own * rng.uniform(0.45, 0.6)
    depth = own * rng.uniform(0.4, 0.54)
    centre = (-own / stretch - bite + depth, rng.normal(0, 0.1 * own))
    return shapes.smooth_subtract(body, shapes.disc(u, v, centre, bite), 0.9)


def _band(rng: np.random.Generator, u: Field, v: Field, radius: float, look: Nucleus) -> Field:
    """A horseshoe of nearly even breadth, never drawn out to a thread."""
    path = radius * rng.uniform(0.46, 0.54)
    half_span = rng.uniform(1.5, 2.1)
    breadth = rng.uniform(*look.share) * np.pi * radius**2 / (2 * half_span * path + 2.5)
    wave = rng.uniform(0.0, 0.14) * np.cos(2.5 * np.arctan2(v, u) + rng.uniform(0, 6))
    return shapes.arc(u + 0.3 * path, v, path, half_span, 0.5 * breadth * (1.0 + wave))


def _lobed(rng: np.random.Generator, u: Field, v: Field, radius: float, look: Nucleus) -> Field:
    """Lobes in a row along a bow, joined by threads."""
    count = int(rng.integers(look.lobes[0], look.lobes[1] + 1))
    own = radius * math.sqrt(rng.uniform(*look.share) / count)
    path = (radius * 0.97 - own - 0.3) * rng.uniform(0.88, 1.0)
    gap = own * rng.uniform(0.2, 0.4)
    step = 2 * math.asin(min((own + gap / 2) / path, 1.0))
    step = min(step, 2 * math.pi / max(count, 2.6))
    angles = [(number - (count - 1) / 2) * step for number in range(count)]
    # A row of three or more zigzags a little and lies across the middle of the cell.
    zigzag = 0.12 * own if count > 2 else 0.0
    back = 0.4 * path * float(np.cos(angles).mean()) if count > 2 else 0.0
    centres = []
    for angle in angles:
        reach = path + rng.normal(0.0, zigzag)
        centres.append((reach * math.cos(angle) - back, reach * math.sin(angle)))
    nucleus = np.full_like(u, np.inf)
    for centre, angle in zip(centres, angles, strict=True):
        stretch, size = rng.uniform(0.78, 1.05), own * math.exp(rng.normal(0.0, 0.08))
        axes = (size / stretch, size * stretch)
        # Two lobes stand side by side, those of a longer row point outwards.
        tilt = (angle if count > 2 else 0.0) + rng.normal(0.0, 0.3)
        lobe = shapes.ellipse(u, v, centre, axes, tilt)
        nucleus = np.minimum(nucleus, lobe)
    for start, end in pairwise(centres):
        thread = shapes.capsule(u, v, start, end, rng.uniform(0.16, 0.26))
        nucleus = shapes.smooth_union(nucleus, thread, 0.25)
    return nucleus


def _folded(rng: np.random.Generator, u: Field, v: Field, radius: float, look: Nucleus) -> Field:
    """A large lumpy nucleus with one to three folds, the first one deep."""
    own = radius * math.sqrt(rng.uniform(*look.share) * 1.15)
    stretch = rng.uniform(1.0, 1.2)
    waves = shapes.draw_waves(rng, [0.05] * 4)
    nucleus = shapes.wavy_disc(u * stretch, v / stretch, own, waves)
    turn = rng.uniform(0, 2 * np.pi)
    for number in range(int(rng.integers(1, 4))):
        angle, depth = turn + number * rng.uniform(1.7, 2.4), 0.7
        if number == 0:
            depth = rng.uniform(0.15, 0.4)
        bend = angle + rng.normal(0.0, 0.5)
        start = (1.35 * own * math.cos(angle), 1.35 * own * math.sin(angle))
        end = (depth * own * math.cos(bend), depth * own * math.sin(bend))
        fold = shapes.capsule(u, v, start, end, rng.uniform(0.45, 1.1))
        nucleus = shapes.smooth_subtract(nucleus, fold, 1.5)
    return nucleus


NUCLEUS_SHAPES = {
    "round": _round,
    "oval": _oval,
    "kidney": _kidney,
    "band": _band,
    "lobed": _lobed,
    "folded": _folded,
}
