"""The files of a run's work folder, read with an answer for every fault."""

import json
import re
from pathlib import Path
from typing import Any

from bcvit_jax.errors import UserError
from bcvit_jax.predictions import Predictions, load_predictions


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a finished run; UserError where it is missing or damaged."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} has no {path.name}: it is no finished run; train one with python -m "
            "bcvit_jax.main"
        ) from None
    except ValueError as error:
        raise UserError(
            f"{path} is not whole JSON ({error}); restore it, or delete it and run again"
        ) from None
    return content if isinstance(content, dict) else {}


def read_json_if_there(path: Path) -> dict[str, Any]:
    """The same; empty where there is no such file."""
    return read_json(path) if path.exists() else {}


def read_classifier(workdir: Path):
    """The RunConfig of a run; UserError where it is none, or a pretraining."""
    from bcvit_jax.config import from_dict

    refuse_pretraining(workdir)
    return from_dict(read_json(workdir / "config.json"))


def refuse_pretraining(workdir: Path) -> None:
    """Raise UserError where the run in `workdir` is a pretraining."""
    if (read_json_if_there(workdir / "config.json").get("mae") or {}).get("ratio"):
        raise UserError(
            f"{workdir} is a pretraining, which tells no classes apart; its encoders are files "
            f"already ({workdir}/*/encoder.safetensors, for --config.weights.path)"
        )


def load_run(workdir: str | Path) -> tuple[dict[str, Any], list[Predictions]]:
    """What a work folder keeps of its run, and the predictions of its finished folds.

    The run comes from report.json, config and provenance from their own files where they exist.
    Raises UserError where no fold has saved predictions.
    """
    workdir = Path(workdir)
    found = sorted(workdir.glob("fold*/predictions.npz"), key=lambda path: _natural(path.parent))
    if not found:
        refuse_pretraining(workdir)
        raise UserError(
            f"{workdir} holds no fold*/predictions.npz: name the work folder of a run of which at "
            "least one fold has ended"
        )
    run: dict[str, Any] = {"title": workdir.resolve().name}
    run |= read_json_if_there(workdir / "report.json").get("run") or {}
    for part in ("config", "provenance"):
        run[part] = read_json_if_there(workdir / f"{part}.json") or run.get(part)
    return run, [load_predictions(path.with_suffix("")) for path in found]


def _natural(path: Path) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
