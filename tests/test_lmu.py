"""AML-Cytomorphology_LMU: its classes and counts, a part of it, and its crops."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import build, lmu
from data_prep.cells import CELL_NAMES, LMU_COUNTS
from data_prep.errors import BuildError
from tests.test_build import read_back
from tests.test_crop import write_boxes

COUNTS = {"NGS": 40, "MYO": 32, "MYB": 31, "MOB": 6}


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """A whole data set of another size: 109 TIFFs of noise with alpha, in four classes."""
    monkeypatch.setattr(lmu, "LMU_COUNTS", COUNTS)
    rng = np.random.default_rng(0)
    root = tmp_path / "lmu"
    for code, count in COUNTS.items():
        (root / code).mkdir(parents=True)
        for number in range(1, count + 1):
            image = Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8))
            image.putalpha(255)
            image.save(root / code / f"{code}_{number:04}.tiff")
    (root / "annotations.dat").touch()
    return root


def run(tree: Path, *more: str | Path) -> int:
    arguments = ["lmu", "--images", tree, "--out", tree.parent / "out", "--workers", "1", *more]
    return build.main([str(argument) for argument in arguments])


def names_of(out: Path) -> list[str]:
    return (out / "label.labels.txt").read_text().split()


def test_the_counts_are_those_of_the_paper():
    assert sum(LMU_COUNTS.values()) == 18_365
    assert set(LMU_COUNTS) == set(CELL_NAMES)
    assert (LMU_COUNTS["NGS"], LMU_COUNTS["MYO"], LMU_COUNTS["MYB"]) == (8484, 3268, 42)
    assert list(LMU_COUNTS.values()) == sorted(LMU_COUNTS.values(), reverse=True)
    assert lmu.lmu_classes(False) == tuple("NGS LYT MYO MON EOS NGB BAS EBO PMO MYB".split())
    assert len(lmu.lmu_classes(True)) == 15


def test_a_whole_tree_is_built_without_its_small_classes(tree, tmp_path, capsys):
    assert run(tree) == 0
    told = capsys.readouterr().out
    assert "left out, as in the paper (--all-classes takes them): MOB (6)" in told
    assert "not the whole" not in told
    assert names_of(tmp_path / "out") == ["MYB", "MYO", "NGS"]
    assert sum(map(len, read_back(tmp_path / "out").values())) == 103
    assert run(tree, "--all-classes", "--overwrite") == 0
    assert names_of(tmp_path / "out") == ["MOB", "MYB", "MYO", "NGS"]
    assert sum(map(len, read_back(tmp_path / "out").values())) == 109


def test_a_part_is_refused_with_its_missing_and_extra_images(tree, tmp_path, capsys):
    for number in (2, 7, 8, 9):
        (tree / "NGS" / f"NGS_{number:04}.tiff").unlink()
    (tree / "MYO" / "MYO_0001.tiff").rename(tree / "MYB" / "MYO_0001.tiff")
    (tree / "MOB" / "MOB_0001.tiff").unlink()  # not asked for
    assert run(tree) == 2
    first, *lines = capsys.readouterr().err.splitlines()
    assert "is not the whole of AML-Cytomorphology_LMU" in first and "--partial" in first
    assert lines == [
        "  NGS: 36 of 40 images; missing: 0002, 0007–0009",
        "  MYO: 31 of 32 images; missing: 0001",
        "  MYB: 32 of 31 images; not of the data set: MYB/MYO_0001.tiff",
    ]
    assert not (tmp_path / "out").exists()
    assert run(tree, "--partial") == 0
    assert "NGS: 36 of 40 images; missing: 0002, 0007–0009" in capsys.readouterr().out
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert metadata["tool"] == "data_prep.build lmu --partial"


def test_a_class_that_is_missing_as_a_whole_is_told(tree, tmp_path, capsys):
    (tree / "MYB").rename(tree / "own")
    assert run(tree, "--partial") == 0
    told = capsys.readouterr().out
    assert "MYB: 0 of 31 images" in told and "no class of AML-Cytomorphology_LMU" in told
    assert names_of(tmp_path / "out") == ["MYO", "NGS"]


def test_another_tree_is_refused_with_the_folder_that_may_be_meant(tree, tmp_path, capsys):
    (tmp_path / "download").mkdir()
    tree.rename(tmp_path / "download" / "lmu")
    (tmp_path / "download" / "lmu").joinpath("NGS").rename(tmp_path / "NGS")
    (tmp_path / "NGS").rename(tmp_path / "download" / "lmu" / "NGS")
    assert run(tmp_path / "download") == 2
    error = capsys.readouterr().err
    assert "none of the class folders NGS, MYO, MYB" in error and "download/lmu?)" in error


def test_fields_with_one_cell_are_cropped_and_the_others_stay_whole(tree, tmp_path, capsys):
    sources = [path.relative_to(tree).as_posix() for path in sorted(tree.glob("*/*.tiff"))]
    cells: dict[str, list[tuple]] = {source: [(4, 6, 14, 18)] for source in sources}
    cells["NGS/NGS_0001.tiff"] = [(2, 2, 8, 8), (10, 10, 18, 18)]
    cells["NGS/NGS_0002.tiff"] = []
    del cells["MYO/MYO_0003.tiff"]
    boxes = write_boxes(tmp_path / "boxes.json", cells, (20, 24))
    assert run(tree, "--boxes", boxes, "--margin", "0", "--no-square") == 0
    told = "not among the boxes (1), 2 cells in the field (1), no box (1)"
    assert f"Fields that stay uncropped (uncropped.csv): {told}." in capsys.readouterr().out
    out = tmp_path / "out"
    rows = [row for fold in read_back(out).values() for row in fold]
    assert len(rows) == 103
    shapes = {}
    for row in rows:
        assert row["group"].decode() == row["source"].decode().replace(".png", ".tiff")
        shapes.setdefault(Path(row["source"].decode()).suffix, []).append(row)
    assert len(shapes[".png"]) == 100
    with (out / "uncropped.csv").open(newline="") as file:
        listed = [row["path"] for row in csv.DictReader(file)]
    assert sorted(listed) == sorted(row["source"].decode() for row in shapes[".tiff"])
    names = names_of(out)
    for row in shapes[".png"]:
        field = np.asarray(Image.open(tree / row["group"].decode()))[..., :3]
        pixels = np.asarray(Image.open(io.BytesIO(row["image"])))
        np.testing.assert_array_equal(pixels, field[6:18, 4:14])
        assert names[row["label"]] == row["source"].decode()[:3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxes.json", "lmu", "out"]


def test_a_bad_file_is_told_with_boxes_too(tree, tmp_path, capsys):
    sources = [path.relative_to(tree).as_posix() for path in sorted(tree.glob("*/*.tiff"))]
    boxes = write_boxes(tmp_path / "boxes.json", {s: [(4, 6, 14, 18)] for s in sources}, (20, 24))
    spoiled = tree / "NGS" / "NGS_0005.tiff"
    data = bytearray(spoiled.read_bytes())
    spoiled.write_bytes(data[: len(data) // 2])
    assert run(tree, "--boxes", boxes) == 2
    assert "NGS/NGS_0005.tiff" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_ranges_and_lines_are_short():
    assert lmu.ranges([1, 2, 3, 5, 9, 10]) == ["0001–0003", "0005", "0009–0010"]
    (line,) = lmu.compare("BAS", [f"BAS/BAS_{n:04}.tiff" for n in range(1, 80, 2)])
    assert line.startswith("BAS: 40 of 79 images; missing: 0002, 0004") and "and 27 more" in line


def test_real_files_are_a_part_of_it(shared_data, tmp_path, capsys):
    images = shared_data / "lmu_tiff"
    with pytest.raises(BuildError, match="NGS: 2 of 8484 images"):
        lmu.find_lmu(images)
    found, notes = lmu.find_lmu(images, partial=True)
    assert {code: len(sources) for code, sources in found.items()} == dict.fromkeys(
        ("EOS", "LYT", "MON", "MYO", "NGS"), 2
    )
    assert "missing: 0001–0362, 0364–0376, 0378–8484" in notes[0]
    arguments = ["--images", str(images), "--out", str(tmp_path / "out"), "--partial"]
    assert build.main(["lmu", *arguments, "--workers", "1"]) == 0
    assert names_of(tmp_path / "out") == ["EOS", "LYT", "MON", "MYO", "NGS"]
