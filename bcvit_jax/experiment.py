"""A run from its settings to its report: the checks, the work folder, fold after fold."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bcvit_jax.balance import LEAK, under_protocol
from bcvit_jax.config import RunConfig, differences, from_dict, to_dict
from bcvit_jax.data import CellDataset, open_dataset
from bcvit_jax.errors import UserError
from bcvit_jax.files import write_json
from bcvit_jax.fold_run import FoldRun, balanced_counts, check_run
from bcvit_jax.journal import Journal
from bcvit_jax.models import compiler_options
from bcvit_jax.predictions import Predictions, load_predictions, save_predictions
from bcvit_jax.pretraining import PICTURES, encoder_file, pretrain_fold
from bcvit_jax.program import make_mesh, network_config
from bcvit_jax.provenance import continued, provenance
from bcvit_jax.run_files import refuse_other_form
from bcvit_jax.runtime import described
from bcvit_jax.signals import Signals
from bcvit_jax.summary import summarise_run, table
from bcvit_jax.train import train_fold

# What may lie in a work folder before its run: logs of the shell, and what a killed start left.
_HARMLESS = (".log", ".out", ".err", ".txt", ".partial")


def run(values: Mapping[str, Any], workdir: Path, signals: Signals) -> None:
    """Train every fold that `values` (a config as a plain dict) names, and report; or pretrain.

    Errors: UserError before any work and any file in `workdir` for what the user can mend;
    RunError, FloatingPointError or OSError where training fails; Stop after a signal.
    """
    config = from_dict(values)
    if config.distributed:
        _join_cluster()
    dataset = open_dataset(config.data.path, cache=config.data.cache)
    dataset = under_protocol(dataset, config.data.protocol, config.data.balance_target)
    check_run(config, dataset)
    old = _check_workdir(config, dataset, workdir)
    names = [dataset.folds[i] for i in config.folds]
    if config.mae.ratio:
        with _held(workdir):
            _pretrain(config, dataset, workdir, signals, old)
        return
    with _held(workdir):
        done = {name: _finished(workdir, name) for name in dataset.folds}
        missing = [i for i in config.folds if done[dataset.folds[i]] is None]
        if missing:
            refuse_other_form(workdir, "provenance.json", str(config.data.normalisation))
        if missing or not old:
            _record(config, dataset, workdir, old)
            _say(_greeting(config, dataset, workdir))
        mesh, journal = make_mesh(), Journal(workdir)
        with contextlib.closing(journal):
            for held_out in missing:
                name = dataset.folds[held_out]
                fold = FoldRun(config, dataset, held_out, workdir, mesh, _say, signals)
                done[name] = predictions = train_fold(fold, journal)
                if len(names) > 1:
                    _say(f"\n{name}, held out:\n{table(summarise_run([predictions]))}\n")
        if not missing:
            _say(f"{workdir} is finished ({', '.join(names)}); --workdir starts a run elsewhere\n")
        if jax.process_index() == 0:
            _report(config, dataset, workdir, [p for p in done.values() if p])


def _pretrain(
    config: RunConfig, dataset: CellDataset, workdir: Path, signals: Signals, old: dict | None
) -> None:
    """Pretrain with each fold held out, or with none; nothing is scored."""
    mesh, journal = make_mesh(), Journal(workdir)
    folds = [
        FoldRun(config, dataset, held_out, workdir, mesh, _say, signals)
        for held_out in config.folds or (None,)
    ]
    missing = [fold for fold in folds if not encoder_file(fold).exists()]
    if missing or not old:
        _record(config, dataset, workdir, old)
        _say(_greeting(config, dataset, workdir))
    if not config.folds:
        _say(
            "warning: pretraining holds out no fold; no cell of this data set may be scored with "
            "what comes of it, and such a run is refused"
        )
    with contextlib.closing(journal):
        for fold in missing:
            pretrain_fold(fold, journal)
    if not missing:
        _say(f"{workdir} is finished ({', '.join(fold.name for fold in folds)})")
    pictures = ", ".join(str(workdir / fold.name / PICTURES) for fold in folds)
    _say(f"\npictures: {pictures}\nto begin with it: --config.weights.path={workdir}")


def _report(
    config: RunConfig, dataset: CellDataset, workdir: Path, predictions: list[Predictions]
) -> None:
    """Write report.json, report.html and the confusion matrix of all folds that are finished."""
    from bcvit_jax.report.writing import write_report  # here: training begins a second sooner

    classes = len(dataset.class_names)
    counts = {f: np.bincount(dataset.labels[f], minlength=classes) for f in dataset.folds}
    training = {p.fold: _read_json(workdir / p.fold / "training.json") for p in predictions}
    some = next(iter(training.values()))
    content = {
        "title": config.title,
        "config": to_dict(config),
        "provenance": _read_json(workdir / "provenance.json"),
        "dataset": {
            "path": config.data.path,
            "class_names": dataset.class_names,
            "donor_separated": dataset.donor_separated,
            "group_kind": dataset.group_kind,
            "fingerprint": dataset.fingerprint,
            "protocol": config.data.protocol,
            "counts": counts,
            "balanced": {
                p.fold: balanced_counts(config, dataset, dataset.folds.index(p.fold))
                for p in predictions
            },
        },
        "training": {
            "parameters": some.get("parameters"),
            "steps": {fold: facts.get("steps") for fold, facts in training.items()},
            "minutes": {fold: facts.get("minutes") for fold, facts in training.items()},
        },
    }
    summary = write_report(workdir, content, predictions, dataset)
    for p in predictions:
        if not (workdir / p.fold / "predictions.csv").exists():
            save_predictions(workdir / p.fold / "predictions", p)
    _say(table(summary))
    if config.data.protocol == "paper":
        _say(f"\nWARNING: {LEAK}")
    _say(f"\nreport: {workdir / 'report.html'}")


def _check_workdir(config: RunConfig, dataset: CellDataset, workdir: Path) -> dict | None:
    """Provenance of the run that is there already, None for a fresh folder."""
    mend = "choose another --workdir"
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"work folder {workdir} is a file; {mend}")
    if not (workdir / "config.json").exists():
        held = sorted(p.name for p in workdir.iterdir()) if workdir.exists() else []
        strange = [n for n in held if not n.startswith(".") and not n.endswith(_HARMLESS)]
        if set(strange) - {"provenance.json"}:
            raise UserError(
                f"work folder {workdir} holds something that is no run ({', '.join(held[:5])}); "
                f"{mend}"
            )
        return None
    old, origin = _read_json(workdir / "config.json"), _read_json(workdir / "provenance.json")
    if not old or not origin:
        raise UserError(
            f"config.json or provenance.json in work folder {workdir} is no whole JSON of a run; "
            f"restore it, or {mend}"
        )
    if differ := differences(old, config):
        raise UserError(
            f"work folder {workdir} holds a run of another config: {'; '.join(differ)}; take the "
            f"old settings, or {mend}"
        )
    if origin.get("dataset_fingerprint") != dataset.fingerprint:
        raise UserError(
            f"work folder {workdir} holds a run on another data set than {config.data.path} "
            f"(fingerprints {origin.get('dataset_fingerprint')} and {dataset.fingerprint}); {mend}"
        )
    return origin


def _finished(workdir: Path, fold: str) -> Predictions | None:
    path = workdir / fold / "predictions"
    return load_predictions(path) if path.with_suffix(".npz").exists() else None


def _record(config: RunConfig, dataset: CellDataset, workdir: Path, old: dict | None) -> None:
    """config.json and provenance.json, in an order that a kill between them does no harm."""
    if jax.process_index() != 0:
        return
    origin = provenance(config.seed, dataset.fingerprint)
    origin["preprocessing_form"] = str(config.data.normalisation)
    write_json(workdir / "provenance.json", continued(old, origin) if old else origin)
    write_json(workdir / "config.json", to_dict(config))


@contextlib.contextmanager
def _held(workdir: Path) -> Iterator[None]:
    """The work folder for this process alone; the system lets go of it however the process ends."""
    if jax.process_index() != 0:
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / ".lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is training in {workdir}; wait for it, or choose another "
                "--workdir"
            ) from None
        yield


def _join_cluster() -> None:
    # JAX's own service would take SIGTERM away from `signals`, and save nothing.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"config.distributed is True, but jax finds no cluster ({error}); start one process a "
            "host under SLURM, Open MPI or another launcher that jax.distributed knows, or set it "
            "to False"
        ) from None


def _greeting(config: RunConfig, dataset: CellDataset, workdir: Path) -> str:
    total = sum(len(labels) for labels in dataset.labels.values())
    devices = jax.devices()
    leak = f"\nWARNING: {LEAK}" if config.data.protocol == "paper" else ""
    donors = "" if dataset.donor_separated else "; donors may be shared between folds"
    options = compiler_options(network_config(config, len(dataset.class_names)))
    return (
        f"{config.title}\n"
        f"  network   {config.model['name']}\n"
        f"  data      {config.data.path}: {total:,} cells, {len(dataset.class_names)} classes, "
        f"{len(dataset.folds)} folds{donors}\n"
        f"  held out  {', '.join(dataset.folds[i] for i in config.folds) or 'nothing'}\n"
        f"  devices   {len(devices)} × {devices[0].device_kind}\n"
        f"  folder    {workdir}\n"
        f"  settings  {described(os.environ, options) or 'none'}{leak}"
    )


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)
