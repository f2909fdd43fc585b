"""The parameters of blocks that run in one loop, as the loop reads them: one array for all blocks.

A network has `blocks.0.…`, `blocks.1.…`. A train step that stacked them for its loop would hold
them twice for as long as it runs; so training keeps them stacked.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

_LOOP, _ALL = "blocks", "all"


def stack(params: Any) -> Any:
    """A network's parameters with `blocks.all.…` [l, …] in place of `blocks.i.…` […]."""
    flat, loops = {}, {}
    for path, value in nnx.to_flat_state(params):
        if (place := _place(path)) is None:
            flat[path] = value
        else:
            loops.setdefault(_at(path, place, _ALL), {})[path[place]] = value
    for path, blocks in loops.items():
        rows = [blocks[i] for i in sorted(blocks)]
        flat[path] = jax.tree.map(lambda *x: jnp.stack(x), *rows)
    return nnx.from_flat_state(flat)


def unstack(params: Any) -> Any:
    """What `stack` was given; other parameters as they are."""
    flat = {}
    for path, value in nnx.to_flat_state(params):
        place = _place(path)
        if place is None or path[place] != _ALL:
            flat[path] = value
            continue
        leaf, variable = jax.tree.flatten(value)
        for i, row in enumerate(_rows(*leaf)):
            flat[_at(path, place, i)] = jax.tree.unflatten(variable, [row])
    return nnx.from_flat_state(flat)


def is_stacked(params: Any) -> bool:
    """Whether `stack` made these parameters, of a network with blocks."""
    paths = [path for path, _ in nnx.to_flat_state(params)]
    return any(_ALL in path for path in paths)


@jax.custom_vjp
def _rows(x):
    """x [l, …] -> l arrays. JAX's own derivative is a sum of l arrays as large as x, not one."""
    return list(x)


_rows.defvjp(lambda x: (_rows(x), None), lambda _, gradients: (jnp.stack(gradients),))


def _place(path):
    """Where in a parameter's path its block is counted, or None."""
    return path.index(_LOOP) + 1 if _LOOP in path else None


def _at(path, place, word):
    return (*path[:place], word, *path[place + 1 :])
