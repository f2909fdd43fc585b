"""EfficientNet-B0 beside torchvision's and timm's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import timm
import torchvision
from flax import nnx
from torchvision.models.efficientnet import EfficientNet, MBConvConfig

from bcvit_jax.models import build, model_config
from bcvit_jax.models.efficientnet import STAGES
from tests.baselines import (
    CLASSES,
    assert_same_logits,
    assert_same_training,
    lively,
    parameters,
    their_parameters,
)

STILL: dict[str, Any] = dict(dropout=0.0, drop_path=0.0)


def test_it_has_the_libraries_number_of_parameters():
    assert parameters("efficientnet_b0") == 5_288_548
    assert their_parameters(torchvision.models.efficientnet_b0) == 5_288_548


def test_logits_are_torchvisions(tmp_path):
    network = lively(torchvision.models.efficientnet_b0(num_classes=CLASSES))
    family = assert_same_logits("efficientnet_b0", network, tmp_path)
    assert family == "torchvision's EfficientNet"


def test_three_steps_are_torchvisions(tmp_path):
    """Of one block a stage and two of the third, so that there is a residual branch."""
    depths = (1, 1, 2, 1, 1, 1, 1)
    sizes = zip((32, 16, 24, 40, 80, 112, 192), STAGES, depths, strict=True)
    settings = [
        MBConvConfig(expansion, size, stride, inputs, outputs, depth)
        for inputs, (expansion, size, stride, outputs), depth in sizes
    ]
    network: Any = lively(EfficientNet(settings, 0.0, 0.0, CLASSES))
    network.classifier[1].weight.data.mul_(0.3)
    assert_same_training("efficientnet_b0", network, tmp_path, depths=depths, **STILL)


def test_logits_are_timms(tmp_path):
    network = lively(timm.create_model("efficientnet_b0", num_classes=CLASSES))
    assert assert_same_logits("efficientnet_b0", network, tmp_path) == "timm's EfficientNet"


def test_chances_of_dropping_are_torchvisions():
    """Block i of 16 is left out with the chance 0.2·i/16; 0.2 of the features are dropped."""
    theirs: Any = torchvision.models.efficientnet_b0()
    chances = [m.p for m in theirs.modules() if type(m).__name__ == "StochasticDepth"]
    config: Any = model_config("efficientnet_b0", CLASSES)
    ours = [config.drop_path * place / 16 for place in range(16)]
    np.testing.assert_allclose(ours, chances)
    assert config.dropout == theirs.classifier[0].p


def test_a_key_turns_on_what_is_random():
    config = model_config("efficientnet_b0", CLASSES, norm="group", image_size=32)
    graph, variables = nnx.split(build(config, rngs=nnx.Rngs(0)))
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 2)

    def logits(key):
        return nnx.merge(graph, variables)(images, key=key).logits

    first, other = jax.jit(lambda keys: jax.lax.map(logits, keys))(keys)
    assert np.abs(first - other).max() > 1e-3
