"""Equations 12 to 14 against values by hand and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from bcvit_jax.losses import contrastive, cross_entropy

pytestmark = pytest.mark.usefixtures("strict_ranks")

HALF = 0.5**0.5  # the cosine of 45°


value_and_gradient = jax.jit(jax.value_and_grad(contrastive), static_argnames="alpha")


def random_problem(b: int, d: int, c: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, (b, d)).astype(np.float32), rng.integers(0, c, b).astype(np.int32)


# ------------------------------------------------------------------------- equation 14


def plain_contrastive(features: torch.Tensor, labels, alpha: float) -> torch.Tensor:
    """Equation 14 as it is printed: two loops over the batch."""
    b = len(labels)
    total = features.new_zeros(())
    for i in range(b):
        for j in range(b):
            cosine = torch.nn.functional.cosine_similarity(features[i], features[j], dim=0)
            if labels[i] == labels[j]:
                total = total + (1 - cosine)
            else:
                total = total + torch.clamp(cosine - alpha, min=0)
    return total / b**2


def test_contrastive_loss_by_hand():
    features = jnp.asarray([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [-1.0, 0.0]])
    labels = jnp.asarray([0, 0, 1, 1])
    # Cosines: 01: 0, 02: √½, 03: −1, 12: √½, 13: 0, 23: −√½; a vector with itself: 1.
    same = (1 - 0) + (1 + HALF)
    different = (HALF - 0.4) + 0 + (HALF - 0.4) + 0
    expected = 2 * (same + different) / 16
    assert float(contrastive(features, labels)) == pytest.approx(expected, abs=1e-6)
    assert expected == pytest.approx(0.415165, abs=1e-6)


@pytest.mark.parametrize(
    ("b", "d", "c", "alpha"), [(9, 4, 3, 0.4), (6, 3, 2, 0.0), (5, 2, 5, -0.5)]
)
def test_contrastive_loss_and_its_gradient_are_pytorchs(b, d, c, alpha):
    features, labels = random_problem(b, d, c)
    value, gradient = value_and_gradient(features, labels, alpha=alpha)
    theirs = torch.tensor(features, requires_grad=True)
    expected = plain_contrastive(theirs, labels, alpha)
    expected.backward()
    assert theirs.grad is not None
    np.testing.assert_allclose(value, expected.item(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("degrees", "expected"), [(60.0, 0.5 - 0.4), (66.43, 0.0), (90.0, 0.0), (180.0, 0.0)]
)
def test_different_cells_count_only_above_alpha(degrees, expected):
    """cos 66.43° is just below 0.4."""
    angle = np.deg2rad(degrees)
    features = jnp.asarray([[1.0, 0.0], [np.cos(angle), np.sin(angle)]], jnp.float32)
    labels = jnp.asarray([0, 1])
    value, gradient = value_and_gradient(features, labels)
    assert float(value) == pytest.approx(2 * expected / 4, abs=1e-6)
    assert bool((jnp.abs(gradient).max() > 1e-3) == (expected > 0))


def test_a_batch_of_one_class_only_pulls():
    features, _ = random_problem(7, 5, 1)
    labels = jnp.zeros(7, jnp.int32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = 1 - (unit @ unit.T).mean()
    assert float(contrastive(features, labels)) == pytest.approx(expected, abs=1e-6)
    alike = jnp.tile(jnp.asarray(features[:1]), (7, 1))
    assert float(contrastive(alike, labels)) == pytest.approx(0.0, abs=1e-6)


def test_only_directions_and_the_partition_matter():
    features, labels = random_problem(8, 4, 3)
    value = float(contrastive(features, labels))
    lengths = np.geomspace(0.01, 100, 8).astype(np.float32)[:, None]
    order = np.random.default_rng(1).permutation(8)
    assert float(contrastive(features * lengths, labels)) == pytest.approx(value, abs=1e-6)
    assert float(contrastive(features, 7 - labels)) == pytest.approx(value, abs=1e-6)
    assert float(contrastive(features[order], labels[order])) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-4, 1e15])
def test_the_gradient_is_finite_for_features_of_any_length(length):
    features, labels = random_problem(4, 3, 2)
    features[1] *= length
    value, gradient = value_and_gradient(features, labels)
    assert bool(jnp.isfinite(value))
    assert bool(jnp.isfinite(gradient).all())


def test_the_loss_of_the_batch_is_not_the_mean_of_its_halves():
    features, labels = random_problem(8, 4, 3)
    whole = float(contrastive(features, labels))
    halves = [float(contrastive(features[i::2], labels[i::2])) for i in range(2)]
    assert abs(whole - np.mean(halves)) > 1e-3


def test_bfloat16_features_are_compared_in_float32():
    features, labels = random_problem(8, 4, 3)
    value = contrastive(jnp.asarray(features, jnp.bfloat16), labels)
    assert value.dtype == jnp.float32
    assert float(value) == pytest.approx(float(contrastive(features, labels)), abs=1e-2)


# ------------------------------------------------------------------------- equation 13


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.asarray([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    labels = jnp.asarray([0, 1])
    assert float(cross_entropy(logits, labels)) == pytest.approx((np.log(2) + np.log(10)) / 2)
    # Mixed: the first image is class 0 by 3/4 and class 2 by 1/4; the second is unmixed.
    mixed = cross_entropy(
        logits, labels, mixed_labels=jnp.asarray([2, 0]), mix=jnp.asarray([0.75, 1.0])
    )
    expected = (0.75 * np.log(2) + 0.25 * np.log(4) + np.log(10)) / 2
    assert float(mixed) == pytest.approx(expected)
    assert float(cross_entropy(logits * 0, labels, smoothing=0.3)) == pytest.approx(np.log(3))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_and_its_gradient_are_pytorchs(smoothing):
    logits, labels = random_problem(12, 10, 10)
    logits *= 3
    value, gradient = jax.jit(
        jax.value_and_grad(lambda x: cross_entropy(x, jnp.asarray(labels), smoothing=smoothing))
    )(logits)
    theirs = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        theirs, torch.tensor(labels).long(), label_smoothing=smoothing
    )
    expected.backward()
    assert theirs.grad is not None
    np.testing.assert_allclose(value, expected.item(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=0, atol=1e-6)


def test_mixed_cross_entropy_is_pytorchs_of_soft_labels():
    logits, labels = random_problem(12, 10, 10)
    rng = np.random.default_rng(3)
    other, mix = rng.integers(0, 10, 12), rng.uniform(0, 1, 12).astype(np.float32)
    one_hot = np.eye(10, dtype=np.float32)
    soft = mix[:, None] * one_hot[labels] + (1 - mix[:, None]) * one_hot[other]
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(soft), label_smoothing=0.1
    )
    value = cross_entropy(
        jnp.asarray(logits), labels, smoothing=0.1, mixed_labels=jnp.asarray(other), mix=mix
    )
    np.testing.assert_allclose(value, expected.item(), rtol=0, atol=1e-6)


def test_large_logits_stay_finite():
    logits = jnp.asarray([[1e4, -1e4, 0.0]])
    value, gradient = jax.value_and_grad(cross_entropy)(logits, jnp.asarray([1]))
    assert float(value) == pytest.approx(2e4)
    np.testing.assert_allclose(gradient, [[1.0, -1.0, 0.0]], atol=1e-6)
