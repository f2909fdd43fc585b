"""The build command as a person meets it: the data set it leaves, and its sentences."""

import hashlib
import io
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_prep import build, place
from data_prep.cells import cells_dataset_builder
from tests.test_images import empty_png

ROOT = Path(__file__).resolve().parents[1]
SKIP: Any = {"image": tfds.decode.SkipDecoding()}


@pytest.fixture
def tree(tmp_path) -> Path:
    """Three classes in three formats: 12 PNG (A), 10 TIFF with alpha (B), 6 BMP (C), of noise."""
    rng = np.random.default_rng(0)
    root = tmp_path / "tree"
    for name, count, suffix in (("A", 12, "png"), ("B", 10, "tiff"), ("C", 6, "bmp")):
        (root / name).mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(rng.integers(0, 256, (16, 20, 3), np.uint8))
            if suffix == "tiff":
                image.putalpha(255)
            image.save(root / name / f"{number:02}.{suffix}")
    (root / "labels.csv").write_text("path,label\n")
    return root


def run(*arguments: str | Path) -> int:
    return build.main(["folder", *map(str, arguments), "--workers", "1"])


def read_back(folder: Path) -> dict[str, list[dict]]:
    builder: Any = tfds.builder_from_directory(folder)
    return {fold: list(builder.as_data_source(fold, decoders=SKIP)) for fold in builder.info.splits}


def test_a_tree_becomes_a_lossless_data_set(tree, tmp_path, capsys):
    assert run("--images", tree, "--out", tmp_path / "out") == 0
    folds = read_back(tmp_path / "out")
    assert list(folds) == ["fold0", "fold1", "fold2", "fold3", "fold4"]
    rows = {row["source"].decode(): row for fold in folds.values() for row in fold}
    paths = sorted(path for path in tree.glob("*/*"))
    assert sorted(rows) == [path.relative_to(tree).as_posix() for path in paths]
    names = (tmp_path / "out" / "label.labels.txt").read_text().split()
    assert names == ["A", "B", "C"]
    for path in paths:
        row = rows[path.relative_to(tree).as_posix()]
        stored = Image.open(io.BytesIO(row["image"]))
        assert stored.format == "PNG"
        np.testing.assert_array_equal(np.asarray(stored), np.asarray(Image.open(path))[..., :3])
        assert names[row["label"]] == path.parent.name
        assert row["group"] == row["source"]
        assert row["sha256"].decode() == hashlib.sha256(path.read_bytes()).hexdigest()
    lines = sorted(
        f"{fold} {row['source'].decode()} {row['label']} {row['sha256'].decode()}\n"
        for fold, rows in folds.items()
        for row in rows
    )
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert metadata == {
        "donor_separated": False,
        "group_kind": "image",
        "content_sha256": hashlib.sha256("".join(lines).encode()).hexdigest(),
        "tool": "data_prep.build folder",
        "version": metadata["version"],
    }
    printed = capsys.readouterr().out
    assert "cells of one donor may stand in several folds" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tree"]


def test_a_large_fold_is_written_in_several_shards(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(cells_dataset_builder, "SHARD_BYTES", 2000)
    assert run("--images", tree, "--out", tmp_path / "out") == 0
    assert len(list((tmp_path / "out").glob("*fold0*"))) > 2
    assert sum(map(len, read_back(tmp_path / "out").values())) == 28


def test_donors_are_kept_and_remembered(tree, tmp_path):
    sources = [path.relative_to(tree).as_posix() for path in sorted(tree.glob("*/*"))]
    rows = "".join(f"{source},d{number % 7}\n" for number, source in enumerate(sources))
    (tmp_path / "donors.csv").write_text("path,donor\n" + rows)
    choices = ("--groups", tmp_path / "donors.csv", "--folds", "3")
    assert run("--images", tree, "--out", tmp_path / "out", *choices) == 0
    folds = read_back(tmp_path / "out")
    donors = [{row["group"] for row in fold} for fold in folds.values()]
    assert sum(map(len, donors)) == len(set.union(*donors)) == 7
    assert json.loads((tmp_path / "out" / "metadata.json").read_text())["donor_separated"] is True


def test_classes_are_chosen(tree, tmp_path, capsys):
    choices = ("--classes", "A,C", "--min-images", "8")
    assert run("--images", tree, "--out", tmp_path / "out", *choices) == 0
    assert "fewer than 8 images are left out: C (6)" in capsys.readouterr().out
    assert (tmp_path / "out" / "label.labels.txt").read_text().split() == ["A"]


def test_bad_files_stop_the_build_or_are_skipped(tree, tmp_path, capsys):
    (tree / "A" / "zero.png").touch()
    (tree / "A" / "text.png").write_text("hello")
    (tree / "B" / "cut.tiff").write_bytes((tree / "B" / "00.tiff").read_bytes()[:400])
    (tree / "C" / "huge.png").write_bytes(empty_png(20_000, 20_000).getvalue())
    assert run("--images", tree, "--out", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "4 of 32 files cannot be used" in told and "--skip-bad" in told
    names = ["A/text.png", "A/zero.png", "B/cut.tiff", "C/huge.png"]
    assert [line.split(":")[0].strip() for line in told.splitlines()[1:]] == names
    assert "20000 x 20000" in told
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]

    assert run("--images", tree, "--out", tmp_path / "out", "--skip-bad") == 0
    assert sum(map(len, read_back(tmp_path / "out").values())) == 28
    listed = (tmp_path / "out" / "skipped.csv").read_text().splitlines()
    assert listed[0] == "path,reason"
    assert [line.split(",")[0] for line in listed[1:]] == names


def test_a_name_that_is_not_utf_8_is_told_and_skipped(tree, tmp_path, capsys):
    (tree / "A" / "caf\udce9.png").write_bytes((tree / "A" / "00.png").read_bytes())
    (tree / "\udce9").mkdir()
    (tree / "\udce9" / "1.png").touch()
    assert run("--images", tree, "--out", tmp_path / "out") == 2
    assert r"A/caf\udce9.png: has a name that is not UTF-8" in capsys.readouterr().err
    assert run("--images", tree, "--out", tmp_path / "out", "--skip-bad") == 0
    assert r"caf\udce9" in (tmp_path / "out" / "skipped.csv").read_text()


def test_an_existing_data_set_is_replaced_only_when_asked(tree, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--images", tree, "--out", out) == 0
    before = (out / "metadata.json").read_text()
    assert run("--images", tree, "--out", out, "--seed", "1") == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert (out / "metadata.json").read_text() == before
    assert run("--images", tree, "--out", out, "--seed", "1", "--overwrite") == 0
    assert (out / "metadata.json").read_text() != before
    before = (out / "metadata.json").read_text()
    (tree / "A" / "zero.png").touch()
    assert run("--images", tree, "--out", out, "--overwrite") == 2
    assert (out / "metadata.json").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tree"]


def test_a_failing_write_leaves_the_old_data_set(tree, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert run("--images", tree, "--out", out) == 0
    before = (out / "metadata.json").read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "write_dataset", full)
    assert run("--images", tree, "--out", out, "--overwrite") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert (out / "metadata.json").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tree"]


def test_folders_that_would_be_spoiled_are_refused(tree, tmp_path, capsys):
    for out in (tree, tree / "sub", tmp_path):
        assert run("--images", tree, "--out", out, "--overwrite") == 2
        assert "overlap" in capsys.readouterr().err
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").touch()
    assert run("--images", tree, "--out", tmp_path / "home", "--overwrite") == 2
    assert "is not a data set" in capsys.readouterr().err
    assert (tmp_path / "home" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--images", "nowhere"), "nowhere is not a folder"),
        (("--classes", "A,Z"), "names Z, but the class folders are A, B, C"),
        (("--groups", "nowhere.csv"), "nowhere.csv cannot be read"),
        (("--folds", "100"), "28 separate images cannot fill 100 folds"),
        (("--min-images", "99"), "leaves no class"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(tree, tmp_path, capsys, arguments, told):
    assert run("--images", tree, "--out", tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert told in error and len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_an_unknown_option_is_answered_by_argparse(capsys):
    with pytest.raises(SystemExit) as stop:
        build.main(["folder", "--imagse", "x"])
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_synthetic_cells_are_rendered_and_built_by_slide(tmp_path):
    out = str(tmp_path / "out")
    arguments = ["--images-per-class", "5", "--size", "24", "--workers", "1"]
    assert build.main(["synthetic", "--out", out, *arguments]) == 0
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert (metadata["group_kind"], metadata["tool"]) == ("slide", "data_prep.build synthetic")
    folds = read_back(tmp_path / "out")
    assert sum(map(len, folds.values())) == 50


def test_building_imports_neither_tensorflow_nor_torch(tree, tmp_path):
    code = (
        "import sys; from data_prep import build; import data_prep.cells\n"
        "assert not {'numpy', 'PIL', 'tensorflow_datasets'} & set(sys.modules)\n"
        f"assert build.main(['folder', '--images', {str(tree)!r}, '--out', 'out']) == 0\n"
        "assert not {'tensorflow', 'torch', 'jax', 'bcvit_jax'} & set(sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


def start(*arguments: str | Path) -> subprocess.Popen:
    """The command in a process group of its own, with two reading processes."""
    command = [sys.executable, "-m", "data_prep.build", "folder", "--workers", "2"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_stopped_build_leaves_nothing(tree, tmp_path, number, status, capsys):
    (tmp_path / "tree").rename(tmp_path / "small")
    rng = np.random.default_rng(0)
    (tmp_path / "tree" / "A").mkdir(parents=True)
    noise = Image.fromarray(rng.integers(0, 256, (900, 900, 3), np.uint8))
    noise.save(tmp_path / "first.png", compress_level=0)
    for copy in range(128):
        (tmp_path / "tree" / "A" / f"{copy}.png").hardlink_to(tmp_path / "first.png")
    process = start("--images", tmp_path / "tree", "--out", tmp_path / "out")
    limit = time.monotonic() + 30
    while not list(tmp_path.glob("out.partial-*/spool/*")) and time.monotonic() < limit:
        time.sleep(0.05)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == status, told
    assert "Traceback" not in told
    left = ["first.png", "small", "tree"]
    if number == signal.SIGKILL:  # it could not clear up: the next build does
        assert list(tmp_path.glob("out.partial-*"))
        time.sleep(0.5)  # its processes end by themselves
        assert run("--images", tmp_path / "small", "--out", tmp_path / "out") == 0
        assert "left from a killed build, is removed" in capsys.readouterr().err
        left.insert(1, "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_a_killed_build_is_cleared_up_by_the_next(tree, tmp_path, capsys):
    assert run("--images", tree, "--out", tmp_path / "out") == 0
    before = (tmp_path / "out" / "metadata.json").read_text()
    dead, foreign = tmp_path / "out.partial-1", tmp_path / "out.partial-2"
    with place.folder_beside(tmp_path / "out") as living:
        for folder, machine in ((dead, platform.node()), (foreign, "another")):
            folder.mkdir()
            (folder / "lock").write_text(machine)
        (tmp_path / "out").rename(dead / "replaced")  # killed while it was replaced
        assert run("--images", tree, "--out", tmp_path / "out") == 2
        told = capsys.readouterr().err
        assert (
            "give --overwrite" in told and f"{dead}, left from a killed build, is removed" in told
        )
        assert f"{foreign} belongs to a build" in told and f"{living} belongs to a build" in told
        assert living.exists() and foreign.exists() and not dead.exists()
    assert (tmp_path / "out" / "metadata.json").read_text() == before


@pytest.fixture
def crops(tmp_path) -> Path:
    """manifest.csv of 24 crops out of 12 fields, of the classes A and B; two have no label."""
    rng = np.random.default_rng(0)
    (tmp_path / "crops").mkdir()
    lines = ["crop,source,label,reason,x0,sha256"]
    for number in range(24):
        path = tmp_path / "crops" / f"{number:02}.png"
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(path)
        label = "" if number > 21 else "AB"[number // 2 % 2]
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"{path.name},field{number // 2}.jpg,{label},2 cells,5,{sha256}")
    manifest = tmp_path / "crops" / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def run_crops(manifest: Path, *more: str | Path) -> int:
    out = manifest.parents[1] / "out"
    arguments = ["crops", "--manifest", manifest, "--out", out, "--workers", "1", *more]
    return build.main([str(argument) for argument in arguments])


def test_labelled_crops_are_built_with_a_field_in_one_fold(crops, tmp_path, capsys):
    assert run_crops(crops) == 0
    assert "Crops without a label are left out: 2." in capsys.readouterr().out
    rows = [(f, row) for f, fold in read_back(tmp_path / "out").items() for row in fold]
    assert len(rows) == 22
    homes = {row["group"].decode(): fold for fold, row in rows}
    for fold, row in rows:
        number = int(row["source"].decode()[:2])
        assert row["group"].decode() == f"field{number // 2}.jpg"
        assert (homes[row["group"].decode()], row["label"]) == (fold, number // 2 % 2)
        stored = np.asarray(Image.open(io.BytesIO(row["image"])))
        crop = np.asarray(Image.open(crops.parent / row["source"].decode()))
        np.testing.assert_array_equal(stored, crop)
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert (metadata["group_kind"], metadata["tool"]) == ("image", "data_prep.build crops")


def test_crops_are_grouped_by_the_donors_of_their_fields(crops, tmp_path, capsys):
    table = tmp_path / "donors.csv"
    lines = [f"field{number}.jpg,d{number % 6}" for number in range(20)]  # also of empty fields
    table.write_text("path,donor\n" + "\n".join(lines[1:]) + "\n")
    assert run_crops(crops, "--groups", table) == 2
    assert "field0.jpg: is not in the table" in capsys.readouterr().err
    table.write_text("path,donor\n" + "\n".join(lines) + "\n")
    assert run_crops(crops, "--groups", table, "--folds", "3") == 0
    folds = read_back(tmp_path / "out")
    donors = [{row["group"].decode() for row in fold} for fold in folds.values()]
    assert sum(map(len, donors)) == 6 and set.union(*donors) == {f"d{n}" for n in range(6)}
    assert json.loads((tmp_path / "out" / "metadata.json").read_text())["donor_separated"] is True


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("crop,source,label,reason", "crop,source,class,reason", "has no column label"),
        ("crop,source,label,", "crop;source;label;", "has no column crop, source, label"),
        ("00.png,field0", "../00.png,field0", "row 2, ../00.png names the image '../00.png'"),
        ("01.png,", "99.png,", "row 3, 99.png cannot be read (No such file"),
        ("01.png,", "00.png,", "row 3, 00.png is not the file that was cropped"),
        ("00.png,field0.jpg", "00.png,", "row 2, 00.png has no source"),
        (",B,", ",,", "A single"),
        ("field0.jpg,A", "field0.jpg,\xc4", "UTF-8"),
    ],
)
def test_a_manifest_that_was_spoiled_is_refused(crops, tmp_path, capsys, old, new, told):
    text = crops.read_text()
    assert old in text
    if told == "A single":  # nobody has labelled anything
        text, told = text.replace(",A,", ",,"), "has no row with a label (24 without)"
    crops.write_bytes(text.replace(old, new).encode("latin-1"))
    assert run_crops(crops) == 2
    assert told in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crops"]


def test_labels_filled_in_the_review_table_are_taken(crops, tmp_path, capsys):
    review = crops.with_name("review.csv")
    review.write_text("crop,label,note\n22.png, C ,rare\n23.png,,\n")
    assert run_crops(crops, "--folds", "2") == 0
    assert "Crops without a label are left out: 1." in capsys.readouterr().out
    assert (tmp_path / "out" / "label.labels.txt").read_text().split() == ["A", "B", "C"]
    review.write_text("crop,label\n00.png,B\n99.png,B\n")
    assert run_crops(crops, "--overwrite") == 2
    told = capsys.readouterr().err
    assert "row 2, 00.png has two labels, A here and B in review.csv" in told
    assert "review.csv, 99.png is not in the manifest" in told
    review.write_text("crop;label\n")
    assert run_crops(crops, "--overwrite") == 2
    assert "review.csv has no column crop, label" in capsys.readouterr().err


def test_a_row_given_twice_and_an_unknown_label_are_refused(crops, capsys):
    lines = crops.read_text().splitlines()
    crops.write_text("\n".join([*lines, lines[1]]) + "\n")
    assert run_crops(crops) == 2
    assert "row 26, 00.png is listed twice" in capsys.readouterr().err
    crops.write_text("\n".join(lines) + "\n")
    assert run_crops(crops, "--classes", "A,C") == 2
    assert "names C, but the labels of the crops are A, B" in capsys.readouterr().err
    assert run_crops(crops, "--groups", "nowhere.csv") == 2
    assert "nowhere.csv cannot be read" in capsys.readouterr().err
    assert build.main(["crops", "--manifest", str(crops), "--out", str(crops.parent)]) == 2
    assert "overlap" in capsys.readouterr().err


def test_real_tiffs_of_the_paper_are_built(shared_data, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--images", shared_data / "lmu_tiff", "--out", out) == 0
    told = capsys.readouterr().out
    assert "fill 5 folds" in told and "MYO (2)" in told and "myeloblast" in told
    folds = read_back(out)
    assert [len(fold) for fold in folds.values()] == [2] * 5
    for row in (row for fold in folds.values() for row in fold):
        original = np.asarray(Image.open(shared_data / "lmu_tiff" / row["source"].decode()))
        stored = np.asarray(Image.open(io.BytesIO(row["image"])))
        np.testing.assert_array_equal(stored, original[..., :3])


def test_real_jpegs_fill_the_folds_evenly(shared_data, tmp_path):
    tree = tmp_path / "tree"
    for folder in sorted((shared_data / "pbc10").iterdir()):
        if folder.is_dir():
            (tree / folder.name).mkdir(parents=True)
            for path in sorted(folder.glob("*.jpg"))[:10]:
                (tree / folder.name / path.name).symlink_to(path)
    assert run("--images", tree, "--out", tmp_path / "out") == 0
    for fold in read_back(tmp_path / "out").values():
        labels = [row["label"] for row in fold]
        assert np.bincount(labels).tolist() == [2] * 10
