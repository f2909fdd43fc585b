"""A run from its settings to its report: checks, folds one after the other, resume, signals."""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bcvit_jax import __version__
from bcvit_jax.config import RunConfig, differences, from_dict, to_dict
from bcvit_jax.data import CellDataset, open_dataset
from bcvit_jax.errors import UserError
from bcvit_jax.evaluate import Predictions, load_predictions, summarise_run, table, write_whole
from bcvit_jax.report import to_json, write_report
from bcvit_jax.train import (
    Diverged,
    FoldRun,
    Journal,
    Stop,
    check_run,
    make_mesh,
    train_fold,
)


class Signals:
    """SIGTERM and Ctrl-C ask for an end after the present step; a second one ends at once."""

    def __init__(self):
        self.received: int | None = None

    def asked(self) -> bool:
        return self.received is not None

    def _note(self, number: int, _frame: Any) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number
        print("\nsaving; once more to end without saving", file=sys.stderr)

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        before = {n: signal.signal(n, self._note) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run(values: Mapping[str, Any], workdir: Path) -> int:
    """Train every fold that `values` (a config as plain dict) names; returns the exit code.

    0 finished, 1 the loss was not finite, 130 / 143 ended by Ctrl-C / SIGTERM after saving.
    UserError, before any work and any file, for what the user can mend.
    """
    config = from_dict(values)
    if config.distributed:
        jax.distributed.initialize()
    dataset = open_dataset(config.data.path, cache=config.data.cache)
    check_run(config, dataset)
    old = _check_workdir(config, dataset, workdir)
    say = _say if jax.process_index() == 0 else lambda _: None
    names = [dataset.folds[i] for i in config.folds]
    done = {name: _finished(workdir, name) for name in names}
    if old and all(done.values()):
        say(f"{workdir} is finished: {', '.join(names)}; delete it or choose another --workdir")
        _report(config, dataset, workdir, old, [p for p in done.values() if p], {})
        return 0
    provenance = old or _provenance(config, dataset)
    if jax.process_index() == 0:
        _write_json(workdir / "config.json", to_dict(config))
        _write_json(workdir / "provenance.json", provenance)
    say(_greeting(config, dataset, workdir))

    signals, journal = Signals(), Journal(workdir)
    facts: dict[str, Any] = {}
    mesh = make_mesh()
    with signals.heeded():
        try:
            for held_out, name in zip(config.folds, names, strict=True):
                if done[name] is not None:
                    say(f"{name}: finished before")
                    continue
                fold = FoldRun(config, dataset, held_out, workdir, mesh, say, signals.asked)
                begin = time.perf_counter()
                done[name], facts = train_fold(fold, journal)
                facts["minutes_of_last_fold"] = round((time.perf_counter() - begin) / 60, 1)
                say(f"\n{name}, held out:\n{table(summarise_run([done[name]]))}\n")
        except Stop as stop:
            say(f"{stop}; the same command again goes on from there")
            return 128 + (signals.received or signal.SIGINT)
        except (Diverged, FloatingPointError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        finally:
            journal.close()
    _report(config, dataset, workdir, provenance, [p for p in done.values() if p], facts)
    return 0


def _report(
    config: RunConfig,
    dataset: CellDataset,
    workdir: Path,
    provenance: Mapping[str, Any],
    predictions: list[Predictions],
    facts: Mapping[str, Any],
) -> None:
    """report.json, report.html and the confusion matrix; prints the table."""
    if jax.process_index() != 0:
        return
    if not facts:
        with contextlib.suppress(OSError, KeyError, json.JSONDecodeError):
            facts = json.loads((workdir / "report.json").read_text())["run"]["training"]
    classes = len(dataset.class_names)
    counts = {f: np.bincount(dataset.labels[f], minlength=classes) for f in dataset.folds}
    balanced = {}
    for held_out in config.folds:
        fold = FoldRun(config, dataset, held_out, workdir, make_mesh(), _say, lambda: False)
        balanced[fold.name] = fold.balanced_counts()
    run = {
        "title": config.title,
        "config": to_dict(config),
        "provenance": provenance,
        "dataset": {
            "path": config.data.path,
            "class_names": list(dataset.class_names),
            "donor_separated": dataset.donor_separated,
            "group_kind": dataset.group_kind,
            "fingerprint": dataset.fingerprint,
            "counts": counts,
            "balanced": balanced,
        },
        "training": dict(facts),
    }
    summary = write_report(workdir, run, predictions)
    _say(table(summary))
    _say(f"\nreport: {workdir / 'report.html'}")


def _check_workdir(config: RunConfig, dataset: CellDataset, workdir: Path) -> dict | None:
    """Provenance of the run that is there already, None for a fresh folder."""
    path = workdir / "config.json"
    if not path.exists():
        if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
            raise UserError(
                f"work folder {workdir} holds something that is no run; choose another --workdir"
            )
        return None
    try:
        old = json.loads(path.read_text("utf-8"))
        provenance = json.loads((workdir / "provenance.json").read_text("utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"work folder {workdir} can't be read ({error}); choose another --workdir"
        ) from None
    differ = differences(old, to_dict(config))
    if differ:
        raise UserError(
            f"work folder {workdir} holds a run of another config: {'; '.join(differ)}. Choose "
            "another --workdir, or take the old settings"
        )
    if provenance.get("dataset_fingerprint") != dataset.fingerprint:
        raise UserError(
            f"work folder {workdir} holds a run on another data set than {config.data.path} "
            "(fingerprints differ); choose another --workdir"
        )
    return provenance


def _finished(workdir: Path, fold: str) -> Predictions | None:
    path = workdir / fold / "predictions"
    return load_predictions(path) if path.with_suffix(".npz").exists() else None


def _provenance(config: RunConfig, dataset: CellDataset) -> dict[str, Any]:
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")
    return {
        "bcvit": __version__,
        "commit": _commit(),
        "command": " ".join(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seed": config.seed,
        "dataset_fingerprint": dataset.fingerprint,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [f"{d.platform}: {d.device_kind}" for d in jax.devices()],
        "packages": {name: metadata.version(name) for name in packages},
    }


def _commit() -> str | None:
    """The checkout's commit, with `+changes` where files differ from it; None outside git."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        tracked = git("ls-files", "--error-unmatch", Path(__file__).name)
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "") if tracked else None
    except (OSError, subprocess.CalledProcessError):
        return None


def _greeting(config: RunConfig, dataset: CellDataset, workdir: Path) -> str:
    total = sum(len(labels) for labels in dataset.labels.values())
    devices = jax.devices()
    donors = "" if dataset.donor_separated else "; donors may be shared between folds"
    return (
        f"{config.title}\n"
        f"  network   {config.model['name']}\n"
        f"  data      {config.data.path}: {total:,} cells, {len(dataset.class_names)} classes, "
        f"{len(dataset.folds)} folds{donors}\n"
        f"  held out  {', '.join(dataset.folds[i] for i in config.folds)}\n"
        f"  devices   {len(devices)} × {devices[0].device_kind}\n"
        f"  folder    {workdir}"
    )


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_whole(path, (json.dumps(to_json(values), indent=1) + "\n").encode())


def _say(text: str) -> None:
    print(text, flush=True)
