"""Where a run's time goes: train steps, and all that keeps the devices from them."""

import contextlib
import time
from collections.abc import Iterator, Mapping

PARTS = {
    "step": "train steps",
    "compile": "starting and compiling",
    "input": "waiting for input",
    "checkpoint": "checkpoints",
    "evaluation": "evaluation",
}


class Goodput:
    """A clock that counts seconds by `PARTS`."""

    def __init__(self):
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._part: str | None = None
        self._since = 0.0

    @contextlib.contextmanager
    def spend(self, part: str) -> Iterator[None]:
        """The time within counts as `part`, and as no part that is around it."""
        around = self._part
        self._switch(part)
        try:
            yield
        finally:
            self._switch(around)

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count what former processes of the run have spent."""
        for part, gone in seconds.items():
            self._seconds[part] += gone

    def move(self, seconds: float, source: str, target: str) -> None:
        """Let `seconds` that counted as `source` count as `target`."""
        self._seconds[source] -= seconds
        self._seconds[target] += seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by part, up to now."""
        self._switch(self._part)
        return dict(self._seconds)

    @property
    def training(self) -> float:
        """Seconds of all but the evaluation."""
        return sum(gone for part, gone in self.seconds.items() if part != "evaluation")

    def __str__(self) -> str:
        """`31.2 min: train steps 96.1 %, compiling 1.2 %, …`."""
        seconds = self.seconds
        total = sum(seconds.values()) or 1.0
        shares = (f"{name} {100 * seconds[part] / total:.1f} %" for part, name in PARTS.items())
        return f"{total / 60:.1f} min: {', '.join(shares)}"

    def _switch(self, part: str | None) -> None:
        now = time.perf_counter()
        if self._part is not None:
            self._seconds[self._part] += now - self._since
        self._part, self._since = part, now
