"""SGD and AdamW against PyTorch's, schedules by hand, and which arrays are decayed or rotated."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from bcvit_jax.config import OptimizerConfig
from bcvit_jax.optimizer import layer_factors, make_optimizer
from tests.networks import lively_network, named, tiny_config

pytestmark = pytest.mark.usefixtures("strict_ranks")


def problem() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Weights of a two-layer network, inputs and targets."""
    rng = np.random.default_rng(0)
    weights = {"kernel1": (6, 8), "bias1": (8,), "kernel2": (8, 3), "bias2": (3,)}
    weights = {k: rng.normal(0, 0.5, shape).astype(np.float32) for k, shape in weights.items()}
    return weights, rng.normal(0, 1, (16, 6)).astype(np.float32), rng.normal(0, 1, (16, 3))


def our_path(config: OptimizerConfig, steps_per_epoch: int, steps: int) -> list[dict]:
    """The weights after every step."""
    weights, x, y = problem()
    optimizer, _ = make_optimizer(config, steps_per_epoch, steps)

    def loss(w):
        hidden = jnp.tanh(x @ w["kernel1"] + w["bias1"][None])
        return ((hidden @ w["kernel2"] + w["bias2"][None] - y) ** 2).mean()

    @jax.jit
    def step(w, state):
        updates, state = optimizer.update(jax.grad(loss)(w), state, w)
        return optax.apply_updates(w, updates), state

    w: Any = jax.tree.map(jnp.asarray, weights)
    state, path = optimizer.init(w), []
    for _ in range(steps):
        w, state = step(w, state)
        path.append(jax.device_get(w))
    return path


def their_path(make, steps_per_epoch: int, steps: int, clip_norm: float = 0.0) -> list[dict]:
    """The same in PyTorch; `make(weights)` gives the optimizer and its scheduler (or None)."""
    weights, *data = problem()
    x, y = (torch.tensor(v, dtype=torch.float32) for v in data)
    w = {k: torch.tensor(v, requires_grad=True) for k, v in weights.items()}
    optimizer, scheduler = make(w)
    path = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        hidden = torch.tanh(x @ w["kernel1"] + w["bias1"])
        ((hidden @ w["kernel2"] + w["bias2"] - y) ** 2).mean().backward()
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(list(w.values()), clip_norm)
        optimizer.step()
        if scheduler and step % steps_per_epoch == 0:
            scheduler.step()
        path.append({k: v.detach().numpy().copy() for k, v in w.items()})
    return path


def assert_same_path(ours: list[dict], theirs: list[dict], atol: float):
    assert len(ours) == len(theirs)
    for mine, reference in zip(ours, theirs, strict=True):
        for name, value in reference.items():
            np.testing.assert_allclose(mine[name], value, rtol=0, atol=atol)
    moved = max(np.abs(theirs[-1][k] - theirs[0][k]).max() for k in theirs[0])
    assert moved > 0.05


@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
def test_sgd_is_pytorchs_across_its_milestones(clip_norm):
    config = OptimizerConfig(
        learning_rate=0.1, weight_decay=5e-4, milestones=(2, 4, 5), clip_norm=clip_norm
    )

    def make(w):
        optimizer = torch.optim.SGD(w.values(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4, 5], gamma=0.1)

    theirs = their_path(make, 5, 30, clip_norm)
    assert_same_path(our_path(config, 5, 30), theirs, atol=1e-6)


def test_adamw_is_pytorchs_and_decays_kernels_only():
    config = OptimizerConfig(
        name="adamw", learning_rate=0.01, weight_decay=0.3, milestones=(3,), clip_norm=0.5
    )

    def make(w):
        kernels = [v for k, v in w.items() if k.startswith("kernel")]
        others = [v for k, v in w.items() if not k.startswith("kernel")]
        groups = [{"params": kernels}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.3)
        return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [3], gamma=0.1)

    theirs = their_path(make, 5, 30, clip_norm=0.5)
    assert_same_path(our_path(config, 5, 30), theirs, atol=2e-6)


def test_the_papers_learning_rates():
    _, schedule = make_optimizer(OptimizerConfig(), steps_per_epoch=12.5, steps=1250)
    rates = {0: 1e-3, 499: 1e-3, 500: 1e-4, 874: 1e-4, 875: 1e-5, 1124: 1e-5, 1125: 1e-6}
    for step, rate in rates.items():
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-5), step


def test_warm_up_then_cosine():
    config = OptimizerConfig(learning_rate=0.4, schedule="cosine", warmup_epochs=2.0)
    _, schedule = make_optimizer(config, steps_per_epoch=5, steps=50)
    for step in range(51):
        if step <= 10:
            expected = 0.4 * step / 10
        else:
            expected = 0.4 * (1 + math.cos(math.pi * (step - 10) / 40)) / 2
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-7), step


def test_warm_up_moves_no_milestone():
    config = OptimizerConfig(learning_rate=0.4, milestones=(4, 6), warmup_epochs=2.0)
    _, schedule = make_optimizer(config, steps_per_epoch=5, steps=50)
    rates = {0: 0.0, 5: 0.2, 10: 0.4, 19: 0.4, 20: 0.04, 29: 0.04, 30: 0.004, 49: 0.004}
    for step, rate in rates.items():
        assert float(schedule(step)) == pytest.approx(rate, abs=1e-7), step


def test_milestones_of_one_step_all_count():
    """A tenth of an epoch's steps is less than one where a data set is smaller than its batch."""
    config = OptimizerConfig(learning_rate=1.0, milestones=(1, 2, 3, 20), decay=0.1)
    _, schedule = make_optimizer(config, steps_per_epoch=0.1, steps=10)
    assert [float(schedule(step)) for step in (0, 1, 2)] == pytest.approx([1e-3, 1e-3, 1e-4])


def first_updates(name: str) -> tuple[Any, ...]:
    """Updates of arrays of ones without a gradient, and of zeros with a random one; it too."""
    config = OptimizerConfig(name=name, learning_rate=0.5, weight_decay=0.1, milestones=())
    optimizer, _ = make_optimizer(config, 1, 1)
    params = nnx.state(lively_network(tiny_config(depth=1)), nnx.Param)
    rng = np.random.default_rng(0)
    random = jax.tree.map(lambda x: rng.normal(0, 1, x.shape).astype(np.float32), params)
    zeros, ones = jax.tree.map(np.zeros_like, random), jax.tree.map(np.ones_like, random)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    return update(zeros, state, ones)[0], update(random, state, zeros)[0], random


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_kernels_alone_are_decayed(name):
    """No bias, no norm, neither class token nor positions."""
    decay, adaptive, gradient = (named(tree) for tree in first_updates(name))
    assert sum(array.endswith(".kernel") for array in decay) == 12
    for array, update in decay.items():
        expected = -0.5 * 0.1 if array.endswith(".kernel") else 0.0
        np.testing.assert_allclose(update, expected, rtol=0, atol=1e-7, err_msg=array)
    for array, update in adaptive.items():
        if name == "muon" and array.endswith(".kernel"):
            assert_rotation(array, np.asarray(update), np.asarray(gradient[array]))
        else:  # Adam's first step is the sign, with Nesterov momentum in Muon
            step = 0.5 * (1 + 0.09 / 0.19 if name == "muon" else 1)
            expected = -step * np.sign(gradient[array])
            np.testing.assert_allclose(update, expected, rtol=0, atol=1e-3, err_msg=array)


def assert_rotation(array: str, update: np.ndarray, gradient: np.ndarray):
    """Muon's update of a kernel: its singular values are about 0.2·√max(in, out) rates."""
    matrix = update.reshape(-1, update.shape[-1])  # a convolution's is [P·P·c, d]
    sizes = np.linalg.svd(matrix)[1] / (0.5 * 0.2 * max(matrix.shape) ** 0.5)
    assert sizes.max() < 1.3, array
    assert np.quantile(sizes, 0.1) > 0.5, array  # the smallest of a random matrix stay behind
    assert (update * gradient).sum() < 0


def test_learning_rates_fall_from_layer_to_layer_and_frozen_ones_stand_still():
    """Three blocks and the last: the head is layer 5, the embedding layer 0."""
    params = nnx.state(lively_network(tiny_config()))
    config = OptimizerConfig("sgd", 1.0, 0.1, 0.9, layer_decay=0.5, milestones=())
    expected = {"embedding": 5, "blocks.0": 4, "blocks.1": 3, "blocks.2": 2, "last_block": 1}
    expected |= {"sparse_attention": 0, "norm": 0, "head": 0}

    def of_layer(name: str) -> float:
        return next(0.5**n for layer, n in expected.items() if name.startswith(layer))

    gradient = jax.tree.map(jnp.ones_like, params)

    def updates(config):
        optimizer, _ = make_optimizer(config, 10, 10)
        return named(optimizer.update(gradient, optimizer.init(params), params)[0])

    plain = updates(dataclasses.replace(config, layer_decay=1.0))
    for name, update in updates(config).items():
        np.testing.assert_allclose(update, plain[name] * of_layer(name), rtol=1e-6)
    frozen = dataclasses.replace(config, frozen_blocks=2)
    stopped = ("embedding", "blocks.0", "blocks.1")
    for name, update in updates(frozen).items():
        factor = 0.0 if name.startswith(stopped) else of_layer(name)
        np.testing.assert_allclose(update, plain[name] * factor, rtol=1e-6)
    clipped = updates(dataclasses.replace(frozen, clip_norm=1e-3, weight_decay=0.0))
    trained = {n: u / of_layer(n) for n, u in clipped.items() if not n.startswith(stopped)}
    norm = np.sqrt(sum(float((u**2).sum()) for u in trained.values()))
    np.testing.assert_allclose(norm, 1e-3, rtol=1e-4)  # frozen gradients count for nothing
    assert set(jax.tree.leaves(layer_factors(params, frozen))) == {0.0, 0.25, 0.5, 1.0}
