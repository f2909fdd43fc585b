"""Runs side by side: `python -m bcvit_jax.compare RUN… [--baseline NAME] [--out DIR] [--time]`.

What each network costs, how well it recognises the same held-out images, and what of the
differences is more than chance.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bcvit_jax.errors import RunError, UserError, fail

_HELP = """\
Compare finished runs that hold out the same images: parameters, multiply-accumulates, time an
image, accuracy and macro-F1 with paired intervals of the difference to a baseline, and McNemar's
exact test; and their accuracy under other laboratories' conditions, where python -m
bcvit_jax.robustness has measured it. Runs that differ in their seed alone are one row.
compare.json, .csv, .md, .png and .svg are written into DIR.
"""


class Run(NamedTuple):
    """A finished run; arrays are in the order of the images' sources."""

    name: str
    path: Path
    config: Any
    """RunConfig."""
    provenance: Mapping[str, Any]
    folds: tuple[str, ...]
    class_names: tuple[str, ...]
    source: np.ndarray
    group: np.ndarray
    label: np.ndarray
    predicted: np.ndarray

    @property
    def images(self) -> tuple[Any, ...]:
        """Equal for runs that hold out the same images under the same labels."""
        return self.class_names, self.source.tobytes(), self.label.tobytes()


def load(path: Path, name: str = "") -> Run:
    """The run in a work folder. Errors: UserError where it is none, or not finished."""
    from bcvit_jax.predictions import load_run
    from bcvit_jax.report.numbers import joined
    from bcvit_jax.run_files import read_classifier

    config = read_classifier(path)
    described, predictions = load_run(path)
    folds = tuple(p.fold for p in predictions)
    missing = [f"fold{i}" for i in config.folds if f"fold{i}" not in folds]
    if missing:
        raise UserError(
            f"{path} is not finished ({', '.join(missing)} has no predictions); the command that "
            "started it goes on with it"
        )
    held = joined(predictions)
    order = np.argsort(held.source, kind="stable")
    source, group = (array[order].astype(str) for array in (held.source, held.group))
    label, predicted = (array[order].astype(np.int64) for array in (held.label, held.predicted))
    origin = described["provenance"] or {}
    names = predictions[0].class_names
    name = name or path.resolve().name
    return Run(name, path, config, origin, folds, names, source, group, label, predicted)


def load_all(paths: Sequence[Path]) -> list[Run]:
    """The runs, each with a name of its own: its folder's, or the path where that is not enough.

    Errors: UserError where a folder comes twice.
    """
    resolved = [path.resolve() for path in paths]
    for path, place in zip(paths, resolved, strict=True):
        if resolved.count(place) > 1:
            raise UserError(f"{path} is named twice; name each run once")
    names = [place.name for place in resolved]
    return [
        load(path, name if names.count(name) == 1 else str(path))
        for path, name in zip(paths, names, strict=True)
    ]


def by_images(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in sets that hold out the same images, in the order they came."""
    sets: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        sets.setdefault(run.images, []).append(run)
    return list(sets.values())


def by_recipe(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each recipe and data set by seed, under the folder's name without its seed.

    Errors: UserError where a recipe has a seed twice.
    """
    from bcvit_jax.config import recipe

    pools: dict[str, list[Run]] = {}
    for run in runs:
        made_of = run.provenance.get("dataset_fingerprint"), recipe(run.config)
        pools.setdefault(json.dumps(made_of), []).append(run)
    rows: dict[str, list[Run]] = {}
    for pool in pools.values():
        pool.sort(key=lambda run: run.config.seed)
        seeds = [run.config.seed for run in pool]
        if len(set(seeds)) < len(seeds):
            raise UserError(
                f"{', '.join(run.name for run in pool)} are of one config and share a seed "
                f"({', '.join(map(str, seeds))}); leave out what comes twice"
            )
        rows[_shared_name(pool, rows)] = pool
    return rows


def _shared_name(pool: Sequence[Run], taken: Mapping[str, Any]) -> str:
    """`squeeze_max` for the folders squeeze_max-0 and squeeze_max-1."""
    names = {re.sub(rf"([-_.]?seed[-_.]?|[-_.]){run.config.seed}$", "", run.name) for run in pool}
    name = names.pop()
    return pool[0].name if names or not name or name in taken else name


def compare(
    runs: Sequence[Run], baseline: str = "", timed: bool = False, say: Callable = print
) -> dict[str, Any]:
    """What compare.json holds: rows, the baseline first, and what must be said beside them.

    baseline: a row's name or that of one of its runs; empty is the first row. timed: measure the
    forward pass of each recipe here. Errors: UserError where the held-out images differ.
    """
    from bcvit_jax import compare_table, intervals

    sets = by_images(runs)
    if len(sets) > 1:
        raise UserError(_different(sets))
    rows = by_recipe(runs)
    first = _chosen(rows, baseline)
    order = [first, *(name for name in rows if name != first)]
    found = []
    for name in order:
        if timed:
            say(f"{name}: timing")
        found.append(_row(name, rows[name], rows[first], timed))
    content = {
        "baseline": first,
        "images": len(runs[0].label),
        "groups": len(np.unique(runs[0].group)),
        "folds": runs[0].folds,
        "level": intervals.LEVEL,
        "resamples": intervals.RESAMPLES,
        "rows": found,
    }
    return content | {"notes": compare_table.notes(content, _differing_origin(runs))}


def _different(sets: Sequence[Sequence[Run]]) -> str:
    told = [
        f"{', '.join(run.name for run in runs)} ({len(runs[0].label):,} images of "
        f"{', '.join(runs[0].folds)}, such as {runs[0].source[0]})"
        for runs in sets
    ]
    return (
        f"the runs do not hold out the same images: {'; '.join(told)}; compare runs of one data "
        "set, protocol and choice of folds"
    )


def _chosen(rows: Mapping[str, Sequence[Run]], baseline: str) -> str:
    for name, pool in rows.items():
        if baseline in ("", name, *(run.name for run in pool)):
            return name
    raise UserError(f"--baseline is {baseline!r}; it must be one of {', '.join(rows)}")


def _differing_origin(runs: Sequence[Run]) -> list[str]:
    """What of the runs' provenance differs, though it should not."""
    differ = []
    for key, what in (("dataset_fingerprint", "data sets"), ("commit", "commits of the code")):
        if len({run.provenance.get(key) for run in runs}) > 1:
            differ.append(what)
    return differ


def _row(name: str, pool: Sequence[Run], base: Sequence[Run], timed: bool) -> dict[str, Any]:
    from bcvit_jax import costs, curves, paired

    some, classes = pool[0], len(pool[0].class_names)
    label, group = some.label, some.group
    said, other = (np.stack([run.predicted for run in runs]) for runs in (pool, base))
    row: dict[str, Any] = {
        "name": name,
        "runs": [run.name for run in pool],
        "seeds": [run.config.seed for run in pool],
        "commits": [run.provenance.get("commit") for run in pool],
        "protocol": some.config.data.protocol,
        **costs.of_network(some.config, classes),
        "training_ms": costs.training([run.path for run in pool]),
        **paired.summary(label, said, group, classes),
        "difference": None,
        "mcnemar": [],
        "verdict": "baseline",
        "shifts": curves.of_runs([run.path for run in pool]),
    }
    if timed:
        row["inference_ms"], row["inference_from"] = costs.inference(some.config, classes), "here"
    else:
        folders = [run.path / fold for run in pool for fold in run.folds]
        row["inference_ms"] = costs.evaluation(folders, sum(len(run.label) for run in pool))
        row["inference_from"] = "evaluation"
    if pool is not base:
        row["difference"] = paired.difference(label, said, other, group, classes)
        row["verdict"] = paired.verdict(row["difference"]["top1"])
        for one, two in _pairs(pool, base):
            test = paired.mcnemar(one.predicted == label, two.predicted == label)
            entry = {"run": one.name, "baseline": two.name, "p": test.p}
            entry |= {"only_run": test.only_first, "only_baseline": test.only_second}
            row["mcnemar"].append(entry)
    return row


def _pairs(pool: Sequence[Run], base: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Runs of the same seed, or, where there are none, in the order of their seeds."""
    of_seed = {run.config.seed: run for run in base}
    same = [(run, of_seed[run.config.seed]) for run in pool if run.config.seed in of_seed]
    return same or list(zip(pool, base, strict=False))


def write(content: Mapping[str, Any], out: Path, stem: str = "compare") -> list[Path]:
    """compare.json, .csv, .md, .png and .svg in `out`."""
    from bcvit_jax import compare_table
    from bcvit_jax.files import json_bytes, write_whole

    files = {
        "json": json_bytes(content),
        "csv": compare_table.csv_text(content).encode(),
        "md": compare_table.markdown(content).encode(),
        "png": compare_table.picture(content, "png"),
        "svg": compare_table.picture(content, "svg"),
    }
    paths = [out / f"{stem}.{suffix}" for suffix in files]
    for path, data in zip(paths, files.values(), strict=True):
        write_whole(path, data)
    return paths


def main(arguments: list[str]) -> int:
    """The command line's work; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bcvit_jax.compare",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="work folder of a run")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), metavar="DIR")
    parser.add_argument("--baseline", default="", metavar="NAME", help="a run or row (the first)")
    parser.add_argument("--time", action="store_true", help="measure the forward passes here")
    chosen = parser.parse_args(arguments)
    try:
        content = compare(load_all(chosen.runs), chosen.baseline, chosen.time)
        files = write(content, chosen.out)
    except (UserError, RunError, OSError) as error:
        return fail(error)
    from bcvit_jax import compare_table

    print(f"{compare_table.told(content)}\n\n{files[0]}, .csv, .md, .png, .svg")
    return 0


if __name__ == "__main__":
    from bcvit_jax import runtime

    runtime.restart_with_settings()
    sys.exit(main(sys.argv[1:]))
