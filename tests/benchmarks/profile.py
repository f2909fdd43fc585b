"""Where a train step goes, by operation: `python -m tests.benchmarks.profile [--size vit_s]`.

Milliseconds of every kind of compiled operation in a step, longest first, from jax's profiler. On a
CPU operations run side by side, so that their sum is more than the step's own time.
"""

import argparse
import collections
import gzip
import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bcvit_jax.runtime import settings
from bcvit_jax.summary import aligned
from tests.benchmarks.jobs import SIZES, Shape, random_batch

_OPERATION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = ([\w\[\],]+)\S* .*$", re.M)


def kinds(program: str) -> dict[str, str]:
    """Operations of a compiled program in text: name → what it makes, and of which source."""
    found = {}
    for match in _OPERATION.finditer(program):
        source = re.search(r'op_name="[^"]*?([^/"]*)"', match[0])
        name = re.sub(r"[.\d]+$", "", match[1])
        found[match[1]] = f"{name} {match[2]} {source[1] if source else ''}".rstrip()
    return found


def profile(shape: Shape, steps: int = 3) -> tuple[float, dict[str, tuple[float, float]]]:
    """(Milliseconds of a step, kind of operation → (milliseconds, how often) in a step)."""
    import jax

    from bcvit_jax.program import compiled, fresh_state
    from tests.benchmarks import ours

    made, key, batch = ours.program(shape), jax.random.key(0), random_batch(shape)
    state = fresh_state(made, key)
    state = state._replace(params=made.stack(state.params))
    step = compiled(made.train_step, state, batch, key)
    known = kinds(step.as_text())  # pyright: ignore[reportFunctionMemberAccess]
    spent, count = collections.Counter(), collections.Counter()

    def run(number: int) -> list[float]:
        nonlocal state
        seconds = []
        for _ in range(number):
            start = time.perf_counter()
            state, metrics = step(state, batch, key)
            float(metrics["loss"])
            seconds.append(time.perf_counter() - start)
        return seconds

    run(2)
    usual = statistics.median(run(steps)) * 1e3
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run(steps)
        (path,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    for event in events:
        name = event.get("args", {}).get("hlo_op")
        if event.get("ph") == "X" and name:
            kind = known.get(name, name)
            spent[kind] += event["dur"]
            count[kind] += 1
    return usual, {k: (t / 1e3 / steps, count[k] / steps) for k, t in spent.most_common()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.profile", description=__doc__)
    parser.add_argument("--size", default="vit_s", choices=SIZES, help="of the network")
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--top", type=int, default=30, help="kinds to list")
    chosen = parser.parse_args()
    missing = settings(os.environ)
    if missing:
        command = [sys.executable, "-m", "tests.benchmarks.profile", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | missing)
    step, found = profile(Shape(chosen.size, chosen.batch, dtype=chosen.dtype))
    lines = [["ms a step", "times", "operation, array, source"]]
    listed = list(found.items())[: chosen.top]
    lines += [[f"{ms:.1f}", f"{times:.0f}", kind] for kind, (ms, times) in listed]
    rest = sum(ms for ms, _ in list(found.values())[chosen.top :])
    lines.append([f"{rest:.1f}", "", "all others"])
    print("\n".join(aligned(lines)))
    total = sum(ms for ms, _ in found.values())
    print(f"a step takes {step:.0f} ms; its operations, side by side, {total:.0f} ms")


if __name__ == "__main__":
    main()
