"""Scoring an exported network on a labelled data set, of another laboratory too."""

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bcvit_jax.errors import UserError
from bcvit_jax.evaluate import evaluate_fold
from bcvit_jax.exported import BatchStep, untrained_folds
from bcvit_jax.files import write_json
from bcvit_jax.journal import progress
from bcvit_jax.predictions import Predictions, save_predictions
from bcvit_jax.summary import summarise_run, table


class Scored(NamedTuple):
    """The cells of a data set whose class the network knows, as `evaluate` wants them."""

    labels: Mapping[str, Any]
    sources: Mapping[str, Any]
    groups: Mapping[str, Any]
    class_names: tuple[str, ...]


def score(classifier, dataset, out: Path, renamed: Mapping[str, str], options) -> dict[str, Any]:
    """Score the cells of a data set whose class the network knows; returns what the JSON holds.

    `renamed` gives the network's name of a class of the data set. Of the data set that the networks
    were trained on, only folds that none was trained on are scored. Errors: UserError where no
    class is common to both, or no such fold is left.
    """
    mapped = matched(dataset.class_names, classifier.class_names, renamed)
    folds, seen = _chosen(dataset, options.folds, classifier.card)
    known = {fold: np.flatnonzero(mapped[dataset.labels[fold]] >= 0) for fold in folds}
    if not any(map(len, known.values())):
        raise UserError(f"{', '.join(folds)} hold no cell whose class the network knows")
    scored = Scored(
        {f: mapped[dataset.labels[f]][known[f]].astype(np.int32) for f in folds},
        {f: np.asarray(dataset.sources[f])[known[f]] for f in folds},
        {f: np.asarray(dataset.groups[f])[known[f]] for f in folds},
        classifier.class_names,
    )
    found = _evaluated(classifier, dataset, scored, known, options)
    summary = summarise_run(found)
    save_predictions(out.with_suffix(""), _together(found))
    left_out = {
        name: int(sum((dataset.labels[f] == place).sum() for f in folds))
        for place, name in enumerate(dataset.class_names)
        if mapped[place] < 0
    }
    absent = [n for i, n in enumerate(classifier.class_names) if i not in mapped]
    content = {
        "scored": sum(map(len, known.values())),
        "folds": folds,
        "held_out": None if seen is None else True,
        "left_out_as_trained_on": seen or [],
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


def matched(theirs: Sequence[str], ours: Sequence[str], renamed: Mapping[str, str]) -> np.ndarray:
    """The place of each of `theirs` among `ours`, int [n], −1 where it has none; capitals apart.

    Errors: UserError where `renamed` has other names, classes can't be told apart, or none matches.
    """
    places = {name.casefold(): place for place, name in enumerate(ours)}
    keys = [name.casefold() for name in theirs]
    if alike := [n for n, key in zip(theirs, keys, strict=True) if keys.count(key) > 1]:
        raise UserError(
            f"the data set's classes {', '.join(alike)} differ in capitals alone, which don't "
            "matter here; name them otherwise, or join them, and build it again"
        )
    if strange := [name for name in renamed if name.casefold() not in keys]:
        raise UserError(
            f"--map renames {', '.join(strange)}; the data set's classes are {', '.join(theirs)}"
        )
    if strange := [name for name in renamed.values() if name.casefold() not in places]:
        raise UserError(
            f"--map gives the name {', '.join(strange)}; the network's classes are "
            f"{', '.join(ours)}"
        )
    new = {name.casefold(): to.casefold() for name, to in renamed.items()}
    mapped = np.array([places.get(new.get(key, key), -1) for key in keys])
    if (mapped < 0).all():
        raise UserError(
            f"none of the data set's classes ({', '.join(theirs)}) is one of the network's "
            f"({', '.join(ours)}); name them with --map THEIRS=OURS,…"
        )
    return mapped


def _chosen(dataset, names: str, card: Mapping[str, Any]) -> tuple[list[str], list[str] | None]:
    """The folds to score, and those that --folds does not name and that are left out as trained
    on; None in their place where the networks were trained on another data set.
    """
    named = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if unknown := [name for name in named if name not in dataset.folds]:
        raise UserError(
            f"--folds names {', '.join(unknown)}; the data set has {', '.join(dataset.folds)}"
        )
    if (card.get("dataset") or {}).get("fingerprint") != dataset.fingerprint:
        return named or list(dataset.folds), None
    new = untrained_folds(card["networks"], dataset.folds)
    if not new:
        raise UserError(
            "every fold of this data set trained one of the networks, so none may be scored; score "
            "a data set that is new to them, or export one fold's network"
        )
    if trained := [name for name in named if name not in new]:
        raise UserError(
            f"--folds names {', '.join(trained)}, on which a network was trained; of this data set "
            f"{', '.join(new)} may be scored"
        )
    if named:
        return named, []
    seen = [name for name in dataset.folds if name not in new]
    if seen:
        print(f"left out, since a network was trained on them: {', '.join(seen)}\n")
    return new, seen


def _evaluated(classifier, dataset, scored: Scored, known, options) -> list[Predictions]:
    """The predictions of each fold's cells `known[fold]`, where there are any."""
    step = BatchStep(classifier, options.batch_size)

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
    with progress("score", sum(map(len, known.values())), "img") as bar:
        for fold, rows in known.items():
            if len(rows):
                run = lambda _, images: step(images)  # noqa: E731
                result, _ = evaluate_fold(run, None, scored, fold, batches(fold, bar))
                found.append(result)
    return found


def read_cell(dataset, fold: str, index: int, classifier):
    """A cell of a data set as the network's input."""
    return classifier.preprocessing(dataset.image(fold, int(index)))


def _together(found):
    joined = {
        name: np.concatenate([getattr(part, name) for part in found])
        for name in ("source", "group", "label", "probabilities", "kept")
    }
    return dataclasses.replace(found[0], fold="all", **joined)
