"""Every second of a run counts once."""

import time

import pytest

from bcvit_jax import goodput
from bcvit_jax.goodput import Goodput


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [0.0]
    monkeypatch.setattr(goodput.time, "perf_counter", lambda: now[0])
    return now


def test_a_second_counts_for_the_innermost_part(clock):
    spent = Goodput()
    with spent.spend("step"):
        clock[0] += 3
        with spent.spend("checkpoint"):
            clock[0] += 2
        clock[0] += 1
        assert spent.seconds["step"] == 4  # also while the part goes on
        clock[0] += 1
    clock[0] += 100  # nobody's
    with spent.spend("evaluation"):
        clock[0] += 5
    expected = {"step": 5, "compile": 0, "input": 0, "checkpoint": 2, "evaluation": 5}
    assert spent.seconds == expected
    assert spent.training == 7


def test_moved_seconds_count_elsewhere_and_earlier_ones_are_added(clock):
    spent = Goodput()
    spent.add({"step": 10.0, "input": 1.0})
    with spent.spend("step"):
        clock[0] += 10
    spent.move(4, "step", "input")
    assert spent.seconds["step"] == 16
    assert spent.seconds["input"] == 5
    assert str(spent) == (
        "0.3 min: train steps 76.2 %, starting and compiling 0.0 %, waiting for input 23.8 %, "
        "checkpoints 0.0 %, evaluation 0.0 %"
    )


def test_an_error_within_ends_the_part():
    spent = Goodput()
    with pytest.raises(ZeroDivisionError), spent.spend("step"):
        _ = 1 / 0
    before = spent.seconds
    time.sleep(0.01)
    assert spent.seconds == before
