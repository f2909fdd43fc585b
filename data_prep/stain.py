"""Stain, light and camera of a rendered smear: dye amounts in, 8-bit picture out.

A Romanowsky stain (May-Grünwald-Giemsa, Wright) is azure B and eosin Y. Where azure binds to
DNA with eosin it turns purple (the Romanowsky effect), on RNA it stays blue; eosin and
haemoglobin are pink to orange. Light follows Beer-Lambert: transmission = exp(-amount · density).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from data_prep.shapes import Field, smooth_noise

AZURE, PURPLE, EOSIN, HAEMOGLOBIN = range(4)

# Optical density of one unit of each dye for red, green and blue light (typical values, read off
# the colours named beside them on a cream background).
DYES = np.array(
    [
        [1.25, 0.95, 0.18],  # azure: basophilic cytoplasm
        [1.45, 1.95, 0.64],  # purple: chromatin, one unit = a dense nucleus
        [0.24, 0.78, 0.74],  # eosin: eosinophil granules
        [0.19, 0.40, 0.35],  # haemoglobin: one unit = the rim of a red cell
    ]
)


@dataclass(frozen=True)
class Stain:
    """One slide's look. `draw` makes a new slide, `vary` the small changes between its fields."""

    dyes: NDArray[np.float64]  # [4, 3] optical densities
    background: NDArray[np.float64]  # [3] colour of the empty slide, 0…1
    gamma: float
    saturation: float
    blur_um: float  # standard deviation of the point spread
    noise: float  # standard deviation in 8-bit levels
    crowding: float  # red cells: share of the area they would cover without overlap

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Stain:
        """A new slide: dye strength and hue, white balance, camera, density of red cells."""
        strength = np.exp(rng.normal(0.0, [0.35, 0.18, 0.50, 0.35]))
        common_turn = rng.normal(0.0, 0.20)
        dyes = np.stack(
            [
                amount * _turn_hue(dye, common_turn + rng.normal(0.0, 0.10))
                for amount, dye in zip(strength, DYES, strict=True)
            ]
        )
        balance = np.exp(rng.normal(0.0, 0.055, size=3))
        background = rng.uniform(0.72, 0.98) * balance / balance.max()
        return cls(
            dyes=np.maximum(dyes, 0.02),
            background=background,
            gamma=float(rng.uniform(0.8, 1.25)),
            saturation=float(rng.uniform(0.45, 1.2)),
            blur_um=float(rng.uniform(0.05, 0.12)),
            noise=float(rng.uniform(1.0, 4.0)),
            crowding=float(rng.uniform(0.15, 0.6)),
        )

    def vary(self, rng: np.random.Generator) -> Stain:
        """The same slide a little further on: thickness, focus and light differ slightly."""
        return replace(
            self,
            dyes=self.dyes * np.exp(rng.normal(0.0, [[0.12], [0.10], [0.18], [0.12]])),
            background=np.clip(self.background * np.exp(rng.normal(0.0, 0.03, size=3)), 0.0, 1.0),
            blur_um=self.blur_um * float(np.exp(rng.normal(0.0, 0.25))),
            crowding=self.crowding * float(np.exp(rng.normal(0.0, 0.3))),
        )


def _turn_hue(dye: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """Turn a colour [3] about the grey axis (Rodrigues); the sum of its channels stays."""
    axis = np.full(3, 1.0 / np.sqrt(3.0))
    return (
        dye * np.cos(angle)
        + np.cross(axis, dye) * np.sin(angle)
        + axis * (axis @ dye) * (1.0 - np.cos(angle))
    )


def photograph(
    amounts: Field, stain: Stain, pixels_per_um: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Dye amounts [4, h, w] to the picture [h, w, 3] the microscope's camera gives."""
    height, width = amounts.shape[1:]
    density = np.zeros((height, width, 3), dtype=np.float32)
    for amount, dye in zip(amounts, stain.dyes.astype(np.float32), strict=True):
        density += amount[:, :, None] * dye
    picture = np.exp(-density)
    blur = stain.blur_um * pixels_per_um
    picture = gaussian_filter(picture, (blur, blur, 0.0), truncate=3.0)
    picture *= (stain.background * np.ones(3)).astype(np.float32)
    picture *= _illumination(rng, height, width)[:, :, None]
    picture = np.clip(picture, 0.0, 1.0) ** np.float32(stain.gamma)
    grey = picture.mean(axis=2, keepdims=True)
    picture = grey + np.float32(stain.saturation) * (picture - grey)
    noise = rng.standard_normal(picture.shape, dtype=np.float32)
    noise += smooth_noise(rng, (height, width), 2.0)[:, :, None]
    picture += np.float32(stain.noise / 255.0 / 1.4) * noise
    return np.clip(picture * 255.0 + 0.5, 0, 255).astype(np.uint8)


def _illumination(rng: np.random.Generator, height: int, width: int) -> Field:
    """Uneven light [h, w] around 1: a slope and a fall-off towards the corners."""
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :]
    slope_x, slope_y = rng.normal(0.0, 0.06, size=2).astype(np.float32)
    return 1.0 + slope_x * x + slope_y * y - np.float32(rng.uniform(0.0, 0.12)) * (x * x + y * y)
