"""Decoded squares in one memory-mapped .npy file, shared by folds, runs and processes."""

import contextlib
import hashlib
import itertools
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
from bcvit_jax.normalisation import AS_IT_IS, Normalisation

_DECODING = 2  # raise it when a square's pixels change, so that older caches are left alone
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


class Squares:
    """The centred squares of a data set: `get(fold, index)` → uint8 [s, s, 3], s = side + 2·margin.

    Crops and evaluation both start from these squares, cached or not, so that training and
    evaluation see the same pixels and a cache changes nothing but the time. `margin` pixels of
    surroundings are for views wider than evaluation's, which is the `middle`.
    """

    def __init__(
        self,
        dataset: Any,
        cache: str,
        centre_crop: float,
        side: int,
        margin: int = 0,
        normalise: Normalisation = AS_IT_IS,
    ):
        self.dataset, self.normalise = dataset, normalise
        self.centre_crop, self.side, self.margin = centre_crop, side, margin
        sizes = [len(dataset.labels[fold]) for fold in dataset.folds]
        self.first = dict(zip(dataset.folds, itertools.accumulate([0, *sizes]), strict=False))
        self.file: SquareFile | None = None
        if cache:
            rows = [
                (fold, i) for fold, n in zip(dataset.folds, sizes, strict=True) for i in range(n)
            ]
            key = f"{dataset.file_key} {centre_crop!r} {_DECODING} {normalise}".rstrip()
            key = hashlib.sha256(key.encode()).hexdigest()[:16]
            around = f"+{margin}" if margin else ""
            name = f"cells-{key}-crop{centre_crop:g}-{side}px{around}.npy"
            self.file = open_square_file(
                Path(cache) / name,
                len(rows),
                side + 2 * margin,
                lambda row: self._make(*rows[row], margin),
                os.cpu_count() or 1,
            )

    def get(self, fold: str, index: int) -> np.ndarray:
        if self.file is not None:
            return self.file[self.first[fold] + index]
        return self._make(fold, index, self.margin)

    def middle(self, fold: str, index: int) -> np.ndarray:
        """The square without its margin, uint8 [side, side, 3]."""
        if self.file is None:
            return self._make(fold, index, 0)
        inner = slice(self.margin, self.margin + self.side)
        return self.file[self.first[fold] + index][inner, inner]

    def _make(self, fold: str, index: int, margin: int) -> np.ndarray:
        crop, side = self.centre_crop, self.side
        return self.dataset.square(fold, index, crop, side, margin, self.normalise)


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
