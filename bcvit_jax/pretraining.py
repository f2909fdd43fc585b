"""Pretraining: the loop of `train`, and an encoder and pictures in place of a score.

Leaves encoder.safetensors, reconstructions.png and training.json in the fold's folder.
"""

import dataclasses
import io
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from bcvit_jax import __version__
from bcvit_jax.data import CellDataset
from bcvit_jax.evaluate import fetch
from bcvit_jax.exported import preprocessing_of
from bcvit_jax.files import write_whole
from bcvit_jax.fold_run import FoldRun, train_folds
from bcvit_jax.goodput import Goodput
from bcvit_jax.journal import Journal
from bcvit_jax.models import MaskedAutoencoderConfig
from bcvit_jax.program import Program, State, shareable
from bcvit_jax.provenance import commit
from bcvit_jax.train import fit, write_training
from bcvit_jax.weights import encoders, to_flat

PICTURES = "reconstructions.png"
SHOWN = 8
"""Cells in the pictures."""


def pretrain_fold(run: FoldRun, journal: Journal) -> None:
    """Train with a fold, or none, held out; write the encoder, and pictures at every checkpoint.

    Raises as `train.train_fold` does.
    """
    goodput = Goodput()
    program, state, steps = fit(run, journal, goodput, lambda *made: _draw(run, *made))
    with goodput.spend("evaluation"):
        _draw(run, program, state)
    write_training(run, state, steps, goodput)
    if jax.process_index() == 0:
        flat = {n: x for n, x in to_flat(state.params).items() if not n.startswith("decoder.")}
        encoders.save(encoder_file(run), flat, _facts(run, program.model, steps))


def encoder_file(run: FoldRun) -> Path:
    return run.workdir / run.name / encoders.FILE


def _facts(run: FoldRun, model: Any, steps: int) -> dict[str, Any]:
    config, dataset = run.config, run.dataset
    folds = [dataset.folds[i] for i in train_folds(config, dataset, run.held_out)]
    return {
        "bcvit": __version__,
        "commit": commit(),
        "title": config.title,
        "model": dataclasses.asdict(model.encoder),
        "mae": dataclasses.asdict(config.mae),
        "steps": steps,
        "seed": config.seed,
        "dataset": dataset.fingerprint,
        "folds": folds,
        "cells": [digest for fold in folds for digest in dataset.digests(fold)],
    }


def _draw(run: FoldRun, program: Program, state: State) -> None:
    """reconstructions.png of some cells; every process computes, the first one writes."""
    model: Any = program.model
    cells = chosen_cells(run, model)
    count = shareable(SHOWN)
    images = np.resize(cells, (count, *cells.shape[1:]))
    sharding = NamedSharding(run.mesh, PartitionSpec(run.mesh.axis_names[0]))
    placed = jax.make_array_from_callback(images.shape, sharding, lambda i: images[i])
    masked, restored = (fetch(x)[:SHOWN] for x in program.predict_step(state.variables, placed))
    if jax.process_index() == 0:
        path = run.workdir / run.name / PICTURES
        write_whole(path, sheet(cells, to_pixels(masked), to_pixels(restored)))


def chosen_cells(run: FoldRun, model: MaskedAutoencoderConfig) -> np.ndarray:
    """Cells spread over the held-out fold, or the first where none is, uint8 [8, s, s, 3]."""
    dataset: CellDataset = run.dataset
    fold = dataset.folds[run.held_out or 0]
    see = preprocessing_of(run.config.data, model.image_size)
    places = np.linspace(0, len(dataset.labels[fold]) - 1, SHOWN).astype(int)
    return np.stack([see(dataset.image(fold, i)) for i in places])


def to_pixels(images: np.ndarray) -> np.ndarray:
    """[−1, 1] -> uint8."""
    return np.clip(np.rint((images + 1.0) * 127.5), 0, 255).astype(np.uint8)


def sheet(*rows: np.ndarray, gap: int = 4) -> bytes:
    """A PNG of rows of pictures, each uint8 [n, s, s, 3], on white."""
    padded = [np.pad(r, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255) for r in rows]
    picture = np.concatenate([np.concatenate(list(row), axis=1) for row in padded])
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()
