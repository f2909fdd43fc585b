"""Files of a detector's weights: read without executing anything, all that does not fit told."""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from data_prep.errors import BuildError
from data_prep.tree import listing

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
PREDICTOR = "roi_heads.box_predictor."


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a file by name; a pickle that holds anything but tensors is refused."""
    if not path.is_file():
        raise BuildError(f"{path} is not there: --weights needs a file of weights.")
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():  # about the protocols of pickles
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise BuildError(
            f"{path} is a pickle that holds more than weights, or something else altogether: "
            "nothing in it was executed; save its state_dict, best as .safetensors."
        ) from None
    except Exception as error:  # of damaged files: IndexError, KeyError, RuntimeError, …
        raise BuildError(
            f"{path} is no whole file of weights ({first_line(error)}): copy it again."
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise BuildError(f"{path} holds no state_dict: names with tensors are needed.")
    return dict(content)


def first_line(error: BaseException) -> str:
    """What an error of a library says, cut to a line."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:150].rstrip('. ')}"


def load_weights(
    model: nn.Module, weights: Mapping[str, Tensor], source: str, whole: bool = False
) -> None:
    """Put the tensors into the model; all that does not fit is told in one BuildError.

    Unless the weights must be `whole`, the layer that names the classes may be of another number
    of classes, or missing: it stays new then.
    """
    own = model.state_dict()
    fits = {name: value for name, value in weights.items() if name in own}
    other = [name for name in fits if fits[name].shape != own[name].shape]
    if not whole and any(name.startswith(PREDICTOR) for name in other):
        fits = {name: value for name, value in fits.items() if not name.startswith(PREDICTOR)}
        other = [name for name in other if name in fits]
    missing = [
        name
        for name in own
        if name not in fits
        and not name.endswith("num_batches_tracked")
        and (whole or not name.startswith(PREDICTOR))
    ]
    faults = [f"{name}: {tuple(fits[name].shape)}, not {tuple(own[name].shape)}" for name in other]
    faults += [f"{name}: is missing" for name in missing]
    faults += [f"{name}: is not part of the network" for name in weights if name not in own]
    if faults:
        more = [f"… and {len(faults) - 10} more"] if len(faults) > 10 else []
        raise BuildError(listing(f"{source} does not fit the network", faults[:10] + more))
    model.load_state_dict(fits, strict=False)


def freeze_norms(model: nn.Module, eps: float = 1e-5) -> None:
    """Batch norms that keep the mean and variance of their weights, as published networks do."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, FrozenBatchNorm2d(child.num_features, eps))
