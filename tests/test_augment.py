"""Augmentation: group laws, torchvision as the reference for colours, exact shares of mixing."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as reference

from bcvit_jax.augment import (
    augment,
    centre_square,
    colour_matrix,
    crop_box,
    dihedral,
    mix_batch,
    resize,
)
from bcvit_jax.shifts import recolour

NO_MEAN = np.zeros(3)


def noise(*shape: int, seed: int = 0, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape, dtype=np.uint8)


def smooth(side: int = 64) -> np.ndarray:
    """A coloured picture without sharp edges, uint8 [side, side, 3]."""
    y, x = np.mgrid[0:side, 0:side] / side
    planes = [0.5 + 0.3 * np.sin(5 * x), 0.5 + 0.3 * np.cos(4 * y), 0.4 + 0.3 * x * y]
    return (255 * np.stack(planes, axis=-1)).astype(np.uint8)


# The eight flips and turns


def test_the_flips_and_turns_are_eight_different_pictures_and_0_is_the_identity():
    image = noise(6, 6, 3)
    turned = [dihedral(image, t).tobytes() for t in range(8)]
    assert len(set(turned)) == 8
    assert turned[0] == image.tobytes()


def test_the_flips_and_turns_are_closed_and_each_has_an_inverse():
    image = noise(5, 5, 3)
    of_one = {dihedral(image, t).tobytes(): t for t in range(8)}
    table = np.array(
        [[of_one[dihedral(dihedral(image, a), b).tobytes()] for b in range(8)] for a in range(8)]
    )
    for line in [*table, *table.T]:  # a Latin square: a group
        assert sorted(line) == list(range(8))
    assert not np.array_equal(table, table.T)  # flips and turns don't commute


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (1, lambda a: np.rot90(a)),
        (2, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[:, ::-1]),
        (6, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
    ],
)
def test_the_numbers_of_the_flips_and_turns_are_what_the_docstring_says(transform, expected):
    image = noise(4, 7, 3)
    np.testing.assert_array_equal(dihedral(image, transform), expected(image))


@pytest.mark.parametrize("transform", range(8))
def test_augment_turns_as_dihedral_does(transform):
    square = noise(9, 9, 3)
    turned = augment(square, 9, transform, np.random.default_rng(0))
    np.testing.assert_array_equal(turned, dihedral(square, transform))


def test_a_ninth_flip_is_refused():
    with pytest.raises(ValueError, match="transform is 8"):
        dihedral(noise(2, 2, 3), 8)


def test_drawn_flips_and_turns_are_all_eight_about_equally_often():
    square = noise(4, 4, 3)
    rng = np.random.default_rng(0)
    drawn = [augment(square, 4, 0, rng, flips_turns=True).tobytes() for _ in range(800)]
    counts = [drawn.count(dihedral(square, t).tobytes()) for t in range(8)]
    assert sum(counts) == 800
    assert min(counts) > 60  # 100 expected, standard deviation 9


# Sizes


def test_centre_square_keeps_the_middle():
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[15:45, 35:65] = 255  # the centred square of half the shorter side
    kept = centre_square(Image.fromarray(pixels), 0.5, 30)
    assert kept.shape == (30, 30, 3)
    assert (kept == 255).all()


def test_centre_square_of_everything_resizes_the_whole_picture():
    pixels = noise(20, 40, 3)
    whole = centre_square(Image.fromarray(pixels), 1.0, 10)
    expected = Image.fromarray(pixels).resize((10, 10), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(whole, np.asarray(expected))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_centre_square_makes_every_mode_three_channels(mode):
    assert centre_square(Image.fromarray(noise(8, 8, 3)).convert(mode), 0.9, 6).shape == (6, 6, 3)


@pytest.mark.parametrize("size", [12, 16, 24])
def test_augment_with_everything_off_is_what_evaluation_sees(size):
    square = noise(16, 16, 3)
    untouched = augment(square, size, 0, np.random.default_rng(0))
    np.testing.assert_array_equal(untouched, resize(square, size))
    assert untouched.shape == (size, size, 3)
    assert untouched.dtype == np.uint8


def test_crop_boxes_lie_inside_and_keep_area_and_aspect_in_their_ranges():
    rng = np.random.default_rng(0)
    boxes = np.array([crop_box(rng, (0.3, 0.8), (0.75, 4 / 3)) for _ in range(500)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0 and boxes.max() <= 1
    assert (width * height).min() > 0.3 - 1e-9 and (width * height).max() < 0.8 + 1e-9
    assert (width / height).min() > 0.75 - 1e-9 and (width / height).max() < 4 / 3 + 1e-9
    assert abs((width * height).mean() - 0.55) < 0.02


def test_a_crop_shape_that_never_fits_becomes_the_whole_square():
    assert crop_box(np.random.default_rng(0), (1.0, 1.0), (2.0, 2.0)) == (0.0, 0.0, 1.0, 1.0)


def test_a_random_crop_shows_a_part_of_the_square():
    square = smooth(64)
    rng = np.random.default_rng(3)
    box = crop_box(np.random.default_rng(3), (0.25, 0.25), (1.0, 1.0))
    cropped = augment(square, 32, 0, rng, crop_area=(0.25, 0.25)).astype(int)
    left, top = round(64 * box[0]), round(64 * box[1])
    assert np.abs(cropped - square[top : top + 32, left : left + 32]).max() <= 8


# Colours


def test_colour_jitter_of_strength_0_draws_nothing_and_changes_nothing():
    square = noise(16, 16, 3)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(augment(square, 16, 0, rng), square)
    assert rng.random() == np.random.default_rng(0).random()
    still = recolour(Image.fromarray(square), colour_matrix(1.0, 1.0, 1.0, 0.0, NO_MEAN))
    np.testing.assert_array_equal(np.asarray(still), square)


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.3])
@pytest.mark.parametrize("change", ["brightness", "contrast", "saturation"])
def test_each_colour_factor_does_what_torchvision_does(change, factor):
    pixels = noise(32, 32, 3, low=30, high=220)
    mean = pixels.reshape(-1, 3).mean(axis=0)
    factors = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0} | {change: factor}
    ours = recolour(Image.fromarray(pixels), colour_matrix(**factors, hue=0.0, mean=mean))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    theirs = getattr(reference, f"adjust_{change}")(tensor, factor).permute(1, 2, 0).numpy()
    # torchvision truncates where we round, and truncates the grey picture it blends with as well
    assert np.abs(np.asarray(ours, int) - theirs.astype(int)).max() <= 1 + abs(1 - factor)


def test_colour_changes_commute():
    rng = np.random.default_rng(0)
    pixels = rng.uniform(80, 160, (50, 3))
    mean = pixels.mean(axis=0)

    def change(x, **one):
        values = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0} | one
        matrix = colour_matrix(**values, mean=x.mean(axis=0))
        return x @ matrix[:, :3].T + matrix[:, 3]

    steps = [{"brightness": 1.2}, {"contrast": 0.8}, {"saturation": 1.3}, {"hue": 0.1}]
    forward, backward = pixels, pixels
    for step in steps:
        forward = change(forward, **step)
    for step in reversed(steps):
        backward = change(backward, **step)
    matrix = colour_matrix(1.2, 0.8, 1.3, 0.1, mean)
    np.testing.assert_allclose(forward, backward, atol=1e-8)
    np.testing.assert_allclose(forward, pixels @ matrix[:, :3].T + matrix[:, 3], atol=1e-8)


def test_hue_turns_red_towards_green_keeps_grey_and_a_whole_turn_is_nothing():
    red, grey = np.array([200.0, 40.0, 40.0]), np.full(3, 128.0)
    third = colour_matrix(1.0, 1.0, 1.0, 1 / 3, NO_MEAN)[:, :3]
    assert np.argmax(third @ red) == 1
    np.testing.assert_allclose(third @ grey, grey, atol=1e-3)
    luma = np.array([0.299, 0.587, 0.114])
    assert luma @ third @ red == pytest.approx(luma @ red)
    np.testing.assert_allclose(
        colour_matrix(1.0, 1.0, 1.0, 1.0, NO_MEAN)[:, :3], np.eye(3), atol=1e-12
    )


def test_small_hue_shifts_point_the_way_torchvision_shifts():
    pixels = smooth(32)
    ours = recolour(Image.fromarray(pixels), colour_matrix(1.0, 1.0, 1.0, 0.03, NO_MEAN))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    theirs = reference.adjust_hue(tensor, 0.03).permute(1, 2, 0).numpy()
    mine = (np.asarray(ours, float) - pixels).ravel()
    other = (theirs.astype(float) - pixels).ravel()
    cosine = mine @ other / np.linalg.norm(mine) / np.linalg.norm(other)
    assert cosine > 0.7  # two different rotations about grey: the same direction, not the same map


def test_drawn_brightness_stays_within_its_strength():
    square = np.full((8, 8, 3), 100, np.uint8)
    rng = np.random.default_rng(0)
    values = [int(augment(square, 8, 0, rng, brightness=0.3)[0, 0, 0]) for _ in range(300)]
    assert 70 <= min(values) < 75
    assert 125 < max(values) <= 130


# Mixing


def test_mixup_blends_by_the_share_it_states():
    images, labels = noise(16, 8, 8, 3), np.arange(16, dtype=np.int32)
    mixed = mix_batch(images, labels, np.random.default_rng(0), mixup=0.5, cutmix=0.0)
    np.testing.assert_array_equal(mixed["label"], labels)
    share = mixed["mix"][:, None, None, None]
    expected = share * images + (1 - share) * images[mixed["mixed_label"]]
    assert np.abs(mixed["image"] - expected).max() <= 0.5 + 1e-3
    assert mixed["image"].dtype == np.uint8 and mixed["mix"].dtype == np.float32
    assert mixed["mix"].min() >= 0 and mixed["mix"].max() <= 1 and np.ptp(mixed["mix"]) > 0.3


def test_cutmix_states_the_exact_share_of_pixels():
    labels = np.arange(64, dtype=np.int32)
    images = np.broadcast_to(labels[:, None, None, None], (64, 10, 10, 3)).astype(np.uint8)
    mixed = mix_batch(images, labels, np.random.default_rng(0), mixup=0.0, cutmix=1.0)
    other = mixed["mixed_label"] != labels
    share = (mixed["image"][..., 0] == labels[:, None, None]).mean(axis=(1, 2))
    np.testing.assert_allclose(mixed["mix"][other], share[other], atol=1e-6)
    foreign = mixed["image"][..., 0] != labels[:, None, None]
    allowed = mixed["image"][..., 0] == mixed["mixed_label"][:, None, None]
    assert allowed[foreign].all() and foreign.any()


def test_with_both_on_each_batch_is_mixed_in_one_of_the_two_ways():
    images = np.zeros((4, 8, 8, 3), np.uint8)
    images[::2] = 255
    labels = np.array([0, 1, 0, 1], np.int32)
    kinds = set()
    for seed in range(40):
        mixed = mix_batch(images, labels, np.random.default_rng(seed), mixup=1.0, cutmix=1.0)
        kinds.add(bool(np.isin(mixed["image"], (0, 255)).all()))
    assert kinds == {True, False}  # cut and paste leaves black and white, blending makes greys
