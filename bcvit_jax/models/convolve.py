"""Convolutions of any number of groups and pooling, in forms that train fast on a CPU too.

Images are [b, height, width, channels], kernels [K, K, channels of a group, outputs]. All pad K//2
on every side, as the published networks do.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from bcvit_jax.models.processor import left_to_ynnpack

_BLOCK = 32
_plain = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain_convolutions() -> Iterator[None]:
    """What is traced within takes XLA's own convolutions on any device, as for counting products:
    on a CPU the fast forms multiply with zeros, and a channel's own kernel number by number."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def compiler_options() -> dict[str, str]:
    """What to compile a convolutional network with, for `jax.jit`; nothing but on a CPU.

    Convolutions are Eigen's: YNNPACK gives a thread 64 outputs at the least, so one of 64 runs on
    one core; with Eigen's a step of ResNet-18 takes a quarter less time.
    """
    return left_to_ynnpack("DOT", "REDUCE")


def convolve(x, kernel, stride: int = 1, groups: int = 1):
    """x [b, h, w, groups·c] * kernel [K, K, c, d] -> [b, ⌈h/S⌉, ⌈w/S⌉, d], padded K//2; K is odd.

    On a GPU XLA's own. On a CPU the same sums in the forms that run fastest there, forwards and
    backwards: of XLA's own, the gradients of grouped kernels took a hundred times PyTorch's time.
    """
    if _plain.get() or jax.default_backend() == "gpu":
        return _convolution(x, kernel, stride, groups)
    return _convolve(x, kernel, stride, groups)


def _convolution(x, kernel, stride: int = 1, groups: int = 1):
    edge = (kernel.shape[0] // 2,) * 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        (edge, edge),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


# ------------------------------------------------------------------------------------ on a CPU


def _forward(x, kernel, stride, groups):
    if groups == x.shape[-1] == kernel.shape[-1]:
        return _depthwise(x, kernel, stride)
    if groups > 1:
        blocks = block_diagonal(kernel, groups)
        parts = zip(jnp.split(x, len(blocks), -1), blocks, strict=True)
        return jnp.concatenate([_convolution(part, block, stride) for part, block in parts], -1)
    if len(kernel) == 1:
        return _strided(x, stride) @ kernel[0, 0]
    return _convolution(x, kernel, stride)


def _backward(stride, groups, kept, gradient):
    x, kernel = kept
    # Else XLA fuses the work before into the copies that turn a factor of a product.
    gradient = lax.optimization_barrier(gradient)
    if groups == x.shape[-1] == kernel.shape[-1]:
        by_x = _depthwise_by_x(gradient, kernel, stride, x.shape)
        return by_x, _depthwise_by_kernel(x, gradient, stride, len(kernel))
    if groups == 1:
        return _by_x(gradient, kernel, stride, x.shape), _by_kernel(x, gradient, stride, kernel)

    def blocks_of(kernel):
        return block_diagonal(kernel, groups)

    blocks = blocks_of(kernel)
    shape = (*x.shape[:3], x.shape[-1] // len(blocks))
    parts = zip(jnp.split(gradient, len(blocks), -1), blocks, strict=True)
    by_x = jnp.concatenate([_by_x(part, block, stride, shape) for part, block in parts], -1)
    by_blocks = _by_blocks(x, gradient, stride, blocks)
    (by_kernel,) = jax.linear_transpose(blocks_of, kernel)(by_blocks)
    return by_x, by_kernel


_convolve = jax.custom_vjp(_forward, nondiff_argnums=(2, 3))
_convolve.defvjp(
    lambda x, kernel, stride, groups: (_forward(x, kernel, stride, groups), (x, kernel)), _backward
)


def block_diagonal(kernel, groups: int):
    """kernel [K, K, c, d] of many groups -> [n, K, K, m·c, d/n]: n dense ones of m groups each.

    Zeros fill what lies between groups. Blocks of at least 32 inputs: a product with few columns
    wastes more time than the zeros.
    """
    size, _, c, d = kernel.shape
    m = math.gcd(max(1, _BLOCK // c), groups)
    kernel = kernel.reshape(size, size, c, groups // m, m, d // groups)
    blocks = jnp.einsum("ijcnmo,ml->nijlcmo", kernel, jnp.eye(m, dtype=kernel.dtype))
    return blocks.reshape(groups // m, size, size, m * c, d * m // groups)


def taps(x, size: int, stride: int, fill: float = 0.0) -> list[jax.Array]:
    """x [b, h, w, c] -> K² strided views [b, rows, columns, c], one a place of the kernel."""
    height, width = x.shape[1:3]
    rows, columns = -(-height // stride), -(-width // stride)
    edge = size // 2
    x = lax.pad(
        x, jnp.asarray(fill, x.dtype), ((0, 0, 0), (edge, edge, 0), (edge, edge, 0), (0, 0, 0))
    )
    high, wide = stride * (rows - 1) + 1, stride * (columns - 1) + 1
    return [
        x[:, i : i + high : stride, j : j + wide : stride] for i in range(size) for j in range(size)
    ]


def _strided(x, stride: int):
    return x if stride == 1 else x[:, ::stride, ::stride]


def _by_x(gradient, kernel, stride, shape):
    """A dense convolution's gradient by its input: the turned kernel's convolution at stride 1."""
    if len(kernel) == 1:
        by_x = gradient @ kernel[0, 0].T
        if stride == 1:
            return by_x
        ends = (
            (0, size - stride * (n - 1) - 1, stride - 1)
            for size, n in zip(shape[1:3], by_x.shape[1:3], strict=True)
        )
        return lax.pad(by_x, jnp.zeros((), by_x.dtype), ((0, 0, 0), *ends, (0, 0, 0)))
    if stride == 1:
        return _convolution(gradient, kernel[::-1, ::-1].swapaxes(2, 3))
    x = jax.ShapeDtypeStruct(shape, gradient.dtype)
    (by_x,) = jax.linear_transpose(lambda x: _convolution(x, kernel, stride), x)(gradient)
    return by_x


def _by_kernel(x, gradient, stride, kernel):
    """A dense convolution's gradient by its kernel: of 1×1 a product, of whose factors the smaller
    one is turned, else XLA's own."""
    size, _, c, d = kernel.shape
    if size == 1:
        rows, upstream = _strided(x, stride).reshape(-1, c), gradient.reshape(-1, d)
        if c <= d:
            return (lax.optimization_barrier(rows.T) @ upstream).reshape(kernel.shape)
        return (lax.optimization_barrier(upstream.T) @ rows).T.reshape(kernel.shape)
    turn = jax.linear_transpose(lambda kernel: _convolution(x, kernel, stride), kernel)
    return turn(gradient)[0]


def _by_blocks(x, gradient, stride, blocks):
    """The gradient by the kernels of `block_diagonal`, a row of the image after the other, so that
    the taps of all blocks stay in the caches."""
    n, size, _, c, d = blocks.shape

    def product(taps_of_row, gradient_of_row):
        parts = [tap.reshape(-1, n, c).swapaxes(0, 1) for tap in taps_of_row]
        columns = lax.optimization_barrier(jnp.concatenate(parts, -1))
        turned = gradient_of_row.reshape(-1, n, d).transpose(1, 2, 0)
        return jnp.einsum("ndp,npc->ndc", lax.optimization_barrier(turned), columns)

    zero = jnp.zeros((n, d, size * size * c), gradient.dtype)
    found = _over_rows(x, gradient, stride, size, product, zero)
    return found.reshape(n, d, size, size, c).transpose(0, 2, 3, 4, 1)


def _over_rows(x, gradient, stride, size, product, zero):
    """Σ of product(K² taps [b, columns, c], gradient [b, columns, d]) over the gradient's rows."""
    rows, columns = gradient.shape[1:3]
    edge = size // 2
    x = jnp.pad(x, ((0, 0), (edge, edge + stride), (edge, edge), (0, 0)))
    wide = stride * (columns - 1) + 1

    def add(row, found):
        seen = lax.dynamic_slice_in_dim(x, row * stride, size, 1)
        upstream = lax.dynamic_index_in_dim(gradient, row, 1, keepdims=False)
        views = [seen[:, i, j : j + wide : stride] for i in range(size) for j in range(size)]
        return found + product(views, upstream)

    return lax.fori_loop(0, rows, add, zero)


def _depthwise(x, kernel, stride):
    """A kernel [K, K, 1, c]: K² products and sums, number by number."""
    size, _, _, c = kernel.shape
    x = lax.optimization_barrier(x)  # what made it would be done again for every tap
    weights = kernel.reshape(size * size, 1, 1, 1, c)
    found = sum(tap * weight for tap, weight in zip(taps(x, size, stride), weights, strict=True))
    return lax.optimization_barrier(found)


def _depthwise_by_x(gradient, kernel, stride, shape):
    weights = kernel[:, :, None]  # [K, K, 1, 1, c]
    return _spread(shape, len(kernel), stride, (gradient,), lambda i, j, g: g * weights[i, j][None])


def _depthwise_by_kernel(x, gradient, stride, size):
    c = x.shape[-1]

    def product(taps_of_row, gradient_of_row):
        return jnp.stack([(tap * gradient_of_row).sum((0, 1)) for tap in taps_of_row])

    zero = jnp.zeros((size * size, c), gradient.dtype)
    return _over_rows(x, gradient, stride, size, product, zero).reshape(size, size, 1, c)


def _spread(shape, size, stride, results: Sequence[jax.Array], term: Callable):
    """What the taps give back to an input of `shape`: Σ over taps (i, j) of term(i, j, *results).

    The input's places are made in S×S interleaved parts, of each only the taps that reach it.
    """
    b, height, width, c = shape
    high, wide = -(-height // stride), -(-width // stride)
    edge = ((0, 0), (size, size), (size, size), (0, 0))
    padded = [jnp.pad(result, edge) for result in results]

    def part(row, column):
        found = jnp.zeros((b, high, wide, c), results[0].dtype)
        for i in range((row + size // 2) % stride, size, stride):
            for j in range((column + size // 2) % stride, size, stride):
                y = (row + size // 2 - i) // stride + size
                x = (column + size // 2 - j) // stride + size
                found += term(i, j, *(p[:, y : y + high, x : x + wide] for p in padded))
        return found

    parts = [jnp.stack([part(i, j) for j in range(stride)], 3) for i in range(stride)]
    whole = jnp.stack(parts, 2).reshape(b, high * stride, wide * stride, c)
    return whole[:, :height, :width]


# ------------------------------------------------------------------------------------- pooling


def max_pool(x, size: int = 3, stride: int = 2):
    """The largest of K×K pixels, padded K//2 (3×3 of stride 2: ResNet's); [b, ⌈h/S⌉, ⌈w/S⌉, c]."""
    if _plain.get() or jax.default_backend() == "gpu":
        edge = (size // 2, size // 2)
        window, strides = (1, size, size, 1), (1, stride, stride, 1)
        return lax.reduce_window(
            x, -jnp.inf, lax.max, window, strides, ((0, 0), edge, edge, (0, 0))
        )
    return _max_pool(x, size, stride)


def _max_pool_forward(x, size, stride):
    largest = taps(x, size, stride, -jnp.inf)
    found = largest[0]
    for tap in largest[1:]:
        found = jnp.maximum(found, tap)
    return found


def _max_pool_backward(size, stride, kept, gradient):
    """Of equal pixels the first gets the gradient, as in PyTorch."""
    x, largest = kept
    chosen = jnp.zeros(largest.shape, jnp.int32)
    for place, tap in reversed(list(enumerate(taps(x, size, stride, -jnp.inf)))):
        chosen = jnp.where(tap == largest, place + 1, chosen)  # 0 is the edge that `_spread` adds

    def term(i, j, g, chosen):
        return jnp.where(chosen == i * size + j + 1, g, 0)

    upstream = lax.optimization_barrier((gradient, chosen))
    return (_spread(x.shape, size, stride, upstream, term),)


_max_pool = jax.custom_vjp(_max_pool_forward, nondiff_argnums=(1, 2))
_max_pool.defvjp(
    lambda x, size, stride: ((y := _max_pool_forward(x, size, stride)), (x, y)), _max_pool_backward
)


def halve(x):
    """The largest of 2×2 pixels (VGG's pooling): [b, h, w, c] -> [b, ⌊h/2⌋, ⌊w/2⌋, c]."""
    b, height, width, c = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(b, height // 2, 2, width // 2, 2, c).max((2, 4))


def average_grid(x, side: int):
    """Means over a grid of side × side parts of the image, as PyTorch's adaptive average pooling
    cuts them: part i is rows ⌊i·h/side⌋ … ⌈(i+1)·h/side⌉ − 1."""
    height, width = x.shape[1:3]
    if (height, width) == (side, side):
        return x
    rows, columns = (_parts(n, side, x.dtype) for n in (height, width))
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x)


def _parts(size: int, parts: int, dtype):
    """[parts, size], rows that sum to 1."""
    place, part = jnp.arange(size)[None], jnp.arange(parts)[:, None]
    inside = (place >= part * size // parts) & (place < -(-((part + 1) * size) // parts))
    return (inside / inside.sum(1, keepdims=True)).astype(dtype)
