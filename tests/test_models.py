"""Networks by name: their sizes, and what a wrong name is answered."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from bcvit_jax.models import BCViT, create_model, list_models, model_config
from bcvit_jax.models.block import Block

SQUEEZE_EXCITATION = 2 * (12 * 12 + 12)
BLOCK = 7_087_872
VIT_BASE = 85_806_346


def parameters(name: str, num_classes: int = 10, **overrides) -> int:
    """Numbers in the network, none of them computed."""
    model = nnx.eval_shape(lambda: create_model(name, num_classes, **overrides))
    return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_parameters_are_those_of_the_paper():
    base = parameters("vit_base_patch16_224")
    apart = parameters("bcvit_base_patch16_s16_224")
    overlapping = parameters("bcvit_base_patch16_s12_224")
    assert base == VIT_BASE
    assert apart == VIT_BASE + BLOCK + SQUEEZE_EXCITATION
    assert overlapping == apart + (325 - 197) * 768
    millions = [f"{count / 1e6:.2f}" for count in (base, apart, overlapping)]
    assert millions == ["85.81", "92.89", "92.99"]
    assert f"{(apart - base) / 1e6:.2f}" == "7.09"  # the paper cuts it to 7.08
    # Reading `last`: TransFG's 11+1 blocks, so one map and one block fewer.
    last = parameters("bcvit_base_patch16_s16_224", selection_depth="last")
    assert last == VIT_BASE + 2 * (11 * 11 + 11)


def test_a_squeeze_width_is_the_hidden_one():
    wide = parameters("bcvit_base_patch16_s16_224", squeeze_width=20)
    assert wide == VIT_BASE + BLOCK + (12 * 20 + 20) + (20 * 12 + 12)


def test_tokens_of_the_papers_network(monkeypatch):
    seen = []
    config: Any = model_config("bcvit_base_patch16_s12_224", 10)
    assert (config.grid, config.num_patches, config.num_maps) == ((18, 18), 324, 12)

    def trace():
        model = BCViT(config, rngs=nnx.Rngs(0))
        every, few = Block.__call__, Block.of_tokens

        def watched(block, z, **arguments):
            seen.append(("every token", z.shape))
            return every(block, z, **arguments)

        def watched_few(block, z, places, **arguments):
            last = "last block" if block is model.last_block else "last map"
            seen.append((last, z.shape, places.shape))
            return few(block, z, places, **arguments)

        monkeypatch.setattr(Block, "__call__", watched)
        monkeypatch.setattr(Block, "of_tokens", watched_few)
        return model(jnp.zeros((2, 224, 224, 3)))

    program, output = jax.make_jaxpr(trace, return_shape=True)()
    assert [e.params.get("name") for e in program.eqns].count("one_block") == 11
    assert seen[:-2] == [("every token", (2, 325, 768))]  # traced once for all of them
    assert seen[-2:] == [
        ("last map", (2, 325, 768), (2, 13)),
        ("last block", (2, 13, 768), (2, 1)),
    ]
    assert [x.shape for x in output] == [(2, 10), (2, 768), (2, 12)]
    assert [str(x.dtype) for x in output] == ["float32", "float32", "int32"]


def test_names_say_the_sizes():
    names = list_models()
    assert names == sorted(names)
    assert {
        "bcvit_base_patch16_s12_224",
        "bcvit_base_patch16_s16_224",
        "bcvit_small_patch16_s12_224",
        "bcvit_tiny_patch16_s12_128",
        "vit_base_patch16_224",
        "vit_tiny_patch16_224",
    } <= set(names)
    widths = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
    transformers = [name for name in names if "vit_" in name]
    baselines = "vgg16 resnet18 resnet50 seresnet50 resnext50_32x4d efficientnet_b0".split()
    assert sorted([*transformers, *baselines]) == names
    for name in transformers:
        words = re.fullmatch(r"(bcvit|vit)_([a-z]+)(_conv)?_patch(\d+)(?:_s(\d+))?_(\d+)", name)
        assert words, name
        family, size, conv, patch, stride, side = words.groups()
        config: Any = model_config(name, 7)
        assert config.num_classes == 7
        assert (config.width, config.heads) == widths[size]
        assert config.mlp_width == 4 * config.width
        assert config.patch_size == int(patch)
        assert config.stride == int(stride or patch)
        assert config.image_size == int(side)
        assert bool(config.stem) == bool(conv)
        assert config.selection == (family == "bcvit")
        assert config.activation == {"bcvit": "relu", "vit": "gelu"}[family]


def test_defaults_are_the_readings_of_the_paper():
    config: Any = model_config("bcvit_base_patch16_s12_224", 10)
    assert (config.depth, config.selection_depth, config.tokens_per_head) == (12, "extra", 1)
    assert (config.squeeze, config.selection_gradient) == ("max", "straight_through")
    assert (config.drop_path, config.stem, config.dtype) == (0.0, (), "float32")


def test_overrides_make_another_network():
    sizes = dict(image_size=16, patch_size=8, stride=8, width=8, heads=2, mlp_width=8, depth=1)
    model = nnx.eval_shape(
        lambda: create_model("bcvit_tiny_patch16_s12_128", 3, rngs=nnx.Rngs(5), **sizes)
    )
    output = nnx.eval_shape(lambda model, x: model(x), model, jnp.zeros((2, 16, 16, 3)))
    assert (output.logits.shape, output.feature.shape, output.kept.shape) == (
        (2, 3),
        (2, 8),
        (2, 2),
    )


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("bcvit_base_patch16_s12_225", {}, ["'bcvit_base_patch16_s12_225'", "did you mean"]),
        ("vit_tiny", {}, ["'vit_tiny'", "did you mean 'vit_tiny_patch16_224'"]),
        ("?", {}, ["'?'", "known: ", "bcvit_tiny_patch16_s12_128"]),
        ("vit_tiny_patch16_224", dict(strides=8), ["'strides'", "did you mean 'stride'"]),
        ("vit_tiny_patch16_224", dict(hads=8), ["'hads'", "did you mean 'heads'"]),
        ("vit_tiny_patch16_224", dict(zzz=1), ["'zzz'", "known: ", "tokens_per_head"]),
        ("vit_tiny_patch16_224", dict(stride=0), ["stride is 0"]),
        ("vit_tiny_patch16_224", dict(heads=5), ["width 192", "heads 5"]),
        ("resnet51", {}, ["'resnet51'", "did you mean 'resnet50'"]),
        ("resnet18", dict(patch_size=8), ["'patch_size'", "did you mean"]),
        ("resnet18", dict(norm="none"), ["norm is 'none'", "batch, group"]),
        ("vgg16", dict(image_size=31), ["image_size is 31", "32 or more"]),
        ("vgg16", dict(dropout=1.0), ["dropout is 1.0"]),
        ("resnet18", dict(squeeze="16"), ["squeeze is '16'", "a whole number"]),
        ("vit_tiny_patch16_224", dict(stem=(2.5,)), ["stem is (2.5,)", "whole numbers"]),
        ("vit_tiny_patch16_224", dict(heads=True), ["heads is True", "a whole number"]),
        ("vit_tiny_patch16_224", dict(selection=1), ["selection is 1", "True or False"]),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(name, overrides, words):
    for make in (model_config, create_model):
        with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
            make(name, 10, **overrides)
        for word in words:
            assert word in str(caught.value)
