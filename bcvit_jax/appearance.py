"""Training pictures as another laboratory would have made them: drawn stain, camera and framing.

The changes are those of shifts.py. Stain augmentation in optical density after Tellez et al. 2019
(10.1016/j.media.2019.101544), who find it to be what carries a network to other laboratories.
"""

import dataclasses
import math
from statistics import NormalDist
from typing import Any

import numpy as np
from PIL import Image

from bcvit_jax import shifts
from bcvit_jax.errors import UserError
from bcvit_jax.normalisation import NUCLEUS_DENSITY

_OFTEN = 0.5  # share of the pictures that are blurred or sharpened, noisy, compressed

# The normal distribution for the 256 values of a byte: random bytes are drawn five times as fast.
_NORMAL = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)], np.float32)

_RANGES = (
    ("stain_strength", 0.1, 10.0),
    ("stain_ratio", 0.1, 10.0),
    ("gamma", 0.1, 10.0),
    ("zoom", 0.25, 4.0),
)
_STRENGTHS = (
    ("share", 1.0),
    ("stain_hue", 0.5),
    ("channel_mix", 0.5),
    ("background", 2.0),
    ("white_balance", 2.0),
    ("stray_light", 4.0),
    ("grey", 1.0),
    ("blur", 0.1),
    ("sharpen", 10.0),
    ("noise", 128.0),
    ("jpeg", 95),
    ("shift", 0.5),
)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """How far training pictures may look like another laboratory's; `config.data.augment`.

    A range is drawn from log-uniformly and a strength s uniformly from -s to s; (1, 1), and 0,
    switch a change off, and off is the default. Errors: UserError on a value out of its range.
    """

    share: float = 1.0
    """Share of the pictures that are changed; the others stay as this laboratory made them."""
    stain_hue: float = 0.0
    """Turn of both dyes' colours, in turns of the colour circle."""
    stain_strength: tuple[float, float] = (1.0, 1.0)
    """Amount of both dyes."""
    stain_ratio: tuple[float, float] = (1.0, 1.0)
    """Amount of azure against eosin."""
    channel_mix: float = 0.0
    """Share of each channel's optical density that is added to each channel's."""
    background: float = 0.0
    """Colour and light of the background alone, stops a channel."""
    white_balance: float = 0.0
    """Colour and light of the whole picture, stops a channel."""
    gamma: tuple[float, float] = (1.0, 1.0)
    stray_light: float = 0.0
    """Highest share of the light that reaches the camera past the cell, by lenses or a shallow
    sensor, from -1/8 of it on; a nucleus as dark as pbc10's median stays, what is paler gains."""
    grey: float = 0.0
    """Share of the pictures without colour."""
    blur: float = 0.0
    """Highest sigma, as a share of the side; of half of the pictures, as the next three."""
    sharpen: float = 0.0
    """Highest amount; a picture is blurred or sharpened, not both."""
    noise: float = 0.0
    """Highest standard deviation, of 255."""
    jpeg: int = 0
    """Lowest quality, up to 95; 0 is off."""
    zoom: tuple[float, float] = (1.0, 1.0)
    """Magnification. Below 1 the stored squares hold more of the picture, mirrored at its edge."""
    shift: float = 0.0
    """The cell's way from the middle to each side, as a share of the view; never out of the stored
    square."""

    def __post_init__(self):
        rules = {}
        for name, least, most in _RANGES:
            object.__setattr__(self, name, tuple(getattr(self, name)))
            bounds = getattr(self, name)
            holds = len(bounds) == 2 and least <= bounds[0] <= bounds[1] <= most
            rules[name] = (holds, f"be two numbers {least:g} ≤ low ≤ high ≤ {most:g}")
        for name, most in _STRENGTHS:
            rules[name] = (0 <= getattr(self, name) <= most, f"lie in [0, {most:g}]")
        for name, (holds, rule) in rules.items():
            if not holds:
                value = getattr(self, name)
                raise UserError(f"config.data.augment.{name} is {value}; it must {rule}.")

    @property
    def recolours(self) -> bool:
        """Whether `change_look` has anything to do."""
        ranges = (self.stain_strength, self.stain_ratio, self.gamma)
        strengths = (self.stain_hue, self.channel_mix, self.background, self.white_balance)
        strengths += (self.stray_light,)
        return any(strengths) or any(r != (1.0, 1.0) for r in ranges)

    @property
    def degrades(self) -> bool:
        """Whether `change_quality` has."""
        return any((self.grey, self.blur, self.sharpen, self.noise, self.jpeg))

    @property
    def changes(self) -> dict[str, Any]:
        """The fields that are on."""
        fields = dataclasses.fields(self)
        values = {field.name: (getattr(self, field.name), field.default) for field in fields}
        return {name: value for name, (value, off) in values.items() if value != off}


OFF = AugmentConfig()


def margin(side: int, config: AugmentConfig) -> int:
    """Pixels that a stored square needs around its middle `side` for every drawn view.

    Reading: zoom and shift need not be at their extremes together; `view` keeps to the square.
    """
    widest = max(1 / min(config.zoom[0], 1.0), 1 + 2 * config.shift)
    return math.ceil(side * (widest - 1) / 2 - 1e-9)


def view(
    side: int, margin: int, config: AugmentConfig, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """The part of a stored square that a picture shows: (left, top, right, bottom) in pixels.

    `side` is that of the middle which evaluation sees, with `margin` pixels on each side of it.
    """
    edge, across, down = float(side), 0.0, 0.0
    if config.zoom != (1.0, 1.0):
        edge /= _factor(rng, config.zoom)
    if config.shift:
        across, down = rng.uniform(-config.shift, config.shift, 2) * edge
    whole = side + 2 * margin
    edge = min(edge, float(whole))
    room = (whole - edge) / 2
    left, top = (room + min(max(way, -room), room) for way in (across, down))
    return left, top, left + edge, top + edge


def change_look(
    image: Image.Image, bright: np.ndarray, config: AugmentConfig, rng: np.random.Generator
) -> Image.Image:
    """Stray light; stain, background, white balance and gamma in one pass; `bright` [3] is the
    background."""
    if config.stray_light:
        share = rng.uniform(-config.stray_light / 8, config.stray_light)
        image = image.point(
            shifts.stray_light_table(bright, share, NUCLEUS_DENSITY).ravel().tolist()
        )
    hue = rng.uniform(-config.stain_hue, config.stain_hue) if config.stain_hue else 0.0
    strength, ratio = _factor(rng, config.stain_strength), _factor(rng, config.stain_ratio)
    matrix = shifts.stain_matrix(strength * math.sqrt(ratio), strength / math.sqrt(ratio), hue)
    if config.channel_mix:
        mix = rng.uniform(-config.channel_mix, config.channel_mix, (3, 3))
        matrix = (np.eye(3) + mix) @ matrix
    tint = _stops(rng, config.background)
    light = shifts.log_intensity(bright)
    exponent = _factor(rng, config.gamma)
    offset = exponent * (light - matrix @ light)
    if config.white_balance:
        offset += _stops(rng, config.white_balance)
    return Image.fromarray(
        shifts.change_colours(
            np.asarray(image),
            exponent * matrix,
            offset,
            tint if config.background else None,
            bright,
        )
    )


def change_quality(
    image: Image.Image, config: AugmentConfig, rng: np.random.Generator
) -> Image.Image:
    """Optics, sensor and file, in this order: blur or sharpening, noise, JPEG."""
    if config.grey and rng.random() < config.grey:
        image = image.convert("L").convert("RGB")
    pixels = np.asarray(image)
    if (config.blur or config.sharpen) and rng.random() < _OFTEN:
        sharper = bool(config.sharpen) and (not config.blur or rng.random() < 0.5)
        amount = rng.uniform(0, config.sharpen if sharper else config.blur)
        if sharper:
            pixels = shifts.sharpen(pixels, amount, 0.01 * image.width)
        else:
            pixels = shifts.blur(pixels, amount * image.width)
    if config.noise and rng.random() < _OFTEN:
        deviation = rng.uniform(0, config.noise)
        draws = np.take(_NORMAL, rng.integers(0, 256, pixels.size, np.uint8))
        noisy = pixels + (deviation * draws + 0.5).reshape(pixels.shape)
        pixels = np.clip(noisy, 0, 255, out=noisy).astype(np.uint8)
    if config.jpeg and rng.random() < _OFTEN:
        pixels = shifts.compress(pixels, int(rng.integers(config.jpeg, 96)))
    return Image.fromarray(pixels)


def _factor(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    if bounds == (1.0, 1.0):
        return 1.0
    return math.exp(rng.uniform(math.log(bounds[0]), math.log(bounds[1])))


def _stops(rng: np.random.Generator, most: float) -> np.ndarray:
    """ln of a factor a channel, 2^-most … 2^most."""
    return math.log(2) * rng.uniform(-most, most, 3) if most else np.zeros(3)
