"""Encoders that this project pretrained: a file that knows what it was trained on, and its reader.

`encoder.safetensors` holds the encoder's weights by our names, and in its header the network, the
folds and the digests of the cells that it has seen: so that none of them is scored afterwards.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bcvit_jax.errors import UserError
from bcvit_jax.files import write_whole
from bcvit_jax.models import BCViTConfig
from bcvit_jax.weights.files import read_arrays, safetensors_bytes
from bcvit_jax.weights.flat import Flat, Pretrained, refuse, shape_faults, shapes
from bcvit_jax.weights.transformer import fill_last_block, our_name, resize_bicubic

FILE = "encoder.safetensors"
_FORMAT = "bcvit encoder"
_SAME = "patch_size stem width depth heads mlp_width activation registers".split()


class CellsOfFolds(Protocol):
    """What is asked of a data set: its fingerprint, and every cell's label and digest a fold."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def folds(self) -> Sequence[str]: ...
    @property
    def labels(self) -> Mapping[str, np.ndarray]: ...
    def digests(self, fold: str, /) -> Sequence[str]: ...


def save(path: Path, flat: Flat, facts: Mapping[str, Any]) -> None:
    """Write an encoder; `facts` are `model` (its fields), `dataset`, `folds`, `cells`, and more."""
    text = json.dumps(facts)
    header = {"format": _FORMAT, "facts": text, "sha256": _digest(flat, text)}
    write_whole(path, safetensors_bytes(flat, header))


def facts_of(file: Path) -> dict[str, Any]:
    """The facts in an encoder's file."""
    return json.loads((_header(file) or {"facts": "{}"})["facts"])


def find(path: str | Path) -> Path | None:
    """The encoder's file that `path` means; None where it is something else.

    Errors: UserError where a run has several.
    """
    files = _files(path)
    if len(files) > 1:
        raise UserError(
            f"{path} holds encoders of several folds ({', '.join(f.parent.name for f in files)}); "
            "name the file of one"
        )
    return files[0] if files else None


def unseen(path: str, dataset: CellsOfFolds, held_out: int) -> str | Path:
    """The encoder of a run's folder or a file that has not seen the fold `held_out`.

    Whatever is no encoder of ours is handed back as it came. Cells of another data set are known
    by their digests, so an equal file is found there, a turned or scaled copy is not.
    Errors: UserError where all have seen it, and for a pretraining that is not finished.
    """
    files = _files(path)
    fold, counts = dataset.folds[held_out], []
    for file in files:
        counts.append(_seen(facts_of(file), dataset, fold))
        if not counts[-1]:
            return file
    if not files:
        return path
    raise UserError(
        f"config.weights.path is {path}, which was pretrained on {min(counts)} of the "
        f"{len(dataset.labels[fold])} cells of {fold}: held out here, that fold would be scored "
        "too well; pretrain with it held out (--config.folds), or hold out another fold here"
    )


def load(config: BCViTConfig, path: Path, last_block: str) -> tuple[Flat, Pretrained]:
    """`weights.pretrained` of an encoder's file: its weights by the names of `config`'s network.

    Position embeddings are resized to the network's grid. The last block begins as a copy of the
    encoder's last, or fresh; squeeze-excitation and head are fresh.
    """
    source, flat = str(path), read_arrays(path)
    header = _header(path) or {}
    if header.get("sha256") != _digest(flat, header.get("facts", "")):
        raise UserError(f"{source} is damaged: it is not what its SHA-256 says; copy it again")
    facts = json.loads(header["facts"])
    fields: dict[str, Any] = facts["model"]
    theirs = {n: tuple(v) if isinstance(v, list) else v for n, v in fields.items()}
    refuse(
        (
            f"{name} is {theirs[name]} there and {getattr(config, name)} here"
            for name in _SAME
            if theirs[name] != getattr(config, name)
        ),
        source,
    )
    flat = {_named(name, config): array for name, array in flat.items()}
    position = flat["embedding.position"]
    grid = position[0, 1:].reshape(*BCViTConfig(**fields).grid, -1)
    if grid.shape[:2] != config.grid:
        grid = resize_bicubic(grid, *config.grid).reshape(1, -1, config.width)
        flat["embedding.position"] = np.concatenate([position[:, :1], grid], axis=1)
    every = shapes(config)
    if last_block == "copy":
        fill_last_block(flat, every, config.depth)
    needed = ("embedding.", "blocks.", "norm.")
    wanted = {n: shape for n, shape in every.items() if n in flat or n.startswith(needed)}
    refuse(shape_faults(wanted, flat), source)
    fresh = tuple(sorted(set(every) - set(flat)))
    family = f"encoder pretrained on {', '.join(facts['folds'])} of {facts['dataset'][:12]}"
    return flat, Pretrained(family, tuple(sorted(flat)), fresh)


def _named(name: str, config: BCViTConfig) -> str:
    found = re.match(r"blocks\.(\d+)\.", name)
    place = int(found[1]) if found else 0
    return our_name(name.replace(f"blocks.{place}.", "blocks.{}.", 1), place, config)


def _seen(facts: Mapping[str, Any], dataset: CellsOfFolds, fold: str) -> int:
    """How many cells of `fold` an encoder was trained on."""
    if facts["dataset"] == dataset.fingerprint:
        return len(dataset.labels[fold]) * (fold in facts["folds"])
    seen = set(facts["cells"])
    return sum(digest in seen for digest in dataset.digests(fold))


def _files(path: str | Path) -> list[Path]:
    """The encoders that `path` means: one file, a fold's or those of all folds of a run."""
    folder = Path(path)
    if not folder.is_dir():
        return [folder] if _header(folder) else []
    files = [*folder.glob(FILE), *sorted(folder.glob(f"*/{FILE}"))]
    files = [file for file in files if _header(file)]
    if not files and _is_pretraining(folder / "config.json"):
        raise UserError(
            f"{path} is a pretraining without a finished fold; run its command again, which goes "
            "on where it stopped"
        )
    return files


def _is_pretraining(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text("utf-8"))["mae"]["ratio"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _header(path: Path) -> dict[str, str] | None:
    """The header of an encoder's file; None where it is none."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "numpy") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError):
        return None
    return header if header.get("format") == _FORMAT else None


def _digest(flat: Flat, facts: str) -> str:
    sums = hashlib.sha256(facts.encode())
    for name in sorted(flat):
        sums.update(f"{name} {flat[name].dtype} {flat[name].shape}".encode())
        sums.update(np.ascontiguousarray(flat[name]).data)
    return sums.hexdigest()
