"""The figures of one run: its cells and network opened once, each figure drawn and written."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bcvit_jax.augment import resize
from bcvit_jax.errors import UserError
from bcvit_jax.figures import embedding, on_cell
from bcvit_jax.figures.attention import Cell, attention_plate, kept_plate
from bcvit_jax.figures.choice import chosen
from bcvit_jax.figures.patches import corners
from bcvit_jax.figures.plates import Plate
from bcvit_jax.figures.schemes import patches_plate, schemes
from bcvit_jax.figures.seen import attentive, see, together
from bcvit_jax.files import write_json, write_whole
from bcvit_jax.journal import progress
from bcvit_jax.predictions import load_predictions
from bcvit_jax.summary import number
from bcvit_jax.trained import choose, finished_folds, open_run, restore

VIEW = 288
"""Pixels of the side of a cell in a figure."""

FEWEST = 4  # images that t-SNE can do with

FUSED = "class row of the fused map of all layers"
LAST = "class row of the last block"


class Asked(NamedTuple):
    """What the command line asks for."""

    workdir: Path
    out: Path
    kinds: tuple[str, ...]
    fold: str
    """Empty: the first that is finished."""
    data: str
    """Empty: where the run had it."""
    images: Sequence[str]
    limit: int
    contrast: Path | None


class Drawn(NamedTuple):
    """A figure, its numbers as a table and for figures.json, and what is said of it."""

    plate: Plate
    rows: Sequence[Sequence[Any]]
    numbers: dict[str, Any]
    told: str


class Held(NamedTuple):
    """Of the held-out images at `rows` of the fold, [n, ...] each."""

    rows: np.ndarray
    feature: np.ndarray
    pixels: np.ndarray
    """float32 [n, PIXELS² · 3]."""
    kept: np.ndarray
    """Share of the kept patches that is on the cell; NaN where no cell can be told."""
    attention: np.ndarray
    """Share of the attention to patches."""
    chance: np.ndarray
    """Share of all patches."""


class FigureSet:
    """Opens a run; errors: UserError where it, its data set or what is asked of it is not there."""

    def __init__(self, asked: Asked):
        self.out, self.kinds, self.limit = asked.out, asked.kinds, asked.limit
        self.workdir, self.data = asked.workdir, asked.data
        self.numbers = _earlier(asked.out)
        if "tsne" in asked.kinds:
            embedding.require()
        finished = finished_folds(asked.workdir)
        if asked.fold and asked.fold not in finished:
            raise UserError(
                f"--fold is {asked.fold}; finished folds of {asked.workdir}: {', '.join(finished)}"
            )
        self.fold = asked.fold or finished[0]
        self.config, self.dataset = open_run(asked.workdir, asked.data)
        self.names, labels = self.dataset.class_names, self.dataset.labels[self.fold]
        images = min(asked.limit or len(labels), len(labels))
        if "tsne" in asked.kinds and images < FEWEST:
            raise UserError(f"--limit leaves {images} images; t-SNE needs {FEWEST} or more")
        saved = load_predictions(asked.workdir / self.fold / "predictions")
        confidence = saved.probabilities.max(axis=1)
        self.rows = chosen(asked.images, self.dataset, self.fold, saved.predicted, confidence)
        self.contrast = asked.contrast and self._other(asked.contrast)
        self.network = restore(asked.workdir, self.config, len(self.dataset.class_names), self.fold)
        self.model = attentive(self.network)

    def _other(self, workdir: Path):
        """(config, network) of the run to stand beside; UserError where it can't be compared."""
        config, dataset = open_run(workdir, self.data)
        if dataset.fingerprint != self.dataset.fingerprint:
            raise UserError(f"--contrast {workdir} was trained on another data set; name one of it")
        weights = self.config.loss.contrastive, config.loss.contrastive
        if bool(weights[0]) == bool(weights[1]):
            raise UserError(
                f"--contrast {workdir} has loss.contrastive {weights[1]:g}, and {self.workdir} "
                f"{weights[0]:g}; of the two one must be 0, the other not: train one with "
                f"--config.loss.contrastive={0 if weights[1] else 1}"
            )
        if self.fold not in (folds := finished_folds(workdir)):
            raise UserError(
                f"--contrast {workdir} has not held out {self.fold}; its folds: {', '.join(folds)}"
            )
        network = restore(workdir, config, len(dataset.class_names), self.fold)
        attentive(network)
        return config, network

    def write(self) -> Iterator[str]:
        """Draw and write the figures; yields what is to be said of each, as it is written."""
        for kind in self.kinds:
            drawn: Drawn = getattr(self, kind)()
            table = io.StringIO()
            csv.writer(table, lineterminator="\n").writerows(drawn.rows)
            files = drawn.plate.files(kind) | {f"{kind}.csv": table.getvalue().encode()}
            for name, written in files.items():
                write_whole(self.out / name, written)
            source = {"title": self.config.title, "fold": self.fold, "step": self.network.step}
            self.numbers[kind] = source | {"data": self.dataset.fingerprint} | drawn.numbers
            write_json(self.out / "figures.json", self.numbers)
            yield drawn.told

    @property
    def whose(self) -> str:
        return FUSED if self.model.selection else LAST

    @cached_property
    def cells(self) -> list[Cell]:
        """The cells that the figures show."""
        seen = together(list(see(self.network, self.dataset, self.fold, self.rows)))
        data = self.config.data
        cells = []
        for place, row in enumerate(self.rows):
            best = int(seen.probabilities[place].argmax())
            cells.append(
                Cell(
                    self.dataset.square(
                        self.fold, row, data.centre_crop, VIEW, normalise=data.framing
                    ),
                    self.names[self.dataset.labels[self.fold][row]],
                    self.names[best],
                    float(seen.probabilities[place, best]),
                    seen.attention[place],
                    seen.kept[place],
                    on_cell.cell_mask(seen.images[place]),
                )
            )
        return cells

    @cached_property
    def held(self) -> Held:
        """What the network saw in the held-out images, at most `limit` of them."""
        model, rows = self.model, choose(self.dataset.labels[self.fold], self.limit)
        features, pixels, on = [], [], []
        with progress(f"{self.fold} seen", len(rows), "img") as bar:
            for seen in see(self.network, self.dataset, self.fold, rows):
                features.append(seen.feature)
                for image, kept, attention in zip(
                    seen.images, seen.kept, seen.attention, strict=True
                ):
                    pixels.append(resize(image, embedding.PIXELS).ravel())
                    mask = on_cell.cell_mask(image)
                    on.append(on_cell.image_shares(mask, model, kept, attention))
                bar.update(len(seen.images))
        points = np.array(pixels, np.float32) / 255
        return Held(rows, np.concatenate(features), points, *np.array(on).T)

    def attention(self) -> Drawn:
        """Figure 8."""
        at = corners(self.model.image_size, self.model.patch_size, self.model.stride)
        rows: list[Sequence[Any]] = [["source", "head", "patch", "top", "left", "attention"]]
        for row, cell in zip(self.rows, self.cells, strict=True):
            source = self.dataset.sources[self.fold][row]
            for head, weights in enumerate(cell.attention, 1):
                for patch, weight in enumerate(weights):
                    rows.append([source, head, patch, *at[patch], f"{weight:.6g}"])
        plate = attention_plate(self.cells, self.model, self.whose)
        numbers = {"attention": self.whose, "cells": self._listed()}
        return Drawn(plate, rows, numbers, f"attention: {self._shown()}; {self.whose}")

    def _listed(self) -> list[dict[str, Any]]:
        return [
            {
                "source": str(self.dataset.sources[self.fold][row]),
                "label": cell.label,
                "predicted": cell.predicted,
                "probability": cell.probability,
                "kept": cell.kept,
            }
            for row, cell in zip(self.rows, self.cells, strict=True)
        ]

    def _shown(self) -> str:
        wrong = sum(cell.label != cell.predicted for cell in self.cells)
        return f"{len(self.cells)} cells of {self.fold}, {wrong} of them mistaken"

    def kept(self) -> Drawn:
        """Figure 9, and how much of what the network looks at is the cell."""
        held, sources = self.held, self.dataset.sources[self.fold]
        known = np.isfinite(held.chance)
        if not known.any():
            raise UserError(
                f"no cell can be told from its background in the {len(known)} images of "
                f"{self.fold}; draw the others with --only attention,patches,tsne"
            )
        values = {"attention": held.attention, "chance": held.chance}
        if self.model.selection:
            values = {"kept": held.kept, **values}
        labels = self.dataset.labels[self.fold][held.rows]
        group = self.dataset.groups[self.fold][held.rows][known]
        found = {
            name: on_cell.summarise(of[known], held.chance[known], group)
            for name, of in values.items()
            if name != "chance"
        }
        told = {name: of[known] for name, of in values.items()}
        numbers = {
            "rule": on_cell.RULE,
            "images": int(known.sum()),
            "left_out": int((~known).sum()),
            "on_cell": found,
            "classes": on_cell.by_class(told, labels[known], self.names),
            "cells": self._listed(),
        }
        rows: list[Sequence[Any]] = [["source", "label", *values]]
        for place, row in enumerate(held.rows):
            shares = ("" if np.isnan(of[place]) else f"{of[place]:.6f}" for of in values.values())
            rows.append([sources[row], self.names[labels[place]], *shares])
        lines = [on_cell.told(name, figures) for name, figures in found.items()]
        left = f", {numbers['left_out']} left out, their cell can't be told"
        lines.append(f"  of {numbers['images']:,} images of {self.fold}" + left * any(~known))
        if not self.model.selection:
            lines.append("  this network has no selection: no kept patches, no fused map")
        plate = kept_plate(self.cells, self.model, self.whose)
        return Drawn(plate, rows, numbers, "\n".join(lines))

    def patches(self) -> Drawn:
        """Figure 10."""
        data = self.config.data
        picture = self.dataset.square(
            self.fold, self.rows[0], data.centre_crop, VIEW, normalise=data.framing
        )
        head = ["size", "patch", "stride", "rows", "columns", "patches", "unseen"]
        tried = schemes(self.model)
        rows = [[*s, *s.grid, s.grid[0] * s.grid[1], round(s.unseen, 6)] for s in tried]
        numbers = {"schemes": [dict(zip(head, row, strict=True)) for row in rows]}
        counts = ", ".join(f"{s.patch} px by {s.stride}: {s.grid[0] * s.grid[1]}" for s in tried)
        return Drawn(
            patches_plate(picture, self.model), [head, *rows], numbers, f"patches: {counts}"
        )

    def tsne(self) -> Drawn:
        """Figure 11."""
        rows = self.held.rows
        labels = self.dataset.labels[self.fold][rows]
        features = {bool(self.config.loss.contrastive): self.held.feature}
        if self.contrast:
            config, network = self.contrast
            other = [seen.feature for seen in see(network, self.dataset, self.fold, rows)]
            features[bool(config.loss.contrastive)] = np.concatenate(other)
        panels = [embedding.embed("pixels", "Images", self.held.pixels, labels)]
        numbers: dict[str, Any] = {"images": len(rows), "pixels": embedding.PIXELS}
        for on in sorted(features):
            word = "with" if on else "without"
            title = f"Features {word} contrastive loss"
            vectors = embedding.unit(features[on])
            panels.append(embedding.embed(f"features_{word}", title, vectors, labels))
            numbers[f"cosine_{word}"] = embedding.cosines(vectors, labels)
        numbers["silhouette"] = {panel.name: panel.silhouette for panel in panels}
        table: list[Sequence[Any]] = [["source", "label", "panel", "x", "y"]]
        for panel in panels:
            for row, label, (x, y) in zip(rows, labels, panel.points, strict=True):
                source = self.dataset.sources[self.fold][row]
                table.append([source, self.names[label], panel.name, f"{x:.5g}", f"{y:.5g}"])
        plate = embedding.embedding_plate(panels, labels, self.names)
        found = ", ".join(
            f"{panel.title.lower()} {number(panel.silhouette, 2)}" for panel in panels
        )
        alone = "" if self.contrast else "; --contrast OTHER_RUN adds a run trained the other way"
        told = f"tsne: {len(rows):,} images, silhouette of the classes: {found}{alone}"
        return Drawn(plate, table, numbers, told)


def _earlier(out: Path) -> dict[str, Any]:
    """The numbers that are in the folder already; UserError where it holds other things."""
    if not out.exists():
        return {}
    if not out.is_dir():
        raise UserError(f"{out} is a file; name a folder with --out")
    file = out / "figures.json"
    if not file.exists():
        if any(out.iterdir()):
            raise UserError(f"{out} holds files that are no figures; name a new folder with --out")
        return {}
    try:
        content = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is no whole JSON ({error}); delete it") from None
    return content if isinstance(content, dict) else {}
