"""Open the data set on disk: a TFDS array_record directory with the splits fold0, fold1, …

This is the reading side of the contract with `data_prep`; it needs neither TensorFlow nor the
builder's code, and is the only file of the package that knows TFDS.
"""

import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from bcvit_jax.augment import centre_square
from bcvit_jax.cache import load_arrays, save_arrays
from bcvit_jax.errors import UserError
from bcvit_jax.normalisation import AS_IT_IS, Normalisation

_FEATURES = ("image", "label", "source", "group")
_PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}


class CellDataset:
    """An opened data set, read-only; the images stay on disk.

    `labels[fold]` int32 [n], `sources[fold]` and `groups[fold]` str [n] stand in the order of the
    records. `fingerprint` changes with the cells, their labels or their folds.
    """

    def __init__(self, path: Path, header: dict[str, Any], index: dict[str, np.ndarray]):
        self.path = path
        self.class_names: tuple[str, ...] = header["class_names"]
        self.folds: tuple[str, ...] = header["folds"]
        self.donor_separated: bool = header["donor_separated"]
        self.group_kind: str = header["group_kind"]
        self.fingerprint: str = header["fingerprint"]
        self.file_key: str = header["file_key"]
        self.labels = {fold: index[f"{fold}.label"] for fold in self.folds}
        self.sources = {fold: index[f"{fold}.source"] for fold in self.folds}
        self.groups = {fold: index[f"{fold}.group"] for fold in self.folds}
        self._records: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_records": {}}  # worker processes open the files anew

    def png(self, fold: str, index: int) -> bytes:
        """The encoded picture as it is stored."""
        if fold not in self._records:
            self._records[fold] = _open_records(self.path, fold)
        return self._records[fold][int(index)]["image"]

    def image(self, fold: str, index: int) -> np.ndarray:
        """The decoded picture, uint8 [h, w, 3]."""
        return np.asarray(self._decode(fold, index))

    def digests(self, fold: str) -> list[str]:
        """Sixteen digits of the SHA-256 of every cell's source file, or else of its picture."""
        self.png(fold, 0)
        rows = (self._records[fold][i] for i in range(len(self.labels[fold])))
        return [
            _text(row.get("sha256") or hashlib.sha256(row["image"]).hexdigest())[:16]
            for row in rows
        ]

    def square(
        self,
        fold: str,
        index: int,
        centre_crop: float,
        side: int,
        margin: int = 0,
        normalise: Normalisation = AS_IT_IS,
    ) -> np.ndarray:
        """The middle of the picture as uint8 [side, side, 3], see `augment.centre_square`."""
        return centre_square(self._decode(fold, index), centre_crop, side, margin, normalise)

    def _decode(self, fold: str, index: int) -> Image.Image:
        try:
            with Image.open(io.BytesIO(self.png(fold, index)), formats=("PNG", "JPEG")) as image:
                return image.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(
                f"Image {index} of {fold} in {self.path} ({self.sources[fold][index]}) can't be "
                f"decoded ({error}): build the data set again."
            ) from error


def open_dataset(path: str | Path, cache: str = "") -> CellDataset:
    """Open the data set in the folder `path` (or its only one, path/*/*/dataset_info.json).

    Labels, sources and groups are read from the records, or from the folder `cache` where an
    earlier opening left them. Errors: UserError, with the command that builds a data set.
    """
    folder = _find_dataset(path)
    class_names, shards = _read_contract(folder)
    header = _read_header(folder, [f for files in shards.values() for f in files])
    header |= {"class_names": class_names, "folds": tuple(shards)}
    stored = Path(cache) / f"index-{header['file_key'][:16]}.npz" if cache else None
    index = load_arrays(stored) if stored else None
    if index is None:
        index = _scan_records(folder, tuple(shards), len(class_names))
        if stored:
            save_arrays(stored, index)
    return CellDataset(folder, header, index)


def _read_contract(folder: Path) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """Class names and the files of each fold. Errors: UserError where something is lacking."""
    try:
        info = tfds.builder_from_directory(folder).info
        features: Any = info.features or {}
        splits, file_format = info.splits, info.file_format
    except Exception as error:  # whatever a damaged dataset_info.json makes TFDS raise
        raise UserError(
            f"The data set {folder} can't be opened ({error}): copy or build it again."
        ) from error
    rebuild = f"build it with {_build_command('TREE', folder)}"
    lacking = [name for name in _FEATURES if name not in features]
    if lacking:
        raise UserError(
            f"The data set {folder} has no feature {', '.join(lacking)}; it must have "
            f"{', '.join(_FEATURES)}: {rebuild}."
        )
    folds = sorted((s for s in splits if re.fullmatch(r"fold\d+", s)), key=lambda s: int(s[4:]))
    if len(folds) < 2:
        raise UserError(
            f"The data set {folder} has the splits {', '.join(splits) or '(none)'}; it must have "
            f"two or more of fold0, fold1, …: {rebuild}."
        )
    class_names = tuple(getattr(features["label"], "names", None) or ())
    if not class_names or file_format is None or file_format.file_suffix != "array_record":
        raise UserError(
            f"The data set {folder} must have class names and be stored as array_record: {rebuild}."
        )
    return class_names, {fold: [str(f) for f in splits[fold].filepaths] for fold in folds}


def _build_command(tree: str | Path, out: str | Path) -> str:
    return f"`python -m data_prep.build folder --images {tree} --out {out}`"


def _find_dataset(path: str | Path) -> Path:
    """The folder with dataset_info.json at or two levels below `path`."""
    folder = Path(path).expanduser()
    if not str(path):
        raise UserError("config.data.path is empty; it must name the folder of a data set.")
    if not folder.exists():
        tree = "TREE"
        if folder.name == "lmu":
            tree = "AML-Cytomorphology_LMU"
        hint = f"build one with {_build_command(tree, path)}"
        if folder.name == "lmu":
            hint = hint.replace("build folder", "build lmu")  # the paper's ten classes
            hint += (
                ", after downloading AML-Cytomorphology_LMU from TCIA"
                " (https://doi.org/10.7937/tcia.2019.36f5o9ld)"
            )
        raise UserError(f"There is no data set at {path}: {hint}.")
    if not folder.is_dir():
        raise UserError(
            f"{path} is a file; a data set is a folder: build one with "
            f"{_build_command('TREE', 'data/NAME')}."
        )
    if (folder / "dataset_info.json").is_file():
        return folder
    below = sorted(
        found.parent
        for pattern in ("*/dataset_info.json", "*/*/dataset_info.json")
        for found in folder.glob(pattern)
    )
    if len(below) == 1:
        return below[0]
    if below:
        raise UserError(
            f"{path} holds {len(below)} data sets ({', '.join(map(str, below[:5]))}): name one."
        )
    command = _build_command(path, f"{str(path).rstrip('/')}-dataset")
    with_pictures = sorted(
        sub.name for sub in folder.iterdir() if sub.is_dir() and _holds_pictures(sub)
    )
    if with_pictures:
        raise UserError(
            f"{path} is a tree of image folders ({', '.join(with_pictures[:5])}"
            f"{', …' if len(with_pictures) > 5 else ''}), not a data set: build one with {command}."
        )
    what = "empty" if not any(folder.iterdir()) else "not a data set (no dataset_info.json)"
    raise UserError(f"{path} is {what}: build one with {_build_command('TREE', path)}.")


def _holds_pictures(folder: Path) -> bool:
    names = itertools.islice(folder.rglob("*"), 1000)
    return any(name.suffix.lower() in _PICTURES for name in names)


def _read_header(folder: Path, shards: list[str]) -> dict[str, Any]:
    """What the data set says of itself, its fingerprint, and a key that changes with its files."""
    try:
        metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        metadata = {}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/metadata.json can't be read ({error}): build again.") from error
    digest = hashlib.sha256()
    for name in ("dataset_info.json", "features.json"):
        digest.update((folder / name).read_bytes())
    for shard in shards:
        if not Path(shard).is_file():
            raise UserError(
                f"The data set {folder} lacks its file {shard}: copy or build it again."
            )
        digest.update(f"{Path(shard).name} {Path(shard).stat().st_size}\n".encode())
    files = digest.hexdigest()
    content = str(metadata.get("content_sha256") or files)
    return {
        "donor_separated": bool(metadata.get("donor_separated", False)),
        "group_kind": str(metadata.get("group_kind", "image")),
        "fingerprint": content,
        "file_key": hashlib.sha256(f"{content} {files}".encode()).hexdigest(),
    }


def _open_records(folder: Path, fold: str) -> Any:
    """Random access to the records of a fold; images stay encoded."""
    builder: Any = tfds.builder_from_directory(folder)
    skip: Any = tfds.decode.SkipDecoding
    return builder.as_data_source(fold, decoders={"image": skip()})


def _scan_records(folder: Path, folds: tuple[str, ...], classes: int) -> dict[str, np.ndarray]:
    """Read every record once: {"fold0.label": int32 [n], "fold0.source": str [n], …}."""
    index = {}
    for fold in folds:
        try:
            rows = [
                (int(r["label"]), _text(r["source"]), _text(r["group"]))
                for r in _open_records(folder, fold)
            ]
        except Exception as error:  # damaged shards: array_record raises its own kinds
            raise UserError(
                f"{fold} of the data set {folder} can't be read ({error}): copy or build it again."
            ) from error
        labels = np.array([row[0] for row in rows], np.int32)
        if not len(labels) or labels.min() < 0 or labels.max() >= classes:
            raise UserError(
                f"{fold} of the data set {folder} is empty or has labels outside its "
                f"{classes} classes: build it again."
            )
        index[f"{fold}.label"] = labels
        index[f"{fold}.source"] = np.array([row[1] for row in rows], str)
        index[f"{fold}.group"] = np.array([row[2] for row in rows], str)
    return index


def _text(value: bytes | str) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def check_folds(dataset: CellDataset, folds: Iterable[int | str]) -> tuple[str, ...]:
    """Fold numbers or names → names, each once. Errors: UserError on one that isn't there."""
    names = tuple(
        f"fold{fold}" if not str(fold).startswith("fold") else str(fold) for fold in folds
    )
    for name in names:
        if name not in dataset.folds:
            raise UserError(
                f"fold {name.removeprefix('fold')} is not in the data set {dataset.path}, "
                f"which has {dataset.folds[0]} … {dataset.folds[-1]}."
            )
    if not names or len(set(names)) != len(names):
        raise UserError(
            f"The folds are {', '.join(names) or '(none)'}; name one or more, each once."
        )
    return names
