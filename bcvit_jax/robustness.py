"""How a run's networks do on other laboratories' pictures: `python -m bcvit_jax.robustness`.

Each held-out picture is changed as shifts.py can, before the preprocessing of the network whose
training never saw it, at strengths up to and beyond those of any training.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bcvit_jax.curves import CLEAN, METHOD, figures, picture, rows_of, summarise, told
from bcvit_jax.errors import RunError, UserError, fail
from bcvit_jax.shifts import SHIFTS, Shift

NAME = "robustness"

_HELP = """\
Measure how much accuracy a trained run keeps under changes of stain, background, white balance,
brightness, focus, JPEG, magnification and cell position, each at several strengths.

Every network is asked about the images of the fold that it was not trained on. robustness.json,
.csv and .png are written into RUN; a measurement that was interrupted goes on with the next shift.
"""


class Subject:
    """A trained network (`trained.Network`) and the held-out images that it is asked about."""

    def __init__(self, network, dataset, fold: str, rows, batch: int):
        self.network, self.preprocessing = network, network.preprocessing
        self.dataset, self.fold, self.rows, self.batch_size = dataset, fold, rows, batch
        self.labels = dataset.labels[fold][rows]

    def views(self, row: int, shift: Shift | None) -> list[np.ndarray]:
        """The network's inputs of one image: itself, or as shifted at each strength of the grid."""
        image = self.dataset.image(self.fold, int(row))
        if shift is None:
            return [self.preprocessing(image)]
        side = self.preprocessing.centre_crop * min(image.shape[:2])  # of the usual view
        turn = np.random.default_rng([int(row)]).random()  # one direction an image, always the same
        return [self.preprocessing(shift(image, s, side, turn)) for s in shift.grid]

    def correct(self, name: str, threads: int) -> list[list[int]]:
        """Images recognised under a shift: at each strength one number a class."""
        from bcvit_jax.journal import progress

        shift, classes = SHIFTS.get(name), len(self.dataset.class_names)
        right = np.zeros((len(shift.grid) if shift else 1, classes), int)
        with (
            ThreadPoolExecutor(threads) as pool,
            progress(f"{self.fold} {name}", len(self.rows), "img") as bar,
        ):
            for place, batch in self._batches(pool, shift):
                labels = self.labels[place : place + len(batch)]
                logits = [self._logits(images) for images in zip(*batch, strict=True)]
                for strength, scores in enumerate(logits):
                    hit = np.asarray(scores)[: len(labels)].argmax(axis=1) == labels
                    right[strength] += np.bincount(labels[hit], minlength=classes)
                bar.update(len(batch))
        return right.tolist()

    def _logits(self, images: Sequence[np.ndarray]):
        filled = np.zeros((self.batch_size, *images[0].shape), np.uint8)
        filled[: len(images)] = images
        return self.network.program.predict_step(self.network.variables, filled)[0]

    def _batches(
        self, pool: ThreadPoolExecutor, shift: Shift | None
    ) -> Iterator[tuple[int, list[list[np.ndarray]]]]:
        """(place, inputs of a batch of images); the next batch is made while this one is used."""
        ahead: list[Future] = []
        for place in range(0, len(self.rows), self.batch_size):
            chosen = self.rows[place : place + self.batch_size]
            following = [pool.submit(self.views, row, shift) for row in chosen]
            if ahead:
                yield place - self.batch_size, [future.result() for future in ahead]
            ahead = following
        last = (len(self.rows) - 1) // self.batch_size * self.batch_size
        yield last, [future.result() for future in ahead]


def measure(workdir: Path, limit: int, threads: int, data: str, say) -> dict[str, Any]:
    """Measure every shift on every finished fold of a run; returns what robustness.json holds.

    Errors: UserError where `workdir` is no finished run, or its data set is not there any more.
    """
    from bcvit_jax.files import write_json, write_whole
    from bcvit_jax.program import shareable
    from bcvit_jax.trained import choose, finished_folds, open_run, restore

    config, dataset = open_run(workdir, data)
    names = finished_folds(workdir)
    grid = {name: list(shift.grid) for name, shift in SHIFTS.items()}
    made_of = {"dataset": dataset.fingerprint, "limit": limit, "method": METHOD, "grid": grid}
    made_of["normalisation"] = str(config.data.normalisation)
    file = workdir / f"{NAME}.json"
    earlier = _earlier(file, made_of)
    raw = {fold: earlier.get(fold, {}) for fold in names}
    for fold in names:
        network = restore(workdir, config, len(dataset.class_names), fold)
        rows = choose(dataset.labels[fold], limit)
        if raw[fold].get("step") != network.step:
            images = np.bincount(dataset.labels[fold][rows], minlength=len(dataset.class_names))
            raw[fold] = {"step": network.step, "images": images.tolist(), "correct": {}}
        correct = raw[fold]["correct"]
        missing = [name for name in (CLEAN, *SHIFTS) if name not in correct]
        if not missing:
            continue
        subject = Subject(network, dataset, fold, rows, shareable(config.eval_batch_size))
        for name in missing:
            correct[name] = subject.correct(name, threads)
            unfinished = {"made_of": made_of, "finished": False, "folds": raw}
            write_json(file, unfinished, indent=None)
            say(_line(fold, name, correct[name], raw[fold]["images"]))
    content = {
        "title": config.title,
        "made_of": made_of,
        "finished": True,
        **summarise(raw),
        "augment": config.data.augment.changes,
        "class_names": dataset.class_names,
        "donor_separated": dataset.donor_separated,
        "folds": raw,
    }
    write_json(file, content, indent=None)
    write_whole(workdir / f"{NAME}.csv", rows_of(content).encode())
    write_whole(workdir / f"{NAME}.png", picture(content))
    return content


def _earlier(file: Path, made_of: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier measurement of the same kind left; empty where there is none."""
    try:
        content = json.loads(file.read_text("utf-8"))
        return content["folds"] if content["made_of"] == made_of else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _line(fold: str, name: str, correct: Sequence, images: Sequence[int]) -> str:
    found = [f"{figures(right, images)['balanced_accuracy']:.3f}" for right in correct]
    if name != CLEAN:
        found = [f"{s:g}: {x}" for s, x in zip(SHIFTS[name].grid, found, strict=True)]
    return f"{fold}  {name:<17}{'  '.join(found)}"


def main(arguments: list[str]) -> int:
    """The command line's work; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bcvit_jax.robustness",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=Path, required=True, metavar="RUN")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="images a fold (all)")
    parser.add_argument("--data", default="", help="the run's data set, where it was moved")
    parser.add_argument("--threads", type=int, default=2, help="that change images (2)")
    chosen = parser.parse_args(arguments)
    try:
        for name in ("limit", "threads"):
            least = int(name == "threads")
            if (value := getattr(chosen, name)) < least:
                raise UserError(f"--{name} is {value}; it must be {least} or more")
        content = measure(
            chosen.workdir,
            chosen.limit,
            chosen.threads,
            chosen.data,
            lambda line: print(line, flush=True),
        )
    except (UserError, RunError, OSError) as error:
        return fail(error)
    print(f"\n{told(content)}\n{chosen.workdir / NAME}.json, .csv, .png")
    return 0


if __name__ == "__main__":
    from bcvit_jax import runtime

    runtime.restart_with_settings()
    sys.exit(main(sys.argv[1:]))
