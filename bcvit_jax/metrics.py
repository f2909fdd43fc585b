"""Precision, recall and accuracy (equations 15-17), from one additive confusion matrix.

    precision_c   = TP_c / (TP_c + FP_c)                    (15)
    recall_c      = TP_c / (TP_c + FN_c)                    (16)
    accuracy      = correct / all                           (17), printed as top-1
    specificity_c = TN_c / (TN_c + FP_c)
    F1_c          = 2 TP_c / (2 TP_c + FP_c + FN_c)
    kappa         = (accuracy − chance) / (1 − chance),  chance = Σ_c true_c·predicted_c / all²
                    (Cohen, Educ. Psychol. Meas. 20, 1960)

Counts of batches, devices and folds add up; every figure is computed once, from the sum.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TOP = 5
CLASS_METRICS = ("precision", "recall", "specificity", "f1")


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


def rates(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """The figures of confusion matrices [..., c, c]; NaN where one is undefined.

    precision, recall, specificity, f1: [..., c]; top1, macro_f1, balanced_accuracy, cohen_kappa:
    [...]. A class without images has no figures, and the means are over the other classes.
    """
    confusion = np.asarray(confusion, np.float64)
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    of_class, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    total = confusion.sum(axis=(-2, -1))
    there, others = of_class > 0, total[..., None] - of_class
    recall = _ratio(hits, of_class)
    f1 = _ratio(2 * hits, of_class + predicted, there)
    top1 = _ratio(hits.sum(axis=-1), total)
    chance = _ratio((of_class * predicted).sum(axis=-1), total**2)
    return {
        "precision": _ratio(hits, predicted, there),
        "recall": recall,
        "specificity": _ratio(others - (predicted - hits), others, there),
        "f1": f1,
        "top1": top1,
        "macro_f1": _mean(f1),
        "balanced_accuracy": _mean(recall),
        "cohen_kappa": _ratio(top1 - chance, 1 - chance),
    }


def summarise(counts: Counts, class_names: Sequence[str]) -> dict[str, Any]:
    """The figures of one fold or of several pooled, as plain numbers ready for JSON.

    Returns n, top1, top5, macro_f1, balanced_accuracy, cohen_kappa, classes (a dict a class:
    name, precision, recall, specificity, f1, n) and confusion (list of rows). What is undefined
    is None, never NaN: the figures of a class without images here, the precision of a class never
    predicted, the specificity and kappa of a single class, and top5 where there are at most five
    classes, since it could only be 1.
    """
    confusion = np.asarray(counts.confusion)
    if confusion.shape != (len(class_names), len(class_names)):
        raise ValueError(
            f"a confusion matrix of shape {confusion.shape} does not fit {len(class_names)} "
            "class names: counts and names must come from the same data set"
        )
    figures, total = rates(confusion), int(confusion.sum())
    top5 = float(counts.top5) / total if total and len(class_names) > TOP else np.nan
    return {
        "n": total,
        "top1": told(figures["top1"]),
        "top5": told(top5),
        **{key: told(figures[key]) for key in ("macro_f1", "balanced_accuracy", "cohen_kappa")},
        "classes": [
            {"name": str(name)}
            | {key: told(figures[key][place]) for key in CLASS_METRICS}
            | {"n": int(confusion[place].sum())}
            for place, name in enumerate(class_names)
        ],
        "confusion": confusion.astype(int).tolist(),
    }


def told(value: Any) -> float | None:
    """A figure as JSON has it: None where it is undefined."""
    return None if np.isnan(value) else float(value)


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


def _ratio(part: np.ndarray, whole: np.ndarray, where: Any = True) -> np.ndarray:
    undefined = np.full(np.shape(whole), np.nan)
    return np.divide(part, whole, out=undefined, where=(whole > 0) & where)


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over the classes of which the figure is defined."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0).sum(axis=-1), defined.sum(axis=-1))
