"""Shifts of look and framing: what each keeps, what each changes and by how much."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bcvit_jax import shifts
from bcvit_jax.shifts import AZURE, EOSIN, SHIFTS

CONFIGS = Path(__file__).parents[1] / "configs"
WHITE = np.array([250, 240, 230])
RAMP = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, axis=2)


def cell(side: int = 60) -> np.ndarray:
    """An azure nucleus in eosin cytoplasm on `WHITE`, uint8 [side, side, 3]."""
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    r = np.hypot(x, y)[..., None]
    density = np.where(r < 0.15, 0.5 * AZURE + 0.3 * EOSIN, np.where(r < 0.3, 0.2 * EOSIN, 0.0))
    return np.clip((WHITE + 1) * 10**-density - 0.5, 0, 255).astype(np.uint8)


def middle(image: np.ndarray) -> np.ndarray:
    """The colour of the nucleus."""
    return image[image.shape[0] // 2, image.shape[1] // 2].astype(float)


@pytest.mark.parametrize("name", SHIFTS)
def test_at_its_point_of_no_change_the_picture_is_the_same_to_the_bit(name):
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    assert SHIFTS[name](image, SHIFTS[name].none, 20.0, 0.3) is image


@pytest.mark.parametrize("name", SHIFTS)
def test_every_strength_changes_pixels_keeps_the_shape_and_leaves_its_input(name):
    image = cell()
    before = image.copy()
    shown = [SHIFTS[name](image, s, 40.0, 0.1) for s in SHIFTS[name].grid]
    assert all(x.shape == image.shape and x.dtype == np.uint8 for x in shown)
    assert all(not np.array_equal(x, image) for x in shown)
    assert len({x.tobytes() for x in shown}) == len(shown)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", SHIFTS)
def test_the_stated_strengths_are_of_the_grid_and_within_its_ends(name):
    shift = SHIFTS[name]
    assert set(shift.stated) <= set(shift.grid) and shift.none not in shift.grid
    assert list(shift.grid) == sorted(shift.grid) and set(shift.untrained) <= set(shift.grid)
    far = max(shift.grid, key=lambda s: abs(s - shift.none))
    assert far not in shift.stated  # the grid goes on beyond


def test_no_recipe_trains_at_the_untrained_strengths():
    """A pair of colours in stops is measured half to each side, and drawn a channel."""
    configs = [importlib.import_module(f"configs.{p.stem}") for p in CONFIGS.glob("[a-z]*.py")]
    for module in configs:
        data = module.get_config().data
        drawn = data.augment
        ranges = {
            "stain_hue": (-360 * drawn.stain_hue, 360 * drawn.stain_hue),
            "stain_strength": drawn.stain_strength,
            "stain_ratio": drawn.stain_ratio,
            "background": (-2 * drawn.background, 2 * drawn.background),
            "background_light": (-drawn.background, drawn.background),
            "white_balance": (-2 * drawn.white_balance, 2 * drawn.white_balance),
            "brightness": (-drawn.white_balance, drawn.white_balance),
            "gamma": drawn.gamma,
            "blur": (0.0, 100 * drawn.blur),
            "sharpen": (0.0, drawn.sharpen),
            "jpeg": (drawn.jpeg or 100, 100),
            "magnification": (drawn.zoom[0], drawn.zoom[1] / math.sqrt(data.crop_area[0])),
            "position": (0.0, 100 * math.sqrt(2) * drawn.shift),
        }
        assert ranges.keys() == SHIFTS.keys()
        for name, (low, high) in ranges.items():
            assert SHIFTS[name].untrained
            assert not any(low <= s <= high for s in SHIFTS[name].untrained), (module, name)


def test_the_computed_map_of_no_change_gives_every_value_back():
    same = shifts.change_colours(RAMP, np.eye(3), np.zeros(3))
    np.testing.assert_array_equal(same, RAMP)
    np.testing.assert_allclose(shifts.stain_matrix(), np.eye(3), atol=1e-12)


def test_the_background_is_the_colour_between_the_cells():
    np.testing.assert_array_equal(shifts.background(cell()), WHITE)
    np.testing.assert_array_equal(shifts.background(cell(300)), WHITE)


def test_twice_the_stain_is_twice_the_optical_density():
    image = cell()
    before = shifts.optical_density(image, WHITE)
    after = shifts.optical_density(shifts.stain(image, 2.0, 2.0), WHITE)
    dark = before > 0.05
    np.testing.assert_allclose(after[dark], 2 * before[dark], atol=0.03)


@pytest.mark.parametrize("change", [{"hue": 0.1}, {"azure": 2.0}, {"azure": 2.0, "eosin": 0.5}])
def test_stain_leaves_the_background_as_it_is(change):
    changed = shifts.stain(cell(), **change)
    np.testing.assert_array_equal(changed[0, 0], WHITE)
    assert not np.array_equal(middle(changed), middle(cell()))


def test_each_dye_has_its_own_factor():
    np.testing.assert_allclose(shifts.stain_matrix(azure=3.0) @ AZURE, 3 * AZURE, atol=1e-12)
    np.testing.assert_allclose(shifts.stain_matrix(azure=3.0) @ EOSIN, EOSIN, atol=1e-12)
    np.testing.assert_allclose(shifts.stain_matrix(eosin=0.5) @ EOSIN, EOSIN / 2, atol=1e-12)


def test_hue_turns_density_about_grey_from_blue_towards_red():
    turn = shifts.rotation(0.1)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(turn @ np.ones(3), np.ones(3), atol=1e-12)
    blue, red = (middle(shifts.stain(cell(), hue=turns)) for turns in (-0.08, 0.08))
    assert red[0] - red[2] > middle(cell())[0] - middle(cell())[2] > blue[0] - blue[2]
    np.testing.assert_allclose(shifts.rotation(1.0), np.eye(3), atol=1e-12)


def test_white_balance_is_the_same_factor_for_all_pixels():
    changed = shifts.gain(RAMP, (0.5, 0.0, -0.5)).astype(float)[:, 0] + 1
    before = RAMP.astype(float)[:, 0] + 1
    red = 2**0.5 * before[:, 0]
    np.testing.assert_allclose(changed[:, 0], np.minimum(red, 256), atol=0.51)
    np.testing.assert_array_equal(changed[:, 1], before[:, 1])
    np.testing.assert_allclose(changed[:, 2], 2**-0.5 * before[:, 2], atol=0.51)


def test_a_tint_reaches_the_background_in_full_and_the_nucleus_hardly():
    tinted = shifts.tint_background(cell(), (-0.5, -0.5, -0.5))
    np.testing.assert_allclose(tinted[0, 0] + 1, (WHITE + 1) * 2**-0.5, atol=0.51)
    assert np.abs(middle(tinted) - middle(cell())).max() <= 2


def test_gamma_keeps_white_and_order():
    darker = shifts.gamma(RAMP, 2.0)[:, 0, 0].astype(int)
    assert darker[255] == 255 and (np.diff(darker) >= 0).all()
    assert darker[127] == pytest.approx(256 * 0.5**2 - 1, abs=1)


def test_blur_keeps_the_mean_and_sharpening_undoes_some_of_it():
    image = cell()
    soft = shifts.blur(image, 2.0)
    assert abs(float(soft.mean()) - float(image.mean())) < 1

    def contrast(x: np.ndarray) -> float:
        return float(np.abs(np.diff(x.astype(int), axis=0)).max())

    assert contrast(soft) < contrast(image) < contrast(shifts.sharpen(image, 2.0, 1.0))


def test_a_lower_jpeg_quality_is_further_from_the_picture():
    noisy = np.random.default_rng(0).integers(100, 156, (48, 48, 3), np.uint8)
    errors = [
        np.abs(shifts.compress(noisy, quality).astype(int) - noisy).mean()
        for quality in (90, 40, 5)
    ]
    assert errors == sorted(errors) and errors[0] < errors[-1]


def test_half_the_magnification_shows_the_picture_at_half_its_size_and_mirrors_the_rest():
    image = cell(64)
    small = shifts.magnify(image, 0.5)
    half = Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(small[20:44, 20:44], np.asarray(half)[4:28, 4:28])
    np.testing.assert_array_equal(small[:, 15], small[:, 16])  # the edge, mirrored
    np.testing.assert_array_equal(small[0:16], small[16:32][::-1])


def test_twice_the_magnification_shows_the_middle_half():
    image = cell(64)
    box = (16, 16, 48, 48)
    expected = Image.fromarray(image).resize((64, 64), Image.Resampling.BICUBIC, box=box)
    np.testing.assert_array_equal(shifts.magnify(image, 2.0), np.asarray(expected))


@pytest.mark.parametrize(("turn", "x", "y"), [(0.0, 26, 20), (0.25, 20, 26), (0.5, 14, 20)])
def test_position_moves_a_dot_by_that_share_of_the_view(turn, x, y):
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 20] = 255
    moved = SHIFTS["position"](image, 20, 30.0, turn)
    assert [tuple(place) for place in np.argwhere(moved[..., 0] == 255)] == [(y, x)]


def test_what_moves_in_is_mirrored_at_the_edge():
    image = np.arange(10, dtype=np.uint8)[None, :, None] * np.ones((4, 1, 3), np.uint8)
    moved = shifts.move(image, 3, 0)
    assert moved[0, :, 0].tolist() == [2, 1, 0, 0, 1, 2, 3, 4, 5, 6]


def test_the_dyes_are_of_unit_length_and_absorb_as_they_look():
    for dye in (AZURE, EOSIN):
        assert math.isclose(float(np.linalg.norm(dye)), 1.0, abs_tol=1e-3)
    assert AZURE.argmax() == 0 and EOSIN.argmax() == 1  # blue absorbs red, pink absorbs green


@pytest.mark.parametrize("share", [-0.1, 0.3, 1.2])
def test_stray_light_leaves_ground_and_nuclei_and_moves_what_is_between(share):
    bright, nucleus = np.array([240.0, 230.0, 200.0]), np.array([0.49, 0.83, 0.17])
    table = shifts.stray_light_table(bright, share, nucleus).astype(float)
    levels = np.stack([(bright + 1) * 10 ** (-depth * nucleus) - 1 for depth in (0, 1, 0.3)])
    ground, dark, pale = np.rint(levels).astype(int)
    for colour in (ground, dark):
        assert np.abs(table[range(3), colour] - colour).max() <= 1.5
    moved = table[range(3), pale] - pale
    assert (np.sign(moved[:2]) == -np.sign(share)).all() and np.abs(moved[:2]).min() >= 2
    assert (np.diff(table, axis=1) >= 0).all()
