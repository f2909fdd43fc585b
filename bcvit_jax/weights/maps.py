"""How the weights of other libraries become ours: of Vision Transformers a line a weight, of
convolutional networks a line a module."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


def _same(x):
    return x


def _linear(x):
    """PyTorch's [out, in] -> [in, out]."""
    return x.T


def _convolution(x):
    """PyTorch's [out, in, P, P] -> [P, P, in, out]."""
    return x.transpose(2, 3, 1, 0)


def to_heads(x):
    """Google's kernel [d, h, e] or bias [h, e] -> [d, h·e] or [h·e]."""
    return x.reshape(x.shape[0], -1) if x.ndim == 3 else x.reshape(-1)


def _from_heads(x):
    """Google's kernel [h, e, d] -> [h·e, d]."""
    return x.reshape(-1, x.shape[-1])


class Line(NamedTuple):
    """A weight of ours, its name there (several are joined along the last axis), how it turns."""

    ours: str
    theirs: str | tuple[str, ...]
    turn: Callable[[np.ndarray], np.ndarray] = _same


_ATTENTION = "Transformer/encoderblock_{}/MultiHeadDotProductAttention_1/"
_LAYER = "encoder.layer.{}."

GOOGLE = (
    Line("embedding.class_token", "cls"),
    Line("embedding.position", "Transformer/posembed_input/pos_embedding"),
    Line("embedding.projection.kernel", "embedding/kernel"),
    Line("embedding.projection.bias", "embedding/bias"),
    Line("blocks.{}.attention_norm.scale", "Transformer/encoderblock_{}/LayerNorm_0/scale"),
    Line("blocks.{}.attention_norm.bias", "Transformer/encoderblock_{}/LayerNorm_0/bias"),
    Line(
        "blocks.{}.attention.qkv.kernel",
        tuple(f"{_ATTENTION}{part}/kernel" for part in ("query", "key", "value")),
        to_heads,
    ),
    Line(
        "blocks.{}.attention.qkv.bias",
        tuple(f"{_ATTENTION}{part}/bias" for part in ("query", "key", "value")),
        to_heads,
    ),
    Line("blocks.{}.attention.projection.kernel", f"{_ATTENTION}out/kernel", _from_heads),
    Line("blocks.{}.attention.projection.bias", f"{_ATTENTION}out/bias"),
    Line("blocks.{}.mlp_norm.scale", "Transformer/encoderblock_{}/LayerNorm_2/scale"),
    Line("blocks.{}.mlp_norm.bias", "Transformer/encoderblock_{}/LayerNorm_2/bias"),
    Line("blocks.{}.mlp.expand.kernel", "Transformer/encoderblock_{}/MlpBlock_3/Dense_0/kernel"),
    Line("blocks.{}.mlp.expand.bias", "Transformer/encoderblock_{}/MlpBlock_3/Dense_0/bias"),
    Line("blocks.{}.mlp.contract.kernel", "Transformer/encoderblock_{}/MlpBlock_3/Dense_1/kernel"),
    Line("blocks.{}.mlp.contract.bias", "Transformer/encoderblock_{}/MlpBlock_3/Dense_1/bias"),
    Line("norm.scale", "Transformer/encoder_norm/scale"),
    Line("norm.bias", "Transformer/encoder_norm/bias"),
    Line("head.kernel", "head/kernel"),
    Line("head.bias", "head/bias"),
)

TIMM = (
    Line("embedding.class_token", "cls_token"),
    Line("embedding.registers", "reg_token"),
    Line("embedding.position", "pos_embed"),
    Line("embedding.projection.kernel", "patch_embed.proj.weight", _convolution),
    Line("embedding.projection.bias", "patch_embed.proj.bias"),
    Line("blocks.{}.attention_norm.scale", "blocks.{}.norm1.weight"),
    Line("blocks.{}.attention_norm.bias", "blocks.{}.norm1.bias"),
    Line("blocks.{}.attention.qkv.kernel", "blocks.{}.attn.qkv.weight", _linear),
    Line("blocks.{}.attention.qkv.bias", "blocks.{}.attn.qkv.bias"),
    Line("blocks.{}.attention.projection.kernel", "blocks.{}.attn.proj.weight", _linear),
    Line("blocks.{}.attention.projection.bias", "blocks.{}.attn.proj.bias"),
    Line("blocks.{}.attention_scale", "blocks.{}.ls1.gamma"),
    Line("blocks.{}.mlp_norm.scale", "blocks.{}.norm2.weight"),
    Line("blocks.{}.mlp_norm.bias", "blocks.{}.norm2.bias"),
    Line("blocks.{}.mlp.expand.kernel", "blocks.{}.mlp.fc1.weight", _linear),
    Line("blocks.{}.mlp.expand.bias", "blocks.{}.mlp.fc1.bias"),
    Line("blocks.{}.mlp.contract.kernel", "blocks.{}.mlp.fc2.weight", _linear),
    Line("blocks.{}.mlp.contract.bias", "blocks.{}.mlp.fc2.bias"),
    Line("blocks.{}.mlp_scale", "blocks.{}.ls2.gamma"),
    Line("norm.scale", "norm.weight"),
    Line("norm.bias", "norm.bias"),
    Line("head.kernel", "head.weight", _linear),
    Line("head.bias", "head.bias"),
)

DINOV2 = tuple(
    line._replace(theirs="register_tokens") if line.theirs == "reg_token" else line for line in TIMM
)

_HUGGING_FACE_COMMON = (
    Line("embedding.class_token", "embeddings.cls_token"),
    Line("embedding.position", "embeddings.position_embeddings"),
    Line(
        "embedding.projection.kernel",
        "embeddings.patch_embeddings.projection.weight",
        _convolution,
    ),
    Line("embedding.projection.bias", "embeddings.patch_embeddings.projection.bias"),
    Line(
        "blocks.{}.attention.qkv.kernel",
        tuple(f"{_LAYER}attention.attention.{part}.weight" for part in ("query", "key", "value")),
        _linear,
    ),
    Line(
        "blocks.{}.attention.qkv.bias",
        tuple(f"{_LAYER}attention.attention.{part}.bias" for part in ("query", "key", "value")),
    ),
    Line(
        "blocks.{}.attention.projection.kernel", f"{_LAYER}attention.output.dense.weight", _linear
    ),
    Line("blocks.{}.attention.projection.bias", f"{_LAYER}attention.output.dense.bias"),
    Line("norm.scale", "layernorm.weight"),
    Line("norm.bias", "layernorm.bias"),
    Line("head.kernel", "classifier.weight", _linear),
    Line("head.bias", "classifier.bias"),
)

HUGGING_FACE_VIT = (
    *_HUGGING_FACE_COMMON,
    Line("blocks.{}.attention_norm.scale", f"{_LAYER}layernorm_before.weight"),
    Line("blocks.{}.attention_norm.bias", f"{_LAYER}layernorm_before.bias"),
    Line("blocks.{}.mlp_norm.scale", f"{_LAYER}layernorm_after.weight"),
    Line("blocks.{}.mlp_norm.bias", f"{_LAYER}layernorm_after.bias"),
    Line("blocks.{}.mlp.expand.kernel", f"{_LAYER}intermediate.dense.weight", _linear),
    Line("blocks.{}.mlp.expand.bias", f"{_LAYER}intermediate.dense.bias"),
    Line("blocks.{}.mlp.contract.kernel", f"{_LAYER}output.dense.weight", _linear),
    Line("blocks.{}.mlp.contract.bias", f"{_LAYER}output.dense.bias"),
)

HUGGING_FACE_DINOV2 = (
    *_HUGGING_FACE_COMMON,
    Line("embedding.registers", "embeddings.register_tokens"),
    Line("blocks.{}.attention_norm.scale", f"{_LAYER}norm1.weight"),
    Line("blocks.{}.attention_norm.bias", f"{_LAYER}norm1.bias"),
    Line("blocks.{}.attention_scale", f"{_LAYER}layer_scale1.lambda1"),
    Line("blocks.{}.mlp_norm.scale", f"{_LAYER}norm2.weight"),
    Line("blocks.{}.mlp_norm.bias", f"{_LAYER}norm2.bias"),
    Line("blocks.{}.mlp.expand.kernel", f"{_LAYER}mlp.fc1.weight", _linear),
    Line("blocks.{}.mlp.expand.bias", f"{_LAYER}mlp.fc1.bias"),
    Line("blocks.{}.mlp.contract.kernel", f"{_LAYER}mlp.fc2.weight", _linear),
    Line("blocks.{}.mlp.contract.bias", f"{_LAYER}mlp.fc2.bias"),
    Line("blocks.{}.mlp_scale", f"{_LAYER}layer_scale2.lambda1"),
)

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Family:
    """A library's form of the Vision Transformer."""

    name: str
    lines: tuple[Line, ...]
    class_token: str
    """By the end of this key files of the family, and the prefix of all keys, are known."""
    mark: str
    """A key that tells it from families with the same class token; empty where none is needed."""
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    """Mean and deviation of pixels in [0, 1] where no file beside the weights names them."""
    unused: str = r"$^"
    """Keys, as a regular expression, that belong to the family's training and not to the trunk."""


FAMILIES = (
    Family("Google's npz", GOOGLE, "cls", "embedding/kernel", HALF, "pre_logits/.*"),
    Family(
        "Hugging Face DINOv2",
        HUGGING_FACE_DINOV2,
        "embeddings.cls_token",
        "encoder.layer.0.norm1.weight",
        IMAGENET,
        r"embeddings\.mask_token|pooler\..*",
    ),
    Family(
        "Hugging Face ViT",
        HUGGING_FACE_VIT,
        "embeddings.cls_token",
        "encoder.layer.0.layernorm_before.weight",
        HALF,
        r"embeddings\.mask_token|pooler\..*",
    ),
    Family("DINOv2", DINOV2, "cls_token", "register_tokens", IMAGENET, r"mask_token"),
    Family("timm's DINOv2", TIMM, "cls_token", "blocks.0.ls1.gamma", IMAGENET, r"mask_token"),
    Family("timm's ViT", TIMM, "cls_token", "blocks.0.attn.qkv.weight", HALF, r"pre_logits\..*"),
)

# ------------------------------------------------------------------------ convolutional networks


def first_dense(x):
    """VGG's first dense layer on a 7×7 grid, [d, c·7·7] or a 7×7 convolution -> [7·7·c, d]."""
    x = x.reshape(len(x), -1, 7, 7)
    return x.transpose(2, 3, 1, 0).reshape(-1, len(x))


class Module(NamedTuple):
    """A module of ours and its name there; the numbers in a name are those of ours plus `first`."""

    ours: str
    theirs: str
    first: tuple[int, ...] = ()
    turn: Callable[[np.ndarray], np.ndarray] | None = None
    """Of its kernel, where it isn't the usual one of its axes."""


LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "variance": "running_var",
}
"""Our last words and theirs, in both libraries."""

_BOTH_RESNETS = (
    Module("stem.convolution", "conv1"),
    Module("stem.norm", "bn1"),
    Module("stages.{}.{}.convolutions.{}", "layer{}.{}.conv{}", (1, 0, 1)),
    Module("stages.{}.{}.norms.{}", "layer{}.{}.bn{}", (1, 0, 1)),
    Module("stages.{}.{}.shortcut.convolution", "layer{}.{}.downsample.0", (1, 0)),
    Module("stages.{}.{}.shortcut.norm", "layer{}.{}.downsample.1", (1, 0)),
    Module("stages.{}.{}.squeeze.reduce", "layer{}.{}.se.fc1", (1, 0)),
    Module("stages.{}.{}.squeeze.expand", "layer{}.{}.se.fc2", (1, 0)),
    Module("head", "fc"),
)

_VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_VGG16_BN = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)


def _vgg_features(places: tuple[int, ...]) -> tuple[Module, ...]:
    convolutions = (Module(f"convolutions.{n}", f"features.{p}") for n, p in enumerate(places))
    norms = (Module(f"norms.{n}", f"features.{p + 1}") for n, p in enumerate(places))
    return (*convolutions, *norms)


_TORCHVISION_VGG_DENSE = (
    Module("dense.0", "classifier.0", turn=first_dense),
    Module("dense.1", "classifier.3"),
    Module("head", "classifier.6"),
)
_TIMM_VGG_DENSE = (
    Module("dense.0", "pre_logits.fc1", turn=first_dense),
    Module("dense.1", "pre_logits.fc2"),
    Module("head", "head.fc"),
)

# Of the first stage's blocks nothing is expanded, so its parts are counted from the depthwise one.
_TORCHVISION_EFFICIENTNET = (
    Module("stem.convolution", "features.0.0"),
    Module("stem.norm", "features.0.1"),
    Module("stages.0.{}.depthwise.convolution", "features.1.{}.block.0.0"),
    Module("stages.0.{}.depthwise.norm", "features.1.{}.block.0.1"),
    Module("stages.0.{}.squeeze.reduce", "features.1.{}.block.1.fc1"),
    Module("stages.0.{}.squeeze.expand", "features.1.{}.block.1.fc2"),
    Module("stages.0.{}.project.convolution", "features.1.{}.block.2.0"),
    Module("stages.0.{}.project.norm", "features.1.{}.block.2.1"),
    Module("stages.{}.{}.expand.convolution", "features.{}.{}.block.0.0", (1, 0)),
    Module("stages.{}.{}.expand.norm", "features.{}.{}.block.0.1", (1, 0)),
    Module("stages.{}.{}.depthwise.convolution", "features.{}.{}.block.1.0", (1, 0)),
    Module("stages.{}.{}.depthwise.norm", "features.{}.{}.block.1.1", (1, 0)),
    Module("stages.{}.{}.squeeze.reduce", "features.{}.{}.block.2.fc1", (1, 0)),
    Module("stages.{}.{}.squeeze.expand", "features.{}.{}.block.2.fc2", (1, 0)),
    Module("stages.{}.{}.project.convolution", "features.{}.{}.block.3.0", (1, 0)),
    Module("stages.{}.{}.project.norm", "features.{}.{}.block.3.1", (1, 0)),
    Module("top.convolution", "features.8.0"),
    Module("top.norm", "features.8.1"),
    Module("head", "classifier.1"),
)

_TIMM_EFFICIENTNET = (
    Module("stem.convolution", "conv_stem"),
    Module("stem.norm", "bn1"),
    Module("stages.0.{}.depthwise.convolution", "blocks.0.{}.conv_dw"),
    Module("stages.0.{}.depthwise.norm", "blocks.0.{}.bn1"),
    Module("stages.0.{}.project.convolution", "blocks.0.{}.conv_pw"),
    Module("stages.0.{}.project.norm", "blocks.0.{}.bn2"),
    Module("stages.{}.{}.expand.convolution", "blocks.{}.{}.conv_pw"),
    Module("stages.{}.{}.expand.norm", "blocks.{}.{}.bn1"),
    Module("stages.{}.{}.depthwise.convolution", "blocks.{}.{}.conv_dw"),
    Module("stages.{}.{}.depthwise.norm", "blocks.{}.{}.bn2"),
    Module("stages.{}.{}.squeeze.reduce", "blocks.{}.{}.se.conv_reduce"),
    Module("stages.{}.{}.squeeze.expand", "blocks.{}.{}.se.conv_expand"),
    Module("stages.{}.{}.project.convolution", "blocks.{}.{}.conv_pwl"),
    Module("stages.{}.{}.project.norm", "blocks.{}.{}.bn3"),
    Module("top.convolution", "conv_head"),
    Module("top.norm", "bn2"),
    Module("head", "classifier"),
)


class ConvolutionalFamily(NamedTuple):
    """A library's form of a convolutional network."""

    name: str
    architecture: str
    """Of `models.ARCHITECTURES`."""
    modules: tuple[Module, ...]
    """The first whose name fits ours counts."""
    marks: tuple[str, ...]
    """Keys that only files of the family have all."""


CONVOLUTIONAL_FAMILIES = (
    ConvolutionalFamily(
        "torchvision's or timm's ResNet", "ResNet", _BOTH_RESNETS, ("layer1.0.conv1.weight",)
    ),
    *(
        ConvolutionalFamily(
            f"{library}'s VGG-16{more}", "VGG", _vgg_features(places) + dense, (last, mark)
        )
        for library, dense, mark in (
            ("torchvision", _TORCHVISION_VGG_DENSE, "classifier.0.weight"),
            ("timm", _TIMM_VGG_DENSE, "pre_logits.fc1.weight"),
        )
        for more, places, last in (
            (" with batch norm", _VGG16_BN, "features.40.weight"),
            ("", _VGG16, "features.28.bias"),
        )
    ),
    ConvolutionalFamily(
        "torchvision's EfficientNet",
        "EfficientNet",
        _TORCHVISION_EFFICIENTNET,
        ("features.1.0.block.0.0.weight",),
    ),
    ConvolutionalFamily(
        "timm's EfficientNet", "EfficientNet", _TIMM_EFFICIENTNET, ("blocks.0.0.conv_dw.weight",)
    ),
)
