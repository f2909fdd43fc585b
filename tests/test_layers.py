"""Layers against XLA's own convolution, PyTorch, and equation 1."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax import lax

from bcvit_jax.macs import macs
from bcvit_jax.models import layers
from bcvit_jax.models.layers import (
    Convolution,
    Dense,
    LayerNorm,
    dense,
    extract_patches,
    grid_shape,
    patch_rows,
)

on_a_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="what a CPU does")
pytestmark = pytest.mark.usefixtures("strict_ranks")


@pytest.mark.parametrize(
    ("height", "width", "size", "stride", "rows", "columns"),
    [
        (224, 224, 16, 12, 18, 18),
        (224, 224, 16, 16, 14, 14),
        (224, 224, 32, 24, 9, 9),
        (224, 224, 32, 32, 7, 7),
        (128, 128, 16, 12, 10, 10),
        (16, 16, 16, 12, 1, 1),
        (27, 28, 16, 12, 1, 2),
        (40, 100, 5, 3, 12, 32),
    ],
)
def test_equation_1_counts_the_patches(height, width, size, stride, rows, columns):
    assert grid_shape(height, width, size, stride) == (rows, columns)
    assert rows == len(range(0, height - size + 1, stride))
    assert columns == len(range(0, width - size + 1, stride))


# Image heights and widths leave remainders that no patch covers.
CONVOLUTIONS = [
    pytest.param(16, 12, 0, 64, 53, id="patch16-stride12"),
    pytest.param(16, 16, 0, 50, 48, id="patch16-stride16"),
    pytest.param(32, 24, 0, 83, 56, id="patch32-stride24"),
    pytest.param(3, 2, 1, 16, 22, id="stem"),
    pytest.param(5, 3, 0, 21, 17, id="coprime"),
    pytest.param(2, 3, 0, 11, 9, id="gaps"),
    pytest.param(7, 7, 0, 7, 7, id="one-patch"),
]


@pytest.mark.parametrize(("size", "stride", "padding", "height", "width"), CONVOLUTIONS)
def test_embedding_is_a_convolution(size, stride, padding, height, width):
    layer = Convolution(3, 8, size, stride, padding=padding, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(-1, 1, (2, height, width, 3)), jnp.float32)
    layer.bias[...] = jnp.asarray(rng.normal(0, 1, 8), jnp.float32)
    graph, params = nnx.split(layer)

    def ours(images, params):
        return nnx.merge(graph, params)(images)

    def theirs(images, params):
        edges = [(padding, padding)] * 2
        kernel, bias = params["kernel"][...], params["bias"][...]
        names = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(
            images, kernel, (stride, stride), edges, dimension_numbers=names
        )
        return y + bias[None, None, None]

    rows, columns = grid_shape(height + 2 * padding, width + 2 * padding, size, stride)
    weight = rng.normal(0, 1, (2, rows, columns, 8)) / (16 * rows * columns) ** 0.5

    @jax.jit
    def both(images, params):
        results = []
        for function in (ours, theirs):
            y, gradient = jax.vjp(function, images, params)
            results.append((y, gradient(jnp.asarray(weight, jnp.float32))))
        return results

    (y, gradient), (expected, expected_gradient) = both(images, params)
    assert y.shape == expected.shape == (2, rows, columns, 8)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    arrays = zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True)
    for mine, reference in arrays:
        assert float(jnp.abs(reference).max()) > 1e-3
        np.testing.assert_allclose(mine, reference, rtol=0, atol=1e-5)


def test_a_patch_holds_the_pixels_of_its_window():
    image = jnp.arange(1 * 20 * 18 * 1, dtype=jnp.float32).reshape(1, 20, 18, 1)
    patches = np.asarray(extract_patches(image, 8, 6))
    for row in range(3):
        for column in range(2):
            window = np.asarray(image[0, 6 * row : 6 * row + 8, 6 * column : 6 * column + 8])
            assert sorted(patches[0, row, column]) == sorted(window.ravel())


def test_kernel_and_patches_are_in_the_same_order():
    kernel = jnp.arange(8 * 8 * 3, dtype=jnp.float32).reshape(8, 8, 3, 1)
    image = kernel[None, :, :, :, 0]
    patch = extract_patches(image, 8, 6)[0, 0, 0]
    np.testing.assert_array_equal(patch, patch_rows(kernel, 6)[:, 0])


def test_layer_norm_is_pytorchs():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (4, 7, 32)).astype(np.float32)
    layer = LayerNorm(32)
    layer.scale[...] = jnp.asarray(rng.normal(1, 0.3, 32), jnp.float32)
    layer.bias[...] = jnp.asarray(rng.normal(0, 0.3, 32), jnp.float32)
    weight, bias = (torch.tensor(np.asarray(v[...])) for v in (layer.scale, layer.bias))
    expected = torch.nn.functional.layer_norm(torch.tensor(x), (32,), weight, bias, 1e-6)
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected.numpy(), rtol=0, atol=1e-5)


def test_layer_norm_of_a_constant_is_its_bias():
    layer = LayerNorm(8)
    layer.bias[...] = jnp.arange(8.0)
    np.testing.assert_array_equal(layer(jnp.full((2, 8), 3.0)), np.tile(np.arange(8.0), (2, 1)))
    gradient = jax.grad(lambda x: layer(x).sum())(jnp.zeros((1, 8)))
    assert bool(jnp.isfinite(gradient).all())


def test_dense_is_pytorchs_with_its_kernel_transposed():
    layer = Dense(6, 4, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(4.0)
    x = np.random.default_rng(0).normal(0, 1, (3, 5, 6)).astype(np.float32)
    weight = torch.tensor(np.asarray(layer.kernel[...]).T.copy())
    bias = torch.tensor(np.asarray(layer.bias[...]))
    expected = torch.nn.functional.linear(torch.tensor(x), weight, bias)
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected.numpy(), rtol=0, atol=1e-6)


@on_a_cpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_float32_whatever_the_arithmetic_and_on_a_cpu_all_between_products(dtype):
    makers = (
        lambda: Dense(4, 6, rngs=nnx.Rngs(0), dtype=jnp.dtype(dtype)),
        lambda: LayerNorm(4, dtype=jnp.dtype(dtype)),
        lambda: Convolution(4, 6, 2, 1, rngs=nnx.Rngs(0), dtype=jnp.dtype(dtype)),
    )
    for make in makers:
        layer = nnx.eval_shape(make)
        assert {str(x.dtype) for x in jax.tree.leaves(nnx.state(layer))} == {"float32"}
        y = nnx.eval_shape(lambda layer, x: layer(x), layer, jnp.ones((1, 3, 3, 4)))
        assert y.dtype == jnp.float32


def test_on_a_gpu_arrays_between_products_have_the_type_of_the_products(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for layer in (
        Dense(4, 6, rngs=nnx.Rngs(0), dtype=jnp.bfloat16),
        LayerNorm(4, dtype="bfloat16"),
    ):
        x = jnp.ones((1, 3, 4), jnp.bfloat16)
        assert jax.eval_shape(layer, x).dtype == jnp.bfloat16
        of_x = jax.eval_shape(jax.grad(lambda x, layer=layer: layer(x).sum().astype(float)), x)
        assert of_x.dtype == jnp.bfloat16


@on_a_cpu
@pytest.mark.parametrize("outputs", [6, 24])
def test_a_dense_layer_in_bfloat16_rounds_its_factors_and_nothing_else(outputs):
    """Forwards and backwards: sums of products of numbers of 8 bits are made in float32."""
    rng = np.random.default_rng(0)
    shapes = ((3, 5, 12), (12, outputs), (outputs,), (3, 5, outputs))
    *arrays, upstream = (jnp.asarray(rng.normal(0, 1, shape), jnp.float32) for shape in shapes)
    half = jax.jit(functools.partial(dense, dtype=jnp.bfloat16))
    ours, backward = jax.vjp(half, *arrays)

    def rounded(x):
        return np.asarray(x.astype(jnp.bfloat16), np.float64)

    x, kernel, g = (rounded(array) for array in (*arrays[:2], upstream))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=2e-6)
    close(ours, x @ kernel + np.asarray(arrays[2]))
    by_x, by_kernel, by_bias = backward(upstream)
    close(by_x, g @ kernel.T)
    close(by_kernel, np.einsum("bni,bno->io", x, g))
    close(by_bias, np.asarray(upstream).sum((0, 1)))


@pytest.mark.skipif(
    not Path("/proc/cpuinfo").exists() or "avx512_bf16" not in Path("/proc/cpuinfo").read_text(),
    reason="the processor has no instructions for bfloat16",
)
@pytest.mark.parametrize("outputs", [48, 192])
def test_a_dense_layers_three_products_run_in_bfloat16(outputs):
    """XLA makes them in float32, at half the rate, wherever a factor does not lie as it likes."""
    arguments = jnp.ones((8, 50, 96)), jnp.ones((96, outputs)), jnp.ones(outputs)

    def loss(x, kernel, bias):
        return jnp.sin(dense(jnp.cos(x), kernel, bias, jnp.bfloat16)).sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    program = str(gradients.lower(*arguments).compile().as_text())
    products = [part for part in program.split("\n\n") if " dot(" in part]
    assert len(products) == 3
    for part in products:
        factors = re.findall(r"= (\w+)\[[\d,]+\]\{[\d,]+\} parameter", part)
        assert factors.count("bf16") == 2, part


@pytest.mark.parametrize("by_eigen", [False, True])
@pytest.mark.parametrize("outputs", [6, 24])
def test_gradients_of_a_dense_layer_are_those_of_the_chain_rule(monkeypatch, outputs, by_eigen):
    """Either factor may be the smaller; the batch may have any number of axes."""
    monkeypatch.setattr(layers, "eigen_multiplies", lambda dtype: by_eigen)
    rng = np.random.default_rng(0)
    shapes = ((3, 5, 12), (12, outputs), (outputs,))
    arrays = [jnp.asarray(rng.normal(0, 1, shape), jnp.float32) for shape in shapes]

    def loss(function):
        return lambda *a: jnp.sin(function(*a)).sum()

    ours = jax.jit(jax.value_and_grad(loss(dense), argnums=(0, 1, 2)))(*arrays)
    plain = loss(lambda x, k, b: x @ k + b[None, None])
    plain = jax.value_and_grad(plain, argnums=(0, 1, 2))(*arrays)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, ours, plain)


def test_what_no_gradient_is_asked_of_costs_no_product():
    """Images, the input of the first dense layer, have none: two products of the three remain."""
    x, kernel, bias = jnp.ones((4, 12)), jnp.ones((12, 6)), jnp.ones(6)

    def loss(x, kernel, bias):
        return jnp.sin(dense(x, kernel, bias)).sum()

    one = 4 * 12 * 6
    assert macs(jax.grad(loss, argnums=(0, 1, 2)), x, kernel, bias) == 3 * one
    assert macs(jax.grad(loss, argnums=(1, 2)), x, kernel, bias) == 2 * one
