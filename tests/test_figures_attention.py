"""What is painted: each head in its colour where it looks, frames around the kept patches."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from bcvit_jax.figures.attention import HEADS, Cell, attention_plate, composite, frame, kept_plate
from bcvit_jax.figures.patches import pixel_means
from bcvit_jax.figures.plates import Plate, show
from bcvit_jax.figures.schemes import Scheme, apart, patches_plate, schemes
from bcvit_jax.models import BCViTConfig
from tests.networks import tiny_config

CONFIG = tiny_config()
BOX = {7: (12, 6), 0: (0, 0), 24: (24, 24)}  # left, top of patches of 8 pixels, 6 apart


def cell(heads: int = 2, label: str = "A", predicted: str = "A", kept=(7, 24)) -> Cell:
    rng = np.random.default_rng(0)
    attention = rng.random((heads, CONFIG.num_patches)) / CONFIG.num_patches
    picture = rng.integers(0, 255, (64, 64, 3), np.uint8)
    mask = np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    return Cell(picture, label, predicted, 0.9, attention, np.array(kept, int), mask)


def test_all_heads_in_one_picture_take_the_colour_of_the_strongest():
    values = np.zeros((2, CONFIG.num_patches))
    values[0, 0] = 1.0
    values[1, 24] = 0.5
    colours = composite(pixel_means(values, 32, 8, 6))
    lit = colours[..., 3] > 0
    for head, (left, top) in ((0, BOX[0]), (1, BOX[24])):
        part = np.s_[top : top + 8, left : left + 8]
        assert lit[part].all()
        assert np.allclose(colours[part][..., :3], to_rgb(HEADS[head]))
        lit[part] = False
    assert not lit.any()


def test_frames_are_painted_on_the_border_of_the_kept_patches_pixels():
    zoom, dpi = 10, 100
    plate = Plate("", 4, 4)
    axes = plate.panel(0, 0, 32 * zoom / dpi, 32 * zoom / dpi)
    show(axes, np.full((32, 32, 3), 255, np.uint8), 32)
    frame(axes, np.array([7, 24, 7]), CONFIG)
    axes.axis("off")
    plate.figure.set_dpi(dpi)
    plate.figure.canvas.draw()  # pyright: ignore
    painted = np.asarray(plate.figure.canvas.buffer_rgba())  # pyright: ignore
    painted = painted[:320, :320, :3].astype(int)
    red = (painted[..., 0] > 200) & (painted[..., 1] < 120)
    for patch in (7, 24):
        left, top = (zoom * edge for edge in BOX[patch])
        around = np.zeros_like(red)
        around[max(top - 4, 0) : top + 84, max(left - 4, 0) : left + 84] = True
        found = np.argwhere(red & around)
        line = 3  # half a line's width, in painted pixels
        assert np.abs(found.min(0) - (top, left)).max() <= line
        assert np.abs(found.max(0) + 1 - np.minimum((top + 80, left + 80), 320)).max() <= line
        assert not red[top + 5 : top + 75, left + 5 : left + 75].any()
        red[around] = False
    assert not red.any()


def test_a_patch_kept_by_several_heads_has_one_thicker_frame():
    plate = Plate("", 1, 1)
    axes = plate.panel(0, 0, 1, 1)
    frame(axes, np.array([7, 24, 7]), CONFIG)
    boxes = [box for box in axes.patches if isinstance(box, Rectangle)]
    assert [box.get_xy() for box in boxes] == [(11.5, 5.5), (23.5, 23.5)]
    assert boxes[0].get_linewidth() > boxes[1].get_linewidth()


@pytest.mark.parametrize("heads", [1, 3, 12])
@pytest.mark.parametrize("cells", [1, 9])
def test_plates_fit_a_page_and_their_text_stays_on_them(heads, cells):
    shown = [cell(heads, "A", "$B", kept=(7,) * heads)] * cells
    shown[-1] = shown[-1]._replace(label="metamyelocyte", predicted="segmented neutrophil")
    for plate in (attention_plate(shown, CONFIG, "words"), kept_plate(shown, CONFIG, "words")):
        assert plate.width <= 7.3 and plate.height <= 9.5
        plate.figure.canvas.draw()  # pyright: ignore
        for text in plate.figure.texts:
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= plate.figure.bbox.x1 + 1, text.get_text()
            assert box.y0 >= 0 and box.y1 <= plate.figure.bbox.y1 + 1, text.get_text()


def test_a_plate_is_the_same_file_every_time():
    files = [kept_plate([cell()], CONFIG, "words").files("kept") for _ in range(2)]
    assert files[0] == files[1] and files[0].keys() == {"kept.png", "kept.svg"}
    assert files[0]["kept.png"].startswith(b"\x89PNG") and b"<svg" in files[0]["kept.svg"]


def test_the_papers_four_schemes():
    found = [(s.patch, s.stride, s.grid[0] * s.grid[1]) for s in schemes(BCViTConfig())]
    assert found == [(16, 16, 196), (16, 12, 324), (32, 32, 49), (32, 24, 81)]
    assert Scheme(112, 32, 32).unseen == pytest.approx(1 - 96**2 / 112**2)
    assert [s.patch for s in schemes(tiny_config(image_size=12, patch_size=8))] == [8, 8]


def test_taken_apart_every_patch_shows_its_own_pixels():
    picture = np.random.default_rng(0).integers(0, 250, (32, 32, 3), np.uint8)
    sheet = apart(picture, Scheme(32, 8, 6))
    step = (len(sheet) - 8) // 4
    assert step > 8
    for row in range(5):
        for column in range(5):
            own = sheet[row * step : row * step + 8, column * step : column * step + 8]
            expected = picture[row * 6 : row * 6 + 8, column * 6 : column * 6 + 8]
            np.testing.assert_array_equal(own, expected)
    assert (sheet[8:step] == 255).all()
    patches_plate(picture, CONFIG).figure.canvas.draw()  # pyright: ignore
