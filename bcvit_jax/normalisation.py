"""Taking out of a picture what its laboratory put in: the light's colour, the amount of dye."""

import dataclasses

import numpy as np
from PIL import Image

from bcvit_jax.shifts import background

_WHITE, _DARKEST = 240.0, 80.0
_NUCLEUS, _NUCLEUS_SHARE, _OPAQUE = 4.3, 0.02, 0.03


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """What is taken out of every picture, in training and ever after; `str` names its caches."""

    white_background: bool = False
    """The light's colour: each channel is scaled so that the background becomes 240."""
    even_stain: bool = False
    """Besides, the amount of dye: a power of the transmitted light makes nuclei equally dark."""

    def __str__(self) -> str:
        return "even stain" if self.even_stain else "white" if self.white_background else ""

    def table(self, image: Image.Image, middle: tuple[float, float, float, float]) -> list[int]:
        """Pillow's table [768] for an RGB picture whose cell lies in the box `middle`, in pixels.

        The background is `shifts.background`; what is brighter than it may be clipped. A picture
        without any, all darker than 80, is scaled by no more than that. By Beer and Lambert, dye
        times g is transmitted light to the power g. g brings the natural logarithms of the light
        that the darkest fiftieth of `middle` transmits, summed over the channels, to −4.3, the
        median of pbc10's cells; it lies in [½, 2], and black counts as 3 %.
        """
        pixels = np.asarray(image)
        bright = np.maximum(background(pixels), _DARKEST)
        light = np.arange(256) / bright[:, None]
        if self.even_stain:
            light = np.where(light < 1, light ** _dye_factor(pixels, bright, middle), light)
        return np.minimum(_WHITE * light + 0.5, 255).astype(np.uint8).ravel().tolist()


AS_IT_IS = Normalisation()


def _dye_factor(
    pixels: np.ndarray, bright: np.ndarray, middle: tuple[float, float, float, float]
) -> float:
    """By how much dye of the picture [h, w, 3] must grow; see `Normalisation.table`."""
    left, top, right, bottom = (round(edge) for edge in middle)
    step = max(1, (right - left) // 50)
    light = pixels[top:bottom:step, left:right:step].reshape(-1, 3) / bright
    count = max(1, round(_NUCLEUS_SHARE * len(light)))
    darkest = light[np.argpartition(light.sum(axis=1), count - 1)[:count]].mean(axis=0)
    density = -np.log(np.clip(darkest, _OPAQUE, 1)).sum()
    return float(np.clip(_NUCLEUS / max(density, 1e-6), 0.5, 2.0))
