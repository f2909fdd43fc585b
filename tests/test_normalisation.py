"""What laboratories put into a picture is taken out: light, background, amount of dye."""

import numpy as np
import pytest
from PIL import Image

from bcvit_jax import shifts
from bcvit_jax.augment import centre_square
from bcvit_jax.data import DataConfig
from bcvit_jax.errors import UserError
from bcvit_jax.normalisation import AS_IT_IS, Normalisation

WHITE = Normalisation(white_background=True)
STAIN = Normalisation(white_background=True, even_stain=True)


def cell_on(background: tuple[int, int, int], dye: float = 1.0) -> np.ndarray:
    """A nucleus in paler cytoplasm on a ground of that colour, with a little noise."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    reach = np.hypot(x, y)[..., None]
    light = np.where(reach < 0.3, (0.3, 0.15, 0.6), np.where(reach < 0.5, (0.7, 0.6, 0.8), 1.0))
    noise = 1 - 0.02 * np.random.default_rng(0).random((64, 64, 3))
    return (light**dye * background * noise).astype(np.uint8)


def seen(pixels: np.ndarray, normalise: Normalisation) -> np.ndarray:
    return centre_square(Image.fromarray(pixels), 0.8, 40, normalise=normalise).astype(int)


@pytest.mark.parametrize("normalise", [WHITE, STAIN])
@pytest.mark.parametrize("background", [(250, 240, 225), (150, 180, 210), (120, 100, 90)])
def test_the_light_is_taken_out(background, normalise):
    neutral = seen(cell_on((240, 240, 240)), normalise)
    assert np.abs(seen(cell_on(background), normalise) - neutral).max() <= 5  # 240/90 of rounding
    assert abs(np.median(neutral[:4]) - 240) < 5


def test_a_dark_picture_is_not_made_white():
    dark = np.full((20, 20, 3), 30, np.uint8)
    np.testing.assert_array_equal(seen(dark, WHITE), 90)


@pytest.mark.parametrize("dye", [0.6, 0.7, 1.5])
def test_the_amount_of_dye_is_taken_out_and_the_colours_stay(dye):
    """Half the dye transmits the root of the light (Beer and Lambert), in every channel."""
    usual, other = cell_on((240, 240, 240)), cell_on((240, 240, 240), dye)
    assert np.abs(seen(other, STAIN) - seen(usual, STAIN)).max() <= 6
    assert np.abs(seen(other, WHITE) - seen(usual, WHITE)).max() > 25


@pytest.mark.parametrize("exponent", [0.6, 1.6])
def test_gamma_is_taken_out_as_well(exponent):
    """Over a white ground gamma is dye, but for the range that it is defined in."""
    usual = cell_on((240, 240, 240))
    changed = shifts.gamma(usual, exponent)
    assert np.abs(seen(changed, STAIN) - seen(usual, STAIN)).max() <= 6


def test_nothing_is_overdone():
    """No nucleus, no cell, nothing but nucleus: a factor of ½ to 2, and the order is kept."""
    pale = np.full((30, 30, 3), 235, np.uint8)
    pale[10:20, 10:20] = 225
    for pixels in (pale, np.full((30, 30, 3), 255, np.uint8), np.zeros((30, 30, 3), np.uint8)):
        table = STAIN.table(Image.fromarray(pixels), (0, 0, 30, 30))
        for channel in np.array(table).reshape(3, 256):
            assert (np.diff(channel) >= 0).all()
            assert channel[0] == 0
            assert channel[-1] >= 240
    twice = round(240 * (225 / 235) ** 2)
    assert abs(seen(pale, STAIN).min() - twice) <= 3  # bicubic overshoots


def test_a_farther_camera_changes_the_dye_little(shared_data):
    """A nucleus is more than a fiftieth of the view even at half the magnification."""
    box = (72, 72, 288, 288)
    for path in sorted((shared_data / "pbc10").rglob("*.jpg"))[::400]:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        light = []
        for view in (pixels, shifts.magnify(pixels, 0.5)):
            table = np.array(STAIN.table(Image.fromarray(view), box)).reshape(3, 256)
            light.append(np.log(table[1, 80] / 240))
        assert 0.9 < light[1] / light[0] < 1.3


def test_off_changes_no_pixel():
    pixels = cell_on((250, 240, 225))
    edge = 0.8 * 64
    box = (32 - edge / 2, 32 - edge / 2, 32 + edge / 2, 32 + edge / 2)
    expected = Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC, box=box)
    np.testing.assert_array_equal(seen(pixels, AS_IT_IS), np.asarray(expected))
    assert (seen(pixels, WHITE) != seen(pixels, AS_IT_IS)).any()


def test_it_is_what_the_model_card_says():
    """The formula of export's model card in plain float arithmetic, over a whole small picture."""
    pixels = cell_on((200, 230, 190), 0.7)[:40, :40]
    t = pixels / np.maximum(np.quantile(pixels, 0.95, axis=(0, 1), method="higher"), 80)
    flat = t.reshape(-1, 3)
    darkest = flat[np.argsort(flat.sum(axis=1))[: len(flat) // 50]]
    density = -np.log(np.maximum(darkest.mean(axis=0), 0.03)).sum()
    expected = 240 * np.where(t < 1, t ** np.clip(4.3 / density, 0.5, 2), t)
    image = Image.fromarray(pixels)
    found = np.asarray(image.point(STAIN.table(image, (0, 0, 40, 40))))
    assert np.abs(found - np.minimum(expected, 255)).max() <= 1.5


def test_even_stain_wants_the_white_background():
    with pytest.raises(UserError, match=r"even_stain is True; it must .*white_background"):
        DataConfig(path="x", even_stain=True)


def test_pbc10s_cells_keep_their_stain(shared_data):
    """The constant is their median: it makes half of them a little darker, half paler."""
    files = sorted((shared_data / "pbc10").rglob("*.jpg"))[::40]
    factors = []
    for path in files:
        with Image.open(path) as image:
            image = image.convert("RGB")
            table = np.array(STAIN.table(image, (72, 72, 288, 288))).reshape(3, 256)
            plain = np.array(WHITE.table(image, (72, 72, 288, 288))).reshape(3, 256)
        factors.append(np.log(table[1, 80] / 240) / np.log(plain[1, 80] / 240))
    assert abs(np.median(factors) - 1) < 0.03
    assert np.std(factors) < 0.1
