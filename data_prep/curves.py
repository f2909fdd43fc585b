"""Plots of average precision against labelled images. The only file here that knows matplotlib."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_prep.files import replace_file

COLOURS = {"active": "#0072B2", "random": "#E69F00"}  # Okabe and Ito


def draw_status(points: Sequence[tuple[str, int, float, float]], path: Path) -> None:
    """AP and AP50 of each judged detector (folder, labelled images, AP, AP50)."""
    figure, axes = _figure()
    points = sorted(points, key=lambda point: point[1])
    images = [point[1] for point in points]
    axes.plot(images, [point[3] for point in points], "o-", label="AP50", color="#0072B2")
    axes.plot(images, [point[2] for point in points], "s--", label="AP", color="#E69F00")
    _finish(axes)
    _save(figure, path)


def draw_simulation(curves: dict[str, dict[int, list[float]]], metric: str, path: Path) -> None:
    """For each kind of choice the mean over runs, with a band of the standard error, and the runs.

    `curves[kind][labelled images]` are the figures of the runs.
    """
    figure, axes = _figure()
    for kind, curve in curves.items():
        images = sorted(curve)
        means = np.array([np.mean(curve[count]) for count in images])
        errors = np.array([_standard_error(curve[count]) for count in images])
        colour = COLOURS.get(kind)
        axes.plot(images, means, "o-", label=f"{kind} choice", color=colour)
        axes.fill_between(images, means - errors, means + errors, color=colour, alpha=0.2, lw=0)
        for count in images:
            axes.plot([count] * len(curve[count]), curve[count], ".", color=colour, ms=4, alpha=0.6)
    _finish(axes, metric)
    _save(figure, path)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6, 4), layout="constrained")  # without pyplot: no window, no state
    return figure, figure.add_subplot()


def _standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _finish(axes: Axes, metric: str = "average precision") -> None:
    axes.set_xlabel("labelled images")
    axes.set_ylabel(metric)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _save(figure: Figure, path: Path) -> None:
    replace_file(path, lambda file: figure.savefig(file, format="png", dpi=120))
