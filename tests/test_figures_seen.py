"""The attention that figures show is the one by which the network selects."""

from types import SimpleNamespace

import numpy as np
import pytest
from flax import nnx

from bcvit_jax.errors import UserError
from bcvit_jax.exported import Preprocessing
from bcvit_jax.figures.seen import attentive, class_attention, see, together
from bcvit_jax.models import BCViTConfig
from bcvit_jax.trained import Network
from tests.networks import SIDE, lively_network, random_images, tiny_config


def opened(config: BCViTConfig) -> Network:
    """A network with random weights, as a run's checkpoint gives it."""
    program = SimpleNamespace(model=config)
    params = nnx.split(lively_network(config))[1]
    return Network(3, program, params, Preprocessing(SIDE, SIDE, 1.0))  # pyright: ignore


seen_by = nnx.jit(class_attention)
plain = nnx.jit(lambda network, images: network(images))
with_maps = nnx.jit(lambda network, images: network(images, full_maps=True))


@pytest.mark.parametrize("registers", [0, 2])
def test_the_kept_patches_are_the_strongest_of_each_head(registers):
    network = lively_network(tiny_config(tokens_per_head=2, registers=registers))
    images = random_images(3)
    output, attention = seen_by(network, images)
    assert attention.shape == (3, 2, network.config.num_patches)
    strongest = np.argsort(-np.asarray(attention), axis=-1)[:, :, :2].reshape(3, -1)
    np.testing.assert_array_equal(output.kept, strongest)
    for found, expected in zip(output, plain(network, images), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_fused_attention_is_the_weighted_sum_of_the_layers_maps():
    network = lively_network(tiny_config())
    images = random_images(2)
    _, maps = with_maps(network, images)
    rows = np.asarray(maps)[:, :, :, 0]
    weights = np.asarray(network.sparse_attention.layer_weights(rows))
    expected = np.stack([weights[:, layer, None, None] * rows[layer] for layer in range(3)]).sum(0)
    _, attention = seen_by(network, images)
    np.testing.assert_allclose(attention, expected[:, :, 1:], atol=1e-6)


def test_without_selection_it_is_the_last_blocks_and_nothing_is_kept():
    network = lively_network(tiny_config(selection=False))
    images = random_images(2)
    output, attention = seen_by(network, images)
    _, maps = with_maps(network, images)
    np.testing.assert_allclose(attention, maps[-1, :, :, 0, 1:], atol=1e-6)
    assert output.kept.shape == (2, 0)


def test_images_are_seen_in_the_order_asked_whatever_the_batches(cells, monkeypatch):
    network, rows = opened(tiny_config(num_classes=3)), [7, 2, 11, 5, 0]
    whole = together(list(see(network, cells, "fold1", rows)))
    monkeypatch.setattr("bcvit_jax.figures.seen.BATCH", 2)
    parts = list(see(network, cells, "fold1", rows))
    assert [len(part.images) for part in parts] == [2, 2, 1]
    for one, other in zip(whole, together(parts), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_array_equal(whole.images[3], network.preprocessing(cells.image("fold1", 5)))
    np.testing.assert_allclose(whole.probabilities.sum(axis=1), 1, atol=1e-5)


def test_a_network_without_attention_is_refused_in_one_sentence():
    program = SimpleNamespace(model=SimpleNamespace(image_size=32))
    with pytest.raises(UserError, match="of the kind SimpleNamespace has no attention"):
        attentive(Network(0, program, None, Preprocessing(SIDE, SIDE, 1.0)))  # pyright: ignore
