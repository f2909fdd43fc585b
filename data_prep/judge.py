"""Judge boxes that were found: figures, counts at a working point, pictures of the worst fields."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_prep.average_precision import (
    average_precision,
    match_boxes,
    pair_fields,
    working_point,
)
from data_prep.errors import BuildError
from data_prep.fields import FieldSet
from data_prep.files import json_text, replace_file
from data_prep.overlay import write_worst

WRITTEN = ("evaluation.json", "worst", "worst.png")


def check_labels(source: Path, labels: Sequence[str], fields: FieldSet) -> None:
    """Raise BuildError if what finds boxes names none of the true boxes' labels."""
    if labels and not set(labels) & set(fields.labels):
        raise BuildError(
            f"{source} finds {', '.join(labels)}, but the true boxes are labelled "
            f"{', '.join(fields.labels)}: rename the one or the other."
        )


def report_evaluation(
    fields: FieldSet, found: FieldSet, images: Path, out: Path, min_score: float
) -> str:
    """Write evaluation.json and the pictures of the worst fields to `out`; returns the table."""
    found = replace(
        found,
        fields=tuple(
            replace(item, boxes=tuple(box for box in item.boxes if box.label in fields.labels))
            for item in found.fields
        ),
    )
    figures = average_precision(fields, found)
    matches = [match_boxes(a, b, min_score) for a, b in pair_fields(fields, found)]
    counts = working_point(matches)
    worst = write_worst(matches, images, out)
    content = {
        "detector": found.info.get("detector", ""),
        "images": len(fields.fields),
        "average_precision": figures,
        "min_score": min_score,
        "cells": counts,
        "worst": worst,
    }
    text = json_text(content)
    replace_file(out / "evaluation.json", lambda file: file.write(text.encode()))
    width = max(map(len, ("label", *figures)))
    lines = [f"{'label':{width}}     AP   AP50   AP75  AR100"]
    for label, row in figures.items():
        lines.append(f"{label:{width}}" + "".join(f"{value:7.3f}" for value in row.values()))
    total = counts["found"] + counts["missed"]
    lines.append(
        f"At score {min_score:g}: {counts['found']} of {total} boxes found, {counts['false']} "
        f"false; see {out / 'worst.png' if worst else out / 'evaluation.json'}."
    )
    return "\n".join(lines)
