"""Read many image files, each once: hash, digest, and PNG bytes kept in spool files."""

import contextlib
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.errors import BuildError
from data_prep.images import OTHER_SUFFIXES, BadImage, dihedral_digest, encode_png, read_rgb

BATCH = 32  # images a task and a spool file


@dataclass(frozen=True, slots=True)
class Spooled:
    """A PNG inside a spool file; `read` gives its bytes, which is all that TFDS asks for."""

    path: Path
    offset: int
    length: int

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.length)


@dataclass(frozen=True, slots=True)
class Scan:
    """What one reading of a file tells; `reason` is empty unless the file is bad."""

    source: str  # path under the images folder, with slashes
    reason: str = ""
    sha256: str = ""  # of the file
    pixels: str = ""  # dihedral_digest
    png: Spooled | None = None


def scan_batch(root: Path, sources: list[str], spool: Path) -> list[Scan]:
    """Read each file once: its hash, its pixels' digest, and its PNG appended to `spool`."""
    scans = []
    with spool.open("wb") as output:
        for source in sources:
            try:
                rgb, sha256 = _read_file(root, source)
            except BadImage as error:
                scans.append(Scan(source, reason=str(error)))
                continue
            png = encode_png(rgb)
            spooled = Spooled(spool, output.tell(), len(png))
            output.write(png)
            scans.append(Scan(source, "", sha256, dihedral_digest(rgb), spooled))
    return scans


def _read_file(root: Path, source: str) -> tuple[np.ndarray, str]:
    """Pixels of the file and its SHA-256; BadImage says what is wrong with it."""
    if any("\ud800" <= letter <= "\udfff" for letter in source):
        raise BadImage("has a name that is not UTF-8: rename it")
    path = root / source
    if path.suffix.lower() in OTHER_SUFFIXES:
        raise BadImage(f"is a {path.suffix} file: convert it to PNG, JPEG or TIFF")
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise BadImage("is empty (0 bytes)")
            rgb = read_rgb(file)
            file.seek(0)
            return rgb, hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror})") from error


def scan_files(
    root: Path, sources: Sequence[str], spool: Path, workers: int | None = None
) -> list[Scan]:
    """Read every file once, in `workers` processes (default: one a core); in order of `sources`."""
    batches = [list(sources[at : at + BATCH]) for at in range(0, len(sources), BATCH)]
    tasks = [(root, batch, spool / f"{number:06}") for number, batch in enumerate(batches)]
    workers = min(workers or _cores(), len(tasks))
    scans = []
    bar = tqdm(total=len(sources), desc="reading", unit=" images", disable=None)
    with bar, contextlib.closing(_run(tasks, workers)) as results:
        for batch in results:
            scans += batch
            bar.update(len(batch))
    return scans


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: the cores this process may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run(
    tasks: list[tuple[Path, list[str], Path]], workers: int
) -> Generator[list[Scan], None, None]:
    """The results of scan_batch for every task, in order."""
    if workers <= 1:
        yield from (scan_batch(*task) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        with _ctrl_c_for_the_parent():
            results = pool.map(scan_batch, *zip(*tasks, strict=True))  # starts the processes
        yield from results
    except BrokenProcessPool as error:
        raise BuildError(
            "A reading process was killed, most likely for memory: try a smaller --workers."
        ) from error
    except BaseException:  # stopped: end in the middle of a batch
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _ctrl_c_for_the_parent() -> Iterator[None]:
    """Processes started inside never see Ctrl-C: the parent ends them.

    They inherit the blocked signal; one that comes meanwhile reaches the parent afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):  # no POSIX system
        yield
        return
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _start_worker() -> None:
    """End with the parent, even if it is killed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
