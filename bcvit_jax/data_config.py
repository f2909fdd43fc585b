"""The fields of `config.data`, and what may not stand in them."""

import dataclasses

from bcvit_jax.appearance import OFF, AugmentConfig
from bcvit_jax.errors import UserError
from bcvit_jax.normalisation import Normalisation


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What happens between a data set and its batches; `config.data` holds the same names.

    The strengths of the colour jitter are torchvision's; 0, and (1, 1) for a range, switch a change
    off. Errors: UserError on a value out of its range.
    """

    path: str
    protocol: str = "leak_free"  # or "paper": balanced before splitting, see balance.py
    balance: bool = True
    balance_target: int = 0  # images a class; 0 = median class count of the training folds
    centre_crop: float = 1.0  # side of the centred square kept, as a share of the shorter side
    white_background: bool = False  # scale each channel so that the background is 240
    normalise_stain: bool = False  # and the dyes: nuclei and red cells within pbc10's range
    normalise_scale: bool = False  # and the magnification, where nuclei are none of pbc10's size
    flips_turns: bool = False  # one of the eight flips and quarter turns, drawn anew each time
    crop_area: tuple[float, float] = (1.0, 1.0)  # random resized crop: range of the area kept
    crop_ratio: tuple[float, float] = (1.0, 1.0)  # and of its width / height
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # turns, at most 0.5
    mixup: float = 0.0  # alpha of Beta(alpha, alpha)
    cutmix: float = 0.0  # with both on, one of the two a batch
    cache: str = ""  # folder of decoded images; "" = none (the pixels are the same)
    cache_size: int = 0  # side in pixels of the squares that crops are taken from; 0 = image size
    workers: int = 0  # Grain worker processes; 0 = threads only
    threads: int = 4
    augment: AugmentConfig = OFF  # training pictures as other laboratories make them

    def __post_init__(self):
        for name in ("crop_area", "crop_ratio"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        rules = {
            "centre_crop": (0.0 < self.centre_crop <= 1.0, "lie in (0, 1]"),
            "crop_area": (_ordered(self.crop_area, 1.0), "be two numbers 0 < low ≤ high ≤ 1"),
            "crop_ratio": (_ordered(self.crop_ratio), "be two numbers 0 < low ≤ high"),
            "hue": (0.0 <= self.hue <= 0.5, "lie in [0, 0.5] (turns)"),
            "normalise_stain": (
                self.white_background or not self.normalise_stain,
                "be False unless config.data.white_background is True, which it builds on",
            ),
            "protocol": (self.protocol in ("leak_free", "paper"), "be leak_free or paper"),
            "balance": (
                self.balance or self.protocol == "leak_free",
                "be True where config.data.protocol is 'paper', which balances before splitting",
            ),
        }
        strengths = ("brightness", "contrast", "saturation", "mixup", "cutmix")
        for name in (*strengths, "balance_target", "cache_size", "workers", "threads"):
            rules[name] = (getattr(self, name) >= 0, "be 0 or more")
        for name, (holds, rule) in rules.items():
            if not holds:
                raise UserError(f"config.data.{name} is {getattr(self, name)}; it must {rule}.")

    @property
    def normalisation(self) -> Normalisation:
        """What is taken out of every picture."""
        return Normalisation(self.white_background, self.normalise_stain, self.normalise_scale)

    @property
    def framing(self) -> Normalisation:
        """Of that what chooses the part of a picture, its colours left, as people are shown it."""
        return Normalisation(normalise_scale=self.normalise_scale)

    @property
    def balances_training(self) -> bool:
        """Whether the training folds are still to be balanced."""
        return self.balance and self.protocol == "leak_free"


def _ordered(bounds: tuple[float, ...], highest: float = float("inf")) -> bool:
    return len(bounds) == 2 and 0.0 < bounds[0] <= bounds[1] <= highest
