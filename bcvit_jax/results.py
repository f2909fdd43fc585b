"""What `predict` writes row by row: results.csv, and results.bad.csv of what can't be read."""

import contextlib
import csv
import os
import sys
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
    """results.csv, results.bad.csv and the counts, written row by row beside and renamed.

    Where the work ends early, the rows so far stay beside, as results.csv.partial, which is told.
    Bytes of a file name that are no UTF-8 are escaped. Errors: OSError, of a .partial file too
    that is there already.
    """

    def __init__(self, out: Path, class_names: tuple[str, ...], top: int, threshold: float):
        self.out, self.class_names, self.threshold = out, class_names, threshold
        self.top = min(top, len(class_names))
        self.bad_file = out.with_suffix(".bad.csv")
        self.counts: Counter[str] = Counter()
        self.unidentified_counts: Counter[str] = Counter()
        self.bad = 0

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

    @property
    def unidentified(self) -> int:
        return sum(self.unidentified_counts.values())

    def _open(self, path: Path):
        file = _partial(path).open("x", newline="", encoding="utf-8", errors="backslashreplace")
        return csv.writer(self._stack.enter_context(file), lineterminator="\n")

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
        self.unidentified_counts[self.class_names[order[0]]] += doubtful
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
        whole = False
        try:
            self._stack.close()  # writes the last rows, for which a disk may be too full
            whole = kind is None
        finally:
            partials = {path: _partial(path) for path in (self.out, self.bad_file)}
            partials = {path: partial for path, partial in partials.items() if partial.exists()}
            if whole:
                for path, partial in partials.items():
                    os.replace(partial, path)
            elif rows := sum(self.counts.values()) + self.bad:
                named = ", ".join(map(str, partials.values()))
                print(f"the rows so far ({rows}) are kept in {named}", file=sys.stderr)
            else:
                for partial in partials.values():
                    partial.unlink()


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")
