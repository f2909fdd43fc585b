"""Checkpoints of a training, whole or not at all; the only file that knows Orbax.

A checkpoint is a folder `step_00000123` that is written beside and renamed. It holds what Orbax
writes, `extra.json` (data position, metadata) and `SHA256SUMS` over every file: Orbax 0.12 restores
flipped bits silently, so the sums are verified before anything is read.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from bcvit_jax.errors import RunError, UserError

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

        All processes call it; the first one writes the sums and renames. Errors: RunError where it
        can't be written, such as on a full disk; the older checkpoints are as they were.
        """
        final, partial = self.path(step), self._partial(step)
        first = jax.process_index() == 0
        try:
            if first:
                self._clean()
                partial.mkdir(parents=True)
            _wait_for_all(f"save-{step}")
            ocp.save(_absolute(partial / "state"), _flatten(state))
            if first:
                (partial / "extra.json").write_text(json.dumps({"step": step, **extra}))
                _write_sums(partial)
                self._discard(step)
                os.replace(partial, final)
                _sync_folder(self.directory)
                for old in self.steps()[: -self.keep]:
                    self._discard(old)
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)
            cause = _system_error(error)
            if cause is None:
                raise
            raise RunError(
                f"checkpoint {final} can't be written ({cause}); make room or mend the folder, "
                f"then the same command again goes on from {self._newest()}"
            ) from error
        _wait_for_all(f"saved-{step}")
        return final

    def restore(self, abstract: Any) -> tuple[int, Any, dict] | None:
        """The newest good checkpoint as (step, state, extra); None where there is none at all.

        `abstract` is the state as `jax.ShapeDtypeStruct`s with shardings. A bad checkpoint is named
        through `warn`, renamed to `*.bad`, and the next older one is taken. UserError when every
        checkpoint is bad, or when a good one holds other arrays than `abstract`.
        """
        step = self._newest_good() if jax.process_index() == 0 else -1
        step = _of_the_first(step)
        if step < 0:
            if step == _ALL_BAD:
                raise UserError(
                    f"every checkpoint in {self.directory} is damaged; restore one from a backup, "
                    "or delete the folder to train anew"
                )
            return None
        path = self.path(step)
        return step, _read_state(path, abstract), json.loads((path / "extra.json").read_text())

    def _newest_good(self) -> int:
        """Its step, _NONE or _ALL_BAD; sets worse ones that are newer aside."""
        self._clean()
        bad = []
        for step in reversed(self.steps()):
            fault = verify(self.path(step))
            if fault is None:
                for worse in bad:
                    _set_aside(self.path(worse))
                return step
            bad.append(step)
            self.warn(f"checkpoint {self.path(step)} is damaged: {fault}")
        return _ALL_BAD if bad else _NONE

    def _newest(self) -> str:
        steps = self.steps()
        return str(self.path(steps[-1])) if steps else "the start"

    def _partial(self, step: int) -> Path:
        return self.directory / f".partial-{step:08d}"

    def _discard(self, step: int) -> None:
        """Delete the checkpoint of `step`, if any, under another name: it is whole or away."""
        if self.path(step).exists():
            doomed = self.directory / f".partial-{step:08d}-old"
            os.replace(self.path(step), doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def _clean(self) -> None:
        """Delete what killed processes left half written or half deleted."""
        for partial in self.directory.glob(".partial-*"):
            shutil.rmtree(partial, ignore_errors=True)


_NONE, _ALL_BAD = -1, -2


def verify(path: Path) -> str | None:
    """What is wrong with the checkpoint folder, in words, or None when every byte is as written."""
    try:
        text = (path / _SUMS).read_bytes()
    except OSError:
        return f"{_SUMS} is missing or unreadable"
    body, _, own_digest = text.removesuffix(b"\n").rpartition(b"\n")
    if not text.endswith(b"\n") or hashlib.sha256(body).hexdigest().encode() != own_digest:
        return f"{_SUMS} has changed"
    listed = {}
    for line in body.decode().split("\n"):
        digest, _, name = line.partition("  ")
        listed[name] = digest
    for name in sorted(listed.keys() ^ set(_files(path))):
        return f"{name} is {'missing' if name in listed else 'not listed'}"
    for name, digest in listed.items():
        try:
            if _digest(path / name) != digest:
                return f"{name} has changed"
        except OSError as error:
            return f"{name} can't be read ({error.strerror})"
    return None


def all_finite(state: Any) -> bool:
    """Whether every number of a pytree of arrays is finite."""
    return bool(_all_finite(jax.tree.leaves(state)))


@jax.jit
def _all_finite(arrays: list[jax.Array]) -> jax.Array:
    floats = [x for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.array([jnp.isfinite(x).all() for x in floats]).all()


def _write_sums(path: Path) -> None:
    """`digest  name` a line as sha256sum writes it, and last the digest of these lines."""
    body = "\n".join(f"{_digest(path / name)}  {name}" for name in _files(path)).encode()
    with open(path / _SUMS, "wb") as file:
        file.write(body + b"\n" + hashlib.sha256(body).hexdigest().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _files(path: Path) -> list[str]:
    files = (p for p in path.rglob("*") if p.is_file() and p.name != _SUMS)
    return sorted(p.relative_to(path).as_posix() for p in files)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flatten(state: Any) -> dict[str, Any]:
    """{"params.blocks.0.attention.qkv.kernel": array}: checkpoints don't know how states nest."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    if len(set(names)) != len(names):
        raise ValueError("two arrays of the state have one name")
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True))


def _absolute(path: Path) -> str:
    """As Orbax wants its paths."""
    return str(path.absolute())


def _read_state(path: Path, abstract: Any) -> Any:
    wanted = _flatten(abstract)
    found = ocp.metadata(_absolute(path / "state")).metadata
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [f"{name} is unknown" for name in found if name not in wanted]
    for name in wanted.keys() & found.keys():
        have, want = found[name], wanted[name]
        if tuple(have.shape) != tuple(want.shape) or have.dtype != want.dtype:
            faults.append(f"{name} is {have.dtype}{have.shape}, not {want.dtype}{want.shape}")
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise UserError(
            f"checkpoint {path} is of another network ({'; '.join(faults[:5])}{more}): choose "
            "another --workdir"
        )
    loaded = ocp.load(_absolute(path / "state"), wanted)
    structure = jax.tree_util.tree_structure(abstract)
    return jax.tree_util.tree_unflatten(structure, [loaded[name] for name in wanted])


def _set_aside(path: Path) -> None:
    """Rename to `*.bad`, or `*.bad2` and so on."""
    target, n = path.with_name(path.name + ".bad"), 1
    while target.exists():
        n += 1
        target = path.with_name(f"{path.name}.bad{n}")
    os.replace(path, target)


def _system_error(error: BaseException | None) -> str | None:
    """The system's words below `error`, such as a full disk; TensorStore hides them in its own."""
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        if code := re.search(r"os_error_code='(\d+)'", str(error)):
            return os.strerror(int(code[1]))
        error = error.__cause__ or error.__context__
    return None


def _of_the_first(value: int) -> int:
    """The first process's value, in all of them."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def _wait_for_all(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
