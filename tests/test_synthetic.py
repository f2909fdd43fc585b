"""The rendered data set: deterministic, boxed exactly, told apart by shape and not by colour."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from data_prep.errors import BuildError
from data_prep.synthetic import (
    CELL_TYPES,
    SYNTHETIC_CLASSES,
    render_cell,
    render_cell_with_masks,
    render_dataset,
    render_field,
)

CODES = ("BAS", "EBO", "EOS", "LYT", "MMZ", "MON", "MYB", "NGB", "NGS", "PMO")


def draw(code: str, seed: int, size: int = 96):
    return render_cell_with_masks(code, np.random.default_rng(seed), size)


def test_table_holds_the_ten_types():
    assert SYNTHETIC_CLASSES == CODES
    for kind in CELL_TYPES:
        ranges = (kind.diameter, kind.nucleus.share, kind.nucleus.density, kind.nucleus.clumping)
        assert all(0 < low <= high for low, high in ranges), kind.code
        assert kind.diameter[0] >= 8 and kind.diameter[1] <= 20, kind.code
        assert kind.nucleus.share[1] < 1, kind.code


@pytest.mark.parametrize("size", [48, 96, 224])
@pytest.mark.parametrize("code", CODES)
def test_each_type_renders(code: str, size: int):
    image, drawn = draw(code, 3, size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    nucleus = image[drawn.place][drawn.nucleus].mean()
    outside = np.ones((size, size), dtype=bool)
    outside[drawn.place] &= ~drawn.cell
    assert nucleus < image[outside].mean() - 20  # a dark nucleus on a lighter smear


def test_same_seed_same_bytes_other_seed_other_picture():
    first, again, other = (render_cell("MON", np.random.default_rng(s), 64) for s in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 small images, as the commands write them."""
    directory = tmp_path_factory.mktemp("rendered")
    render_dataset(directory, images_per_class=60, size=32, seed=1, workers=1)
    return directory


def test_dataset_layout(dataset: Path):
    with (dataset / "groups.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "slide"]
    files = {path.relative_to(dataset).as_posix() for path in dataset.rglob("*.png")}
    assert {row["path"] for row in rows} == files and len(files) == 600
    assert "BAS/BAS_0001.png" in files
    slides: dict[str, set[str]] = {}
    for row in rows:
        slides.setdefault(row["slide"], set()).add(row["path"][:3])
    assert len(slides) >= 15
    assert all(codes == set(CODES) for codes in slides.values())


def test_files_do_not_depend_on_the_number_of_workers(tmp_path: Path):
    for workers in (1, 2):
        render_dataset(tmp_path / str(workers), 3, size=32, seed=4, workers=workers)
    files = sorted(path for path in (tmp_path / "1").rglob("*") if path.is_file())
    assert len(files) == 31
    for path in files:
        twin = tmp_path / "2" / path.relative_to(tmp_path / "1")
        assert twin.read_bytes() == path.read_bytes(), path.name


def test_a_linear_look_at_thumbnails_is_not_enough(dataset: Path):
    """Logistic regression on 16x16 thumbnails, five folds, the best of two strengths: ≤ 0.6."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    selection = pytest.importorskip("sklearn.model_selection")
    paths = sorted(dataset.rglob("*.png"))
    images = [Image.open(path).resize((16, 16), Image.Resampling.BOX) for path in paths]
    pixels = np.stack([np.asarray(image, dtype=np.float64).ravel() for image in images])
    pixels = (pixels - pixels.mean(axis=0)) / pixels.std(axis=0)
    labels = np.array([path.parent.name for path in paths])
    folds = selection.StratifiedKFold(5, shuffle=True, random_state=0)
    scores = []
    for strength in (0.01, 1.0):
        model = linear_model.LogisticRegression(C=strength, tol=0.02, max_iter=1000)
        scores.append(selection.cross_val_score(model, pixels, labels, cv=folds).mean())
    assert 0.2 < max(scores) <= 0.6, scores


def test_nucleus_share_ranks_the_types_as_in_blood():
    share = {}
    for code in CODES:
        cells = [draw(code, seed)[1] for seed in range(12)]
        share[code] = np.mean([cell.nucleus.sum() / cell.cell.sum() for cell in cells])
    assert share["LYT"] > share["PMO"] > share["MMZ"] > share["NGB"] - 0.02
    assert share["LYT"] > share["MYB"] > share["NGS"]
    assert share["MON"] > share["EOS"]
    assert share["EBO"] < 0.5 < share["LYT"]


def lobes(code: str, seed: int) -> int:
    """Parts of the nucleus left when its threads are eroded away."""
    drawn = draw(code, seed, 160)[1]
    size = drawn.cell.sum()
    distance = np.asarray(ndimage.distance_transform_edt(drawn.nucleus))
    parts = np.zeros(distance.shape, dtype=np.int32)
    ndimage.label(distance > 0.035 * np.sqrt(size), output=parts)
    areas = np.bincount(parts.ravel())[1:]
    return int((areas > 0.003 * size).sum())


@pytest.mark.parametrize(
    ("code", "fewest", "most"),
    [("NGS", 3, 5), ("EOS", 2, 2), ("NGB", 1, 1), ("MMZ", 1, 1), ("MYB", 1, 1), ("LYT", 1, 1)],
)
def test_lobes(code: str, fewest: int, most: int):
    counted = np.array([lobes(code, seed) for seed in range(20)])
    # A lobe now and then touches its neighbour or is cut off by the border, as on a smear.
    assert ((counted >= fewest) & (counted <= most)).mean() >= 0.8, counted


def test_field_boxes():
    for seed in range(3):
        image, boxes = render_field(np.random.default_rng(seed), 480, 360, white_cells=4)
        assert image.shape == (360, 480, 3)
        labels = [box.label for box in boxes]
        assert labels.count("RBC") >= 8
        assert 1 <= sum(label in CODES for label in labels) <= 4
        assert set(labels) <= {*CODES, "RBC", "PLT"}
        for box in boxes:
            assert 0 <= box.x0 < box.x1 <= 480 and 0 <= box.y0 < box.y1 <= 360, box


def test_boxes_are_tight_around_the_cell():
    for code in CODES:
        drawn = draw(code, 8)[1]
        rows, columns = np.nonzero(drawn.cell)
        x, y = drawn.place[1].start, drawn.place[0].start
        expected = (x + columns.min(), y + rows.min(), x + columns.max() + 1, y + rows.max() + 1)
        assert drawn.box == expected
        assert not (drawn.nucleus & ~drawn.cell).any()


def test_white_cells_of_a_field_are_where_their_boxes_say():
    """Inside a white cell's box the picture holds a nucleus: darker than nearly all else."""
    image, boxes = render_field(np.random.default_rng(11), 640, 480, white_cells=5)
    grey = image.mean(axis=2)
    found = [box for box in boxes if box.label in CODES]
    assert found
    for box in found:
        inside = grey[box.y0 : box.y1, box.x0 : box.x1]
        assert np.percentile(inside, 10) < np.percentile(grey, 10), box


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda path: render_cell("XYZ", np.random.default_rng(0), 64), '"XYZ" .* BAS, EBO'),
        (lambda path: render_cell("BAS", np.random.default_rng(0), 8), "size is 8"),
        (lambda path: render_field(np.random.default_rng(0), 20, 20), "20x20"),
        (lambda path: render_dataset(path / "new", images_per_class=0), "images_per_class is 0"),
        (lambda path: render_dataset(path), "not an empty folder"),
    ],
)
def test_bad_input_is_one_sentence(call, words: str, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(BuildError, match=words) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "mine.txt").read_text() == "kept"
