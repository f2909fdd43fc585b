"""Networks by name: `create_model(name, num_classes, **overrides)` and `list_models()`."""

import dataclasses
import difflib
import typing
from typing import Any

from flax import nnx

from bcvit_jax.models import convolve
from bcvit_jax.models.bcvit import BCViT, Output, scale
from bcvit_jax.models.config import BCViTConfig, ConvolutionalConfig
from bcvit_jax.models.efficientnet import EfficientNet, EfficientNetConfig
from bcvit_jax.models.mae import MaskedAutoencoder, MaskedAutoencoderConfig
from bcvit_jax.models.processor import eigen_multiplies, left_to_ynnpack
from bcvit_jax.models.resnet import ResNet, ResNetConfig
from bcvit_jax.models.vgg import VGG, VGGConfig

NetworkConfig = BCViTConfig | ConvolutionalConfig | MaskedAutoencoderConfig

_TINY: dict[str, Any] = dict(width=192, heads=3, mlp_width=768)
_SMALL: dict[str, Any] = dict(width=384, heads=6, mlp_width=1536)
_BASE: dict[str, Any] = dict(width=768, heads=12, mlp_width=3072)
_PLAIN: dict[str, Any] = dict(stride=16, selection=False, activation="gelu")
_FIFTY: dict[str, Any] = dict(depths=(3, 4, 6, 3), bottleneck=True)

PRESETS: dict[str, NetworkConfig] = {
    "bcvit_base_patch16_s12_224": BCViTConfig(**_BASE),
    "bcvit_base_patch16_s16_224": BCViTConfig(**_BASE, stride=16),
    "bcvit_base_patch32_s24_224": BCViTConfig(**_BASE, patch_size=32, stride=24),
    "bcvit_base_patch32_s32_224": BCViTConfig(**_BASE, patch_size=32, stride=32),
    "bcvit_small_patch16_s12_224": BCViTConfig(**_SMALL),
    "bcvit_small_patch16_s16_224": BCViTConfig(**_SMALL, stride=16),
    "bcvit_tiny_patch16_s12_128": BCViTConfig(**_TINY, image_size=128, depth=6),
    "bcvit_tiny_conv_patch16_s12_112": BCViTConfig(
        **_TINY, image_size=112, depth=4, stem=(64, 128)
    ),
    "vit_tiny_patch16_224": BCViTConfig(**_TINY, **_PLAIN),
    "vit_small_patch16_224": BCViTConfig(**_SMALL, **_PLAIN),
    "vit_base_patch16_224": BCViTConfig(**_BASE, **_PLAIN),
    "vgg16": VGGConfig(),
    "resnet18": ResNetConfig(),
    "resnet50": ResNetConfig(**_FIFTY),
    "seresnet50": ResNetConfig(**_FIFTY, squeeze=16),
    "resnext50_32x4d": ResNetConfig(**_FIFTY, groups=32, group_width=4),
    "efficientnet_b0": EfficientNetConfig(),
}
"""Sizes as timm names them: `sNN` is the stride, the last number the image's side in pixels."""

ARCHITECTURES: dict[str, tuple[type, type]] = {
    "BCViT": (BCViTConfig, BCViT),
    "VGG": (VGGConfig, VGG),
    "ResNet": (ResNetConfig, ResNet),
    "EfficientNet": (EfficientNetConfig, EfficientNet),
    "MaskedAutoencoder": (MaskedAutoencoderConfig, MaskedAutoencoder),
}
"""The configuration and the network of each family, by the network's name."""


def compiler_options(config: NetworkConfig) -> dict[str, str]:
    """What `jax.jit` should compile the network with: on a CPU, which library gets what work."""
    if isinstance(config, ConvolutionalConfig):
        return convolve.compiler_options()
    return left_to_ynnpack("REDUCE") if eigen_multiplies(config.dtype) else {}


def list_models() -> list[str]:
    """Names that `create_model` takes."""
    return sorted(PRESETS)


def architecture(config: NetworkConfig) -> str:
    """The family of a configuration, a name in `ARCHITECTURES`."""
    return next(name for name, (kind, _) in ARCHITECTURES.items() if type(config) is kind)


def build(config: NetworkConfig, *, rngs: nnx.Rngs) -> Any:
    """The network of a configuration with fresh weights."""
    return ARCHITECTURES[architecture(config)][1](config, rngs=rngs)


def model_config(name: str, num_classes: int, **overrides) -> NetworkConfig:
    """The frozen configuration behind `name`; ValueError for an unknown name, field or value."""
    if name not in PRESETS:
        raise ValueError(f"no model is called {name!r}{_nearest(name, PRESETS)}")
    known = typing.get_type_hints(type(PRESETS[name]))
    for field, value in overrides.items():
        if field not in known:
            raise ValueError(f"a model has no field {field!r}{_nearest(field, known)}")
        if not _is_a(value, known[field]):
            kind = _KINDS.get(known[field], "whole numbers")
            raise ValueError(f"{field} is {value!r}; it must be {kind}")
    return dataclasses.replace(PRESETS[name], num_classes=num_classes, **overrides)


def create_model(name: str, num_classes: int, *, rngs: nnx.Rngs | None = None, **overrides):
    """The network `name` with fresh weights; `overrides` are fields of its configuration."""
    return build(model_config(name, num_classes, **overrides), rngs=rngs or nnx.Rngs(0))


_KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a word"}


def _is_a(value, hint) -> bool:
    """Whether a field may hold a value, as far as its type says: an int, a Literal, ints."""
    if typing.get_origin(hint) is typing.Literal:
        return True  # the configuration itself says which
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is_a(part, int) for part in value)
    kinds = (int, float) if hint is float else hint
    return isinstance(value, kinds) and (hint is bool or not isinstance(value, bool))


def _nearest(word: str, known) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.3)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


__all__ = [
    "ARCHITECTURES",
    "PRESETS",
    "BCViT",
    "BCViTConfig",
    "ConvolutionalConfig",
    "MaskedAutoencoderConfig",
    "NetworkConfig",
    "Output",
    "architecture",
    "build",
    "create_model",
    "list_models",
    "model_config",
    "scale",
]
