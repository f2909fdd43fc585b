"""The libraries that XLA's CPU compiler leaves work to: YNNPACK, which it prefers, and Eigen."""

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp

_LIBRARY = "xla_cpu_experimental_ynn_fusion_type"


def left_to_ynnpack(*kinds: str) -> dict[str, str]:
    """Options for `jax.jit`: of products, convolutions and sums YNNPACK gets `kinds`, Eigen others.

    Of DOT and REDUCE. {} but on a CPU, and where XLA_FLAGS holds a choice, which goes first.
    """
    if not _ours_to_choose():
        return {}
    return {_LIBRARY: ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in kinds)}


def eigen_multiplies(dtype) -> bool:
    """Whether a Vision Transformer's products in `dtype` are left to Eigen: float32 on Intel's
    processors with AVX-512.

    There Eigen's are as fast as MKL's, and YNNPACK's reach two thirds of that. On AMD's they are
    alike, and in bfloat16 YNNPACK's are several times faster on processors with AMX.
    """
    return _ours_to_choose() and jnp.dtype(dtype) == jnp.float32 and _intel_with_avx512()


def _ours_to_choose() -> bool:
    return jax.default_backend() == "cpu" and _LIBRARY not in os.environ.get("XLA_FLAGS", "")


@functools.cache
def _intel_with_avx512(description: Path = Path("/proc/cpuinfo")) -> bool:
    """As Linux describes its processors; elsewhere it is not known, so no."""
    if not description.exists():
        return False
    said = description.read_text()
    return "GenuineIntel" in said and " avx512f " in said
