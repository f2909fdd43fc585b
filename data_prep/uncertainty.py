"""Which unlabelled images a detector would learn most from: pure functions of what it found.

Scores near 0.5 are doubtful (uncertainty sampling, Lewis and Gale 1994); boxes that move when the
image is mirrored are, too (consistency, Elezi et al. 2022, arXiv 2106.11921). Farthest-first
traversal keeps the choice diverse (Sener and Savarese 2018, arXiv 1708.00489).
"""

import random
from collections.abc import Sequence

import numpy as np

from data_prep.average_precision import overlaps
from data_prep.fields import Box

SEEN = 0.3  # score from which a box counts as seen


def doubt(boxes: Sequence[Box]) -> float:
    """Doubt 0 … 1 of the most doubtful box: 1 at score 0.5, 0 at 0 and 1; 0 without boxes."""
    return max((1.0 - abs(2.0 * (box.score or 0.0) - 1.0) for box in boxes), default=0.0)


def disagreement(boxes: Sequence[Box], others: Sequence[Box]) -> float:
    """How little two views of an image agree, 0 … 1: mean of 1 - best overlap over all boxes seen.

    A box that the other view has nothing for counts 1; two views without boxes agree.
    """
    one = [box for box in boxes if (box.score or 0.0) >= SEEN]
    two = [box for box in others if (box.score or 0.0) >= SEEN]
    if not one or not two:
        return float(bool(one) != bool(two))
    overlap = overlaps(one, two)
    best = np.concatenate([overlap.max(axis=1), overlap.max(axis=0)])
    return float(np.mean(1.0 - best))


def choose(
    worth: Sequence[float],
    features: np.ndarray,
    count: int,
    seed: int,
    at_random: float = 0.1,
    candidates: int = 3,
) -> list[int]:
    """Indices of `count` images: most by worth and diversity, a share of them at random.

    The images of greatest worth, `candidates` times as many as wanted, are thinned by
    farthest-first traversal over `features` [n, d] (rows of length 1), beginning with the
    worthiest. The random share is drawn from all the others, first, so that no image is without
    a chance. Where all are worth the same, this is a diverse choice at random.
    """
    rng = random.Random(seed)
    order = list(range(len(worth)))
    rng.shuffle(order)  # ties fall at random
    count = min(count, len(order))
    drawn = set(order[: round(count * at_random)])
    ranked = sorted((at for at in order if at not in drawn), key=lambda at: -worth[at])
    wanted = count - len(drawn)
    return [*farthest_first(ranked[: wanted * candidates], features, wanted), *sorted(drawn)]


def farthest_first(candidates: Sequence[int], features: np.ndarray, count: int) -> list[int]:
    """`count` of the candidates, each the farthest from those before it; the first comes first."""
    if not candidates or count < 1:
        return []
    rows = features[list(candidates)]
    chosen = [0]
    distance = 1.0 - rows @ rows[0]
    while len(chosen) < min(count, len(candidates)):
        distance[chosen] = -np.inf
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, 1.0 - rows @ rows[chosen[-1]])
    return [candidates[at] for at in chosen]
