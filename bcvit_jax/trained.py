"""A trained run, opened again: its settings, its data set, and the network of a fold."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bcvit_jax.balance import under_protocol
from bcvit_jax.checkpoint import Checkpoints
from bcvit_jax.config import RunConfig
from bcvit_jax.data import open_dataset
from bcvit_jax.dataset import CellDataset
from bcvit_jax.errors import UserError
from bcvit_jax.exported import Preprocessing, preprocessing_of
from bcvit_jax.program import Program, make_mesh, make_program
from bcvit_jax.run_files import (
    read_classifier,
    read_json,
    refuse_other_form,
    refuse_pretraining,
)


class Network(NamedTuple):
    """A fold's newest good checkpoint."""

    step: int
    program: Program
    variables: Any
    """Of a state: all arrays of the network."""
    preprocessing: Preprocessing


def open_run(workdir: Path, data: str = "") -> tuple[RunConfig, CellDataset]:
    """The run's settings and its data set, at `data` where that is not empty.

    Errors: UserError where `workdir` is no run or a pretraining, or the data set is another.
    """
    config = read_classifier(workdir)
    origin = read_json(workdir / "provenance.json")
    dataset = open_dataset(data or config.data.path, cache=config.data.cache)
    dataset = under_protocol(dataset, config.data.protocol, config.data.balance_target)
    if dataset.fingerprint != origin.get("dataset_fingerprint"):
        raise UserError(
            f"{workdir} was trained on another data set than {data or config.data.path} "
            f"(fingerprints {origin.get('dataset_fingerprint')} and {dataset.fingerprint}); name "
            "its own with --data"
        )
    return config, dataset


def finished_folds(workdir: Path) -> list[str]:
    """The held-out folds that the run's report counts; UserError where there is none."""
    refuse_pretraining(workdir)
    return [entry["fold"] for entry in read_json(workdir / "report.json")["folds"]]


def restore(workdir: Path, config: RunConfig, classes: int, fold: str) -> Network:
    """The network of a fold as it was trained; UserError where no checkpoint of it is whole, or
    its pictures are not made any more."""
    refuse_other_form(workdir, "provenance.json", str(config.data.normalisation))
    mesh = make_mesh()
    program = make_program(config, classes, 1.0, 1, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        jax.eval_shape(program.init, jax.random.key(0)),
    )
    restored = Checkpoints(workdir / fold / "checkpoints").restore(abstract)
    if restored is None:
        raise UserError(f"{workdir / fold} has no checkpoint; train it again, or restore a backup")
    way = preprocessing_of(config.data, program.model.image_size)
    return Network(restored[0], program, restored[1].variables, way)


def choose(labels: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` places (0: all), as many of each class as can be, the same every time."""
    order = np.random.default_rng(0).permutation(len(labels))
    rank = np.empty(len(labels), int)
    for label in np.unique(labels):
        own = order[labels[order] == label]
        rank[own] = np.arange(len(own))
    return np.sort(np.lexsort((labels, rank))[: limit or None])
