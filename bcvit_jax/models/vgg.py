"""VGG (Simonyan & Zisserman 2015, arXiv 1409.1556), as torchvision has it."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from bcvit_jax.models.bcvit import Output
from bcvit_jax.models.config import ConvolutionalConfig
from bcvit_jax.models.convolution import NORMS, Conv, Pixels, dropout, unselected
from bcvit_jax.models.convolve import average_grid, halve
from bcvit_jax.models.layers import Dense


@dataclasses.dataclass(frozen=True)
class VGGConfig(ConvolutionalConfig):
    """VGG-16; `norm` is none in the paper, `batch` gives torchvision's vgg16_bn."""

    norm: str = "none"
    dropout: float = 0.5
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    """Convolutions of a stage; each stage ends with a halving of the image."""
    hidden: int = 4096

    norms = ("none", "batch", "group")


class VGG(nnx.Module):
    """3×3 convolutions with ReLU, then three dense layers on a 7×7 grid."""

    def __init__(self, config: VGGConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtype = jnp.dtype(config.dtype)
        self.pixels = Pixels()
        channels, convolutions, norms = 3, [], []
        for width, depth in zip(config.widths, config.depths, strict=True):
            for _ in range(depth):
                convolutions.append(Conv(channels, width, 3, bias=True, rngs=rngs, dtype=dtype))
                if config.norm != "none":
                    norms.append(NORMS[config.norm](width, dtype=dtype))
                channels = width
        self.convolutions, self.norms = nnx.List(convolutions), nnx.List(norms)
        inputs, hidden = 7 * 7 * channels, config.hidden
        self.dense = nnx.List(Dense(i, hidden, rngs=rngs, dtype=dtype) for i in (inputs, hidden))
        self.head = Dense(hidden, config.num_classes, rngs=rngs)

    def __call__(self, images, *, key=None) -> Output:
        """images [b, h, w, 3] float in [−1, 1], of 32 pixels or more -> Output.

        A key means training: dropout, and the batch's moments where there is batch norm.
        """
        x, place = self.pixels(images), 0
        for depth in self.config.depths:
            for _ in range(depth):
                x = self.convolutions[place](x)
                if self.norms:
                    x = self.norms[place](x, key is not None)
                x = jax.nn.relu(x)
                place += 1
            x = halve(x)
        x = average_grid(x, 7).reshape(x.shape[0], -1)
        keys = (None, None) if key is None else jax.random.split(key)
        feature = jax.nn.relu(self.dense[0](x))
        feature = jax.nn.relu(self.dense[1](dropout(feature, self.config.dropout, keys[0])))
        logits = self.head(dropout(feature, self.config.dropout, keys[1]))
        return unselected(logits, feature)
