"""Precision, recall and accuracy (equations 15-17), from one additive confusion matrix.

    precision_c = TP_c / (TP_c + FP_c)        (15)
    recall_c    = TP_c / (TP_c + FN_c)        (16)
    accuracy    = correct / all               (17), printed as top-1

Counts of batches, devices and folds add up; every figure is computed once, from the sum.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TOP = 5


class Counts(NamedTuple):
    """What evaluation adds up.

    confusion: int [c, c], rows the true class, columns the predicted one; its sum is the number
    of images. top5: int [], images whose true class is among the five highest scores.
    """

    confusion: Any
    top5: Any


def count(logits: jax.Array, labels: jax.Array, mask: jax.Array, num_classes: int) -> Counts:
    """Counts of one batch.

    logits: float [b, c], or any scores that order the classes; labels: int [b]; mask: bool [b],
    False for padding, which is not counted (nor is a label outside 0 ... c-1).
    Equal scores are ordered by class index, the lower first, for top-1 and top-5 alike. A NaN
    score never makes a hit among the five.
    """
    predicted = jnp.argmax(logits, axis=-1)
    true = jax.nn.one_hot(labels, num_classes, dtype=jnp.int32) * mask.astype(jnp.int32)[:, None]
    confusion = true.T @ jax.nn.one_hot(predicted, num_classes, dtype=jnp.int32)

    own = jnp.take_along_axis(logits, jnp.clip(labels, 0, num_classes - 1)[:, None], axis=-1)
    tie_behind = (logits == own) & (jnp.arange(num_classes)[None, :] >= labels[:, None])
    ahead = jnp.sum(~((logits < own) | tie_behind), axis=-1)
    return Counts(confusion, jnp.sum((ahead < min(TOP, num_classes)) * true.sum(axis=-1)))


def add(a: Counts, b: Counts) -> Counts:
    """Counts of two disjoint sets of images together."""
    return Counts(a.confusion + b.confusion, a.top5 + b.top5)


def summarise(counts: Counts, class_names: Sequence[str]) -> dict[str, Any]:
    """The figures of one fold or of several pooled, as plain numbers ready for JSON.

    Returns n, top1, top5, macro_f1, balanced_accuracy (fractions of 1), classes (a dict a class:
    name, precision, recall, f1, n) and confusion (list of rows). What is undefined is None, never
    NaN: the figures of a class without images here, the precision of a class never predicted, and
    top5 where there are at most five classes, since it could only be 1.
    macro_f1 and balanced_accuracy are means over the classes that have images here.
    """
    confusion = np.asarray(counts.confusion)
    if confusion.shape != (len(class_names), len(class_names)):
        raise ValueError(
            f"a confusion matrix of shape {confusion.shape} does not fit {len(class_names)} "
            "class names: counts and names must come from the same data set"
        )
    hits, total = np.diag(confusion), int(confusion.sum())
    of_class, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    classes = []
    for name, hit, n, said in zip(class_names, hits, of_class, predicted, strict=True):
        classes.append(
            {
                "name": str(name),
                "precision": _ratio(hit, said) if n else None,
                "recall": _ratio(hit, n),
                "f1": _ratio(2 * hit, n + said) if n else None,
                "n": int(n),
            }
        )
    return {
        "n": total,
        "top1": _ratio(hits.sum(), total),
        "top5": _ratio(counts.top5, total) if len(class_names) > TOP else None,
        "macro_f1": _mean([row["f1"] for row in classes]),
        "balanced_accuracy": _mean([row["recall"] for row in classes]),
        "classes": classes,
        "confusion": confusion.astype(int).tolist(),
    }


def mistakes(pooled: Mapping[str, Any], most: int = 10) -> list[dict[str, Any]]:
    """The commonest mistakes: true and predicted class, n, and their share of the true class."""
    names = [row["name"] for row in pooled["classes"]]
    confusion = np.array(pooled["confusion"])
    np.fill_diagonal(confusion, 0)
    order = np.argsort(-confusion, axis=None, kind="stable")[:most]
    places = [np.unravel_index(flat, confusion.shape) for flat in order]
    return [
        {
            "true": names[i],
            "predicted": names[j],
            "n": int(confusion[i, j]),
            "share": float(confusion[i, j] / pooled["classes"][i]["n"]),
        }
        for i, j in places
        if confusion[i, j]
    ]


def _ratio(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if whole else None


def _mean(values: list[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
