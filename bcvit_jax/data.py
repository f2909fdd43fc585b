"""Batches of balanced, augmented cells, handed out so that they can be resumed (Grain).

dataset.py gives the cells, balance.py says how often each comes, augment.py changes them; images
stay uint8 up to the device.
"""

import dataclasses
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from bcvit_jax.appearance import margin
from bcvit_jax.augment import augment, dihedral, mix_batch, resize
from bcvit_jax.balance import balance_plan
from bcvit_jax.cache import Squares
from bcvit_jax.data_config import DataConfig
from bcvit_jax.dataset import CellDataset, check_folds, open_dataset
from bcvit_jax.errors import UserError

__all__ = [
    "CellDataset",
    "DataConfig",
    "TrainStream",
    "balance_plan",
    "check_folds",
    "dihedral",
    "evaluation_batches",
    "open_dataset",
    "train_batches",
]

# Config fields that are arguments of `augment`
_CHANGES = ("flips_turns", "crop_area", "crop_ratio", "brightness", "contrast", "saturation", "hue")
# Config fields that change no batch, or, as protocol, change the data set that batches are of
_NOT_PIXELS = ("path", "cache", "workers", "threads", "protocol")


def _squares(dataset: CellDataset, config: DataConfig, image_size: int) -> Squares:
    side = config.cache_size or image_size
    crop, around = config.centre_crop, margin(side, config.augment)
    return Squares(dataset, config.cache, crop, side, around, config.normalisation)


@dataclasses.dataclass(frozen=True)
class _MakeExample:
    """Row of the plan → augmented example; a class so that worker processes can unpickle it."""

    squares: Squares
    fold: np.ndarray  # str [m]
    index: np.ndarray  # int64 [m]
    transform: np.ndarray  # int8 [m]
    label: np.ndarray  # int32 [m]
    image_size: int
    changes: dict[str, Any]

    def __call__(self, row: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        square = self.squares.get(str(self.fold[row]), int(self.index[row]))
        transform = int(self.transform[row])
        image = augment(square, self.image_size, transform, rng, **self.changes)
        return {"image": image, "label": self.label[row]}


@dataclasses.dataclass(frozen=True)
class _FinishBatch:
    """Mix the batch, or say that it is unmixed."""

    mixup: float
    cutmix: float

    def __call__(self, batch: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        images, labels = batch["image"], batch["label"]
        if self.mixup or self.cutmix:
            return mix_batch(images, labels, rng, self.mixup, self.cutmix)
        mix = np.ones(len(labels), np.float32)
        return {"image": images, "label": labels, "mixed_label": labels, "mix": mix}


class TrainStream(Iterator[dict[str, np.ndarray]]):
    """Endless training batches.

    `next` → image uint8 [b, s, s, 3], label and mixed_label int32 [b], and mix float32 [b], the
    share of `label` (1 = unmixed).

    `examples_per_epoch` counts the balanced plan over all processes; `counts` and `balanced_counts`
    int64 [c] are its classes before and after balancing.
    """

    def __init__(
        self,
        batches: grain.MapDataset,
        identity: dict[str, Any],
        counts: np.ndarray,
        balanced_counts: np.ndarray,
        workers: int,
        threads: int,
    ):
        self.examples_per_epoch = int(balanced_counts.sum())
        self.counts = counts
        self.balanced_counts = balanced_counts
        self._batches = batches
        self._identity = json.loads(json.dumps(identity))
        self._workers = workers
        self._threads = threads
        self._position = 0
        self._iterator: Any = None

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            self._iterator = iter(self._start())
        batch = next(self._iterator)
        self._position += 1
        return batch

    def _start(self) -> grain.IterDataset:
        """The batches from the present position on, read ahead by threads or workers."""
        options = grain.ReadOptions(self._threads, max(2, self._threads) if self._threads else 0)
        rest = self._batches[self._position :].to_iter_dataset(options)
        if not self._workers:
            return rest
        if not flags.FLAGS.is_parsed():
            raise UserError(
                f"config.data.workers is {self._workers}, but worker processes need a program "
                "started through absl, such as `python -m bcvit_jax.main`: set it to 0 here."
            )
        # A batch has small arrays beside its images: sent along, not by a shared segment each.
        rest = grain.experimental.WithOptionsIterDataset(
            rest, grain.experimental.DatasetOptions(min_shm_size=2**16)
        )
        options = grain.MultiprocessingOptions(num_workers=self._workers)
        return rest.mp_prefetch(options, _live_with_parent)

    def get_state(self) -> dict[str, Any]:
        """A dict for JSON: the number of batches handed out and what the stream is made of."""
        return {"position": self._position, "made_of": self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on after the batch at which `state` was taken. Threads and workers may differ.

        Errors: UserError that names each setting in which the stream of `state` differs.
        """
        saved = state["made_of"]
        differ = [
            f"{name} {saved.get(name)} → {self._identity.get(name)}"
            for name in sorted(saved.keys() | self._identity.keys())
            if saved.get(name) != self._identity.get(name)
        ]
        if differ:
            raise UserError(
                f"The saved data stream can't go on, since settings changed ({'; '.join(differ)}): "
                "restore them, or start in another work folder."
            )
        self.close()
        self._position = int(state["position"])

    def close(self) -> None:
        """Stop the threads or workers; the next batch starts them again."""
        if self._iterator is not None and hasattr(self._iterator, "close"):
            self._iterator.close()
        self._iterator = None


def _live_with_parent(_worker: int, _workers: int) -> None:
    """In a worker: leave signals, which go to the whole group, to the parent; end when it ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    def wait() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def train_batches(
    dataset: CellDataset,
    folds: Iterable[int | str],
    config: DataConfig,
    image_size: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainStream:
    """Balanced, shuffled, augmented batches of `folds`, epoch after epoch without end.

    The order and every random change depend on (seed, epoch, place in the epoch) alone, never on
    threads or workers. `batch_size` is global; each process gets batch_size / process_count
    examples of each batch, all of them together the batch that one process would get (mixing pairs
    images within a process). An epoch needn't end with a batch.
    """
    folds = check_folds(dataset, folds)
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"The batch size is {batch_size}; it must be a positive multiple of the "
            f"{process_count} processes."
        )
    if not 0 <= seed < 2**32:
        raise UserError(f"The seed is {seed}; it must lie in [0, 2**32).")
    sizes = [len(dataset.labels[fold]) for fold in folds]
    labels = np.concatenate([dataset.labels[fold] for fold in folds])
    fold_of = np.repeat(np.array(folds), sizes)
    index_in_fold = np.concatenate([np.arange(size) for size in sizes])
    seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(4)]
    index, transform = np.arange(len(labels)), np.zeros(len(labels), np.int8)
    if config.balances_training:
        index, transform = balance_plan(labels, config.balance_target, seeds[0])

    squares = _squares(dataset, config, image_size)
    changes = {name: getattr(config, name) for name in _CHANGES}
    changes |= {"margin": squares.margin, "look": config.augment}
    make_example = _MakeExample(
        squares,
        fold_of[index],
        index_in_fold[index],
        transform,
        labels[index],
        image_size,
        changes,
    )
    examples = grain.MapDataset.range(len(index)).shuffle(seed=seeds[1]).repeat()
    examples = examples.random_map(make_example, seed=seeds[2])
    if process_count > 1:
        examples = examples[process_index::process_count]
    batches = examples.batch(batch_size // process_count, drop_remainder=True)
    batches = batches.random_map(_FinishBatch(config.mixup, config.cutmix), seed=seeds[3])

    identity = _identity(dataset, folds, config, image_size, batch_size, seed)
    classes = len(dataset.class_names)
    return TrainStream(
        batches,
        identity,
        np.bincount(labels, minlength=classes),
        np.bincount(labels[index], minlength=classes),
        config.workers,
        config.threads,
    )


def _identity(
    dataset: CellDataset,
    folds: tuple[str, ...],
    config: DataConfig,
    image_size: int,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """All that decides a stream's batches, by name: what a continuation must agree in."""
    identity = {
        "dataset": dataset.fingerprint,
        "folds": folds,
        "image_size": image_size,
        "batch_size": batch_size,
        "seed": seed,
    }
    if form := str(config.normalisation):
        identity["normalisation"] = form
    settings = dataclasses.asdict(config)
    del settings["augment"]
    # What is off is left out, so that streams go on which were saved before it existed.
    for name in ("white_background", "normalise_stain", "normalise_scale"):
        if not settings[name]:
            del settings[name]
    settings |= {f"augment.{name}": value for name, value in config.augment.changes.items()}
    identity |= {f"data.{name}": settings[name] for name in settings if name not in _NOT_PIXELS}
    return identity


def evaluation_batches(
    dataset: CellDataset, fold: int | str, config: DataConfig, image_size: int, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Every image of `fold` exactly once, in its order and without augmentation.

    `next` → image uint8 [b, s, s, 3], label int32 [b], index int64 [b] and mask bool [b]; the last
    batch is filled up with black images of label 0, index -1 and mask False.
    """
    (name,) = check_folds(dataset, [fold])
    squares = _squares(dataset, config, image_size)
    count = len(dataset.labels[name])

    def read(start: int) -> dict[str, np.ndarray]:
        n = min(batch_size, count - start)
        images = np.zeros((batch_size, image_size, image_size, 3), np.uint8)
        for i in range(n):
            images[i] = resize(squares.middle(name, start + i), image_size)
        index = np.full(batch_size, -1, np.int64)
        index[:n] = np.arange(start, start + n)
        label = np.zeros(batch_size, np.int32)
        label[:n] = dataset.labels[name][start : start + n]
        return {"image": images, "label": label, "index": index, "mask": index >= 0}

    options = grain.ReadOptions(config.threads, max(2, config.threads) if config.threads else 0)
    starts = grain.MapDataset.source(range(0, count, batch_size))
    return iter(starts.map(read).to_iter_dataset(options))
