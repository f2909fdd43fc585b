"""Weights of other libraries: their own forward pass, on images of noise, is the reference."""

import json
import re
import struct
import sys
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.torch import save_file
from timm.models import vision_transformer

from bcvit_jax import weights
from bcvit_jax.errors import UserError
from bcvit_jax.models import BCViT, BCViTConfig
from bcvit_jax.weights import maps
from bcvit_jax.weights.transformer import resize_bicubic

SIZES: dict[str, Any] = dict(width=48, heads=3, depth=3, mlp_width=96, num_classes=5)
SIDE = 64


def network(**changes):
    plain: dict[str, Any] = dict(stride=16, selection=False, activation="gelu", image_size=SIDE)
    return BCViT(BCViTConfig(**(SIZES | plain | changes)), rngs=nnx.Rngs(1))


def images(side=SIDE):
    return np.random.default_rng(0).uniform(-1, 1, (2, side, side, 3)).astype(np.float32)


def normalised(mean, std):
    """The images as the other library wants them: torch [b, 3, s, s]."""
    pixels = ((images() + 1) / 2 - np.asarray(mean)) / np.asarray(std)
    return torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2)


def lively(module):
    """Weights larger than a library's first ones, so that every one of them counts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
            if "norm" in name and name.endswith("weight"):
                value.add_(1.0)
    return module.eval()


def timm_network(**more: Any):
    sizes: dict[str, Any] = dict(
        img_size=SIDE, patch_size=16, embed_dim=48, depth=3, num_heads=3, mlp_ratio=2
    )
    sizes |= dict(num_classes=5) | more
    return lively(vision_transformer.VisionTransformer(**sizes))


def of_timm(folder, **more):
    made = timm_network(**more)
    save_file(made.state_dict(), folder / "model.safetensors")
    with torch.no_grad():
        logits = made(normalised(*maps.HALF))
    return folder, logits, sum(p.numel() for p in made.parameters())


def of_google(folder):
    """The npz as Google wrote it, read by timm's own reader of that format."""
    rng = np.random.default_rng(0)
    d, h, e = 48, 3, 16
    block = {
        "LayerNorm_0/scale": (d,),
        "LayerNorm_0/bias": (d,),
        "LayerNorm_2/scale": (d,),
        "LayerNorm_2/bias": (d,),
        "MlpBlock_3/Dense_0/kernel": (d, 96),
        "MlpBlock_3/Dense_0/bias": (96,),
        "MlpBlock_3/Dense_1/kernel": (96, d),
        "MlpBlock_3/Dense_1/bias": (d,),
        "MultiHeadDotProductAttention_1/out/kernel": (h, e, d),
        "MultiHeadDotProductAttention_1/out/bias": (d,),
    }
    for part in ("query", "key", "value"):
        block[f"MultiHeadDotProductAttention_1/{part}/kernel"] = (d, h, e)
        block[f"MultiHeadDotProductAttention_1/{part}/bias"] = (h, e)
    shapes = {
        "cls": (1, 1, d),
        "embedding/kernel": (16, 16, 3, d),
        "embedding/bias": (d,),
        "Transformer/posembed_input/pos_embedding": (1, 17, d),
        "Transformer/encoder_norm/scale": (d,),
        "Transformer/encoder_norm/bias": (d,),
        "head/kernel": (d, 5),
        "head/bias": (5,),
    }
    for place in range(3):
        shapes |= {f"Transformer/encoderblock_{place}/{name}": s for name, s in block.items()}
    arrays = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    np.savez(folder / "ViT.npz", **arrays)
    made = timm_network()
    made.load_pretrained(str(folder / "ViT.npz"))
    with torch.no_grad():
        logits = made.eval()(normalised(*maps.HALF))
    return folder / "ViT.npz", logits, sum(x.size for x in arrays.values())


def of_dinov2(folder):
    """Meta's file, read by timm's own filter of that format."""
    made = timm_network(reg_tokens=4, no_embed_class=True, init_values=0.1, num_classes=0)
    state = {k: v.clone() for k, v in made.state_dict().items()}
    state["register_tokens"] = state.pop("reg_token")
    first = torch.randn(1, 1, 48) * 0.2
    state["pos_embed"] = torch.cat([first, state["pos_embed"]], 1)
    state["mask_token"] = torch.zeros(1, 48)
    wrapped = {f"backbone.{k}": v for k, v in state.items()} | {"dino_head.x": torch.ones(2)}
    torch.save({"teacher": wrapped}, folder / "teacher.pth")
    made.load_state_dict(vision_transformer.checkpoint_filter_fn(state, made), strict=False)
    with torch.no_grad():
        feature = made.forward_features(normalised(*maps.IMAGENET))[:, 0]
    count = sum(p.numel() for p in made.parameters()) + 48  # timm folds the class's position in
    return folder / "teacher.pth", feature, count


def of_hugging_face(folder, name, classifier):
    transformers = pytest.importorskip("transformers")
    sizes = dict(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=SIDE,
        patch_size=16,
    )
    if name == "ViT":
        config = transformers.ViTConfig(**sizes, intermediate_size=96, num_labels=5)
        made = transformers.ViTForImageClassification(config)
    else:
        config = getattr(transformers, f"{name}Config")(**sizes, mlp_ratio=2)
        made = getattr(transformers, f"{name}Model")(config)
    made = lively(made)
    made.save_pretrained(folder)
    normalisation = maps.HALF if name == "ViT" else maps.IMAGENET
    with torch.no_grad():
        output = made(normalised(*normalisation))
    result = output.logits if classifier else output.last_hidden_state[:, 0]
    unused = sum(p.numel() for n, p in made.named_parameters() if "mask_token" in n)
    return folder, result, sum(p.numel() for p in made.parameters()) - unused


MAKERS = {
    "timm's ViT": (of_timm, {}),
    "Google's npz": (of_google, {}),
    "DINOv2": (of_dinov2, dict(layer_scale=1e-5, registers=4)),
    "timm's DINOv2": (lambda f: of_timm(f, init_values=0.1), dict(layer_scale=1e-5)),
    "Hugging Face ViT": (lambda f: of_hugging_face(f, "ViT", True), {}),
    "Hugging Face DINOv2": (
        lambda f: of_hugging_face(f, "Dinov2WithRegisters", False),
        dict(layer_scale=1e-5, registers=4),
    ),
}


@pytest.mark.parametrize("family", MAKERS)
def test_other_libraries_networks_give_the_same_numbers_here(family, tmp_path):
    maker, changes = MAKERS[family]
    path, expected, count = maker(tmp_path)
    normalisation = dict(zip(("mean", "std"), maps.HALF, strict=True))
    more = normalisation if family == "timm's DINOv2" else {}
    with_head = expected.shape[-1] == 5
    model = network(**changes)
    report = weights.load_pretrained(model, path, head=with_head, **more)
    assert report.family == family
    assert set(report.fresh) == (set() if with_head else {"head.kernel", "head.bias"})
    output = model(jnp.asarray(images()))
    ours = output.logits if with_head else output.feature
    np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=1e-4)
    loaded = sum(weights.to_flat(model)[name].size for name in report.loaded)
    assert loaded == count


def test_normalisation_beside_the_weights_counts(tmp_path):
    made = timm_network()
    save_file(made.state_dict(), tmp_path / "model.safetensors")
    mean, std = (0.1, 0.2, 0.3), (0.3, 0.4, 0.6)
    card = {"pretrained_cfg": {"mean": mean, "std": std}}
    (tmp_path / "config.json").write_text(json.dumps(card))
    model = network()
    report = weights.load_pretrained(model, tmp_path, head=True)
    assert report.pixels == (
        "pixels: mean 0.1, 0.2, 0.3, deviation 0.3, 0.4, 0.6, as the file beside the weights says"
    )
    with torch.no_grad():
        expected = made(normalised(mean, std))
    np.testing.assert_allclose(model(images()).logits, expected.numpy(), rtol=0, atol=1e-4)


def test_a_name_is_fetched_from_the_hub_with_what_tells_its_normalisation(tmp_path, monkeypatch):
    """The hub is pretended: files come into one folder, as its cache keeps them."""
    made = timm_network()
    save_file(made.state_dict(), tmp_path / "there.safetensors")
    mean, std = [0.1, 0.2, 0.3], [0.3, 0.4, 0.6]
    cache = tmp_path / "cache"
    cache.mkdir()

    def download(name, file):
        assert name == "owner/cells-vit.v2"
        if file == "config.json":
            raise OSError("404")
        content = json.dumps({"image_mean": mean, "image_std": std}).encode()
        if file == "model.safetensors":
            content = (tmp_path / "there.safetensors").read_bytes()
        (cache / file).write_bytes(content)
        return str(cache / file)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    model = network()
    weights.load_pretrained(model, "owner/cells-vit.v2", head=True)
    with torch.no_grad():
        expected = made(normalised(mean, std))
    np.testing.assert_allclose(model(images()).logits, expected.numpy(), rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="there is no file owner/other, and the hub gives no"):
        weights.load_pretrained(model, "owner/other")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        weights.load_pretrained(model, "owner/cells-vit.v2")


@pytest.mark.parametrize(("size", "target"), [(14, 18), (37, 16), (7, 9), (7, 7), (2, 5)])
def test_position_embeddings_are_resized_as_pytorchs_bicubic(size, target):
    grid = np.random.default_rng(0).normal(0, 1, (size, size, 6)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(grid).permute(2, 0, 1)[None], (target, target), mode="bicubic"
    )
    ours = resize_bicubic(grid, target, target)
    np.testing.assert_allclose(ours, theirs[0].permute(1, 2, 0).numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("last_block", ["copy", "fresh"])
@pytest.mark.parametrize("depth", ["extra", "last"])
def test_the_last_block_begins_as_the_twelfth_or_fresh(last_block, depth, tmp_path):
    """`extra`: 3 + 1 blocks, the fourth has no counterpart; `last`: 2 + 1, all have one."""
    path, *_ = of_timm(tmp_path)
    model = network(selection=True, stride=12, selection_depth=depth)
    before = weights.to_flat(model)
    report = weights.load_pretrained(model, path, last_block=last_block)
    after, theirs = weights.to_flat(model), weights.read_arrays(path)
    kernel = "last_block.mlp.expand.kernel"
    if depth == "extra" and last_block == "fresh":
        np.testing.assert_array_equal(after[kernel], before[kernel])
        assert kernel in report.fresh
    else:
        np.testing.assert_array_equal(after[kernel], theirs["blocks.2.mlp.fc1.weight"].T)
    assert after["embedding.position"].shape == (1, 26, 48)
    fresh = {name for name in report.fresh if not name.startswith("last_block")}
    assert {name.split(".")[0] for name in fresh} == {"head", "sparse_attention"}


def test_selected_tokens_are_patches_and_never_registers(tmp_path):
    path, *_ = of_dinov2(tmp_path)
    model = network(selection=True, stride=12, layer_scale=1e-5, registers=4)
    weights.load_pretrained(model, path)
    output, maps = model(jnp.asarray(images()), full_maps=True)
    assert maps.shape[-1] == 1 + 4 + 25
    fused = np.asarray(model.sparse_attention.fuse(maps[:, :, :, 0]))[:, :, 5:]
    np.testing.assert_array_equal(output.kept, fused.argmax(-1))


# ---------------------------------------------------------------------------------- hostile files


def refused(path, **changes) -> str:
    with pytest.raises(UserError) as error:
        weights.load_pretrained(network(**changes), path)
    return str(error.value)


def test_everything_that_does_not_fit_is_in_one_sentence(tmp_path):
    state = {k: v.clone() for k, v in timm_network().state_dict().items()}
    del state["blocks.1.norm1.bias"]
    state["blocks.0.mlp.fc1.weight"] = torch.zeros(95, 48)
    state["norm.weight"][3] = float("nan")
    state["something"] = torch.zeros(3)
    save_file(state, tmp_path / "model.safetensors")
    sentence = refused(tmp_path)
    assert "\n" not in sentence
    for fault in ("blocks.1.norm1.bias is missing", "something is unknown"):
        assert fault in sentence
    del state["something"]
    state["blocks.1.norm1.bias"] = torch.zeros(48)
    save_file(state, tmp_path / "model.safetensors")
    sentence = refused(tmp_path)
    assert "blocks.0.mlp.expand.kernel is 48×95, the network's 48×96" in sentence
    assert "norm.scale holds a number that is not finite" in sentence


def test_networks_of_other_sizes_are_told_apart(tmp_path):
    path, *_ = of_google(tmp_path)
    assert "has 3 heads, the network 6" in refused(path, heads=6)
    assert "more blocks than the network's 2" in refused(path, depth=2)
    assert "blocks_3" not in refused(path, depth=4)
    assert "encoderblock_3/LayerNorm_0/scale is missing" in refused(path, depth=4)
    assert "activation is relu" in refused(path, activation="relu")
    assert "8×8×3×48" in refused(path, patch_size=8, stride=8)


def test_files_that_would_run_code_or_lie_about_their_size_are_refused(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    np.savez(tmp_path / "a.npz", cls=np.array([Harm()], object))
    torch.save({"cls_token": Harm()}, tmp_path / "b.pth")
    (tmp_path / "c.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    (tmp_path / "d.safetensors").write_bytes(b"")
    (tmp_path / "e.npz").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "f.safetensors").write_text("<html>not found</html>")
    for name in ("a.npz", "b.pth", "c.safetensors", "d.safetensors", "e.npz", "f.safetensors"):
        assert re.search(f"{name} can't be read as weights", refused(tmp_path / name)), name
    assert not (tmp_path / "harm").exists()


def test_what_is_no_weights_is_told_in_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "x.onnx").write_bytes(b"0")
    assert "has an ending that weights don't have" in refused(tmp_path / "x.onnx")
    assert "there are no weights at" in refused(tmp_path / "absent.npz")
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)  # `data` is a folder here, so not an owner on the hub
    assert "there are no weights at data/absent" in refused("data/absent")
    save_file({"fc.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert "no known family (fc.weight" in refused(tmp_path)


def test_flat_weights_come_back_and_nothing_else_does():
    model, other = network(), network()
    flat = weights.to_flat(model)
    assert flat["blocks.0.attention.qkv.kernel"].shape == (48, 144)
    changed = {name: array + 1 for name, array in flat.items()}
    nnx.update(other, weights.from_flat(nnx.state(other), changed, "a file"))
    for name, array in weights.to_flat(other).items():
        np.testing.assert_array_equal(array, changed[name])
    del changed["norm.bias"]
    changed["head.bias"] = np.zeros(6, np.float32)
    changed["norm.scale"] = changed["norm.scale"].astype(np.int32)
    with pytest.raises(UserError) as error:
        weights.from_flat(nnx.state(other), changed, "a file")
    assert str(error.value) == (
        "a file does not fit this network: head.bias is 6, the network's 5; "
        "norm.bias is missing; norm.scale holds int32, not real numbers"
    )
