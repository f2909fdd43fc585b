"""The training loss (equations 12 to 14): L = L_ce + L_con; and that of pretraining."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits, labels, *, smoothing: float = 0.0, mixed_labels=None, mix=None):
    """Equation 13, the mean over the batch of −log softmax(logits)[label].

    logits [b, c], labels [b]. With `mixed_labels` [b] and `mix` [b] an image counts for `labels` by
    its share `mix` and for `mixed_labels` by the rest (mixup, CutMix).
    """
    c = logits.shape[-1]
    target = jax.nn.one_hot(labels, c)
    if mixed_labels is not None and mix is not None:
        other = jax.nn.one_hot(mixed_labels, c)
        target = mix[:, None] * target + (1.0 - mix[:, None]) * other
    target = (1.0 - smoothing) * target + smoothing / c
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), target).mean()


def contrastive(features, labels, *, alpha: float = 0.4):
    """Equation 14: features [b, d], labels [b] -> a scalar.

        1/B² Σᵢ [ Σ_{yⱼ=yᵢ} (1 − cos(zᵢ, zⱼ)) + Σ_{yⱼ≠yᵢ} max(cos(zᵢ, zⱼ) − α, 0) ]

    Only different-class pairs more alike than `alpha` count. Under a sharded batch the product
    below spans all devices, so the loss is that of the whole batch.
    """
    features = features.astype(jnp.float32)
    norms = jnp.sqrt(jnp.maximum(jnp.sum(features**2, axis=-1, keepdims=True), 1e-12))
    cosine = (features / norms) @ (features / norms).T
    same = labels[:, None] == labels[None, :]
    pairs = jnp.where(same, 1.0 - cosine, jnp.maximum(cosine - alpha, 0.0))
    return pairs.mean()


def reconstruction(prediction, target, hidden):
    """Mean squared error of what is hidden: all [b, n, p], `hidden` 0 or 1 -> a scalar.

    The mean is over the hidden numbers of the whole batch; what was shown counts for nothing.
    """
    hidden = hidden.astype(jnp.float32)
    return (jnp.square(prediction - target) * hidden).sum() / hidden.sum()
