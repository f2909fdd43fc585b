"""The page of a run's report: one HTML file that holds its style and pictures itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from bcvit_jax import __version__
from bcvit_jax.balance import LEAK
from bcvit_jax.intervals import FEW_GROUPS
from bcvit_jax.metrics import mistakes
from bcvit_jax.report.html import (
    DASH,
    STYLE,
    between,
    count_table,
    diagram,
    flatten,
    fraction,
    percent,
    settings_table,
    table,
    text,
    with_range,
)
from bcvit_jax.report.sections import (
    Pictures,
    calibration_part,
    confident_mistakes_part,
    selective_part,
)
from bcvit_jax.summary import METRICS

NOTICE = "For research use only; not a medical device."
FEW_IMAGES = 10


def page(
    run: Mapping[str, Any],
    summary: Mapping[str, Any],
    found: Mapping[str, Any],
    pictures: Pictures,
) -> str:
    """The whole of report.html; `run` as given to `write_report`, of plain JSON types.

    found: what `numbers.analysis` returns.
    """
    title = str(run.get("title") or "Blood-cell classifier")
    dataset = run.get("dataset") or {}
    alt = "Confusion matrix: rows the true class, columns the predicted class"
    parts = [
        f"<h1>{text(title)}</h1>",
        f'<p class="notice">{NOTICE}</p>',
        "<h2>What was trained</h2>",
        _what_was_trained(run, summary),
        "<h2>Result</h2>",
        f'<p class="result">{text(result_line(summary))}</p>',
        _tiles(summary, found["intervals"]),
        f"<p>{text(donor_statement(dataset))}</p>",
        f"<p>{text(interval_statement(summary, found['intervals'], dataset))}</p>",
        "<h2>Each class</h2>",
        _class_table(summary, found["intervals"]),
        "<h2>Folds</h2>",
        _fold_table(summary, found["intervals"]),
        "<h2>Confusion matrix</h2>",
        diagram(pictures.confusion, alt),
        _mistake_table(summary),
        "<h2>Most confident mistakes</h2>",
        confident_mistakes_part(found["confident_mistakes"], pictures),
        "<h2>Can the probabilities be trusted?</h2>",
        calibration_part(found["calibration"], pictures.reliability),
        "<h2>Leaving doubtful cells to a person</h2>",
        selective_part(found["selective"], pictures.risk_coverage),
        _robustness_part(pictures.robustness),
        "<h2>Data set</h2>",
        _dataset_part(dataset, (run.get("config") or {}).get("train_folds") or ()),
        "<h2>Training settings</h2>",
        settings_table(run.get("config")),
        "<h2>Provenance</h2>",
        settings_table(run.get("provenance")),
        _files(summary),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def result_line(summary: Mapping[str, Any]) -> str:
    """The result in one sentence, with what guessing the commonest class would score."""
    pooled, folds = summary["pooled"], summary["folds"]
    sizes = [row["n"] for row in pooled["classes"]]
    present = sum(size > 0 for size in sizes)
    if not pooled["n"]:
        return "The held-out folds hold no image, so there is no result."
    images = f"{pooled['n']:,} held-out image{'' if pooled['n'] == 1 else 's'}"
    kinds = "one class" if present == 1 else f"{present} classes"
    guess = f"always naming the commonest class would score {fraction(max(sizes) / pooled['n'])}"
    if len(folds) == 1:
        return (
            f"Top-1 accuracy {fraction(pooled['top1'])} on the {images} of {folds[0]['fold']}, "
            f"of {kinds}; {guess}."
        )
    return (
        f"Top-1 accuracy {_spread(summary['mean']['top1'])} (mean ± sd over {len(folds)} "
        f"held-out folds), {images} of {kinds}; {guess}."
    )


def _spread(spread: Mapping[str, float | None]) -> str:
    written = fraction(spread["mean"])
    return written if spread["sd"] is None else f"{written} ± {spread['sd']:.3f}"


def donor_statement(dataset: Mapping[str, Any]) -> str:
    """One sentence: whether cells of one donor can stand in training and in held-out data."""
    if dataset.get("protocol") == "paper":
        return LEAK
    optimistic = "donors may be shared between folds, so these figures may be optimistic."
    if dataset.get("donor_separated"):
        return "All cells of a donor are in one fold: the figures are for donors not seen before."
    if dataset.get("group_kind") == "slide":
        return f"All cells of a slide are in one fold, but {optimistic}"
    return f"The data set does not say which donor a cell is from: {optimistic}"


def interval_statement(
    summary: Mapping[str, Any], intervals: Mapping[str, Any], dataset: Mapping[str, Any]
) -> str:
    """What the intervals in brackets are about, and where they are too narrow."""
    images, groups = intervals["images"], intervals["groups"]
    kind = {"donor": "donor", "slide": "slide"}.get(str(dataset.get("group_kind")), "group")
    if not images:
        return "There are no intervals."
    said = ["In brackets stand 95 % intervals: how far the figure could be off by chance alone."]
    if groups == images and kind == "group":
        said.append(
            "They take each image as its own group. Cells of one donor resemble each other, so the "
            "true uncertainty is larger."
        )
    elif groups == images:
        said.append(f"Each {kind} gave one image.")
    else:
        plural = kind if groups == 1 else f"{kind}s"
        said.append(
            f"The {images:,} images come from {groups:,} {plural}; images of one {kind} resemble "
            f"each other, so the intervals count {kind}s."
        )
    if groups < FEW_GROUPS:
        said.append(f"With fewer than {FEW_GROUPS} {kind}s they are rough, rather too narrow.")
    few = [row["name"] for row in summary["pooled"]["classes"] if 0 < row["n"] < FEW_IMAGES]
    if few:
        said.append(
            f"{', '.join(few)}: fewer than {FEW_IMAGES} images, so macro-F1 and balanced accuracy "
            "are less certain than their intervals say."
        )
    said.append("They say nothing of another laboratory, nor of training once more.")
    return " ".join(said)


def _what_was_trained(run: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    config, dataset = run.get("config") or {}, run.get("dataset") or {}
    model = config.get("model")
    if isinstance(model, Mapping):
        model = model.get("name")
    folds = ", ".join(fold["fold"] for fold in summary["folds"])
    classes = ", ".join(row["name"] for row in summary["pooled"]["classes"])
    rows = {"network": model, "data set": dataset.get("path"), "classes": classes}
    rows["held out, one after the other" if len(summary["folds"]) > 1 else "held out"] = folds
    for key, value in flatten(run.get("training") or {}).items():
        what, _, fold = key.replace("_", " ").partition(".")
        rows[f"{what} ({fold} held out)" if fold else what] = _quantity(value)
    return settings_table({key: value for key, value in rows.items() if value not in (None, "")})


def _quantity(value: Any) -> Any:
    """Numbers as read by people: 5,812,345 and 33.4, not 33.40000001."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else value


def _tiles(summary: Mapping[str, Any], intervals: Mapping[str, Any]) -> str:
    several = len(summary["folds"]) > 1
    tiles = []
    for key, name in METRICS.items():
        spread, bounds = summary["mean"][key], intervals["pooled"][key]
        lines = [] if spread["sd"] is None else [f"± {spread['sd']:.3f}"]
        if bounds:
            pooled = f"pooled {fraction(summary['pooled'][key])} " if several else ""
            lines.append(f"{pooled}{between(bounds)}")
        below = "<br>".join(lines)
        tiles.append(f"<div><span>{name}</span><b>{fraction(spread['mean'])}</b>{below}</div>")
    note = " Large: mean ± standard deviation over the folds." if several else ""
    return (
        f'<div class="tiles">{"".join(tiles)}</div>\n<p class="small">Fractions of 1.{note} '
        "Top-1: the most probable class is right; top-5: one of the five most probable is. "
        "Macro-F1 and balanced accuracy (the mean recall) give every class the same weight, "
        "however rare. Kappa (Cohen's): agreement beyond chance. "
        f"{DASH} marks what is undefined (top-5 of five classes or fewer, a class without "
        "images).</p>"
    )


def _class_table(summary: Mapping[str, Any], intervals: Mapping[str, Any]) -> str:
    pairs = zip(summary["pooled"]["classes"], intervals["classes"], strict=True)
    rows = []
    for row, bounds in pairs:
        cells = []
        for key in ("precision", "recall", "f1", "specificity"):
            bar = f'<td class="bar" style="background-size: {row[key] or 0:.1%} 3px">'
            cells.append(f"{bar}{with_range(row[key], bounds[key])}</td>")
        rows.append([text(row["name"]), *cells, f"{row['n']:,}"])
    pooled = "All held-out folds pooled. " if len(summary["folds"]) > 1 else ""
    note = (
        f'<p class="small">{pooled}Precision: of the cells called so, the share that is so. '
        "Recall, or sensitivity: of the cells that are so, the share called so. F1: the harmonic "
        "mean of both. Specificity: of all other cells, the share not called so.</p>\n"
    )
    return note + table(["class", "precision", "recall", "F1", "specificity", "images"], rows)


def _fold_table(summary: Mapping[str, Any], intervals: Mapping[str, Any]) -> str:
    folds, pooled = summary["folds"], summary["pooled"]
    rows = [
        [
            text(fold["fold"]),
            *(with_range(fold[key], bounds[key]) for key in METRICS),
            f"{fold['n']:,}",
        ]
        for fold, bounds in zip(folds, intervals["folds"], strict=True)
    ]
    if len(folds) > 1:
        for of in ("mean", "sd"):
            rows.append([of, *(fraction(summary["mean"][key][of]) for key in METRICS), ""])
        figures = [with_range(pooled[key], intervals["pooled"][key]) for key in METRICS]
        rows.append(["pooled", *figures, f"{pooled['n']:,}"])
    head = ["held out", *METRICS.values(), "images"]
    return table(head, rows, total=3 if len(folds) > 1 else 0)


def _mistake_table(summary: Mapping[str, Any]) -> str:
    found = mistakes(summary["pooled"])
    if not found:
        return ""
    rows = [
        [
            f"{text(row['true'])} taken for {text(row['predicted'])}",
            f"{row['n']:,}",
            percent(row["share"]),
        ]
        for row in found
    ]
    return "<h3>Commonest mistakes</h3>\n" + table(["", "images", "of the true class"], rows)


def _robustness_part(picture: bytes | None) -> str:
    if picture is None:
        return ""
    alt = "Accuracy under each change of the images, over the strength of the change"
    return (
        "<h2>Other laboratories' conditions</h2>\n<p>How much accuracy the networks keep when "
        "their held-out images change as other laboratories' would, in stain, light, focus or "
        'magnification. Every number is in <a href="robustness.json">robustness.json</a>.</p>\n'
        + diagram(picture, alt)
    )


def _dataset_part(dataset: Mapping[str, Any], chosen: Sequence[int]) -> str:
    """Images a class and fold, and before and after balancing, where the run tells them.

    chosen: the folds trained on, by number; none for all that are not held out.
    """
    parts = [f"<p>{text(donor_statement(dataset))}</p>"]
    names, counts = dataset.get("class_names") or [], dataset.get("counts") or {}
    copies = dataset.get("protocol") == "paper"  # balanced already, before the split
    balanced = {} if copies else dataset.get("balanced") or {}
    if counts:
        columns = [*counts.values(), [sum(row) for row in zip(*counts.values(), strict=True)]]
        kind = "Balanced copies" if copies else "Images"
        parts.append(f"<h3>{kind}</h3>" + count_table(names, [*counts, "all"], columns))
    if balanced and counts:
        parts.append(
            "<h3>Training images after balancing</h3>"
            "<p>A column for each held-out fold; the images are those of the training folds. In "
            "brackets: before balancing.</p>" + _balanced_table(names, counts, balanced, chosen)
        )
    if dataset.get("fingerprint"):
        parts.append(f'<p class="small">Fingerprint {text(dataset["fingerprint"])}</p>')
    return "\n".join(parts)


def _balanced_table(
    names: Sequence[str],
    counts: Mapping[str, Sequence[int]],
    balanced: Mapping[str, Sequence[int]],
    chosen: Sequence[int],
) -> str:
    """Images a class that training saw, with those its folds hold in brackets (Table 1)."""
    folds, columns = list(counts), []
    for held_out, after in balanced.items():
        training = [folds[i] for i in chosen if i < len(folds)] or set(folds) - {held_out}
        before = [sum(counts[fold][i] for fold in training) for i in range(len(names))]
        columns.append([*zip(after, before, strict=True), (sum(after), sum(before))])
    rows = [
        [text(name), *(f"{column[i][0]:,} ({column[i][1]:,})" for column in columns)]
        for i, name in enumerate([*names, "all"])
    ]
    return table(["class", *map(text, balanced)], rows, total=1)


def _files(summary: Mapping[str, Any]) -> str:
    tables = ", ".join(
        f'<a href="{text(fold["fold"])}/predictions.csv">{text(fold["fold"])}</a>'
        for fold in summary["folds"]
    )
    names = ("classes", "folds", "reliability", "risk_coverage")
    figures = ", ".join(f'<a href="{name}.csv">{name}.csv</a>' for name in names)
    return (
        f'<p class="small">Beside this page: every prediction as a table ({tables}); the figures '
        f"above as tables ({figures}); all numbers for programs "
        f'(<a href="report.json">report.json</a>). Written by bcvit {__version__}.</p>'
    )
