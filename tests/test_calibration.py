"""Calibration against scikit-learn and hand-counted cases; thresholds against brute force."""

from typing import Any

import numpy as np
import pytest
from sklearn import metrics
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator

from bcvit_jax.calibration import (
    best_threshold,
    fit_temperature,
    log_loss,
    reliability,
    risk_coverage,
    temper,
)


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def simulate(n: int, classes: int = 10, temperature: float = 1.0, seed: int = 0):
    """Logits that are `temperature` times too large, and labels drawn as the right ones say."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, classes))
    drawn = (softmax(logits).cumsum(axis=-1) < rng.random((n, 1))).sum(axis=-1)
    return temperature * logits, np.minimum(drawn, classes - 1)


def test_two_bins_by_hand():
    confidence = np.array([0.3, 0.5, 0.9, 0.7, 1.0])
    correct = np.array([True, False, True, True, False])
    found = reliability(confidence, correct, bins=2)
    assert found["n"].tolist() == [2, 3]  # 0.5 belongs to the lower bin
    assert found["confidence"] == pytest.approx([0.4, 2.6 / 3])
    assert found["accuracy"] == pytest.approx([0.5, 2 / 3])
    assert found["ece"] == pytest.approx((2 * 0.1 + 3 * 0.2) / 5)


def test_bins_and_error_equal_scikit_learn():
    logits, label = simulate(5000, temperature=2.0)
    probabilities = softmax(logits)
    confidence, correct = probabilities.max(axis=-1), probabilities.argmax(axis=-1) == label
    found = reliability(confidence, correct)
    accuracy, mean = calibration_curve(correct, confidence, n_bins=15)
    held = found["n"] > 0
    np.testing.assert_allclose(found["accuracy"][held], accuracy)
    np.testing.assert_allclose(found["confidence"][held], mean)
    assert found["ece"] == pytest.approx(np.abs(accuracy - mean) @ found["n"][held] / 5000)
    assert log_loss(probabilities, label) == pytest.approx(metrics.log_loss(label, probabilities))


def test_nothing_at_all():
    none = np.zeros((0, 3))
    assert np.isnan(reliability(none[:, 0], none[:, 0] > 0)["ece"])
    assert np.isnan(log_loss(none, np.zeros(0, int))) and fit_temperature(none, none[:, 0]) == 1
    curve = risk_coverage(none[:, 0], none[:, 0] > 0)
    assert curve.threshold.shape == (0,) and best_threshold(curve, 0.5) is None


def test_tempering_probabilities_is_dividing_logits():
    logits, _ = simulate(50, temperature=3.0)
    saved = softmax(logits).astype(np.float32)
    np.testing.assert_allclose(temper(saved, 2.5), softmax(logits / 2.5), rtol=1e-4)
    np.testing.assert_allclose(temper(saved, 1.0), saved, rtol=1e-5)
    certain = temper(np.array([[1.0, 0.0]], np.float32), 2.0)
    assert np.isfinite(certain).all() and certain[0, 0] == pytest.approx(1)


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose logits are its input."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, X):
        return X

    def predict(self, X):
        return self.classes_[X.argmax(axis=-1)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found_and_is_that_of_scikit_learn(temperature):
    logits, label = simulate(4000, temperature=temperature)
    found = fit_temperature(softmax(logits), label)
    assert found == pytest.approx(temperature, rel=0.06)
    fitted: Any = CalibratedClassifierCV(
        FrozenEstimator(Given().fit(logits, label)), method="temperature"
    ).fit(logits, label)
    (inner,) = fitted.calibrated_classifiers_
    assert found == pytest.approx(1 / inner.calibrators[0].beta_, rel=1e-3)


def test_a_temperature_of_other_images_mends_overconfidence():
    logits, label = simulate(6000, temperature=2.5)
    probabilities = softmax(logits)
    first, second = slice(0, 3000), slice(3000, None)
    mended = temper(probabilities[second], fit_temperature(probabilities[first], label[first]))

    def ece(shares):
        return reliability(shares.max(axis=-1), shares.argmax(axis=-1) == label[second])["ece"]

    assert ece(probabilities[second]) > 0.15
    assert ece(mended) < 0.04  # of 3,000 images in 15 bins, chance alone makes about 0.02
    assert log_loss(mended, label[second]) < log_loss(probabilities[second], label[second])


def test_without_a_mistake_the_temperature_stays_in_its_bounds():
    probabilities = np.tile([[0.9, 0.1]], (20, 1))
    assert fit_temperature(probabilities, np.zeros(20, int)) == pytest.approx(0.1, rel=1e-3)
    assert fit_temperature(probabilities, np.ones(20, int)) == pytest.approx(10, rel=1e-3)


def test_risk_and_coverage_by_hand():
    confidence = np.array([0.6, 0.9, 0.8, 0.8, 0.5])
    correct = np.array([False, True, True, False, True])
    curve = risk_coverage(confidence, correct)
    assert curve.threshold.tolist() == [0.9, 0.8, 0.6, 0.5]
    assert curve.accepted.tolist() == [1, 3, 4, 5]  # both of 0.8 come together
    assert curve.errors.tolist() == [0, 1, 2, 2]
    assert curve.coverage.tolist() == [0.2, 0.6, 0.8, 1.0]
    assert curve.accuracy == pytest.approx([1, 2 / 3, 1 / 2, 3 / 5])
    assert best_threshold(curve, 0.6) == 3  # the accuracy rises again at the end
    assert best_threshold(curve, 0.65) == 1 and best_threshold(curve, 0.7) == 0


@pytest.mark.parametrize("seed", range(5))
def test_what_must_be_monotone_is(seed):
    rng = np.random.default_rng(seed)
    confidence = rng.random(300).round(2)
    correct = rng.random(300) < confidence
    curve = risk_coverage(confidence, correct)
    assert (np.diff(curve.threshold) < 0).all() and (np.diff(curve.accepted) > 0).all()
    assert (np.diff(curve.errors) >= 0).all()
    assert curve.coverage[-1] == 1 and curve.accuracy[-1] == correct.mean()
    perfect = risk_coverage(np.where(correct, 0.9, 0.1) + rng.random(300) / 100, correct)
    assert (np.diff(perfect.errors / perfect.accepted) >= 0).all()
    last = 1.0
    for accuracy in np.linspace(0.3, 1, 15):
        place = best_threshold(curve, accuracy)
        kept = [confidence >= t for t in np.unique(confidence)]
        reached = [k.mean() for k in kept if correct[k].mean() >= accuracy]
        coverage = 0.0 if place is None else curve.coverage[place]
        assert coverage == max(reached, default=0.0) <= last
        last = coverage
