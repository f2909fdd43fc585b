"""Scaled dot-product attention (equations 4 and 5) on the device at hand, its map not kept."""

import jax
import jax.numpy as jnp


def attend(q, k, v):
    """softmax(q·kᵀ/√d)·v: q, k, v [b, n, h, d] -> [b, n, h, d].

    On a GPU cuDNN's fused attention in bfloat16, XLA's in float32; on a CPU head after head.
    """
    if jax.default_backend() == "gpu":
        return _attend_cudnn(q, k, v) if q.dtype == jnp.bfloat16 else _attend_xla(q, k, v)
    return attend_by_head(q, k, v)


def attention_rows(q, k):
    """Equation 4: softmax(q·kᵀ/√d), q [b, m, h, d], k [b, n, h, d] -> [b, h, m, n] float32."""
    scores = jnp.einsum("bmhd,bnhd->bhmn", q, k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores / q.shape[-1] ** 0.5, axis=-1)


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
# 2022, arXiv 2205.14135). Heads, not images, since devices share the images of a batch.


@jax.custom_vjp
def attend_by_head(q, k, v):
    """`attend` with the maps of one head at a time; arrays as there."""
    return _forward(q, k, v)[0]


def _forward(q, k, v):
    q, k, v = (_heads_first(x) for x in (q * q.shape[-1] ** -0.5, k, v))
    out, log_sum = jax.lax.map(lambda head: _head_forward(*head), (q, k, v))
    return _heads_inside(out), (q, k, v, out, log_sum)


def _backward(kept, gradient):
    gradients = jax.lax.map(
        lambda head: _head_backward(*head), (*kept, _heads_first(gradient.astype(kept[0].dtype)))
    )
    dq, dk, dv = (_heads_inside(x) for x in gradients)
    return dq * dq.shape[-1] ** -0.5, dk, dv


attend_by_head.defvjp(_forward, _backward)


def _head_forward(q, k, v):
    """q (scaled), k, v [b, n, d] -> (softmax(q·kᵀ)·v, log of the sum of exp(q·kᵀ) [b, n, 1])."""
    scores = _products(q, k)
    largest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum("bmn,bnd->bmd", weights.astype(v.dtype), v) / total.astype(v.dtype)
    return out, largest + jnp.log(total)


def _head_backward(q, k, v, out, log_sum, gradient):
    """Gradients of q (scaled), k and v."""
    weights = jnp.exp(_products(q, k) - log_sum)
    along = (gradient * out).astype(jnp.float32).sum(-1, keepdims=True)
    inner = (weights * (_products(gradient, v) - along)).astype(q.dtype)
    # The small factor comes first: it is the one that XLA copies to turn it.
    dv = jnp.einsum("bmd,bmn->bdn", gradient, weights.astype(v.dtype)).mT
    dk = jnp.einsum("bmd,bmn->bdn", q, inner).mT
    return jnp.einsum("bmn,bnd->bmd", inner, k), dk, dv


def _products(q, k):
    return jnp.einsum("bmd,bnd->bmn", q, k, preferred_element_type=jnp.float32)


def _heads_first(x):
    return x.transpose(2, 0, 1, 3)


def _heads_inside(x):
    return x.transpose(1, 2, 0, 3)
