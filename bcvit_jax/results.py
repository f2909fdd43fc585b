"""What `predict` writes row by row: results.csv, and results.bad.csv of what can't be read."""

import contextlib
import csv
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple


class Prediction(NamedTuple):
    """One cell."""

    path: str
    image: Any
    """The network's input, uint8 [s, s, 3]."""
    probabilities: Any
    """float32 [c]."""
    kept: Any
    """int32 [k]."""


class Bad(NamedTuple):
    """An image that can't be read."""

    path: str
    reason: str


def entropy(probabilities) -> float:
    """−Σ p·ln p in nats; ln c where nothing is known."""
    import numpy as np

    return float(-(probabilities * np.log(np.maximum(probabilities, 1e-30))).sum())


class Results:
    """results.csv, results.bad.csv and the counts, written row by row beside and renamed."""

    def __init__(self, out: Path, class_names: tuple[str, ...], top: int, threshold: float):
        self.out, self.class_names, self.threshold = out, class_names, threshold
        self.top = min(top, len(class_names))
        self.bad_file = out.with_suffix(".bad.csv")
        self.counts: Counter[str] = Counter()
        self.unidentified, self.bad = 0, 0

    def __enter__(self):
        self._stack = contextlib.ExitStack()
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self._rows = self._open(self.out)
        ranks = [f"top{i + 1}" for i in range(1, self.top)]
        self._rows.writerow(
            [
                *("path", "predicted", "probability", "unidentified", "entropy", *ranks),
                *(f"p_{name}" for name in self.class_names),
                "kept",
            ]
        )
        self._bad_rows = None
        return self

    def _open(self, path: Path):
        partial = path.with_name(path.name + ".partial")
        file = self._stack.enter_context(partial.open("w", newline="", encoding="utf-8"))
        return csv.writer(file, lineterminator="\n")

    def add(self, item: Prediction | Bad) -> None:
        if isinstance(item, Bad):
            if self._bad_rows is None:
                self._bad_rows = self._open(self.bad_file)
                self._bad_rows.writerow(["path", "reason"])
            self._bad_rows.writerow(item)
            self.bad += 1
            return
        p = item.probabilities
        order = (-p).argsort(kind="stable")[: self.top]
        best = float(p[order[0]])
        doubtful = best < self.threshold
        self.counts[self.class_names[order[0]]] += 1
        self.unidentified += doubtful
        self._rows.writerow(
            [
                *(item.path, self.class_names[order[0]], f"{best:.9g}", int(doubtful)),
                f"{entropy(p):.6g}",
                *(self.class_names[i] for i in order[1:]),
                *(f"{x:.9g}" for x in p),
                " ".join(map(str, item.kept)),
            ]
        )

    def __exit__(self, kind, *_):
        self._stack.close()
        for path in (self.out, self.bad_file):
            partial = path.with_name(path.name + ".partial")
            if partial.exists():
                partial.unlink() if kind else os.replace(partial, path)
