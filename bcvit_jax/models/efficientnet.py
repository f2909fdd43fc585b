"""EfficientNet (Tan & Le 2019, arXiv 1905.11946), as torchvision has it.

timm's differs in how its padding, norms and dropout may be set, not in the B0 network itself.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bcvit_jax.models.bcvit import Output
from bcvit_jax.models.config import ConvolutionalConfig
from bcvit_jax.models.convolution import (
    ConvNorm,
    Pixels,
    SqueezeExcitation,
    drop_path,
    dropout,
    unselected,
)
from bcvit_jax.models.layers import Dense

STAGES = (
    (1, 3, 1, 16),
    (6, 3, 2, 24),
    (6, 5, 2, 40),
    (6, 3, 2, 80),
    (6, 5, 1, 112),
    (6, 5, 2, 192),
    (6, 3, 1, 320),
)
"""Table 1 of the paper: expansion, kernel, stride, channels."""


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig(ConvolutionalConfig):
    """EfficientNet-B0."""

    dropout: float = 0.2
    drop_path: float = 0.2
    depths: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    """Blocks of a stage."""


class Block(nnx.Module):
    """An inverted bottleneck: expand, convolve each channel, squeeze-excitation, project."""

    def __init__(self, inputs: int, outputs: int, expansion: int, size: int, stride: int, settings):
        width = inputs * expansion
        self.expand = ConvNorm(inputs, width, 1, **settings) if expansion > 1 else None
        self.depthwise = ConvNorm(width, width, size, stride, groups=width, **settings)
        self.squeeze = SqueezeExcitation(
            width, max(inputs // 4, 1), jax.nn.silu, rngs=settings["rngs"], dtype=settings["dtype"]
        )
        self.project = ConvNorm(width, outputs, 1, **settings)
        self.residual = stride == 1 and inputs == outputs

    def __call__(self, x, training: bool, drop: float, key):
        """x [b, h, w, inputs] -> [b, ⌈h/S⌉, ⌈w/S⌉, outputs]."""
        branch = x if self.expand is None else self.expand(x, training, jax.nn.silu)
        branch = self.squeeze(self.depthwise(branch, training, jax.nn.silu))
        branch = self.project(branch, training)
        return x + drop_path(branch, drop, key) if self.residual else branch


class EfficientNet(nnx.Module):
    """A 3×3 convolution, seven stages of inverted bottlenecks, a 1×1 convolution, a dense layer."""

    def __init__(self, config: EfficientNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        settings: Any = dict(norm=config.norm, rngs=rngs, dtype=jnp.dtype(config.dtype))
        self.pixels = Pixels()
        self.stem = ConvNorm(3, 32, 3, 2, **settings)
        channels, stages = 32, []
        for (expansion, size, stride, outputs), depth in zip(STAGES, config.depths, strict=True):
            blocks = []
            for step in (stride, *[1] * (depth - 1)):
                blocks.append(Block(channels, outputs, expansion, size, step, settings))
                channels = outputs
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.top = ConvNorm(channels, 4 * channels, 1, **settings)
        self.head = Dense(4 * channels, config.num_classes, rngs=rngs)

    def __call__(self, images, *, key=None) -> Output:
        """images [b, h, w, 3] float in [−1, 1] -> Output.

        A key means training: the batch's moments, dropout and stochastic depth.
        """
        training = key is not None
        x = self.stem(self.pixels(images), training, jax.nn.silu)
        blocks = [block for stage in self.stages for block in stage]
        keys = [None] * (len(blocks) + 1) if key is None else jax.random.split(key, len(blocks) + 1)
        for place, block in enumerate(blocks):
            x = block(x, training, self.config.drop_path * place / len(blocks), keys[place])
        x = self.top(x, training, jax.nn.silu)
        feature = x.astype(jnp.float32).mean((1, 2))
        return unselected(self.head(dropout(feature, self.config.dropout, keys[-1])), feature)
