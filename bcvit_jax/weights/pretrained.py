"""Pretrained weights of any known family into a network of ours."""

from pathlib import Path
from typing import Any, Literal

from flax import nnx

from bcvit_jax.errors import UserError
from bcvit_jax.models import BCViTConfig, NetworkConfig
from bcvit_jax.weights import encoders
from bcvit_jax.weights.convolutional import pretrained_convolutional
from bcvit_jax.weights.flat import Flat, Pretrained, from_flat, to_flat
from bcvit_jax.weights.transformer import pretrained_transformer


def load_pretrained(
    model: Any,
    path: str | Path,
    *,
    last_block: Literal["copy", "fresh"] = "copy",
    head: bool = False,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> Pretrained:
    """Put the weights in `path` (see `read_arrays`) into a network of ours, in place.

    The family is known by its keys. Position embeddings are resized to the network's grid; the
    extra last block starts as a copy of the one before it, or fresh; the classifier's head stays
    fresh unless `head`. Our images lie in [−1, 1]: where the weights saw pixels of another mean
    and std, the patch projection (of a convolutional network: `pixels`) takes the difference up,
    exactly. Encoders that were pretrained here (`weights.encoders`) need none of this.
    Errors: one UserError that lists all that does not fit.
    """
    flat, report = pretrained(model.config, path, last_block, head, mean, std)
    nnx.update(model, from_flat(nnx.state(model), to_flat(model) | flat, str(path)))
    return report


def pretrained(
    config: NetworkConfig,
    path: str | Path,
    last_block: str = "copy",
    head: bool = False,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> tuple[Flat, Pretrained]:
    """`load_pretrained` on values: the loaded weights by our names, and the report."""
    if last_block not in ("copy", "fresh"):
        raise UserError(f"last_block is {last_block!r}; it must be copy or fresh")
    if not isinstance(config, BCViTConfig):
        return pretrained_convolutional(config, path, head, mean, std)
    if encoder := encoders.find(path):
        if mean or std:
            raise UserError(
                f"config.weights.mean is {mean} and std {std}; they are for weights of others, and "
                f"{encoder} takes pixels as they are here, so leave both empty"
            )
        return encoders.load(config, encoder, last_block)
    return pretrained_transformer(config, path, last_block, head, mean, std)
