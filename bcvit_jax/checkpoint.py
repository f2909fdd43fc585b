"""Checkpoints of a training, whole or not at all; the only file that knows Orbax.

A checkpoint is a folder `step_00000123` that is written beside and renamed. It holds what Orbax
writes, `extra.json` (data position, metadata) and `SHA256SUMS` over every file: Orbax 0.12 restores
flipped bits silently, so the sums are verified before anything is read.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from bcvit_jax.errors import UserError

_SUMS = "SHA256SUMS"


class Checkpoints:
    """The checkpoints of one training in `directory`; the newest `keep` stay (at least two)."""

    def __init__(self, directory: Path, *, keep: int = 2, warn: Callable[[str], None] = print):
        self.directory = Path(directory)
        self.keep = max(keep, 2)
        self.warn = warn

    def steps(self) -> list[int]:
        """Steps that have a checkpoint folder, oldest first, whether good or not."""
        names = (p.name for p in self.directory.glob("step_*") if p.is_dir())
        return sorted(int(n[5:]) for n in names if n[5:].isdigit())

    def path(self, step: int) -> Path:
        return self.directory / f"step_{step:08d}"

    def save(self, step: int, state: Any, extra: dict) -> Path:
        """Write `state` (a pytree of arrays) and `extra` (JSON) for `step`; returns the folder.

        All processes call it; the first one writes the sums and renames. OSError, such as a full
        disk, is raised and leaves the older checkpoints as they were.
        """
        final = self.path(step)
        partial = self.directory / f".partial-{step:08d}"
        first = jax.process_index() == 0
        if first:
            self.directory.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        _wait_for_all(f"save-{step}")
        ocp.save_pytree(partial / "state", _flatten(state))
        if first:
            (partial / "extra.json").write_text(json.dumps({"step": step, **extra}))
            _write_sums(partial)
            if final.exists():
                shutil.rmtree(final)
            os.replace(partial, final)
            _sync_folder(self.directory)
            for old in self.steps()[: -self.keep]:
                shutil.rmtree(self.path(old), ignore_errors=True)
        _wait_for_all(f"saved-{step}")
        return final

    def restore(self, abstract: Any) -> tuple[int, Any, dict] | None:
        """The newest good checkpoint as (step, state, extra); None where there is none at all.

        `abstract` is the state as `jax.ShapeDtypeStruct`s with shardings. A bad checkpoint is named
        through `warn`, renamed to `*.bad`, and the next older one is taken. UserError when every
        checkpoint is bad, or when a good one holds other arrays than `abstract`.
        """
        bad = []
        for step in reversed(self.steps()):
            path = self.path(step)
            fault = verify(path)
            if fault is None:
                return step, _read_state(path, abstract), _read_extra(path)
            bad.append(path.name)
            self.warn(f"checkpoint {path} is damaged ({fault}); trying the next older one")
            _set_aside(path)
        if bad:
            raise UserError(
                f"every checkpoint in {self.directory} is damaged ({', '.join(bad)}, now *.bad); "
                "restore one from a backup, or delete the folder to train anew"
            )
        return None


def verify(path: Path) -> str | None:
    """What is wrong with the checkpoint folder, in words, or None when every byte is as written."""
    try:
        lines = (path / _SUMS).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return f"{_SUMS} is missing or unreadable"
    if not lines or lines[-1] != _digest("\n".join(lines[:-1]).encode()):
        return f"{_SUMS} does not match its own last line"
    listed = {}
    for line in lines[:-1]:
        digest, _, name = line.partition("  ")
        listed[name] = digest
    present = set(_files(path))
    for name in sorted(present ^ set(listed)):
        return f"{name} is {'missing' if name in listed else 'not listed'}"
    for name, digest in listed.items():
        if _digest((path / name).read_bytes()) != digest:
            return f"{name} has changed"
    return None


def _write_sums(path: Path) -> None:
    lines = [f"{_digest((path / name).read_bytes())}  {name}" for name in _files(path)]
    text = "\n".join(lines)
    with open(path / _SUMS, "w", encoding="utf-8") as file:
        file.write(f"{text}\n{_digest(text.encode())}\n")
        file.flush()
        os.fsync(file.fileno())


def _files(path: Path) -> list[str]:
    files = (p for p in path.rglob("*") if p.is_file() and p.name != _SUMS)
    return sorted(p.relative_to(path).as_posix() for p in files)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _flatten(state: Any) -> dict[str, Any]:
    """One flat dict, so that a checkpoint does not depend on how a state is nested."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _read_state(path: Path, abstract: Any) -> Any:
    wanted = _flatten(abstract)
    found = ocp.pytree_metadata(path / "state").metadata
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [f"{name} is unknown" for name in found if name not in wanted]
    for name in wanted.keys() & found.keys():
        have, want = found[name], wanted[name]
        if tuple(have.shape) != tuple(want.shape) or have.dtype != want.dtype:
            faults.append(f"{name} is {have.dtype}{have.shape}, not {want.dtype}{want.shape}")
    if faults:
        raise UserError(f"checkpoint {path} is of another network: " + "; ".join(faults))
    loaded = ocp.load_pytree(path / "state", wanted)
    structure = jax.tree_util.tree_structure(abstract)
    return jax.tree_util.tree_unflatten(structure, [loaded[name] for name in wanted])


def _read_extra(path: Path) -> dict:
    return json.loads((path / "extra.json").read_text())


def _set_aside(path: Path) -> None:
    if jax.process_index() == 0:
        target, n = path.with_name(path.name + ".bad"), 1
        while target.exists():
            n += 1
            target = path.with_name(f"{path.name}.bad{n}")
        os.replace(path, target)


def _wait_for_all(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
