"""VGG-16 beside torchvision's and timm's."""

from typing import Any

import numpy as np
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from bcvit_jax.models import model_config
from bcvit_jax.weights import pretrained
from tests.baselines import (
    CLASSES,
    assert_same_logits,
    assert_same_training,
    lively,
    parameters,
    saved,
    their_parameters,
)

HIDDEN = 64
SMALL: dict[str, Any] = dict(hidden=HIDDEN, dropout=0.0)


def network(norm: bool = False) -> nn.Module:
    """torchvision's with dense layers of 64: the paper's 4096 would be all that the test does."""
    make = torchvision.models.vgg16_bn if norm else torchvision.models.vgg16
    with_head = make(num_classes=CLASSES, init_weights=False, dropout=0.0)
    with_head.classifier = nn.Sequential(
        nn.Linear(512 * 7 * 7, HIDDEN),
        nn.ReLU(),
        nn.Dropout(0.0),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Dropout(0.0),
        nn.Linear(HIDDEN, CLASSES),
    )
    for module in with_head.features.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in")
    return lively(with_head)


def test_it_has_torchvisions_number_of_parameters():
    assert parameters("vgg16") == their_parameters(torchvision.models.vgg16) == 138_357_544
    assert parameters("vgg16", norm="batch") == their_parameters(torchvision.models.vgg16_bn)


def test_logits_are_torchvisions_and_timms(tmp_path):
    family = assert_same_logits("vgg16", network(), tmp_path, **SMALL)
    assert family == "torchvision's VGG-16"
    family = assert_same_logits("vgg16", network(True), tmp_path, norm="batch", **SMALL)
    assert family == "torchvision's VGG-16 with batch norm"


def test_timms_names_and_its_convolutions_for_dense_layers_are_the_same_weights(tmp_path):
    theirs = network()
    renamed = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2"}
    renamed["classifier.6"] = "head.fc"
    state = {}
    for name, array in theirs.state_dict().items():
        module, _, leaf = name.rpartition(".")
        if module in ("classifier.0", "classifier.3") and leaf == "weight":
            side = 7 if module == "classifier.0" else 1
            array = array.reshape(HIDDEN, -1, side, side)
        state[f"{renamed.get(module, module)}.{leaf}"] = array.contiguous()
    with torch.device("meta"):
        assert state.keys() == timm.create_model("vgg16").state_dict().keys()
    save_file(state, tmp_path / "timm.safetensors")
    config = model_config("vgg16", CLASSES, **SMALL)
    flat, report = pretrained(config, tmp_path / "timm.safetensors", head=True)
    expected, _ = pretrained(config, saved(theirs, tmp_path), head=True)
    assert report.family == "timm's VGG-16"
    assert flat.keys() == expected.keys()
    for name, array in flat.items():
        np.testing.assert_array_equal(array, expected[name])


def test_three_steps_are_torchvisions(tmp_path):
    assert_same_training("vgg16", network(True), tmp_path, norm="batch", **SMALL)
