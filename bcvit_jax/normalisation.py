"""Taking out of a picture what its laboratory put in: light, dyes' colours, magnification."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from bcvit_jax.errors import UserError
from bcvit_jax.shifts import background, optical_density, recolour

_WHITE, _DARKEST = 240.0, 80.0
_RED, _BLUE = 0, 2
NUCLEUS_DENSITY = np.array([0.494, 0.830, 0.173])  # optical density in R, G, B: pbc10's median
# The shares of the light that nuclei and red cells absorb in R, G, B: pbc10's range, which is the
# 2nd and the 98th percentile of its pictures.
NUCLEI = np.array([[0.543, 0.742, 0.259], [0.758, 0.884, 0.416]])
RED_CELLS = np.array([[0.133, 0.201, 0.133], [0.285, 0.373, 0.235]])
NUCLEUS_SIZES = 0.12, 0.36  # root of its area as a share of the shorter side: pbc10's range
_OPAQUE = 1.5  # density that counts at most: 3 % of the light
_HAZE = 0.5  # of the densest red cells' density: what has less is none
_LEAST, _MOST = 0.4, 3.0
_WEAKEST, _STRONGEST = 0.25, 4.0
_ALIKE = 0.995  # cosine beyond which two colours do not span a plane


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """What is taken out of every picture, in training and ever after; `str` names its caches."""

    white_background: bool = False
    """The light's colour: each channel is scaled so that the background becomes 240."""
    normalise_stain: bool = False
    """And the dyes': nuclei and red cells come into the range of colours that pbc10's have."""
    normalise_scale: bool = False
    """And the magnification, where the nucleus is larger or smaller than nuclei of pbc10 are.
    Within their range the size is left, since it tells a monocyte from a lymphocyte."""

    def __str__(self) -> str:
        colours = "white" if self.white_background else ""
        colours = "stain4" if self.normalise_stain else colours  # 4th form of the map
        scale = "scale2" if self.normalise_scale else ""  # 2nd form: always a square
        return " ".join(filter(None, (colours, scale)))

    def fraction(self, image: Image.Image, usual: float) -> float:
        """The share of an RGB picture's shorter side that is looked at, from half of `usual` to 1.

        It is `usual` times e^1.5, e being how many times larger than the largest of `NUCLEUS_SIZES`
        the nucleus is (or than the smallest, where it is smaller). Reading: 1.5, since most nuclei
        are smaller than the largest, so that the picture is magnified by more than e.
        """
        if not self.normalise_scale:
            return usual
        size = nucleus_size(np.asarray(image))
        excess = size / np.clip(size, *NUCLEUS_SIZES)
        return float(np.clip(usual * excess**1.5, usual / 2, 1.0))

    def colours(
        self, image: Image.Image, middle: tuple[float, float, float, float]
    ) -> Callable[[np.ndarray], np.ndarray]:
        """The change of colours, uint8 [h, w, 3] -> the same shape, of an RGB picture whose cell
        lies in the box `middle`, in pixels: pixel by pixel, so that it may follow a resize.

        The background is `shifts.background`; what is brighter than it may be clipped. A picture
        without any, all darker than 80, is scaled by no more than that.
        """
        if not self.white_background:
            return lambda pixels: pixels
        pixels = np.asarray(image)
        bright = np.maximum(background(pixels), _DARKEST)
        if not self.normalise_stain:
            light = _WHITE * np.arange(256) / bright[:, None]
            table = np.minimum(light + 0.5, 255).astype(np.uint8)
            return lambda pixels: table[np.arange(3), pixels]
        # 240 (1 - matrix · absorbed), with absorbed = 1 - I / bright: one affine map of I.
        matrix = _WHITE * stain_map(pixels, bright, middle) / bright
        affine = np.column_stack([matrix, _WHITE - matrix @ bright])
        return lambda pixels: np.asarray(recolour(Image.fromarray(pixels), affine))


AS_IT_IS = Normalisation()


def current(fields: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Settings that `what` was saved with, without older versions' `even_stain` where it is off.

    Errors: UserError where it is on, since its pictures are not made any more.
    """
    kept = dict(fields)
    if kept.pop("even_stain", False):
        raise UserError(
            f"{what} was trained on pictures with even_stain, which this version does not make; "
            "use the version that trained it, or train again"
        )
    return kept


def stain_map(
    pixels: np.ndarray, bright: np.ndarray, middle: tuple[float, float, float, float]
) -> np.ndarray:
    """float [3, 3]: light absorbed in a picture [h, w, 3] -> as in a picture of pbc10.

    Absorbed is 1 - I / B a channel, B being the background. (Reading: light, in which a camera's
    colour correction is linear, and not density, in which the dyes add up. Where a camera has made
    a nucleus black in one channel, its density there says nothing.) The two colours of
    `stain_colours` are brought towards the nearest within `NUCLEI` and `RED_CELLS`; colours within
    stay, since a monocyte is told by its pale nucleus as well. What is at right angles to both is
    scaled by the mean of their factors, each in [0.4, 3]; no difference of colours is stretched
    more than four times or shrunk to less than a quarter. Where no red cells are seen, or their
    colour is nearly the nucleus's (cosine > 0.995), the map turns the nucleus's colour to the
    wanted one and scales. Noise of a pale picture grows alike, and the darkest may become black.
    """
    nucleus, red_cells = stain_colours(pixels, bright, middle)
    own, size = _unit(nucleus)
    wanted, wanted_size = _unit(np.clip(nucleus, *NUCLEI))
    factor = _bounded(wanted_size / size)
    if red_cells is None or own @ (_unit(red_cells)[0]) > _ALIKE:
        return factor * _rotation(own, wanted)
    second, second_size = _unit(red_cells)
    wanted_second, wanted_second_size = _unit(np.clip(red_cells, *RED_CELLS))
    second_factor = _bounded(wanted_second_size / second_size)
    third = _unit(np.cross(own, second))[0]
    mean = np.sqrt(factor * second_factor)
    source = np.stack([own, second, third], axis=1)
    target = np.stack([factor * wanted, second_factor * wanted_second, mean * third], axis=1)
    left, sizes, right = np.linalg.svd(target @ np.linalg.inv(source))
    return left * np.clip(sizes, _WEAKEST, _STRONGEST) @ right


def nucleus_size(pixels: np.ndarray) -> float:
    """The root of the nucleus's area, as a share of the shorter side of a picture [h, w, 3].

    The nucleus is what absorbs red at least half as much as the darkest 3 % near the middle, in
    patches that reach to within a quarter of the side from it; at least a hundredth of the picture.
    """
    from scipy import ndimage  # here: half a second that most runs have no use for

    side = min(pixels.shape[:2])
    step = max(1, side // 100)
    bright = np.maximum(background(pixels), _DARKEST)
    red = np.clip(optical_density(pixels[::step, ::step], bright)[..., _RED], 0, _OPAQUE)
    height, width = red.shape
    y, x = np.mgrid[:height, :width]
    reach = np.hypot(y + 0.5 - height / 2, x + 0.5 - width / 2) * step / side
    dark = red >= 0.5 * min(np.quantile(red[reach <= max(0.3, reach.min())], 0.97), _OPAQUE / 2)
    patches = np.empty(dark.shape, np.int32)
    ndimage.label(dark, output=patches)
    own = np.unique(patches[(reach < 0.25) & dark])
    area = np.isin(patches, own).sum() * (step / side) ** 2
    return float(max(area, 0.01)) ** 0.5


def stain_colours(
    pixels: np.ndarray, bright: np.ndarray, middle: tuple[float, float, float, float]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Shares of the light [3] that the nucleus and the red cells absorb, None where there are too
    few of these.

    The nucleus is the median of what absorbs red at least half as much, in optical density, as the
    hundredth of `middle` that absorbs most; the red cells are the median of what lies around the
    middle and absorbs red less than half as much as the nucleus, blue more in proportion. What is
    less than half as dense as their densest tenth is haze or an edge, and is left out.
    """
    left, top, right, bottom = middle
    step = max(1, round((right - left) / 60))
    density = np.minimum(optical_density(pixels[::step, ::step], bright), _OPAQUE)
    height, width = density.shape[:2]
    y = (np.arange(height)[:, None] * step - (top + bottom) / 2) / ((bottom - top) / 2)
    x = (np.arange(width) * step - (left + right) / 2) / ((right - left) / 2)
    inside = density[(np.abs(y) <= 1) & (np.abs(x) <= 1)]
    red = np.maximum(inside[:, _RED], 0)
    dark = red >= 0.5 * min(np.quantile(red, 0.99), _OPAQUE / 2)
    nucleus = np.median(inside[dark], axis=0).astype(float)
    around = density[np.hypot(y, x) > 1]
    total = around.sum(axis=1)
    bluer = around[:, _BLUE] - (nucleus[_BLUE] / max(nucleus.sum(), 1e-3) + 0.06) * total
    pale = (total > 0.1 * nucleus.sum()) & (around[:, _RED] < 0.5 * nucleus[_RED])
    red_cells = pale & (bluer > 0)
    if red_cells.any():
        red_cells &= total >= _HAZE * np.quantile(total[red_cells], 0.9)
    if red_cells.sum() <= 0.02 * len(red_cells):
        return _absorbed(nucleus), None
    return _absorbed(nucleus), _absorbed(np.median(around[red_cells], axis=0).astype(float))


def _absorbed(density: np.ndarray) -> np.ndarray:
    """The share of the light that an optical density takes away, in [0, 1)."""
    return 1 - 10.0 ** -np.maximum(density, 0)


def _unit(colour: np.ndarray) -> tuple[np.ndarray, float]:
    """The direction of a colour and its length; no colour at all counts as grey."""
    size = float(np.linalg.norm(colour))
    return (colour / size, size) if size > 1e-3 else (np.full(3, 3**-0.5), 1e-3)


def _bounded(factor: float) -> float:
    return float(np.clip(factor, _LEAST, _MOST))


def _rotation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float [3, 3] that turns the direction a to b and leaves what is at right angles to both."""
    x, y, z = np.cross(a, b)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + a @ b)
