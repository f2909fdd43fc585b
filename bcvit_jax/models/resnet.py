"""ResNet, SE-ResNet and ResNeXt, as torchvision and timm have them.

He et al. 2016, arXiv 1512.03385 (the stride in the 3×3 convolution); Hu et al. 2018,
arXiv 1709.01507; Xie et al. 2017, arXiv 1611.05431.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bcvit_jax.models.bcvit import Output
from bcvit_jax.models.config import ConvolutionalConfig
from bcvit_jax.models.convolution import (
    NORMS,
    Conv,
    ConvNorm,
    Pixels,
    SqueezeExcitation,
    drop_path,
    dropout,
    unselected,
)
from bcvit_jax.models.convolve import max_pool
from bcvit_jax.models.layers import Dense


@dataclasses.dataclass(frozen=True)
class ResNetConfig(ConvolutionalConfig):
    """ResNet-18 unless its fields say otherwise."""

    depths: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    groups: int = 1
    """Groups of a bottleneck's 3×3 convolution (ResNeXt's cardinality)."""
    group_width: int = 64
    """Channels of a group in the first stage."""
    squeeze: int = 0
    """A block's outputs by the hidden width of its squeeze-excitation; 0 leaves it out."""


class Block(nnx.Module):
    """relu(shortcut(x) + branch(x)): two 3×3 convolutions, or 1×1, 3×3 and 1×1."""

    def __init__(self, config: ResNetConfig, inputs: int, width: int, stride: int, settings):
        if config.bottleneck:
            inner = width * config.group_width // 64 * config.groups
            outputs = 4 * width
            layers = [(inputs, inner, 1, 1, 1), (inner, inner, 3, stride, config.groups)]
            layers.append((inner, outputs, 1, 1, 1))
        else:
            outputs = width
            layers = [(inputs, width, 3, stride, 1), (width, width, 3, 1, 1)]
        rngs, dtype = settings["rngs"], settings["dtype"]
        self.convolutions = nnx.List(
            Conv(i, o, size, step, groups=groups, **settings) for i, o, size, step, groups in layers
        )
        self.norms = nnx.List(NORMS[config.norm](layer[1], dtype=dtype) for layer in layers)
        hidden = max(outputs // config.squeeze, 1) if config.squeeze else 0
        self.squeeze = (
            SqueezeExcitation(outputs, hidden, jax.nn.relu, rngs=rngs, dtype=dtype)
            if hidden
            else None
        )
        self.shortcut = (
            ConvNorm(inputs, outputs, 1, stride, norm=config.norm, **settings)
            if stride > 1 or inputs != outputs
            else None
        )

    def __call__(self, x, training: bool, drop: float = 0.0, key=None):
        """x [b, h, w, inputs] -> [b, ⌈h/S⌉, ⌈w/S⌉, outputs]."""
        branch, last = x, len(self.convolutions) - 1
        for place, (convolution, norm) in enumerate(
            zip(self.convolutions, self.norms, strict=True)
        ):
            branch = norm(convolution(branch), training)
            branch = branch if place == last else jax.nn.relu(branch)
        if self.squeeze is not None:
            branch = self.squeeze(branch)
        kept = x if self.shortcut is None else self.shortcut(x, training)
        return jax.nn.relu(kept + drop_path(branch, drop, key))


class ResNet(nnx.Module):
    """A 7×7 convolution and pooling, four stages of blocks, the mean over pixels, a dense layer."""

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        settings: Any = dict(rngs=rngs, dtype=jnp.dtype(config.dtype))
        self.pixels = Pixels()
        self.stem = ConvNorm(3, 64, 7, 2, norm=config.norm, **settings)
        channels, stages = 64, []
        for place, depth in enumerate(config.depths):
            width, blocks = 64 * 2**place, []
            for first in (True, *[False] * (depth - 1)):
                stride = 2 if first and place else 1
                blocks.append(Block(config, channels, width, stride, settings))
                channels = width * (4 if config.bottleneck else 1)
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.head = Dense(channels, config.num_classes, rngs=rngs)

    def __call__(self, images, *, key=None) -> Output:
        """images [b, h, w, 3] float in [−1, 1] -> Output.

        A key means training: the batch's moments, dropout and stochastic depth.
        """
        training = key is not None
        x = max_pool(self.stem(self.pixels(images), training, jax.nn.relu))
        blocks = [block for stage in self.stages for block in stage]
        keys = [None] * (len(blocks) + 1) if key is None else jax.random.split(key, len(blocks) + 1)
        for place, block in enumerate(blocks):
            drop = self.config.drop_path * place / max(len(blocks) - 1, 1)
            x = block(x, training, drop, keys[place])
        feature = x.astype(jnp.float32).mean((1, 2))
        return unselected(self.head(dropout(feature, self.config.dropout, keys[-1])), feature)
