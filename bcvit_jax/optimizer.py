"""The optimizers of a config: PyTorch's SGD (the paper's), AdamW, and Muon for kernels."""

import re
from collections.abc import Callable
from typing import Any

import jax
import optax
import optax.contrib

from bcvit_jax.config import OptimizerConfig
from bcvit_jax.weights import name_of


def make_optimizer(
    config: OptimizerConfig, steps_per_epoch: float, steps: int
) -> tuple[optax.GradientTransformation, Callable[[Any], Any]]:
    """The optimizer of `config`, and its learning rate by step; SGD is PyTorch's (coupled L2)."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if config.schedule == "milestones":
        boundaries: dict[int, float] = {}
        for milestone in config.milestones:
            step = round(milestone * steps_per_epoch) - warmup
            boundaries[step] = boundaries.get(step, 1.0) * config.decay
        schedule = optax.piecewise_constant_schedule(config.learning_rate, boundaries)
    else:
        schedule = optax.cosine_decay_schedule(config.learning_rate, max(steps - warmup, 1))
    if warmup:
        rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
        schedule = optax.join_schedules([rise, schedule], [warmup])
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.name == "sgd":
        parts += [
            optax.add_decayed_weights(config.weight_decay),
            optax.sgd(schedule, momentum=config.momentum or None),
        ]
    elif config.name == "adamw":
        parts.append(optax.adamw(schedule, weight_decay=config.weight_decay, mask=_matrices))
    else:
        parts.append(
            optax.contrib.muon(
                schedule,
                weight_decay=config.weight_decay,
                weight_decay_mask=_matrices,
                muon_weight_dimension_numbers=_muon_axes,
                consistent_rms=0.2,
            )
        )
    if config.layer_decay < 1 or config.frozen_blocks:
        parts = [_by_layer(config, frozen_only=True), *parts, _by_layer(config)]
    return optax.chain(*parts), schedule


def _by_layer(config: OptimizerConfig, frozen_only: bool = False) -> optax.GradientTransformation:
    """Multiplies each update by its layer's factor; `frozen_only` leaves those above 0 alone."""

    def scaled(updates, _):
        def one(update, factor):
            return update * (1.0 if frozen_only and factor else factor)

        return jax.tree.map(one, updates, layer_factors(updates, config))

    return optax.stateless(scaled)


def layer_factors(params: Any, config: OptimizerConfig) -> Any:
    """`layer_decay` to the power of the layers above a parameter's; 0 where it is frozen.

    The embedding is below the first block; squeeze-excitation, norm and head above the last.
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    names = [name_of(path) for path, _ in leaves]
    blocks = max(int(m[1]) + 1 for name in names if (m := re.match(r"blocks\.(\d+)", name)))
    top = blocks + 1 + any(name.startswith("last_block.") for name in names)

    def factor(path, _):
        name = name_of(path)
        place = top
        if name.startswith("embedding."):
            place = 0
        elif found := re.match(r"blocks\.(\d+)", name):
            place = int(found[1]) + 1
        elif name.startswith("last_block."):
            place = blocks + 1
        if config.frozen_blocks and place <= config.frozen_blocks:
            return 0.0
        return config.layer_decay ** (top - place)

    return jax.tree.map_with_path(factor, params)


def _muon_axes(params: Any) -> Any:
    """Input and output axes of the kernels that Muon orthogonalizes; the rest is Adam's.

    A convolution's is the matrix [K·K·in, out]. One of a channel each (in is 1) is Adam's: it is as
    many separate maps, which no matrix joins.
    """
    axes = {
        2: optax.contrib.MuonDimensionNumbers(0, 1),
        4: optax.contrib.MuonDimensionNumbers((0, 1, 2), 3),
    }
    return jax.tree.map(lambda x: None if x.shape[2:3] == (1,) else axes.get(x.ndim), params)


def _matrices(params: Any) -> Any:
    """True for kernels: biases, norms, the class token and positions [1, n, d] are not decayed."""
    return jax.tree.map(lambda x: x.ndim in (2, 4), params)
