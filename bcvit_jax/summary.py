"""The figures of a run over its held-out folds, and their table for a terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bcvit_jax.errors import UserError
from bcvit_jax.metrics import add, summarise
from bcvit_jax.predictions import Predictions

METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    "macro_f1": "macro-F1",
    "balanced_accuracy": "balanced accuracy",
    "cohen_kappa": "kappa",
}


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
