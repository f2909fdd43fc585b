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


def products_of_a_step(shape: Shape) -> float:
    """Operations in the matrix products of a train step (three times the forward pass's)."""
    width, heads, depth = SIZES[shape.size]
    patches = ((shape.side - 16) // shape.stride + 1) ** 2
    tokens, kept = patches + 1, heads + 1
    dense = 2 * 12 * width**2
    block = tokens * dense + 2 * 2 * tokens**2 * width
    last = kept * dense + 2 * 2 * kept**2 * width
    embedding = 2 * patches * 16 * 16 * 3 * width  # whose images need no gradient
    return float(shape.batch) * (3 * (depth * block + last) + 2 * embedding)
