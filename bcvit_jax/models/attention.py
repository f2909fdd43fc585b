"""Scaled dot-product attention (equations 4 and 5) on the device at hand, its map not kept."""

import jax
import jax.numpy as jnp
from jax import lax

from bcvit_jax.models.processor import eigen_multiplies


def attend(qkv, heads: int) -> tuple[jax.Array, jax.Array]:
    """softmax(q·kᵀ/√d)·v: qkv [b, n, 3·h·d] -> (out [b, n, h·d], class row [b, h, n] float32).

    Of qkv's last axis the queries of all heads come first, then the keys, then the values; the
    class row is the map's first. On a GPU cuDNN's fused attention in bfloat16, XLA's in float32; on
    a CPU head after head.
    """
    if jax.default_backend() != "gpu":
        return attend_by_head(qkv, heads)
    q, k, v = split_heads(qkv, heads)
    out = _attend_cudnn(q, k, v) if qkv.dtype == jnp.bfloat16 else _attend_xla(q, k, v)
    return out.reshape(*out.shape[:2], -1), attention_rows(q[:, :1], k)[:, :, 0]


def split_heads(qkv, heads: int):
    """qkv [b, n, 3·h·d] -> q, k, v, each [b, n, h, d]."""
    b, n, d = qkv.shape
    qkv = qkv.reshape(b, n, 3, heads, d // (3 * heads))
    return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]


def attention_rows(q, k):
    """Equation 4: softmax(q·kᵀ/√d), q [b, m, h, d], k [b, n, h, d] -> [b, h, m, n] float32."""
    scores = jnp.einsum("bmhd,bnhd->bhmn", q, k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores / q.shape[-1] ** 0.5, axis=-1)


# Of few queries it takes less to bring them to the tokens than all tokens to keys and values:
# q·(x·W_k)ᵀ is (q·W_kᵀ)·xᵀ, and a·(x·W_v) is (a·x)·W_v. A bias of the keys would add the same to
# every number of a row, which softmax takes away.


def few_rows(q, x, kernel, heads: int):
    """softmax(q·(x·kernel)ᵀ/√d): q [b, m, h·d], x [b, n, w], kernel [w, h·d] -> [b, h, m, n].

    In float32.
    """
    b, m, _ = q.shape
    kernel = kernel.reshape(len(kernel), heads, -1).astype(x.dtype)
    q = _scaled(q.reshape(b, m, heads, -1))
    along = jnp.einsum("bmhd,whd->bhmw", q, kernel).reshape(b, heads * m, -1)
    scores = jnp.einsum("bqw,bnw->bqn", along, x, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores, axis=-1).reshape(b, heads, m, -1)


def few_values(rows, x, kernel):
    """rows·(x·kernel): rows [b, h, m, n], x [b, n, w], kernel [w, h·d] -> [b, m, h·d]."""
    b, heads, m, n = rows.shape
    kernel = kernel.reshape(len(kernel), heads, -1).astype(x.dtype)
    seen = jnp.einsum("bqn,bnw->bqw", rows.reshape(b, heads * m, n).astype(x.dtype), x)
    out = jnp.einsum("bhmw,whd->bmhd", seen.reshape(b, heads, m, -1), kernel)
    return out.reshape(b, m, -1)


def _attend_xla(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, implementation="xla")


def _attend_cudnn(q, k, v):
    """JAX offers its backward pass for an even number of tokens only: an odd one gets a token more,
    which no other token sees."""
    b, n = q.shape[:2]
    if n % 2 == 0:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
    lengths = jnp.full((b,), n, jnp.int32)
    out = jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return out[:, :n]


# On a CPU a head's maps [b, n, n] fit the caches, where those of all heads do not: one head after
# the other is faster, and the maps are made again in the backward pass instead of kept (Dao et al.
# 2022, arXiv 2205.14135). Each head is cut out of qkv and set into the result where it is needed,
# so that no array is ever transposed as a whole. Heads, not images, since devices share the images
# of a batch.


def attend_by_head(qkv, heads: int) -> tuple[jax.Array, jax.Array]:
    """`attend` with the maps of one head at a time; arrays as there."""
    return _by_head(qkv, heads)


def _forward(qkv, heads):
    b, n, d = qkv.shape
    by_head = qkv.reshape(b, n, 3, heads, d // (3 * heads))
    out, log_sum, rows = lax.map(lambda head: _head_forward(by_head, head), jnp.arange(heads))
    out = out.transpose(1, 2, 0, 3).reshape(b, n, d // 3)
    return (out, rows.transpose(1, 0, 2)), (qkv, out, log_sum)


def _backward(heads, kept, gradients):
    qkv, out, log_sum = kept
    gradient, row_gradient = gradients
    b, n, d = qkv.shape
    by_head = (b, n, heads, d // (3 * heads))
    along = (gradient * out).astype(jnp.float32).reshape(by_head).sum(-1)
    gradient = gradient.reshape(by_head)
    qkv = qkv.reshape(b, n, 3, *by_head[2:])

    def one(head, found):
        q, k, v = (_at(qkv, head, 3)[:, :, part] for part in range(3))
        statistics = _at(log_sum, head, 0), _at(along, head, 2)[..., None]
        upstream = _at(gradient, head, 2), _at(row_gradient, head, 1)
        part = _head_backward(q, k, v, *statistics, *upstream)
        return lax.dynamic_update_index_in_dim(found, jnp.stack(part, axis=2), head, 3)

    return (lax.fori_loop(0, heads, one, jnp.zeros_like(qkv)).reshape(b, n, d),)


_by_head = jax.custom_vjp(lambda qkv, heads: _forward(qkv, heads)[0], nondiff_argnums=(1,))
_by_head.defvjp(_forward, _backward)


def _head_forward(qkv, head):
    """softmax(q·kᵀ/√d)·v, the log of the sum of exp(q·kᵀ/√d) [b, n, 1], the map's first row."""
    q, k, v = (_at(qkv, head, 3)[:, :, part] for part in range(3))
    scores = _products(_scaled(q), k)
    largest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum("bmn,bnd->bmd", weights.astype(v.dtype), v) / total.astype(v.dtype)
    return out, largest + jnp.log(total), weights[:, 0] / total[:, 0]


def _head_backward(q, k, v, log_sum, along, gradient, row_gradient):
    """Gradients of q, k and v [b, n, d] from those of the result and of the map's first row."""
    q = _scaled(q)
    weights = jnp.exp(_products(q, k) - log_sum)
    inner = weights * (_products(gradient, v) - along)
    row = weights[:, 0]
    inner = inner.at[:, 0].add(row * (row_gradient - (row * row_gradient).sum(-1, keepdims=True)))
    inner = inner.astype(q.dtype)
    # The small factor comes first: it is the one that XLA copies to turn it.
    dv = jnp.einsum("bmd,bmn->bdn", gradient, weights.astype(v.dtype)).mT
    dk = jnp.einsum("bmd,bmn->bdn", q, inner).mT
    return _scaled(jnp.einsum("bmn,bnd->bmd", inner, k)), dk, dv


def _at(x, place, axis: int):
    return lax.dynamic_index_in_dim(x, place, axis, keepdims=False)


def _scaled(q):
    return q * q.shape[-1] ** -0.5


def _products(q, k):
    """q·kᵀ: [b, m, d], [b, n, d] -> [b, m, n] float32.

    In float32 of a turned q, which XLA's CPU code is faster with, but where `eigen_multiplies`.
    """
    if q.dtype == jnp.float32 and not eigen_multiplies(q.dtype):
        return jnp.einsum("bdm,bnd->bmn", lax.optimization_barrier(q.mT), k)
    return jnp.einsum("bmd,bnd->bmn", q, k, preferred_element_type=jnp.float32)
