"""How the weights of other libraries' Vision Transformers become ours: a line a weight."""

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
