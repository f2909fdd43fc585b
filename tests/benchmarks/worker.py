"""One side of one row in a process of its own: `python -m tests.benchmarks.worker JSON`.

It reads commands, a line each, and answers each with a line of JSON: `run N` → seconds of N steps,
`memory` → peak bytes above what the imports took, `rate` → the library's matrix products a second.
"""

import ctypes
import json
import sys
import time
from pathlib import Path

from tests.benchmarks.jobs import Shape


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def forget_peak() -> None:
    """Free memory goes back to the system, and the peak is measured from here on."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def make(side: str, job: str, shape: Shape, extra: dict):
    """The step of a job as a function without arguments."""
    if side == "ours":
        from tests.benchmarks import ours

        return getattr(ours, job)(shape, **extra)
    from tests.benchmarks import peers

    if job == "read":
        from tests.benchmarks.jobs import cell_images

        return peers.read(shape, cell_images())
    return getattr(peers, job)(shape)


def main(side: str, job: str, shape: dict, extra: dict) -> None:
    from absl import flags

    flags.FLAGS(sys.argv[:1])
    if side == "ours":
        import jax
        from flax import nnx  # noqa: F401

        import bcvit_jax.program  # noqa: F401

        jax.devices()
    else:
        import tests.benchmarks.peers  # noqa: F401
    imported = resident("VmRSS")
    step = make(side, job, Shape(**shape), extra)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        command, *words = line.split()
        if command == "run":
            seconds = []
            for _ in range(int(words[0])):
                start = time.perf_counter()
                step()
                seconds.append(time.perf_counter() - start)
            answer = seconds
        elif command == "memory":
            forget_peak()
            for _ in range(3):
                step()
            answer = resident("VmHWM") - imported
        else:
            from tests.benchmarks import limit

            answer = {"ours": limit.jax_rate, "peer": limit.torch_rate}[side]()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
