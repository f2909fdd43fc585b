"""The files of a run's work folder, read with an answer for every fault."""

import json
from pathlib import Path
from typing import Any

from bcvit_jax.errors import UserError


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


def refuse_other_form(folder: Path, name: str, form: str) -> None:
    """Raise UserError where what is in `folder` saw pictures of another form of `Normalisation`.

    name: of its JSON file that says so; form: `str` of the one that is made now. What was made
    before it was written down passes.
    """
    was = read_json_if_there(folder / name).get("preprocessing_form", form)
    if was != form:
        raise UserError(
            f"{folder} was trained with another form of normalise_stain or normalise_scale ({was})"
            f" than this version's ({form}); use the version that trained it, or train again"
        )


def refuse_pretraining(workdir: Path) -> None:
    """Raise UserError where the run in `workdir` is a pretraining."""
    if (read_json_if_there(workdir / "config.json").get("mae") or {}).get("ratio"):
        raise UserError(
            f"{workdir} is a pretraining, which tells no classes apart; its encoders are files "
            f"already ({workdir}/*/encoder.safetensors, for --config.weights.path)"
        )
