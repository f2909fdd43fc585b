"""The optimizers of a config: PyTorch's SGD (the paper's), AdamW, and Muon for kernels."""

from collections.abc import Callable
from typing import Any

import jax
import optax
import optax.contrib

from bcvit_jax.config import OptimizerConfig


def make_optimizer(
    config: OptimizerConfig, steps_per_epoch: float, steps: int
) -> tuple[optax.GradientTransformation, Callable[[Any], Any]]:
    """The optimizer of `config`, and its learning rate by step; SGD is PyTorch's (coupled L2)."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if config.schedule == "milestones":
        boundaries = {round(m * steps_per_epoch) - warmup: config.decay for m in config.milestones}
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
    return optax.chain(*parts), schedule


def _muon_axes(params: Any) -> Any:
    """Input and output axes of the kernels that Muon orthogonalizes; the rest is Adam's."""
    axes = {
        2: optax.contrib.MuonDimensionNumbers(0, 1),
        4: optax.contrib.MuonDimensionNumbers((0, 1, 2), 3),
    }
    return jax.tree.map(lambda x: axes.get(x.ndim), params)


def _matrices(params: Any) -> Any:
    """True for kernels: biases, norms, the class token and positions [1, n, d] are not decayed."""
    return jax.tree.map(lambda x: x.ndim in (2, 4), params)
