"""What is measured: shapes and data that both sides get alike; imports neither jax nor torch."""

import dataclasses
import io

import numpy as np
from PIL import Image

CLASSES = 10
SIZES = {"vit_t": (192, 3, 12), "vit_s": (384, 6, 12), "vit_b": (768, 12, 12)}
"""Width, heads, blocks that give maps."""
BASELINES = ("vgg16", "resnet18", "resnet50", "seresnet50", "resnext50_32x4d", "efficientnet_b0")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One row's sizes."""

    size: str = "vit_s"
    """Of `SIZES`, or one of `BASELINES`."""
    batch: int = 8
    side: int = 224
    stride: int = 12
    decoded: int = 215
    """Side in pixels of the centre that input jobs cut out, 0.6 of a pbc image."""
    cached: int = 136
    """Side to which they scale it before the random crop."""
    dtype: str = "float32"
    """Of the products; in bfloat16 the peer trains under torch.autocast."""


def random_batch(shape: Shape) -> dict[str, np.ndarray]:
    """A training batch of noise, with labels in turn."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (shape.batch, shape.side, shape.side, 3), np.uint8)
    label = np.arange(shape.batch, dtype=np.int32) % CLASSES
    mix = np.ones(shape.batch, np.float32)
    return {"image": image, "label": label, "mixed_label": label, "mix": mix}


def cell_images(count: int = 512, side: int = 360) -> list[bytes]:
    """PNGs of a pbc image's size that compress about as well: blurred discs and a little noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    images = []
    for _ in range(count):
        radius = np.hypot(x - rng.uniform(150, 210), y - rng.uniform(150, 210))
        inside = 1 / (1 + np.exp((radius - rng.uniform(50, 90)) / 3))[..., None]
        colour = rng.uniform(60, 160, 3) * inside + rng.uniform(190, 230, 3) * (1 - inside)
        pixels = np.clip(colour + rng.normal(0, 3, (side, side, 3)), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)
        images.append(file.getvalue())
    return images
