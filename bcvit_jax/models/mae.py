"""Masked-autoencoder pretraining (He et al. 2022, arXiv 2111.06377) of a Vision Transformer here.

Axes: b batch, n patches, v visible ones, d width, P patch size, S stride. The encoder is a BCViT's
own embedding and map-giving blocks, by the same names; it has no class and no selection.

Reading: patches overlap (stride 12 of 16), so a hidden patch shows at the edges of its neighbours.
Patches are drawn, and a pixel is hidden where no visible patch holds it. Hidden pixels are 0 before
the embedding, so that no convolutional stem sees them either (as in SimMIM, arXiv 2111.09886).

Reading: what a patch is asked for is its tile, the S×S pixels in its middle; tiles do not overlap.
Only the hidden pixels of a tile count.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bcvit_jax.models.bcvit import PatchEmbedding
from bcvit_jax.models.block import Block
from bcvit_jax.models.config import BCViTConfig
from bcvit_jax.models.layers import Dense, LayerNorm, extract_patches
from bcvit_jax.models.loop import in_a_loop, in_turn

_normal = jax.nn.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class MaskedAutoencoderConfig:
    """An encoder, what is hidden from it, and its decoder; a wrong value raises ValueError."""

    encoder: BCViTConfig
    ratio: float = 0.75
    """Share of the patches that are hidden; of the pixels it is less where patches overlap."""
    width: int = 128
    depth: int = 2
    heads: int = 4
    """Of the decoder, whose MLPs are four times as wide."""
    decoder: BCViTConfig = dataclasses.field(init=False)
    """Sizes of its blocks."""

    num_classes = num_kept = 0
    takes_key = True

    def __post_init__(self):
        # The encoder with its last block plain: what others pretrain, and `weights` takes apart.
        object.__setattr__(self, "encoder", dataclasses.replace(self.encoder, selection=False))
        n, v = self.encoder.num_patches, self.num_visible
        if not (0 < self.ratio < 1 and 0 < v < n):
            raise ValueError(
                f"ratio is {self.ratio}; of {n} patches it must hide some and leave some"
            )
        if self.encoder.drop_path:
            raise ValueError(
                f"drop_path is {self.encoder.drop_path}; pretraining leaves no branch out, set it 0"
            )
        try:
            decoder = dataclasses.replace(
                self.encoder,
                width=self.width,
                heads=self.heads,
                depth=self.depth,
                mlp_width=4 * self.width,
                layer_scale=0.0,
            )
        except ValueError as error:
            raise ValueError(f"the decoder's {error}") from None
        object.__setattr__(self, "decoder", decoder)

    @property
    def image_size(self) -> int:
        return self.encoder.image_size

    @property
    def dtype(self) -> str:
        return self.encoder.dtype

    @property
    def num_visible(self) -> int:
        n = self.encoder.num_patches
        return n - round(self.ratio * n)

    def in_a_loop(self, images: int) -> bool:
        """Whether a batch goes through the encoder's blocks in a loop (`loop.in_a_loop`)."""
        encoder = self.encoder
        return in_a_loop(images, encoder.first_patch + self.num_visible, encoder.mlp_width)


class Reconstruction(NamedTuple):
    """What the network returns."""

    prediction: jax.Array
    """[b, n, S·S·3] float32: every tile, normalised as `standardise` does it."""
    shown: jax.Array
    """[b, s, s] bool: the pixels that the encoder saw."""


class Decoder(nnx.Module):
    """All positions from the visible tokens: mask tokens, positions, blocks, pixels."""

    def __init__(self, config: MaskedAutoencoderConfig, *, rngs: nnx.Rngs):
        encoder, d = config.encoder, config.width
        dtype = jnp.dtype(encoder.dtype)
        self.narrow = Dense(encoder.width, d, rngs=rngs, dtype=dtype)
        self.mask_token = nnx.Param(_normal(rngs.params(), (1, 1, d)))
        self.position = nnx.Param(_normal(rngs.params(), (1, encoder.num_patches + 1, d)))
        self.blocks = nnx.List(Block(config.decoder, rngs=rngs) for _ in range(config.depth))
        self.norm = LayerNorm(d, dtype=jnp.float32)
        self.pixels = Dense(d, 3 * encoder.stride**2, rngs=rngs)

    def __call__(self, z, order):
        """Class token and visible tokens [b, 1+v, d] in the order of `order` [b, n] -> tiles."""
        z = self.narrow(z)
        b, n = order.shape
        hidden = jnp.broadcast_to(
            self.mask_token[...].astype(z.dtype), (b, n + 1 - z.shape[1], z.shape[2])
        )
        patches = jnp.concatenate([z[:, 1:], hidden], axis=1)
        patches = jnp.take_along_axis(patches, jnp.argsort(order, axis=1)[:, :, None], axis=1)
        z = jnp.concatenate([z[:, :1], patches], axis=1) + self.position[...].astype(z.dtype)
        z, _ = in_turn(self.blocks, z, class_row=False)
        return self.pixels(self.norm(z[:, 1:]))


class MaskedAutoencoder(nnx.Module):
    """Encoder of the visible patches and decoder of all; the mask is drawn from the key."""

    def __init__(self, config: MaskedAutoencoderConfig, *, rngs: nnx.Rngs):
        encoder = config.encoder
        self.config = config
        self.embedding = PatchEmbedding(encoder, rngs=rngs)
        self.blocks = nnx.List(Block(encoder, rngs=rngs) for _ in range(encoder.depth))
        self.norm = LayerNorm(encoder.width, dtype=jnp.float32)
        self.decoder = Decoder(config, rngs=rngs)

    def __call__(self, images, *, key) -> Reconstruction:
        """images [b, s, s, 3] float in [−1, 1]; each image gets a mask of its own."""
        order = draw_order(key, images.shape[0], self.config.encoder.num_patches)
        z, shown = self.encode(images, order)
        first = self.config.encoder.first_patch
        z = jnp.concatenate([z[:, :1], z[:, first:]], axis=1)
        return Reconstruction(self.decoder(z, order), shown)

    def encode(self, images, order):
        """The first v patches of `order` [b, n] -> (class token, registers and they, shown)."""
        encoder, v = self.config.encoder, self.config.num_visible
        shown = shown_pixels(order[:, :v], encoder)
        z = self.embedding(jnp.where(shown[..., None], images, 0.0))
        first = encoder.first_patch
        visible = jnp.take_along_axis(z[:, first:], order[:, :v, None], axis=1)
        z, _ = in_turn(
            self.blocks, jnp.concatenate([z[:, :first], visible], axis=1), class_row=False
        )
        return self.norm(z), shown


def draw_order(key, images: int, patches: int):
    """A random order of the patches for each image, int32 [images, patches]."""
    return jnp.argsort(jax.random.uniform(key, (images, patches)), axis=1).astype(jnp.int32)


def shown_pixels(visible, config: BCViTConfig):
    """visible [b, v] patch indices -> bool [b, s, s]: pixels that one of these patches holds."""
    rows, columns = config.grid
    patches = jax.nn.one_hot(visible, rows * columns).sum(1).reshape(-1, rows, columns)
    start = np.arange(rows)[:, None] * config.stride
    place = np.arange(config.image_size)[None]
    within = jnp.asarray((start <= place) & (place < start + config.patch_size), jnp.float32)
    return jnp.einsum("brc,ry,cx->byx", patches, within, within) > 0


def tiles(x, config: BCViTConfig):
    """x [b, s, s, c] -> [b, n, S·S·c]: the middle S×S pixels of every patch."""
    (rows, columns), stride = config.grid, config.stride
    first = (config.patch_size - stride) // 2
    x = x[:, first : first + rows * stride, first : first + columns * stride]
    return extract_patches(x, stride, stride).reshape(x.shape[0], rows * columns, -1)


def standardise(x):
    """Tiles [b, n, p] -> (each with mean 0 and deviation 1, mean, deviation [b, n, 1])."""
    mean = x.mean(-1, keepdims=True)
    deviation = jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return (x - mean) / deviation, mean, deviation


def pictures(images, output: Reconstruction, config: BCViTConfig):
    """What the encoder saw, and that with its hidden pixels as predicted: two [b, s, s, 3].

    A tile's own mean and deviation, which the network is not asked for, are those of the image.
    Hidden pixels that are in no tile, at the border, stay grey.
    """
    (rows, columns), stride = config.grid, config.stride
    _, mean, deviation = standardise(tiles(images, config))
    x = (output.prediction * deviation + mean).reshape(-1, rows, columns, stride, stride, 3)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, rows * stride, columns * stride, 3)
    first, side = (config.patch_size - stride) // 2, config.image_size
    after = [side - first - length for length in (rows * stride, columns * stride)]
    x = jnp.pad(x, ((0, 0), (first, after[0]), (first, after[1]), (0, 0)))
    shown = output.shown[..., None]
    return jnp.where(shown, images, 0.0), jnp.where(shown, images, jnp.clip(x, -1.0, 1.0))
