"""One held-out fold of a run: what its training needs, and what is asked of it before any work."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from bcvit_jax.checkpoint import Checkpoints
from bcvit_jax.config import RunConfig
from bcvit_jax.data import CellDataset, TrainStream, balance_plan, check_folds, train_batches
from bcvit_jax.errors import UserError
from bcvit_jax.models import BCViTConfig, NetworkConfig
from bcvit_jax.program import network_config
from bcvit_jax.signals import Signals
from bcvit_jax.weights import Flat, Pretrained, encoders, pretrained


def check_run(config: RunConfig, dataset: CellDataset) -> None:
    """All that can be known to be wrong before any work starts; UserError with the first fault."""
    if config.folds:
        check_folds(dataset, config.folds)
    if config.train_folds:
        check_folds(dataset, config.train_folds)
    if len(dataset.class_names) < 2 and not config.mae.ratio:
        name = ", ".join(dataset.class_names)
        raise UserError(
            f"{config.data.path} has one class, {name}; a classifier needs two: give "
            "data_prep.build the folder whose own folders are the classes"
        )
    network = network_config(config, len(dataset.class_names))
    _check_layers(config, network)
    if config.weights.path:
        for path in {encoders.unseen(config.weights.path, dataset, i) for i in config.folds}:
            pretrained_weights(config, network, path)
    for fold in config.folds:
        if fold in config.train_folds:
            raise UserError(
                f"fold {fold} is in config.folds (held out) and in config.train_folds; a held-out "
                "fold can't be trained on, so leave it out of one of them"
            )
        if not train_folds(config, dataset, fold):
            raise UserError(f"nothing is left to train on beside fold {fold}; name fewer folds")
    size = network.image_size
    if 0 < config.data.cache_size < size:
        raise UserError(
            f"config.data.cache_size is {config.data.cache_size}, less than the network's "
            f"{size} pixels, so that it would see enlarged pictures; make it 0 or at least {size}"
        )
    devices = jax.device_count()
    for name in ("batch_size", "eval_batch_size"):
        value = getattr(config, name)
        if value % devices:
            raise UserError(
                f"config.{name} is {value}, which {devices} devices can't share evenly; make it a "
                f"multiple of {devices}"
            )


def _check_layers(config: RunConfig, network: NetworkConfig) -> None:
    frozen, decay = config.optimizer.frozen_blocks, config.optimizer.layer_decay
    if not isinstance(network, BCViTConfig):
        for name, value, off in (("frozen_blocks", frozen, 0), ("layer_decay", decay, 1.0)):
            if value != off:
                raise UserError(
                    f"config.optimizer.{name} is {value}; it needs a Vision Transformer's blocks, "
                    f"which {config.model['name']} has not, so set it to {off}"
                )
    elif frozen > network.num_maps:
        raise UserError(
            f"config.optimizer.frozen_blocks is {frozen}; the network has {network.num_maps} "
            "blocks before the last, so freeze at most those"
        )


def train_folds(config: RunConfig, dataset: CellDataset, held_out: int | None) -> tuple[int, ...]:
    """Folds to train on when `held_out`, or none, is held out."""
    if config.train_folds:
        return config.train_folds
    return tuple(i for i in range(len(dataset.folds)) if i != held_out)


@dataclasses.dataclass
class FoldRun:
    """What training needs of one held-out fold; in pretraining it may hold out none."""

    config: RunConfig
    dataset: CellDataset
    held_out: int | None
    workdir: Path
    mesh: Mesh
    say: Callable[[str], None]
    signals: Signals

    @property
    def name(self) -> str:
        return "all_folds" if self.held_out is None else self.dataset.folds[self.held_out]

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.workdir / self.name / "checkpoints", warn=self.say)

    @property
    def seed(self) -> int:
        return self.config.seed + 1000 * (self.held_out or 0)

    def stream(self, image_size: int) -> TrainStream:
        config = self.config
        return train_batches(
            self.dataset,
            train_folds(config, self.dataset, self.held_out),
            config.data,
            image_size,
            config.batch_size,
            seed=self.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )


def balanced_counts(config: RunConfig, dataset: CellDataset, held_out: int) -> np.ndarray:
    """Images a class that an epoch trains on, int64 [c]."""
    names = [dataset.folds[i] for i in train_folds(config, dataset, held_out)]
    labels = np.concatenate([dataset.labels[name] for name in names])
    if config.data.balances_training:
        labels = labels[balance_plan(labels, config.data.balance_target, 0)[0]]
    return np.bincount(labels, minlength=len(dataset.class_names))


def pretrained_weights(
    config: RunConfig, network: NetworkConfig, path: str | Path
) -> tuple[Flat, Pretrained]:
    """The weights in `path`, as `config.weights` asks for them; UserError where they do not fit."""
    chosen = config.weights
    return pretrained(network, path, chosen.last_block, mean=chosen.mean, std=chosen.std)
