"""What a network costs: its size and products counted, its time from records or measured."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from bcvit_jax import macs
from bcvit_jax.config import RunConfig
from bcvit_jax.models import BCViT, BCViTConfig, scale
from bcvit_jax.models.convolve import plain_convolutions
from bcvit_jax.program import (
    abstract_batch,
    compiled,
    fresh_state,
    make_mesh,
    make_program,
    shareable,
)

_ROUNDS, _SECONDS = 5, 3.0  # of timing: as many forward passes at least, and as long


def of_network(config: RunConfig, classes: int) -> dict[str, int]:
    """parameters, macs of the forward pass of one image, and flops, which are twice as many.

    Counted as papers do, of all tokens in all blocks, though a BCViT leaves out those that its
    answer does not depend on; in float32, whose attention no fused kernel hides.
    """
    plain = dataclasses.replace(config, model={**config.model, "dtype": "float32"})
    program = make_program(plain, classes, 1.0, 1, make_mesh())
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(program.init, key)
    devices = jax.device_count()  # which share a batch
    images = abstract_batch(devices, program.model.image_size)["image"]
    model, forward = program.model, program.predict_step
    if isinstance(model, BCViTConfig):
        forward = _of_every_token(model)
    with plain_convolutions():
        count = macs.macs(forward, state.variables, images) // devices
    return {"parameters": macs.parameters(state.params), "macs": count, "flops": 2 * count}


def _of_every_token(model: BCViTConfig) -> Callable[..., Any]:
    graph, _ = nnx.split(nnx.eval_shape(lambda: BCViT(model, rngs=nnx.Rngs(0))))
    return lambda params, images: nnx.merge(graph, params).every_token(scale(images))


def inference(config: RunConfig, classes: int) -> float:
    """Milliseconds an image of the forward pass on the devices here: the median of rounds."""
    program = make_program(config, classes, 1.0, 1, make_mesh())
    variables = fresh_state(program, jax.random.key(0)).variables
    size, batch = program.model.image_size, shareable(config.eval_batch_size)
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    step = compiled(program.predict_step, variables, images)
    jax.block_until_ready(step(variables, images))
    taken: list[float] = []
    while len(taken) < _ROUNDS or sum(taken) < _SECONDS:
        begin = time.perf_counter()
        jax.block_until_ready(step(variables, images))
        taken.append(time.perf_counter() - begin)
    return 1000 * float(np.median(taken)) / batch


def training(workdirs: Sequence[Path]) -> float | None:
    """Milliseconds a training image: the median over the lines of metrics.jsonl of all runs."""
    speeds = []
    for workdir in workdirs:
        try:
            lines = (workdir / "metrics.jsonl").read_text("utf-8").splitlines()
            speeds += [json.loads(line)["images_per_second"] for line in lines]
        except (OSError, ValueError, KeyError):
            continue
    return 1000 / float(np.median(speeds)) if speeds else None


def evaluation(folders: Sequence[Path], images: int) -> float | None:
    """Milliseconds an image of the folds' evaluations, reading included; None where not noted."""
    seconds: Any = 0.0
    for folder in folders:
        try:
            facts = json.loads((folder / "training.json").read_text("utf-8"))
            seconds += facts["seconds"]["evaluation"]
        except (OSError, ValueError, KeyError):
            return None
    return 1000 * seconds / images
