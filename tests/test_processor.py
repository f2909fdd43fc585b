"""Which library XLA's CPU compiler leaves products to, and in what form they are written for it."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from bcvit_jax.models import PRESETS, compiler_options, layers, model_config, processor
from bcvit_jax.models.config import BCViTConfig
from bcvit_jax.models.mae import MaskedAutoencoderConfig

on_a_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="what a CPU does")
VIT = PRESETS["vit_small_patch16_224"]


@pytest.fixture
def on_intel(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(processor, "_intel_with_avx512", lambda: True)


@pytest.mark.parametrize(
    ("vendor", "flags", "found"),
    [
        ("GenuineIntel", "fma avx512f amx_bf16", True),
        ("GenuineIntel", "fma avx2 avx_vnni", False),
        ("AuthenticAMD", "fma avx512f avx512_bf16", False),
    ],
)
def test_intels_processors_with_avx512_are_known_by_linuxs_description(
    tmp_path, vendor, flags, found
):
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {flags} sse2\n")
    assert processor._intel_with_avx512(path) == found
    assert not processor._intel_with_avx512(tmp_path / "none")


@on_a_cpu
def test_there_a_vits_products_in_float32_are_eigens_and_in_bfloat16_ynnpacks(on_intel):
    """What YNNPACK computes is a fusion named for it."""
    x = jnp.ones((784, 256)), jnp.ones((256, 512))

    def made(config) -> str:
        product: Any = jax.jit(
            lambda a, b: jnp.sin(a @ b).sum(1), compiler_options=compiler_options(config)
        )
        return product.lower(*x).compile().as_text()

    def ynnpacks(program: str, source: str) -> bool:
        return any("ynn_fusion" in line and source in line for line in program.splitlines())

    assert not ynnpacks(made(VIT), "dot_general") and ynnpacks(made(VIT), "reduce_sum")
    assert compiler_options(MaskedAutoencoderConfig(BCViTConfig(width=192, heads=3, mlp_width=768)))
    half = model_config("vit_small_patch16_224", 10, dtype="bfloat16")
    assert compiler_options(half) == {}
    assert ynnpacks(made(half), "dot_general")


@on_a_cpu
def test_elsewhere_and_where_the_user_chose_xlas_own_choice_stays(on_intel, monkeypatch):
    assert compiler_options(VIT)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=dot")
    assert compiler_options(VIT) == {} and not processor.eigen_multiplies(jnp.float32)
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(processor, "_intel_with_avx512", lambda: False)
    assert compiler_options(VIT) == {} and not processor.eigen_multiplies(jnp.float32)
    monkeypatch.setattr(processor, "_intel_with_avx512", lambda: True)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler_options(VIT) == {} and not processor.eigen_multiplies(jnp.float32)


@on_a_cpu
@pytest.mark.parametrize("outputs", [64, 512])
def test_eigen_reads_the_factors_of_a_gradient_as_they_lie(on_intel, outputs):
    """It turns them while it packs them: a copy of either would be a pass over memory."""
    arrays = jnp.ones((784, 256)), jnp.ones((256, outputs)), jnp.ones(outputs)

    def loss(*arrays):
        return jnp.square(layers.dense(*arrays)).sum()

    gradient = jax.jit(jax.grad(loss, (0, 1, 2)), compiler_options=compiler_options(VIT))
    program = str(gradient.lower(*arrays).compile().as_text())
    assert program.count(" dot(") == 3 and " transpose(" not in program
