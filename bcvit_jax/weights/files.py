"""Files and folders of weights, of this project and of others, as flat dicts of arrays."""

import contextlib
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bcvit_jax.errors import UserError
from bcvit_jax.weights.flat import Flat


def read_arrays(path: str | Path) -> Flat:
    """The arrays in a .npz, .safetensors, .pth, .pt or .bin file, a folder that holds
    model.safetensors, or a model of the Hugging Face hub (`owner/name`, needs huggingface_hub).

    Nothing in a file is executed. Errors: UserError where it is none of these or broken.
    """
    file = locate(path)
    try:
        if file.suffix == ".npz":
            with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        if file.suffix == ".safetensors":
            return _read_safetensors(file)
        if file.suffix in (".pth", ".pt", ".bin"):
            return _read_pytorch(file)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} can't be read as weights ({error}); fetch it again") from None
    raise UserError(
        f"{file} has an ending that weights don't have; give a .npz, .safetensors, .pth, .pt or "
        ".bin file, or a folder with model.safetensors"
    )


def locate(path: str | Path) -> Path:
    """The file of weights that a file, a folder, or `owner/name` on the hub means."""
    file = Path(path)
    if file.is_dir():
        file = file / "model.safetensors"
    return file if file.exists() else _from_hub(str(path))


def _read_safetensors(file: Path) -> Flat:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(error) from None


def _read_pytorch(file: Path) -> Flat:
    """Tensors alone: a file with anything that would have to be executed is refused."""
    import pickle

    try:
        import torch
    except ImportError:
        raise UserError(f"{file} needs PyTorch to read; pip install torch") from None
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(str(error).splitlines()[0]) from None
    while isinstance(content, dict):
        inner = [content[k] for k in ("state_dict", "model", "teacher", "student") if k in content]
        if not inner or not isinstance(inner[0], dict):
            break
        content = inner[0]
    if not isinstance(content, dict):
        raise ValueError("it holds no dict of tensors")
    return {k: v.float().numpy() for k, v in content.items() if isinstance(v, torch.Tensor)}


def _from_hub(name: str) -> Path:
    """model.safetensors of a model, with the files beside it that tell its normalisation."""
    local = Path(name).suffix in _ENDINGS or Path(name).parent.is_dir()
    if local or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"there are no weights at {name}; give a file, or a model's folder")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise UserError(
            f"there is no file {name}; to fetch a model of that name, pip install huggingface_hub"
        ) from None
    try:
        file = Path(hf_hub_download(name, "model.safetensors"))
    except Exception as error:  # no connection, no such model, no such file: of several libraries
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"there is no file {name}, and the hub gives no model.safetensors of a model called so "
            f"({reason})"
        ) from None
    for beside in ("config.json", "preprocessor_config.json"):
        with contextlib.suppress(Exception):  # a model may lack either
            hf_hub_download(name, beside)
    return file


_ENDINGS = (".npz", ".safetensors", ".pth", ".pt", ".bin")


Numbers = tuple[float, ...]


def normalisation(
    path: str | Path, mean: Numbers, std: Numbers, usual: tuple[Numbers, Numbers]
) -> tuple[Numbers, Numbers, str]:
    """Mean and deviation of pixels: those asked for, else those that stand beside the weights, else
    the family's `usual` ones; and in words which they are."""
    beside = normalisation_beside(path)
    source = "as the file beside the weights says" if beside else "as usual"
    source = "as asked for" if mean or std else source
    found_mean, found_std = beside or usual
    mean, std = mean or found_mean, std or found_std
    values = (", ".join(f"{x:.4g}" for x in each) for each in (mean, std))
    return mean, std, "pixels: mean {}, deviation {}, {}".format(*values, source)


def normalisation_beside(path: str | Path) -> tuple[Numbers, Numbers] | None:
    """What preprocessor_config.json (Hugging Face) or config.json (timm) beside the weights
    names."""
    folder = locate(path).parent
    for name, group, mean, std in (
        ("preprocessor_config.json", None, "image_mean", "image_std"),
        ("config.json", "pretrained_cfg", "mean", "std"),
    ):
        try:
            content = json.loads((folder / name).read_text("utf-8"))
            content = content[group] if group else content
            return tuple(map(float, content[mean])), tuple(map(float, content[std]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def safetensors_bytes(flat: Flat, facts: Mapping[str, str]) -> bytes:
    """A safetensors file of `flat` with `facts` in its header."""
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(x) for name, x in flat.items()}, dict(facts))
