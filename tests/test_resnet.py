"""ResNet, SE-ResNet and ResNeXt beside torchvision's and timm's."""

import pytest
import timm
import torchvision
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from bcvit_jax.errors import UserError
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

MAKERS = {
    "resnet18": torchvision.models.resnet18,
    "resnet50": torchvision.models.resnet50,
    "seresnet50": lambda **fields: timm.create_model("seresnet50", **fields),
    "resnext50_32x4d": torchvision.models.resnext50_32x4d,
}
COUNTS = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "seresnet50": 28_088_024,
    "resnext50_32x4d": 25_028_904,
}


@pytest.mark.parametrize("name", MAKERS)
def test_they_have_the_libraries_numbers_of_parameters(name):
    assert parameters(name) == their_parameters(MAKERS[name]) == COUNTS[name]
    assert parameters(name, norm="group") == COUNTS[name]


@pytest.mark.parametrize("name", MAKERS)
def test_logits_are_the_libraries(name, tmp_path):
    network = lively(MAKERS[name](num_classes=CLASSES))
    family = assert_same_logits(name, network, tmp_path)
    assert family == "torchvision's or timm's ResNet"


# One block a stage: it holds every kind of layer, and is compiled in a quarter of the time.
SHALLOW = {
    "resnet18": lambda: ResNet(BasicBlock, [1, 1, 1, 1], CLASSES),
    "resnet50": lambda: ResNet(Bottleneck, [1, 1, 1, 1], CLASSES),
    "seresnet50": lambda: timm.create_model("seresnet50", num_classes=CLASSES, layers=(1, 1, 1, 1)),
    "resnext50_32x4d": lambda: ResNet(
        Bottleneck, [1, 1, 1, 1], CLASSES, groups=32, width_per_group=4
    ),
}


@pytest.mark.parametrize("name", SHALLOW)
def test_three_steps_are_the_libraries(name, tmp_path):
    assert_same_training(name, lively(SHALLOW[name]()), tmp_path, depths=(1, 1, 1, 1))


def test_with_group_norm_it_is_timms(tmp_path):
    network = lively(timm.create_model("resnet50_gn", num_classes=CLASSES))
    assert_same_logits("resnet50", network, tmp_path, norm="group")


def test_weights_of_another_network_are_refused_with_all_that_differs(tmp_path):
    path = saved(torchvision.models.resnet18(num_classes=CLASSES), tmp_path)

    def refused(name, **overrides) -> str:
        with pytest.raises(UserError) as caught:
            pretrained(model_config(name, CLASSES, **overrides), path)
        return str(caught.value)

    sentence = refused("resnet50")
    assert "layer1.0.conv3.weight is missing" in sentence
    assert sentence.endswith(" more") and "\n" not in sentence
    wide = refused("resnet18", depths=(2, 2, 2, 1))
    assert "layer4.1.conv1.weight is unknown" in wide
    assert "layer1.0.bn1.running_mean is unknown" in refused("resnet18", norm="group")
    assert "layer1.0.se.fc1.weight is missing" in refused("resnet18", squeeze=16)
    assert "holds no weights of this VGG (" in refused("vgg16")
    assert "no weights of this EfficientNet" in refused("efficientnet_b0")


def test_the_head_stays_fresh_unless_it_is_asked_for(tmp_path):
    path = saved(torchvision.models.resnet18(num_classes=1000), tmp_path)
    flat, report = pretrained(model_config("resnet18", CLASSES), path)
    assert report.fresh == ("head.bias", "head.kernel")
    assert set(report.loaded) == set(flat)
