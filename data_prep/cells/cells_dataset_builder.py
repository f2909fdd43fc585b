"""The TFDS builder of single cells: `tfds build data_prep/cells --manual_dir=TREE`.

`python -m data_prep.build folder` uses the same builder without TensorFlow. Examples are written
shard by shard, so memory does not grow with the data set. With Beam options the images are read
and the shards written by Beam's workers, to the same files.
"""

import hashlib
import importlib.metadata
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from tqdm import tqdm

from data_prep.plan import Example, Plan, make_plan

SHARD_BYTES = 256 * 2**20
KeyExample = tuple[str, dict[str, Any]]


class Builder(tfds.core.ShardBasedBuilder):
    """Cells with label, source, group and hash, in stratified grouped folds."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    A tree of class folders with PNG, JPEG or TIFF images, as in TREE/BAS/BAS_0001.tiff, and where
    donors or slides are known TREE/groups.csv with the columns path,donor or path,slide.
    """

    def __init__(self, plan: Plan | None = None, tool: str = "tfds build", **kwargs: Any) -> None:
        """Without a plan, one is made from --manual_dir when the data set is prepared."""
        self.plan, self.tool = plan, tool
        self._spool: tempfile.TemporaryDirectory[str] | None = None
        kwargs["file_format"] = kwargs.get("file_format") or "array_record"
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        # Filled when the plan is known.
        self._label = tfds.features.ClassLabel()
        self._metadata = tfds.core.MetadataDict()
        text = tfds.features.Text()
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": self._label,
            "source": text,
            "group": text,
            "sha256": text,
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.7507/1001-5515.202203008",
            metadata=self._metadata,
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, Sequence[Callable[[], Iterator[KeyExample]]]]:
        """For each fold, its shards."""
        if self.plan is None:
            self._spool = tempfile.TemporaryDirectory()
            self.plan = make_plan(Path(dl_manager.manual_dir), Path(self._spool.name))
            print(*self.plan.notes, self.plan.table(), sep="\n")
        self._describe(self.plan)
        bar = tqdm(total=len(self.plan.examples), desc="writing", unit=" images", disable=None)
        return {
            fold: [partial(_generate, shard, bar) for shard in shards]
            for fold, shards in shards_of_folds(self.plan).items()
        }

    def _describe(self, plan: Plan) -> None:
        self._label.names = list(plan.class_names)
        self._metadata.update(plan.metadata(self.tool, _project_version()))

    def _download_and_prepare(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: tfds.download.DownloadConfig | None = None,
    ) -> None:
        """As in TFDS, but with Beam options the images are read and the shards written by Beam.

        TFDS 4.9 heeds no options here, and with a runner writes a fold anew for every later one.
        """
        options = download_config and download_config.beam_options
        runner = download_config and download_config.beam_runner
        if self.plan is not None or not (options or runner):
            super()._download_and_prepare(dl_manager, download_config)
            return
        from data_prep.cells.with_beam import Cluster

        # Workers have another working directory.
        root, folder = Path(dl_manager.manual_dir).absolute(), self.data_path.resolve()
        cluster = Cluster(options, runner, folder / "beam")
        self.plan = make_plan(root, Path(), scan=cluster.scan_files)
        print(*self.plan.notes, self.plan.table(), sep="\n")
        self._describe(self.plan)
        rows, paths_of = {}, {}
        for fold, shards in shards_of_folds(self.plan).items():
            template = self._get_filename_template(fold).replace(data_dir=folder)
            paths_of[fold] = template.sharded_filepaths(len(shards))
            for path, shard in zip(paths_of[fold], shards, strict=True):
                rows[path] = [row_of(example) for example in shard]
        counts = cluster.write_shards(rows, root, self.info.features, self.info.file_format)
        cluster.folder.rmtree()
        splits = [
            tfds.core.SplitInfo(
                name=fold,
                shard_lengths=[counts[path] for path in paths],
                num_bytes=sum(path.stat().length for path in paths),
                filename_template=self._get_filename_template(fold),
            )
            for fold, paths in paths_of.items()
        ]
        self.info.set_splits(tfds.core.SplitDict(splits))


def _project_version() -> str:
    try:
        return importlib.metadata.version("bcvit")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def shards_of_folds(plan: Plan) -> dict[str, list[list[Example]]]:
    """Split name -> shards of about SHARD_BYTES, in an order hashed from the source."""
    splits = {}
    for fold in range(plan.folds):
        rows = [example for example in plan.examples if example.fold == fold]
        rows.sort(key=lambda example: hashlib.sha256(example.source.encode()).digest())
        size = sum(example.png.length for example in rows)
        step = -(-len(rows) // (size // SHARD_BYTES + 1))
        splits[f"fold{fold}"] = [rows[at : at + step] for at in range(0, len(rows), step or 1)]
    return splits


def row_of(example: Example) -> dict[str, Any]:
    """An example without its image."""
    row = {"label": example.label, "source": example.source, "group": example.group}
    return {**row, "sha256": example.sha256}


def _generate(shard: Sequence[Example], bar: tqdm) -> Iterator[KeyExample]:
    for example in shard:
        bar.update()
        # The `read` of the PNG is called when the record is written.
        yield example.source, {"image": example.png, **row_of(example)}
    if bar.n == bar.total:
        bar.close()
