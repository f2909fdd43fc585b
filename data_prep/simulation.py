"""Replay active learning on labelled images: does the choice beat chance? (`review simulate`)

Every run begins with the same random images for both kinds of choice; each training begins anew,
and with as many images takes as many steps, so the curves differ by the images alone.
"""

import argparse
import csv
import hashlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from tqdm import tqdm

from data_prep.average_precision import average_precision
from data_prep.detect import check_share, predict_set, read_fields, split_fields, torch_part
from data_prep.errors import BuildError
from data_prep.fields import FieldSet
from data_prep.files import json_text, replace_file
from data_prep.uncertainty import choose

KINDS = ("active", "random")  # the first training of a run is shared, and kept as the first
METRICS = ("AP", "AP50")


@dataclass(frozen=True)
class Result:
    """One training: which run, on which images, and how good the detector was."""

    seed: int
    kind: str
    images: tuple[str, ...]
    figures: dict[str, float]


def simulate(options: argparse.Namespace) -> str:
    """Run or go on with a simulation in `options.out`; returns its table and what it says."""
    for name in ("first", "count", "rounds", "seeds", "steps"):
        if getattr(options, name) < 1:
            raise BuildError(f"--{name} is {getattr(options, name)}, but must be at least 1.")
    check_share("--hold-out", options.hold_out, 0.99)
    options.only = None
    fields = read_fields(options)
    train, test = split_fields(fields, options.hold_out, seed=0)
    needed = options.first + options.count * (options.rounds - 1)
    if len(train.fields) < needed or not any(item.boxes for item in test.fields):
        raise BuildError(
            f"{len(train.fields)} images to choose from and {len(test.fields)} to judge on are too "
            f"few for {options.rounds} rounds, which label {needed}: give more boxes, or smaller "
            "--first, --count and --rounds."
        )
    results = Journal(options.out / "runs.jsonl", _fingerprint(options, fields))
    total = options.seeds * (1 + len(KINDS) * (options.rounds - 1))
    with tqdm(total=total, desc="trainings", disable=None) as bar:
        for seed in range(options.seeds):
            for kind in KINDS:
                _run(seed, kind, train, test, options, results, bar)
    return _write_results(results.rows, options.out)


def _fingerprint(options: argparse.Namespace, fields: FieldSet) -> dict[str, Any]:
    wanted = ("hold_out", "first", "count", "steps", "size", "architecture", "weights")
    rows = [
        (item.image, [(box.label, *box.corners) for box in item.boxes]) for item in fields.fields
    ]
    return {
        **{name: getattr(options, name) for name in wanted},
        "boxes": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        "images": len(rows),
    }


class Journal:
    """The finished trainings, a line each, so that a run goes on where it was."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.rows = path, []
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        rows = [self._parsed(line) for line in lines]
        if not lines:
            replace_file(path, lambda file: file.write((json.dumps(settings) + "\n").encode()))
        elif rows[0] != settings:
            raise BuildError(
                f"{path} is of a simulation with other boxes or settings: choose another --out."
            )
        for row in filter(None, rows[1:]):
            self.rows.append(Result(row["seed"], row["kind"], tuple(row["images"]), row["figures"]))

    @staticmethod
    def _parsed(line: str) -> dict[str, Any] | None:
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            return None  # the last line of a killed run

    def find(self, seed: int, kind: str, count: int) -> Result | None:
        """The finished training of a run on so many images; the first is of both kinds."""
        for row in self.rows:
            if (row.seed, row.kind, len(row.images)) == (seed, kind, count):
                return row
        return None

    def add(self, row: Result) -> None:
        """Append one training."""
        self.rows.append(row)
        text = {"seed": row.seed, "kind": row.kind, "images": row.images, "figures": row.figures}
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * (not self._ends_whole()) + json.dumps(text) + "\n")

    def _ends_whole(self) -> bool:
        return self.path.read_bytes().endswith(b"\n")


def _run(
    seed: int,
    kind: str,
    train: FieldSet,
    test: FieldSet,
    options: argparse.Namespace,
    results: Journal,
    bar: tqdm,
) -> None:
    """One run: label, train, judge, choose, and again."""
    pool = [item.image for item in train.fields]
    order = np.random.default_rng(seed).permutation(len(pool))
    labelled = [pool[at] for at in order[: options.first]]
    for number in range(options.rounds):
        done = results.find(seed, KINDS[0] if number == 0 else kind, len(labelled))
        following = results.find(seed, kind, len(labelled) + options.count)
        to_choose = following is None and number + 1 < options.rounds
        detector: Any = None
        if done is None or (to_choose and kind == "active"):
            detector = _train(train.of_images(labelled), options, seed)
        if done is None:
            found = predict_set(detector, test, options.images, progress=False)
            figures = average_precision(test, found)["all"]
            results.add(Result(seed, kind, tuple(labelled), figures))
        if number or kind == KINDS[0]:
            bar.update()
        if to_choose:
            chooser = detector if kind == "active" else None
            labelled = labelled + _next(chooser, train, labelled, options, seed + number)
        elif following is not None:
            labelled = list(following.images)


def _train(fields: FieldSet, options: argparse.Namespace, seed: int) -> Any:
    from data_prep.training import Recipe, train_detector

    batch = 4
    epochs = math.ceil(options.steps / math.ceil(len(fields.fields) / batch))
    detector = torch_part().create_detector(
        options.architecture, fields.labels, options.weights, options.size, seed
    )
    recipe = Recipe(epochs=epochs, batch_size=batch, seed=seed)
    train_detector(detector, fields, options.images, recipe)
    return detector


def _next(
    detector: Any,
    train: FieldSet,
    labelled: Sequence[str],
    options: argparse.Namespace,
    seed: int,
) -> list[str]:
    """The images to label next: by the detector, or at random if there is none."""
    from data_prep.review import look_at

    pool = sorted({item.image for item in train.fields}.difference(labelled))
    if detector is None:
        order = np.random.default_rng([seed, len(labelled)]).permutation(len(pool))
        return [pool[at] for at in order[: options.count]]
    views = look_at(detector, pool, options.images, progress=False)
    return [pool[at] for at in choose(views.worth, views.features, options.count, seed)]


def _write_results(rows: Sequence[Result], out: Path) -> str:
    """Write runs.csv, summary.json and the plot; returns the table and the plain conclusion."""
    from data_prep.curves import draw_simulation

    figures: dict[str, dict[str, dict[int, dict[int, float]]]] = {
        metric: {kind: defaultdict(dict) for kind in KINDS} for metric in METRICS
    }
    for row in rows:
        first = len(row.images) == min(len(other.images) for other in rows)
        for kind in KINDS if first else (row.kind,):
            for metric in METRICS:
                figures[metric][kind][len(row.images)][row.seed] = row.figures[metric]
    lines, summary = [], {}
    for metric, kinds in figures.items():
        lines.append(f"{metric:6} labelled   random   active   difference (95 % interval)")
        for count in sorted(kinds["random"]):
            summary[f"{metric} {count}"] = row = _compare(
                kinds["random"][count], kinds["active"][count]
            )
            lines.append(
                f"{'':6} {count:8}   {row['random']:6.3f}   {row['active']:6.3f}   "
                f"{_difference(row)}"
            )
        plotted = {
            kind: {count: list(of.values()) for count, of in curve.items()}
            for kind, curve in kinds.items()
        }
        draw_simulation(plotted, metric, out / f"{metric}.png")
    _write_csv(rows, out / "runs.csv")
    text = json_text(summary)
    replace_file(out / "summary.json", lambda file: file.write(text.encode()))
    lines.append(_conclusion(figures["AP50"]))
    return "\n".join(lines)


def _compare(random: dict[int, float], active: dict[int, float]) -> dict[str, float]:
    """Means, and the paired difference over seeds; of two seeds or more, its 95 % t-interval."""
    seeds = sorted(set(random) & set(active))
    difference = np.array([active[seed] - random[seed] for seed in seeds])
    mean = float(difference.mean())
    row = {
        "random": float(np.mean([random[seed] for seed in seeds])),
        "active": float(np.mean([active[seed] for seed in seeds])),
        "difference": mean,
    }
    if len(seeds) > 1:
        spread = difference.std(ddof=1) / math.sqrt(len(seeds))
        half = float(stats.t.ppf(0.975, len(seeds) - 1) * spread)
        row |= {"low": mean - half, "high": mean + half}
    return row


def _difference(row: dict[str, float]) -> str:
    if "low" not in row:
        return f"{row['difference']:+.3f} (one run has no interval)"
    return f"{row['difference']:+.3f} ({row['low']:+.3f} … {row['high']:+.3f})"


def _conclusion(kinds: dict[str, dict[int, dict[int, float]]]) -> str:
    """What the areas under the curves say, in one sentence."""
    counts = sorted(kinds["random"])[1:]
    if not counts:
        return "One round compares nothing: give --rounds 2 or more."
    areas = {
        kind: {
            seed: float(np.mean([kinds[kind][count][seed] for count in counts]))
            for seed in kinds[kind][counts[-1]]
        }
        for kind in KINDS
    }
    row = _compare(areas["random"], areas["active"])
    if row.get("low", 0) > 0:
        verdict = "the active choice helps"
    elif row.get("high", 0) < 0:
        verdict = "the active choice hurts"
    else:
        verdict = "no difference is shown"
    return (
        "Mean AP50 over the rounds after the first, active minus random: "
        f"{_difference(row)}: {verdict}."
    )


def _write_csv(rows: Sequence[Result], path: Path) -> None:
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(("seed", "kind", "labelled", *METRICS))
    for row in rows:
        values = [f"{row.figures[metric]:.4f}" for metric in METRICS]
        table.writerow((row.seed, row.kind, len(row.images), *values))
    replace_file(path, lambda output: output.write(file.getvalue().encode()))
