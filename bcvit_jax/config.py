"""The settings of a run as frozen dataclasses; a ConfigDict goes no further than this file."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from bcvit_jax.data import DataConfig
from bcvit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """`sgd` is the paper's (coupled L2 on all parameters). `adamw` decays kernels only; `muon`
    orthogonalizes the kernels' momentum (Jordan et al. 2024), its step scaled to AdamW's size."""

    name: str = "sgd"
    learning_rate: float = 1e-3
    weight_decay: float = 5e-4
    momentum: float = 0.9
    schedule: str = "milestones"
    """`milestones`: × `decay` at each; `cosine`: to 0 at the last step."""
    milestones: tuple[int, ...] = (40, 70, 90)
    """Epochs."""
    decay: float = 0.1
    warmup_epochs: float = 0.0
    clip_norm: float = 0.0
    """Global gradient norm; 0 is no clipping."""


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Equations 12 to 14."""

    contrastive: float = 1.0
    """Weight of the contrastive loss; 0 leaves it out."""
    alpha: float = 0.4
    label_smoothing: float = 0.0


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's result, and where it reads and how often it writes."""

    title: str
    model: Mapping[str, Any]
    """`name` of `models.list_models()` and any field of `models.BCViTConfig`."""
    data: DataConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    folds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Folds to hold out, one after the other."""
    train_folds: tuple[int, ...] = ()
    """Folds to train on; empty is all but the held-out one."""
    epochs: int = 100
    batch_size: int = 32
    """Of all devices together."""
    eval_batch_size: int = 64
    seed: int = 0
    checkpoint_epochs: float = 1.0
    """Epochs between checkpoints."""
    log_steps: int = 20
    distributed: bool = False
    """Call `jax.distributed.initialize()` first (several hosts)."""


# What may differ between a run and its continuation: it does not decide the result.
FREE_FIELDS = (
    "title folds eval_batch_size checkpoint_epochs log_steps distributed data.path data.cache "
    "data.threads data.workers"
).split()


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """A RunConfig from a ConfigDict or a saved config.json; UserError for what makes no sense."""
    config = _build(RunConfig, values, "config")
    for name, low in (("epochs", 1), ("batch_size", 1), ("eval_batch_size", 1), ("log_steps", 1)):
        _require(getattr(config, name) >= low, name, getattr(config, name), f"at least {low}")
    _require(config.checkpoint_epochs > 0, "checkpoint_epochs", config.checkpoint_epochs, "above 0")
    _require(len(config.folds) > 0, "folds", config.folds, "a tuple of at least one fold")
    optimizer, loss = config.optimizer, config.loss
    names = ("sgd", "adamw", "muon")
    _require(optimizer.name in names, "optimizer.name", optimizer.name, "sgd, adamw or muon")
    _require(
        optimizer.schedule in ("milestones", "cosine"),
        "optimizer.schedule",
        optimizer.schedule,
        "milestones or cosine",
    )
    rate = optimizer.learning_rate
    _require(rate > 0, "optimizer.learning_rate", rate, "above 0")
    _require(
        0 <= loss.label_smoothing < 1, "loss.label_smoothing", loss.label_smoothing, "in [0, 1)"
    )
    _require(-1 <= loss.alpha <= 1, "loss.alpha", loss.alpha, "a cosine, in [-1, 1]")
    return config


def to_dict(config: RunConfig) -> dict[str, Any]:
    """JSON-able; `from_dict` takes it back."""
    return dataclasses.asdict(dataclasses.replace(config, model=dict(config.model)))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What decides the result and differs, as `field: old there, new here`."""
    flat_old, flat_new = _flat(old), _flat(new)
    return [
        f"{name} is {flat_old.get(name)!r} there and {flat_new.get(name)!r} here"
        for name in sorted(flat_old.keys() | flat_new.keys())
        if name not in FREE_FIELDS and flat_old.get(name) != flat_new.get(name)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def _build(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    known = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    given = {}
    for name, value in values.items():
        if name not in known:
            raise UserError(f"{where}.{name} is no field; known: {', '.join(known)}")
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            value = _build(hint, value, f"{where}.{name}")
        elif hint is not typing.Any and typing.get_origin(hint) is tuple:
            value = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        elif typing.get_origin(hint) is not None:
            value = {k: _plain(v) for k, v in dict(value).items() if v is not None}
        given[name] = value
    missing = [
        name
        for name, field in known.items()
        if name not in given
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}; the config file must set it")
    return kind(**given)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _require(condition: bool, name: str, value: Any, rule: str) -> None:
    if not condition:
        raise UserError(f"config.{name} is {value!r}; it must be {rule}")
