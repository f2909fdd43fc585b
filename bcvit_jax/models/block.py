"""A block of the Vision Transformer (equations 3 to 8): of all tokens, or of few that are read on.

Axes: b batch, n tokens (the class token first), m tokens that are read on, d width, h heads.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from bcvit_jax.models.attention import attend, attention_rows, few_rows, few_values, split_heads
from bcvit_jax.models.config import BCViTConfig
from bcvit_jax.models.layers import Dense, LayerNorm, chain, dense


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

    def rows(self, x, queries):
        """Rows of the map that `queries` see of x = norm(z): [b, m, d], [b, n, d] -> [b, h, m, n].

        For few queries: what it takes grows with m·h·d a token, where keys of all tokens take d².
        """
        (kernel, keys, _), (bias, _, _) = self._three()
        q = dense(queries, kernel, bias, self.qkv.dtype)
        return few_rows(q, x, keys, self.heads)

    def attended(self, x, rows):
        """MSA(norm(z)) of the queries whose `rows` [b, h, m, n] are given: -> [b, m, d]."""
        (_, _, kernel), (_, _, bias) = self._three()
        return self.projection(few_values(rows, x, kernel) + bias.astype(x.dtype)[None, None])

    def _three(self):
        """Kernels [d, d] and biases [d] of queries, keys and values."""
        kernel, bias = self.qkv.kernel[...], self.qkv.bias[...]
        return jnp.split(kernel, 3, axis=1), jnp.split(bias, 3)


class MLP(nnx.Module):
    """Equation 7: two dense layers, the activation after the first only."""

    def __init__(self, config: BCViTConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.expand = Dense(config.width, config.mlp_width, rngs=rngs, dtype=dtype)
        self.contract = Dense(config.mlp_width, config.width, rngs=rngs, dtype=dtype)
        self.activation = activation(config.activation)

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
        return self._mlp_branch(z, second), rows

    def _mlp_branch(self, z, weight):
        """z'' = MLP(LN z') + z': z' [b, n, d], weight [b] of the branch or None."""
        return z + _weighed(_scaled(self.mlp(z, self.mlp_norm), self.mlp_scale), weight)

    def class_row(self, z):
        """The class token's row of the map, alone: z [b, n, d] -> [b, h, n] float32."""
        x = self.attention_norm(z)
        return self.attention.rows(x, x[:, :1])[:, :, 0]

    def of_tokens(self, z, places, *, branches=None):
        """`__call__` of few tokens: z [b, n, d], places [b, m] -> (z'' [b, m, d], row [b, h, n]).

        The numbers are those of `__call__` there, since all tokens are seen, but only by these. The
        row of the map is that of the first of them.
        """
        first, second = (None, None) if branches is None else branches
        x, z = self.attention_norm(z), take(z, places)
        rows = self.attention.rows(x, take(x, places))
        branch = self.attention.attended(x, rows)
        z = z + _weighed(_scaled(branch, self.attention_scale), first)
        return self._mlp_branch(z, second), rows[:, :, 0]


def take(z, places):
    """Tokens at places [b, m] of each image: z [b, n, d] -> [b, m, d]."""
    return jnp.take_along_axis(z, places[:, :, None], axis=1)


def _scaled(branch, factor):
    """Layer scale: branch [b, n, d] times factor [d], where the network has one."""
    return branch if factor is None else branch * factor[...].astype(branch.dtype)[None, None]


def _weighed(branch, weight):
    """branch [b, n, d] times weight [b], where branches are weighed."""
    return branch if weight is None else branch * weight[:, None, None].astype(branch.dtype)


def activation(name: str):
    """relu, or gelu as timm's networks have it."""
    if name == "relu":
        return jax.nn.relu
    return lambda x: jax.nn.gelu(x, approximate=False)
