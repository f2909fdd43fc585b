"""Twenty train steps on all devices there are; prints the metrics as JSON for test_train.py."""

import json
import math
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from bcvit_jax.config import LossConfig, MaeConfig, OptimizerConfig, RunConfig
from bcvit_jax.data import DataConfig
from bcvit_jax.losses import contrastive
from bcvit_jax.program import make_mesh, make_program
from bcvit_jax.train import to_devices
from tests.networks import random_batch

STEPS, BATCH = 20, 16
COLLECTIVES = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"


def run_config(depth: int = 2) -> RunConfig:
    """A network of 2+1 blocks on 32×32 pixels, all that is random in a step switched on."""
    model = dict(name="bcvit_tiny_patch16_s12_128", image_size=32, patch_size=8, stride=6)
    model |= dict(width=32, heads=2, mlp_width=64, depth=depth, drop_path=0.2)
    optimizer = OptimizerConfig(learning_rate=0.02, milestones=(2,), clip_norm=5.0)
    loss = LossConfig(label_smoothing=0.1)
    return RunConfig("test", model, DataConfig(path=""), optimizer, loss, batch_size=BATCH)


def train() -> dict[str, list[float]]:
    """The metrics of every step, by name."""
    mesh = make_mesh()
    program = make_program(run_config(), 5, steps_per_epoch=5, steps=STEPS, mesh=mesh)
    key = jax.random.key(3)
    state = program.init(key)
    state = state._replace(params=program.stack(state.params))
    batches = to_devices((random_batch(BATCH, seed=seed) for seed in range(STEPS)), mesh)
    history: dict[str, list[float]] = {}
    for batch in batches:
        assert len(batch["image"].sharding.device_set) == jax.device_count()
        state, metrics = program.train_step(state, batch, key)
        for name, value in metrics.items():
            history.setdefault(name, []).append(float(value))
    assert int(state.step) == STEPS
    return history


def exchanged() -> dict[str, Any]:
    """Every collective operation of a step: (operation, type, elements); the number of parameters.

    Of a network of one block and the last, so that each stands once in the compiled program.
    """
    program = make_program(run_config(depth=1), 5, steps_per_epoch=5, steps=1, mesh=make_mesh())
    key = jax.random.key(3)
    state = jax.eval_shape(program.init, key)
    state = state._replace(params=jax.eval_shape(program.stack, state.params))
    step: Any = program.train_step
    text = step.lower(state, random_batch(BATCH), key).compile().as_text()
    found = []
    for line in text.splitlines():
        if call := re.search(rf" = (.*?) ({COLLECTIVES})(?:-start)?\(", line):
            for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", call[1]):
                count = math.prod(int(n) for n in sizes.split(",") if n)
                found.append((call[2], kind, count))
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    return {"exchanged": found, "parameters": parameters}


def batch_norm() -> dict[str, list[float]]:
    """Three steps of a small ResNeXt with squeeze-excitation: losses and all running moments."""
    model = dict(name="resnext50_32x4d", image_size=32, depths=(1, 1), groups=8, squeeze=16)
    optimizer, loss = OptimizerConfig(learning_rate=0.01, milestones=()), LossConfig(0.0)
    config = RunConfig("test", model, DataConfig(path=""), optimizer, loss, batch_size=BATCH)
    mesh, key = make_mesh(), jax.random.key(3)
    program = make_program(config, 5, steps_per_epoch=5, steps=3, mesh=mesh)
    state = program.init(key)
    losses = []
    for batch in to_devices((random_batch(BATCH, seed=seed) for seed in range(3)), mesh):
        state, metrics = program.train_step(state, batch, key)
        losses.append(float(metrics["loss"]))
    moments = [float(x) for array in jax.tree.leaves(state.statistics) for x in array]
    return {"losses": losses, "moments": moments}


def pretraining_losses() -> list[float]:
    """Losses of four steps of a masked autoencoder."""
    mae = MaeConfig(0.6, width=32, depth=1, heads=2)
    model = dict(run_config().model) | {"drop_path": 0.0}
    config = RunConfig("test", model, DataConfig(path=""), mae=mae, batch_size=BATCH)
    mesh, key, losses = make_mesh(), jax.random.key(3), []
    program = make_program(config, 5, steps_per_epoch=5, steps=4, mesh=mesh)
    state = program.init(key)
    state = state._replace(params=program.stack(state.params))
    for batch in to_devices((random_batch(BATCH, seed=seed) for seed in range(4)), mesh):
        state, metrics = program.train_step(state, batch, key)
        losses.append(float(metrics["loss"]))
    return losses


def sharded_contrastive() -> dict[str, float]:
    """Equation 14 of one batch split over the devices, and the mean of each part's own."""
    features = jax.random.normal(jax.random.key(0), (BATCH, 8))
    labels = jnp.arange(BATCH) % 3
    by_batch = NamedSharding(make_mesh(), PartitionSpec("batch"))
    whole = jax.jit(contrastive, in_shardings=(by_batch, by_batch))(features, labels)
    parts = jax.device_count()
    apart = jax.vmap(contrastive)(features.reshape(parts, -1, 8), labels.reshape(parts, -1))
    return {"whole": float(whole), "apart": float(apart.mean())}


if __name__ == "__main__":
    facts = {"devices": jax.device_count(), "contrastive": sharded_contrastive()}
    facts |= exchanged() | {"history": train(), "batch_norm": batch_norm()}
    json.dump(facts, sys.stdout)
