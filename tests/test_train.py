"""The train step, that devices change no loss, and what is refused before any work."""

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bcvit_jax import losses
from bcvit_jax.config import LossConfig, MaeConfig, OptimizerConfig, RunConfig
from bcvit_jax.data import DataConfig
from bcvit_jax.errors import UserError
from bcvit_jax.fold_run import check_run
from bcvit_jax.models import loop, scale
from bcvit_jax.optimizer import make_optimizer
from bcvit_jax.program import State, make_mesh, make_program, network_config
from bcvit_jax.train import to_devices
from tests.networks import CLASSES, SIDE, lively_network, named, random_batch

pytestmark = pytest.mark.usefixtures("strict_ranks")

ROOT = Path(__file__).resolve().parents[1]


# ---------------------------------------------------------------------- the train step


def run_config(depth: int = 1, **fields) -> RunConfig:
    model = dict(name="bcvit_tiny_patch16_s12_128", image_size=SIDE, patch_size=8, stride=6)
    model |= dict(width=32, heads=2, mlp_width=64, depth=depth)
    return RunConfig("test", model, DataConfig(path=""), batch_size=8, **fields)


def test_a_train_step_is_the_mathematics_written_out():
    config = run_config(
        loss=LossConfig(contrastive=0.7, alpha=0.3, label_smoothing=0.1),
        optimizer=OptimizerConfig(learning_rate=0.1, weight_decay=0.01),
    )
    mesh = make_mesh()
    program = make_program(config, CLASSES, 100, 100, mesh)
    model: Any = program.model
    before = nnx.state(lively_network(model, spread=0.05), nnx.Param)
    optimizer, _ = make_optimizer(config.optimizer, 100, 100)
    state = State(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, before), optimizer.init(before))
    batch = random_batch(8)
    assert 0 < (batch["mix"] < 1).sum() < 8
    placed = next(to_devices(iter([batch]), mesh))
    state, metrics = program.train_step(state, placed, jax.random.key(1))

    graph, _ = nnx.split(lively_network(model))
    pixels = jnp.asarray(batch["image"].astype(np.float32) / 127.5 - 1.0)
    majority = np.where(batch["mix"] >= 0.5, batch["label"], batch["mixed_label"])
    target = np.eye(CLASSES)[batch["label"]] * batch["mix"][:, None]
    target += np.eye(CLASSES)[batch["mixed_label"]] * (1 - batch["mix"][:, None])
    target = jnp.asarray(0.9 * target + 0.1 / CLASSES, jnp.float32)

    def loss(params):
        output = nnx.merge(graph, params)(pixels)
        entropy = -(target * jax.nn.log_softmax(output.logits)).sum(-1).mean()
        alike = losses.contrastive(output.feature, jnp.asarray(majority), alpha=0.3)
        return entropy + 0.7 * alike, (entropy, alike, output)

    (total, parts), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(before)
    entropy, alike, output = parts
    expected = {"loss": total, "cross_entropy": entropy, "contrastive": alike}
    expected["top1"] = (np.asarray(output.logits).argmax(-1) == majority).mean()
    squares = sum(float((np.asarray(g) ** 2).sum()) for g in jax.tree.leaves(gradient))
    expected |= {"gradient_norm": squares**0.5, "learning_rate": 0.1}
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(float(value), abs=1e-5), name
    moved = jax.tree.map(lambda p, g: p - 0.1 * (g + 0.01 * p), before, gradient)
    for name, value in named(state.params).items():
        np.testing.assert_allclose(value, named(moved)[name], rtol=0, atol=1e-6, err_msg=name)
    assert int(state.step) == 1

    logits, kept = program.predict_step(before, jnp.asarray(batch["image"]))
    np.testing.assert_allclose(logits, output.logits, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(kept, output.kept)

    for _ in range(40):
        state, metrics = program.train_step(state, placed, jax.random.key(1))
    assert int(state.step) == 41
    assert float(metrics["loss"]) < 0.7 * float(total)  # it learns the batch by heart


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_parameters_of_all_blocks_in_one_array_train_as_each_in_its_own(monkeypatch, optimizer):
    """And are no temporaries of a step. Muon and rates by layer take each block for itself.

    The last block, of whose tokens few are read, is not in the loop.
    """
    monkeypatch.setattr(loop, "_on_one_cpu", lambda images: False)  # blocks in a loop
    recipe = OptimizerConfig(name=optimizer, learning_rate=0.05, layer_decay=0.5, clip_norm=1.0)
    config = run_config(depth=3, optimizer=recipe)
    mesh, key = make_mesh(), jax.random.key(1)
    program = make_program(config, CLASSES, 100, 100, mesh)
    apart, together = (program.init(key) for _ in range(2))
    together = together._replace(params=program.stack(together.params))
    assert named(together.params)["looped.mlp.expand.kernel"].shape == (2, 32, 64)
    batches = list(to_devices((random_batch(8, seed=seed) for seed in range(3)), mesh))
    held = 4 * sum(x.size for x in jax.tree.leaves(together.params["looped"]))
    ends, temporaries = [], []
    for state in (apart, together):
        step = cast(Any, program.train_step).lower(state, batches[0], key).compile()
        temporaries.append(step.memory_analysis().temp_size_in_bytes)
        for batch in batches:
            state, metrics = step(state, batch, key)
        params = program.unstack(state.params)
        ends.append((named(params), jax.tree.leaves(state.opt_state), metrics))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *ends)
    assert temporaries[0] - temporaries[1] > 0.9 * held


def test_the_seed_decides_the_start():
    program = make_program(run_config(), CLASSES, 1, 1, make_mesh())
    first, again, other = (program.init(jax.random.key(seed)) for seed in (0, 0, 1))
    assert isinstance(first, State)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), named(first.params), named(again.params))
    assert all(same.values())
    assert not bool(
        (named(first.params)["head.kernel"] == named(other.params)["head.kernel"]).all()
    )


def test_pixels_are_scaled_to_minus_one_and_one():
    pixels = scale(jnp.asarray([0, 255, 51], jnp.uint8))
    np.testing.assert_allclose(pixels, [-1.0, 1.0, -0.6], atol=1e-6)


def test_every_batch_reaches_the_devices_once_and_in_order():
    batches = [random_batch(8, side=8, seed=seed) for seed in range(3)]
    placed = list(to_devices(iter(batches), make_mesh()))
    assert len(placed) == 3
    for batch, there in zip(batches, placed, strict=True):
        assert set(there) == set(batch)
        for name, value in batch.items():
            np.testing.assert_array_equal(there[name], value)


# ------------------------------------------------------------------ one device or eight


@pytest.fixture(scope="module")
def on_devices() -> dict[int, Any]:
    """`steps_on_devices.py` on one device and on eight simulated ones."""
    running = {}
    for count in (1, 8):
        flags = f"--xla_force_host_platform_device_count={count}"
        # Threads enough: a device that waits for the others must not hold the one that they need.
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "NPROC": "32"}
        command = [sys.executable, "-W", "error", "-m", "tests.steps_on_devices"]
        running[count] = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    results = {}
    for count, process in running.items():
        output, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
        results[count] = json.loads(output)
        assert results[count]["devices"] == count
    return results


def test_one_device_and_eight_give_the_same_losses(on_devices):
    one, eight = (on_devices[count]["history"] for count in (1, 8))
    for name in ("loss", "cross_entropy", "contrastive"):
        assert len(one[name]) == 20
        np.testing.assert_allclose(eight[name], one[name], rtol=0, atol=1e-5, err_msg=name)
    assert min(one["contrastive"]) > 1e-3
    assert abs(one["loss"][-1] - one["loss"][0]) > 1e-2


def test_batch_norm_takes_the_moments_of_all_devices(on_devices):
    one, eight = (on_devices[count]["batch_norm"] for count in (1, 8))
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(eight["moments"], one["moments"], rtol=0, atol=1e-4)
    assert len(one["moments"]) > 1000
    assert np.ptp(one["moments"]) > 0.1


def test_the_contrastive_loss_spans_all_devices(on_devices):
    one, eight = (on_devices[count]["contrastive"] for count in (1, 8))
    assert eight["whole"] == pytest.approx(one["whole"], abs=1e-6)
    assert abs(eight["whole"] - eight["apart"]) > 1e-2


def test_devices_exchange_gradients_and_what_the_contrastive_loss_compares(on_devices):
    """Nothing else, so communication does not grow with pixels, tokens or layers of maps."""
    assert on_devices[1]["exchanged"] == []
    sent = on_devices[8]["exchanged"]
    features, labels = 16 * 32, 16
    gathered = sorted((kind, count) for name, kind, count in sent if name == "all-gather")
    assert gathered == [("f32", features), ("s32", labels)]
    reduced = [count for name, _, count in sent if name == "all-reduce"]
    # Each gradient once, those of the features, and the three scalars: two losses and the hits. The
    # biases of the keys of the two blocks that few tokens are asked of move nothing.
    assert sum(reduced) == on_devices[8]["parameters"] - 2 * 32 + features + 3
    assert len(reduced) + len(gathered) == len(sent)


# ----------------------------------------------------------------- faults before any work


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({}, ["config.model.name is not set"]),
        ({"name": "vit_tny_patch16_224"}, ["config.model:", "did you mean 'vit_tiny_patch16_224'"]),
        ({"name": "vit_tiny_patch16_224", "stride": 0}, ["config.model: stride is 0"]),
        ({"name": "vit_tiny_patch16_224", "widht": 3}, ["config.model:", "did you mean 'width'"]),
        ({"name": "vit_tiny_patch16_224", "image_size": 8}, ["image_size 8", "patch_size 16"]),
    ],
)
def test_a_wrong_network_is_a_user_error(model, words):
    config = RunConfig("test", model, DataConfig(path=""))
    with pytest.raises(UserError) as caught:
        network_config(config, 10)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(folds=(7,)), ["7"]),
        (dict(folds=(0,), train_folds=(0, 1)), ["fold 0", "config.train_folds"]),
        (dict(batch_size=12), ["config.batch_size is 12", "8 devices", "multiple of 8"]),
        (dict(eval_batch_size=20), ["config.eval_batch_size is 20", "multiple of 8"]),
        (dict(data=DataConfig("", cache_size=100)), ["config.data.cache_size is 100", "224"]),
    ],
)
def test_a_wrong_run_is_a_user_error(fields, words, cells, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    fields = dict(folds=(0,), batch_size=16, eval_batch_size=16, data=DataConfig("")) | fields
    model = {"name": "vit_tiny_patch16_224"}
    check_run(RunConfig("test", model, DataConfig(path=""), folds=(1,), batch_size=16), cells)
    with pytest.raises(UserError) as caught:
        check_run(RunConfig("test", model, **fields), cells)
    for word in words:
        assert word in str(caught.value)


def test_one_class_is_enough_to_pretrain_on_alone():
    """Such as the folder above the one whose folders are the classes."""
    dataset: Any = SimpleNamespace(folds=("fold0", "fold1"), class_names=("cells",))
    config = RunConfig("test", {"name": "vit_tiny_patch16_224"}, DataConfig("data/mine"))
    config = dataclasses.replace(config, folds=(0,))
    with pytest.raises(UserError, match="data/mine has one class, cells; a classifier needs two"):
        check_run(config, dataset)
    check_run(dataclasses.replace(config, mae=MaeConfig(0.75)), dataset)


def test_nothing_left_to_train_on_is_a_user_error():
    dataset: Any = SimpleNamespace(folds=("fold0",), class_names=("A", "B"))
    config = RunConfig("test", {"name": "vit_tiny_patch16_224"}, DataConfig(path=""), folds=(0,))
    with pytest.raises(UserError, match="nothing is left to train on beside fold 0"):
        check_run(config, dataset)
