"""Exact evaluation of a held-out fold, its saved predictions, and the summary over folds.

Every image is counted exactly once: the last batch is padded, the padding masked, and a missing
or doubled image is an error. All figures come from the saved float32 probabilities, so whoever
reads the files can compute them again.
"""

import csv
import io
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from bcvit_jax.errors import UserError
from bcvit_jax.metrics import Counts, add, count, summarise

METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    "macro_f1": "macro-F1",
    "balanced_accuracy": "balanced accuracy",
    "cohen_kappa": "kappa",
}


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


@dataclass(frozen=True)
class Predictions:
    """What the network said of every image of one held-out fold, in the fold's order.

    source, group: str [n]; label: int32 [n]; probabilities: float32 [n, c]; kept: int32 [n, k],
    the patches that reached the last block, numbered from 0 row by row (k = 0 without selection).
    """

    fold: str
    source: np.ndarray
    group: np.ndarray
    label: np.ndarray
    probabilities: np.ndarray
    kept: np.ndarray
    class_names: tuple[str, ...]

    @property
    def predicted(self) -> np.ndarray:
        """int32 [n]: the most probable class, the lower index where two are equal."""
        return np.argmax(self.probabilities, axis=-1).astype(np.int32)

    def count(self) -> Counts:
        """The counts of these predictions, as NumPy arrays."""
        everything = np.ones(len(self.label), bool)
        counts = _count(self.probabilities, self.label, everything, len(self.class_names))
        return Counts(*(np.asarray(part) for part in counts))


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


_count = jax.jit(count, static_argnums=3)


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


# ------------------------------------------------------------------------------------- files


def write_whole(path: Path, content: bytes) -> None:
    """Writes beside `path`, then renames: a reader finds the old file or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def save_predictions(path: str | Path, predictions: Predictions) -> tuple[Path, Path]:
    """Writes `path`.npz (exact, for programs) and `path`.csv (for people); returns both paths.

    Columns of the CSV: source, group, fold, label, predicted, correct (1 or 0), p_<class> for
    every class (digits enough to give back the float32), kept (patch indices between spaces).
    """
    path = Path(path)
    arrays = io.BytesIO()
    np.savez_compressed(
        arrays,
        fold=np.asarray(predictions.fold),
        source=np.asarray(predictions.source, dtype=str),
        group=np.asarray(predictions.group, dtype=str),
        label=predictions.label.astype(np.int32),
        probabilities=predictions.probabilities.astype(np.float32),
        kept=predictions.kept.astype(np.int32),
        class_names=np.asarray(predictions.class_names, dtype=str),
    )
    names, predicted = predictions.class_names, predictions.predicted
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["source", "group", "fold", "label", "predicted", "correct"]
    writer.writerow([*head, *(f"p_{name}" for name in names), "kept"])
    for i, label in enumerate(predictions.label):
        writer.writerow(
            [
                predictions.source[i],
                predictions.group[i],
                predictions.fold,
                names[label],
                names[predicted[i]],
                int(label == predicted[i]),
                *(f"{p:.9g}" for p in predictions.probabilities[i]),
                " ".join(map(str, predictions.kept[i])),
            ]
        )
    npz, table_file = (path.with_name(path.name + suffix) for suffix in (".npz", ".csv"))
    write_whole(table_file, text.getvalue().encode())
    write_whole(npz, arrays.getvalue())
    return npz, table_file


def load_predictions(path: str | Path) -> Predictions:
    """Reads what `save_predictions` wrote, from `path`.npz. UserError if it cannot.

    Where the file names no groups, every image is its own: `group` is then `source`.
    """
    npz = Path(path).with_name(Path(path).name + ".npz")
    try:
        with np.load(io.BytesIO(npz.read_bytes()), allow_pickle=False) as arrays:
            return Predictions(
                fold=str(arrays["fold"]),
                source=arrays["source"],
                group=arrays["group" if "group" in arrays else "source"],
                label=arrays["label"],
                probabilities=arrays["probabilities"],
                kept=arrays["kept"],
                class_names=tuple(str(name) for name in arrays["class_names"]),
            )
    except FileNotFoundError:
        raise UserError(
            f"there are no predictions at {npz}: they are written when a fold's training ends"
        ) from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{npz} is not a whole file of predictions ({error}): delete it and run the training "
            "command again, which evaluates the fold anew"
        ) from None


# ----------------------------------------------------------------------------------- summary


def summarise_run(predictions: Sequence[Predictions]) -> dict[str, Any]:
    """The figures of a run over its held-out folds.

    folds: one `summarise` a fold, with its name under "fold"; mean: {metric: {mean, sd}} over the
    folds, sd with n-1 (None for a single fold); pooled: `summarise` of all predictions together.
    Raises UserError where there is no fold, a fold comes twice, or class names differ.
    """
    if not predictions:
        raise UserError("a summary needs the predictions of at least one held-out fold, got none")
    names, folds = predictions[0].class_names, [p.fold for p in predictions]
    if len(set(folds)) < len(folds):
        raise UserError(f"the folds {', '.join(folds)} name one twice: give each fold once")
    for other in predictions:
        if other.class_names != names:
            raise UserError(
                f"the classes of {other.fold} ({', '.join(other.class_names)}) differ from those "
                f"of {folds[0]} ({', '.join(names)}): summarise folds of one data set"
            )
    counts = [p.count() for p in predictions]
    pooled = counts[0]
    for more in counts[1:]:
        pooled = add(pooled, more)
    each = [
        {"fold": fold, **summarise(part, names)} for fold, part in zip(folds, counts, strict=True)
    ]
    return {
        "folds": each,
        "mean": {metric: _mean_sd([fold[metric] for fold in each]) for metric in METRICS},
        "pooled": summarise(pooled, names),
    }


def _mean_sd(values: Sequence[float | None]) -> dict[str, float | None]:
    defined = [value for value in values if value is not None]
    if not defined:
        return {"mean": None, "sd": None}
    mean = math.fsum(defined) / len(defined)
    if len(defined) == 1:
        return {"mean": mean, "sd": None}
    variance = math.fsum((value - mean) ** 2 for value in defined) / (len(defined) - 1)
    return {"mean": mean, "sd": math.sqrt(variance)}


def number(value: float | None, digits: int = 4) -> str:
    """A fraction as printed; what is undefined is a dash."""
    return "\N{EN DASH}" if value is None else f"{value:.{digits}f}"


def mean_and_sd(spread: Mapping[str, float | None], digits: int = 4) -> str:
    """`0.8312 ± 0.0047`, or the mean alone where there is a single fold."""
    text = number(spread["mean"], digits)
    return text if spread["sd"] is None else f"{text} ± {number(spread['sd'], digits)}"


def table(summary: Mapping[str, Any]) -> str:
    """The summary for a terminal: a row a class, then a row a fold where there are several."""
    pooled, folds = summary["pooled"], summary["folds"]
    rows = [["class", "precision", "recall", "F1", "n"]]
    for row in pooled["classes"]:
        figures = [number(row[key], 3) for key in ("precision", "recall", "f1")]
        rows.append([row["name"], *figures, str(row["n"])])
    lines = aligned(rows)
    rows = [["", *METRICS.values(), "n"]]
    for fold in folds:
        rows.append([fold["fold"], *(number(fold[key]) for key in METRICS), str(fold["n"])])
    if len(folds) > 1:
        rows.append(["mean ± sd", *(mean_and_sd(summary["mean"][key]) for key in METRICS), ""])
        rows.append(["pooled", *(number(pooled[key]) for key in METRICS), str(pooled["n"])])
    return "\n".join([*lines, "", *aligned(rows)])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to their widest entry, the first to the left; a rule below the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "─" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]]
