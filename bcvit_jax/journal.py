"""What a training leaves behind as it goes: metrics.jsonl, TensorBoard, the progress line."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from bcvit_jax.files import write_whole


class Journal:
    """metrics.jsonl and TensorBoard of a work folder; lines after a restored step are cut off."""

    def __init__(self, workdir: Path):
        self.path = workdir / "metrics.jsonl"
        self.workdir = workdir
        self.active = jax.process_index() == 0
        self.boards: dict[str, Any] = {}

    def start(self, fold: str, step: int) -> None:
        """Forget what was logged of `fold` after `step`."""
        if not self.active:
            return
        if self.path.exists():
            lines = self.path.read_text("utf-8").splitlines(keepends=True)
            kept = [line for line in lines if _belongs(line, fold, step)]
            if len(kept) != len(lines):
                write_whole(self.path, "".join(kept).encode())
        with _no_module("torch"):  # tensorboardX would load it, seconds, and numbers need none
            from tensorboardX import SummaryWriter

        folder = str(self.workdir / "tensorboard" / fold)
        self.boards[fold] = SummaryWriter(folder, purge_step=step + 1 if step else None)

    def write(self, fold: str, step: int, values: Mapping[str, float]) -> None:
        """One line and one point a value."""
        if not self.active:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"fold": fold, "step": step, **values}) + "\n")
        for name, value in values.items():
            self.boards[fold].add_scalar(name, value, step)

    def flush(self) -> None:
        """Hand everything to the system, so that a killed run has no gap before its checkpoint."""
        for board in self.boards.values():
            board.flush()

    def close(self) -> None:
        for board in self.boards.values():
            board.close()


@contextlib.contextmanager
def _no_module(name: str) -> Iterator[None]:
    """Within, an `import` of a module that was not imported before says that there is none."""
    known = name in sys.modules
    sys.modules.setdefault(name, None)  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        if not known:
            del sys.modules[name]


def _belongs(line: str, fold: str, step: int) -> bool:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return False  # half a line, written when the process was killed
    return entry["fold"] != fold or entry["step"] <= step


def progress(name: str, total: int | None, unit: str, initial: int = 0) -> tqdm:
    """A bar with speed and time left; where no terminal shows it, a line every half minute."""
    if sys.stderr.isatty():
        return tqdm(
            desc=name, total=total, initial=initial, unit=unit, mininterval=0.5, dynamic_ncols=True
        )
    return tqdm(
        desc=name,
        total=total,
        initial=initial,
        unit=unit,
        disable=jax.process_index() != 0,
        mininterval=30,
        maxinterval=60,
        file=_Lines(),
        bar_format="{desc}: {n_fmt} of {total_fmt} {unit}, {rate_fmt}, {elapsed} gone, "
        "{remaining} left{postfix}",
    )


class _Lines:
    """Standard error for a tqdm bar: a line feed where a terminal would go back."""

    def write(self, text: str) -> None:
        if text := text.strip():
            print(text, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()
