"""Fixtures of all tests: a tiny data set as data_prep leaves it, and the real images if there."""

import hashlib
import io
import signal
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw

tfds.disable_progress_bar()
# A shell's background job ignores Ctrl-C, and the programs that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

CLASSES = ("DISC", "RING", "BARS")
FOLDS = 5


def draw_cell(label: int, rng: np.random.Generator) -> np.ndarray:
    """A disc, a ring or two bars of varied size, place and tint: uint8 [h, w, 3], 32 … 48 px."""
    width, height = (int(edge) for edge in rng.integers(32, 49, 2))
    image = Image.new("RGB", (width, height), tuple(rng.integers(200, 240, 3).tolist()))
    draw = ImageDraw.Draw(image)
    tint = tuple(rng.integers(60, 140, 3).tolist())
    x, y = width / 2 + rng.uniform(-3, 3), height / 2 + rng.uniform(-3, 3)
    r = rng.uniform(8, 12)
    if label < 2:
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tint)
    if label == 1:
        draw.ellipse((x - r / 2, y - r / 2, x + r / 2, y + r / 2), fill=(220, 220, 220))
    if label == 2:
        draw.rectangle((x - r, y - r, x - r / 3, y + r), fill=tint)
        draw.rectangle((x + r / 3, y - r, x + r, y + r), fill=tint)
    pixels = np.asarray(image) + rng.normal(0, 4, (height, width, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def write_dataset(folder: Path, counts: tuple[int, ...], seed: int = 0) -> Path:
    """A data set of `counts[c]` cells a class, dealt to the folds in turn; returns `folder`.

    Written through TFDS alone, so that the reader is tested against the contract, not the builder.
    """
    rng = np.random.default_rng(seed)
    splits: dict[str, list[tuple[str, dict]]] = {f"fold{k}": [] for k in range(FOLDS)}
    lines = []
    for label, count in enumerate(counts):
        for i in range(count):
            file = io.BytesIO()
            Image.fromarray(draw_cell(label, rng)).save(file, "PNG")
            source, fold = f"{CLASSES[label]}/{i:03}.png", f"fold{i % FOLDS}"
            file.seek(0)  # TFDS reads on from where the file stands
            sha256 = hashlib.sha256(file.getvalue()).hexdigest()
            lines.append(f"{fold} {source} {label} {sha256}\n")
            example = {"image": file, "label": label, "source": source, "group": source}
            splits[fold].append((source, example | {"sha256": sha256}))
    metadata = {
        "donor_separated": False,
        "group_kind": "image",
        "content_sha256": hashlib.sha256("".join(sorted(lines)).encode()).hexdigest(),
    }

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # pyright: ignore
        name = "tiny"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = tfds.features.Text()
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list(CLASSES[: len(counts)])),
                    "source": text,
                    "group": text,
                    "sha256": text,
                }
            )
            return tfds.core.DatasetInfo(
                builder=self, features=features, metadata=tfds.core.MetadataDict(metadata)
            )

        def _split_generators(self, dl_manager):
            return {name: iter(rows) for name, rows in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    builder = Tiny(data_dir=folder.parent / f"{folder.name}-build", file_format="array_record")
    builder.download_and_prepare()
    Path(builder.data_dir).rename(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> Path:
    """A data set of 60 cells, 3 classes (30, 20, 10), 5 folds; shapes tell the classes apart."""
    return write_dataset(tmp_path_factory.mktemp("data") / "tiny", (30, 20, 10))


@pytest.fixture(scope="session")
def cells(tiny_dataset):
    """The tiny data set, opened."""
    from bcvit_jax.dataset import open_dataset

    return open_dataset(tiny_dataset)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real blood-cell images beside the checkout; the test is skipped without it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real images in ../shared/data")
    return folder


@pytest.fixture
def strict_ranks(monkeypatch):
    """Implicit rank promotion raises, but for the biases and scales of the three layers."""
    import jax

    from bcvit_jax.models import layers

    def lenient(call):
        def wrapped(self, x):
            with jax.numpy_rank_promotion("allow"):
                return call(self, x)

        return wrapped

    for layer in (layers.Dense, layers.LayerNorm, layers.Convolution):
        monkeypatch.setattr(layer, "__call__", lenient(layer.__call__))
    with jax.numpy_rank_promotion("raise"):
        yield
