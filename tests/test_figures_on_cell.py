"""Where the cell is, and how much of the attention lies on it against chance."""

import math

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bcvit_jax.figures.on_cell import by_class, cell_mask, image_shares, otsu, summarise, told
from bcvit_jax.figures.patches import shares
from tests.networks import tiny_config

SIDE = 112
BRIGHT = (250, 230, 205)
RED_CELL = (205, 165, 160)
CYTOPLASM = (185, 170, 205)
NUCLEUS = (80, 40, 140)


def smear(seed: int = 0) -> np.ndarray:
    """A white cell of radius 30 at (58, 52), its nucleus off its middle, red cells around it."""
    picture = Image.new("RGB", (SIDE, SIDE), BRIGHT)
    draw = ImageDraw.Draw(picture)
    for x, y in ((12, 10), (98, 95), (15, 90), (96, 30)):
        draw.ellipse((x - 15, y - 15, x + 15, y + 15), fill=RED_CELL)
    draw.ellipse((28, 22, 88, 82), fill=CYTOPLASM)
    draw.ellipse((40, 30, 76, 66), fill=NUCLEUS)
    noise = np.random.default_rng(seed).normal(0, 4, (SIDE, SIDE, 3))
    return np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)


def truth() -> np.ndarray:
    picture = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(picture).ellipse((28, 22, 88, 82), fill=1)
    return np.asarray(picture).astype(bool)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


@pytest.mark.parametrize("seed", range(3))
def test_the_cell_is_nucleus_and_cytoplasm_without_the_red_cells(seed):
    found = cell_mask(smear(seed))
    assert found is not None and overlap(found, truth()) > 0.93


def test_a_mask_turns_with_its_picture():
    one, other = cell_mask(smear()), cell_mask(np.rot90(smear()).copy())
    assert one is not None and other is not None
    assert overlap(np.rot90(one), other) > 0.98


@pytest.mark.parametrize("colour", [BRIGHT, (0, 0, 0)])
def test_where_there_is_nothing_no_cell_is_told(colour):
    assert cell_mask(np.full((SIDE, SIDE, 3), colour, np.uint8)) is None


def test_otsu_parts_two_groups_as_an_exhaustive_search_does():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1, 400), rng.normal(6, 1.5, 200)])

    def spread_within(threshold):
        parts = values[values <= threshold], values[values > threshold]
        return sum(len(part) * part.var() for part in parts)

    best = min(spread_within(threshold) for threshold in np.sort(values)[:-1])
    assert spread_within(otsu(values)) == pytest.approx(best, rel=0.005)


def test_even_attention_is_chance_and_attention_to_one_patch_is_that_patch():
    config, mask = tiny_config(), np.zeros((32, 32), bool)
    mask[5:20, 9:27] = True
    even = np.full((2, config.num_patches), 0.03)
    on = shares(mask, config.patch_size, config.stride)
    every = np.arange(config.num_patches)
    kept, attention, chance = image_shares(mask, config, every, even)
    assert kept == pytest.approx(chance) and attention == pytest.approx(chance)
    single = np.zeros((2, config.num_patches))
    single[:, 12] = 0.4
    kept, attention, chance = image_shares(mask, config, np.array([12, 12]), single)
    assert kept == attention == pytest.approx(on[12]) and chance == pytest.approx(on.mean())
    assert on[12] > chance > 0


def test_without_a_cell_or_without_kept_patches_there_is_no_share():
    config = tiny_config()
    even, none = np.ones((2, config.num_patches)), np.zeros(0, int)
    assert all(map(math.isnan, image_shares(None, config, none, even)))
    kept, attention, _ = image_shares(np.ones((32, 32), bool), config, none, even)
    assert math.isnan(kept) and attention == pytest.approx(1)


def test_the_ratio_of_chance_itself_is_one():
    chance = np.random.default_rng(0).uniform(0.2, 0.6, 50)
    found = summarise(chance, chance, np.arange(50))
    assert found["ratio"] == pytest.approx(1) and found["ratio_interval"] is None
    low, high = found["share_interval"]
    assert low < chance.mean() < high


def test_intervals_are_those_of_the_mean_and_wider_where_groups_are_few():
    rng = np.random.default_rng(0)
    chance = rng.uniform(0.3, 0.5, 400)
    group = np.repeat(np.arange(40), 10)
    on = chance * 1.5 + rng.normal(0, 0.1, 40)[group]
    alone, grouped = (summarise(on, chance, by) for by in (np.arange(400), group))
    low, high = alone["share_interval"]
    normal = 1.96 * on.std(ddof=1) / math.sqrt(len(on))
    assert (high - low) / 2 == pytest.approx(normal, rel=0.1)
    assert np.ptp(grouped["ratio_interval"]) > 1.5 * np.ptp(alone["ratio_interval"])
    assert alone["ratio"] == pytest.approx(on.sum() / chance.sum())
    assert told("kept", alone).startswith("kept: ")


def test_classes_have_their_own_means():
    values = {"kept": np.array([1.0, 0.5, 0.0]), "chance": np.array([0.5, 0.5, 0.2])}
    assert by_class(values, np.array([0, 0, 2]), ["A", "B", "C"]) == {
        "A": {"images": 2, "kept": 0.75, "chance": 0.5},
        "C": {"images": 1, "kept": 0.0, "chance": 0.2},
    }
