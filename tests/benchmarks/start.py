"""Seconds from the command to the first train step: `python -m tests.benchmarks.start`.

`python -m bcvit_jax.main --config=configs/base.py` on pictures of pbc10's size, once with an empty
cache of compiled programs and once with what the first run left there: until the run says that its
first step begins. Beside it, how soon `--help` and `import bcvit_jax` are done, medians of five.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bcvit_jax.files import write_whole
from bcvit_jax.summary import aligned
from tests.benchmarks.__main__ import cells

_MAIN = [sys.executable, "-m", "bcvit_jax.main"]


def first_step(config: Sequence[str], workdir: Path, programs: Path) -> float:
    """Seconds from the command to the begin of the first step, with compiled `programs` kept there.

    The run is stopped there. RuntimeError with the run's last words if it ends before.
    """
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(programs)}
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        run = subprocess.Popen(
            [*_MAIN, *config, f"--workdir={workdir}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        assert run.stdout is not None
        try:
            for line in run.stdout:
                if line.endswith(b" begins\n"):
                    return time.perf_counter() - start
            run.wait()
            errors.seek(0)
            words = errors.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"the run ended before its first step: {words[-1:]}")
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            run.stdout.close()


def seconds_of(command: Sequence[str], times: int = 5) -> float:
    """Median seconds of a command, which must succeed."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.start", description=__doc__)
    parser.add_argument("--config", default="configs/base.py", help="config file (ViT-B)")
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--json", metavar="FILE", help="write the seconds there too")
    chosen = parser.parse_args()
    found = {
        "--help": seconds_of([*_MAIN, "--help"]),
        "import bcvit_jax": seconds_of([sys.executable, "-c", "import bcvit_jax"]),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = [f"--config={chosen.config}", f"--config.data.path={cells(folder)}"]
        config += [f"--config.batch_size={chosen.batch}"]
        for name in ("empty cache", "with the cache"):
            work = folder / name.replace(" ", "_")
            found[f"first step, {name}"] = first_step(config, work, folder / "programs")
    lines = [["seconds", "from the command to"]]
    lines += [[f"{seconds:.2f}", name] for name, seconds in found.items()]
    print("\n".join(aligned(lines)))
    if chosen.json:
        results = [{"name": n, "seconds": round(s, 3)} for n, s in found.items()]
        write_whole(Path(chosen.json), (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
