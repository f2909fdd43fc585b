"""The folder that a command leaves: checked first, filled beside, put in place by one rename."""

import contextlib
import glob
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.command import say
from data_prep.errors import BuildError

try:
    import fcntl
except ImportError:  # no POSIX system: no locks
    fcntl = None

LOCK = "lock"  # held while the folder is filled; it names the machine
REQUEST = "request.json"
REPLACED = "replaced"  # where the folder that was at OUT waits until the new one is in place


def check_apart(images: Path, out: Path, option: str = "--images") -> None:
    """Raise BuildError if one of the folders lies inside the other."""
    inside, outside = images.resolve(), out.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise BuildError(f"--out {out} and {option} {images} overlap: choose a folder elsewhere.")


def check_out(out: Path, overwrite: bool, mark: str, what: str) -> None:
    """Raise BuildError if `out` holds anything that may not be replaced.

    A folder is known by its file `mark` to be `what`, as in "a data set".
    """
    if not (out.exists() or out.is_symlink()) or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / mark).is_file():
        raise BuildError(f"{out} exists and is not {what}: choose another --out.")
    if not overwrite:
        raise BuildError(f"{out} exists: give --overwrite to replace it, or another --out.")


@contextlib.contextmanager
def folder_beside(out: Path) -> Iterator[Path]:
    """A new folder OUT.partial-PID that is removed at the end, whatever happens."""
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    with _locked(partial):
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def clear_dead(out: Path) -> None:
    """Remove the folders that killed commands have left beside `out`; say which."""
    for left in out.parent.glob(f"{glob.escape(out.name)}.partial-*"):
        if not _is_dead(left):
            where = "that runs, or was killed on another machine: if none runs, remove it"
            say(f"{left} belongs to a build {where}.", sys.stderr)
            continue
        put_back(left, out)
        shutil.rmtree(left, ignore_errors=True)
        say(f"{left}, left from a killed build, is removed.", sys.stderr)


def _is_dead(folder: Path) -> bool:
    """Whether its command has ended: surely so only where it was started on this machine."""
    try:
        if fcntl is None or (folder / LOCK).read_text() != platform.node():
            return False
        with _locked(folder):
            return True
    except (OSError, BuildError):
        return False


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system frees if the process dies; raises BuildError."""
    with (folder / LOCK).open("a+") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BuildError(
                    f"{folder} is being filled by another process: wait for it, or stop it."
                ) from None
        if not file.tell():
            file.write(platform.node())
            file.flush()
        yield


def partial_of(out: Path) -> Path:
    """The folder OUT.partial of kept_folder."""
    return out.with_name(f"{out.name}.partial")


@contextlib.contextmanager
def kept_folder(out: Path, request: Mapping[str, Any], overwrite: bool) -> Iterator[Path]:
    """OUT.partial, which outlives a stopped command: the same request goes on from there.

    It is removed at the end without an error. Raises BuildError if another process fills it, or if
    it holds the beginning of another request (which `overwrite` drops).
    """
    partial, text = partial_of(out), json.dumps(dict(request), indent=2) + "\n"
    mark = partial / REQUEST
    partial.mkdir(parents=True, exist_ok=True)
    foreign = [path for path in partial.iterdir() if path.name != LOCK and path.name[0] != "."]
    if foreign and not mark.is_file():
        raise BuildError(f"{partial} is in the way, and not from this command: move it.")
    with _locked(partial):
        put_back(partial, out)
        if mark.is_file() and mark.read_text() != text:
            if not overwrite:
                raise BuildError(
                    f"{partial} holds the beginning of another request: run that again to finish "
                    "it, or give --overwrite to drop it."
                )
            for path in partial.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
            mark.unlink()
        write_whole(mark, text)
        yield partial
        shutil.rmtree(partial)


def write_whole(path: Path, text: str) -> None:
    """Write a text file beside and rename it: it is never half there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8", newline="\n")
    beside.replace(path)


def put_in_place(finished: Path, out: Path, overwrite: bool, partial: Path) -> None:
    """Rename the finished folder to `out`; one that is there goes to `partial` only now."""
    replaced = partial / REPLACED
    if overwrite and out.exists():
        out.rename(replaced)
    try:
        finished.rename(out)
    except BaseException:
        if replaced.exists():
            replaced.rename(out)
        raise


def put_back(partial: Path, out: Path) -> None:
    """Undo the first half of put_in_place, if a command was killed in the middle of it."""
    if (partial / REPLACED).exists():
        if out.exists():
            shutil.rmtree(partial / REPLACED)
        else:
            (partial / REPLACED).rename(out)
