"""Weights of other libraries' Vision Transformers; `weights.pretrained` calls it."""

import math
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bcvit_jax.errors import UserError
from bcvit_jax.models import BCViTConfig
from bcvit_jax.weights.files import normalisation, read_arrays
from bcvit_jax.weights.flat import Flat, Pretrained, refuse, shape_faults, shape_text, shapes
from bcvit_jax.weights.maps import FAMILIES, Family, to_heads


def pretrained_transformer(
    config: BCViTConfig,
    path: str | Path,
    last_block: str = "copy",
    head: bool = False,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> tuple[Flat, Pretrained]:
    """The weights in `path` by our names, and the report; arguments as `weights.pretrained`'s.

    Errors: one UserError that lists all that does not fit.
    """
    source = str(path)
    family, theirs = _recognise(read_arrays(path), source)
    mean, std, pixels = normalisation(path, mean, std, family.normalisation)
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
    return flat, Pretrained(family.name, tuple(sorted(flat)), fresh, pixels)


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
        shapes = ", ".join(f"{n} {shape_text(x.shape)}" for n, x in zip(names, arrays, strict=True))
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
        faults.append(f"the patch projection takes {shape_text(kernel.shape)}, not P×P×3×d")
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
