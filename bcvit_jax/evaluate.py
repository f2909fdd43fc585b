"""Exact evaluation of a held-out fold.

Every image is counted exactly once: the last batch is padded, the padding masked, and a missing
or doubled image is an error.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from bcvit_jax.metrics import Counts, add, count
from bcvit_jax.predictions import Predictions


class LabelledFolds(Protocol):
    """What evaluation needs of a data set: one array a fold, and the class names."""

    @property
    def labels(self) -> Mapping[str, np.ndarray]: ...
    @property
    def sources(self) -> Mapping[str, np.ndarray]: ...
    @property
    def groups(self) -> Mapping[str, np.ndarray]: ...
    @property
    def class_names(self) -> Sequence[str]: ...


def evaluate_fold(
    predict_step: Callable[[Any, Any], tuple[jax.Array, jax.Array]],
    params: Any,
    dataset: LabelledFolds,
    fold: str,
    batches: Iterable[Mapping[str, Any]],
) -> tuple[Predictions, Counts]:
    """The predictions and counts of all images of `fold`.

    predict_step(params, images [b, s, s, 3]) returns logits [b, c] and kept [b, k]; `batches`
    yields image, label [b], index [b] (the place in the fold) and mask [b] (False for padding).
    Results are fetched one batch late, so the device never waits for the host.
    Raises RuntimeError where an image is missing, doubled or labelled otherwise than in the data
    set, and FloatingPointError where the network gives no finite number.
    """
    labels = np.asarray(dataset.labels[fold])
    times_seen = np.zeros(len(labels), np.int64)
    probabilities = np.zeros((len(labels), len(dataset.class_names)), np.float32)
    kept = np.zeros((len(labels), 0), np.int32)
    totals: Counts | None = None

    def store(index: np.ndarray, mask: np.ndarray, scores: jax.Array, chosen: jax.Array) -> None:
        nonlocal kept
        probabilities[index[mask]] = fetch(scores)[mask]
        patches = fetch(chosen)
        if kept.shape[1] != patches.shape[1]:
            kept = np.zeros((len(labels), patches.shape[1]), np.int32)
        kept[index[mask]] = patches[mask]

    waiting = None
    for batch in batches:
        index, mask = np.asarray(batch["index"]), np.asarray(batch["mask"], bool)
        label = np.asarray(batch["label"])
        _check_labels(labels, fold, index[mask], label[mask])
        np.add.at(times_seen, index[mask], 1)
        logits, chosen = predict_step(params, batch["image"])
        scores, counts = _score_and_count(logits, label, mask, len(dataset.class_names))
        totals = counts if totals is None else add(totals, counts)
        if waiting is not None:
            store(*waiting)
        waiting = (index, mask, scores, chosen)
    if waiting is not None:
        store(*waiting)

    _check_seen_once(times_seen, fold)
    source = np.asarray(dataset.sources[fold], dtype=str)
    _check_finite(probabilities, source)
    predictions = Predictions(
        fold=fold,
        source=source,
        group=np.asarray(dataset.groups[fold], dtype=str),
        label=labels.astype(np.int32),
        probabilities=probabilities,
        kept=kept,
        class_names=tuple(dataset.class_names),
    )
    if totals is None:
        return predictions, predictions.count()
    return predictions, Counts(*(fetch(part) for part in totals))


def fetch(array: jax.Array) -> np.ndarray:
    """The whole array on the host, also where other processes hold parts of it."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


@jax.jit(static_argnums=3)
def _score_and_count(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, num_classes: int
) -> tuple[jax.Array, Counts]:
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    return probabilities, count(probabilities, labels, mask, num_classes)


def _check_labels(labels: np.ndarray, fold: str, index: np.ndarray, given: np.ndarray) -> None:
    if len(index) and (index.min() < 0 or index.max() >= len(labels)):
        raise RuntimeError(
            f"evaluation met image {index.min()} to {index.max()} of {fold}, which holds "
            f"{len(labels)}: batches and data set do not belong together"
        )
    if not np.array_equal(labels[index], given):
        raise RuntimeError(
            f"evaluation of {fold} met a label that differs from the data set's: batches and "
            "data set do not belong together"
        )


def _check_seen_once(times_seen: np.ndarray, fold: str) -> None:
    missing, doubled = int(np.sum(times_seen == 0)), int(np.sum(times_seen > 1))
    if missing or doubled:
        raise RuntimeError(
            f"evaluation of {fold} left out {missing} and repeated {doubled} of "
            f"{len(times_seen)} images: every image must come exactly once"
        )


def _check_finite(probabilities: np.ndarray, source: np.ndarray) -> None:
    broken = np.flatnonzero(~np.isfinite(probabilities).all(axis=-1))
    if len(broken):
        raise FloatingPointError(
            f"the network gives no finite logits for {len(broken)} of {len(source)} images "
            f"(first: {source[broken[0]]}): its weights are broken, use an earlier checkpoint"
        )
