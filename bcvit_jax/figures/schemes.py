"""The paper's figure 10: ways to cut a cell into patches, side by side."""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from bcvit_jax.figures.patches import corners
from bcvit_jax.figures.plates import GREY, INK, WIDTH, Plate, show
from bcvit_jax.models import BCViTConfig
from bcvit_jax.models.layers import grid_shape

_NEIGHBOURS = ("#0072b2", "#d55e00", "#009e73")


class Scheme(NamedTuple):
    """A way to cut a picture of `size` pixels into patches."""

    size: int
    patch: int
    stride: int

    @property
    def grid(self) -> tuple[int, int]:
        return grid_shape(self.size, self.size, self.patch, self.stride)

    @property
    def unseen(self) -> float:
        """Share of the pixels on no patch, at the right and lower edge."""
        seen = (self.grid[0] - 1) * self.stride + self.patch
        return 1 - (seen / self.size) ** 2


def schemes(model: BCViTConfig) -> list[Scheme]:
    """The network's patches and those of twice the side, apart and overlapping by a quarter."""
    found = []
    for patch in (model.patch_size, 2 * model.patch_size):
        own = model.stride if patch == model.patch_size and model.stride < patch else 3 * patch // 4
        found += [Scheme(model.image_size, patch, stride) for stride in (patch, max(own, 1))]
    return [scheme for scheme in found if scheme.patch <= model.image_size]


def patches_plate(picture: np.ndarray, model: BCViTConfig) -> Plate:
    """Figure 10: the patch schemes side by side, on the cell and taken apart."""
    tried = schemes(model)
    names, top, gap = 0.3, 0.56, 0.12
    side = (WIDTH - names) / 4 - gap
    note = (
        f"Pixels of the network's input, {model.image_size} × {model.image_size}. Thick border: "
        "this network." + " Shaded: no patch covers it." * any(scheme.unseen for scheme in tried)
    )
    width, height = names + len(tried) * (side + gap) - gap, top + 2 * side + gap
    plate = Plate("Patches of one cell", width, height, note, names)
    for place, scheme in enumerate(tried):
        x = names + place * (side + gap)
        kind = "overlapping" if scheme.stride < scheme.patch else "not overlapping"
        style = {"ha": "center", "va": "bottom"}
        head = f"{scheme.patch} px, {kind}"
        plate.text(x + side / 2, top - 0.17, head, weight="bold", **style)
        rows, columns = scheme.grid
        counted = f"step {scheme.stride}: {rows} × {columns} = {rows * columns} patches"
        plate.text(x + side / 2, top - 0.04, counted, **style)
        axes = plate.panel(x, top, side, side)
        _draw_grid(axes, picture, scheme)
        if (scheme.patch, scheme.stride) == (model.patch_size, model.stride):
            for spine in axes.spines.values():
                spine.set(linewidth=1.8, color=INK)
        axes = plate.panel(x, top + side + gap, side, side)
        axes.imshow(apart(picture, scheme), interpolation="antialiased")
        axes.axis("off")
    style = {"rotation": 90, "va": "center", "ha": "center"}
    plate.text(names / 2, top + side / 2, "on the cell", **style)
    plate.text(names / 2, top + 1.5 * side + gap, "taken apart", **style)
    return plate


def _draw_grid(axes: Axes, picture: np.ndarray, scheme: Scheme) -> None:
    """All patches in thin lines, three neighbours in colour, and the pixels that none covers."""
    size, edge = scheme.size, scheme.patch
    show(axes, picture, size)
    at = corners(size, edge, scheme.stride) - 0.5
    for top, left in at:
        axes.add_patch(Rectangle((left, top), edge, edge, fill=False, ec="white", lw=0.5))
        axes.add_patch(Rectangle((left, top), edge, edge, fill=False, ec=INK, lw=0.25))
    rows, columns = scheme.grid
    middle = (rows - 1) // 2 * columns + (columns - 1) // 2
    shown = [middle, middle + (columns > 1), middle + columns * (rows > 1)]
    for colour, patch in zip(_NEIGHBOURS, shown, strict=True):
        top, left = at[patch]
        box = Rectangle((left, top), edge, edge, fc=(*to_rgb(colour), 0.3), ec=colour, lw=1.2)
        axes.add_patch(box)
    seen = (rows - 1) * scheme.stride + edge
    if seen < size:
        rest = {"fc": (1, 1, 1, 0.75), "ec": GREY, "hatch": "////", "lw": 0}
        axes.add_patch(Rectangle((seen - 0.5, -0.5), size - seen, size, **rest))
        axes.add_patch(Rectangle((-0.5, seen - 0.5), seen, size - seen, **rest))


def apart(picture: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The patches of a picture [m, m, 3] laid side by side on white, in order."""
    rows, columns = scheme.grid
    zoom = len(picture) / scheme.size
    edge, gap = round(scheme.patch * zoom), max(2, round(0.16 * scheme.patch * zoom))
    step = edge + gap
    sheet = np.full((rows * step - gap, columns * step - gap, 3), 255, np.uint8)
    for place, corner in enumerate(corners(scheme.size, scheme.patch, scheme.stride)):
        top, left = np.minimum(np.round(corner * zoom).astype(int), len(picture) - edge)
        down, across = place // columns * step, place % columns * step
        sheet[down : down + edge, across : across + edge] = picture[
            top : top + edge, left : left + edge
        ]
    return sheet
