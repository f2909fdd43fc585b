"""The improved Vision Transformer for blood cells, in the paper's order (equations 1 to 11).

Sun, Zhu, Yang, Zeng, J. Biomed. Eng. 39(6), 2022, doi 10.7507/1001-5515.202203008. Axes: b batch,
n tokens (the class token first), d width, h heads, k kept tokens a head, l layers that give maps.
The same code with `selection=False` and `activation="gelu"` is the plain Vision Transformer.
"""

import itertools
from typing import Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from flax import nnx

from bcvit_jax.models.attention import attend, attention_rows, split_heads
from bcvit_jax.models.config import BCViTConfig
from bcvit_jax.models.layers import Convolution, Dense, LayerNorm, chain
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
        self.activation = _activation(config.activation)

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


class Attention(nnx.Module):
    """Equations 3 to 6: multi-head self-attention and the class token's row of its map."""

    def __init__(self, config: BCViTConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.qkv = Dense(config.width, 3 * config.width, rngs=rngs, dtype=dtype)
        self.projection = Dense(config.width, config.width, rngs=rngs, dtype=dtype)
        self.heads = config.heads

    def __call__(self, z, norm, *, class_row: bool = True, full_map: bool = False):
        """MSA(norm(z)): z [b, n, d] -> ([b, n, d], rows).

        rows: the class row [b, h, n] in float32, the full map [b, h, n, n] if `full_map`, else
        None. The full map is for figures; the class row is all that equation 11 needs.
        """
        qkv = chain(norm, self.qkv)(z)
        out, rows = attend(qkv, self.heads)
        if full_map:
            q, k, _ = split_heads(qkv, self.heads)
            rows = attention_rows(q, k)
        return self.projection(out), rows if class_row or full_map else None


class MLP(nnx.Module):
    """Equation 7: two dense layers, the activation after the first only."""

    def __init__(self, config: BCViTConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.expand = Dense(config.width, config.mlp_width, rngs=rngs, dtype=dtype)
        self.contract = Dense(config.mlp_width, config.width, rngs=rngs, dtype=dtype)
        self.activation = _activation(config.activation)

    def __call__(self, z, norm):
        """MLP(norm(z)): z [b, n, d] -> [b, n, d]."""
        return chain(self.activation, self.contract)(chain(norm, self.expand)(z))


class Block(nnx.Module):
    """Equation 8: z' = MSA(LN z) + z; z'' = MLP(LN z') + z'."""

    def __init__(self, config: BCViTConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.attention_norm = LayerNorm(config.width, dtype=dtype)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = LayerNorm(config.width, dtype=dtype)
        self.mlp = MLP(config, rngs=rngs)
        first, scaled = jnp.full((config.width,), config.layer_scale), config.layer_scale > 0
        self.attention_scale = nnx.Param(first) if scaled else None
        self.mlp_scale = nnx.Param(first) if scaled else None

    def __call__(self, z, *, class_row: bool = True, full_map: bool = False, branches=None):
        """z [b, n, d] -> (z'' [b, n, d], rows as `Attention` returns them).

        `branches` [2, b]: weights of both branches in each image, of `stochastic_depth`.
        """
        first, second = (None, None) if branches is None else branches
        branch, rows = self.attention(
            z, self.attention_norm, class_row=class_row, full_map=full_map
        )
        z = z + _weighed(_scaled(branch, self.attention_scale), first)
        branch = self.mlp(z, self.mlp_norm)
        return z + _weighed(_scaled(branch, self.mlp_scale), second), rows


def _scaled(branch, factor):
    """Layer scale: branch [b, n, d] times factor [d], where the network has one."""
    return branch if factor is None else branch * factor[...].astype(branch.dtype)[None, None]


def _weighed(branch, weight):
    """branch [b, n, d] times weight [b], where branches are weighed."""
    return branch if weight is None else branch * weight[:, None, None].astype(branch.dtype)


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

    def gather(self, z, kept, weights):
        """The last block's input [z_class; z^{i₁}; …; z^{i_K}]: z [b, n, d] -> [b, 1 + h·k, d].

        Heads that keep the same token keep it twice. With the straight-through reading a token is
        multiplied by 1 + a − stop_gradient(a): its value stays, its weight a gets a gradient.
        """
        patches = z[:, self.first_patch :]
        tokens = jnp.take_along_axis(patches, kept[:, :, None], axis=1)
        if self.selection_gradient == "straight_through":
            gate = 1.0 + (weights - jax.lax.stop_gradient(weights))  # exactly 1
            tokens = tokens * gate[:, :, None].astype(tokens.dtype)
        return jnp.concatenate([z[:, :1], tokens], axis=1)


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
        z, rows = self.encode(images, branches=branches, full_maps=full_maps)
        class_rows = rows[:, :, :, 0] if full_maps and rows is not None else rows
        output = self.decide(z, class_rows, branches=branches)
        return (output, rows) if full_maps else output

    def draw_branches(self, key, images: int):
        """`stochastic_depth` of all blocks, its chance rising from 0 to `config.drop_path`."""
        blocks = len(self.blocks) + self.config.selection
        chances = self.config.drop_path * jnp.arange(blocks) / max(blocks - 1, 1)
        return stochastic_depth(key, chances, images)

    def decide(self, z, class_rows, *, branches=None) -> Output:
        """Equations 10 and 11 and the head, from z [b, n, d] and the class rows of `encode`."""
        kept = jnp.zeros((z.shape[0], 0), jnp.int32)
        if self.config.selection:
            kept, weights = self.sparse_attention.select(class_rows)
            z = self.sparse_attention.gather(z, kept, weights)
            last = None if branches is None else branches[-1]
            z, _ = self.last_block(z, class_row=False, branches=last)
        return Output(*self.classify(z), kept)

    def encode(self, images, *, branches=None, full_maps: bool = False):
        """Equations 1 to 9: z of the last map-giving block and the rows of every map.

        Rows are class rows [l, b, h, n], full maps [l, b, h, n, n], or None without selection.
        """
        if branches is not None:
            branches = branches[: len(self.blocks)]
        rows = dict(class_row=self.config.selection, full_map=full_maps)
        return in_turn(self.blocks, self.embedding(images), branches, **rows)

    def classify(self, z):
        """z [b, n, d] -> (logits [b, classes], class-token feature [b, d]), float32."""
        feature = self.norm(z[:, 0])
        return self.head(feature), feature


def _activation(name: str):
    if name == "relu":
        return jax.nn.relu
    return lambda x: jax.nn.gelu(x, approximate=False)
