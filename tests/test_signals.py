"""Signals in small processes of their own."""

import os
import pty
import signal
import subprocess
import sys
from typing import Any

import pytest

# Says "ready", and then: `deferred` loops until it is asked to stop, `open` sleeps, `busy` holds
# the main thread in C for a minute, as a compilation does.
PROGRAM = """
import hashlib, signal, sys, time
signal.signal(signal.SIGHUP, getattr(signal, sys.argv[2]))  # whatever the tests were started with
from bcvit_jax.signals import Signals, Stop
signals = Signals()
signals.install()
try:
    if sys.argv[1] == "open":
        print("ready", flush=True)
    if sys.argv[1] == "deferred":
        with signals.deferred():
            print("ready", flush=True)
            while signals.received is None:
                time.sleep(0.01)
            print("saved", flush=True)
        raise Stop("after saving")
    if sys.argv[1] == "busy":
        with signals.deferred():
            print("ready", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    time.sleep(60)
except Stop as stop:
    print(stop, flush=True)
    sys.exit(128 + signals.received)
"""


def start(mode: str, hang_up: str = "SIG_DFL") -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, mode, hang_up]
    pipes: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(command, **pipes, bufsize=1)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_deferred_signal_is_left_to_the_loop(number, status):
    process = start("deferred")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (status, "saved\nafter saving\n")
    assert "once more ends without saving" in err


def test_a_closed_terminal_lets_a_run_save(tmp_path):
    """Whose messages, which nobody reads any more, are no errors."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", PROGRAM.replace('print("saved"', "SAVE('saved'")]
    command += ["deferred", "SIG_DFL"]
    command[2] = f"SAVE = lambda *_, **__: open({str(tmp_path / 'saved')!r}, 'w')\n{command[2]}"
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    assert os.read(ours, 100).startswith(b"ready")
    os.close(ours)  # from here on writing to the terminal fails
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=30) == 129
    assert (tmp_path / "saved").exists()


def test_what_nohup_ignores_is_left_so():
    process = start("deferred", "SIG_IGN")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143


def test_outside_a_loop_the_end_comes_at_once():
    process = start("open")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (143, "stopped\n")


def test_a_second_signal_ends_even_a_busy_main_thread():
    process = start("busy")
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    assert process.stderr.readline() == "\n"  # the first one has been seen
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
