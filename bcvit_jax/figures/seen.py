"""What a trained network sees in a run's images: class attention, kept patches, features."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bcvit_jax.dataset import CellDataset
from bcvit_jax.errors import UserError
from bcvit_jax.models import BCViT, BCViTConfig, Output, scale
from bcvit_jax.trained import Network

BATCH = 16


class Seen(NamedTuple):
    """Of n images; see `class_attention`."""

    images: np.ndarray
    """uint8 [n, s, s, 3]: the network's input."""
    probabilities: np.ndarray
    """float32 [n, c]."""
    feature: np.ndarray
    """float32 [n, d]: z of equation 14."""
    kept: np.ndarray
    """int32 [n, k]; k = 0 without selection."""
    attention: np.ndarray
    """float32 [n, h, patches]; a head's weights sum to less than 1, as the class token has some."""


def class_attention(network: BCViT, images) -> tuple[Output, jax.Array]:
    """Output and the class token's attention to the patches, [b, h, patches].

    Of the fused map A of equation 10; without selection there is none, and it is the last block's.
    """
    if network.config.selection:
        output, class_rows = network.decide(*network.encode(images))
        rows = network.sparse_attention.fuse(class_rows)
    else:
        output, maps = network(images, full_maps=True)
        rows = maps[-1, :, :, 0]
    return output, rows[:, :, network.config.first_patch :]


def attentive(network: Network) -> BCViTConfig:
    """The network's config; UserError where it is of a kind without attention."""
    model = network.program.model
    if not isinstance(model, BCViTConfig):
        raise UserError(
            f"a network of the kind {type(model).__name__} has no attention, so it has none of "
            "these figures; name a run of a BCViT or ViT"
        )
    return model


def see(
    network: Network, dataset: CellDataset, fold: str, rows: Sequence[int] | np.ndarray
) -> Iterator[Seen]:
    """What the network sees in the images `rows` of a fold, in order and a batch at a time."""
    model = attentive(network)
    graph, _ = nnx.split(nnx.eval_shape(lambda: BCViT(model, rngs=nnx.Rngs(0))))

    @jax.jit
    def step(variables, images):
        output, attention = class_attention(nnx.merge(graph, variables), scale(images))
        return jax.nn.softmax(output.logits), output.feature, output.kept, attention

    def read(row: int) -> np.ndarray:
        return network.preprocessing(dataset.image(fold, int(row)))

    filled = np.zeros((BATCH, model.image_size, model.image_size, 3), np.uint8)
    with ThreadPoolExecutor(2) as pool:
        for place in range(0, len(rows), BATCH):
            images = np.stack(list(pool.map(read, rows[place : place + BATCH])))
            filled[: len(images)] = images
            found = step(network.variables, jnp.asarray(filled))
            yield Seen(images, *(np.asarray(part)[: len(images)] for part in found))


def together(parts: Sequence[Seen]) -> Seen:
    """The batches of `see` as one."""
    return Seen(*(np.concatenate(part) for part in zip(*parts, strict=True)))
