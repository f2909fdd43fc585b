"""Whether probabilities mean what they say, and what is gained by leaving doubtful cells aside.

The confidence of a prediction is its largest probability. It is calibrated where, of all
predictions made with confidence p, a share p is right.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

BINS = 15
TEMPERATURES = (0.1, 10.0)
"""Bounds of a fitted temperature; without any mistake the best one would be 0."""
_LEAST = float(np.finfo(np.float32).tiny)  # a saved probability may have become 0


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> dict[str, Any]:
    """Confidence and accuracy in equal bins (low, high] of [0, 1], and their expected difference.

    confidence: float [n]; correct: bool [n]. Returns low, high, n [bins], confidence and accuracy
    (means of the bin, NaN where it is empty), and

        ece = Σ_bins n_bin / n · |accuracy − confidence|

    Naeini et al., AAAI 2015; fifteen bins as Guo et al., arXiv 1706.04599. NaN without images.
    """
    edges = np.linspace(0, 1, bins + 1)
    place = np.searchsorted(edges[1:-1], confidence)
    n = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, part, minlength=bins) for part in (confidence, correct)]
    means = [np.divide(part, n, out=np.full(bins, np.nan), where=n > 0) for part in sums]
    gap = np.abs(sums[1] - sums[0]).sum()
    return {
        "low": edges[:-1],
        "high": edges[1:],
        "n": n,
        "confidence": means[0],
        "accuracy": means[1],
        "ece": float(gap / n.sum()) if n.sum() else float("nan"),
    }


def temper(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax of (logits / temperature), float64 [n, c], from the softmax of the logits.

    Logarithms of probabilities are logits but for a constant, which the softmax ignores.
    """
    logits = np.log(np.maximum(probabilities.astype(np.float64), _LEAST)) / temperature
    logits -= logits.max(axis=-1, keepdims=True)
    shares = np.exp(logits)
    return shares / shares.sum(axis=-1, keepdims=True)


def log_loss(probabilities: np.ndarray, label: np.ndarray) -> float:
    """Mean of −ln(probability of the true class); NaN without images."""
    own = probabilities[np.arange(len(label)), label].astype(np.float64)
    return float(-np.log(np.maximum(own, _LEAST)).mean()) if len(label) else float("nan")


def fit_temperature(probabilities: np.ndarray, label: np.ndarray) -> float:
    """The temperature of least log loss on these images: above 1 the network was too sure.

    Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, section 4.2. Fit it on
    images that the figures are not about. 1 without images.
    """
    if not len(label):
        return 1.0
    # The loss is convex in 1 / T, so it has one minimum in ln T too.
    found = minimize_scalar(
        lambda log: log_loss(temper(probabilities, float(np.exp(log))), label),
        bounds=np.log(TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-5},
    )
    return float(np.exp(found.x))  # pyright: ignore[reportAttributeAccessIssue]


class RiskCoverage(NamedTuple):
    """What is accepted at each threshold, the strictest first; arrays [t].

    Geifman & El-Yaniv, arXiv 1705.08500: coverage is the share of images whose confidence reaches
    the threshold, risk the share of errors among them, 1 − accuracy.
    """

    threshold: np.ndarray
    accepted: np.ndarray
    errors: np.ndarray
    coverage: np.ndarray
    accuracy: np.ndarray


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> RiskCoverage:
    """One point a distinct confidence: images of equal confidence are accepted together."""
    order = np.argsort(-confidence, kind="stable")
    confidence, correct = confidence[order], correct[order]
    last = np.flatnonzero(np.append(confidence[1:] != confidence[:-1], True)[: len(order)])
    accepted = last + 1
    errors = np.cumsum(~correct)[last]
    return RiskCoverage(
        confidence[last],
        accepted,
        errors,
        accepted / max(len(order), 1),
        (accepted - errors) / np.maximum(accepted, 1),
    )


def best_threshold(curve: RiskCoverage, accuracy: float) -> int | None:
    """Place on the curve of the largest coverage with at least this accuracy; None if none has."""
    reached = np.flatnonzero(curve.accuracy >= accuracy)
    return int(reached[-1]) if len(reached) else None
