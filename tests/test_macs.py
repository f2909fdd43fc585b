"""Multiply-accumulates against closed forms, the paper's numbers, and XLA's own count."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax
from torchvision.models import (
    EfficientNet_B0_Weights,
    ResNet18_Weights,
    ResNet50_Weights,
    ResNeXt50_32X4D_Weights,
    VGG16_Weights,
)

from bcvit_jax.macs import macs, parameters
from bcvit_jax.models import BCViT, NetworkConfig, build, model_config
from bcvit_jax.models.convolve import plain_convolutions
from tests.networks import tiny_config


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def network(config: NetworkConfig):
    """A forward pass as a function of variables and images, and the shapes of the variables."""
    graph, variables = nnx.split(nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0))))

    def forward(variables, images):
        model = nnx.merge(graph, variables)
        return model.every_token(images) if isinstance(model, BCViT) else model(images).logits

    return forward, variables


def measured(config: NetworkConfig) -> tuple[int, int]:
    forward, variables = network(config)
    images = shape(1, config.image_size, config.image_size, 3)
    with plain_convolutions():
        return macs(forward, variables, images), parameters(nnx.filter_state(variables, nnx.Param))


def block(tokens: int, width: int, mlp: int) -> int:
    """Dense layers of a block, then its two attention products."""
    return tokens * (4 * width**2 + 2 * width * mlp) + 2 * tokens**2 * width


def convolve(groups: int, **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lambda x, kernel: lax.conv_general_dilated(
        x, kernel, (2, 2), "SAME", dimension_numbers=numbers, feature_group_count=groups, **options
    )


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (lambda x, w: x @ w, [(3, 7, 5), (5, 11)], 3 * 7 * 5 * 11),
        (lambda x, w: jnp.einsum("bij,bkj->bik", x, w), [(4, 3, 5), (4, 6, 5)], 4 * 3 * 6 * 5),
        (convolve(1), [(2, 8, 8, 6), (3, 3, 6, 10)], 2 * 4 * 4 * 10 * 3 * 3 * 6),
        (convolve(2), [(2, 8, 8, 6), (3, 3, 3, 10)], 2 * 4 * 4 * 10 * 3 * 3 * 3),
        (convolve(6), [(1, 8, 8, 6), (5, 5, 1, 6)], 4 * 4 * 6 * 5 * 5),
        (lambda x: jnp.exp(x) * x + x.sum(), [(9, 9)], 0),
    ],
    ids=["dense", "batched", "convolution", "grouped", "depthwise", "elementwise"],
)
def test_one_layer(function, shapes, expected):
    assert macs(function, *(shape(*sizes) for sizes in shapes)) == expected


def test_attention():
    qkv = shape(2, 9, 4, 8)
    found = macs(lambda q, k, v: jax.nn.dot_product_attention(q, k, v), qkv, qkv, qkv)
    assert found == 2 * 2 * 4 * 9 * 9 * 8


def test_a_gradient_costs_two_products_more_and_a_remade_value_one():
    def loss(w, x):
        return jnp.sin(x @ w).sum()

    w, x, one = shape(5, 6), shape(4, 5), 4 * 5 * 6
    assert macs(jax.grad(loss, argnums=(0, 1)), w, x) == 3 * one
    assert macs(jax.grad(jax.checkpoint(loss), argnums=(0, 1)), w, x) == 4 * one


def test_loops_count_their_rounds_and_branches_must_agree():
    w, one = shape(6, 6), 6**3
    assert macs(lambda w: lax.scan(lambda z, _: (z @ w, None), w, None, length=7)[0], w) == 7 * one
    assert macs(lambda w: lax.fori_loop(0, 5, lambda _, z: z @ w, w), w) == 5 * one
    assert macs(lambda w: lax.map(lambda row: jax.jit(jnp.dot)(row, w), w), w) == one

    def choose(other):
        return lambda w: lax.cond(w[0, 0] > 0, lambda w: w @ w, other, w)

    assert macs(choose(lambda w: w @ w.T), w) == one
    with pytest.raises(ValueError, match="branches of a choice must cost the same"):
        macs(choose(lambda w: w), w)

    def until_large(w):
        return lax.while_loop(lambda z: z.sum() < 9, lambda z: z @ w, w)

    with pytest.raises(ValueError, match="of while depend on its values"):
        macs(until_large, w)
    assert macs(lambda w: lax.while_loop(lambda z: z.sum() < 9, lambda z: z + 1, w), w) == 0


def test_vit_base_is_what_everybody_counts():
    found, count = measured(model_config("vit_base_patch16_224", 1000))
    patches = 196 * 768 * 768
    assert found == patches + 12 * block(197, 768, 3072) + 768 * 1000
    assert round(found / 1e9, 2) == 17.56
    assert count == 86_567_656  # timm's vit_base_patch16_224


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("vgg16", VGG16_Weights),
        ("resnet18", ResNet18_Weights),
        ("resnet50", ResNet50_Weights),
        ("resnext50_32x4d", ResNeXt50_32X4D_Weights),
        ("efficientnet_b0", EfficientNet_B0_Weights),
    ],
)
def test_convolutional_networks_cost_what_torchvision_says(name, weights):
    stated = weights.DEFAULT.meta
    found, count = measured(model_config(name, 1000))
    assert found / 1e9 == pytest.approx(stated["_ops"], abs=0.005)
    assert count == stated["num_params"]


def test_the_papers_network_and_what_its_last_block_adds():
    """The paper: 0.09 GFLOPs and 7.08 M parameters more than ViT; overlapping: 324 patches."""
    vit = measured(model_config("vit_base_patch16_224", 10))
    apart = measured(model_config("bcvit_base_patch16_s16_224", 10))
    overlapping = measured(model_config("bcvit_base_patch16_s12_224", 10))
    assert round((apart[0] - vit[0]) / 1e9, 2) == 0.09
    assert (apart[1] - vit[1]) // 10_000 == 708
    fusing = 2 * 12 * 12 + 12 * 12 * 325  # squeeze-excitation, weighted sum of the class rows
    expected = 324 * 768 * 768 + 12 * block(325, 768, 3072) + block(13, 768, 3072) + 768 * 10
    assert overlapping[0] == expected + fusing


def test_the_batch_multiplies():
    forward, params = network(tiny_config())
    assert macs(forward, params, shape(5, 32, 32, 3)) == 5 * measured(tiny_config())[0]


@pytest.mark.parametrize("groups", [1, 4])
def test_xla_counts_the_same(groups):
    """XLA counts two operations a product and adds elementwise work, here a hundredth."""

    def forward(x, kernel, w):
        z = lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        return jax.nn.relu(z.reshape(z.shape[0], -1, z.shape[-1]) @ w)

    given = shape(2, 12, 12, 64), shape(3, 3, 64 // groups, 128), shape(128, 256)
    cost = jax.jit(forward).lower(*given).compile().cost_analysis()
    assert cost is not None
    assert 2 * macs(forward, *given) == pytest.approx(cost["flops"], rel=0.02)


def test_xla_counts_the_same_for_a_train_step():
    def loss(params, x):
        for w in params:
            x = jnp.maximum(x @ w, 0)
        return x.sum()

    params, x = [shape(128, 128)] * 3, shape(256, 128)
    step = jax.value_and_grad(loss)
    cost = jax.jit(step).lower(params, x).compile().cost_analysis()
    assert cost is not None
    assert 2 * macs(step, params, x) == pytest.approx(cost["flops"], rel=0.03)
