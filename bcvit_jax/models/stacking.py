"""The parameters of blocks that run in one loop, as the loop reads them: one array for all blocks.

A network has `blocks.0.…`, `blocks.1.…`. A train step that stacked them for its loop would hold
them twice for as long as it runs; so training keeps them stacked.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

_BLOCKS, _LOOPED = "blocks", "looped"


def stack(params: Any, apart: int = 0) -> Any:
    """A network's parameters with `looped.…` [l, …] in place of `blocks.i.…` […].

    The last `apart` blocks, which no loop reads, stay as they are.
    """
    flat, found = {}, {}
    for path, value in nnx.to_flat_state(params):
        if _BLOCKS not in path:
            flat[path] = value
            continue
        place = path.index(_BLOCKS)
        looped = (*path[:place], _LOOPED, *path[place + 2 :])
        found.setdefault(looped, {})[path[place + 1]] = path, value
    for looped, blocks in found.items():
        rows = [blocks[i] for i in sorted(blocks)]
        last = len(rows) - apart
        flat |= dict(rows[last:])
        if last:
            flat[looped] = jax.tree.map(lambda *x: jnp.stack(x), *(row for _, row in rows[:last]))
    return nnx.from_flat_state(flat)


def unstack(params: Any) -> Any:
    """What `stack` was given; other parameters as they are."""
    flat = {}
    for path, value in nnx.to_flat_state(params):
        if _LOOPED not in path:
            flat[path] = value
            continue
        place = path.index(_LOOPED)
        leaf, variable = jax.tree.flatten(value)
        for i, row in enumerate(_rows(*leaf)):
            name = (*path[:place], _BLOCKS, i, *path[place + 1 :])
            flat[name] = jax.tree.unflatten(variable, [row])
    return nnx.from_flat_state(flat)


def is_stacked(params: Any) -> bool:
    """Whether `stack` made these parameters, of a network with blocks."""
    return any(_LOOPED in path for path, _ in nnx.to_flat_state(params))


@jax.custom_vjp
def _rows(x):
    """x [l, …] -> l arrays. JAX's own derivative is a sum of l arrays as large as x, not one."""
    return list(x)


_rows.defvjp(lambda x: (_rows(x), None), lambda _, gradients: (jnp.stack(gradients),))
