"""A run of half a minute: a small network on the tiny data set of conftest.py."""

from pathlib import Path
from typing import Any

import pytest

from bcvit_jax.main import main
from bcvit_jax.signals import Signals

CHECKOUT = Path(__file__).resolve().parents[1]
TINY = {
    "model.image_size": 32,
    "model.patch_size": 8,
    "model.stride": 6,
    "model.width": 32,
    "model.heads": 2,
    "model.mlp_width": 64,
    "model.depth": 2,
    "model.drop_path": 0.2,
    "data.mixup": 0.4,
    "data.flips_turns": True,
    "data.threads": 1,
    "folds": "(0,)",
    "epochs": 8,
    "batch_size": 8,
    "eval_batch_size": 8,
    "checkpoint_epochs": 0.5,
    "log_steps": 5,
}


def train(workdir: Path, dataset: Any, **changes: Any) -> Path:
    """Train it in this process, in `workdir`; `changes` of fields such as `data__cache_size`."""
    fields = TINY | {"data.path": dataset}
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(CHECKOUT)
        patch.setattr(Signals, "install", lambda self: None)
        assert main([f"--workdir={workdir}", *flags]) == 0
    return workdir
