"""Where a result comes from: versions, commit, command, devices, data set, seed."""

import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from bcvit_jax import __version__

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")


def provenance(seed: int, fingerprint: str) -> dict[str, Any]:
    """What this process is, for a run that it starts."""
    return {
        "bcvit": __version__,
        "commit": commit(),
        "command": " ".join(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seed": seed,
        "dataset_fingerprint": fingerprint,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [f"{d.platform}: {d.device_kind}" for d in jax.devices()],
        "processes": jax.process_count(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }


def continued(old: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """`old` with a note that the run goes on now, and with what is different then."""
    changed = {name: value for name, value in now.items() if value != old.get(name)}
    return {**old, "continued": [*old.get("continued", []), changed]}


def commit() -> str | None:
    """The checkout's commit, with `+changes` where files differ from it; None outside git."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None
