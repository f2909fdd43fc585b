"""Weights at rest: one flat dict of arrays, and how other libraries' networks fit in it.

`{"blocks.0.attention.qkv.kernel": array}` is the form of export, import and safetensors files.
"""

import contextlib
import dataclasses
import json
import math
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from bcvit_jax.errors import UserError
from bcvit_jax.models import BCViTConfig, NetworkConfig, build
from bcvit_jax.weight_maps import FAMILIES, Family, to_heads

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
            yield f"{name} is {_shape(flat[name].shape)}, the network's {_shape(shape)}"
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


def _shape(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape)) or "a single number"


# ---------------------------------------------------------------------------- weights of others


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """What `load_pretrained` did."""

    family: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    """Our weights that keep their first values: the head, the squeeze-excitation layers, …"""


def load_pretrained(
    model: Any,
    path: str | Path,
    *,
    last_block: Literal["copy", "fresh"] = "copy",
    head: bool = False,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> Pretrained:
    """Put the weights in `path` (see `read_arrays`) into a network of ours, in place.

    The family is known by its keys. Position embeddings are resized to the network's grid; the
    extra last block starts as a copy of the one before it, or fresh; the classifier's head stays
    fresh unless `head`. Our images lie in [−1, 1]: where the weights saw pixels of another mean
    and std, the patch projection (of a convolutional network: `pixels`) takes the difference up,
    exactly. Encoders that were pretrained here (`bcvit_jax.encoders`) need none of this.
    Errors: one UserError that lists all that does not fit.
    """
    flat, report = pretrained(model.config, path, last_block, head, mean, std)
    nnx.update(model, from_flat(nnx.state(model), to_flat(model) | flat, str(path)))
    return report


def pretrained(
    config: NetworkConfig,
    path: str | Path,
    last_block: str = "copy",
    head: bool = False,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> tuple[Flat, Pretrained]:
    """`load_pretrained` on values: the loaded weights by our names, and the report."""
    if last_block not in ("copy", "fresh"):
        raise UserError(f"last_block is {last_block!r}; it must be copy or fresh")
    if not isinstance(config, BCViTConfig):
        from bcvit_jax.weights_convolutional import pretrained_convolutional  # it builds on this

        return pretrained_convolutional(config, path, head, mean, std)
    from bcvit_jax import encoders  # it builds on this

    if encoder := encoders.find(path):
        if mean or std:
            raise UserError(
                f"config.weights.mean is {mean} and std {std}; they are for weights of others, and "
                f"{encoder} takes pixels as they are here, so leave both empty"
            )
        return encoders.load(config, encoder, last_block)
    source = str(path)
    family, theirs = _recognise(read_arrays(path), source)
    found_mean, found_std = normalisation_beside(path) or family.normalisation
    mean, std = mean or found_mean, std or found_std
    faults: list[str] = []
    every = shapes(config)
    if config.activation != "gelu":
        faults.append(
            f"the network's activation is {config.activation}, the weights' gelu "
            "(config.model.activation='gelu')"
        )
    if config.stem:
        faults.append(f"the network begins with a stem {config.stem}, the weights with patches")
    blocks = config.num_maps + (config.selection and config.selection_depth == "last")
    used: set[str] = set()
    flat: Flat = {}
    for line in family.lines:
        if line.ours.startswith("head.") and not head:
            used |= {line.theirs} if isinstance(line.theirs, str) else set(line.theirs)
            continue
        places: Iterable[int] = range(blocks) if "{}" in line.ours else [0]
        for place in places:
            names = (line.theirs,) if isinstance(line.theirs, str) else line.theirs
            names = tuple(name.format(place) for name in names)
            ours = our_name(line.ours, place, config)
            if ours not in every and not any(name in theirs for name in names):
                continue  # layer scale or registers, which neither has
            used |= set(names)
            if missing := [name for name in names if name not in theirs]:
                faults += [f"{name} is missing" for name in missing]
                continue
            value = _turned(line, [theirs[name] for name in names], names, config, faults)
            if value is not None:
                flat[ours] = value
    faults += _extra(theirs, used, family, blocks)
    refuse(faults, source)
    _fit(flat, config, mean, std, faults)
    if last_block == "copy":
        fill_last_block(flat, every, blocks)
    wanted = {name: shape for name, shape in every.items() if name in flat}
    refuse([*faults, *shape_faults(wanted, flat)], source)
    fresh = tuple(sorted(set(every) - set(flat)))
    return flat, Pretrained(family.name, tuple(sorted(flat)), fresh)


def fill_last_block(flat: Flat, every: Iterable[str], blocks: int) -> None:
    """What `flat` lacks of the last block becomes a copy of the last of the `blocks` before it."""
    for name in [n for n in every if n.startswith("last_block.")]:
        twin = name.replace("last_block", f"blocks.{blocks - 1}")
        if name not in flat and twin in flat:
            flat[name] = flat[twin]


def our_name(name: str, place: int, config: BCViTConfig) -> str:
    """With selection in the last of L blocks (11+1) the weights' last block is `last_block`."""
    if "{}" in name and place == config.num_maps:
        return name.replace("blocks.{}", "last_block")
    return name.format(place)


def _turned(line, arrays, names, config, faults) -> np.ndarray | None:
    """The arrays in our form; a fault where one has too few axes, or other heads than ours."""
    try:
        heads = {x.shape[-2] for x in arrays} if line.turn is to_heads else {config.heads}
        if heads != {config.heads}:
            faults.append(f"{names[0]} has {heads.pop()} heads, the network {config.heads}")
            return None
        turned = [line.turn(np.asarray(x, np.float32)) for x in arrays]
        return turned[0] if len(turned) == 1 else np.concatenate(turned, axis=-1)
    except (ValueError, IndexError, TypeError):
        shapes = ", ".join(f"{n} {_shape(x.shape)}" for n, x in zip(names, arrays, strict=True))
        faults.append(f"{shapes} cannot become {line.ours.format('N')}")
        return None


def _extra(theirs, used, family: Family, blocks: int) -> list[str]:
    extra = [n for n in theirs if n not in used and not re.fullmatch(family.unused, n)]
    deeper = [
        n
        for n in extra
        if (m := re.search(r"(?:block_|layer\.|blocks\.)(\d+)", n)) and int(m[1]) >= blocks
    ]
    faults = [f"{name} is unknown" for name in extra if name not in deeper]
    if deeper:
        faults.append(f"the weights have more blocks than the network's {blocks} ({deeper[0]}, …)")
    return faults


def _fit(flat: Flat, config: BCViTConfig, mean, std, faults: list[str]) -> None:
    """Position embeddings to the grid and [1, 1+n, d]; pixels in [−1, 1] into the projection."""
    position = flat["embedding.position"]
    if position.ndim == 3:
        tokens, width = position.shape[1:]
        whole = math.isqrt(tokens) ** 2 == tokens
        if not whole and math.isqrt(tokens - 1) ** 2 != tokens - 1:
            faults.append(f"{tokens} position embeddings are no square grid")
            return
        first = np.zeros((1, 1, width), np.float32) if whole else position[:, :1]
        grid = position if whole else position[:, 1:]
        side = math.isqrt(grid.shape[1])
        grid = resize_bicubic(grid.reshape(side, side, width), *config.grid)
        flat["embedding.position"] = np.concatenate([first, grid.reshape(1, -1, width)], axis=1)
    if "embedding.registers" in flat:
        flat["embedding.registers"] = flat["embedding.registers"].reshape(
            1, -1, flat["embedding.registers"].shape[-1]
        )
    kernel = flat["embedding.projection.kernel"].astype(np.float64)
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if kernel.ndim != 4 or kernel.shape[2] != 3 or mean.shape != (3,) or std.shape != (3,):
        faults.append(f"the patch projection takes {_shape(kernel.shape)}, not P×P×3×d")
        return
    flat["embedding.projection.kernel"] = (kernel * (0.5 / std)[:, None]).astype(np.float32)
    shift = (kernel * ((0.5 - mean) / std)[:, None]).sum((0, 1, 2))
    flat["embedding.projection.bias"] = (flat["embedding.projection.bias"] + shift).astype(
        np.float32
    )


def resize_bicubic(grid: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """grid [r, c, d] -> [rows, columns, d] as PyTorch's bicubic interpolation does it.

    Keys' kernel with a = −0.75, centres aligned, borders repeated, no anti-aliasing.
    """
    down = _bicubic_weights(grid.shape[0], rows)
    across = _bicubic_weights(grid.shape[1], columns)
    return np.einsum("ir,jc,rcd->ijd", down, across, grid.astype(np.float64)).astype(np.float32)


def _bicubic_weights(size: int, target: int) -> np.ndarray:
    """[target, size], rows that sum to 1."""
    if size == target:
        return np.eye(size)
    a = -0.75
    centre = (np.arange(target) + 0.5) * size / target - 0.5
    weights = np.zeros((target, size))
    for offset in range(-1, 3):
        place = np.floor(centre).astype(int) + offset
        x = np.abs(centre - place)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = a * (((x - 5) * x + 8) * x - 4)
        np.add.at(
            weights,
            (np.arange(target), np.clip(place, 0, size - 1)),
            np.where(x <= 1, near, np.where(x < 2, far, 0.0)),
        )
    return weights


# ------------------------------------------------------------------------------------------- files


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


def normalisation_beside(path: str | Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation of pixels that preprocessor_config.json (Hugging Face) or config.json
    (timm) beside the weights names."""
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


def _recognise(flat: Flat, source: str) -> tuple[Family, Flat]:
    """The family of weights and the weights without the prefix that all of its keys share."""
    # Fully sharded training numbers groups of blocks before the blocks.
    flat = {re.sub(r"\bblocks\.\d+\.(\d+)\.", r"blocks.\1.", key): x for key, x in flat.items()}
    for family in FAMILIES:
        for key in flat:
            prefix, found, rest = key.partition(family.class_token)
            if found and not rest and (not prefix or prefix.endswith(".")):
                own = {k.removeprefix(prefix): x for k, x in flat.items() if k.startswith(prefix)}
                # The classifier stands beside the trunk, not in it.
                own |= {k: x for k, x in flat.items() if re.match(r"(head|classifier)\.", k)}
                if family.mark in own:
                    return family, own
    known = ", ".join(family.name for family in FAMILIES)
    some = ", ".join(list(flat)[:3]) or "nothing"
    raise UserError(f"{source} holds weights of no known family ({some}, …); known: {known}")
