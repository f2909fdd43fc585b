"""Training: the loop over one held-out fold, its checkpoints and its predictions."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bcvit_jax.checkpoint import all_finite
from bcvit_jax.data import (
    evaluation_batches,
)
from bcvit_jax.errors import RunError
from bcvit_jax.evaluate import evaluate_fold
from bcvit_jax.files import write_json
from bcvit_jax.fold_run import FoldRun, pretrained_weights
from bcvit_jax.goodput import Goodput
from bcvit_jax.journal import Journal, progress
from bcvit_jax.predictions import Predictions, save_predictions
from bcvit_jax.program import (
    Program,
    State,
    abstract_batch,
    compiled,
    fresh_state,
    make_program,
    network_config,
)
from bcvit_jax.signals import Stop
from bcvit_jax.weights import encoders, name_of


class Diverged(RunError):
    """Training left the finite numbers; the message names the step and the last good checkpoint."""


def train_fold(run: FoldRun, journal: Journal) -> Predictions:
    """Train with one fold held out, from the newest good checkpoint on, and predict that fold.

    Leaves training.json and predictions.* in the fold's folder. Raises Stop after saving when a
    signal came, Diverged where the loss or a weight is not finite.
    """
    goodput = Goodput()
    program, state, steps = fit(run, journal, goodput)
    with goodput.spend("evaluation"):
        predictions = predict_fold(run, program, state.variables, goodput)
    write_training(run, state, steps, goodput)
    if jax.process_index() == 0:
        save_predictions(run.workdir / run.name / "predictions", predictions)
    return predictions


def fit(
    run: FoldRun,
    journal: Journal,
    goodput: Goodput,
    after_save: Callable[[Program, State], None] = lambda program, state: None,
) -> tuple[Program, State, int]:
    """Train from the newest good checkpoint on: what was compiled, the last state, its step.

    `after_save` is called behind every checkpoint.
    """
    config = run.config
    size = network_config(config, len(run.dataset.class_names)).image_size
    stream = run.stream(size)
    steps_per_epoch = stream.examples_per_epoch / config.batch_size
    steps = max(1, math.floor(config.epochs * steps_per_epoch))
    with goodput.spend("compile"), ThreadPoolExecutor(1) as beside:
        classes = len(run.dataset.class_names)
        program = make_program(config, classes, steps_per_epoch, steps, run.mesh)
        key = jax.random.key(run.seed)
        everywhere = NamedSharding(run.mesh, PartitionSpec())
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
            jax.eval_shape(program.init, key),
        )
        batch = abstract_batch(config.batch_size, size)
        training = abstract._replace(params=jax.eval_shape(program.stack, abstract.params))
        compiling = beside.submit(compiled, program.train_step, training, batch, key)
        found = run.checkpoints.restore(abstract)
        if found is None:
            begin = _Begin(0, {}, [])
            state = _begin_with(run, program, fresh_state(program, key))
        else:
            step, state, extra = found
            begin = _Begin(step, extra["seconds"], extra["unlogged"])
            stream.set_state(extra["stream"])
            run.say(f"{run.name}: going on after step {step} of {steps}")
        state = state._replace(params=program.stack(state.params))
        program = dataclasses.replace(program, train_step=compiling.result())
    goodput.add(begin.seconds)
    journal.start(run.name, begin.step)

    def saved(state: State) -> None:
        with goodput.spend("evaluation"):
            after_save(program, state)

    with contextlib.closing(stream):
        state = _loop(
            *(run, journal, program, state, key, stream, begin, steps, steps_per_epoch),
            *(goodput, saved),
        )
    return program, state, steps


def write_training(run: FoldRun, state: State, steps: int, goodput: Goodput) -> None:
    """Say where the time went, and leave training.json."""
    run.say(f"{run.name}: {goodput}")
    if jax.process_index() == 0:
        facts = {
            "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
            "steps": steps,
            "minutes": round(goodput.training / 60, 2),
            "seconds": {part: round(gone, 2) for part, gone in goodput.seconds.items()},
        }
        path = run.workdir / run.name / "training.json"
        write_json(path, facts)


def _begin_with(run: FoldRun, program: Program, state: State) -> State:
    """The fresh state, with pretrained weights where the config names some."""
    config = run.config
    if not config.weights.path or run.held_out is None:
        return state
    path = encoders.unseen(config.weights.path, run.dataset, run.held_out)
    flat, report = pretrained_weights(config, program.model, path)
    fresh = sorted({name.partition(".")[0] for name in report.fresh})
    run.say(f"weights: {report.family} from {path}; fresh: {', '.join(fresh)}")
    if report.pixels:
        run.say(f"weights: {report.pixels}")

    def chosen(path, leaf):
        value = flat.get(name_of(path))
        return leaf if value is None else jax.device_put(value.astype(leaf.dtype), leaf.sharding)

    return state._replace(
        params=jax.tree.map_with_path(chosen, state.params),
        statistics=jax.tree.map_with_path(chosen, state.statistics),
    )


class _Begin(NamedTuple):
    """Where the loop begins: what earlier processes of this run have done."""

    step: int
    seconds: dict[str, float]
    unlogged: list[dict[str, float]]
    """Metrics of the steps since the last line of the journal."""


def _loop(
    run, journal, program, state, key, stream, begin, steps, steps_per_epoch, goodput, after_save
) -> State:
    """Steps to `steps`; metrics are fetched one step late, so the device never waits."""
    config, checkpoints = run.config, run.checkpoints
    every = max(1, round(config.checkpoint_epochs * steps_per_epoch))
    batches = to_devices(stream, run.mesh)
    bar = progress(run.name, steps * config.batch_size, "img", begin.step * config.batch_size)
    unlogged, pending, saved = list(begin.unlogged), None, begin.step
    logged, clock = begin.step, time.perf_counter()

    def diverged(step: int, what: str) -> Diverged:
        bar.close()
        good = f"the last good checkpoint is {checkpoints.path(saved)}"
        good = good if saved else "no checkpoint was saved before"
        return Diverged(
            f"{run.name}: {what} at step {step}; {good}. Lower config.optimizer.learning_rate or "
            "set config.optimizer.clip_norm, and start in another --workdir"
        )

    def settle() -> None:
        """Look at the metrics of the last finished step."""
        nonlocal pending, logged, clock, unlogged
        if pending is None:
            return
        step, metrics = pending
        pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(values[name]):
                raise diverged(step, f"the {name.replace('_', ' ')} is {values[name]}")
        unlogged.append(values)
        bar.update(config.batch_size)
        if step % config.log_steps == 0 or step == steps:
            now = time.perf_counter()
            mean = {name: float(np.mean([v[name] for v in unlogged])) for name in values}
            mean["images_per_second"] = (step - logged) * config.batch_size / (now - clock)
            mean["epoch"] = step / steps_per_epoch
            journal.write(run.name, step, mean)
            shown = {name: f"{mean[name]:.3f}" for name in ("loss", "top1") if name in mean}
            bar.set_postfix(shown, refresh=False)
            unlogged, logged, clock = [], step, now

    def save(step: int) -> State:
        """What was saved."""
        nonlocal saved
        if not all_finite(state):
            raise diverged(step, "a weight is not finite")
        journal.flush()
        extra = {
            # Batches are read one ahead: the place in the stream is the step's.
            "stream": {**stream.get_state(), "position": step},
            "seconds": goodput.seconds,
            "unlogged": unlogged,
        }
        whole = state._replace(params=program.unstack(state.params))
        checkpoints.save(step, whole, extra)
        saved = step
        return whole

    def next_batch():
        """The device waits for it where it has done the step before when the batch comes."""
        start = time.perf_counter()
        batch = next(batches)
        if pending is None or pending[1]["loss"].is_ready():
            goodput.move(time.perf_counter() - start, "step", "input")
        return batch

    with bar, run.signals.deferred(), goodput.spend("step"):
        for step in range(begin.step + 1, steps + 1):
            batch = next_batch()
            if step == begin.step + 1:
                bar.clear()  # on a terminal the line is not to follow it
                run.say(f"{run.name}: step {step} of {steps} begins")
            state, metrics = program.train_step(state, batch, key)
            settle()
            pending = (step, metrics)
            stopping = _stopping(run, step)
            if step % every == 0 or step == steps or stopping:
                settle()
                with goodput.spend("checkpoint"):
                    whole = save(step)
                if not stopping:
                    after_save(whole)
                del whole
            if stopping:
                raise Stop(f"{run.name}: saved after step {step} of {steps}")
    return state._replace(params=program.unstack(state.params))


def _stopping(run: FoldRun, step: int) -> bool:
    """Whether a signal came; several processes agree on it every few steps."""
    received = run.signals.received is not None
    if jax.process_count() == 1:
        return received
    if step % run.config.log_steps:
        return False
    return bool(multihost_utils.process_allgather(np.array(received)).any())


def to_devices(
    batches: Iterator[Mapping[str, np.ndarray]], mesh: Mesh
) -> Iterator[Mapping[str, jax.Array]]:
    """Each process's part of a batch as global arrays split over `mesh`, one batch ahead."""
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))

    def put(batch):
        return {
            name: jax.make_array_from_process_local_data(sharding, value)
            for name, value in batch.items()
        }

    ahead = put(next(batches))
    for batch in batches:
        yield ahead
        ahead = put(batch)
    yield ahead


def predict_fold(run: FoldRun, program: Program, variables: Any, goodput: Goodput) -> Predictions:
    """Predictions of the held-out fold with a state's `variables`, every image once."""
    config, size = run.config, program.model.image_size
    assert run.held_out is not None
    with goodput.spend("compile"):
        images = abstract_batch(config.eval_batch_size, size)["image"]
        predict_step = compiled(program.predict_step, variables, images)
    batches = evaluation_batches(
        run.dataset, run.held_out, config.data, size, config.eval_batch_size
    )

    def watched():
        with progress(f"{run.name} evaluation", len(run.dataset.labels[run.name]), "img") as bar:
            for batch in batches:
                if run.signals.received is not None:
                    raise Stop(f"{run.name}: stopped while evaluating, its training is saved")
                yield batch
                bar.update(int(batch["mask"].sum()))

    sharding = NamedSharding(run.mesh, PartitionSpec(run.mesh.axis_names[0]))

    def predict(variables, images):
        # Every process reads all images of a fold and hands its devices their part.
        images = np.asarray(images)
        placed = jax.make_array_from_callback(images.shape, sharding, lambda i: images[i])
        return predict_step(variables, placed)

    predictions, _ = evaluate_fold(predict, variables, run.dataset, run.name, watched())
    return predictions
