"""Read many image files, each once: hash, digest, and PNG bytes kept in spool files."""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.images import OTHER_SUFFIXES, BadImage, dihedral_digest, encode_png, read_rgb
from data_prep.workers import run_in_order

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
                rgb, sha256 = read_file(root, source)
            except BadImage as error:
                scans.append(Scan(source, reason=str(error)))
                continue
            png = encode_png(rgb)
            spooled = Spooled(spool, output.tell(), len(png))
            output.write(png)
            scans.append(Scan(source, "", sha256, dihedral_digest(rgb), spooled))
    return scans


def read_file(root: Path, source: str) -> tuple[np.ndarray, str]:
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
    scans = []
    bar = tqdm(total=len(sources), desc="reading", unit=" images", disable=None)
    with bar, contextlib.closing(run_in_order(scan_batch, tasks, workers)) as results:
        for batch in results:
            scans += batch
            bar.update(len(batch))
    return scans
