"""What is set before jax starts, and what the user's own settings mean."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bcvit_jax.runtime import described, settings

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("mode", "tunables"),
    [("always [madvise] never", {"GLIBC_TUNABLES"}), ("[always] madvise never", set())],
)
def test_huge_pages_are_asked_for_where_programs_must_ask(tmp_path, mode, tunables):
    (tmp_path / "enabled").write_text(mode + "\n")
    found = settings({"HOME": "/home/x"}, tmp_path / "enabled")
    assert set(found) == {"JAX_COMPILATION_CACHE_DIR"} | tunables


def test_the_users_settings_stay():
    own = {"GLIBC_TUNABLES": "glibc.malloc.check=1", "JAX_COMPILATION_CACHE_DIR": ""}
    assert settings(own) == {}


def test_programs_are_kept_in_the_users_cache(tmp_path):
    found = settings({"XDG_CACHE_HOME": str(tmp_path)})
    assert found["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "bcvit_jax" / "programs")


def test_the_log_names_what_is_in_force():
    environment = {"XLA_FLAGS": "--xla_a=1", "GLIBC_TUNABLES": "x=1", "HOME": "/"}
    assert described(environment) == "GLIBC_TUNABLES=x=1  XLA_FLAGS=--xla_a=1"
    assert described({"HOME": "/"}, {"xla_b": "2"}) == "xla_b=2"


def test_a_program_starts_again_with_the_settings_and_its_arguments(tmp_path):
    """Once, with the same process number, and never where nothing is missing."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from bcvit_jax import runtime\n"
        "print(os.getpid(), flush=True)\n"
        "runtime.restart_with_settings()\n"
        "print(sys.argv[1:], runtime.settings(os.environ))\n"
    )
    environment = {n: v for n, v in os.environ.items() if n not in settings({})}
    environment["PYTHONPATH"] = str(CHECKOUT)
    done = subprocess.run(
        [sys.executable, str(program), "--a=b c", "d"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    first, second, said = done.stdout.splitlines()
    assert first == second
    assert said == "['--a=b c', 'd'] {}"
