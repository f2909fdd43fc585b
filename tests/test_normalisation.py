"""What laboratories put into a picture is taken out: light, background, colours of the dyes."""

import itertools

import numpy as np
import pytest
from PIL import Image

from bcvit_jax import shifts
from bcvit_jax.augment import centre_square
from bcvit_jax.data import DataConfig
from bcvit_jax.errors import UserError
from bcvit_jax.normalisation import (
    AS_IT_IS,
    NUCLEI,
    NUCLEUS_DENSITY,
    NUCLEUS_SIZES,
    RED_CELLS,
    Normalisation,
    nucleus_size,
    stain_colours,
    stain_map,
)

WHITE = Normalisation(white_background=True)
STAIN = Normalisation(white_background=True, normalise_stain=True)


# Optical densities of nucleus and red cells in R, G, B: pbc10's own; a pale stain under a camera
# that shows nuclei bluer and red cells browner; a strong and purple one.
STAINS = {
    "pbc10": (NUCLEUS_DENSITY, (0.092, 0.140, 0.086)),
    "pale": ((0.21, 0.37, 0.03), (0.04, 0.10, 0.08)),
    "purple": ((0.40, 1.00, 0.13), (0.12, 0.23, 0.14)),
}


def cell_on(background: tuple[int, int, int], stain: str = "pbc10", red_cells: int = 4):
    """A nucleus in cytoplasm of both dyes, among red cells, on a ground of that colour: uint8
    [128, 128, 3] with a little noise, and the masks of nucleus, cytoplasm and red cells."""
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    nucleus, cell = np.hypot(x, y) < 0.25, np.hypot(x, y) < 0.4
    corners = [(-0.75, -0.7), (0.7, -0.75), (-0.7, 0.75), (0.75, 0.7)][:red_cells]
    red = np.any([np.hypot(x - a, y - b) < 0.22 for a, b in corners] or [x > 2], axis=0)
    dark, pale = (np.array(colour) for colour in STAINS[stain])
    density = np.zeros((128, 128, 3))
    density[cell] = 0.2 * dark + 0.5 * pale
    density[nucleus], density[red] = dark, pale
    noise = 1 - 0.02 * np.random.default_rng(0).random(density.shape)
    pixels = (10**-density * background * noise).astype(np.uint8)
    return pixels, {"nucleus": nucleus, "cytoplasm": cell & ~nucleus, "red cells": red}


def normalised(pixels: np.ndarray, normalise: Normalisation = STAIN) -> np.ndarray:
    """The whole picture, its cell in the middle six tenths."""
    high, wide = pixels.shape[:2]
    box = (0.2 * wide, 0.2 * high, 0.8 * wide, 0.8 * high)
    return normalise.colours(Image.fromarray(pixels), box)(pixels)


def seen(pixels: np.ndarray, normalise: Normalisation) -> np.ndarray:
    return centre_square(Image.fromarray(pixels), 0.8, 40, normalise=normalise).astype(int)


@pytest.mark.parametrize("normalise", [WHITE, STAIN])
@pytest.mark.parametrize("background", [(250, 240, 225), (150, 180, 210), (120, 100, 90)])
def test_the_light_is_taken_out(background, normalise):
    neutral = seen(cell_on((240, 240, 240), "pale")[0], normalise)
    found = seen(cell_on(background, "pale")[0], normalise)
    assert np.abs(found - neutral).max() <= (5 if normalise == WHITE else 9)  # 240/90 of rounding
    assert abs(np.median(neutral[:4]) - 240) < 5


def test_a_dark_picture_is_not_made_white():
    dark = np.full((20, 20, 3), 30, np.uint8)
    np.testing.assert_array_equal(seen(dark, WHITE), 90)


def within(colour: np.ndarray, absorbed: np.ndarray) -> bool:
    """Whether RGB on a ground of 240 is in a range [2, 3] of light absorbed, by four levels."""
    most, least = 240 * (1 - absorbed)
    return bool(((colour >= least - 4) & (colour <= most + 4)).all())


@pytest.mark.parametrize("background", [(250, 240, 225), (150, 180, 210)])
@pytest.mark.parametrize("stain", STAINS)
def test_every_stain_gets_pbc10s_colours(stain, background):
    pixels, parts = cell_on(background, stain)
    found, plain = normalised(pixels), normalised(pixels, WHITE)
    for name, wanted in (("nucleus", NUCLEI), ("red cells", RED_CELLS)):
        assert within(np.median(found[parts[name]], axis=0), wanted), name
        was_within = within(np.median(plain[parts[name]], axis=0), wanted)
        assert was_within == (stain == "pbc10"), name


def test_haze_between_the_red_cells_does_not_pass_for_them():
    """More of it than of red cells: taken for their colour, it would make them too strong."""
    pixels, parts = cell_on((240, 240, 240), "pale")
    haze = ~np.any(list(parts.values()), axis=0)
    haze[:24] = haze[-24:] = False
    assert haze.sum() > 1.5 * parts["red cells"].sum()
    density = 0.35 * np.array(STAINS["pale"][1])
    pixels[haze] = (pixels[haze] * 10**-density).astype(np.uint8)
    found = normalised(pixels)
    assert within(np.median(found[parts["red cells"]], axis=0), RED_CELLS)
    assert np.median(found[haze], axis=0).min() > 200


def test_colours_within_pbc10s_range_stay():
    """How dark a nucleus is tells its class."""
    pixels, _ = cell_on((250, 240, 225))
    difference = normalised(pixels).astype(int) - normalised(pixels, WHITE)
    assert np.abs(difference).max() <= 1


def test_a_camera_that_shows_stronger_colours_is_undone_in_part():
    """Though it made the nucleus black in green."""
    usual, parts = cell_on((240, 240, 240))
    grey = usual.mean(axis=-1, keepdims=True)
    changed = np.clip(np.rint(grey + 2.2 * (usual - grey)), 0, 240).astype(np.uint8)
    assert (changed[parts["nucleus"], 1] == 0).all()
    for name, most in (("nucleus", 0.6), ("cytoplasm", 0.8)):
        before, after = (
            np.abs(np.median(picture[parts[name]], axis=0) - np.median(usual[parts[name]], axis=0))
            for picture in (changed, normalised(changed))
        )
        assert after.max() < most * before.max(), name


def test_the_light_alone_leaves_stains_as_they_are():
    pixels, parts = cell_on((240, 240, 240), "pale")
    found = normalised(pixels, WHITE)
    assert np.median(found[parts["nucleus"]]) > 1.2 * 240 * 10 ** -np.median(NUCLEUS_DENSITY)


@pytest.mark.parametrize("exponent", [0.5, 1.8])
def test_gamma_is_brought_into_the_range_as_well(exponent):
    """Over a white ground it is more or less dye."""
    usual, parts = cell_on((240, 240, 240))
    changed = shifts.gamma(usual, exponent)
    for name, wanted in (("nucleus", NUCLEI), ("red cells", RED_CELLS)):
        assert within(np.median(normalised(changed)[parts[name]], axis=0), wanted), name
        assert not within(np.median(normalised(changed, WHITE)[parts[name]], axis=0), wanted), name


@pytest.mark.parametrize("stain", STAINS)
def test_without_red_cells_the_nucleus_alone_is_brought_into_its_range(stain):
    pixels, parts = cell_on((240, 240, 240), stain, red_cells=0)
    box = (26.0, 26.0, 102.0, 102.0)
    assert stain_colours(pixels, np.full(3, 240.0), box)[1] is None
    assert within(np.median(normalised(pixels)[parts["nucleus"]], axis=0), NUCLEI)


def test_nothing_is_overdone():
    """No nucleus, no cell, nothing but nucleus, black: factors of 0.4 to 3, white stays white."""
    pale = np.full((30, 30, 3), 235, np.uint8)
    pale[10:20, 10:20] = 225
    flat = [np.full((30, 30, 3), level, np.uint8) for level in (0, 85, 200, 201, 255)]
    tiny = [np.full((*shape, 3), 120, np.uint8) for shape in ((1, 2), (2, 2), (3, 3))]
    for pixels in (pale, *flat, *tiny):
        bright = np.maximum(shifts.background(pixels), 80)
        matrix = stain_map(pixels, bright, (0, 0, pixels.shape[1], pixels.shape[0]))
        sizes = np.linalg.svd(matrix, compute_uv=False)
        assert 0.39 < sizes.min() <= sizes.max() < 3.01
    assert (normalised(np.full((30, 30, 3), 255, np.uint8)) == 240).all()
    assert abs(normalised(pale)[0, 0].astype(int) - 240).max() <= 1


@pytest.mark.parametrize(
    ("nucleus", "red_cells"),
    [
        ((0.3, 0.6, 0.1), (0.1, 0.2, 0.035)),  # of one colour
        ((0.13, 0.07, 0.11), (0.50, 0.33, 0.55)),  # a little apart: 22 times without the bound
        ((0.40, 0.52, 0.24), (0.41, 0.41, 0.12)),  # would come to lie in one line
    ],
)
def test_colours_that_are_nearly_alike_are_not_torn_apart(monkeypatch, nucleus, red_cells):
    found = np.array(nucleus), np.array(red_cells)
    monkeypatch.setattr("bcvit_jax.normalisation.stain_colours", lambda *_: found)
    matrix = stain_map(np.zeros((1, 1, 3), np.uint8), np.full(3, 240.0), (0.0, 0.0, 1.0, 1.0))
    sizes = np.linalg.svd(matrix, compute_uv=False)
    assert 0.249 < sizes.min() <= sizes.max() < 4.001


def test_a_farther_camera_changes_the_colours_little(shared_data):
    box = (72, 72, 288, 288)
    for path in sorted((shared_data / "pbc10").rglob("*.jpg"))[::400]:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        bright = shifts.background(pixels)
        near, far = (
            stain_colours(view, bright, box) for view in (pixels, shifts.magnify(pixels, 0.5))
        )
        for a, b in zip(near, far, strict=True):
            assert a is not None and b is not None
            assert 0.75 < np.linalg.norm(b) / np.linalg.norm(a) < 1.35
            assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.98


def test_off_changes_no_pixel():
    pixels, _ = cell_on((250, 240, 225))
    edge = 0.8 * 128
    box = (64 - edge / 2, 64 - edge / 2, 64 + edge / 2, 64 + edge / 2)
    expected = Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC, box=box)
    np.testing.assert_array_equal(seen(pixels, AS_IT_IS), np.asarray(expected))
    assert (seen(pixels, WHITE) != seen(pixels, AS_IT_IS)).any()


def test_stain_wants_the_white_background():
    with pytest.raises(UserError, match=r"normalise_stain is True; it must .*white_background"):
        DataConfig(path="x", normalise_stain=True)


def test_the_constants_are_those_of_pbc10(shared_data):
    files = sorted((shared_data / "pbc10").rglob("*.jpg"))[::10]
    colours = []
    for path in files:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        colours.append(stain_colours(pixels, shifts.background(pixels), (72, 72, 288, 288)))
    none = np.full(3, np.nan)
    colours = [(dark, none if red is None else red) for dark, red in colours]
    nuclei, red = (np.array(part) for part in zip(*colours, strict=True))
    for own, known in ((nuclei, NUCLEI), (red, RED_CELLS)):
        found = np.nanquantile(own, (0.02, 0.98), axis=0)
        assert np.abs(found - known).max() < 0.02
    density = -np.log10(1 - np.median(nuclei, axis=0))
    assert np.abs(density / NUCLEUS_DENSITY - 1).max() < 0.05


def test_another_laboratorys_cells_get_into_them(shared_data):
    """Ten pictures of AML-Cytomorphology_LMU: nuclei that were purple."""
    paths = sorted((shared_data / "lmu_tiff").rglob("*.tiff"))
    assert len(paths) == 10
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        box = (80, 80, 320, 320)
        excess = []
        for normalise in (WHITE, STAIN):
            changed = normalise.colours(Image.fromarray(pixels), box)(pixels)
            nucleus, _ = stain_colours(changed, np.full(3, 240.0), box)
            excess.append(np.abs(nucleus - np.clip(nucleus, *NUCLEI)).max())
        assert excess[1] < 0.5 * excess[0] or excess[1] < 0.02, path.name


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_the_root_of_the_area_tells_the_magnification(factor):
    pixels, _ = cell_on((240, 240, 240))
    larger = nucleus_size(shifts.magnify(pixels, factor)) / nucleus_size(pixels)
    assert larger == pytest.approx(factor, rel=0.05)


@pytest.mark.parametrize(("factor", "wider"), [(1.0, 1), (1.5, 1), (2.5, 1.5), (0.3, 0.75)])
def test_a_picture_cut_closer_than_pbc10s_is_seen_more_widely(factor, wider):
    """Within the range of sizes nothing changes, so that a large nucleus looks large."""
    image = Image.fromarray(shifts.magnify(cell_on((240, 240, 240))[0], factor))
    share = Normalisation(normalise_scale=True).fraction(image, 0.6) / 0.6
    assert share == 1 if wider == 1 else np.sign(share - 1) == np.sign(wider - 1)
    assert share == pytest.approx(wider, rel=0.2)
    assert Normalisation().fraction(image, 0.6) == 0.6


def test_a_closer_picture_is_seen_as_the_usual_one():
    usual = cell_on((240, 240, 240))[0]
    near = shifts.magnify(usual, 2.0)
    scale = Normalisation(normalise_scale=True)
    seen_usual = centre_square(Image.fromarray(usual), 0.5, 40).astype(int)
    with_scale, without = (
        np.abs(centre_square(Image.fromarray(near), 0.5, 40, normalise=n) - seen_usual).mean()
        for n in (scale, AS_IT_IS)
    )
    assert with_scale < 0.75 * without


def test_no_picture_is_looked_at_beyond_its_side_or_closer_than_half_of_usual():
    scale = Normalisation(normalise_scale=True)
    for level, size in itertools.product((0, 128, 200, 255), ((50, 70), (2, 2), (1, 2), (2, 4))):
        flat = Image.fromarray(np.full((*size, 3), level, np.uint8))
        assert 0.3 <= scale.fraction(flat, 0.6) <= 1.0
    tall = shifts.magnify(cell_on((240, 240, 240))[0], 2.5)
    tall = np.concatenate([tall[:40], tall, tall[-40:]])
    whole = centre_square(Image.fromarray(tall), 1.0, 40, normalise=scale)
    np.testing.assert_array_equal(whole, centre_square(Image.fromarray(tall), 1.0, 40))


@pytest.mark.parametrize("factor", [2.0, 3.5])
def test_a_cell_keeps_its_shape_in_a_wide_picture_that_is_seen_whole(factor):
    near = shifts.magnify(cell_on((240, 240, 240))[0], factor)
    wide = np.concatenate([np.full_like(near, 240), near, np.full_like(near, 240)], axis=1)
    scale = Normalisation(normalise_scale=True)
    square, seen = (
        centre_square(Image.fromarray(image), 0.6, 60, normalise=scale) for image in (near, wide)
    )
    if factor > 3:
        assert scale.fraction(Image.fromarray(wide), 0.6) == 1
    assert np.abs(seen.astype(int) - square).mean() < 1


def test_pbc10s_nuclei_lie_in_the_range_that_is_left_alone(shared_data):
    files = sorted((shared_data / "pbc10").rglob("*.jpg"))[::40]
    sizes = [nucleus_size(np.asarray(Image.open(path).convert("RGB"))) for path in files]
    low, high = NUCLEUS_SIZES
    assert np.mean([low <= size <= high for size in sizes]) > 0.97
