"""The parts of a report's page about what the network is sure of, rightly or wrongly."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bcvit_jax.report.html import (
    DASH,
    data_uri,
    diagram,
    fraction,
    percent,
    table,
    text,
    with_range,
)


class Pictures(NamedTuple):
    """What a page shows, as files: PNG, but JPEG for the mistakes."""

    confusion: bytes
    reliability: bytes
    risk_coverage: bytes
    robustness: bytes | None
    mistakes: Sequence[bytes]
    """One a confident mistake, or none at all."""
    no_mistakes: str
    """Why there is none, as a sentence."""


def confident_mistakes_part(rows: Sequence[Mapping[str, Any]], pictures: Pictures) -> str:
    if not rows:
        return "<p>The network made no mistake on the held-out images.</p>"
    count = "the one mistake" if len(rows) == 1 else f"the {len(rows)} mistakes"
    intro = (
        f"<p>These are {count} of which the network was most sure. Look at the label, too: it may "
        "be the one that is wrong.</p>"
    )
    if not pictures.mistakes:
        cells = [
            [
                text(row["true"]),
                text(row["predicted"]),
                percent(row["confidence"]),
                text(row["source"]),
            ]
            for row in rows
        ]
        head = ["labelled", "called", "probability", "image"]
        return f"{intro}\n<p>{text(pictures.no_mistakes)}</p>\n{table(head, cells)}"
    figures = [_mistake(row, jpeg) for row, jpeg in zip(rows, pictures.mistakes, strict=True)]
    return f'{intro}\n<div class="pictures">{"".join(figures)}</div>'


def _mistake(row: Mapping[str, Any], jpeg: bytes) -> str:
    source = str(row["source"])
    name = source.replace("\\", "/").rsplit("/", 1)[-1]
    return (
        f'<figure title="{text(source)}"><img src="{data_uri(jpeg, "jpeg")}" alt="{text(name)}">'
        f"<span>labelled <b>{text(row['true'])}</b></span>"
        f"<span>called <b>{text(row['predicted'])}</b>, {percent(row['confidence'])}</span>"
        f'<span class="small">{text(row["fold"])}, {text(name)}</span></figure>\n'
    )


def calibration_part(found: Mapping[str, Any], picture: bytes) -> str:
    pooled, folds = found["pooled"], found["folds"]
    if pooled["ece"] is None:
        return "<p>There are no held-out images to tell.</p>"
    tempered = any(row["temperature"] is not None for row in folds)
    parts = [
        "<p>Probabilities are calibrated if, of all cells called with 90 % probability, 90 % are "
        "right. Below the dashed line the network is too sure, above it too cautious.</p>",
        diagram(picture, "Reliability diagram: share right over the probability given"),
        f"<p>The expected calibration error (ECE), the mean distance between probability and share "
        f"right over {found['bins']} bins, is {fraction(pooled['ece'])}"
        + (
            f", and {fraction(pooled['ece_tempered'])} after temperature scaling."
            if tempered
            else "."
        )
        + "</p>",
    ]
    if not tempered:
        parts.append(
            "<p>Temperature scaling, which corrects the sureness, needs held-out predictions of "
            "other folds to fit on, and there are none: it is not fitted on the images that would "
            "judge it.</p>"
        )
        return "\n".join(parts)
    parts.append(
        "<p>Temperature scaling divides the network's outputs before the softmax by one number. "
        "It changes no class, only how sure the network is: a temperature above 1 makes it less "
        "sure. The number for each fold is fitted on the held-out predictions of the other folds "
        "alone.</p>"
    )
    rows = [
        [
            text(row["fold"]),
            DASH if row["temperature"] is None else f"{row['temperature']:.2f}",
            *(fraction(row.get(key)) for key in ("ece", "ece_tempered")),
        ]
        for row in [*folds, {"fold": "pooled", "temperature": None, **pooled}]
    ]
    parts.append(table(["held out", "temperature", "ECE", "ECE, scaled"], rows, total=1))
    return "\n".join(parts)


def selective_part(rows: Sequence[Mapping[str, Any]], picture: bytes) -> str:
    """Coverage at the accuracies wanted, here and where the threshold comes from other folds."""
    here, elsewhere = [], []
    for row in rows:
        wanted, other = f"{percent(row['accuracy'], 0)} right", row["other_folds"]
        line = [wanted, "not reached", DASH]
        if row["threshold"] is not None:
            kept = f"{percent(row['coverage'])} ({row['accepted']:,})"
            line = [wanted, fraction(row["threshold"]), kept]
        here.append(line)
        if other:
            kept = f"{percent(other['coverage'])} ({other['accepted']:,})"
            elsewhere.append([wanted, kept, with_range(other["reached"], other["interval"])])
    left = "cells left to the network"
    parts = [
        "<p>A cell whose probability stays below a threshold can go to a person; of the rest, more "
        "are right. The table gives the lowest threshold at which 95 % or 99 % of the rest are "
        "right.</p>",
        diagram(picture, "Risk over coverage: errors among the cells left to the network"),
        table(["wanted", "threshold", left], here),
        '<p class="small">These thresholds are chosen on the very images they are counted on, so '
        "they promise a little too much.</p>",
    ]
    if elsewhere:
        parts.append(
            "<p>Here each fold takes the threshold of the other folds instead, as new cells from "
            "the same source would:</p>"
        )
        parts.append(table(["wanted", left, "right among them"], elsewhere))
    return "\n".join(parts)
