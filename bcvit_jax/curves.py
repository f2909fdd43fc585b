"""What `robustness` counted, as figures, a table, a CSV file and a picture."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bcvit_jax.run_files import read_json_if_there
from bcvit_jax.shifts import SHIFTS

METHOD = 2  # raise it when pictures are changed otherwise, so that earlier figures go
CLEAN = "clean"
FIGURES = {
    CLEAN: "clean",
    "worst": "worst change",
    "mean_at_stated": "mean over changes",
    "worst_untrained": "worst beyond training",
    "mean_at_untrained": "mean beyond training",
}
"""Balanced accuracies of a run that tell its curves in short, by their name in robustness.json."""


def figures(correct: Sequence[int], images: Sequence[int]) -> dict[str, float]:
    """Top-1 and balanced accuracy from the numbers of images recognised and asked, a class."""
    right, asked = np.asarray(correct), np.asarray(images)
    there = asked > 0
    return {
        "top1": float(right.sum() / asked.sum()),
        "balanced_accuracy": float((right[there] / asked[there]).mean()),
    }


def summarise(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Curves over all folds pooled; worst case and mean at the stated and untrained strengths."""
    images = np.sum([fold["images"] for fold in raw.values()], axis=0)
    clean = figures(np.sum([fold["correct"][CLEAN][0] for fold in raw.values()], axis=0), images)
    curves = {}
    for name, shift in SHIFTS.items():
        pooled = np.sum([fold["correct"][name] for fold in raw.values()], axis=0)
        points = [{"strength": shift.none, "stated": False, "untrained": False, **clean}]
        for strength, right in zip(shift.grid, pooled, strict=True):
            kinds = {"stated": strength in shift.stated, "untrained": strength in shift.untrained}
            points.append({"strength": strength, **kinds, **figures(right, images)})
        points.sort(key=lambda point: point["strength"])
        curves[name] = {"axis": shift.axis, "none": shift.none, "points": points}
    stated, untrained = (_worst_and_mean(curves, kind) for kind in ("stated", "untrained"))
    return {
        "images": int(images.sum()),
        CLEAN: clean,
        "worst": stated[0],
        "mean_at_stated": stated[1],
        "worst_untrained": untrained[0],
        "mean_at_untrained": untrained[1],
        "shifts": curves,
    }


def _worst_and_mean(curves: Mapping[str, Any], kind: str) -> tuple[dict[str, Any], float]:
    """The worst point of a kind over all shifts, and the mean balanced accuracy of its kind."""
    points = [
        {"shift": name, **point}
        for name, curve in curves.items()
        for point in curve["points"]
        if point[kind]
    ]
    worst = min(points, key=lambda point: point["balanced_accuracy"])
    mean = float(np.mean([point["balanced_accuracy"] for point in points]))
    return {key: worst[key] for key in ("shift", "strength", "top1", "balanced_accuracy")}, mean


def of_runs(workdirs: Sequence[Path]) -> dict[str, Any] | None:
    """FIGURES of each run and their means, over runs that differ in their seed alone.

    images: how many a shift was measured on, a run. None where `robustness` has not finished with
    every one of the runs by the present method.
    """
    found = [read_json_if_there(workdir / "robustness.json") for workdir in workdirs]
    for content in found:
        method = (content.get("made_of") or {}).get("method")
        if not content.get("finished") or method != METHOD:
            return None

    def of(content, name: str) -> float:
        value = content[name]
        return value["balanced_accuracy"] if isinstance(value, Mapping) else value

    runs = {name: [of(content, name) for content in found] for name in FIGURES}
    means = {name: {"value": float(np.mean(each)), "runs": each} for name, each in runs.items()}
    return {"images": [content["images"] for content in found], **means}


def rows_of(content: Mapping[str, Any]) -> str:
    """robustness.csv: a row a shift and strength."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    kinds, columns = ("stated", "untrained"), ("top1", "balanced_accuracy")
    writer.writerow(["shift", "axis", "strength", *kinds, "images", *columns])
    for name, curve in content["shifts"].items():
        for point in curve["points"]:
            figures = (f"{point[key]:.6f}" for key in columns)
            marks = (int(point[kind]) for kind in kinds)
            writer.writerow(
                [name, curve["axis"], point["strength"], *marks, content["images"], *figures]
            )
    return text.getvalue()


def told(content: Mapping[str, Any]) -> str:
    """What was measured, for a terminal."""
    from bcvit_jax.summary import aligned

    rows = [["shift", "stated strengths", "balanced accuracy", "top-1"]]
    clean = content[CLEAN]
    rows.append([CLEAN, "", f"{clean['balanced_accuracy']:.3f}", f"{clean['top1']:.3f}"])
    for name, curve in content["shifts"].items():
        stated = [point for point in curve["points"] if point["stated"]]
        rows.append(
            [name, ", ".join(f"{point['strength']:g}" for point in stated)]
            + [", ".join(f"{p[k]:.3f}" for p in stated) for k in ("balanced_accuracy", "top1")]
        )
    return "\n".join(
        [
            *aligned(rows),
            f"\n{content['images']:,} images",
            _told("a stated strength", content["worst"], content["mean_at_stated"]),
            _told(
                "a strength beyond all training",
                content["worst_untrained"],
                content["mean_at_untrained"],
            ),
        ]
    )


def _told(where: str, worst: Mapping[str, Any], mean: float) -> str:
    return (
        f"worst at {where}: {worst['shift']} {worst['strength']:g}, balanced accuracy "
        f"{worst['balanced_accuracy']:.3f}; mean over them {mean:.3f}"
    )


def picture(content: Mapping[str, Any]) -> bytes:
    """Small multiples as a PNG: a panel a shift, balanced accuracy over the strength."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves, columns = content["shifts"], 5
    lines = -(-len(curves) // columns)
    figure = Figure(figsize=(2.7 * columns, 2.4 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    clean = content[CLEAN]["balanced_accuracy"]
    images = np.sum([fold["images"] for fold in content["folds"].values()], axis=0)
    chance = 1 / np.count_nonzero(images)
    for axes, (name, curve) in zip(panels, curves.items(), strict=False):
        places = [point["strength"] for point in curve["points"]]
        found = [point["balanced_accuracy"] for point in curve["points"]]
        axes.axhline(clean, color="#8a94a0", linewidth=1, linestyle="--", label="clean")
        axes.axhline(chance, color="#b3261e", linewidth=1, linestyle=":", label="chance")
        axes.plot(places, found, color="#1f5fa8", marker="o", markersize=3, label="shifted")
        stated = [(p["strength"], p["balanced_accuracy"]) for p in curve["points"] if p["stated"]]
        axes.plot(*zip(*stated, strict=True), "o", color="#1f5fa8", mfc="white", label="stated")
        if curve["none"] == 1.0:  # factors
            axes.set_xscale("log", base=2)
            axes.set_xticks(places, [f"{place:g}" for place in places], size=7)
            axes.minorticks_off()
        axes.set_title(name.replace("_", " "), size=10)
        axes.set_xlabel(curve["axis"], size=8)
        axes.tick_params(labelsize=7)
        axes.grid(color="#e6eaef", linewidth=0.6)
        axes.set_ylim(0, 1)
    for axes in panels[len(curves) :]:
        axes.axis("off")
    for axes in panels[::columns]:
        axes.set_ylabel("balanced accuracy", size=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=130)
    return written.getvalue()
