"""The paper's figures 8 and 9: the attention of each head, and the kept patches on the cell."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from bcvit_jax.figures.patches import corners, pixel_means
from bcvit_jax.figures.plates import GREY, HEIGHT, MARGIN, RED, SIZE, WIDTH, Plate, show
from bcvit_jax.models import BCViTConfig

HEADS = (
    "#0072b2 #d55e00 #009e73 #cc3f91 #b8860b #56b4e9 "
    "#7a3e9d #8b4513 #00a0a0 #7f9f00 #f0529c #3a3aff"
).split()
"""A colour a head; after twelve they come again."""

_OUTLINE = "#00a6c8"
_GAP = 0.05
_ABREAST = 6  # heads side by side


class Cell(NamedTuple):
    """One image of a figure; patches are those of the network's `grid`."""

    picture: np.ndarray
    """uint8 [m, m, 3]: the network's view, of any resolution."""
    label: str
    predicted: str
    probability: float
    """Of the predicted class."""
    attention: np.ndarray
    """float [h, patches]."""
    kept: np.ndarray
    """int [k]."""
    mask: np.ndarray | None = None
    """bool [s, s]: the cell as segmented."""

    def named(self) -> tuple[str, str, str]:
        """Class, what it was called, and the colour of the latter."""
        share = f"{100 * self.probability:.0f} %"
        if self.label == self.predicted:
            return self.label, f"recognised, {share}", GREY
        return self.label, f"called {self.predicted}, {share}", RED


def attention_plate(cells: Sequence[Cell], model: BCViTConfig, kind: str) -> Plate:
    """Figure 8: a cell a line, all heads in one picture, then every head by itself.

    kind: whose attention it is, in words.
    """
    heads = len(cells[0].attention)
    abreast, lines = min(heads, _ABREAST), -(-heads // _ABREAST)
    longest = max(max(len(cell.label), len(cell.named()[1].partition(",")[0])) for cell in cells)
    names, top = max(0.85, 0.15 + 0.08 * longest), 0.42
    across = 2 * lines + abreast
    side = min(1.1, (WIDTH - names) / across, (HEIGHT - top) / (lines * len(cells))) - _GAP
    step, large = side + _GAP, lines * (side + _GAP) - _GAP
    note = (
        f"Attention: {kind}. Full colour is a head's highest value in the cell. A pixel's value is "
        "the mean over the patches that cover it; with all heads in one picture it has the colour "
        "of the head that is nearest to its highest value."
    )
    height = top + len(cells) * lines * step
    plate = Plate("Attention of each head", names + across * step, height, note, names)
    for place, cell in enumerate(cells):
        y = top + place * lines * step
        _name(plate, y + large / 2, cell)
        maps = pixel_means(cell.attention, model.image_size, model.patch_size, model.stride)
        maps = maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12)
        show(plate.panel(names, y, large, large), cell.picture, model.image_size)
        axes = plate.panel(names + large + _GAP, y, large, large)
        show(axes, faded(cell.picture), model.image_size)
        _over(axes, composite(maps))
        for head, strength in enumerate(maps):
            line, column = divmod(head, abreast)
            x = names + (2 * lines + column) * step
            axes = plate.panel(x, y + line * step, side, side)
            show(axes, faded(cell.picture), model.image_size)
            _over(axes, tinted(strength, HEADS[head % len(HEADS)]))
            if place == 0 and line:
                _tag(axes, head)
    _titles(plate, names, top - 0.04, step, large, lines, abreast)
    return plate


def _titles(plate, left: float, y: float, step: float, large: float, lines: int, abreast: int):
    style = {"ha": "center", "va": "bottom"}
    plate.text(left + large / 2, y, "cell", **style)
    plate.text(left + large * 1.5 + _GAP, y, "all heads", **style)
    for head in range(abreast):
        x = left + (2 * lines + head + 0.5) * step
        plate.text(x, y, f"head {head + 1}", color=HEADS[head % len(HEADS)], **style)


def _tag(axes: Axes, head: int) -> None:
    style = {"size": SIZE - 1.5, "va": "top", "transform": axes.transAxes}
    style["path_effects"] = [withStroke(linewidth=1.5, foreground="white")]
    axes.text(0.04, 0.97, f"head {head + 1}", color=HEADS[head % len(HEADS)], **style)


def _name(plate: Plate, y: float, cell: Cell) -> None:
    label, told, colour = cell.named()
    first, _, second = told.partition(", ")
    plate.text(MARGIN, y - 0.17, label, weight="bold", size=SIZE + 0.5)
    plate.text(MARGIN, y - 0.03, first, color=colour)
    plate.text(MARGIN, y + 0.10, second, color=colour)


def composite(maps: np.ndarray) -> np.ndarray:
    """maps [h, s, s], each up to 1 -> RGBA [s, s, 4]: the strongest head's colour and strength."""
    colours = np.array([to_rgb(HEADS[head % len(HEADS)]) for head in range(len(maps))])
    return np.concatenate([colours[maps.argmax(0)], _alpha(maps.max(0))], axis=-1)


def tinted(strength: np.ndarray, colour: str) -> np.ndarray:
    """strength [s, s], 0 to 1 -> RGBA [s, s, 4] of one colour, as opaque as it is strong."""
    flat = np.broadcast_to(to_rgb(colour), (*strength.shape, 3))
    return np.concatenate([flat, _alpha(strength)], axis=-1)


def _alpha(strength: np.ndarray) -> np.ndarray:
    return 0.88 * strength[..., None]


def faded(picture: np.ndarray) -> np.ndarray:
    """The picture in pale grey, uint8 [m, m, 3], for colours to lie on."""
    grey = picture.astype(float) @ np.array([0.299, 0.587, 0.114])
    return np.repeat((255 - 0.65 * (255 - grey))[..., None], 3, axis=-1).astype(np.uint8)


def kept_plate(cells: Sequence[Cell], model: BCViTConfig, kind: str) -> Plate:
    """Figure 9: the kept patches in red on the cells, and the attention of all heads below."""
    names, top, scale, gap = 0.3, 0.54, 0.48, _GAP
    columns = min(len(cells), 8)
    lines = -(-len(cells) // columns)
    side = min(1.5, (WIDTH - names - scale) / columns - gap)
    block = 2 * (side + gap) + (0.34 if lines > 1 else 0)
    keeps = len(cells[0].kept) > 0
    note = (
        f"Attention: {kind}, mean over heads, and on a pixel over the patches that cover it."
        + " A thicker frame: kept by several heads." * keeps
        + " Dashed: the cell as segmented." * any(cell.mask is not None for cell in cells)
    )
    title = "Kept patches (red) and attention of all heads" if keeps else "Attention of all heads"
    width, height = names + columns * (side + gap) + scale, top + lines * block
    plate = Plate(title, width, height, note, names)
    means = [
        pixel_means(cell.attention.mean(0), model.image_size, model.patch_size, model.stride)
        * model.num_patches
        for cell in cells
    ]
    norm = Normalize(0, max(float(mean.max()) for mean in means))
    for place, (cell, mean) in enumerate(zip(cells, means, strict=True)):
        line, column = divmod(place, columns)
        x, y = names + column * (side + gap), top + line * block
        label, told, colour = cell.named()
        style = {"ha": "center", "va": "bottom"}
        most = 115 * side  # points that the letters of a line may have together
        bold = {"weight": "bold", "size": min(SIZE, most / len(label) / 1.2)}
        plain = {"color": colour, "size": min(SIZE - 2, most / len(told))}
        plate.text(x + side / 2, y - 0.15, label, **bold, **style)
        plate.text(x + side / 2, y - 0.04, told, **plain, **style)
        axes = plate.panel(x, y, side, side)
        show(axes, cell.picture, model.image_size)
        if cell.mask is not None:
            axes.contour(cell.mask, [0.5], colors=_OUTLINE, linewidths=0.6, linestyles="--")
        frame(axes, cell.kept, model)
        axes = plate.panel(x, y + side + gap, side, side)
        show(axes, mean, model.image_size, cmap="magma", norm=norm)
        if column == 0:
            side_text = {"rotation": 90, "va": "center", "ha": "center", "size": SIZE - 0.5}
            plate.text(names / 2, y + side / 2, "kept patches" if keeps else "cell", **side_text)
            plate.text(names / 2, y + 1.5 * side + gap, "attention", **side_text)
    left = names + columns * (side + gap) + 0.03
    bar = plate.panel(left, top + side + gap, 0.09, side)
    plate.figure.colorbar(ScalarMappable(norm, "magma"), cax=bar)
    bar.tick_params(labelsize=SIZE - 1.5, length=2, width=0.5, pad=1.5)
    bar.set_ylabel("times the mean", size=SIZE - 1.5, labelpad=2)
    return plate


def frame(axes: Axes, kept: np.ndarray, model: BCViTConfig) -> None:
    """A red frame around the pixels of each kept patch, thicker where several heads keep it."""
    at = corners(model.image_size, model.patch_size, model.stride)
    edge = model.patch_size
    for patch, times in sorted(Counter(kept.tolist()).items()):
        top, left = at[patch]
        width = 0.9 + 0.6 * (times - 1)
        # A pixel's centre has whole coordinates, so a patch begins half a pixel before its first.
        axes.add_patch(
            Rectangle(
                (left - 0.5, top - 0.5), edge, edge, fill=False, edgecolor="#ff1f1f", lw=width
            )
        )


def _over(axes: Axes, colours: np.ndarray) -> None:
    axes.imshow(colours, interpolation="nearest")
