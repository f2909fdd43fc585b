"""What `compare` found, as tables, sentences, a CSV file and a picture."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from bcvit_jax.curves import FIGURES as SHIFTED
from bcvit_jax.intervals import FEW_GROUPS
from bcvit_jax.paired import FIGURES

DASH = "\N{EN DASH}"


def cost_rows(content: Mapping[str, Any]) -> list[list[str]]:
    """A head, then what a network costs: parameters, multiply-accumulates, time an image."""
    rows = [["", "parameters", "GMAC", "GFLOP", "training ms/image", "inference ms/image"]]
    for row in content["rows"]:
        sizes = [f"{row['parameters'] / 1e6:.2f} M", f"{row['macs'] / 1e9:.2f}"]
        times = [_number(row[key], 2) for key in ("training_ms", "inference_ms")]
        rows.append([row["name"], *sizes, f"{row['flops'] / 1e9:.2f}", *times])
    return rows


def figure_rows(content: Mapping[str, Any]) -> list[list[str]]:
    """A head, then how well a network does, each figure with its interval."""
    heads = [f"{name} [95 %]" for name in FIGURES.values()]
    rows = [["", *heads, "top-1 of the seeds"]]
    for row in content["rows"]:
        figures = [f"{row[name]['value']:.4f} {_range(row[name]['interval'])}" for name in FIGURES]
        runs, count = row["top1"]["runs"], len(row["seeds"])
        spread = f"{min(runs):.4f}{DASH}{max(runs):.4f} ({count})" if count > 1 else "one seed"
        rows.append([row["name"], *figures, spread])
    return rows


def difference_rows(content: Mapping[str, Any]) -> list[list[str]]:
    """A head, then what differs from the baseline; the head alone where there is nothing else."""
    heads = [f"{name} [95 %]" for name in FIGURES.values()]
    rows = [[f"less {content['baseline']}", *heads, "McNemar p", "top-1"]]
    for row in content["rows"]:
        if found := row["difference"]:
            figures = [f"{found[k]['value']:+.4f} {_range(found[k]['interval'])}" for k in FIGURES]
            tests = ", ".join(f"{test['p']:.2g}" for test in row["mcnemar"])
            rows.append([row["name"], *figures, tests, row["verdict"]])
    return rows


def shift_rows(content: Mapping[str, Any]) -> list[list[str]]:
    """A head, then accuracies under changed pictures; the head alone where none has any."""
    rows = [["balanced accuracy", *SHIFTED.values(), "images a change"]]
    for row in content["rows"]:
        if found := row["shifts"]:
            images = sorted(set(found["images"]))
            cells = [_spread(found[name]) for name in SHIFTED]
            rows.append([row["name"], *cells, f" {DASH} ".join(map(str, images))])
    return rows


def _spread(found: Mapping[str, Any]) -> str:
    """The mean of the seeds and their range."""
    low, high = min(found["runs"]), max(found["runs"])
    seeds = f" ({low:.3f}{DASH}{high:.3f})" if len(found["runs"]) > 1 else ""
    return f"{found['value']:.3f}{seeds}"


def told(content: Mapping[str, Any]) -> str:
    """The tables and notes for a terminal."""
    from bcvit_jax.summary import aligned

    parts = ["\n".join(aligned(rows)) for rows in _tables(content)]
    return "\n\n".join([*parts, "\n".join(f"· {note}" for note in content["notes"])])


def markdown(content: Mapping[str, Any]) -> str:
    """The same for a README or an issue."""
    parts = [f"# {len(content['rows'])} recipes on {content['images']:,} held-out images"]
    for head, *rows in _tables(content):
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
        parts.append("\n".join(f"| {' | '.join(_escaped(line))} |" for line in lines))
    parts.append("\n".join(f"- {note}" for note in content["notes"]))
    return "\n\n".join(parts) + "\n"


def notes(content: Mapping[str, Any], differing: Sequence[str]) -> list[str]:
    """What to know beside the tables; differing: what of the runs' origin is not the same."""
    rows, images, groups = content["rows"], content["images"], content["groups"]
    alone = images == groups
    of = "each its own group" if alone else f"of {groups:,} groups, which are drawn whole"
    said = [
        f"The same {images:,} held-out images ({', '.join(content['folds'])}) for all rows, {of}; "
        f"intervals of 95 % from {content['resamples']:,} drawings, those of differences paired. "
        "They hold for these networks on other such images, not for training once more: see the "
        "range over seeds.",
    ]
    compared = [row for row in rows if row["difference"]]
    unseen = [row["name"] for row in compared if row["verdict"] == "no difference seen"]
    if unseen:
        said.append(
            f"No difference to {content['baseline']} seen in top-1: {', '.join(unseen)} (the "
            "interval holds 0). That is no proof of there being none."
        )
    if unknown := [row["name"] for row in compared if row["verdict"] == "not known"]:
        said.append(
            f"Whether {', '.join(unknown)} and {content['baseline']} differ on other images is not "
            "known: the held-out images are of one group, or all groups differ alike."
        )
    if groups < FEW_GROUPS:
        said.append(f"With fewer than {FEW_GROUPS} groups intervals are rough.")
    if len(compared) > 1:
        said.append(
            f"Of {len(compared)} comparisons about one in twenty stands out by chance; neither "
            "intervals nor p are corrected for that."
        )
    if compared:
        seeds = "; several p are those of the seeds in turn" if len(rows[0]["seeds"]) > 1 else ""
        said.append(f"McNemar's exact test takes images as independent of each other{seeds}.")
    said.append(
        "Training time is the median of what the runs wrote down, whatever else their machine did. "
        + _where_inference_is_from(rows)
    )
    shifted = [row["name"] for row in rows if row["shifts"]]
    if shifted and len(shifted) < len(rows):
        missing = [row["name"] for row in rows if not row["shifts"]]
        said.append(
            f"Changed pictures were not measured for {', '.join(missing)} (python -m "
            "bcvit_jax.robustness --workdir RUN)."
        )
    if len({images for row in rows if row["shifts"] for images in row["shifts"]["images"]}) > 1:
        said.append("Changed pictures were measured on different numbers of images.")
    if any(len(row["seeds"]) == 1 for row in rows):
        said.append("A row of one seed does not tell how much another seed would change.")
    if differing:
        said.append(f"The runs are of different {' and '.join(differing)}.")
    if any(row["protocol"] == "paper" for row in rows):
        said.append(
            "WARNING: balanced before splitting (data.protocol paper): turned copies of one cell "
            "stand in training and among the held-out images, so the figures are too high."
        )
    return said


def _where_inference_is_from(rows: Sequence[Mapping[str, Any]]) -> str:
    if all(row["inference_from"] == "here" for row in rows):
        return "Inference is the forward pass of an evaluation batch, measured here."
    if all(row["inference_ms"] is None for row in rows):
        return "These runs have not noted how long inference takes (--time measures it)."
    return "Inference is the runs' own evaluation, reading images included (--time measures)."


def csv_text(content: Mapping[str, Any]) -> str:
    """compare.csv: a row a recipe, every figure with its bounds; what is undefined is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    bounds = [f"{name}{end}" for name in FIGURES for end in ("", "_low", "_high")]
    costs = ["parameters", "macs", "flops", "training_ms", "inference_ms"]
    heads = ["name", "seeds", *costs, *bounds, *(f"difference_{b}" for b in bounds)]
    shifted = [f"balanced_accuracy_{name}" for name in SHIFTED]
    writer.writerow([*heads, "mcnemar_p", "verdict", *shifted])
    for row in content["rows"]:
        difference = row["difference"] or {name: {} for name in FIGURES}
        writer.writerow(
            [row["name"], " ".join(map(str, row["seeds"])), *(row[key] for key in costs)]
            + [value for name in FIGURES for value in _bounded(row[name])]
            + [value for name in FIGURES for value in _bounded(difference[name])]
            + [" ".join(f"{test['p']:.6g}" for test in row["mcnemar"]), row["verdict"]]
            + [((row["shifts"] or {}).get(name) or {}).get("value") for name in SHIFTED]
        )
    return text.getvalue()


def picture(content: Mapping[str, Any], kind: str) -> bytes:
    """Top-1 over the multiply-accumulates with intervals and seeds; `kind` is png or svg."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    rows = content["rows"]
    figure = Figure(figsize=(8.0, max(3.8, 1.6 + 0.24 * len(rows))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["tab10"].colors  # pyright: ignore[reportAttributeAccessIssue]
    at: dict[float, int] = {}
    for place, row in enumerate(rows):
        # Networks of the same cost stand side by side.
        steps = at[row["macs"]] = at.get(row["macs"], -1) + 1
        x, top1 = row["macs"] / 1e9 * 1.03**steps, row["top1"]
        low, high = top1["interval"] or (top1["value"], top1["value"])
        bars = [[max(top1["value"] - low, 0)], [max(high - top1["value"], 0)]]
        style = {"color": colours[place % 10], "marker": "s" if row["difference"] is None else "o"}
        axes.errorbar([x], [top1["value"]], bars, capsize=3, ls="", label=row["name"], **style)
        if len(top1["runs"]) > 1:
            axes.plot([x] * len(top1["runs"]), top1["runs"], "_", color="#1b2733", markersize=7)
    axes.set_xscale("log")
    costs = [row["macs"] / 1e9 for row in rows]
    axes.set_xlim(min(costs) / 1.4, max(costs) * 1.03 ** max(at.values()) * 1.4)
    axes.set_xlabel("multiply-accumulates of one image, 10⁹")
    axes.set_ylabel("top-1 accuracy")
    beside = "; of equal cost: side by side" if any(at.values()) else ""
    axes.set_title(
        f"{content['images']:,} held-out images; bars 95 %, dashes seeds{beside}", size=10
    )
    if max(costs) > 5 * min(costs):  # the nine of a decade would run into each other
        axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    axes.tick_params(which="both", labelsize=8)
    axes.grid(color="#e6eaef", linewidth=0.6)
    # Names come from folders: a dollar sign in one is no formula.
    legend = figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    written = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "bcvit"}):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(written, format=kind, dpi=150, metadata=metadata)
    return written.getvalue()


def _tables(content: Mapping[str, Any]) -> list[list[list[str]]]:
    makers = cost_rows, figure_rows, difference_rows, shift_rows
    tables = [make(content) for make in makers]
    return [rows for rows in tables if len(rows) > 1]


def _escaped(cells: Sequence[str]) -> list[str]:
    return [cell.replace("|", "\\|") for cell in cells]


def _bounded(found: Mapping[str, Any]) -> list[float | None]:
    return [found.get("value"), *(found.get("interval") or (None, None))]


def _number(value: float | None, digits: int) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def _range(interval: Sequence[float] | None) -> str:
    return f"[{DASH}]" if interval is None else f"[{interval[0]:.4f}, {interval[1]:.4f}]"
