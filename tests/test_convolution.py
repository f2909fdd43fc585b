"""The layers of convolutional networks: numbers and gradients beside XLA's own and PyTorch's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from jax import lax

from bcvit_jax.models import PRESETS, compiler_options
from bcvit_jax.models.convolution import (
    BatchNorm,
    GroupNorm,
    SqueezeExcitation,
    drop_path,
    dropout,
)
from bcvit_jax.models.convolve import average_grid, block_diagonal, convolve, halve, max_pool


@pytest.fixture(autouse=True)
def exact_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def to_torch(x) -> torch.Tensor:
    return torch.from_numpy(np.asarray(x)).permute(0, 3, 1, 2).contiguous()


def from_torch(x) -> np.ndarray:
    return x.detach().permute(0, 2, 3, 1).numpy()


# kernel, stride, groups, channels in and out, height and width
CONVOLUTIONS = [
    (1, 1, 1, 5, 7, 6, 5),
    (1, 2, 1, 5, 7, 7, 6),
    (1, 1, 1, 9, 4, 6, 5),
    (1, 2, 1, 9, 4, 7, 6),
    (3, 1, 1, 3, 8, 6, 7),
    (3, 1, 1, 20, 24, 7, 5),
    (3, 2, 1, 20, 8, 7, 8),
    (7, 2, 1, 3, 8, 12, 13),
    (3, 1, 4, 16, 16, 6, 5),
    (3, 2, 32, 128, 128, 5, 6),
    (3, 1, 2, 80, 96, 4, 5),
    (3, 1, 12, 12, 12, 6, 7),
    (3, 2, 12, 12, 12, 7, 8),
    (5, 1, 12, 12, 12, 6, 3),
    (5, 2, 12, 12, 12, 8, 7),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolutions_and_gradients_are_xlas_and_pytorchs(case):
    size, stride, groups, inputs, outputs, height, width = case
    x, kernel = (
        noise(2, height, width, inputs),
        noise(size, size, inputs // groups, outputs, seed=1),
    )
    edge = (size // 2, size // 2)

    def xlas(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            (edge, edge),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    def ours(x, kernel):
        return convolve(x, kernel, stride, groups)

    shape = jax.eval_shape(xlas, x, kernel).shape
    upstream = noise(*shape, seed=2)

    @jax.jit
    def results(x, kernel, upstream):
        found = []
        for function in (ours, xlas):
            y, back = jax.vjp(function, x, kernel)
            found.append((y, *back(upstream)))
        return found

    mine, reference = results(x, kernel, upstream)
    image = to_torch(x).requires_grad_()
    weight = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).requires_grad_()
    y = F.conv2d(image, weight, None, stride, size // 2, groups=groups)
    y.backward(to_torch(upstream))
    assert image.grad is not None and weight.grad is not None
    theirs = (from_torch(y), from_torch(image.grad), weight.grad.permute(2, 3, 1, 0).numpy())
    for expected in (reference, theirs):
        for found, value in zip(mine, expected, strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-4)


def test_on_a_gpu_it_is_xlas_own(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x, kernel = noise(1, 5, 5, 8), noise(3, 3, 1, 8)
    text = str(jax.make_jaxpr(lambda x, k: convolve(x, k, 1, 8))(x, kernel))
    assert "conv_general_dilated" in text and "feature_group_count=8" in text
    assert "custom_vjp" not in text
    assert "reduce_window" in str(jax.make_jaxpr(max_pool)(x))


def test_on_a_cpu_no_grouped_convolution_is_left_to_xla():
    for channels, groups in ((64, 32), (8, 8)):
        x, kernel = noise(1, 5, 5, channels), noise(3, 3, channels // groups, channels)
        step = jax.grad(lambda x, k: convolve(x, k, 1, groups).sum(), (0, 1))  # noqa: B023
        assert "feature_group_count=1\n" in (text := str(jax.make_jaxpr(step)(x, kernel))) or (
            "conv_general_dilated" not in text
        )
        assert f"feature_group_count={groups}" not in text


def made(function, options: dict[str, str], *arrays) -> str:
    """The compiled program as text."""
    program: Any = jax.jit(function, compiler_options=options)
    return program.lower(*arrays).compile().as_text()


def test_on_a_cpu_convolutions_are_eigens(monkeypatch):
    """YNNPACK would give 64 outputs to one thread; what it computes is a fusion named for it."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    options = compiler_options(PRESETS["resnet18"])
    images, kernel = jnp.ones((2, 28, 28, 64)), jnp.ones((3, 3, 64, 64))
    rows, columns = jnp.ones((784, 256)), jnp.ones((256, 512))
    assert "ynn_fusion" in made(convolve, {}, images, kernel)
    assert "ynn_fusion" not in made(convolve, options, images, kernel)
    assert "ynn_fusion" in made(jnp.matmul, options, rows, columns)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=dot")
    assert compiler_options(PRESETS["resnet18"]) == {}
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler_options(PRESETS["resnet18"]) == {}


@pytest.mark.parametrize(("channels", "groups", "count"), [(128, 32, 4), (24, 6, 3), (80, 2, 2)])
def test_blocks_hold_the_groups_and_zeros(channels, groups, count):
    kernel = noise(3, 3, channels // groups, channels)
    blocks = block_diagonal(jnp.asarray(kernel), groups)
    assert blocks.shape == (count, 3, 3, channels // count, channels // count)
    assert int((blocks != 0).sum()) == kernel.size
    np.testing.assert_allclose(blocks.sum(), kernel.sum(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 7, 6, 4)])
def test_pooling_and_its_gradients_are_pytorchs(shape):
    """Pixels are few whole numbers, so that many are equal: the first gets the gradient."""
    x = np.random.default_rng(0).integers(0, 3, shape).astype(np.float32)
    image = to_torch(x).requires_grad_()
    y = F.max_pool2d(image, 3, 2, 1)
    found, back = jax.vjp(max_pool, jnp.asarray(x))
    np.testing.assert_array_equal(found, from_torch(y))
    upstream = noise(*found.shape)
    y.backward(to_torch(upstream))
    assert image.grad is not None
    np.testing.assert_allclose(back(upstream)[0], from_torch(image.grad), atol=1e-6)
    np.testing.assert_array_equal(halve(jnp.asarray(x)), from_torch(F.max_pool2d(to_torch(x), 2)))


@pytest.mark.parametrize("size", [(2, 2), (7, 7), (9, 10), (1, 14)])
def test_the_grid_of_means_is_pytorchs_adaptive_one(size):
    x = noise(2, *size, 3)
    theirs = F.adaptive_avg_pool2d(to_torch(x), 7)
    np.testing.assert_allclose(average_grid(jnp.asarray(x), 7), from_torch(theirs), atol=1e-6)


def with_weights(module: Any, c: int) -> Any:
    module.scale[...] = jnp.asarray(1 + 0.1 * noise(c, seed=3))
    module.bias[...] = jnp.asarray(noise(c, seed=4))
    return module


def their_norm(module, c: int) -> Any:
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(1 + 0.1 * noise(c, seed=3)))
        module.bias.copy_(torch.from_numpy(noise(c, seed=4)))
    return module


def test_batch_norm_is_pytorchs_in_training_and_in_evaluation():
    c = 6
    ours, theirs = with_weights(BatchNorm(c), c), their_norm(torch.nn.BatchNorm2d(c), c)
    x, upstream = 3 + 2 * noise(2, 3, 4, c), noise(2, 3, 4, c, seed=5)
    graph, params, statistics = nnx.split(ours, nnx.Param, nnx.BatchStat)
    for turn in range(3):
        image = to_torch(x + turn).requires_grad_()
        y = theirs(image)
        theirs.zero_grad()
        y.backward(to_torch(upstream))

        def forward(params, x, statistics=statistics):
            norm = nnx.merge(graph, params, statistics, copy=True)
            y = norm(x, True)
            return (y * upstream).sum(), (y, nnx.state(norm, nnx.BatchStat))

        back = jax.grad(forward, (0, 1), has_aux=True)
        (by_params, by_x), (found, statistics) = back(params, jnp.asarray(x + turn))
        np.testing.assert_allclose(found, from_torch(y), atol=1e-5)
        np.testing.assert_allclose(by_x, from_torch(image.grad), atol=1e-5)
        np.testing.assert_allclose(by_params["scale"][...], theirs.weight.grad, atol=1e-4)
        np.testing.assert_allclose(by_params["bias"][...], theirs.bias.grad, atol=1e-4)
        np.testing.assert_allclose(statistics["mean"][...], theirs.running_mean, atol=1e-5)
        np.testing.assert_allclose(statistics["variance"][...], theirs.running_var, atol=1e-5)
    norm = nnx.merge(graph, params, statistics)
    found = norm(jnp.asarray(x), False)
    np.testing.assert_allclose(found, from_torch(theirs.eval()(to_torch(x))), atol=1e-5)
    np.testing.assert_array_equal(norm.mean[...], statistics["mean"][...])


def test_batch_norm_keeps_large_means_apart_from_small_deviations():
    x = 1000 + 0.1 * noise(8, 8, 8, 2)
    found = BatchNorm(2)(jnp.asarray(x), True)
    deviation = np.asarray(x, np.float64).std((0, 1, 2))
    expected = (x - np.asarray(x, np.float64).mean((0, 1, 2))) / np.sqrt(deviation**2 + 1e-5)
    np.testing.assert_allclose(found, expected, atol=5e-3)


@pytest.mark.parametrize(("c", "groups"), [(64, 32), (96, 16), (24, 4), (16, 8), (1280, 32)])
def test_group_norm_is_pytorchs_and_knows_no_batch(c, groups):
    ours, theirs = with_weights(GroupNorm(c), c), their_norm(torch.nn.GroupNorm(groups, c), c)
    assert ours.groups == groups
    x = 3 + 2 * noise(2, 3, 4, c)
    for training in (True, False):
        np.testing.assert_allclose(
            ours(jnp.asarray(x), training), from_torch(theirs(to_torch(x))), atol=1e-5
        )
    np.testing.assert_allclose(ours(x[:1], True), ours(x, True)[:1], atol=1e-6)


def test_squeeze_excitation_weights_channels_by_their_means():
    module = SqueezeExcitation(4, 2, jax.nn.relu, rngs=nnx.Rngs(0))
    x = noise(2, 3, 3, 4)
    kernels = (module.reduce.kernel[...], module.expand.kernel[...])
    hidden = np.maximum(x.mean((1, 2)) @ np.asarray(kernels[0]), 0)
    gate = 1 / (1 + np.exp(-hidden @ np.asarray(kernels[1])))
    with jax.numpy_rank_promotion("allow"):
        np.testing.assert_allclose(module(x), x * gate[:, None, None], atol=1e-5)


def test_dropping_keeps_the_mean_and_whole_images():
    x, key = jnp.ones((4000, 2, 1, 3)), jax.random.key(0)
    for function, apart in ((dropout, 24000), (drop_path, 4000)):
        assert function(x, 0.25, None) is x
        assert function(x, 0.0, key) is x
        found = np.asarray(function(x, 0.25, key))
        assert set(np.unique(found)) == {0.0, np.float32(1 / 0.75)}
        assert abs(found.mean() - 1) < 4 * (1 / 3 / apart) ** 0.5
    images = np.asarray(drop_path(x, 0.25, key)).reshape(4000, -1)
    assert (images == images[:, :1]).all()
