"""The improved Vision Transformer for blood cells, in the paper's order (equations 1 to 11).

Sun, Zhu, Yang, Zeng, J. Biomed. Eng. 39(6), 2022, doi 10.7507/1001-5515.202203008. Axes: b batch,
n tokens (the class token first), d width, h heads, k kept tokens a head, l layers that give maps.
The same code with `selection=False` and `activation="gelu"` is the plain Vision Transformer.
Equations 3 to 8 are in block.py.
"""

import itertools
from typing import Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from flax import nnx

from bcvit_jax.models.block import Block, activation, take
from bcvit_jax.models.config import BCViTConfig
from bcvit_jax.models.layers import Convolution, Dense, LayerNorm
from bcvit_jax.models.loop import in_turn

_truncated_normal = jax.nn.initializers.truncated_normal(0.02)


class Output(NamedTuple):
    """What the network returns."""

    logits: jax.Array
    """[b, classes], float32."""
    feature: jax.Array
    """[b, d], float32: the class token after the final layer norm (z of equation 14)."""
    kept: jax.Array
    """[b, h·k], int32: kept patches, counted from 0 row by row; [b, 0] without selection."""


def scale(images):
    """uint8 [b, s, s, 3] -> float32 in [−1, 1], as every network here takes images."""
    return images.astype(jnp.float32) / 127.5 - 1.0


class PatchEmbedding(nnx.Module):
    """Equations 1 and 2: z₀ = [x_class; x¹E; …; xᴺE] + E_pos, with patches that may overlap."""

    def __init__(self, config: BCViTConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        reduction = 2 ** len(config.stem)
        channels = (3, *config.stem)
        self.stem = nnx.List(
            Convolution(i, o, 3, 2, padding=1, rngs=rngs, dtype=dtype)
            for i, o in itertools.pairwise(channels)
        )
        self.stem_norms = nnx.List(LayerNorm(o, dtype=dtype) for o in config.stem)
        self.projection = Convolution(
            channels[-1],
            config.width,
            config.patch_size // reduction,
            config.stride // reduction,
            rngs=rngs,
            dtype=dtype,
        )
        d, n = config.width, config.num_patches + 1
        self.class_token = nnx.Param(_truncated_normal(rngs.params(), (1, 1, d)))
        r = config.registers
        self.registers = nnx.Param(_truncated_normal(rngs.params(), (1, r, d))) if r else None
        self.position = nnx.Param(_truncated_normal(rngs.params(), (1, n, d)))
        self.activation = activation(config.activation)

    def __call__(self, images):
        """images [b, H, W, 3] in [−1, 1] -> z₀ [b, n, d]; registers have no position."""
        x = images
        for convolution, norm in zip(self.stem, self.stem_norms, strict=True):
            x = self.activation(norm(convolution(x)))
        x = self.projection(x)
        b, rows, columns, d = x.shape
        x = x.reshape(b, rows * columns, d)
        class_token = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (b, 1, d))
        z = jnp.concatenate([class_token, x], axis=1) + self.position[...].astype(x.dtype)
        if self.registers is None:
            return z
        registers = self.registers[...].astype(x.dtype)
        registers = jnp.broadcast_to(registers, (b, *registers.shape[1:]))
        return jnp.concatenate([z[:, :1], registers, z[:, 1:]], axis=1)


def stochastic_depth(key, chances, images: int):
    """Weights float32 [l, 2, images] of both branches of l blocks (Huang et al. 2016).

    A branch is left out of an image's pass (0) with the chance of its block, chances [l], and else
    scaled up, so that it is right on average.
    """

    def of_block(place, chance):
        keys = jax.random.split(jax.random.fold_in(key, place))
        kept = jax.vmap(lambda k: jax.random.bernoulli(k, 1.0 - chance, (images,)))(keys)
        return kept / (1.0 - chance)

    return jax.vmap(of_block)(jnp.arange(len(chances)), chances)


class SparseAttention(nnx.Module):
    """Equations 9 to 11: maps of all layers fused by squeeze-excitation, top-k tokens a head."""

    def __init__(self, config: BCViTConfig, *, rngs: nnx.Rngs):
        maps = config.num_maps
        hidden = config.squeeze_width or maps
        self.reduce = Dense(maps, hidden, rngs=rngs)
        self.excite = Dense(hidden, maps, rngs=rngs)
        # The squeezed statistics differ by little at first: unit-variance layers let them count.
        lecun = jax.nn.initializers.lecun_normal()
        self.reduce.kernel[...] = lecun(rngs.params(), (maps, hidden))
        self.excite.kernel[...] = lecun(rngs.params(), (hidden, maps))
        self.squeeze = config.squeeze
        self.first_patch = config.first_patch
        self.tokens_per_head = config.tokens_per_head
        self.selection_gradient = config.selection_gradient

    def layer_weights(self, class_rows):
        """Equation 10's w: class rows [l, b, h, n] -> weights [b, l] that sum to 1."""
        s = squeeze(class_rows, self.squeeze, self.first_patch)
        return jax.nn.softmax(self.excite(jax.nn.relu(self.reduce(s))), axis=-1)

    def fuse(self, class_rows):
        """Equation 10's A, its class row only: [l, b, h, n] -> [b, h, n].

        The class row of the weighted sum is the weighted sum of the class rows, so full maps are
        never needed.
        """
        return jnp.einsum("bl,lbhn->bhn", self.layer_weights(class_rows), class_rows)

    def select(self, class_rows):
        """Equation 11's i_k: ([b, h·k] patch indices from 0, [b, h·k] their fused weights).

        By sorting, which devices do each for their own images; `jax.lax.top_k` gathers them all.
        """
        weights = self.fuse(class_rows)[:, :, self.first_patch :]
        indices = jnp.argsort(-weights, axis=-1)[:, :, : self.tokens_per_head]
        kept = jnp.take_along_axis(weights, indices, axis=-1)
        b = weights.shape[0]
        return indices.reshape(b, -1), kept.reshape(b, -1)

    def weights(self, class_rows, kept):
        """Fused weights of patches that `select` has kept: kept [b, h·k] -> [b, h·k]."""
        weights = self.fuse(class_rows)[:, :, self.first_patch :]
        b, heads, _ = weights.shape
        return jnp.take_along_axis(weights, kept.reshape(b, heads, -1), axis=-1).reshape(b, -1)

    def places(self, kept):
        """Of the last block's tokens [class; i₁; …; i_K] among all: kept [b, k] -> [b, 1 + k]."""
        return jnp.pad(kept + self.first_patch, ((0, 0), (1, 0)))

    def gate(self, tokens, weights):
        """The last block's input [z_class; z^{i₁}; …; z^{i_K}] with a gradient for its choice.

        tokens [b, 1 + k, d] are at `places`, weights [b, k] as `select` returns them. With the
        straight-through reading a token is multiplied by 1 + a − stop_gradient(a): its value stays,
        its weight a gets a gradient.
        """
        if self.selection_gradient == "none":
            return tokens
        gate = 1.0 + (weights - jax.lax.stop_gradient(weights))  # exactly 1
        kept = tokens[:, 1:] * gate[:, :, None].astype(tokens.dtype)
        return jnp.concatenate([tokens[:, :1], kept], axis=1)


def squeeze(class_rows, kind: str, first_patch: int = 1):
    """One number a layer, averaged over heads: class rows [l, b, h, n] -> s [b, l].

    Reading: the paper's average of a row-softmaxed map is 1/n for every image (`mean`); `max` is
    the class row's largest weight on a patch, `entropy` its negative entropy.
    """
    if kind == "mean":
        s = class_rows.mean(-1)
    elif kind == "max":
        s = class_rows[..., first_patch:].max(-1)
    else:
        s = (class_rows * jnp.log(class_rows + 1e-9)).sum(-1)
    return s.mean(-1).T


class BCViT(nnx.Module):
    """The whole network; `config.selection=False` is a plain Vision Transformer."""

    def __init__(self, config: BCViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embedding = PatchEmbedding(config, rngs=rngs)
        self.blocks = nnx.List(Block(config, rngs=rngs) for _ in range(config.num_maps))
        if config.selection:
            self.sparse_attention = SparseAttention(config, rngs=rngs)
            self.last_block = Block(config, rngs=rngs)
        self.norm = LayerNorm(config.width, dtype=jnp.float32)
        self.head = Dense(config.width, config.num_classes, rngs=rngs)

    @overload
    def __call__(self, images, *, key=None, full_maps: Literal[False] = False) -> Output: ...
    @overload
    def __call__(
        self, images, *, key=None, full_maps: Literal[True]
    ) -> tuple[Output, jax.Array]: ...
    def __call__(self, images, *, key=None, full_maps=False):
        """images [b, H, W, 3] float in [−1, 1] -> Output, or (Output, maps [l, b, h, n, n]).

        `key` turns stochastic depth on (training). ValueError for images of another size.
        """
        side = self.config.image_size
        if images.shape[1:] != (side, side, 3):
            raise ValueError(f"images are {images.shape[1:]}; this network takes {side}×{side}×3")
        branches = None if key is None else self.draw_branches(key, len(images))
        if full_maps:
            return self.every_token(images, branches=branches, full_maps=True)
        return self.decide(*self.encode(images, branches=branches), branches=branches)[0]

    def draw_branches(self, key, images: int):
        """`stochastic_depth` of all blocks, its chance rising from 0 to `config.drop_path`."""
        blocks = len(self.blocks) + self.config.selection
        chances = self.config.drop_path * jnp.arange(blocks) / max(blocks - 1, 1)
        return stochastic_depth(key, chances, images)

    def encode(self, images, *, branches=None):
        """All of `blocks` but the last: (z [b, n, d], their class rows [l − 1, b, h, n] or None).

        Rows are None without selection, and where there is one block.
        """
        *blocks, _ = self.blocks
        z = self.embedding(images)
        return in_turn(blocks, z, branches, class_row=self.config.selection)

    def decide(self, z, rows, *, branches=None):
        """The last of `blocks`, equations 9 to 11, the last block and the head.

        From what `encode` returns -> (Output, class rows [l, b, h, n] or None). Of the last of
        `blocks` only the class token and the kept ones are read on, of the last block the class
        token: other tokens are not computed there.
        """
        last = len(self.blocks) - 1
        block, of_block = self.blocks[last], None if branches is None else branches[last]
        class_token = jnp.zeros((z.shape[0], 1), jnp.int32)
        kept = class_token[:, :0]
        if not self.config.selection:
            z, _ = block.of_tokens(z, class_token, branches=of_block)
            return Output(*self.classify(z), kept), None

        def with_last(row):
            return row[None] if rows is None else jnp.concatenate([rows, row[None]])

        # The choice needs the class row first. Its gradient comes from the row that is found with
        # those of the kept tokens: so every weight has one, which devices add up once.
        kept, _ = self.sparse_attention.select(with_last(block.class_row(z)))
        places = self.sparse_attention.places(kept)
        tokens, row = block.of_tokens(z, places, branches=of_block)
        class_rows = with_last(row)
        tokens = self.sparse_attention.gate(tokens, self.sparse_attention.weights(class_rows, kept))
        of_block = None if branches is None else branches[-1]
        z, _ = self.last_block.of_tokens(tokens, class_token, branches=of_block)
        return Output(*self.classify(z), kept), class_rows

    def every_token(self, images, *, branches=None, full_maps: bool = False):
        """`__call__` to the letter, with all tokens in all blocks: (Output, rows).

        For maps, and to count what the equations take. Rows are class rows [l, b, h, n], full maps
        [l, b, h, n, n], or None without selection.
        """
        selection = self.config.selection
        z = self.embedding(images)
        z, rows = in_turn(self.blocks, z, branches, class_row=selection, full_map=full_maps)
        kept = jnp.zeros((z.shape[0], 0), jnp.int32)
        if selection and rows is not None:
            class_rows = rows[:, :, :, 0] if full_maps else rows
            kept, weights = self.sparse_attention.select(class_rows)
            tokens = take(z, self.sparse_attention.places(kept))
            tokens = self.sparse_attention.gate(tokens, weights)
            of_last = None if branches is None else branches[-1]
            z, _ = self.last_block(tokens, class_row=False, branches=of_last)
        return Output(*self.classify(z), kept), rows

    def classify(self, z):
        """z [b, n, d] -> (logits [b, classes], class-token feature [b, d]), float32."""
        feature = self.norm(z[:, 0])
        return self.head(feature), feature
