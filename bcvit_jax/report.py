"""The report of a run: report.json for programs, report.html for people, the confusion matrix.

`python -m bcvit_jax.report --workdir RUN` writes it again from the saved predictions.
"""

import argparse
import io
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bcvit_jax import __version__
from bcvit_jax.errors import UserError
from bcvit_jax.evaluate import (
    Predictions,
    load_predictions,
    summarise_run,
    table,
    write_whole,
)
from bcvit_jax.metrics import mistakes
from bcvit_jax.report_page import DPI, NOTICE, donor_statement, page


def write_report(
    workdir: str | Path, run: Mapping[str, Any], predictions: Sequence[Predictions]
) -> dict[str, Any]:
    """Writes report.json, confusion_matrix.png and report.html into `workdir`.

    run: title, config, provenance, dataset (path, class_names, donor_separated, group_kind,
    counts {fold: images a class}, balanced {held-out fold: training images a class}) and
    training, each optional; values are written down as they are. Returns the summary of
    `summarise_run`. The page holds its picture and style itself and needs no other file.
    """
    workdir = Path(workdir)
    summary = summarise_run(predictions)
    run = to_json(run)
    content = {
        "notice": NOTICE,
        "version": __version__,
        "class_names": list(predictions[0].class_names),
        "donor_statement": donor_statement(run.get("dataset") or {}),
        **to_json(summary),
        "mistakes": mistakes(summary["pooled"]),
        "run": run,
    }
    picture = confusion_picture(summary)
    write_whole(workdir / "confusion_matrix.png", picture)
    write_whole(workdir / "report.html", page(run, summary, picture).encode())
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(workdir / "report.json", f"{text}\n".encode())
    return summary


def to_json(value: Any) -> Any:
    """The same value of plain JSON types; NaN and infinity become null, unknown things text."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): to_json(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [to_json(item) for item in value]
        case _ if hasattr(value, "tolist"):  # arrays and scalars of NumPy and JAX
            return to_json(value.tolist())
    return str(value)


def confusion_picture(summary: Mapping[str, Any]) -> bytes:
    """The pooled confusion matrix as a PNG: counts, and the share of the true class as colour.

    Colour follows the square root of the share, so that a mistake of a few percent shows.
    """
    pooled, folds = summary["pooled"], summary["folds"]
    names = [row["name"] for row in pooled["classes"]]
    confusion = np.array(pooled["confusion"])
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = max(4.2, 1.7 + 0.55 * len(names))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
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
    axes.grid(which="minor", color="#d8dee6", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color("#8a94a0")
    size = 11 if confusion.max() < 1000 else 9
    for i, j in zip(*np.nonzero(confusion), strict=True):
        colour = "white" if share[i, j] > 0.35 else "#1b2733"
        axes.text(j, i, f"{confusion[i, j]}", ha="center", va="center", color=colour, size=size)
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02, label="share of the true class")
    bar.set_ticks([0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=DPI, metadata={"Software": f"bcvit {__version__}"})
    return written.getvalue()


def load_run(workdir: str | Path) -> tuple[dict[str, Any], list[Predictions]]:
    """What a work folder keeps of its run, and the predictions of its finished folds.

    The run comes from report.json, config and provenance from their own files where they exist.
    Raises UserError where no fold has saved predictions.
    """
    workdir = Path(workdir)
    found = sorted(workdir.glob("fold*/predictions.npz"), key=lambda path: _natural(path.parent))
    if not found:
        raise UserError(
            f"{workdir} holds no fold*/predictions.npz: name the work folder of a run of which at "
            "least one fold has ended"
        )
    run: dict[str, Any] = {"title": workdir.resolve().name}
    run |= _read_json(workdir / "report.json").get("run") or {}
    for part in ("config", "provenance"):
        run[part] = _read_json(workdir / f"{part}.json") or run.get(part)
    return run, [load_predictions(path.with_suffix("")) for path in found]


def _natural(path: Path) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not whole JSON ({error}): delete or restore it") from None
    return content if isinstance(content, dict) else {}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bcvit_jax.report",
        description="Write the report of a run again, from the predictions it saved.",
    )
    parser.add_argument("--workdir", required=True, help="work folder of the run")
    workdir = Path(parser.parse_args(arguments).workdir)
    try:
        summary = write_report(workdir, *load_run(workdir))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(summary))
    print(f"\n{workdir / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
