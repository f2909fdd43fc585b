"""The TFDS builder of single cells: `tfds build data_prep/cells --manual_dir=TREE`.

`python -m data_prep.build folder` uses the same builder without TensorFlow. Examples are written
shard by shard, so memory does not grow with the data set.
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
        """For each fold, the shards: about SHARD_BYTES each, in an order hashed from the source."""
        if self.plan is None:
            self._spool = tempfile.TemporaryDirectory()
            self.plan = make_plan(Path(dl_manager.manual_dir), Path(self._spool.name))
            print(*self.plan.notes, self.plan.table(), sep="\n")
        self._label.names = list(self.plan.class_names)
        self._metadata.update(self.plan.metadata(self.tool, _project_version()))
        return shards_of_folds(self.plan)


def _project_version() -> str:
    try:
        return importlib.metadata.version("bcvit")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def shards_of_folds(plan: Plan) -> dict[str, list[Callable[[], Iterator[KeyExample]]]]:
    """Split name -> generators of (source, example), one a shard; they move one progress bar."""
    bar = tqdm(total=len(plan.examples), desc="writing", unit=" images", disable=None)
    splits = {}
    for fold in range(plan.folds):
        rows = [example for example in plan.examples if example.fold == fold]
        rows.sort(key=lambda example: hashlib.sha256(example.source.encode()).digest())
        size = sum(example.png.length for example in rows)
        step = -(-len(rows) // (size // SHARD_BYTES + 1))
        shards = [rows[start : start + step] for start in range(0, len(rows), step)]
        splits[f"fold{fold}"] = [partial(_generate, shard, bar) for shard in shards]
    return splits


def _generate(shard: Sequence[Example], bar: tqdm) -> Iterator[KeyExample]:
    for example in shard:
        bar.update()
        yield (
            example.source,
            {
                "image": example.png,  # its `read` is called when the record is written
                "label": example.label,
                "source": example.source,
                "group": example.group,
                "sha256": example.sha256,
            },
        )
    if bar.n == bar.total:
        bar.close()
