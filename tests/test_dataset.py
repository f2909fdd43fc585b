"""The data set on disk: what is read from it, and one clear sentence for what is none."""

import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bcvit_jax.dataset import CellDataset, check_folds, open_dataset
from bcvit_jax.errors import UserError
from tests.conftest import CLASSES, FOLDS, write_dataset


def test_the_data_set_says_what_is_in_it(cells, tiny_dataset):
    assert cells.path == tiny_dataset
    assert cells.class_names == CLASSES
    assert cells.folds == tuple(f"fold{k}" for k in range(FOLDS))
    assert (cells.donor_separated, cells.group_kind) == (False, "image")
    for fold in cells.folds:
        assert cells.labels[fold].dtype == np.int32
        assert np.bincount(cells.labels[fold]).tolist() == [6, 4, 2]
        named = [source.split("/")[0] for source in cells.sources[fold]]
        assert named == [CLASSES[label] for label in cells.labels[fold]]
        assert len(cells.groups[fold]) == 12


def test_image_and_png_are_the_stored_picture(cells):
    decoded = np.asarray(Image.open(io.BytesIO(cells.png("fold2", 5))))
    np.testing.assert_array_equal(cells.image("fold2", 5), decoded)
    assert decoded.dtype == np.uint8 and decoded.ndim == 3 and min(decoded.shape[:2]) >= 32


def test_the_fingerprint_is_the_content_and_changes_with_it(cells, tiny_dataset, tmp_path):
    stored = json.loads((tiny_dataset / "metadata.json").read_text())
    assert cells.fingerprint == stored["content_sha256"]
    moved = open_dataset(shutil.copytree(tiny_dataset, tmp_path / "elsewhere"))
    assert moved.fingerprint == cells.fingerprint
    other = open_dataset(write_dataset(tmp_path / "other", (10, 10, 5), seed=1))
    assert other.fingerprint != cells.fingerprint


def test_a_data_set_without_metadata_has_a_fingerprint_of_its_files(tiny_dataset, tmp_path):
    bare = shutil.copytree(tiny_dataset, tmp_path / "bare")
    (bare / "metadata.json").unlink()
    again = shutil.copytree(bare, tmp_path / "again")
    assert open_dataset(bare).fingerprint == open_dataset(again).fingerprint
    assert len(open_dataset(bare).fingerprint) == 64


def test_a_tfds_data_dir_with_one_data_set_opens(tiny_dataset, tmp_path):
    shutil.copytree(tiny_dataset, tmp_path / "cells" / "1.0.0")
    assert open_dataset(tmp_path).path == tmp_path / "cells" / "1.0.0"
    shutil.copytree(tiny_dataset, tmp_path / "cells" / "1.0.1")
    with pytest.raises(UserError, match="holds 2 data sets"):
        open_dataset(tmp_path)


def test_an_opened_data_set_can_be_sent_to_another_process(cells):
    cells.png("fold0", 0)
    copy = pickle.loads(pickle.dumps(cells))
    assert copy.png("fold0", 3) == cells.png("fold0", 3)


def test_opening_again_reads_the_index_instead_of_the_records(tiny_dataset, tmp_path, monkeypatch):
    first = open_dataset(tiny_dataset, cache=str(tmp_path))
    monkeypatch.setattr("bcvit_jax.dataset._scan_records", lambda *_: pytest.fail("scanned"))
    second = open_dataset(tiny_dataset, cache=str(tmp_path))
    for fold in first.folds:
        np.testing.assert_array_equal(first.sources[fold], second.sources[fold])
        np.testing.assert_array_equal(first.labels[fold], second.labels[fold])


def test_a_damaged_index_is_read_from_the_records_again(tiny_dataset, tmp_path):
    first = open_dataset(tiny_dataset, cache=str(tmp_path))
    (index,) = tmp_path.glob("index-*.npz")
    index.write_bytes(index.read_bytes()[:100])
    second = open_dataset(tiny_dataset, cache=str(tmp_path))
    np.testing.assert_array_equal(first.sources["fold1"], second.sources["fold1"])


# Refusals: one sentence each


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def test_a_missing_path_names_the_build_command(tmp_path):
    path = tmp_path / "cells"
    with pytest.raises(UserError) as caught:
        open_dataset(path)
    command = f"python -m data_prep.build folder --images TREE --out {path}"
    assert command in str(caught.value) and str(caught.value).endswith(".")


def test_the_missing_lmu_set_names_where_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        open_dataset("data/lmu")
    assert "AML-Cytomorphology_LMU" in str(caught.value)
    assert "TCIA" in str(caught.value) and "--out data/lmu`" in str(caught.value)


def test_a_tree_of_pictures_is_told_from_a_data_set(tmp_path):
    picture(tmp_path / "tree" / "BAS" / "BAS_0001.tiff")
    picture(tmp_path / "tree" / "EOS" / "a.png")
    with pytest.raises(UserError) as caught:
        open_dataset(tmp_path / "tree")
    assert "tree of image folders (BAS, EOS)" in str(caught.value)
    assert f"--images {tmp_path}/tree --out {tmp_path}/tree-dataset`" in str(caught.value)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda p: p.mkdir(), "is empty"),
        (lambda p: p.write_text("x"), "is a file"),
        (lambda p: (p.mkdir(), (p / "notes.txt").write_text("x")), "no dataset_info.json"),
        (lambda p: (p.mkdir(), (p / "dataset_info.json").write_text("{")), "can't be opened"),
    ],
)
def test_other_things_in_the_place_of_a_data_set_are_refused(tmp_path, prepare, words):
    prepare(tmp_path / "x")
    with pytest.raises(UserError, match=words):
        open_dataset(tmp_path / "x")


def test_an_empty_path_is_refused():
    with pytest.raises(UserError, match="path is empty"):
        open_dataset("")


def edited(dataset, copy, file, change):
    """A copy of a data set with one JSON file changed."""
    shutil.copytree(dataset, copy)
    stored = json.loads((copy / file).read_text())
    change(stored)
    (copy / file).write_text(json.dumps(stored))
    return copy


def test_a_data_set_without_folds_is_refused(tiny_dataset, tmp_path):
    def rename(info):
        for split in info["splits"]:
            split["name"] = split["name"].replace("fold", "part")

    path = edited(tiny_dataset, tmp_path / "x", "dataset_info.json", rename)
    with pytest.raises(UserError, match=r"splits part0, .*fold0, fold1"):
        open_dataset(path)


def test_a_data_set_without_groups_is_refused(tiny_dataset, tmp_path):
    def drop(features):
        del features["featuresDict"]["features"]["group"]

    path = edited(tiny_dataset, tmp_path / "x", "features.json", drop)
    with pytest.raises(UserError, match="no feature group"):
        open_dataset(path)


def test_a_missing_and_a_truncated_shard_are_named(tiny_dataset, tmp_path):
    path = shutil.copytree(tiny_dataset, tmp_path / "x")
    (shard,) = path.glob("*fold3*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="fold3"):
        open_dataset(path)
    shard.unlink()
    with pytest.raises(UserError, match=r"lacks its file .*fold3"):
        open_dataset(path)


def test_an_unknown_fold_is_named_beside_those_that_exist(cells):
    assert check_folds(cells, [0, "fold3"]) == ("fold0", "fold3")
    with pytest.raises(UserError, match=r"fold 7 is not in .* has fold0 … fold4"):
        check_folds(cells, [0, 7])
    with pytest.raises(UserError, match="each once"):
        check_folds(cells, [1, "fold1"])
    with pytest.raises(UserError, match="none"):
        check_folds(cells, [])


def test_a_picture_that_cannot_be_decoded_is_named(cells, monkeypatch):
    monkeypatch.setattr(CellDataset, "png", lambda *_: b"no picture")
    with pytest.raises(UserError) as caught:
        cells.image("fold1", 2)
    assert "Image 2 of fold1" in str(caught.value)
    assert cells.sources["fold1"][2] in str(caught.value)
