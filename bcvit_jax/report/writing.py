"""The report of a run: report.html for people, report.json, tables and diagrams for the rest."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bcvit_jax import __version__
from bcvit_jax.calibration import risk_coverage
from bcvit_jax.errors import UserError
from bcvit_jax.files import to_json, write_json, write_whole
from bcvit_jax.metrics import mistakes
from bcvit_jax.normalisation import Normalisation
from bcvit_jax.predictions import Predictions
from bcvit_jax.report.diagrams import confusion_picture, reliability_picture, risk_coverage_picture
from bcvit_jax.report.numbers import ACCURACIES, analysis, joined, tables
from bcvit_jax.report.page import NOTICE, donor_statement, page
from bcvit_jax.report.sections import Pictures
from bcvit_jax.summary import summarise_run

THUMBNAIL = 128
"""Pixels of the side of a mistake's picture."""


def write_report(
    workdir: str | Path,
    run: Mapping[str, Any],
    predictions: Sequence[Predictions],
    dataset: Any = None,
) -> dict[str, Any]:
    """Writes report.html, report.json, their tables (CSV) and diagrams (PNG) into `workdir`.

    run: title, config, provenance, dataset (path, class_names, donor_separated, group_kind,
    counts {fold: images a class}, balanced {held-out fold: training images a class}) and
    training, each optional; values are written down as they are. dataset: the opened data set of
    the run, for the pictures of its mistakes; without it, it is looked for where the run had it.
    Returns the summary of `summarise_run`. The page needs no other file.
    """
    workdir = Path(workdir)
    summary, found = summarise_run(predictions), analysis(predictions)
    run = to_json(run)
    content = {
        "notice": NOTICE,
        "version": __version__,
        "class_names": list(predictions[0].class_names),
        "donor_statement": donor_statement(run.get("dataset") or {}),
        **summary,
        "mistakes": mistakes(summary["pooled"]),
        **found,
        "run": run,
    }
    held = joined(predictions)
    curve = risk_coverage(held.confidence, held.correct)
    pictures = Pictures(
        confusion_picture(summary),
        reliability_picture(found["calibration"]),
        risk_coverage_picture(curve, ACCURACIES),
        _robustness(workdir),
        *mistake_pictures(found["confident_mistakes"], run, dataset),
    )
    for name, picture in (
        ("confusion_matrix", pictures.confusion),
        ("reliability", pictures.reliability),
        ("risk_coverage", pictures.risk_coverage),
    ):
        write_whole(workdir / f"{name}.png", picture)
    for name, rows in tables(summary, found, predictions).items():
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows(rows)
        write_whole(workdir / name, lines.getvalue().encode())
    write_whole(workdir / "report.html", page(run, summary, found, pictures).encode())
    write_json(workdir / "report.json", content)
    return summary


def mistake_pictures(
    rows: Sequence[Mapping[str, Any]], run: Mapping[str, Any], dataset: Any = None
) -> tuple[list[bytes], str]:
    """A JPEG of each mistake as the network saw it, uncut; or none, and a sentence why."""
    if not rows:
        return [], ""
    settings = (run.get("config") or {}).get("data") or {}
    described = run.get("dataset") or {}
    path = str(settings.get("path") or described.get("path") or "")
    if dataset is None and not path:
        return [], "The run does not name its data set, so there are no pictures."
    try:
        if dataset is None:
            from bcvit_jax.balance import under_protocol
            from bcvit_jax.dataset import open_dataset

            dataset = open_dataset(path, cache=str(settings.get("cache") or ""))
            protocol, target = settings.get("protocol"), settings.get("balance_target")
            dataset = under_protocol(dataset, protocol or "leak_free", target or 0)
        if any(
            row["index"] >= len(dataset.sources.get(row["fold"], ()))
            or dataset.sources[row["fold"]][row["index"]] != row["source"]
            for row in rows
        ):
            return [], f"The data set at {path} is not that of this run, so there are no pictures."
        crop = float(settings.get("centre_crop") or 1)
        framing = Normalisation(normalise_scale=bool(settings.get("normalise_scale")))
        squares = [
            dataset.square(row["fold"], row["index"], crop, THUMBNAIL, normalise=framing)
            for row in rows
        ]
    except (UserError, OSError):
        return [], f"The data set can't be read at {path}, so there are no pictures."
    pictures = []
    for square in squares:
        file = io.BytesIO()
        Image.fromarray(square).save(file, "JPEG", quality=85)
        pictures.append(file.getvalue())
    return pictures, ""


def _robustness(workdir: Path) -> bytes | None:
    """The diagram of other laboratories' conditions, where they were tried."""
    paths = workdir / "robustness.png", workdir / "robustness.json"
    return paths[0].read_bytes() if all(path.exists() for path in paths) else None
