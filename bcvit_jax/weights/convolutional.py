"""torchvision's and timm's weights of VGG, ResNets and EfficientNet; `weights.pretrained` calls it.

Running moments of batch norms come with them; `maps` holds the names.
"""

import re
from pathlib import Path

import numpy as np

from bcvit_jax.errors import UserError
from bcvit_jax.models import NetworkConfig, architecture
from bcvit_jax.weights.files import normalisation, read_arrays
from bcvit_jax.weights.flat import Flat, Pretrained, refuse, shape_faults, shapes
from bcvit_jax.weights.maps import (
    CONVOLUTIONAL_FAMILIES,
    IMAGENET,
    LEAVES,
    ConvolutionalFamily,
    Module,
)

_PIXELS = ("pixels.scale", "pixels.shift")


def pretrained_convolutional(
    config: NetworkConfig,
    path: str | Path,
    head: bool = False,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> tuple[Flat, Pretrained]:
    """The weights in `path` by our names, and the report; arguments as `weights.pretrained`'s.

    Errors: one UserError that lists all that does not fit.
    """
    source = str(path)
    family, theirs = _recognise(read_arrays(path), architecture(config), source)
    mean, std, pixels = normalisation(path, mean, std, IMAGENET)
    every, flat, used, faults = shapes(config), {}, set(), []
    for ours, shape in every.items():
        if ours in _PIXELS:
            continue
        name, module = their_name(ours, family.modules)
        used.add(name)
        if ours.startswith("head.") and not head:
            continue
        if name not in theirs:
            faults.append(f"{name or f'what is {ours} here'} is missing")
            continue
        flat[ours] = _turned(np.asarray(theirs[name], np.float32), module, len(shape))
    extra = (n for n in theirs if n not in used and not n.endswith("num_batches_tracked"))
    faults += [f"{name} is unknown" for name in extra]
    wanted = {name: shape for name, shape in every.items() if name in flat}
    refuse([*faults, *shape_faults(wanted, flat)], source)
    # (x/2 + 1/2 − mean)/std of our x in [−1, 1]; zeros beside the image stay the padding's.
    flat["pixels.scale"] = np.asarray(0.5 / np.asarray(std, np.float64), np.float32)
    shift = (0.5 - np.asarray(mean, np.float64)) / np.asarray(std, np.float64)
    flat["pixels.shift"] = shift.astype(np.float32)
    fresh = tuple(sorted(set(every) - set(flat)))
    return flat, Pretrained(family.name, tuple(sorted(flat)), fresh, pixels)


def their_name(ours: str, modules: tuple[Module, ...]) -> tuple[str, Module | None]:
    """The name there of our array, and its line of the table; ("", None) where there is none."""
    owner, _, leaf = ours.rpartition(".")
    for module in modules:
        pattern = re.escape(module.ours).replace(r"\{\}", r"(\d+)")
        if found := re.fullmatch(pattern, owner):
            first = module.first or (0,) * len(found.groups())
            numbers = (int(n) + more for n, more in zip(found.groups(), first, strict=True))
            return f"{module.theirs.format(*numbers)}.{LEAVES[leaf]}", module
    return "", None


def _turned(array: np.ndarray, module: Module | None, axes: int) -> np.ndarray:
    """A kernel of PyTorch's in our order of `axes`: [K, K, in, out], or [in, out] for dense."""
    if module and module.turn and array.ndim > 1:
        return module.turn(array)
    if array.ndim == 4 and axes == 2 and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]  # what is dense here is there a convolution of one pixel
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _recognise(flat: Flat, kind: str, source: str) -> tuple[ConvolutionalFamily, Flat]:
    """The family of weights and the weights without the prefix that all of its keys share."""
    families = [family for family in CONVOLUTIONAL_FAMILIES if family.architecture == kind]
    for family in families:
        for key in flat:
            prefix = key.removesuffix(family.marks[0])
            if prefix == key or (prefix and not prefix.endswith(".")):
                continue
            own = {k.removeprefix(prefix): x for k, x in flat.items() if k.startswith(prefix)}
            if all(mark in own for mark in family.marks):
                return family, own
    known = ", ".join(family.name for family in families)
    some = ", ".join(list(flat)[:3]) or "nothing"
    raise UserError(f"{source} holds no weights of this {kind} ({some}, …); known forms: {known}")
