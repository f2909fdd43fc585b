"""Which held-out cells a figure shows: typical ones, or those that a person names."""

import difflib
from collections.abc import Sequence

import numpy as np

from bcvit_jax.dataset import CellDataset
from bcvit_jax.errors import UserError

MOST = 24
"""Cells that a page holds."""


def chosen(
    asked: Sequence[str],
    dataset: CellDataset,
    fold: str,
    predicted: np.ndarray,
    confidence: np.ndarray,
) -> list[int]:
    """Rows of the fold that --images asks for: a number of cells, or their sources.

    predicted, confidence: [n], of every image of the fold. Errors: UserError on a number that no
    page holds, or a source that the fold has not.
    """
    if len(asked) == 1 and asked[0].lstrip("+-").isdigit():
        count = int(asked[0])
        if not 1 <= count <= MOST:
            raise UserError(f"--images is {count}; it must be 1 to {MOST} cells, or their sources")
        return typical(dataset.labels[fold], predicted, confidence, count)
    if len(asked) > MOST:
        raise UserError(f"--images names {len(asked)} cells; a page holds {MOST}")
    rows = {str(source): row for row, source in enumerate(dataset.sources[fold])}
    for source in asked:
        if source not in rows:
            elsewhere = [name for name in dataset.folds if source in dataset.sources[name]]
            near = difflib.get_close_matches(source, rows, n=1)
            mend = f"did you mean {near[0]}?" if near else "see the fold's predictions.csv"
            if elsewhere:
                mend = f"it is in {elsewhere[0]}: name one of {fold}, or --fold {elsewhere[0]}"
            raise UserError(f"--images: {source} is no image of {fold}; {mend}")
    return [rows[source] for source in asked]


def typical(
    labels: np.ndarray, predicted: np.ndarray, confidence: np.ndarray, count: int
) -> list[int]:
    """`count` rows: of classes that have mistakes, spread evenly, one recognised and one mistaken.

    Each is the one of median confidence among its like, so neither the best nor the worst. Where
    there are too few mistakes, recognised cells of the other classes follow, then whatever is left.
    """
    right = labels == predicted
    classes = np.unique(labels)
    mistaken = [label for label in classes if (~right & (labels == label)).any()]
    pairs = min(count // 2, len(mistaken))
    spread = [mistaken[i] for i in np.linspace(0, len(mistaken) - 1, pairs).round().astype(int)]
    rows: list[int] = []
    for label in [*spread, *(label for label in classes if label not in spread)]:
        for of in (right, ~right) if label in spread else (right,):
            own = np.flatnonzero(of & (labels == label))
            if len(own):
                rows.append(int(own[np.argsort(confidence[own], kind="stable")[len(own) // 2]]))
    rows += [row for row in range(len(labels)) if row not in rows]
    return rows[:count]
