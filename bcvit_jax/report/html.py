"""The pieces that a report's page is made of: its style, numbers, tables and pictures."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from bcvit_jax.report.diagrams import DPI

DASH = "\N{EN DASH}"

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
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem;
  margin: 1rem 0; }
.tiles div { border: 1px solid #d8dee6; border-radius: .4rem; padding: .5rem .8rem; }
.tiles b { display: block; font-size: 1.45rem; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.tiles span { color: #4d5966; font-size: .85rem; display: block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .4rem 0; }
th, td { padding: .28rem .7rem; border-bottom: 1px solid #e6eaef; text-align: right;
  white-space: nowrap; vertical-align: top; }
thead th { white-space: normal; }
th { font-weight: 600; color: #4d5966; border-bottom-color: #8a94a0; vertical-align: bottom; }
tbody th { border-bottom-color: #e6eaef; color: #1b2733; vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td .range { display: block; color: #4d5966; font-size: .8em; line-height: 1.25; }
tr.total > * { border-top: 1px solid #8a94a0; font-weight: 600; }
tr.total .range { font-weight: 400; }
table.settings td, table.settings th { text-align: left; vertical-align: top; }
table.settings td { white-space: normal; overflow-wrap: anywhere; }
table.settings th { font-weight: 400; color: #4d5966; }
.bar { background: linear-gradient(#7fb0de, #7fb0de) left bottom no-repeat; min-width: 6.5rem;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
img { max-width: 100%; height: auto; display: block; margin: .5rem 0; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr));
  gap: .8rem .6rem; margin: .8rem 0; }
.pictures figure { margin: 0; font-size: .85rem; line-height: 1.35; overflow-wrap: anywhere; }
.pictures img { width: 100%; margin: 0 0 .25rem; border-radius: .3rem; }
.pictures span { display: block; }
.pictures .small { font-size: .75rem; }
@media (max-width: 30rem) {
  body { padding: 1rem .8rem 2rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .pictures { grid-template-columns: repeat(3, 1fr); }
  th, td { padding: .28rem .3rem; font-size: .86rem; }
  td .range { font-size: .72rem; letter-spacing: -.02em; }
  .bar { min-width: 0; }
  table.settings th { white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
}
@media print {
  @page { margin: 16mm; }
  body { font-size: 10.5pt; max-width: none; padding: 0; }
  h2, h3, h2 + p, h3 + p { break-after: avoid; }
  tr, img, figure, .result, .tiles { break-inside: avoid; }
  .wide { overflow: visible; }
  img { min-width: 0 !important; }
  .tiles, .pictures { grid-template-columns: repeat(5, 1fr); }
  th, td { padding: .15rem .45rem; }
  a { color: inherit; text-decoration: none; }
}
"""


def text(value: Any) -> str:
    return html.escape(str(value))


def fraction(value: float | None) -> str:
    """0.857; as many digits more as keep what is not 1 or 0 from being written so."""
    if value is None:
        return DASH
    for digits in range(3, 6):
        written = f"{value:.{digits}f}"
        if value in (0, 1) or float(written) not in (0, 1):
            break
    return written


def with_range(value: float | None, bounds: Sequence[float] | None) -> str:
    """0.857 (0.841–0.872), the brackets in a line of their own in a table."""
    if value is None or not bounds:
        return fraction(value)
    return f'{fraction(value)} <span class="range">{between(bounds)}</span>'


def between(bounds: Sequence[float]) -> str:
    return f"({bounds[0]:.3f}{DASH}{bounds[1]:.3f})"


def percent(share: float | None, digits: int = 1) -> str:
    return DASH if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], total: int = 0) -> str:
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


def count_table(
    names: Sequence[str], heads: Sequence[str], columns: Sequence[Sequence[int]]
) -> str:
    """Counts a class, with their sums below."""
    rows = [[text(name), *(f"{column[i]:,}" for column in columns)] for i, name in enumerate(names)]
    rows.append(["all", *(f"{sum(column):,}" for column in columns)])
    return table(["class", *map(text, heads)], rows, total=1)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dict of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def settings_table(settings: Mapping[str, Any] | None) -> str:
    if not settings:
        return "<p>Not recorded.</p>"
    rows = []
    for name, value in flatten(settings).items():
        if isinstance(value, list | tuple):
            value = ", ".join(map(str, value))
        shown = DASH if value is None or value == "" else text(value)
        rows.append(f'<tr><th scope="row">{text(name)}</th><td>{shown}</td></tr>')
    body = "\n".join(rows)
    return f'<div class="wide"><table class="settings"><tbody>\n{body}\n</tbody></table></div>'


def data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def diagram(png: bytes, alt: str) -> str:
    """A diagram; on a phone it scrolls rather than shrink until nobody can read it."""
    least = round(int.from_bytes(png[16:20]) / DPI * 66)  # the PNG's width, at 66 px an inch
    most = round(int.from_bytes(png[16:20]) / DPI * 100)
    return (
        f'<div class="wide"><img src="{data_uri(png, "png")}" alt="{text(alt)}" '
        f'style="min-width: {least}px; width: {most}px"></div>'
    )
