"""The pictures of a report, as PNG: confusion matrix, reliability diagram, risk and coverage."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bcvit_jax import __version__
from bcvit_jax.calibration import RiskCoverage

DPI = 150
LEAST = 10
_INK, _GREY, _PALE = "#1b2733", "#8a94a0", "#d8dee6"
_BLUE, _ORANGE = "#2f6fb0", "#c8501e"


def confusion_picture(summary: Mapping[str, Any]) -> bytes:
    """The pooled confusion matrix: counts, and the share of the true class as colour.

    The paper's figure 7. Colour follows the square root of the share, so that a mistake of a few
    percent shows.
    """
    pooled, folds = summary["pooled"], summary["folds"]
    names = [row["name"] for row in pooled["classes"]]
    confusion = np.array(pooled["confusion"])
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = max(4.2, 1.7 + 0.55 * len(names))
    figure, axes = _figure(side + 0.8, side)
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    # Names come from folders: a dollar sign in one is no formula.
    slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    long_names = max(map(len, names)) > 4
    axes.set_xticks(range(len(names)), names, parse_math=False, **(slant if long_names else {}))
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    of = folds[0]["fold"] if len(folds) == 1 else f"{len(folds)} folds pooled"
    images = "1 image" if pooled["n"] == 1 else f"{pooled['n']:,} images"
    axes.set_title(f"Confusion matrix, {of}, {images}", parse_math=False, pad=10)
    axes.set_xticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color=_PALE, linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color(_GREY)
    size = 11 if confusion.max() < 1000 else 9
    for i, j in zip(*np.nonzero(confusion), strict=True):
        colour = "white" if share[i, j] > 0.35 else _INK
        axes.text(j, i, f"{confusion[i, j]}", ha="center", va="center", color=colour, size=size)
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02, label="share of the true class")
    bar.set_ticks([0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1])
    bar.ax.yaxis.set_major_formatter(_percent())
    return _png(figure)


def reliability_picture(found: Mapping[str, Any]) -> bytes:
    """Accuracy over confidence in bins with intervals, and how many images each bin holds.

    Bins of fewer than LEAST images are left out above: they would draw the eye and tell nothing.
    found: the part `calibration` of `numbers.analysis`.
    """
    figure = Figure(figsize=(5.4, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle="--", label="calibrated")
    kinds = [("reliability", "as predicted", _BLUE, "o")]
    if "reliability_tempered" in found:
        kinds.append(("reliability_tempered", "after temperature scaling", _ORANGE, "s"))
    total = max(sum(row["n"] for row in found["reliability"]), 1)
    width = 1 / found["bins"] / len(kinds)
    for place, (key, label, colour, marker) in enumerate(kinds):
        rows = [row for row in found[key] if row["n"] >= LEAST] or found[key]
        x, y = ([row[of] for row in rows] for of in ("confidence", "accuracy"))
        low = [row["accuracy"] - row["interval"][0] for row in rows]
        high = [row["interval"][1] - row["accuracy"] for row in rows]
        style = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.4}
        # Rounding may leave a bound a hair on the wrong side of its figure.
        bars = np.maximum([low, high], 0)
        axes.errorbar(x, y, bars, label=label, elinewidth=0.8, capsize=2, **style)
        left = [row["low"] + place * width for row in found[key]]
        shares = [row["n"] / total for row in found[key]]
        below.bar(left, shares, width, align="edge", color=colour)
    axes.set_ylabel("share that is right")
    below.set_xlabel("probability of the predicted class")
    below.set_ylabel("images")
    below.yaxis.set_major_formatter(_percent())
    axes.set_xlim(0, 1.01)
    axes.set_ylim(0, 1.02)
    axes.legend(loc="lower right", frameon=False)
    for part in (axes, below):
        _light(part)
    return _png(figure)


def risk_coverage_picture(curve: RiskCoverage, accuracies: Sequence[float]) -> bytes:
    """Errors among the accepted images over the share accepted; a line at each accuracy wanted."""
    figure, axes = _figure(5.4, 3.6)
    risk = curve.errors / np.maximum(curve.accepted, 1)
    # A few cells alone make a jagged beginning that says nothing.
    shown = curve.accepted >= min(20, curve.accepted[-1]) if len(risk) else risk > 0
    axes.plot(curve.coverage[shown], risk[shown], color=_BLUE, linewidth=1.6)
    top = max([*risk[shown].tolist(), *(1.25 * (1 - a) for a in accuracies)]) * 1.08
    for accuracy in accuracies:
        axes.axhline(1 - accuracy, color=_GREY, linewidth=1, linestyle="--")
        text = f"{100 * accuracy:.0f} % right"
        axes.text(0.01, 1 - accuracy + top / 100, text, color="#4d5966", size=9, va="bottom")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, top)
    axes.set_xlabel("share of the cells left to the network (coverage)")
    axes.set_ylabel("errors among them (risk)")
    axes.xaxis.set_major_formatter(_percent())
    axes.yaxis.set_major_formatter(_percent())
    _light(axes)
    return _png(figure)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _percent() -> FuncFormatter:
    return FuncFormatter(lambda share, _: f"{round(100 * share, 6):g} %")


def _light(axes: Axes) -> None:
    axes.grid(color=_PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)


def _png(figure: Figure) -> bytes:
    written = io.BytesIO()
    figure.savefig(
        written,
        format="png",
        dpi=DPI,
        bbox_inches="tight",
        metadata={"Software": f"bcvit {__version__}"},
    )
    return written.getvalue()
