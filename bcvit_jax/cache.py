"""Decoded squares in one memory-mapped .npy file, shared by folds, runs and processes."""

import contextlib
import os
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bcvit_jax.errors import UserError

_ABANDONED_AFTER = 3600.0  # seconds without a write; a build under way writes all the time


class SquareFile:
    """Read-only uint8 [n, side, side, 3] in a file; `file[row]` is one square, read when touched.

    Pickles as its path, so worker processes share the pages instead of copying the array.
    """

    def __init__(self, path: Path):
        self.path = path
        self._array: np.ndarray | None = None

    def __getitem__(self, row: int) -> np.ndarray:
        array = self._array
        if array is None:
            array = self._array = np.load(self.path, mmap_mode="r")
        return array[row]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_array": None}


def open_square_file(
    path: Path, count: int, side: int, make: Callable[[int], np.ndarray], threads: int
) -> SquareFile:
    """The file of `count` squares at `path`, built first unless a whole one lies there.

    `make(row)` → uint8 [side, side, 3] runs in `threads` threads. The file is written beside and
    renamed, so one that is there is complete; of two processes that build at once each renames
    its own, of the same content. Errors: UserError where the folder can't be written or is full.
    """
    shape = (count, side, side, 3)
    with contextlib.suppress(OSError, ValueError):
        if np.load(path, mmap_mode="r").shape == shape:
            return SquareFile(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        with (
            _written_beside(path) as file,
            ThreadPoolExecutor(max(1, threads)) as pool,
            tqdm(total=count, desc=f"decoding into {path.parent}", unit="img", disable=None) as bar,
        ):
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            try:
                for square in pool.map(make, range(count)):
                    file.write(np.ascontiguousarray(square).data)
                    bar.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    except OSError as error:
        need = count * side * side * 3 / 1e6
        raise UserError(
            f"The image cache {path} can't be written ({error.strerror or error}): it needs "
            f"{need:.0f} MB; make room, or point config.data.cache elsewhere or set it to ''."
        ) from error
    return SquareFile(path)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz beside `path` and rename it; a folder that can't be written is left alone."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _written_beside(path) as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def load_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """What `save_arrays` wrote, or None where there is nothing whole to read."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


@contextlib.contextmanager
def _written_beside(path: Path):
    """A file opened for writing that takes the name `path` only when all of it is on the disk."""
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.partial-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _remove_abandoned(path: Path) -> None:
    """Delete what killed builds of this file left behind."""
    for partial in path.parent.glob(f"{path.name}.partial-*"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > _ABANDONED_AFTER:
                partial.unlink()
