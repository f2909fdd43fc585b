"""The settings of a run as frozen dataclasses; a ConfigDict goes no further than this file."""

import contextlib
import dataclasses
import difflib
import itertools
import math
import operator
import typing
from collections.abc import Mapping
from typing import Any

from bcvit_jax.data_config import DataConfig
from bcvit_jax.errors import UserError
from bcvit_jax.normalisation import current


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
    layer_decay: float = 1.0
    """Learning rate of a block relative to that of the block above it (Clark et al. 2020, Bao et
    al. 2022), for fine-tuning; the head's is `learning_rate`."""
    frozen_blocks: int = 0
    """With the embedding this many first blocks keep their weights; 0 trains everything."""


@dataclasses.dataclass(frozen=True)
class WeightsConfig:
    """Pretrained weights to begin with; see `bcvit_jax.weights`."""

    path: str = ""
    """A file, a folder with model.safetensors, or `owner/name` on the hub; empty begins afresh."""
    last_block: str = "copy"
    """The extra last block begins as a `copy` of the block before it, or `fresh`."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    """Of the pixels in [0, 1] that the weights were trained on; empty is what stands beside them,
    else what is usual in their family."""


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Equations 12 to 14."""

    contrastive: float = 1.0
    """Weight of the contrastive loss; 0 leaves it out."""
    alpha: float = 0.4
    label_smoothing: float = 0.0


@dataclasses.dataclass(frozen=True)
class MaeConfig:
    """Pretraining as a masked autoencoder (He et al. 2022) in place of training a classifier."""

    ratio: float = 0.0
    """Share of the patches that are hidden; 0 trains a classifier."""
    width: int = 128
    depth: int = 2
    heads: int = 4
    """Of the decoder."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's result, and where it reads and how often it writes."""

    title: str
    model: Mapping[str, Any]
    """`name` of `models.list_models()` and any field of `models.BCViTConfig`."""
    data: DataConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    weights: WeightsConfig = WeightsConfig()
    mae: MaeConfig = MaeConfig()
    folds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Folds to hold out, one after the other; () in pretraining alone, where it holds out none."""
    train_folds: tuple[int, ...] = ()
    """Folds to train on; empty is all but the held-out one."""
    epochs: float = 100
    """A part of one too, of at least a step."""
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
    """A RunConfig from a config as a plain dict or from a saved config.json.

    Errors: UserError that names the field, its value and the rule for what makes no sense.
    """
    if isinstance(data := values.get("data"), Mapping):
        values = {**values, "data": current(data, "the run")}
    config = _build(RunConfig, values, "config")
    optimizer, loss = config.optimizer, config.loss
    rules = {
        "folds": (config.folds or config.mae.ratio, "name at least one fold"),
        "mae.ratio": (0 <= config.mae.ratio < 1, "be 0 (no pretraining), or lie in (0, 1)"),
        "epochs": (0 < config.epochs < math.inf, "be above 0"),
        "batch_size": (config.batch_size >= 1, "be at least 1"),
        "eval_batch_size": (config.eval_batch_size >= 1, "be at least 1"),
        "log_steps": (config.log_steps >= 1, "be at least 1"),
        "checkpoint_epochs": (0 < config.checkpoint_epochs < math.inf, "be above 0"),
        "seed": (0 <= config.seed < 2**31, "lie in [0, 2**31)"),
        "optimizer.name": (
            optimizer.name in ("sgd", "adamw", "muon"),
            "be sgd, adamw or muon",
        ),
        "optimizer.schedule": (
            optimizer.schedule in ("milestones", "cosine"),
            "be milestones or cosine",
        ),
        "optimizer.learning_rate": (0 < optimizer.learning_rate < math.inf, "be above 0"),
        "optimizer.weight_decay": (0 <= optimizer.weight_decay < math.inf, "be 0 or more"),
        "optimizer.momentum": (0 <= optimizer.momentum < 1, "lie in [0, 1)"),
        "optimizer.milestones": (
            all(a < b for a, b in itertools.pairwise((0, *optimizer.milestones))),
            "be rising epochs above 0",
        ),
        "optimizer.decay": (0 < optimizer.decay <= 1, "lie in (0, 1]"),
        "optimizer.warmup_epochs": (
            0 <= optimizer.warmup_epochs < config.epochs,
            f"lie in [0, epochs), and epochs is {config.epochs:g}",
        ),
        "optimizer.clip_norm": (0 <= optimizer.clip_norm < math.inf, "be 0 (off) or more"),
        "optimizer.layer_decay": (0 < optimizer.layer_decay <= 1, "lie in (0, 1]"),
        "optimizer.frozen_blocks": (optimizer.frozen_blocks >= 0, "be 0 (none) or more"),
        "weights.last_block": (config.weights.last_block in ("copy", "fresh"), "be copy or fresh"),
        "weights.mean": (len(config.weights.mean) in (0, 3), "be three numbers, or empty"),
        "weights.std": (
            len(config.weights.std) in (0, 3) and all(s > 0 for s in config.weights.std),
            "be three numbers above 0, or empty",
        ),
        "loss.contrastive": (0 <= loss.contrastive < math.inf, "be 0 (off) or more"),
        "loss.alpha": (-1 <= loss.alpha <= 1, "be a cosine, in [-1, 1]"),
        "loss.label_smoothing": (0 <= loss.label_smoothing < 1, "lie in [0, 1)"),
    }
    for name, (holds, rule) in [*rules.items(), *_pretraining_rules(config)]:
        if not holds:
            value = operator.attrgetter(name)(config)
            raise UserError(f"config.{name} is {value!r}; it must {rule}")
    return config


def _pretraining_rules(config: RunConfig) -> list[tuple[str, tuple[bool, str]]]:
    """What pretraining has no use for must be off."""
    if not config.mae.ratio:
        return []
    off = {"optimizer.layer_decay": 1, "optimizer.frozen_blocks": 0, "weights.path": ""}
    off |= {"data.mixup": 0, "data.cutmix": 0} | ({} if config.folds else {"train_folds": ()})
    where = "in pretraining (config.mae.ratio)" + ("" if config.folds else " on all folds")
    return [
        (name, (operator.attrgetter(name)(config) == value, f"be {value!r} {where}"))
        for name, value in off.items()
    ]


def to_dict(config: RunConfig) -> dict[str, Any]:
    """JSON-able; `from_dict` takes it back."""
    return dataclasses.asdict(dataclasses.replace(config, model=dict(config.model)))


def differences(old: Mapping[str, Any], new: RunConfig) -> list[str]:
    """What decides the result and differs from a saved config.json, in words a field."""
    with contextlib.suppress(UserError):  # fields that came later have their default
        old = to_dict(from_dict(old))
    there, here = _flat(old), _flat(to_dict(new))
    return [
        f"{name} is {there.get(name)!r} there and {here.get(name)!r} here"
        for name in sorted(there.keys() | here.keys())
        if name not in FREE_FIELDS and there.get(name) != here.get(name)
    ]


def recipe(config: RunConfig) -> dict[str, Any]:
    """What decides the result but for the seed: {"data.balance": True, …}."""
    flat = _flat(to_dict(config))
    return {name: flat[name] for name in sorted(flat) if name not in (*FREE_FIELDS, "seed")}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def _build(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    """The dataclass `kind` from a mapping whose names and types are checked."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where} is {values!r}; it must be a group of fields")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    given = {}
    for name, value in values.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            mend = f"did you mean {near[0]}?" if near else f"known are {', '.join(fields)}"
            raise UserError(f"there is no field {where}.{name}; {mend}")
        given[name] = _typed(value, hints[name], f"{where}.{name}")
    missing = [
        name
        for name, field in fields.items()
        if name not in given
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}; the config file must set it")
    return kind(**given)


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`, where it is one; lists are tuples and whole numbers floats."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)
    if typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        value = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        if not all(_is_a(item, kind) for item in value):
            raise UserError(f"{where} is {value!r}; it must hold only {_KINDS[kind][0]}")
        return value
    if typing.get_origin(hint) is not None:  # config.model: None is what the network's name says
        plain = {name: tuple(v) if isinstance(v, list) else v for name, v in dict(value).items()}
        return {name: v for name, v in plain.items() if v is not None}
    if not _is_a(value, hint):
        raise UserError(f"{where} is {value!r}; it must be {_KINDS[hint][1]}")
    return hint(value)


_KINDS = {
    int: ("whole numbers", "a whole number"),
    float: ("numbers", "a number"),
    str: ("texts", "text"),
    bool: ("truth values", "True or False"),
}


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
