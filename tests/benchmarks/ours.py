"""The jobs in this project's code, by the functions that `bcvit_jax.main` runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bcvit_jax.config import LossConfig, OptimizerConfig, RunConfig
from bcvit_jax.data import DataConfig, open_dataset, train_batches
from bcvit_jax.program import (
    Program,
    State,
    compiled,
    fresh_state,
    make_mesh,
    make_program,
)
from tests.benchmarks.jobs import CLASSES, SIZES, Shape, random_batch


def program(shape: Shape, **model: Any) -> Program:
    """The network of `shape` and the paper's recipe (SGD with momentum, both losses)."""
    width, heads, depth = SIZES[shape.size]
    model = {
        "name": "bcvit_base_patch16_s12_224",
        "dtype": shape.dtype,
        "image_size": shape.side,
        "stride": shape.stride,
        "width": width,
        "heads": heads,
        "depth": depth,
        "mlp_width": 4 * width,
    } | model
    optimizer = OptimizerConfig(learning_rate=1e-3, weight_decay=5e-4, momentum=0.9)
    config = RunConfig(
        "benchmark", model, DataConfig(path=""), optimizer=optimizer, batch_size=shape.batch
    )
    return make_program(config, CLASSES, 100.0, 10_000, make_mesh())


def train(shape: Shape) -> Callable[[], object]:
    """A train step on a fixed batch."""
    return _training(program(shape), shape)


def train_cnn(shape: Shape) -> Callable[[], object]:
    """The same of a convolutional baseline, with cross-entropy alone."""
    return _training(baseline(shape), shape)


def baseline(shape: Shape, **model: Any) -> Program:
    """The baseline that `shape` names, by the recipe of `program`."""
    model = {"name": shape.size, "image_size": shape.side} | model
    optimizer = OptimizerConfig(learning_rate=1e-3, weight_decay=5e-4, momentum=0.9)
    loss = LossConfig(contrastive=0.0)
    config = RunConfig(
        "benchmark", model, DataConfig(path=""), optimizer, loss, batch_size=shape.batch
    )
    return make_program(config, CLASSES, 100.0, 10_000, make_mesh())


def _training(made: Program, shape: Shape) -> Callable[[], object]:
    key, batch = jax.random.key(0), random_batch(shape)
    state: State = fresh_state(made, key)
    state = state._replace(params=made.stack(state.params))
    train_step = compiled(made.train_step, state, batch, key)

    def step():
        nonlocal state
        state, metrics = train_step(state, batch, key)
        return float(metrics["loss"])

    return step


def forward(shape: Shape, **model: Any) -> Callable[[], object]:
    """Logits of a fixed batch."""
    made = program(shape, **model)
    params = fresh_state(made, jax.random.key(0)).params
    images = jnp.asarray(random_batch(shape)["image"])
    return lambda: jax.block_until_ready(made.predict_step(params, images))


def forward_plain(shape: Shape) -> Callable[[], object]:
    """Logits of the plain Vision Transformer of stride 16."""
    return forward(shape, stride=16, selection=False, activation="gelu")


def read(shape: Shape, folder: Path, cache: str = "", workers: int = 2) -> Callable[[], object]:
    """A batch of the recipe's augmentation from the data set in `folder`.

    Balanced to an epoch as long as that of four folds of pbc10: Grain finds a place in the shuffled
    order by trying, the longer the fewer places there are.
    """
    dataset = open_dataset(str(folder))
    config = DataConfig(
        path=str(folder),
        balance_target=2320,
        centre_crop=0.6,
        flips_turns=True,
        crop_area=(0.7, 1.0),
        crop_ratio=(0.9, 1.1),
        brightness=0.2,
        contrast=0.2,
        saturation=0.2,
        hue=0.02,
        cache=cache,
        cache_size=shape.cached,
        workers=workers,
        threads=0 if cache else 2,
    )
    stream = train_batches(dataset, range(5), config, shape.side, shape.batch, seed=0)
    return lambda: np.asarray(next(stream)["image"])


def compiled_memory(shape: Shape, **model: Any) -> int:
    """Bytes of temporaries that the compiled train step asks for."""
    made = program(shape, **model)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(made.init, key)
    state = state._replace(params=jax.eval_shape(made.stack, state.params))
    batch = {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype)
        for name, value in random_batch(shape).items()
    }
    step = compiled(made.train_step, state, batch, key)
    return step.memory_analysis().temp_size_in_bytes  # pyright: ignore[reportFunctionMemberAccess]


__all__ = [
    "baseline",
    "compiled_memory",
    "forward",
    "forward_plain",
    "program",
    "read",
    "train",
    "train_cnn",
]
