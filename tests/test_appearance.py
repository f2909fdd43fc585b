"""Drawn changes of look: off by default, every field reaches the pixels, refused with its rule."""

import dataclasses
import inspect

import numpy as np
import pytest
from PIL import Image

from bcvit_jax.appearance import OFF, AugmentConfig, change_look, margin, view
from bcvit_jax.augment import augment, centre_square, resize
from bcvit_jax.errors import UserError

LIVELY = {
    "stain_hue": 0.1,
    "stain_strength": (0.5, 2.0),
    "stain_ratio": (0.5, 2.0),
    "channel_mix": 0.2,
    "background": 0.5,
    "white_balance": 0.5,
    "gamma": (0.5, 2.0),
    "stray_light": 0.8,
    "grey": 0.5,
    "blur": 0.05,
    "sharpen": 3.0,
    "noise": 20.0,
    "jpeg": 10,
    "zoom": (0.5, 2.0),
    "shift": 0.2,
}


def picture(side: int = 60, seed: int = 0) -> np.ndarray:
    """A blot on a bright ground, with some grain, uint8 [side, side, 3]."""
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    ground, ink = np.array([235, 225, 205]), np.array([120, 60, 130])
    blot = np.where((np.hypot(x, y) < 0.25)[..., None], ink, ground)
    grain = np.random.default_rng(seed).normal(0, 6, (side, side, 3))
    return np.clip(blot + grain, 0, 255).astype(np.uint8)


def drawn(config: AugmentConfig, count: int, size: int = 30) -> list[np.ndarray]:
    side = 40
    square = picture(side + 2 * margin(side, config))
    return [
        augment(square, size, 0, np.random.default_rng(i), margin=margin(side, config), look=config)
        for i in range(count)
    ]


def test_there_is_a_lively_value_for_every_field():
    assert LIVELY.keys() | {"share"} == {f.name for f in dataclasses.fields(AugmentConfig)}
    assert AugmentConfig(**LIVELY).changes == LIVELY
    assert OFF.changes == {} and not OFF.recolours and not OFF.degrades


def test_a_share_of_the_pictures_is_changed_and_the_rest_is_left_alone():
    images = drawn(AugmentConfig(**LIVELY, share=0.3), 300)
    side = 40 + 2 * margin(40, AugmentConfig(**LIVELY))
    untouched = augment(picture(side), 30, 0, np.random.default_rng(0), margin=(side - 40) // 2)
    changed = sum(not np.array_equal(image, untouched) for image in images)
    assert 60 <= changed <= 120  # 90 expected, standard deviation 8
    assert not any(np.array_equal(i, untouched) for i in drawn(AugmentConfig(**LIVELY), 30))


@pytest.mark.parametrize("margin", [0, 7])
def test_off_is_what_evaluation_sees_and_draws_nothing(margin):
    square = picture(40 + 2 * margin)
    rng = np.random.default_rng(0)
    image = augment(square, 30, 0, rng, margin=margin, look=OFF)
    inner = square[margin : margin + 40, margin : margin + 40]
    if margin:  # the filter looks past the edge, where there is something
        assert np.abs(image.astype(int) - resize(inner, 30)).max() <= 8
        image, expected = image[2:-2, 2:-2], resize(inner, 30)[2:-2, 2:-2]
        np.testing.assert_array_equal(image, expected)
    else:
        np.testing.assert_array_equal(image, resize(inner, 30))
    assert rng.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize("field", LIVELY)
def test_every_field_reaches_the_pixels_and_is_decided_by_the_seed(field):
    config = AugmentConfig(**{field: LIVELY[field]})
    images = drawn(config, 8)
    same = drawn(config, 8)
    for one, other in zip(images, same, strict=True):
        np.testing.assert_array_equal(one, other)
    square = picture(40 + 2 * margin(40, config))
    off = augment(square, 30, 0, np.random.default_rng(0), margin=margin(40, config))
    changed = [not np.array_equal(image, off) for image in images]
    assert sum(changed) >= 2  # some only come to half of the pictures
    if field not in ("grey", "blur", "sharpen", "noise", "jpeg"):
        assert all(changed) and len({image.tobytes() for image in images}) == 8


def test_grey_is_without_colour_in_its_share_of_the_pictures():
    images = drawn(AugmentConfig(grey=0.5), 40)
    grey = sum(bool((np.ptp(image, axis=2) == 0).all()) for image in images)
    assert 10 < grey < 30


def test_stain_leaves_the_colour_of_the_background():
    config = AugmentConfig(stain_hue=0.1, stain_strength=(0.5, 2.0), channel_mix=0.2)
    bright = np.array([240, 230, 200])
    image = np.broadcast_to(bright, (8, 8, 3)).astype(np.uint8)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        changed = np.asarray(change_look(Image.fromarray(image), bright, config, rng))
        np.testing.assert_array_equal(changed, image)


def test_noise_has_the_deviation_that_was_drawn_and_no_mean():
    grey = np.full((64, 64, 3), 128, np.uint8)
    config = AugmentConfig(noise=20.0)
    images = [augment(grey, 64, 0, np.random.default_rng(i), look=config) for i in range(30)]
    deviations = np.array([float(image.std()) for image in images])
    assert (deviations == 0).any() and 15 < deviations.max() < 20.5
    assert all(abs(float(image.mean()) - 128) < 0.6 for image in images)


# Framing


@pytest.mark.parametrize(
    ("zoom", "shift", "expected"),
    [((1.0, 1.0), 0.0, 0), ((1.0, 2.0), 0.0, 0), ((0.5, 1.0), 0.0, 50), ((0.8, 1.0), 0.2, 20)],
)
def test_the_margin_holds_the_widest_view(zoom, shift, expected):
    assert margin(100, AugmentConfig(zoom=zoom, shift=shift)) == expected


def test_views_lie_in_the_square_and_keep_their_ranges():
    config = AugmentConfig(zoom=(0.7, 1.4), shift=0.15)
    around = margin(136, config)
    whole = 136 + 2 * around
    rng = np.random.default_rng(0)
    boxes = np.array([view(136, around, config, rng) for _ in range(500)])
    assert boxes.min() >= 0 and boxes.max() <= whole
    edges = boxes[:, 2] - boxes[:, 0]
    np.testing.assert_allclose(edges, boxes[:, 3] - boxes[:, 1])
    assert 136 / 1.4 - 1e-6 <= edges.min() < 136 / 1.3 and 136 / 0.8 < edges.max() <= 136 / 0.7
    off = (boxes[:, 0] + boxes[:, 2] - whole) / 2 / edges
    assert np.abs(off).max() <= 0.15 + 1e-9 and off.max() > 0.1 and off.min() < -0.1
    assert abs(np.log(136 / edges).mean()) < 0.05  # as often larger as smaller


def test_zoom_one_half_shows_what_a_resize_of_twice_the_picture_shows():
    config = AugmentConfig(zoom=(0.5, 0.5))
    square = picture(80)
    shown = augment(square, 40, 0, np.random.default_rng(0), margin=20, look=config)
    np.testing.assert_array_equal(shown, resize(square, 40))


def test_the_margin_is_the_pictures_own_surroundings_and_the_middle_stays_to_the_bit():
    image = Image.fromarray(picture(200))
    plain = centre_square(image, 0.4, 50)
    wide = centre_square(image, 0.4, 50, margin=25)
    np.testing.assert_array_equal(wide[25:-25, 25:-25], plain)
    larger = centre_square(image, 0.8, 100).astype(int)
    assert wide.shape == (100, 100, 3)
    assert np.abs(wide.astype(int) - larger).max() <= 1


def test_where_the_picture_ends_the_margin_is_mirrored():
    image = Image.fromarray(picture(64))
    wide = centre_square(image, 1.0, 64, margin=16)
    expected = np.pad(picture(64), ((16, 16), (16, 16), (0, 0)), mode="symmetric")
    np.testing.assert_array_equal(wide, expected)


# Refusals


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stain_hue", -0.1),
        ("stain_strength", (2.0, 0.5)),
        ("stain_strength", (0.0, 1.0)),
        ("stain_ratio", (1.0,)),
        ("channel_mix", 0.6),
        ("background", -1.0),
        ("white_balance", float("nan")),
        ("gamma", (0.5, float("inf"))),
        ("grey", 1.5),
        ("blur", 0.5),
        ("sharpen", -1.0),
        ("noise", -1.0),
        ("jpeg", 96),
        ("zoom", (0.1, 1.0)),
        ("shift", 0.6),
    ],
)
def test_a_value_out_of_range_is_named_with_its_rule(field, value):
    with pytest.raises(UserError, match=rf"config\.data\.augment\.{field} is .*must"):
        AugmentConfig(**{field: value})


def test_augment_has_no_default_that_differs_from_off():
    assert inspect.signature(augment).parameters["look"].default == OFF
