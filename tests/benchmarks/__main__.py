"""Us beside PyTorch on this machine, A B A B: `python -m tests.benchmarks [--quick] [--json FILE]`.

Each side of a row is a process of its own; while one runs steps the other is stopped, so that none
of its threads spins or reads ahead. A ratio is ours / peer's rate of a pair (memory: bytes), so
more is better but for memory; low and high are the smallest and largest of the pairs.
"""

import argparse
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bcvit_jax.files import write_whole
from bcvit_jax.runtime import settings
from bcvit_jax.summary import aligned
from tests.benchmarks import limit
from tests.benchmarks.jobs import BASELINES, Shape


@dataclasses.dataclass(frozen=True)
class Row:
    """A comparison: our job and the peer's, on one shape."""

    name: str
    job: str
    peer_job: str
    shape: Shape
    pairs: int = 5
    steps: int = 2
    memory: str = ""
    """Name of the row of peak memory, where it is measured."""
    extra: str = ""
    """For input jobs: `decode` or `cache`."""


def rows(quick: bool) -> list[Row]:
    """The comparisons; `quick` is a few small ones."""
    if quick:
        small = Shape("vit_t", 4, side=112)
        return [
            Row("train/P1/vit_t_112/b4", "train", "train", small, 3, 5, "memory/P1/vit_t_112/b4"),
            Row("forward/P3/vit_t/b4", "forward_plain", "forward_plain", Shape("vit_t", 4), 3, 5),
            Row("input/P4/decode", "read", "read", Shape(batch=32, side=112), 3, 4, "", "decode"),
        ]
    found = []
    for size, batch, pairs in (("vit_s", 8, 5), ("vit_s", 16, 5), ("vit_b", 8, 3)):
        shape, tail = Shape(size, batch), f"{size}/b{batch}"
        for peer, job in (("P1", "train"), ("P2", "train_whole_maps")):
            memory = f"memory/{peer}/{tail}"
            found.append(Row(f"train/{peer}/{tail}", "train", job, shape, pairs, 2, memory))
        found.append(Row(f"forward/P1/{tail}", "forward", "forward", shape, pairs, 3))
        found.append(Row(f"forward/P3/{tail}", "forward_plain", "forward_plain", shape, pairs, 3))
    for size, batch, pairs in (("vit_s", 8, 5), ("vit_s", 16, 5), ("vit_b", 8, 3)):
        half, tail = Shape(size, batch, dtype="bfloat16"), f"bf16/P1/{size}/b{batch}"
        memory = f"memory/{tail}"
        found.append(Row(f"train/{tail}", "train", "train", half, pairs, 2, memory))
        found.append(Row(f"forward/{tail}", "forward", "forward", half, pairs, 3))
    for name in BASELINES:
        tail = f"cnn/{name}/b8"
        found.append(
            Row(f"train/{tail}", "train_cnn", "train_cnn", Shape(name), 3, 2, f"memory/{tail}")
        )
    crops = Shape(batch=32, side=112)
    found.append(Row("input/P4/decode", "read", "read", crops, 5, 16, "", "decode"))
    found.append(Row("input/P4/cache", "read", "read", crops, 5, 16, "", "cache"))
    return found


class Side:
    """A worker process; `ask` sends it a command and waits for the answer."""

    def __init__(self, side: str, job: str, shape: Shape, extra: dict[str, Any]):
        task = {"side": side, "job": job, "shape": dataclasses.asdict(shape), "extra": extra}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.worker", json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a group of its own, with its workers
            env=os.environ | (settings(os.environ) if side == "ours" else {}),
        )

    def __enter__(self):
        self.process.__enter__()
        self.read()
        os.killpg(self.process.pid, signal.SIGSTOP)
        return self

    def __exit__(self, *error):
        os.killpg(self.process.pid, signal.SIGCONT)
        self.process.__exit__(*error)  # closes its input, which is its sign to end, and waits

    def ask(self, command: str) -> Any:
        assert self.process.stdin
        os.killpg(self.process.pid, signal.SIGCONT)
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self.read()
        os.killpg(self.process.pid, signal.SIGSTOP)
        return answer

    def read(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a benchmark process ended with status {self.process.wait()}")
        return json.loads(line)


def measure(row: Row, folder: Path) -> list[dict[str, Any]]:
    """The result of one row, and of its memory."""
    extra: dict[str, Any] = {"folder": str(folder)} if row.job == "read" else {}
    if row.extra == "cache":
        extra["cache"] = str(folder / "cache")
    with (
        Side("ours", row.job, row.shape, extra) as ours,
        Side("peer", row.peer_job, row.shape, {}) as peer,
    ):
        rates: dict[str, list[float]] = {"ours": [], "peer": []}
        for worker in (ours, peer):
            worker.ask("run 2")  # compiles, and fills caches
        for _ in range(row.pairs):
            for name, worker in (("ours", ours), ("peer", peer)):
                seconds = worker.ask(f"run {row.steps + 1}")[1:]  # the first wakes up
                middle = sum(seconds) if row.job == "read" else statistics.median(seconds)
                images = row.shape.batch * (row.steps if row.job == "read" else 1)
                rates[name].append(images / middle)
        results = [result(row.name, rates, "images/s")]
        if row.job in ("train", "forward", "forward_plain") and row.shape.dtype == "float32":
            products = max(ours.ask("rate"), peer.ask("rate"), limit.numpy_rate())
            results[0]["limit_gflops"] = round(products / 1e9, 1)
            if row.job == "train":
                work = limit.products_of_a_step(row.shape, every_token=False) / row.shape.batch
                results[0]["share_of_limit"] = round(results[0]["ours"] * work / products, 3)
        if row.memory:
            peaks = {n: [w.ask("memory") / 2**20] for n, w in (("ours", ours), ("peer", peer))}
            results.append(result(row.memory, peaks, "MiB"))
    return results


def result(name: str, values: dict[str, list[float]], unit: str) -> dict[str, Any]:
    """Medians, and the median, smallest and largest ratio of the pairs."""
    ratios = [a / b for a, b in zip(values["ours"], values["peer"], strict=True)]
    return {
        "name": name,
        "ours": round(statistics.median(values["ours"]), 3),
        "peer": round(statistics.median(values["peer"]), 3),
        "ratio": round(statistics.median(ratios), 3),
        "low": round(min(ratios), 3),
        "high": round(max(ratios), 3),
        "unit": unit,
    }


def cells(folder: Path) -> Path:
    """A data set of the images that input jobs read, built as a user would."""
    from tests.benchmarks.jobs import cell_images

    for place, content in enumerate(cell_images()):
        path = folder / "tree" / f"{'AB'[place % 2]}" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    command = [sys.executable, "-m", "data_prep.build", "folder"]
    command += ["--images", str(folder / "tree"), "--out", str(folder / "cells")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder / "cells"


def table(results: list[dict[str, Any]]) -> str:
    """The results for a terminal and the README."""
    lines = [["row", "ours", "peer", "ratio", "range", "unit", "share of limit"]]
    for r in results:
        figures = [f"{r[key]:.4g}" for key in ("ours", "peer")] + [f"{r['ratio']:.2f}"]
        share = f"{r['share_of_limit']:.2f}" if "share_of_limit" in r else ""
        lines.append([r["name"], *figures, f"{r['low']:.2f}–{r['high']:.2f}", r["unit"], share])
    return "\n".join(aligned(lines))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few small rows, under two minutes")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name holds TEXT")
    chosen = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wanted = [row for row in rows(chosen.quick) if chosen.only in row.name]
        if any(row.job == "read" for row in wanted):
            folder = cells(folder)
        for row in wanted:
            print(f"{row.name} …", file=sys.stderr, flush=True)
            results += measure(row, folder)
            if chosen.json:
                write_whole(Path(chosen.json), (json.dumps(results, indent=1) + "\n").encode())
    print(table(results))


if __name__ == "__main__":
    main()
