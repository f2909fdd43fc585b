"""`tfds build data_prep/cells`, alone and on Beam: the same data set as without TensorFlow."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_prep import build, scan
from data_prep.cells import cells_dataset_builder
from data_prep.errors import BuildError

missing = [name for name in ("tensorflow", "apache_beam") if not importlib.util.find_spec(name)]
pytestmark = [
    pytest.mark.skipif(
        bool(missing), reason=f"needs {' and '.join(missing)}: pip install -e '.[tfds]'"
    ),
    pytest.mark.filterwarnings("default"),  # Beam's own
]
ROOT = Path(__file__).resolve().parents[1]
WORKERS = "runner=DirectRunner,direct_num_workers=2,direct_running_mode=multi_processing"


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Three classes in three formats, with a turned copy, an accent and donors."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("tfds") / "tree"
    rows = ["path,donor"]
    for name, count, suffix in (("A", 24, "png"), ("B é", 20, "tiff"), ("C", 12, "bmp")):
        (root / name).mkdir(parents=True)
        for number in range(count):
            path = root / name / f"{number:02}.{suffix}"
            Image.fromarray(rng.integers(0, 256, (16, 20, 3), np.uint8)).save(path)
            rows.append(f"{path.relative_to(root).as_posix()},d{number % 9}")
    turned = np.rot90(np.asarray(Image.open(root / "A" / "00.png")))
    Image.fromarray(turned).save(root / "A" / "99.png")
    rows.append("A/99.png,d8")
    (root / "groups.csv").write_text("\n".join(rows), encoding="utf-8")
    return root


def tfds_build(tree: Path, data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    main = "from tensorflow_datasets.scripts.cli.main import launch_cli; launch_cli()"
    places = (f"--manual_dir={tree}", f"--data_dir={data_dir}")
    command = [sys.executable, "-c", main, "build", "data_prep/cells", *places, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """All examples in order, the images as the bytes that are stored."""
    builder: Any = tfds.builder_from_directory(folder)
    decoders: Any = {"image": tfds.decode.SkipDecoding()}
    return {
        fold: list(builder.as_data_source(fold, decoders=decoders)) for fold in builder.info.splits
    }


@pytest.fixture(scope="module")
def without_tensorflow(tree) -> Path:
    out = tree.parent / "without"
    arguments = ("folder", "--images", str(tree), "--out", str(out), "--workers", "1")
    assert build.main(arguments) == 0
    return out


@pytest.mark.parametrize("options", [(), (f"--beam_pipeline_options={WORKERS}",)])
def test_the_command_builds_the_same_data_set(options, tree, without_tensorflow, tmp_path):
    done = tfds_build(tree, tmp_path / "data", *options)
    assert done.returncode == 0, done.stderr
    assert ("Python sdk harness starting" in done.stderr) == bool(options)  # Beam's processes
    assert "Groups that share an equal image are kept together" in done.stdout
    folder = tmp_path / "data" / "cells" / "1.0.0"
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in without_tensorflow.iterdir())

    metadata, expected = (
        json.loads((path / "metadata.json").read_text()) for path in (folder, without_tensorflow)
    )
    assert metadata["content_sha256"] == expected["content_sha256"]
    assert metadata == {**expected, "tool": "tfds build"} and metadata["donor_separated"]

    found = read(folder)
    assert found == read(without_tensorflow)  # in the same order, image bytes and all
    assert sum(map(len, found.values())) == 57


def build_with(tree: Path, data_dir: Path, **beam: Any) -> Path:
    """The data set's folder, built in this process with Beam's threads."""
    config = tfds.download.DownloadConfig(manual_dir=tree, register_checksums=False, **beam)
    builder: Any = cells_dataset_builder.Builder(data_dir=data_dir)
    builder.download_and_prepare(download_config=config)
    return Path(builder.data_dir)


def options(**more: Any) -> Any:
    from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore

    return PipelineOptions(runner="BundleBasedDirectRunner", **more)


def test_beam_reads_every_image_twice_and_the_driver_none(
    tree, without_tensorflow, tmp_path, monkeypatch
):
    from data_prep.cells import with_beam

    read_by_beam = []

    def read_file(root, source):
        read_by_beam.append((root / source).relative_to(tree).as_posix())
        return scan.read_file(root, source)

    monkeypatch.setattr(with_beam, "read_file", read_file)
    monkeypatch.setattr(scan, "scan_batch", None)  # what the driver itself would call
    monkeypatch.setattr(cells_dataset_builder, "SHARD_BYTES", 3000)
    folder = build_with(tree, tmp_path, beam_options=options())
    expected = read(without_tensorflow)
    assert read(folder) == expected
    sources = sorted(row["source"].decode() for rows in expected.values() for row in rows)
    assert sorted(read_by_beam) == sorted(sources * 2)  # scanned, then written
    assert len(list(folder.glob("*-fold0.*"))) > 2
    assert not (folder / "beam").exists()


def test_a_runner_without_options_is_beam_too(tree, without_tensorflow, tmp_path):
    folder = build_with(tree, tmp_path, beam_runner="BundleBasedDirectRunner")
    assert read(folder) == read(without_tensorflow)


def test_bad_files_are_told_all_at_once_and_nothing_is_left(tree, tmp_path):
    images = tmp_path / "tree"
    (images / "A").mkdir(parents=True)
    for number in range(6):
        (images / "A" / f"{number}.png").write_bytes((tree / "A" / f"0{number}.png").read_bytes())
    (images / "A" / "empty.png").touch()
    (images / "A" / "text.png").write_text("no image")
    with pytest.raises(BuildError, match="2 of 8 files cannot be used") as error:
        build_with(images, tmp_path / "data", beam_options=options())
    assert "A/empty.png: is empty" in str(error.value) and "A/text.png: is not" in str(error.value)
    assert not list((tmp_path / "data").rglob("*.png")) + list((tmp_path / "data").rglob("*.task"))


def test_an_image_that_changes_meanwhile_stops_the_build(tree, tmp_path, monkeypatch):
    from data_prep.cells import with_beam

    calls = []

    def read_file(root, source):
        calls.append(source)
        rgb, sha256 = scan.read_file(root, source)
        return rgb, sha256 if len(calls) <= 57 else "0" * 64

    monkeypatch.setattr(with_beam, "read_file", read_file)
    with pytest.raises(Exception, match="has changed since the build began: start it again"):
        build_with(tree, tmp_path, beam_options=options())
    assert not (tmp_path / "cells" / "1.0.0").exists()
