"""A batch of runs: in order, gone on with, skipped, told in a table, refused before any work."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from bcvit_jax import sweep
from bcvit_jax.command_line import variants
from bcvit_jax.config import recipe
from bcvit_jax.errors import UserError
from bcvit_jax.main import main
from bcvit_jax.signals import Signals
from tests.tiny_run import CHECKOUT, TINY

CONFIG = """
from configs import base

def variants():
    return ["plain", "leaky"]

def get_config(variant=""):
    config = base.get_config()
    for word in filter(None, variant.split(",")):
        if word == "leaky":
            config.data.protocol = "paper"
        elif word == "brief":
            config.epochs = 1
        elif word != "plain":
            raise ValueError(f"no variant {word!r}")
    return config
"""


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch):
    monkeypatch.chdir(CHECKOUT)
    monkeypatch.setattr(Signals, "install", lambda self: None)


@pytest.fixture
def batch(tmp_path, tiny_dataset):
    """A batch of tiny runs as a function of more arguments; returns its exit status."""
    (tmp_path / "mine.py").write_text(CONFIG)
    fields = TINY | {"data.path": tiny_dataset, "model.depth": 1}
    del fields["epochs"]
    flags = [f"--config.{name}={value}" for name, value in fields.items()]

    def run(*arguments: str, base: str = ":brief") -> int:
        config = f"--config={tmp_path / 'mine.py'}{base}"
        return sweep.main([config, "--out", str(tmp_path / "out"), *arguments, *flags])

    return run


def test_a_batch_goes_on_where_it_stopped_and_ends_with_its_table(
    batch, tmp_path, monkeypatch, capsys
):
    started, out = [], tmp_path / "out"

    def start(arguments, stop_at=""):
        name = Path(arguments[-1].partition("=")[2]).name
        started.append(name)
        return 130 if name == stop_at else main(arguments)

    monkeypatch.setattr(sweep, "start", lambda a: start(a, "leaky-0"))
    assert batch("--seeds", "0,1") == 130
    assert started == ["plain-0", "leaky-0"]
    assert "the same command again goes on" in capsys.readouterr().err

    started.clear()
    monkeypatch.setattr(sweep, "start", start)
    assert batch("--seeds", "0,1") == 0
    assert started == ["leaky-0", "plain-1", "leaky-1"]
    said = capsys.readouterr().out
    assert "1 of 4 runs are finished already" in said and "[2/4] leaky-0" in said
    assert "WARNING: The images were balanced before they were split" in said
    assert "Other held-out images" in said
    plain, leaky = (
        json.loads((out / name).read_text()) for name in ("compare.json", "compare-leaky.json")
    )
    for content, name, protocol in ((plain, "plain", "leak_free"), (leaky, "leaky", "paper")):
        (row,) = content["rows"]
        assert (row["name"], row["seeds"], row["protocol"]) == (name, [0, 1], protocol)
        reports = [json.loads((out / run / "report.json").read_text()) for run in row["runs"]]
        assert row["top1"]["runs"] == pytest.approx([r["pooled"]["top1"] for r in reports])
    assert "too high" in leaky["notes"][-1] and "too high" not in " ".join(plain["notes"])
    report = json.loads((out / "leaky-0" / "report.json").read_text())
    assert "turned copies of one cell" in report["donor_statement"]
    assert [p["source"].count("#") for p in report["confident_mistakes"]][:1] in ([], [1])

    started.clear()
    assert batch("--seeds", "0,1") == 0
    assert not started


def test_a_failed_run_leaves_the_others_be(batch, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(sweep, "start", lambda arguments: started.append(1) or 1)
    assert batch() == 1
    assert len(started) == 2
    assert "failed: plain-0, leaky-0" in capsys.readouterr().err


def test_a_refused_run_ends_the_batch(batch, monkeypatch):
    started = []
    monkeypatch.setattr(sweep, "start", lambda arguments: started.append(1) or 2)
    assert batch() == 2
    assert len(started) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--variants", "plain,nope"], "no variant 'nope'"),
        (["--seeds", "one"], "--seeds is 'one'; it must be whole numbers"),
        (["--baseline", "nope"], "--baseline is 'nope'; it must be one of plain, leaky"),
        (["--config.seed=3"], "--seeds says it for all of them"),
        (["--workdir=x"], "--out says it for all of them"),
        (["--config.epochz=3"], "did you mean config.epochs?"),
        (["--config.data.protocol=leaky"], "it must be leak_free or paper"),
    ],
)
def test_everything_is_looked_at_before_the_first_run(
    batch, arguments, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sweep, "start", lambda _: pytest.fail("a run was started"))
    assert batch(*arguments) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_with_another_run_is_refused(batch, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "start", main)
    assert batch("--variants", "plain") == 0
    assert batch("--variants", "plain", "--config.loss.alpha=0.3") == 2
    assert "loss.alpha is 0.4 there and 0.3 here" in capsys.readouterr().err


def test_a_file_without_variants_is_one_run_a_seed(tmp_path):
    jobs = sweep.plan("configs/pbc10.py:short", [], [4, 2], tmp_path, [])
    assert [job.name for job in jobs] == ["pbc10-short-4", "pbc10-short-2"]
    assert [(job.config.seed, job.config.epochs) for job in jobs] == [(4, 3), (2, 3)]


@pytest.mark.parametrize("base", ["", ":short"])
def test_every_ablation_can_be_planned_and_they_differ(base, tmp_path):
    jobs = sweep.plan(f"configs/ablations.py{base}", [], [0], tmp_path, [])
    assert [job.name for job in jobs] == [f"{n}-0" for n in variants("configs/ablations.py")]
    assert len({json.dumps(recipe(job.config)) for job in jobs}) == len(jobs)


def test_variants_that_an_override_makes_equal_are_refused(tmp_path):
    with pytest.raises(UserError, match="bcvit-0 and squeeze_mean-0 would be the same run"):
        sweep.plan("configs/ablations.py:short", [], [0], tmp_path, ["--config.model.squeeze=mean"])


def test_signals_go_on_to_the_run_and_its_status_comes_back(tmp_path, monkeypatch):
    ready = tmp_path / "ready"
    script = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(sweep, "_PROGRAM", (sys.executable, "-c", script))

    def stop() -> None:
        while not ready.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop)
    thread.start()
    assert sweep.start([]) == 143
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
