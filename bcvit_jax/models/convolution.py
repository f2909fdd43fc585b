"""Layers of the convolutional networks: convolution, batch and group norm, squeeze-excitation.

Images are [b, height, width, channels]; `training` has batch norm take the batch's own moments.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from bcvit_jax.models.bcvit import Output
from bcvit_jax.models.convolve import convolve
from bcvit_jax.models.layers import Dense

# He et al. 2015, arXiv 1502.01852: the variance that keeps a ReLU network's gradients.
_he_normal = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nnx.Module):
    """`convolve` with a kernel of its own; a bias only where no norm follows."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int = 1,
        *,
        groups: int = 1,
        bias: bool = False,
        rngs: nnx.Rngs,
        dtype=jnp.float32,
    ):
        shape = (size, size, inputs // groups, outputs)
        self.kernel = nnx.Param(_he_normal(rngs.params(), shape) * groups**0.5)
        self.bias = nnx.Param(jnp.zeros((outputs,))) if bias else None
        self.stride, self.groups, self.dtype = stride, groups, dtype

    def __call__(self, x):
        """x [b, h, w, inputs] -> [b, ⌈h/S⌉, ⌈w/S⌉, outputs]."""
        kernel = self.kernel[...].astype(self.dtype)
        y = convolve(x.astype(self.dtype), kernel, self.stride, self.groups)
        return y if self.bias is None else y + channels(self.bias[...].astype(self.dtype))


class BatchNorm(nnx.Module):
    """Ioffe & Szegedy 2015 as PyTorch has it: in training the moments of the batch, whose running
    means (momentum 0.1, the variance unbiased) evaluation takes.

    In a batch split over devices the moments are those of the whole batch.
    """

    momentum, epsilon = 0.1, 1e-5

    def __init__(self, width: int, *, dtype=jnp.float32):
        self.scale, self.bias = nnx.Param(jnp.ones((width,))), nnx.Param(jnp.zeros((width,)))
        self.mean = nnx.BatchStat(jnp.zeros((width,)))
        self.variance = nnx.BatchStat(jnp.ones((width,)))
        self.dtype = dtype

    def __call__(self, x, training: bool):
        x, scale, bias = x.astype(jnp.float32), self.scale[...], self.bias[...]
        if training:
            y, mean, variance = standardise(x, scale, bias, self.epsilon)
            count = x.size // x.shape[-1]
            unbiased = variance * (count / max(count - 1, 1))
            for running, new in ((self.mean, mean), (self.variance, unbiased)):
                running[...] += self.momentum * (lax.stop_gradient(new) - running[...])
        else:
            factor = scale * lax.rsqrt(self.variance[...] + self.epsilon)
            y = (x - channels(self.mean[...])) * channels(factor) + channels(bias)
        return y.astype(self.dtype)


def standardise(x, scale, bias, epsilon: float):
    """x [b, h, w, c] -> (its channels with mean `bias` and deviation `scale`, mean, variance).

    The backward pass is written by hand: it reads x twice, where that of the sums reads it five
    times. Mean and variance [c] give no gradient.
    """
    return _standardise(x, scale, bias, epsilon)


def _standardise_forward(x, scale, bias, epsilon):
    mean = x.mean((0, 1, 2))
    centred = x - channels(mean)
    left = centred.mean((0, 1, 2))  # what rounding kept out of the mean
    variance = jnp.square(centred).mean((0, 1, 2)) - jnp.square(left)
    mean += left
    inverse = lax.rsqrt(variance + epsilon)
    y = (x - channels(mean)) * channels(inverse * scale) + channels(bias)
    return (y, mean, variance), (x, mean, inverse, scale)


def _standardise_backward(epsilon, kept, gradients):
    x, mean, inverse, scale = kept
    gradient, count = gradients[0], x.size // x.shape[-1]
    standard = (x - channels(mean)) * channels(inverse)
    by_bias = gradient.sum((0, 1, 2))
    by_scale = (gradient * standard).sum((0, 1, 2))
    centred = gradient - channels(by_bias / count) - standard * channels(by_scale / count)
    return channels(scale * inverse) * centred, by_scale, by_bias


_standardise = jax.custom_vjp(
    lambda x, scale, bias, epsilon: _standardise_forward(x, scale, bias, epsilon)[0],
    nondiff_argnums=(3,),
)
_standardise.defvjp(_standardise_forward, _standardise_backward)


class GroupNorm(nnx.Module):
    """Wu & He 2018, arXiv 1803.08494: moments of an image's own groups of channels.

    32 groups, fewer where a group would have a single channel. Nothing is kept from training, so a
    stain that differs from the training's is not measured by its moments.
    """

    epsilon = 1e-5

    def __init__(self, width: int, *, dtype=jnp.float32):
        self.scale, self.bias = nnx.Param(jnp.ones((width,))), nnx.Param(jnp.zeros((width,)))
        self.groups = math.gcd(32, max(width // 2, 1))
        self.dtype = dtype

    def __call__(self, x, training: bool):
        b, height, width, c = x.shape
        parts = x.astype(jnp.float32).reshape(b, height * width, self.groups, c // self.groups)
        centred = parts - parts.mean((1, 3), keepdims=True)
        variance = jnp.square(centred).mean((1, 3), keepdims=True)
        y = (centred * lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        return (y * channels(self.scale[...]) + channels(self.bias[...])).astype(self.dtype)


NORMS = {"batch": BatchNorm, "group": GroupNorm}


class ConvNorm(nnx.Module):
    """A convolution without bias, its norm, and an activation where one is given."""

    def __init__(
        self, inputs: int, outputs: int, size: int, stride: int = 1, *, norm: str, **settings
    ):
        self.convolution = Conv(inputs, outputs, size, stride, **settings)
        self.norm = NORMS[norm](outputs, dtype=settings["dtype"])

    def __call__(self, x, training: bool, activation: Callable = lambda x: x):
        return activation(self.norm(self.convolution(x), training))


class SqueezeExcitation(nnx.Module):
    """Hu et al. 2018, arXiv 1709.01507: channels weighted by what their means say of the image."""

    def __init__(self, width: int, hidden: int, activation: Callable, *, rngs, dtype=jnp.float32):
        self.reduce = Dense(width, hidden, rngs=rngs, dtype=dtype)
        self.expand = Dense(hidden, width, rngs=rngs, dtype=dtype)
        self.activation = activation

    def __call__(self, x):
        means = x.mean((1, 2))
        weights = jax.nn.sigmoid(self.expand(self.activation(self.reduce(means))))
        return x * weights[:, None, None]


class Pixels(nnx.Module):
    """x·scale + shift a channel, before the first convolution; both are 1 and 0 but where
    pretrained weights saw pixels of another mean and deviation. No optimizer moves them."""

    def __init__(self):
        self.scale, self.shift = nnx.BatchStat(jnp.ones((3,))), nnx.BatchStat(jnp.zeros((3,)))

    def __call__(self, images):
        return images * channels(self.scale[...]) + channels(self.shift[...])


def channels(vector):
    """[c] -> [1, 1, 1, c]."""
    return vector[None, None, None]


def dropout(x, chance: float, key):
    """Each number 0 with `chance`, else scaled up; nothing without a key."""
    if key is None or not chance:
        return x
    return jnp.where(jax.random.bernoulli(key, 1.0 - chance, x.shape), x / (1.0 - chance), 0)


def drop_path(branch, chance: float, key):
    """Stochastic depth (Huang et al. 2016): a branch is 0 with `chance`, else scaled up."""
    if key is None or not chance:
        return branch
    keep = jax.random.bernoulli(key, 1.0 - chance, (branch.shape[0], 1, 1, 1))
    return jnp.where(keep, branch / (1.0 - chance), 0)


def unselected(logits, feature) -> Output:
    """What a network without tokens returns: `kept` is [b, 0]."""
    return Output(logits, feature.astype(jnp.float32), jnp.zeros((logits.shape[0], 0), jnp.int32))
