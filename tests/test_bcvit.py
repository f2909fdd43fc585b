"""What the network means: equations 1 to 11, their readings, and timm's Vision Transformer."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm
import torch
from flax import nnx

from bcvit_jax import losses
from bcvit_jax.models import BCViT, BCViTConfig, attention, loop, model_config
from bcvit_jax.models.attention import attend_by_head, attention_rows
from bcvit_jax.models.bcvit import SparseAttention, squeeze, stochastic_depth
from bcvit_jax.models.block import Block, take
from tests.networks import (
    CLASSES,
    fresh_network,
    lively_network,
    named,
    random_images,
    tiny_config,
)

pytestmark = pytest.mark.usefixtures("strict_ranks")


BATCH = 6


@functools.cache
def compiled(config: BCViTConfig, full_maps: bool):
    """The network of `config` as a function of its arrays and images."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: fresh_network(config)))
    return jax.jit(lambda params, images: nnx.merge(graph, params)(images, full_maps=full_maps))


def call(model: BCViT, images, full_maps: bool = False) -> Any:
    """`model(images)`, compiled; a batch of always the same size compiles once."""
    return compiled(model.config, full_maps)(nnx.state(model, nnx.Param), images)


# Values that a network can't have, and what the sentence must tell.
WRONG = [
    (dict(stride=0), ["stride is 0", ">= 1"]),
    (dict(stride=-3), ["stride is -3"]),
    (dict(stride=9), ["stride 9", "patch_size 8", "unseen"]),
    (dict(patch_size=0), ["patch_size is 0"]),
    (dict(patch_size=33), ["image_size 32", "smaller than patch_size 33"]),
    (dict(image_size=7), ["image_size 7", "larger image or a smaller patch"]),
    (dict(num_classes=0), ["num_classes is 0"]),
    (dict(width=0), ["width is 0"]),
    (dict(width=33), ["width 33", "multiple of heads 2"]),
    (dict(heads=0), ["heads is 0"]),
    (dict(depth=0), ["depth is 0"]),
    (dict(mlp_width=0), ["mlp_width is 0"]),
    (dict(tokens_per_head=0), ["tokens_per_head is 0"]),
    (dict(tokens_per_head=26), ["tokens_per_head 26", "25 patches"]),
    (dict(activation="silu"), ["activation is 'silu'", "relu, gelu"]),
    (dict(squeeze="median"), ["squeeze is 'median'", "mean, max, entropy"]),
    (dict(squeeze_width=-1), ["squeeze_width is -1"]),
    (dict(selection_gradient="yes"), ["selection_gradient is 'yes'", "straight_through"]),
    (dict(selection_depth="first"), ["selection_depth is 'first'", "extra, last"]),
    (dict(selection_depth="last", depth=1), ["selection_depth 'last'", "at least 2"]),
    (dict(dtype="float16"), ["dtype is 'float16'", "float32, bfloat16"]),
    (dict(drop_path=1.0), ["drop_path is 1.0", "[0, 1)"]),
    (dict(drop_path=-0.1), ["drop_path is -0.1"]),
    (dict(stem=(8, 8)), ["stem of 2", "multiples of 4", "32, 8, 6"]),
    (dict(stem=(0,)), ["stem is (0,)"]),
]


@pytest.mark.parametrize(("overrides", "words"), WRONG, ids=[str(case[0]) for case in WRONG])
def test_a_wrong_value_is_named_with_the_rule(overrides, words):
    with pytest.raises(ValueError, match=r"must be|choose|change|needs|more than") as caught:
        tiny_config(**overrides)
    for word in words:
        assert word in str(caught.value)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\(24, 32, 3\); this network takes 32×32×3"):
        lively_network(tiny_config())(jnp.zeros((1, 24, 32, 3)))


# ------------------------------------------------------------- gradients of every array

READINGS = [
    pytest.param({}, id="default"),
    pytest.param(dict(squeeze="entropy", depth=2, squeeze_width=8), id="entropy"),
    pytest.param(
        dict(selection_depth="last", squeeze_width=8, tokens_per_head=2, stem=(8,)),
        id="last-top2-stem",
    ),
]


def gradients(config: BCViTConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Of the training loss, cross-entropy + contrastive, of a fresh network, by array."""
    graph, params = nnx.split(fresh_network(config, seed))
    images = random_images(8)
    labels = jnp.asarray([0, 1, 2, 3, 4, 0, 1, 2])

    def loss(params):
        output = nnx.merge(graph, params)(images)
        return losses.cross_entropy(output.logits, labels) + losses.contrastive(
            output.feature, labels
        )

    return {
        name: np.asarray(value) for name, value in named(jax.jit(jax.grad(loss))(params)).items()
    }


@pytest.mark.parametrize("readings", READINGS)
def test_every_array_has_a_gradient(readings):
    gradient = gradients(tiny_config(**readings))
    assert any(name.startswith("sparse_attention.reduce") for name in gradient)
    for name, value in gradient.items():
        assert np.isfinite(value).all(), name
        assert np.abs(value).max() > 0, name


def test_the_literal_readings_give_the_squeeze_excitation_no_gradient():
    gradient = gradients(tiny_config(squeeze="mean", selection_gradient="none", depth=2))
    silent = {name for name, value in gradient.items() if not value.any()}
    layers = ("reduce.kernel", "reduce.bias", "excite.kernel", "excite.bias")
    assert silent == {f"sparse_attention.{layer}" for layer in layers}


# -------------------------------------------------------------------- equations 9 to 11


def reference_selection(
    model: BCViT, maps: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Equations 9 to 11 from full maps [l, b, h, n, n], in NumPy: kept, fused maps and w."""
    config, se = model.config, model.sparse_attention
    w1, b1, w2, b2 = (
        np.asarray(v[...], np.float64)
        for v in (se.reduce.kernel, se.reduce.bias, se.excite.kernel, se.excite.bias)
    )
    maps = np.asarray(maps, np.float64)
    count, images, heads, tokens, _ = maps.shape
    fused = np.zeros((images, heads, tokens, tokens))
    layer_weights = np.zeros((images, count))
    kept = []
    for i in range(images):
        s = np.zeros(count)
        for layer in range(count):
            for head in range(heads):
                row = maps[layer, i, head, 0]
                statistic = {
                    "mean": maps[layer, i, head].mean(),
                    "max": max(row[1:]),
                    "entropy": sum(p * np.log(p) for p in row),
                }
                s[layer] += statistic[config.squeeze] / heads
        excited = np.maximum(s @ w1 + b1, 0) @ w2 + b2
        w = np.exp(excited) / np.exp(excited).sum()
        layer_weights[i] = w
        for layer in range(count):
            fused[i] += w[layer] * maps[layer, i]
        chosen = []
        for head in range(heads):
            patches = fused[i, head, 0, 1:]
            order = sorted(range(tokens - 1), key=lambda j, p=patches: -p[j])
            chosen += order[: config.tokens_per_head]
            ranked = patches[order]
            assert (ranked[:-1] - ranked[1:])[: config.tokens_per_head].min() > 1e-7
        kept.append(chosen)
    return np.array(kept), fused, layer_weights


@pytest.mark.parametrize(
    "readings",
    [
        dict(),
        dict(squeeze="entropy", depth=2, tokens_per_head=3),
        dict(squeeze="mean", selection_depth="last"),
    ],
    ids=["max-top1", "entropy-top3", "mean-last"],
)
def test_kept_tokens_and_fused_rows_equal_full_maps_in_numpy(readings):
    model = lively_network(tiny_config(**readings))
    images = random_images(BATCH)
    output, maps = call(model, images, full_maps=True)
    assert maps.shape == (model.config.num_maps, BATCH, 2, 26, 26)
    np.testing.assert_allclose(maps.sum(-1), 1.0, rtol=0, atol=1e-6)
    kept, fused, w = reference_selection(model, maps)
    np.testing.assert_array_equal(output.kept, kept)
    assert len({tuple(row) for row in kept}) > 1  # the choice looks at the image

    class_rows = maps[:, :, :, 0]
    np.testing.assert_allclose(
        model.sparse_attention.layer_weights(class_rows), w, rtol=0, atol=1e-6
    )
    rows = model.sparse_attention.fuse(class_rows)
    np.testing.assert_allclose(rows, fused[:, :, 0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(rows.sum(-1), 1.0, rtol=0, atol=1e-6)
    spread = np.ptp(w, axis=0).max()
    assert spread < 1e-6 if model.config.squeeze == "mean" else spread > 1e-4


def test_full_maps_change_nothing_else():
    model = lively_network(tiny_config())
    images = random_images(BATCH)
    alone = call(model, images)
    output, maps = call(model, images, full_maps=True)
    np.testing.assert_array_equal(output.kept, alone.kept)
    np.testing.assert_allclose(output.logits, alone.logits, rtol=0, atol=1e-6)
    np.testing.assert_allclose(output.feature, alone.feature, rtol=0, atol=1e-6)
    np.testing.assert_allclose(encoded()[1], maps[:, :, :, 0], rtol=0, atol=1e-6)


def test_images_of_a_batch_do_not_see_each_other():
    model = lively_network(tiny_config())
    images = random_images(BATCH)
    together = call(model, images)
    turned = call(model, jnp.roll(images, 1, axis=0).at[0].set(0.0))
    np.testing.assert_array_equal(turned.kept[1:], together.kept[:-1])
    np.testing.assert_allclose(turned.logits[1:], together.logits[:-1], rtol=0, atol=1e-6)


@functools.cache
def encoded():
    """z [b, n, d] after all that give maps, and class rows [l, b, h, n], of the lively network."""
    model = lively_network(tiny_config())

    @jax.jit
    def found(images):
        z, rows = model.encode(images)
        return model.blocks[-1](z)[0], model.decide(z, rows)[1]

    return found(random_images(BATCH))


def test_maps_are_softmax_of_scaled_products():
    rng = np.random.default_rng(0)
    q, k = (rng.normal(0, 1, (2, 5, 3, 16)).astype(np.float32) for _ in range(2))
    rows = np.asarray(attention_rows(jnp.asarray(q), jnp.asarray(k)))
    for b, h in np.ndindex(2, 3):
        scores = np.exp(q[b, :, h] @ k[b, :, h].T / 4.0)
        np.testing.assert_allclose(rows[b, h], scores / scores.sum(1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "by_eigen"), [("float32", False), ("float32", True), ("bfloat16", False)]
)
def test_attention_head_by_head_equals_pytorchs(monkeypatch, dtype, by_eigen):
    """The result, the class row, and the gradient of both; 26 tokens, 3 heads of 8."""
    monkeypatch.setattr(attention, "eigen_multiplies", lambda dtype: by_eigen)
    rng = np.random.default_rng(0)
    qkv = rng.normal(0, 1.5, (2, 26, 3, 3, 8)).astype(np.float32)
    upstream = rng.normal(0, 1.5, (2, 26, 24)), rng.normal(0, 1.5, (2, 3, 26))
    upstream = [x.astype(np.float32) for x in upstream]
    theirs = torch.from_numpy(qkv).requires_grad_()
    q, k, v = theirs.permute(2, 0, 3, 1, 4)
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    attended = attended.transpose(1, 2).reshape(2, 26, 24)
    row = torch.softmax(q @ k.mT / 8**0.5, -1)[:, :, 0]
    (gradient,) = torch.autograd.grad(
        [attended, row], [theirs], [torch.from_numpy(x) for x in upstream]
    )
    flat = jnp.asarray(qkv.reshape(2, 26, 72), dtype)
    ours, backward = jax.vjp(lambda x: attend_by_head(x, 3), flat)
    (mine,) = backward((jnp.asarray(upstream[0], dtype), jnp.asarray(upstream[1])))
    assert (ours[0].dtype, ours[1].dtype, mine.dtype) == (dtype, jnp.float32, dtype)
    tolerance = 1e-5 if dtype == "float32" else 0.1
    wanted = [attended, row, gradient.reshape(2, 26, 72)]
    for a, b in zip([*ours, mine], wanted, strict=True):
        a = np.asarray(a.astype(jnp.float32))
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("kept_per_head", [1, 3])
def test_only_kept_tokens_reach_the_logits(kept_per_head):
    model = lively_network(tiny_config(tokens_per_head=kept_per_head))
    z, rows = encoded()
    kept, weights = model.sparse_attention.select(rows)

    @jax.jit
    def logits(z):
        tokens = take(z, model.sparse_attention.places(kept))
        tokens = model.sparse_attention.gate(tokens, weights)
        assert tokens.shape == (BATCH, 1 + 2 * kept_per_head, 32)
        return model.classify(model.last_block(tokens, class_row=False)[0])[0]

    before = np.asarray(logits(z))
    change = np.random.default_rng(0).normal(0, 1, 32).astype(np.float32)
    for image in range(3):
        chosen = set(np.asarray(kept[image]).tolist())
        for patch in range(25):
            changed = np.array(z)
            changed[image, 1 + patch] += change
            after = np.asarray(logits(changed))
            others = np.arange(BATCH) != image
            np.testing.assert_array_equal(after[others], before[others])
            if patch in chosen:
                assert np.abs(after[image] - before[image]).max() > 1e-3
            else:
                np.testing.assert_array_equal(after[image], before[image])
    gradient = np.abs(np.asarray(jax.jit(jax.grad(lambda z: logits(z).sum()))(z))).max(-1)
    for image in range(BATCH):
        reached = {0} | {1 + int(patch) for patch in kept[image]}
        assert set(np.flatnonzero(gradient[image]).tolist()) == reached


@pytest.mark.parametrize(
    "readings",
    [
        dict(),
        dict(tokens_per_head=3, squeeze="entropy", registers=2),
        dict(selection=False, layer_scale=0.5),
        dict(selection_depth="last", drop_path=0.4),
        dict(depth=1),
    ],
    ids=["default", "top3-registers", "plain", "last-dropping", "one-map"],
)
@pytest.mark.parametrize("looped", [False, True], ids=["written-out", "loop"])
def test_tokens_that_nobody_reads_are_not_missed(monkeypatch, readings, looped):
    """Output and gradients are those of all tokens in all blocks."""
    if looped:
        monkeypatch.setattr(loop, "_on_one_cpu", lambda images: False)
    config = tiny_config(**readings)
    model, images, key = lively_network(config), random_images(BATCH), jax.random.key(1)
    graph, params = nnx.split(model)
    direction = jnp.asarray(np.random.default_rng(0).normal(0, 1, (BATCH, 32)), jnp.float32)

    def found(every_token):
        def loss(params, images):
            model = nnx.merge(graph, params)
            if every_token:
                branches = model.draw_branches(key, BATCH) if config.drop_path else None
                output, _ = model.every_token(images, branches=branches)
            else:
                output = model(images, key=key if config.drop_path else None)
            return jnp.square(output.logits).sum() + (output.feature * direction).sum(), output

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, images)

    (gradient, pixels), output = found(every_token=False)
    (gradient_of_all, pixels_of_all), output_of_all = found(every_token=True)
    np.testing.assert_array_equal(output.kept, output_of_all.kept)
    for few, every in zip(output[:2], output_of_all[:2], strict=True):
        np.testing.assert_allclose(few, every, rtol=0, atol=1e-5)
    np.testing.assert_allclose(pixels, pixels_of_all, rtol=0, atol=1e-4)
    for name, value in named(gradient_of_all).items():
        largest = max(float(jnp.abs(value).max()), 0.1)
        np.testing.assert_allclose(named(gradient)[name] / largest, value / largest, atol=1e-4)


def choosing_rows(favourites: list[list[int]], tokens: int = 6) -> jax.Array:
    """Class rows [1, 1, h, n] whose head k likes `favourites[k]` best, in this order."""
    rows = np.full((1, 1, len(favourites), tokens), 0.01, np.float32)
    rows[..., 0] = 0.5  # the class token itself, which is no candidate
    for head, liked in enumerate(favourites):
        for place, patch in enumerate(liked):
            rows[0, 0, head, 1 + patch] = 0.2 - 0.03 * place
    return jnp.asarray(rows)


@pytest.mark.parametrize(
    ("tokens_per_head", "favourites", "expected"),
    [
        (1, [[3], [3]], [3, 3]),  # two heads may keep the same token: duplicates stay
        (1, [[4], [0]], [4, 0]),
        (3, [[4, 0, 2], [2, 4, 1]], [4, 0, 2, 2, 4, 1]),
    ],
)
def test_top_k_a_head_with_duplicates(tokens_per_head, favourites, expected):
    config = tiny_config(depth=1, tokens_per_head=tokens_per_head)
    layer = SparseAttention(config, rngs=nnx.Rngs(0))
    rows = choosing_rows(favourites)
    kept, weights = layer.select(rows)
    assert kept[0].tolist() == expected
    heads = np.repeat(np.arange(2), tokens_per_head)
    np.testing.assert_allclose(
        weights[0], np.asarray(rows)[0, 0, heads, 1 + np.array(expected)], atol=1e-6
    )
    z = jnp.asarray(np.random.default_rng(0).normal(0, 1, (1, 6, 32)), jnp.float32)
    tokens = take(z, layer.places(kept))
    np.testing.assert_array_equal(tokens[0], z[0, jnp.asarray([0, *(1 + i for i in expected)])])


def test_straight_through_keeps_the_value_and_gives_the_weight_a_gradient():
    z = jnp.asarray(np.random.default_rng(0).normal(0, 1, (4, 26, 32)), jnp.float32)
    weights = jnp.asarray(np.random.default_rng(1).uniform(0, 1, (4, 2)), jnp.float32)
    kept = jnp.asarray([[3, 3], [0, 24], [7, 8], [1, 1]])
    direction = jnp.asarray(np.random.default_rng(2).normal(0, 1, (4, 3, 32)), jnp.float32)
    results = {}
    for reading in ("none", "straight_through"):
        layer = SparseAttention(tiny_config(selection_gradient=reading), rngs=nnx.Rngs(0))

        def weighted(weights, layer=layer):
            tokens = layer.gate(take(z, layer.places(kept)), weights)
            return (tokens * direction).sum(), tokens

        gradient, tokens = jax.jit(jax.grad(weighted, has_aux=True))(weights)
        results[reading] = (np.asarray(tokens), np.asarray(gradient))
    np.testing.assert_array_equal(results["straight_through"][0], results["none"][0])
    assert not results["none"][1].any()
    expected = (results["none"][0] * np.asarray(direction))[:, 1:].sum(-1)
    np.testing.assert_allclose(results["straight_through"][1], expected, rtol=0, atol=1e-5)


def test_the_straight_through_gradient_is_lost_in_the_last_blocks_norm():
    """Of the squeeze-excitation; what `BCViTConfig.selection_gradient` says of it."""
    gradient = gradients(tiny_config())
    whole = np.sqrt(sum(np.square(value).sum() for value in gradient.values()))
    excite = np.linalg.norm(gradient["sparse_attention.excite.kernel"])
    assert 0 < excite < 1e-6 * whole


def test_squeezed_statistics_by_hand():
    rows = jnp.asarray([[[[0.5, 0.3, 0.2], [0.8, 0.1, 0.1]]], [[[0.2, 0.2, 0.6], [0.4, 0.6, 0.0]]]])
    np.testing.assert_allclose(squeeze(rows, "mean"), [[1 / 3, 1 / 3]], atol=1e-7)
    np.testing.assert_allclose(squeeze(rows, "max"), [[0.2, 0.6]], atol=1e-7)
    entropies = [[1.0297, 0.6390], [0.9503, 0.6730]]
    expected = [[-sum(pair) / 2 for pair in entropies]]
    np.testing.assert_allclose(squeeze(rows, "entropy"), expected, atol=1e-4)


# ------------------------------------------------------------------- the plain transformer

TIMM = {
    "embedding.class_token": "cls_token",
    "embedding.position": "pos_embed",
    "embedding.projection": "patch_embed.proj",
    "attention_norm": "norm1",
    "attention": "attn",
    "attention.projection": "attn.proj",
    "mlp_norm": "norm2",
    "mlp.expand": "mlp.fc1",
    "mlp.contract": "mlp.fc2",
    "kernel": "weight",
    "scale": "weight",
}
"""Our names -> timm's, the longest that fits first; what is not here is called the same."""


def timm_name(name: str) -> str:
    """`blocks.0.mlp.expand.kernel` -> `blocks.0.mlp.fc1.weight`."""
    name = f".{name}."
    for ours in sorted(TIMM, key=len, reverse=True):
        if f".{ours}." in name:
            name = name.replace(f".{ours}.", f".<{TIMM[ours]}>.", 1)
    return name.strip(".").replace("<", "").replace(">", "")


def copy_weights(module: nnx.Module, source: dict[str, torch.Tensor]):
    """Every array of `module` from a timm state dict, which must have no other."""
    taken = set()
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        name = timm_name(".".join(map(str, path)))
        value = source[name].detach().numpy()
        if path[-1] == "kernel":
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        assert value.shape == variable.shape, name
        variable[...] = jnp.asarray(value.copy())
        taken.add(name)
    assert taken == set(source)


def randomise(module: torch.nn.Module):
    """Weights as lively as trained ones; biases and norms too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in module.parameters():
            value += torch.randn(value.shape, generator=generator) * 0.05


def test_vit_tiny_equals_timm():
    theirs = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=10).eval()
    randomise(theirs)
    config = model_config("vit_tiny_patch16_224", 10)
    assert isinstance(config, BCViTConfig)
    ours = lively_network(config)
    copy_weights(ours, theirs.state_dict())
    images = random_images(2, 224)
    with torch.no_grad():
        channels_first = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)
        features = theirs.forward_features(channels_first)  # pyright: ignore[reportCallIssue]
        expected = theirs(channels_first).numpy()
    output = call(ours, images)
    assert np.ptp(expected) > 1.0
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    np.testing.assert_allclose(output.logits, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(output.feature, features[:, 0].numpy(), rtol=0, atol=1e-4)
    assert output.kept.shape == (2, 0)


def test_a_block_equals_timms():
    theirs = timm.models.vision_transformer.Block(  # pyright: ignore[reportAttributeAccessIssue]
        32,
        num_heads=2,
        mlp_ratio=2.0,
        qkv_bias=True,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),  # pyright: ignore[reportArgumentType]
    ).eval()
    randomise(theirs)
    ours = Block(tiny_config(activation="gelu"), rngs=nnx.Rngs(0))
    copy_weights(ours, theirs.state_dict())
    x = np.random.default_rng(0).normal(0, 1, (3, 26, 32)).astype(np.float32)
    with torch.no_grad():
        normed = theirs.norm1(torch.tensor(x))
        attended = theirs.attn(normed).numpy()
        expected = theirs(torch.tensor(x)).numpy()
    z, attention = jax.jit(
        lambda x: (ours(x, class_row=False)[0], ours.attention(x, ours.attention_norm)[0])
    )(jnp.asarray(x))
    np.testing.assert_allclose(attention, attended, rtol=0, atol=1e-5)
    np.testing.assert_allclose(z, expected, rtol=0, atol=1e-5)


# -------------------------------------------------------- stochastic depth, stem, bfloat16


def test_a_dropped_branch_is_right_on_average():
    draw = jax.jit(lambda key: stochastic_depth(key, jnp.array([0.0, 0.3]), 8000))
    never, sometimes = np.asarray(draw(jax.random.key(0)))
    assert (never == 1.0).all()
    assert sometimes.shape == (2, 8000)  # both branches, each image by itself
    np.testing.assert_allclose(np.unique(sometimes), [0.0, 1 / 0.7], rtol=1e-6)
    deviation = (0.3 / 0.7 / 8000) ** 0.5
    assert (abs(sometimes.mean(1) - 1.0) < 4 * deviation).all()
    both = (sometimes == 0).all(0).mean()  # dropped together no more often than by chance
    assert abs(both - 0.09) < 4 * (0.09 * 0.91 / 8000) ** 0.5


def test_a_branch_of_weight_0_is_left_out():
    """Of each image by its own weights: without both branches a block hands its input on."""
    block, z = lively_network(tiny_config(depth=1)).blocks[0], _tokens()
    whole, _ = block(z)
    weights = jnp.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    weighed, _ = block(z, branches=weights)
    np.testing.assert_allclose(weighed[0], whole[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        weighed[1], z[1] + block.mlp(z[1:2], block.mlp_norm)[0], rtol=0, atol=1e-6
    )
    np.testing.assert_array_equal(weighed[2], z[2])


def _tokens():
    return jnp.asarray(np.random.default_rng(1).normal(0, 1, (3, 5, 32)), jnp.float32)


@pytest.mark.parametrize("images", [7, 8, 9])
def test_parts_of_a_batch_change_nothing(monkeypatch, images):
    """A batch in parts of three: logits, gradient and dropped branches are those of the whole."""
    config = tiny_config(depth=2, drop_path=0.4)
    model, x, key = lively_network(config), random_images(images), jax.random.key(1)
    graph, params = nnx.split(model)

    def found():
        def loss(params):
            logits = nnx.merge(graph, params)(x, key=key).logits
            return jnp.square(logits).mean(), logits

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    whole, logits = found()
    tokens, width = config.num_patches + config.first_patch, config.mlp_width
    monkeypatch.setattr(loop, "_PART_BYTES", 3 * 4 * tokens * width)
    monkeypatch.setattr(loop, "_PART_ROWS", 0)
    assert len(loop._parts(images, tokens, width)) == -(-images // 3)
    parts, logits_of_parts = found()
    np.testing.assert_allclose(logits_of_parts, logits, rtol=0, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), parts, whole)


def test_parts_are_equal_and_make_the_batch():
    for images, width, lengths in (
        (4, 1536, [4]),
        (8, 1536, [8]),
        (16, 1536, [4] * 4),
        (10, 1536, [4, 4, 2]),
        (16, 3072, [4] * 4),  # for the rows, though larger than the cache
        (32, 3072, [8] * 4),
        (65, 1536, [17] * 3 + [14]),
        (80, 192, [27, 27, 26]),
    ):
        parts = loop._parts(images, 325, width)
        assert [len(range(images)[part]) for part in parts] == lengths
    assert [len(range(3)[part]) for part in loop._parts(3, 2000, 4096)] == [1, 1, 1]


def test_blocks_written_out_are_those_of_the_loop_and_keep_as_little(monkeypatch):
    """Logits and gradients are the same, and no array of the forward pass is kept twice."""
    config = tiny_config(depth=8, drop_path=0.4, image_size=64, width=64, mlp_width=256)
    model, x, key = lively_network(config), random_images(BATCH, 64), jax.random.key(1)
    graph, params = nnx.split(model)

    def found():
        def loss(params):
            output = nnx.merge(graph, params)(x, key=key)
            return jnp.square(output.logits).mean(), output

        step: Any = jax.jit(jax.grad(loss, has_aux=True)).lower(params).compile()
        return step.memory_analysis().temp_size_in_bytes, *step(params)

    assert not config.in_a_loop(BATCH)
    memory, gradient, output = found()
    monkeypatch.setattr(loop, "_on_one_cpu", lambda images: False)
    assert config.in_a_loop(BATCH)
    memory_of_loop, *expected = found()
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    jax.tree.map(close, [gradient, output], expected)
    assert memory < 1.2 * memory_of_loop


def test_stochastic_depth_needs_a_key():
    dropping, plain = tiny_config(depth=2, drop_path=0.4), tiny_config(depth=2)
    model = lively_network(dropping)
    images, params = random_images(BATCH), nnx.state(model, nnx.Param)
    programs = [
        str(jax.make_jaxpr(compiled.__wrapped__(config, False))(params, images))
        for config in (dropping, plain)
    ]
    assert programs[0] == programs[1]
    graph, _ = nnx.split(model)
    call_with = jax.jit(lambda images, key: nnx.merge(graph, params)(images, key=key).logits)
    first, again, other = (call_with(images, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert float(jnp.abs(first - other).max()) > 1e-3


def test_the_chance_to_drop_rises_with_depth():
    """From 0 in the first block to `drop_path` in the last, which leaves the class token alone."""
    images, key = random_images(BATCH), jax.random.key(0)
    first = lively_network(tiny_config(depth=1, selection=False, drop_path=0.9))
    assert bool((first(images, key=key).logits == first(images).logits).all())
    model = lively_network(tiny_config(depth=1, drop_path=1 - 1e-6))
    z, _ = model.blocks[0](model.embedding(images))
    logits, _ = model.classify(z)
    np.testing.assert_allclose(model(images, key=key).logits, logits, rtol=0, atol=1e-5)
    assert float(jnp.abs(model(images).logits - logits).max()) > 1e-2


@pytest.mark.parametrize("stem", [(8,), (8, 16)])
def test_a_stem_leaves_the_tokens_as_many(stem):
    sizes = dict(image_size=48, patch_size=16, stride=12)
    plain, stemmed = tiny_config(**sizes), tiny_config(**sizes, stem=stem)
    assert plain.num_patches == stemmed.num_patches == 9
    images = random_images(2, 48)
    for config in (plain, stemmed):
        model = nnx.eval_shape(lambda config=config: fresh_network(config))
        z = nnx.eval_shape(lambda model, x: model.embedding(x), model, images)
        assert z.shape == (2, 10, 32)
        assert nnx.eval_shape(lambda model, x: model(x), model, images).logits.shape == (2, CLASSES)


def test_a_stem_looks_at_the_pixels_of_its_patch():
    """The gradient of a token is 0 far from its patch, whatever the stem in between."""
    config = tiny_config(image_size=48, patch_size=16, stride=12, stem=(8, 8))
    model = lively_network(config)
    token = jax.jit(jax.grad(lambda x: model.embedding(x)[0, 1 + 4].sum()))  # the middle patch
    seen = np.abs(np.asarray(token(random_images(1, 48)))[0]).max(-1) > 0
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    for places in (rows, columns):
        assert 12 - 3 <= places.min() <= 12
        assert 27 <= places.max() <= 27 + 3


def test_bfloat16_is_close_and_gives_float32():
    images = random_images(BATCH)
    exact, output = (
        call(lively_network(tiny_config(dtype=dtype), spread=0.05), images)
        for dtype in ("float32", "bfloat16")
    )
    assert output.logits.dtype == output.feature.dtype == jnp.float32
    same = np.flatnonzero((np.asarray(output.kept) == np.asarray(exact.kept)).all(-1))
    assert len(same) >= 4  # of six; a near tie may fall the other way
    np.testing.assert_allclose(output.logits[same], exact.logits[same], rtol=0, atol=2e-2)
