"""Scoring an exported network on a labelled data set, of another laboratory too."""

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bcvit_jax.errors import UserError
from bcvit_jax.evaluate import evaluate_fold
from bcvit_jax.exported import BatchStep
from bcvit_jax.files import write_json
from bcvit_jax.journal import progress
from bcvit_jax.predictions import save_predictions
from bcvit_jax.summary import summarise_run, table


class Scored(NamedTuple):
    """The cells of a data set whose class the network knows, as `evaluate` wants them."""

    labels: Mapping[str, Any]
    sources: Mapping[str, Any]
    groups: Mapping[str, Any]
    class_names: tuple[str, ...]


def score(classifier, dataset, out: Path, renamed: Mapping[str, str], options) -> dict[str, Any]:
    """Score the cells of a data set whose class the network knows; returns what the JSON holds.

    `renamed` gives the network's name of a class of the data set. Errors: UserError where no class
    is common to both.
    """
    ours = {name.casefold(): place for place, name in enumerate(classifier.class_names)}
    theirs = [renamed.get(name, name).casefold() for name in dataset.class_names]
    mapped = np.array([ours.get(name, -1) for name in theirs])
    unknown = [n for n, place in zip(dataset.class_names, mapped, strict=True) if place < 0]
    if (mapped < 0).all():
        raise UserError(
            f"none of the data set's classes ({', '.join(dataset.class_names)}) is one of the "
            f"network's ({', '.join(classifier.class_names)}); name them with --map THEIRS=OURS,…"
        )
    folds = _chosen(dataset, options.folds)
    known = {fold: np.flatnonzero(mapped[dataset.labels[fold]] >= 0) for fold in folds}
    if not any(map(len, known.values())):
        raise UserError(f"{', '.join(folds)} hold no cell whose class the network knows")
    scored = Scored(
        {f: mapped[dataset.labels[f]][known[f]].astype(np.int32) for f in folds},
        {f: np.asarray(dataset.sources[f])[known[f]] for f in folds},
        {f: np.asarray(dataset.groups[f])[known[f]] for f in folds},
        classifier.class_names,
    )
    step = BatchStep(classifier, options.batch_size)
    total = sum(len(rows) for rows in known.values())

    def batches(fold: str, bar):
        rows, size = known[fold], options.batch_size
        with ThreadPoolExecutor(options.threads) as pool:
            for first in range(0, len(rows), size):
                chosen = rows[first : first + size]
                images = list(pool.map(lambda i: read_cell(dataset, fold, i, classifier), chosen))
                index = np.full(size, -1, np.int64)
                index[: len(chosen)] = np.arange(first, first + len(chosen))
                label = np.zeros(size, np.int32)
                label[: len(chosen)] = scored.labels[fold][first : first + len(chosen)]
                yield {"image": images, "label": label, "index": index, "mask": index >= 0}
                bar.update(len(chosen))

    found = []
    with progress("score", total, "img") as bar:
        for fold in folds:
            if len(known[fold]):
                run = lambda _, images: step(images)  # noqa: E731
                result, _ = evaluate_fold(run, None, scored, fold, batches(fold, bar))
                found.append(result)
    summary = summarise_run(found)
    everything = _together(found)
    save_predictions(out.with_suffix(""), everything)
    left_out = {
        name: int(sum((dataset.labels[f] == place).sum() for f in folds))
        for place, name in enumerate(dataset.class_names)
        if name in unknown
    }
    absent = [n for i, n in enumerate(classifier.class_names) if i not in mapped]
    content = {
        "scored": total,
        "folds": folds,
        "turns": classifier.turns,
        "unknown_to_the_network": left_out,
        "absent_from_the_data_set": absent,
        "donor_separated": dataset.donor_separated,
        "fingerprint": dataset.fingerprint,
        "pooled": summary["pooled"],
        "model": {k: classifier.card.get(k) for k in ("title", "commit", "networks", "dataset")},
    }
    write_json(out.with_suffix(".json"), content)
    print(table(summary))
    if left_out:
        named = ", ".join(f"{name} ({count})" for name, count in left_out.items())
        print(f"\nclasses that the network does not know, left out: {named}")
    if absent:
        print(f"classes that this data set does not have: {', '.join(absent)}")
    return content


def _chosen(dataset, names: str) -> list[str]:
    """The folds that `--folds` names, all where it names none."""
    chosen = [name.strip() for name in names.split(",") if name.strip()] or list(dataset.folds)
    if unknown := [name for name in chosen if name not in dataset.folds]:
        raise UserError(
            f"--folds names {', '.join(unknown)}; the data set has {', '.join(dataset.folds)}"
        )
    return list(dict.fromkeys(chosen))


def read_cell(dataset, fold: str, index: int, classifier):
    """A cell of a data set as the network's input."""
    return classifier.preprocessing(dataset.image(fold, int(index)))


def _together(found):
    joined = {
        name: np.concatenate([getattr(part, name) for part in found])
        for name in ("source", "group", "label", "probabilities", "kept")
    }
    return dataclasses.replace(found[0], fold="all", **joined)
