"""Layers that every network here is made of; weights rest in float32, products are of `dtype`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from bcvit_jax.models.processor import eigen_multiplies

_truncated_normal = jax.nn.initializers.truncated_normal(0.02)


def resting(dtype):
    """The type of arrays between products that are made in `dtype`: float32 on a CPU.

    There XLA makes bfloat16 products at up to twice the rate of float32, on processors that have
    instructions for them, but only those whose sums stay float32.
    """
    return jnp.dtype(dtype) if jax.default_backend() == "gpu" else jnp.dtype(jnp.float32)


def dense(x, kernel, bias, dtype=jnp.float32):
    """x·kernel + bias, the product made in `dtype`: x [..., in], kernel [in, out] -> [..., out].

    Arrays come and go in `resting(dtype)`, kernel and bias are float32. Only the backward pass is
    written by hand, in the form that XLA's CPU compiler computes fastest: element-wise work kept
    out of the copy that turns a factor of the kernel's gradient, and of the two factors the smaller
    one turned; Eigen wants none turned. The sums are those of the chain rule.
    """
    return _dense(x, kernel, bias, dtype)


def _dense_primal(x, kernel, bias, dtype):
    out = _product(x.astype(dtype), kernel.astype(dtype))
    return out + jnp.expand_dims(bias.astype(out.dtype), range(x.ndim - 1))


def _dense_forward(x, kernel, bias, dtype):
    kept = kernel.value if x.perturbed else None  # images need no gradient
    x, kernel, bias = x.value, kernel.value, bias.value
    return _dense_primal(x, kernel, bias, dtype), (x.astype(dtype), kept)


def _dense_backward(dtype, kept, gradient):
    x, kernel = kept
    upstream = lax.optimization_barrier(gradient.astype(dtype))
    inputs, outputs = x.shape[-1], upstream.shape[-1]
    # by_kernel waits for by_x: then the kernel may be changed in place.
    by_x = None if kernel is None else _product(upstream, kernel.astype(dtype).T)
    x, upstream = x.reshape(-1, inputs), upstream.reshape(-1, outputs)
    if jax.default_backend() == "gpu":
        by_kernel = _product(x.T, upstream)
    elif eigen_multiplies(dtype):
        by_kernel = _tied(_product(x.T, upstream), by_x)
    elif inputs <= outputs:
        by_kernel = _tied(_product(_turned(x), upstream), by_x)
    else:
        by_kernel = _tied(lax.optimization_barrier(_product(_turned(upstream), x)), by_x)
        # Turned back once, by way of one axis, for all that read it: else each turns it for itself.
        by_kernel = lax.optimization_barrier(by_kernel.T.reshape(-1)).reshape(inputs, outputs)
    by_bias = gradient.astype(jnp.float32).reshape(-1, outputs).sum(0)
    return by_x, by_kernel.astype(jnp.float32), by_bias


_dense = jax.custom_vjp(_dense_primal, nondiff_argnums=(3,))
_dense.defvjp(_dense_forward, _dense_backward, symbolic_zeros=True)


def _product(x, y):
    return jnp.matmul(x, y, preferred_element_type=resting(x.dtype))


def _turned(x):
    """The transpose of [m, n] as an array of its own.

    In bfloat16 by way of one axis, since XLA's CPU compiler makes products of a mere transpose in
    float32; but not where devices share the rows, which would gather them all.
    """
    if x.dtype == jnp.float32 or jax.device_count() > 1:
        return lax.optimization_barrier(x.T)
    return lax.optimization_barrier(x.T.reshape(-1)).reshape(x.shape[::-1])


def chain(*functions: Callable) -> Callable:
    """The functions one after the other; what is between them is not kept for the backward pass.

    For a norm or activation before a dense layer: made again at the cost of a pass over the array,
    where keeping it would cost its memory in every block.
    """

    def call(x):
        for function in functions:
            x = function(x)
        return x

    def chained(x):
        pure, params = jax.closure_convert(call, x)
        return _remade(pure, x, params)

    return chained


_remade = jax.custom_vjp(lambda pure, x, params: pure(x, *params), nondiff_argnums=(0,))


def _remade_backward(pure, kept, gradient):
    x, params = kept
    _, pull = jax.vjp(lambda x, params: pure(x, *params), _tied(x, gradient), params)
    return pull(gradient)


_remade.defvjp(lambda pure, x, params: (pure(x, *params), (x, params)), _remade_backward)


def _tied(x, other):
    """x, on a single CPU device in a way that XLA can't make before `other`.

    Its CPU compiler drops optimization barriers, finds that forward and backward pass make the
    same arrays, and keeps them from the one to the other. So x is multiplied by 1 + 0·(the first
    number of `other`), which is 1 as long as gradients are finite. Of no `other` x is as it was.
    """
    if other is None or jax.default_backend() == "gpu" or jax.device_count() > 1:
        return x
    return x * (1.0 + 0.0 * other.reshape(-1)[0]).astype(x.dtype)


class Dense(nnx.Module):
    """y = x·kernel + bias; kernel [in, out]."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.kernel = nnx.Param(_truncated_normal(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros((outputs,)))
        self.dtype = dtype

    def __call__(self, x):
        return dense(x.astype(resting(self.dtype)), self.kernel[...], self.bias[...], self.dtype)


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, in float32; epsilon 1e-6 as published ViTs."""

    def __init__(self, width: int, *, epsilon: float = 1e-6, dtype=jnp.float32):
        self.scale = nnx.Param(jnp.ones((width,)))
        self.bias = nnx.Param(jnp.zeros((width,)))
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x):
        x = x.astype(jnp.float32)
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        y = centred * lax.rsqrt(variance + self.epsilon) * self.scale[...] + self.bias[...]
        return y.astype(resting(self.dtype))


class Convolution(nnx.Module):
    """A P×P convolution of stride S; kernel [P, P, in, out], no padding unless `padding` says so.

    Reading the image as cells of gcd(P, S) pixels leaves (P/g)² strided slices and one matrix
    product, which trains faster than XLA's own convolution on a CPU and is the same sum.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int,
        *,
        padding: int = 0,
        rngs: nnx.Rngs,
        dtype=jnp.float32,
    ):
        fan_in = jax.nn.initializers.lecun_normal(in_axis=(0, 1, 2), out_axis=3)
        self.kernel = nnx.Param(fan_in(rngs.params(), (size, size, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros((outputs,)))
        self.size, self.stride, self.padding, self.dtype = size, stride, padding, dtype

    def __call__(self, x):
        """x [b, height, width, in] -> [b, rows, columns, out]."""
        x = x.astype(resting(self.dtype))
        if self.padding:
            edge = (self.padding, self.padding)
            x = jnp.pad(x, ((0, 0), edge, edge, (0, 0)))
        patches = extract_patches(x, self.size, self.stride)
        kernel = patch_rows(self.kernel[...], self.stride)
        return dense(patches, kernel, self.bias[...], self.dtype)


def grid_shape(height: int, width: int, size: int, stride: int) -> tuple[int, int]:
    """Rows and columns of patches (equation 1): floor((H−P)/S)+1 and floor((W−P)/S)+1."""
    return (height - size) // stride + 1, (width - size) // stride + 1


def extract_patches(x, size: int, stride: int):
    """x [b, H, W, c] -> [b, rows, columns, P·P·c]; the order of a row is that of `patch_rows`."""
    b, height, width, c = x.shape
    rows, columns = grid_shape(height, width, size, stride)
    cell = _cell(size, stride)
    high, wide = (rows - 1) * stride + size, (columns - 1) * stride + size
    x = x[:, :high, :wide].reshape(b, high // cell, cell, wide // cell, cell, c)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, high // cell, wide // cell, cell * cell * c)
    step = stride // cell
    parts = [
        x[:, i : i + step * (rows - 1) + 1 : step, j : j + step * (columns - 1) + 1 : step]
        for i in range(size // cell)
        for j in range(size // cell)
    ]
    return jnp.concatenate(parts, axis=-1)


def patch_rows(kernel, stride: int):
    """Convolution kernel [P, P, c, d] -> matrix [P·P·c, d] in the order of `extract_patches`."""
    size, _, c, d = kernel.shape
    cell = _cell(size, stride)
    kernel = kernel.reshape(size // cell, cell, size // cell, cell, c, d)
    return kernel.transpose(0, 2, 1, 3, 4, 5).reshape(size * size * c, d)


def _cell(size: int, stride: int) -> int:
    """Side of the largest square that tiles every patch: gcd(P, S)."""
    while stride:
        size, stride = stride, size % stride
    return size
