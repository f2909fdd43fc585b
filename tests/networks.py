"""A small network, its arrays by name, and random batches, as several tests need them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bcvit_jax.models import BCViT, BCViTConfig

CLASSES = 5
SIDE = 32


def tiny_config(**overrides) -> BCViTConfig:
    """32×32 pixels, 25 overlapping patches, 3 blocks that give maps, 2 heads of 16."""
    sizes: dict[str, Any] = dict(image_size=SIDE, patch_size=8, stride=6, width=32, heads=2)
    sizes |= dict(num_classes=CLASSES, depth=3, mlp_width=64)
    return BCViTConfig(**(sizes | overrides))


def fresh_network(config: BCViTConfig, seed: int = 0) -> BCViT:
    """The network as training starts it."""
    return BCViT(config, rngs=nnx.Rngs(seed))


def lively_network(config: BCViTConfig, seed: int = 0, spread: float = 0.15) -> BCViT:
    """Every array random, so that no bias is 0, no scale 1 and no attention map even."""
    rng = np.random.default_rng(seed)

    def fill(path, array):
        middle = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(rng.normal(middle, spread, array.shape), jnp.float32)

    graph, shapes = nnx.split(nnx.eval_shape(lambda: fresh_network(config)))
    return nnx.merge(graph, jax.tree_util.tree_map_with_path(fill, shapes))


def named(params: Any) -> dict[str, jax.Array]:
    """`blocks.0.attention.qkv.kernel` and so on -> array, of a module or its (gradient) state."""
    state = nnx.state(params, nnx.Param) if isinstance(params, nnx.Module) else params
    return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def random_images(count: int, side: int = SIDE, seed: int = 0) -> jax.Array:
    """float32 [count, side, side, 3] in [−1, 1]: blots of few pixels, so that patches differ."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(-1, 1, (count, -(-side // 8), -(-side // 8), 3))
    image = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :side, :side]
    return jnp.asarray(0.8 * image + 0.2 * rng.uniform(-1, 1, image.shape), jnp.float32)


def random_batch(
    count: int, side: int = SIDE, classes: int = CLASSES, seed: int = 0
) -> dict[str, np.ndarray]:
    """A training batch as `bcvit_jax.data` gives it; half of its images are mixed."""
    rng = np.random.default_rng(seed)
    image = (np.asarray(random_images(count, side, seed)) + 1.0) * 127.5
    mix = np.where(rng.random(count) < 0.5, 1.0, rng.uniform(0.2, 1.0, count))
    return {
        "image": image.astype(np.uint8),
        "label": rng.integers(0, classes, count).astype(np.int32),
        "mixed_label": rng.integers(0, classes, count).astype(np.int32),
        "mix": mix.astype(np.float32),
    }
