"""A convolutional network through the whole package: training, resuming, evaluation, export."""

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from bcvit_jax import experiment, export
from bcvit_jax.checkpoint import Checkpoints, _flatten
from bcvit_jax.config import LossConfig, OptimizerConfig, RunConfig
from bcvit_jax.data import DataConfig
from bcvit_jax.errors import UserError
from bcvit_jax.exported import from_pretrained
from bcvit_jax.fold_run import check_run
from bcvit_jax.models import scale
from bcvit_jax.optimizer import make_optimizer
from bcvit_jax.predictions import load_predictions
from bcvit_jax.program import Program, State, make_mesh, make_program
from bcvit_jax.signals import Signals
from bcvit_jax.weights import to_flat
from tests.baselines import SOON
from tests.networks import CLASSES, random_batch

MODEL: dict[str, Any] = dict(name="resnet18", image_size=32, depths=(1, 1), norm="batch")
BATCH = 8


def tiny(**fields: Any) -> RunConfig:
    """A ResNet of two blocks."""
    first: Any = dict(optimizer=OptimizerConfig(learning_rate=0.05, milestones=()))
    loss = LossConfig(contrastive=0.0)
    return RunConfig(
        "test", MODEL, DataConfig(path=""), loss=loss, batch_size=BATCH, **(first | fields)
    )


@pytest.fixture(scope="module")
def program() -> Program:
    return make_program(tiny(), CLASSES, 100, 100, make_mesh())


@pytest.fixture(scope="module")
def trained(program) -> tuple[Any, list[State]]:
    """The compiled step, and the states after 0, 2 and 4 steps."""
    key = jax.random.key(0)
    state = program.init(key)
    step: Any = program.train_step
    step = step.lower(state, random_batch(BATCH), key).compile(compiler_options=SOON)
    states = []
    for seed in range(5):
        if seed % 2 == 0:
            states.append(jax.tree.map(jnp.copy, state))
        state, _ = step(state, random_batch(BATCH, seed=seed), key)
    return step, states


def assert_same(one, other) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_training_moves_the_running_moments_and_no_pixels(trained):
    _, (before, _, after) = trained
    before, after = to_flat(before.statistics), to_flat(after.statistics)
    assert len(before) == 2 + 2 * (1 + 2 + 3)
    for name, array in after.items():
        moved = bool((array != before[name]).any())
        assert moved == name.endswith((".mean", ".variance")), name


def test_a_checkpoint_holds_them_and_resuming_is_exact(trained, tmp_path):
    step, (_, middle, end) = trained
    checkpoints, key = Checkpoints(tmp_path), jax.random.key(0)
    checkpoints.save(2, middle, {})
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), middle
    )
    found = checkpoints.restore(abstract)
    assert found is not None
    assert_same(found[1], middle)
    state = found[1]
    for seed in (2, 3):
        state, _ = step(state, random_batch(BATCH, seed=seed), key)
    assert_same(state, end)


def test_networks_without_batch_norm_write_what_they_always_wrote():
    """So that checkpoints from before there was any are restored."""
    vit = dict(name="vit_tiny_patch16_224", image_size=32, width=32, heads=2, depth=1)
    made = make_program(RunConfig("", vit, DataConfig("")), 3, 1, 1, make_mesh())
    state = jax.eval_shape(made.init, jax.random.key(0))
    assert state.statistics == () and state.variables is state.params
    assert {name.partition(".")[0] for name in _flatten(state)} == {"step", "params", "opt_state"}


def test_evaluation_takes_the_running_moments_alone(program, trained):
    """An image's logits don't depend on the batch; they do on the moments."""
    _, (_, _, state) = trained
    images = jnp.asarray(random_batch(BATCH, seed=7)["image"])
    together, _ = program.predict_step(state.variables, images)
    twice, _ = program.predict_step(state.variables, jnp.tile(images[:4], (2, 1, 1, 1)))
    np.testing.assert_allclose(together[:4], twice[:4], rtol=0, atol=1e-5)
    moved = state._replace(statistics=jax.tree.map(lambda x: x + 0.5, state.statistics))
    other, _ = program.predict_step(moved.variables, images)
    assert np.abs(other - together).max() > 1e-2


@pytest.mark.parametrize("field", [dict(frozen_blocks=1), dict(layer_decay=0.5)])
def test_what_needs_the_blocks_of_a_transformer_is_refused(field, cells):
    config = tiny(optimizer=OptimizerConfig(**field), folds=(0,))
    with pytest.raises(UserError, match=f"{next(iter(field))} is .*needs a Vision Transformer"):
        check_run(config, cells)


def test_muon_leaves_kernels_of_one_channel_each_to_adam():
    optimizer, _ = make_optimizer(OptimizerConfig("muon", 1.0, 0.0, 0.9, schedule="cosine"), 10, 10)
    kernels = {"dense": jnp.ones((3, 3, 4, 8)), "depthwise": jnp.ones((3, 3, 1, 8))}
    gradient = jax.tree.map(lambda x: 1e-3 * jnp.arange(1.0, x.size + 1).reshape(x.shape), kernels)
    update = jax.jit(optimizer.update)(gradient, optimizer.init(kernels), kernels)[0]
    assert np.ptp(update["depthwise"]) < 1e-3 * np.abs(update["depthwise"]).max()  # the sign
    assert np.ptp(update["dense"]) > 0.1 * np.abs(update["dense"]).max()


def test_a_run_is_exported_and_predicts_the_same_elsewhere(tiny_dataset, tmp_path):
    values = dict(title="tiny", model=MODEL, folds=(0,), epochs=2, batch_size=8, eval_batch_size=8)
    values |= dict(data={"path": str(tiny_dataset), "threads": 1})
    values |= dict(loss={"contrastive": 0.0}, optimizer={"learning_rate": 0.05})
    experiment.run(values, tmp_path / "run", Signals())
    out = export.export([tmp_path / "run"], tmp_path / "out", ("safetensors", "stablehlo"), "fold0")
    classifier = from_pretrained(out)
    assert "resnet18 with batch norm, " in (out / "README.md").read_text()
    flat = to_flat(classifier.params[0])
    assert (flat["stem.norm.mean"] != 0).any() and (flat["stem.norm.variance"] != 1).any()
    images = np.stack([classifier.preprocessing(picture) for picture in _pictures(tiny_dataset)])
    logits, kept = classifier.predict_step()(classifier.params, images)
    assert kept.shape == (len(images), 0)
    own = load_predictions(tmp_path / "run/fold0/predictions")
    np.testing.assert_allclose(
        jax.nn.softmax(logits), own.probabilities[: len(images)], rtol=0, atol=1e-5
    )
    text = bytearray((out / "network.stablehlo").read_bytes())
    again = jax.export.deserialize(text).call(flat, scale(jnp.asarray(images)))
    np.testing.assert_allclose(again, logits, rtol=0, atol=1e-4)


def _pictures(folder) -> list[np.ndarray]:
    """The first images of fold0 in its order."""
    from bcvit_jax.dataset import open_dataset

    dataset: Any = open_dataset(str(folder))
    return [np.asarray(dataset.square("fold0", i, 1.0, 32)) for i in range(5)]
