"""What a report tells beyond the counts: intervals, calibration, doubtful cells, mistakes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bcvit_jax import calibration, intervals
from bcvit_jax.metrics import CLASS_METRICS, TOP, rates, told
from bcvit_jax.predictions import Predictions
from bcvit_jax.summary import METRICS

ACCURACIES = (0.95, 0.99)
CONFIDENT_MISTAKES = 20


class Held(NamedTuple):
    """Arrays of all held-out images, one fold after the other."""

    fold: np.ndarray
    """int [n], the place of the image's fold among the folds."""
    index: np.ndarray
    """int [n], its place in the fold."""
    source: np.ndarray
    group: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    correct: np.ndarray
    """bool [n]."""
    probabilities: np.ndarray
    """float [n, c]."""
    confidence: np.ndarray
    """float64 [n], the probability of `predicted`."""

    def of(self, chosen: np.ndarray) -> "Held":
        """Those that a mask or an array of places names."""
        return Held(*(array[chosen] for array in self))

    def tempered(self, probabilities: np.ndarray) -> "Held":
        """The same with other probabilities; a temperature changes no order of classes."""
        return self._replace(probabilities=probabilities, confidence=probabilities.max(axis=-1))


def joined(predictions: Sequence[Predictions]) -> Held:
    """The images of all folds."""
    sizes = [len(p.label) for p in predictions]
    source, group, label, predicted, probabilities = (
        np.concatenate([getattr(p, name) for p in predictions])
        for name in ("source", "group", "label", "predicted", "probabilities")
    )
    return Held(
        np.repeat(np.arange(len(sizes)), sizes),
        np.concatenate([np.arange(size) for size in sizes]),
        source,
        group,
        label,
        predicted,
        label == predicted,
        probabilities,
        probabilities.max(axis=-1).astype(np.float64),
    )


def analysis(predictions: Sequence[Predictions]) -> dict[str, Any]:
    """The parts intervals, calibration, selective and confident_mistakes of report.json."""
    held, folds = joined(predictions), [p.fold for p in predictions]
    names = predictions[0].class_names
    return {
        "intervals": _intervals(held, folds, names),
        "calibration": _calibration(held, folds),
        "selective": _selective(held, len(folds)),
        "confident_mistakes": _confident_mistakes(held, folds, names),
    }


def _intervals(held: Held, folds: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """pooled: {metric: interval}; folds: the same a fold; classes: {figure: interval} a class."""
    classes = []
    for place, name in enumerate(names):
        true, said = held.label == place, held.predicted == place
        group, there = held.group, bool(true.any())
        classes.append(
            {
                "name": name,
                "precision": intervals.proportion(true[said], group[said]) if there else None,
                "recall": intervals.proportion(said[true], group[true]),
                "specificity": intervals.proportion(~said[~true], group[~true]) if there else None,
                "f1": intervals.f1(true, said, group) if there else None,
            }
        )
    of_fold = [held.of(held.fold == place) for place in range(len(folds))]
    return {
        "level": intervals.LEVEL,
        "resamples": intervals.RESAMPLES,
        "images": len(held.label),
        "groups": len(np.unique(held.group)),
        "pooled": bootstrap(held, len(names)),
        "folds": [
            {"fold": fold, **bootstrap(part, len(names))}
            for fold, part in zip(folds, of_fold, strict=True)
        ],
        "classes": classes,
    }


def bootstrap(held: Held, classes: int) -> dict[str, intervals.Interval | None]:
    """Interval of every metric, from images drawn anew group by group.

    Where all samples agree, as without a mistake, that of a proportion is Wilson's and the others
    have none. A sample that lacks a class leaves it out of the means, as the figures do.
    """
    among = in_top(held.probabilities, held.label)
    place = np.unique(held.group, return_inverse=True)[1]
    cells, groups = classes * classes, int(place.max(initial=-1)) + 1
    cell = held.label.astype(np.int64) * classes + held.predicted
    counts = np.bincount(place * cells + cell, minlength=groups * cells).reshape(groups, cells)
    top5 = np.bincount(place, among, minlength=groups)
    sums = intervals.resample(np.concatenate([counts, top5[:, None]], axis=1))
    figures = rates(sums[:, :-1].reshape(-1, classes, classes))
    total = sums[:, :-1].sum(axis=-1)
    found = {key: intervals.percentiles(figures[key]) for key in METRICS if key in figures}
    found["top1"] = found["top1"] or intervals.proportion(held.correct, held.group)
    found["top5"] = None
    if classes > TOP:
        found["top5"] = intervals.percentiles(sums[:, -1] / np.maximum(total, 1))
        found["top5"] = found["top5"] or intervals.proportion(among, held.group)
    return {key: found[key] for key in METRICS}


def in_top(probabilities: np.ndarray, label: np.ndarray, top: int = TOP) -> np.ndarray:
    """bool [n]: the true class is among the `top` largest; of equal ones the lower index first."""
    own = np.take_along_axis(probabilities, label[:, None].astype(np.int64), axis=-1)
    before = np.arange(probabilities.shape[-1]) < label[:, None]
    return ((probabilities > own) | ((probabilities == own) & before)).sum(axis=-1) < top


def _calibration(held: Held, folds: Sequence[str]) -> dict[str, Any]:
    """Calibration as predicted and, where there are other folds to fit on, tempered.

    A fold's temperature comes from the other folds alone, so its figures are of images that the
    fit did not see. folds: fold, temperature, then ece and log_loss, before and after.
    """
    tempered, rows = np.array(held.probabilities, np.float64), []
    for place, fold in enumerate(folds):
        own = held.fold == place
        row: dict[str, Any] = {"fold": fold, "temperature": None, **_trust(held.of(own))}
        if (~own).any() and own.any():
            row["temperature"] = calibration.fit_temperature(
                held.probabilities[~own], held.label[~own]
            )
            tempered[own] = calibration.temper(held.probabilities[own], row["temperature"])
            after = _trust(held.of(own).tempered(tempered[own]))
            row |= {f"{key}_tempered": value for key, value in after.items()}
        rows.append(row)
    found = {"bins": calibration.BINS, "folds": rows, "pooled": _trust(held)}
    found["reliability"] = _bins(held)
    if any(row["temperature"] for row in rows):
        after = held.tempered(tempered)
        found["pooled"] |= {f"{key}_tempered": value for key, value in _trust(after).items()}
        found["reliability_tempered"] = _bins(after)
    return found


def _trust(held: Held) -> dict[str, float | None]:
    found = calibration.reliability(held.confidence, held.correct)
    return {
        "ece": told(found["ece"]),
        "log_loss": told(calibration.log_loss(held.probabilities, held.label)),
    }


def _bins(held: Held) -> list[dict[str, Any]]:
    """The bins that hold images: low, high, n, confidence, accuracy and its interval."""
    found, rows = calibration.reliability(held.confidence, held.correct), []
    for place in np.flatnonzero(found["n"]):
        low, high = float(found["low"][place]), float(found["high"][place])
        own = held.of((held.confidence > low) & (held.confidence <= high))
        means = {key: told(found[key][place]) for key in ("confidence", "accuracy")}
        bounds = intervals.proportion(own.correct, own.group)
        rows.append({"low": low, "high": high, "n": len(own.label), **means, "interval": bounds})
    return rows


def _selective(held: Held, folds: int) -> list[dict[str, Any]]:
    """For each accuracy, the threshold that reaches it with the most images.

    threshold, coverage, accepted, reached: chosen on these very images. other_folds: the same
    where each fold's threshold is chosen on the others, which a new image would meet.
    """
    curve = calibration.risk_coverage(held.confidence, held.correct)
    rows = []
    for accuracy in ACCURACIES:
        row: dict[str, Any] = {"accuracy": accuracy, "coverage": 0.0, "accepted": 0}
        row |= {"threshold": None, "reached": None}
        if (place := calibration.best_threshold(curve, accuracy)) is not None:
            row["threshold"] = float(curve.threshold[place])
            row["coverage"] = float(curve.coverage[place])
            row["accepted"] = int(curve.accepted[place])
            row["reached"] = float(curve.accuracy[place])
        row["other_folds"] = _on_other_folds(held, folds, accuracy) if folds > 1 else None
        rows.append(row)
    return rows


def _on_other_folds(held: Held, folds: int, accuracy: float) -> dict[str, Any]:
    accepted = np.zeros(len(held.label), bool)
    for fold in range(folds):
        own = held.fold == fold
        curve = calibration.risk_coverage(held.confidence[~own], held.correct[~own])
        if (place := calibration.best_threshold(curve, accuracy)) is not None:
            accepted |= own & (held.confidence >= curve.threshold[place])
    correct, n = held.correct[accepted], int(accepted.sum())
    return {
        "coverage": n / max(len(accepted), 1),
        "accepted": n,
        "reached": float(correct.mean()) if n else None,
        "interval": intervals.proportion(correct, held.group[accepted]),
    }


def _confident_mistakes(
    held: Held, folds: Sequence[str], names: Sequence[str]
) -> list[dict[str, Any]]:
    """The mistakes of largest confidence, with their place in the data set."""
    wrong = np.flatnonzero(~held.correct)
    chosen = wrong[np.argsort(-held.confidence[wrong], kind="stable")[:CONFIDENT_MISTAKES]]
    return [
        {
            "fold": folds[int(held.fold[i])],
            "index": int(held.index[i]),
            "source": str(held.source[i]),
            "true": names[int(held.label[i])],
            "predicted": names[int(held.predicted[i])],
            "confidence": float(held.confidence[i]),
            "true_probability": float(held.probabilities[i, held.label[i]]),
        }
        for i in chosen
    ]


# ------------------------------------------------------------------------------------ tables


def tables(
    summary: Mapping[str, Any], found: Mapping[str, Any], predictions: Sequence[Predictions]
) -> dict[str, list[list[Any]]]:
    """The CSV files of a report by name: a head, then the rows; what is undefined is empty."""
    classes: list[list[Any]] = [["class", *_with_bounds(CLASS_METRICS), "n"]]
    of_class = found["intervals"]["classes"]
    for row, bounds in zip(summary["pooled"]["classes"], of_class, strict=True):
        classes.append([row["name"], *_bounded(CLASS_METRICS, row, bounds), row["n"]])
    heads = [*_with_bounds(METRICS), "temperature", "ece", "ece_tempered"]
    folds: list[list[Any]] = [["fold", *heads, "n"]]
    trusted, bounds = found["calibration"], found["intervals"]
    parts = [
        *zip(summary["folds"], bounds["folds"], trusted["folds"], strict=True),
        ({"fold": "pooled", **summary["pooled"]}, bounds["pooled"], trusted["pooled"]),
    ]
    for row, limits, trust in parts:
        last = [trust.get(key) for key in ("temperature", "ece", "ece_tempered")]
        folds.append([row["fold"], *_bounded(METRICS, row, limits), *last, row["n"]])
    held = joined(predictions)
    curve = calibration.risk_coverage(held.confidence, held.correct)
    points = zip(*(column.tolist() for column in curve), strict=True)
    keys = ("low", "high", "n", "confidence", "accuracy")
    bins: list[list[Any]] = [["tempered", *keys, "accuracy_low", "accuracy_high"]]
    for tempered, part in ((0, "reliability"), (1, "reliability_tempered")):
        for row in trusted.get(part, []):
            bins.append([tempered, *(row[key] for key in keys), *row["interval"]])
    return {
        "classes.csv": classes,
        "folds.csv": folds,
        "risk_coverage.csv": [[*curve._fields], *map(list, points)],
        "reliability.csv": bins,
    }


def _with_bounds(keys: Sequence[str] | Mapping[str, str]) -> list[str]:
    return [f"{key}{end}" for key in keys for end in ("", "_low", "_high")]


def _bounded(
    keys: Sequence[str] | Mapping[str, str], row: Mapping[str, Any], bounds: Mapping[str, Any]
) -> list[float | None]:
    return [value for key in keys for value in (row[key], *(bounds[key] or (None, None)))]
