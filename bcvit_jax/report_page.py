"""The page of a run's report: one HTML file that holds its style and picture itself."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from bcvit_jax import __version__
from bcvit_jax.evaluate import METRICS, mean_and_sd, number
from bcvit_jax.metrics import mistakes

NOTICE = "For research use only; not a medical device."
DASH = "\N{EN DASH}"
DPI = 150  # of the confusion matrix

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 54rem; background: #fff;
  color: #1b2733; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-bottom: .25rem;
  border-bottom: 1px solid #d8dee6; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .5rem 0; overflow-wrap: anywhere; }
.notice { color: #7a2e0e; font-weight: 600; }
.result { font-size: 1.15rem; padding: .8rem 1rem; background: #eef4fb; border-radius: .4rem; }
.small { color: #4d5966; font-size: .9rem; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: .6rem; margin: 1rem 0; }
.tiles div { border: 1px solid #d8dee6; border-radius: .4rem; padding: .5rem .8rem; }
.tiles b { display: block; font-size: 1.45rem; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.tiles span { color: #4d5966; font-size: .85rem; display: block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .4rem 0; }
th, td { padding: .28rem .7rem; border-bottom: 1px solid #e6eaef; text-align: right;
  white-space: nowrap; }
th { font-weight: 600; color: #4d5966; border-bottom-color: #8a94a0; vertical-align: bottom; }
tbody th { border-bottom-color: #e6eaef; color: #1b2733; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr.total > * { border-top: 1px solid #8a94a0; font-weight: 600; }
table.settings td, table.settings th { text-align: left; vertical-align: top; }
table.settings td { white-space: normal; overflow-wrap: anywhere; }
table.settings th { font-weight: 400; color: #4d5966; }
.bar { background: linear-gradient(#7fb0de, #7fb0de) left bottom no-repeat; min-width: 6.5rem;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
img { max-width: 100%; height: auto; display: block; margin: .5rem 0; }
@media (max-width: 30rem) {
  body { padding: 1rem .8rem 2rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  th, td { padding: .28rem .3rem; font-size: .86rem; }
  thead th { white-space: normal; }
  .bar { min-width: 4rem; }
  table.settings th { white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
}
@media print {
  @page { margin: 16mm; }
  body { font-size: 10.5pt; max-width: none; padding: 0; }
  h2, h3, h2 + p, h3 + p { break-after: avoid; }
  tr, img, .result, .tiles { break-inside: avoid; }
  .wide { overflow: visible; }
  img { min-width: 0 !important; }
  th, td { padding: .15rem .45rem; }
  a { color: inherit; text-decoration: none; }
}
"""


def page(run: Mapping[str, Any], summary: Mapping[str, Any], picture: bytes) -> str:
    """The whole of report.html; `run` as given to `write_report`, of plain JSON types."""
    title = str(run.get("title") or "Blood-cell classifier")
    data = base64.b64encode(picture).decode()
    alt = "Confusion matrix: rows the true class, columns the predicted class"
    # On a phone the picture scrolls rather than shrink until nobody can read it.
    least = round(int.from_bytes(picture[16:20]) / DPI * 66)  # the PNG's width, at 66 px an inch
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="notice">{NOTICE}</p>',
        "<h2>What was trained</h2>",
        _what_was_trained(run, summary),
        "<h2>Result</h2>",
        f'<p class="result">{_text(result_line(summary))}</p>',
        _tiles(summary),
        f"<p>{_text(donor_statement(run.get('dataset') or {}))}</p>",
        "<h2>Each class</h2>",
        _class_table(summary),
        "<h2>Folds</h2>",
        _fold_table(summary),
        "<h2>Confusion matrix</h2>",
        f'<div class="wide"><img src="data:image/png;base64,{data}" alt="{alt}" '
        f'style="min-width: {least}px"></div>',
        _mistake_table(summary),
        "<h2>Data set</h2>",
        _dataset_part(run.get("dataset") or {}),
        "<h2>Training settings</h2>",
        _settings(run.get("config")),
        "<h2>Provenance</h2>",
        _settings(run.get("provenance")),
        _files(summary),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
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
    guess = f"always naming the commonest class would score {number(max(sizes) / pooled['n'])}"
    if len(folds) == 1:
        return (
            f"Top-1 accuracy {number(pooled['top1'])} on the {images} of {folds[0]['fold']}, "
            f"of {kinds}; {guess}."
        )
    return (
        f"Top-1 accuracy {mean_and_sd(summary['mean']['top1'])} (mean ± sd over {len(folds)} "
        f"held-out folds), {images} of {kinds}; {guess}."
    )


def donor_statement(dataset: Mapping[str, Any]) -> str:
    """One sentence: whether cells of one donor can stand in training and in held-out data."""
    optimistic = "donors may be shared between folds, so these figures may be optimistic."
    if dataset.get("donor_separated"):
        return "All cells of a donor are in one fold: the figures are for donors not seen before."
    if dataset.get("group_kind") == "slide":
        return f"All cells of a slide are in one fold, but {optimistic}"
    return f"The data set does not say which donor a cell is from: {optimistic}"


def _text(value: Any) -> str:
    return html.escape(str(value))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], total: int = 0) -> str:
    """A table of escaped cells, its last `total` rows set apart by a line."""
    lines = []
    for place, row in enumerate(rows):
        kind = ' class="total"' if total and place == len(rows) - total else ""
        first, *others = row
        cells = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in others)
        lines.append(f'<tr{kind}><th scope="row">{first}</th>{cells}</tr>')
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "\n".join(lines)
    return (
        f'<div class="wide"><table>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


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
    return _settings({key: value for key, value in rows.items() if value not in (None, "")})


def _quantity(value: Any) -> Any:
    """Numbers as read by people: 5,812,345 and 33.4, not 33.40000001."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else value


def _tiles(summary: Mapping[str, Any]) -> str:
    several = len(summary["folds"]) > 1
    tiles = []
    for key, name in METRICS.items():
        spread = summary["mean"][key]
        below = "" if spread["sd"] is None else f" ± {number(spread['sd'])}"
        tiles.append(f"<div><span>{name}</span><b>{number(spread['mean'])}</b>{below}</div>")
    note = " Mean ± standard deviation over the folds." if several else ""
    return (
        f'<div class="tiles">{"".join(tiles)}</div>\n<p class="small">Fractions of 1.{note} '
        "Macro-F1 and balanced accuracy give every class the same weight, however rare; "
        f"{DASH} marks what is undefined (top-5 of five classes or fewer, a class without "
        "images).</p>"
    )


def _bar(value: float | None) -> str:
    return f'<td class="bar" style="background-size: {value or 0:.1%} 3px">{number(value, 3)}</td>'


def _class_table(summary: Mapping[str, Any]) -> str:
    rows = [
        [
            _text(row["name"]),
            *(_bar(row[key]) for key in ("precision", "recall", "f1")),
            f"{row['n']:,}",
        ]
        for row in summary["pooled"]["classes"]
    ]
    pooled = "<p>All held-out folds pooled.</p>\n" if len(summary["folds"]) > 1 else ""
    return pooled + _table(["class", "precision", "recall", "F1", "images"], rows)


def _fold_table(summary: Mapping[str, Any]) -> str:
    folds, pooled = summary["folds"], summary["pooled"]
    rows = [
        [_text(fold["fold"]), *(number(fold[key]) for key in METRICS), f"{fold['n']:,}"]
        for fold in folds
    ]
    if len(folds) > 1:
        for of in ("mean", "sd"):
            rows.append([of, *(number(summary["mean"][key][of]) for key in METRICS), ""])
        rows.append(["pooled", *(number(pooled[key]) for key in METRICS), f"{pooled['n']:,}"])
    head = ["held out", *METRICS.values(), "images"]
    return _table(head, rows, total=3 if len(folds) > 1 else 0)


def _mistake_table(summary: Mapping[str, Any]) -> str:
    found = mistakes(summary["pooled"])
    if not found:
        return ""
    rows = [
        [
            f"{_text(row['true'])} taken for {_text(row['predicted'])}",
            f"{row['n']:,}",
            f"{row['share']:.1%}",
        ]
        for row in found
    ]
    return "<h3>Commonest mistakes</h3>\n" + _table(["", "images", "of the true class"], rows)


def _dataset_part(dataset: Mapping[str, Any]) -> str:
    """Images a class and fold, and a class after balancing, where the run tells them."""
    parts = [f"<p>{_text(donor_statement(dataset))}</p>"]
    names, counts = dataset.get("class_names") or [], dataset.get("counts") or {}
    balanced = dataset.get("balanced") or {}
    if counts:
        columns = [*counts.values(), [sum(row) for row in zip(*counts.values(), strict=True)]]
        parts.append("<h3>Images</h3>" + _count_table(names, [*counts, "all"], columns))
    if balanced:
        parts.append(
            "<h3>Training images after balancing</h3>"
            "<p>A column for each held-out fold; the images are those of the training folds.</p>"
            + _count_table(names, list(balanced), list(balanced.values()))
        )
    if dataset.get("fingerprint"):
        parts.append(f'<p class="small">Fingerprint {_text(dataset["fingerprint"])}</p>')
    return "\n".join(parts)


def _count_table(
    names: Sequence[str], heads: Sequence[str], columns: Sequence[Sequence[int]]
) -> str:
    rows = [
        [_text(name), *(f"{column[i]:,}" for column in columns)] for i, name in enumerate(names)
    ]
    rows.append(["all", *(f"{sum(column):,}" for column in columns)])
    return _table(["class", *map(_text, heads)], rows, total=1)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dict of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _settings(settings: Mapping[str, Any] | None) -> str:
    if not settings:
        return "<p>Not recorded.</p>"
    rows = []
    for name, value in flatten(settings).items():
        if isinstance(value, list | tuple):
            value = ", ".join(map(str, value))
        shown = DASH if value is None or value == "" else _text(value)
        rows.append(f'<tr><th scope="row">{_text(name)}</th><td>{shown}</td></tr>')
    body = "\n".join(rows)
    return f'<div class="wide"><table class="settings"><tbody>\n{body}\n</tbody></table></div>'


def _files(summary: Mapping[str, Any]) -> str:
    tables = ", ".join(
        f'<a href="{_text(fold["fold"])}/predictions.csv">{_text(fold["fold"])}</a>'
        for fold in summary["folds"]
    )
    return (
        f'<p class="small">Beside this page: every prediction as a table ({tables}); all numbers '
        f'for programs (<a href="report.json">report.json</a>). Written by bcvit {__version__}.'
        "</p>"
    )
