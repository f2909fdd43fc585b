"""The work on single images of a data set, done by the workers of an Apache Beam runner.

Driver and workers speak through files in the folder of the data set that is being built, so that
the pipelines stay small however many images there are. A task that is done twice does no harm.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam  # pyright: ignore[reportMissingImports]
from etils import epath
from tensorflow_datasets.core import example_serializer, utils, writer

from data_prep.errors import BuildError
from data_prep.images import BadImage, dihedral_digest, encode_png
from data_prep.scan import BATCH, Scan, Spooled, read_file

Row = dict[str, Any]  # an example without its image


@dataclass(frozen=True, slots=True)
class Reread(Spooled):
    """The PNG of an image file, encoded anew where it is read: `path` is that of the file."""

    sha256: str  # of the file when it was scanned

    def read(self) -> bytes:
        rgb, sha256 = read_file(self.path.parent, self.path.name)
        if sha256 != self.sha256:
            raise BuildError(f"{self.path} has changed since the build began: start it again.")
        return encode_png(rgb)


@dataclass(frozen=True)
class Cluster:
    """Beam's options, a runner if they name none, and a folder that all workers can reach."""

    options: Any
    runner: Any
    folder: epath.Path

    def map(self, work: Callable[..., Any], tasks: Sequence[Any], *arguments: Any) -> list[Any]:
        """work(task, *arguments) for each task, in order; tasks and results are JSON."""
        folder = self.folder / work.__name__
        folder.mkdir(parents=True)
        for number, task in enumerate(tasks):
            (folder / f"{number}.task").write_text(json.dumps(task))
        with beam.Pipeline(runner=self.runner, options=self.options) as pipeline:
            numbers = pipeline | beam.Create(range(len(tasks))) | beam.Reshuffle()
            _ = numbers | work.__name__ >> beam.Map(_do, folder, work, arguments)
        return [json.loads((folder / f"{n}.done").read_text()) for n in range(len(tasks))]

    def scan_files(
        self, root: Path, sources: Sequence[str], spool: Path, workers: int | None = None
    ) -> list[Scan]:
        """As data_prep.scan.scan_files, but for the PNG: that is encoded again when written."""
        batches = [list(sources[at : at + BATCH]) for at in range(0, len(sources), BATCH)]
        results = (result for batch in self.map(scan_sources, batches, root) for result in batch)
        return [
            Scan(source, reason, sha256, pixels, Reread(root / source, 0, length, sha256))
            for source, (reason, sha256, pixels, length) in zip(sources, results, strict=True)
        ]

    def write_shards(
        self,
        shards: Mapping[epath.Path, Sequence[Row]],
        root: Path,
        features: Any,
        file_format: Any,
    ) -> dict[epath.Path, int]:
        """Write the examples of each shard to its path; returns how many each one holds."""
        tasks = [[str(path), rows] for path, rows in shards.items()]
        lengths = self.map(write_shard, tasks, root, features, file_format)
        return dict(zip(shards, lengths, strict=True))


def _do(number: int, folder: epath.Path, work: Callable[..., Any], arguments: Sequence) -> None:
    result = work(json.loads((folder / f"{number}.task").read_text()), *arguments)
    with utils.incomplete_file(folder / f"{number}.done") as path:
        path.write_text(json.dumps(result))


def scan_sources(sources: Sequence[str], root: Path) -> list[tuple[str, str, str, int]]:
    """Of each file: why it is bad or "", its hash, its pixels' digest, the length of its PNG."""
    results = []
    for source in sources:
        try:
            rgb, sha256 = read_file(root, source)
            results.append(("", sha256, dihedral_digest(rgb), len(encode_png(rgb))))
        except BadImage as error:
            results.append((str(error), "", "", 0))
    return results


def write_shard(
    task: tuple[str, Sequence[Row]],
    root: Path,
    features: Any,
    file_format: Any,
) -> int:
    """Write one shard, its images read and encoded one after the other; returns their number."""
    path, rows = task
    images = (Reread(root / row["source"], 0, 0, row["sha256"]) for row in rows)
    examples = (
        (row["source"], {"image": image, **row}) for row, image in zip(rows, images, strict=True)
    )
    specs: Any = features.get_serialized_info()
    shard_writer = writer.ShardWriter(
        features=features,
        serializer=example_serializer.ExampleSerializer(specs),
        example_writer=writer.ExampleWriter(file_format=file_format),
    )
    with utils.incomplete_files(epath.Path(path)) as partial:
        return shard_writer.write(examples, partial)
