"""The machine's matrix-product limit: the best float32 rate that any library here reaches."""

import time
from collections.abc import Callable

import numpy as np

from tests.benchmarks.jobs import SIZES, Shape


def best_rate(product: Callable[[], object], operations: float, seconds: float = 1.0) -> float:
    """Operations a second of the fastest of repeated products."""
    product()
    fastest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        product()
        fastest = min(fastest, time.perf_counter() - start)
    return operations / fastest


def numpy_rate(n: int = 1536) -> float:
    """NumPy's BLAS."""
    a = np.random.default_rng(0).normal(size=(n, n)).astype(np.float32)
    return best_rate(lambda: a @ a, 2 * n**3)


def torch_rate(n: int = 1536) -> float:
    """PyTorch's BLAS."""
    import torch

    a = torch.randn(n, n)
    return best_rate(lambda: a @ a, 2 * n**3)


def jax_rate(n: int = 1536) -> float:
    """XLA's."""
    import jax

    a = jax.random.normal(jax.random.key(0), (n, n))
    product = jax.jit(lambda a: a @ a)
    return best_rate(lambda: product(a).block_until_ready(), 2 * n**3)


def products_of_a_step(shape: Shape, every_token: bool) -> float:
    """Operations in the matrix products of a train step (three times the forward pass's).

    With all tokens in all blocks, as the peers compute them, or as we do: of the last map's block
    the class token and the kept ones, of the last block the class token.
    """
    patches, blocks = _forward(shape, every_token)
    return 3 * blocks + 2 * patches  # images need no gradient


def products_of_a_pass(shape: Shape, every_token: bool) -> float:
    """Operations in the matrix products of a forward pass."""
    return sum(_forward(shape, every_token))


def _forward(shape: Shape, every_token: bool) -> tuple[float, float]:
    """Of the patches' embedding, and of all blocks."""
    width, heads, depth = SIZES[shape.size]
    patches = ((shape.side - 16) // shape.stride + 1) ** 2
    tokens, kept = patches + 1, heads + 1

    def block(tokens: int) -> float:
        return 2 * 12 * tokens * width**2 + 2 * 2 * tokens**2 * width

    def few(queries: int, tokens: int) -> float:
        return 2 * 12 * queries * width**2 + 2 * 2 * queries * heads * tokens * width

    last = block(tokens) + block(kept) if every_token else few(kept, tokens) + few(1, kept)
    embedding = 2 * patches * 16 * 16 * 3 * width
    return shape.batch * embedding, shape.batch * ((depth - 1) * block(tokens) + last)
