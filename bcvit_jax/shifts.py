"""What another laboratory does to a cell image: stain, background, camera, optics, file, framing.

Pure functions of one picture, uint8 [h, w, 3] -> the same shape, and `SHIFTS`, which names each
with the strengths that `bcvit_jax.robustness` measures. Stains change in optical density,
OD = -log10((I + 1) / (B + 1)) a channel with B the picture's background, where the two dyes of a
Romanowsky stain add up (Ruifrok & Johnston 2001, Anal Quant Cytol Histol 23:291).
"""

import io
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

# OD of methylene blue (which azure B is like) and of eosin in R, G, B, of unit length: "Giemsa" of
# the table that colour deconvolution is published with (G. Landini's plugin for ImageJ). Reading:
# fixed, not estimated a picture, since one cell seldom shows both dyes well enough.
AZURE = np.array([0.834750233, 0.513556283, 0.196330403])
EOSIN = np.array([0.092789, 0.954111, 0.283111])
_DYES = np.stack([AZURE, EOSIN, np.cross(AZURE, EOSIN) / np.linalg.norm(np.cross(AZURE, EOSIN))])
_CONCENTRATIONS = np.linalg.inv(_DYES)

_BRIGHT = 0.95  # this quantile of each channel is the background
_LOG = np.log((np.arange(256) + 1) / 256).astype(np.float32)
_GREEN = 1  # both dyes absorb green


def background(image: np.ndarray) -> np.ndarray:
    """The colour between the cells, float [3]: the 95th percentile of each channel.

    Of every second pixel of a picture of 100, every fifth of one of 250: it takes no time.
    """
    down, across = (max(1, side // 50) for side in image.shape[:2])
    planes = image[::down, ::across].reshape(-1, 3).T.copy()
    place = int(_BRIGHT * planes.shape[1])
    planes.partition(place, axis=1)
    return planes[:, place].astype(float)


def optical_density(image: np.ndarray, bright: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] -> float32 [h, w, 3], 0 at the background colour `bright` [3]."""
    return ((log_intensity(bright) - _LOG[image]) / math.log(10)).astype(np.float32)


def log_intensity(colour: np.ndarray) -> np.ndarray:
    """ln((I + 1) / 256)."""
    return np.log((np.asarray(colour, float) + 1) / 256)


def stain_matrix(azure: float = 1.0, eosin: float = 1.0, hue: float = 0.0) -> np.ndarray:
    """float [3, 3]: new OD = m · OD, with the amount of each dye times a factor.

    `hue` turns the dyes' own colours about grey, in turns; positive is from blue towards red.
    """
    scaled = _CONCENTRATIONS @ np.diag([azure, eosin, math.sqrt(azure * eosin)]) @ _DYES
    return rotation(hue) @ scaled.T


def rotation(turns: float) -> np.ndarray:
    """float [3, 3]: the rotation of colour space about its grey axis."""
    cos, sin = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    axis = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    return cos * np.eye(3) + (1 - cos) / 3 + sin * axis


def change_colours(
    image: np.ndarray,
    matrix: np.ndarray,
    offset: np.ndarray,
    tint: np.ndarray | None = None,
    bright: np.ndarray | None = None,
) -> np.ndarray:
    """ln I' = matrix · ln I + offset, with ln I for `log_intensity`; rounded, clipped to 0 … 255.

    Stain, gain and gamma are all such maps, so any number of them is one pass. `tint` [3] is added
    to ln I of the background only: in full at the colour `bright`, by the fourth power of the
    transmitted green below it, which leaves a nucleus as it is.
    """
    logs = np.take(_LOG, image.reshape(-1, 3).T)  # [3, n]: a third of the time of [n, 3]
    logs = matrix.astype(np.float32) @ logs
    logs += offset.astype(np.float32)[:, None]
    if tint is not None and bright is not None:
        share = np.minimum(np.exp(4 * (_LOG - log_intensity(bright)[_GREEN])), 1)
        weight = np.take(share.astype(np.float32), image[..., _GREEN].reshape(-1))
        logs += tint.astype(np.float32)[:, None] * weight
    np.exp(logs, out=logs)
    logs *= 256
    logs -= 0.5  # back from I + 1, and half a step for rounding
    np.clip(logs, 0, 255, out=logs)
    planes = logs.astype(np.uint8).reshape(3, *image.shape[:2])
    changed = np.empty_like(image, order="C")
    for channel in range(3):
        changed[..., channel] = planes[channel]
    return changed


def recolour(image: Image.Image, matrix: np.ndarray) -> Image.Image:
    """Apply an affine colour map [3, 4] to an RGB picture; rounded and clipped to 0 … 255."""
    return image.convert("RGB", tuple(matrix.ravel().tolist()))


def stain(
    image: np.ndarray, azure: float = 1.0, eosin: float = 1.0, hue: float = 0.0
) -> np.ndarray:
    """More or less of the two dyes, of another colour; the background keeps its own."""
    matrix, bright = stain_matrix(azure, eosin, hue), log_intensity(background(image))
    return change_colours(image, matrix, bright - matrix @ bright)


def tint_background(image: np.ndarray, stops: tuple[float, float, float]) -> np.ndarray:
    """The background's red, green and blue times 2^stops; the cells keep their colours."""
    tint = math.log(2) * np.array(stops)
    return change_colours(image, np.eye(3), np.zeros(3), tint, background(image))


def gain(image: np.ndarray, stops: tuple[float, float, float]) -> np.ndarray:
    """Every pixel's red, green and blue times 2^stops: exposure and white balance."""
    return change_colours(image, np.eye(3), math.log(2) * np.array(stops))


def gamma(image: np.ndarray, exponent: float) -> np.ndarray:
    """I^exponent in the range of the picture; above 1 is darker."""
    return change_colours(image, exponent * np.eye(3), np.zeros(3))


def stray_light_table(bright: np.ndarray, share: float, nucleus: np.ndarray) -> np.ndarray:
    """uint8 [3, 256]: a channel's values with `share` of the background's light added everywhere,
    and then as much more dye as brings the optical densities `nucleus` [3] back.

    With t the transmitted light, t' = ((t + s) / (1 + s))^g. Added light hides differences of what
    is dark, so next to nuclei what is pale looks darker. Below 0 light is taken away.
    """

    def veiled(light):
        return np.maximum((light + share) / (1 + share), 1 / 256)

    back = -nucleus * math.log(10) / np.log(veiled(10**-nucleus))
    bright = bright[:, None] + 1
    light = veiled((np.arange(256) + 1) / bright) ** back[:, None]
    return np.clip(light * bright - 0.5, 0, 255).astype(np.uint8)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian; sigma in pixels."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def sharpen(image: np.ndarray, amount: float, sigma: float) -> np.ndarray:
    """Adds `amount` times what a blur by `sigma` pixels would take away."""
    mask = ImageFilter.UnsharpMask(sigma, round(100 * amount), 0)
    return np.asarray(Image.fromarray(image).filter(mask))


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    """Through a JPEG file of that quality, with halved colour resolution as is usual."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(file, formats=("JPEG",)) as opened:
        return np.asarray(opened)


def magnify(image: np.ndarray, factor: float) -> np.ndarray:
    """The picture at another magnification, in the same pixels; below 1 mirrored at its edges."""
    height, width = image.shape[:2]
    left, top = (width - width / factor) / 2, (height - height / factor) / 2
    return window(image, (left, top, width - left, height - top), (width, height))


def move(image: np.ndarray, right: int, down: int) -> np.ndarray:
    """The content moved by whole pixels; what comes in is mirrored at the edge."""
    height, width = image.shape[:2]
    return window(image, (-right, -down, width - right, height - down), (width, height))


def window(
    image: np.ndarray,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    filter: Image.Resampling = Image.Resampling.BICUBIC,
) -> np.ndarray:
    """(left, top, right, bottom) of the picture resized to (width, height), antialiased.

    Where the box leaves the picture, its pixels are mirrored at the edge.
    """
    height, width = image.shape[:2]
    # Two more than the box needs, for the filter to see past its edge.
    left, top = (max(0, math.ceil(-edge) + 2) if edge < 0 else 0 for edge in box[:2])
    beyond = box[2] - width, box[3] - height
    right, bottom = (max(0, math.ceil(edge) + 2) if edge > 0 else 0 for edge in beyond)
    if left or top or right or bottom:
        image = np.pad(image, ((top, bottom), (left, right), (0, 0)), mode="symmetric")
    moved = (box[0] + left, box[1] + top, box[2] + left, box[3] + top)
    return np.asarray(Image.fromarray(image).resize(size, filter, box=moved))


class Shift(NamedTuple):
    """One way in which pictures differ, and the strengths at which it is measured."""

    change: Callable[[np.ndarray, float, float, float], np.ndarray]
    """(image, strength, side, turn) -> image. `side` is that of the square which the network sees,
    in pixels, and `turn` in [0, 1) a direction, for shifts that have one."""
    axis: str
    """What the strength is, with its unit."""
    none: float
    """The strength of no change."""
    grid: tuple[float, ...]
    stated: tuple[float, ...]
    """Strengths of the grid that a careful laboratory may well have: the worst case is taken
    there."""
    untrained: tuple[float, ...]
    """Strengths of the grid that no recipe of configs/ draws in training."""

    def __call__(self, image: np.ndarray, strength: float, side: float, turn: float) -> np.ndarray:
        """The shifted picture; at the strength `none` the picture itself."""
        return image if strength == self.none else self.change(image, strength, side, turn)


def _move(image: np.ndarray, share: float, side: float, turn: float) -> np.ndarray:
    angle = 2 * math.pi * turn
    offset = round(share * side * math.cos(angle)), round(share * side * math.sin(angle))
    return move(image, *offset)


SHIFTS = {
    "stain_hue": Shift(
        lambda image, s, *_: stain(image, hue=s / 360),
        "hue of both dyes, degrees (blue to red)",
        0.0,
        (-60, -45, -30, -15, 15, 30, 45, 60),
        (-30, 30),
        (-60, 60),
    ),
    "stain_strength": Shift(
        lambda image, s, *_: stain(image, s, s),
        "amount of both dyes, factor",
        1.0,
        (0.25, 0.35, 0.5, 0.7, 1.4, 2.0, 2.8),
        (0.5, 1.4),
        (0.35, 2.8),
    ),
    "stain_ratio": Shift(
        lambda image, s, *_: stain(image, math.sqrt(s), 1 / math.sqrt(s)),
        "azure against eosin, factor",
        1.0,
        (0.25, 0.35, 0.5, 0.7, 1.4, 2.0, 2.8, 4.0),
        (0.5, 2.0),
        (0.25, 4.0),
    ),
    "background": Shift(
        lambda image, s, *_: tint_background(image, (s / 2, 0.0, -s / 2)),
        "background, stops of red against blue",
        0.0,
        (-1.2, -0.8, -0.4, -0.2, 0.2, 0.4, 0.8, 1.2),
        (-0.4, 0.4),
        (-0.4, 0.4),
    ),
    "background_light": Shift(
        lambda image, s, *_: tint_background(image, (s, s, s)),
        "light of the background, stops",
        0.0,
        (-0.6, -0.45, -0.3, -0.15, 0.15, 0.3),
        (-0.3, 0.3),
        (-0.3, 0.3),
    ),
    "white_balance": Shift(
        lambda image, s, *_: gain(image, (s / 2, 0.0, -s / 2)),
        "white balance, stops of red against blue",
        0.0,
        (-1.2, -0.8, -0.4, -0.2, 0.2, 0.4, 0.8, 1.2),
        (-0.4, 0.4),
        (-0.8, 0.8),
    ),
    "brightness": Shift(
        lambda image, s, *_: gain(image, (s, s, s)),
        "exposure, stops",
        0.0,
        (-1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75),
        (-0.5, 0.5),
        (-0.5, 0.5),
    ),
    "gamma": Shift(
        lambda image, s, *_: gamma(image, s),
        "gamma (above 1 is darker)",
        1.0,
        (0.4, 0.55, 0.75, 1.35, 1.8, 2.5),
        (0.55, 1.8),
        (0.55, 1.8),
    ),
    "blur": Shift(
        lambda image, s, side, _: blur(image, s / 100 * side),
        "blur, sigma in % of the view",
        0.0,
        (0.5, 1.0, 1.5, 2.0, 3.0, 5.0),
        (1.0,),
        (5.0,),
    ),
    "sharpen": Shift(
        lambda image, s, side, _: sharpen(image, s, 0.01 * side),
        "sharpening (1 % of the view), amount",
        0.0,
        (0.5, 1.0, 2.0, 4.0),
        (2.0,),
        (2.0,),
    ),
    "jpeg": Shift(
        lambda image, s, *_: compress(image, round(s)),
        "JPEG quality (100: untouched)",
        100.0,
        (5, 10, 20, 35, 50, 75),
        (20,),
        (20,),
    ),
    "magnification": Shift(
        lambda image, s, *_: magnify(image, s),
        "magnification, factor",
        1.0,
        (0.5, 0.6, 0.7, 0.85, 1.2, 1.4, 1.7, 2.0),
        (0.7, 1.4),
        (0.5, 2.0),
    ),
    "position": Shift(
        lambda image, s, side, turn: _move(image, s / 100, side, turn),
        "cell off the middle, % of the view",
        0.0,
        (5, 10, 15, 20, 30),
        (15,),
        (30,),
    ),
}
