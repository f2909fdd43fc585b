"""Weights at rest: one flat dict of arrays, `{"blocks.0.attention.qkv.kernel": array}`, the form of
export, import and safetensors files."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from bcvit_jax.errors import UserError
from bcvit_jax.models import NetworkConfig, build

Flat = dict[str, np.ndarray]


def to_flat(params: Any) -> Flat:
    """The parameters of a network (or its `nnx.state`) as a flat dict of NumPy arrays."""
    state = nnx.state(params) if isinstance(params, nnx.Module) else params
    return {name_of(path): np.asarray(value) for path, value in _leaves(state)}


def shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of a network by its name."""
    abstract = nnx.state(nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0))))
    return {name_of(path): tuple(leaf.shape) for path, leaf in _leaves(abstract)}


def from_flat(params: Any, flat: Mapping[str, np.ndarray], source: str) -> Any:
    """`params` (arrays or shapes) with the values of `flat`, which must fit them exactly.

    Errors: one UserError that lists everything that is missing, unknown, of another shape or not
    finite in `source`.
    """
    wanted = {name_of(path): tuple(leaf.shape) for path, leaf in _leaves(params)}
    refuse(shape_faults(wanted, flat), source)
    return jax.tree.map_with_path(lambda path, leaf: flat[name_of(path)].astype(leaf.dtype), params)


def refuse(faults: Iterable[str], source: str) -> None:
    """One UserError with all faults, if there are any."""
    if faults := list(faults):
        shown = "; ".join(faults[:40]) + (f"; and {len(faults) - 40} more" if faults[40:] else "")
        raise UserError(f"{source} does not fit this network: {shown}")


def shape_faults(wanted: Mapping[str, tuple[int, ...]], flat: Mapping[str, np.ndarray]):
    """What of `flat` is missing, unknown, of another shape or no finite number, in words."""
    for name, shape in wanted.items():
        if name not in flat:
            yield f"{name} is missing"
        elif tuple(flat[name].shape) != shape:
            yield f"{name} is {shape_text(flat[name].shape)}, the network's {shape_text(shape)}"
        elif not _is_number(flat[name]):
            yield f"{name} holds {flat[name].dtype}, not real numbers"
        elif not np.isfinite(np.asarray(flat[name], np.float32)).all():
            yield f"{name} holds a number that is not finite"
    yield from (f"{name} is unknown" for name in flat if name not in wanted)


def _is_number(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def _leaves(params: Any):
    return jax.tree_util.tree_flatten_with_path(params)[0]


def name_of(path: tuple[Any, ...]) -> str:
    """The name of a leaf of a network's state: `blocks.0.attention.qkv.kernel`."""
    words = (getattr(key, "key", getattr(key, "idx", None)) for key in path)
    return ".".join(str(word) for word in words if word is not None)


def shape_text(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape)) or "a single number"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """What `load_pretrained` did."""

    family: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    """Our weights that keep their first values: the head, the squeeze-excitation layers, …"""
    pixels: str = ""
    """In words, by which mean and deviation the weights take pixels, and who says so."""
