"""Patches and their pixels: against brute force, and against what the network itself sees."""

import jax
import numpy as np
import pytest

from bcvit_jax.figures.patches import corners, pixel_means, shares
from bcvit_jax.models import BCViTConfig
from tests.networks import SIDE, lively_network, random_images, tiny_config

SCHEMES = [(32, 8, 8), (32, 8, 6), (33, 8, 6), (20, 16, 12), (16, 16, 3)]


@pytest.mark.parametrize(("size", "patch", "stride"), SCHEMES)
def test_a_pixel_has_the_mean_of_the_patches_that_cover_it(size, patch, stride):
    across = range(0, size - patch + 1, stride)
    values = np.random.default_rng(0).random((2, len(across) ** 2))
    found = pixel_means(values, size, patch, stride)
    for y, x in np.random.default_rng(1).integers(0, size, (60, 2)):
        covering = [
            place
            for place, (top, left) in enumerate((t, s) for t in across for s in across)
            if top <= y < top + patch and left <= x < left + patch
        ]
        for head in range(2):
            expected = values[head, covering].mean() if covering else 0.0
            assert found[head, y, x] == pytest.approx(expected)


def test_attention_to_one_patch_lights_its_pixels_alone():
    values = np.zeros(25)
    values[7] = 1.0  # second row, third column
    lit = pixel_means(values, 32, 8, 6) > 0
    expected = np.zeros((32, 32), bool)
    expected[6:14, 12:20] = True
    np.testing.assert_array_equal(lit, expected)


def test_the_corners_are_those_of_the_pixels_that_a_token_sees():
    config: BCViTConfig = tiny_config()
    network = lively_network(config)
    image = random_images(1)
    for patch in (0, 4, 7, 24):
        gradient = jax.grad(lambda x, at=1 + patch: network.embedding(x)[0, at].sum())(image)
        seen = np.argwhere(np.abs(np.asarray(gradient[0])).sum(-1) > 0)
        corner = corners(SIDE, config.patch_size, config.stride)[patch]
        np.testing.assert_array_equal(seen.min(0), corner)
        np.testing.assert_array_equal(seen.max(0), corner + config.patch_size - 1)


@pytest.mark.parametrize(("size", "patch", "stride"), SCHEMES)
def test_shares_are_those_of_each_patch_cut_out(size, patch, stride):
    mask = np.random.default_rng(0).random((size, size)) < 0.3
    expected = [
        mask[top : top + patch, left : left + patch].mean()
        for top in range(0, size - patch + 1, stride)
        for left in range(0, size - patch + 1, stride)
    ]
    np.testing.assert_allclose(shares(mask, patch, stride), expected)
