"""Many runs in order: `python -m bcvit_jax.sweep --config=FILE[:BASE] --out DIR`.

Each run is one of `bcvit_jax.main`, in a process and a folder of its own.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bcvit_jax import command_line
from bcvit_jax.errors import RunError, UserError, fail

_PROGRAM = (sys.executable, "-m", "bcvit_jax.main")
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_HELP = """\
Train variants of a config with several seeds, one run after the other, and compare them.

  python -m bcvit_jax.sweep --config=configs/ablations.py:short --out runs/ablations
  python -m bcvit_jax.sweep --config=configs/ablations.py:short --variants bcvit,no_selection \\
      --seeds 0,1,2 --out runs/selection --config.data.path=data/mine

Every --config.FIELD=VALUE holds for all runs. They are kept in DIR/VARIANT-SEED; all variants get
their first seed before any gets its second. The same command again goes on where it stopped, and
ends with the table of bcvit_jax.compare in DIR/compare.*. All settings are looked at before the
first run begins. Exit status: 0 done, 1 a run failed (the others were done), 2 refused, 128 and
above ended by a signal.
"""


class Job(NamedTuple):
    """One run."""

    name: str
    workdir: Path
    arguments: list[str]
    """Of bcvit_jax.main."""
    config: Any
    """RunConfig."""


def plan(
    config: str, names: Sequence[str], seeds: Sequence[int], out: Path, overrides: Sequence[str]
) -> list[Job]:
    """The runs in order, each checked as far as it can be without data.

    config: FILE or FILE:BASE; names: variants, all that the file has where there are none.
    Errors: UserError on a setting that makes no sense, or a folder that holds another run.
    """
    from bcvit_jax.config import from_dict
    from bcvit_jax.program import network_config

    file, _, base = config.partition(":")
    names, jobs = names or command_line.variants(file) or [""], []
    for seed in seeds:
        for name in names:
            variant = ",".join(word for word in (base, name) if word)
            folder = f"{name or Path(command_line.default_workdir(config)).name}-{seed}"
            arguments = [
                f"--config={file}{':' if variant else ''}{variant}",
                *overrides,
                f"--config.seed={seed}",
                f"--workdir={out / folder}",
            ]
            command = command_line.parse(arguments)
            if isinstance(command, str):
                raise UserError("a run's settings can't be asked for here; see main --help")
            run = from_dict(command.config.to_dict())
            network_config(run, 2)
            job = Job(folder, out / folder, arguments, run)
            _check_folder(job)
            jobs.append(job)
    _check_apart(jobs)
    return jobs


def _check_apart(jobs: Sequence[Job]) -> None:
    """UserError where two runs would be the same one, as where an override undoes a variant."""
    from bcvit_jax.config import recipe

    known: dict[str, str] = {}
    for job in jobs:
        settings = recipe(job.config) | {"seed": job.config.seed}
        key = json.dumps(settings, sort_keys=True, default=str)
        if (other := known.setdefault(key, job.name)) != job.name:
            raise UserError(
                f"{other} and {job.name} would be the same run, since an override undoes what sets "
                "them apart; leave it away, or one of them (--variants)"
            )


def _check_folder(job: Job) -> None:
    from bcvit_jax.config import differences
    from bcvit_jax.run_files import read_json

    if not (job.workdir / "config.json").exists():
        return
    if differ := differences(read_json(job.workdir / "config.json"), job.config):
        raise UserError(
            f"{job.workdir} holds a run of another config: {'; '.join(differ)}; take the old "
            "settings, or choose another --out"
        )


def finished(job: Job) -> bool:
    """Whether every fold has its predictions, and the run its report."""
    files = [job.workdir / f"fold{i}" / "predictions.npz" for i in job.config.folds]
    return all(path.exists() for path in (*files, job.workdir / "report.json"))


def train(jobs: Sequence[Job], say) -> tuple[list[Job], int]:
    """Train what is not finished; returns what failed, and the status if the batch must end.

    A run that fails on its way (1) leaves the others be; one that is refused (2) or ended by a
    signal ends the batch.
    """
    waiting = [job for job in jobs if not finished(job)]
    if done := len(jobs) - len(waiting):
        say(f"{done} of {len(jobs)} runs are finished already")
    failed, begin = [], time.monotonic()
    for place, job in enumerate(waiting):
        say(f"\n[{done + place + 1}/{len(jobs)}] {job.name}{_left(begin, place, len(waiting))}")
        status = start(job.arguments)
        if status == 1:
            failed.append(job)
        elif status:
            return failed, status
    return failed, 0


def _left(begin: float, place: int, count: int) -> str:
    """`, about 40 min left`, from the runs so far."""
    if not place:
        return ""
    minutes = (time.monotonic() - begin) / place * (count - place) / 60
    return f", about {minutes:.0f} min left with it"


def start(arguments: Sequence[str]) -> int:
    """A run in its own process, to which our signals go on; returns its exit status."""
    process = subprocess.Popen([*_PROGRAM, *arguments], process_group=0)
    handlers = {
        number: signal.signal(number, lambda number, _: process.send_signal(number))
        for number in _FORWARDED
    }
    try:
        status = process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def tables(jobs: Sequence[Job], out: Path, baseline: str, timed: bool, say) -> None:
    """Compare the finished runs; those of other held-out images have a table of their own."""
    from bcvit_jax import compare, compare_table

    runs = compare.load_all([job.workdir for job in jobs if finished(job)])
    for place, same in enumerate(compare.by_images(runs)):
        name = baseline if baseline in compare.by_recipe(same) else ""
        content = compare.compare(same, name, timed, say)
        stem = f"compare-{content['baseline']}" if place else "compare"
        files = compare.write(content, out, stem)
        if place:
            say("\nOther held-out images, so not to be compared with the table above:")
        say(f"\n{compare_table.told(content)}\n\n{files[0]}, .csv, .md, .png, .svg")


def main(arguments: list[str]) -> int:
    """The command line's work; returns the exit status (see --help)."""
    parser = argparse.ArgumentParser(
        prog="python -m bcvit_jax.sweep",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE[:BASE]")
    parser.add_argument("--variants", default="", metavar="A,B", help="the file's own (all)")
    parser.add_argument("--seeds", default="0", metavar="0,1", help="(0)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--baseline", default="", metavar="NAME", help="a variant (the first)")
    parser.add_argument("--time", action="store_true", help="measure inference for the table")
    chosen, overrides = parser.parse_known_args(arguments)
    try:
        names, seeds = _words(chosen.variants), _seeds(chosen.seeds)
        _check_overrides(overrides)
        jobs = plan(chosen.config, names, seeds, chosen.out, overrides)
        rows = dict.fromkeys(job.name.rpartition("-")[0] for job in jobs)
        if chosen.baseline not in ("", *rows):
            raise UserError(
                f"--baseline is {chosen.baseline!r}; it must be one of {', '.join(rows)}"
            )
        failed, status = train(jobs, _say)
        if status:
            if status >= 128:
                _say("stopped; the same command again goes on from there", sys.stderr)
            return status
        tables(jobs, chosen.out, chosen.baseline, chosen.time, _say)
    except (UserError, RunError, OSError) as error:
        return fail(error)
    except KeyboardInterrupt:  # between two runs
        return 130
    if failed:
        _say(f"\nfailed: {', '.join(job.name for job in failed)}", sys.stderr)
    return 1 if failed else 0


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _seeds(text: str) -> list[int]:
    words = _words(text)
    if not words or not all(word.isdecimal() for word in words):
        raise UserError(f"--seeds is {text!r}; it must be whole numbers such as 0,1,2")
    return [int(word) for word in words]


def _check_overrides(words: Sequence[str]) -> None:
    for word in words:
        flag = word.lstrip("-").partition("=")[0]
        if flag in ("workdir", "config.seed"):
            own = "--out" if flag == "workdir" else "--seeds"
            raise UserError(f"{word} is not for a batch of runs; {own} says it for all of them")


def _say(text: str, file: Any = None) -> None:
    print(text, file=file or sys.stdout, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
