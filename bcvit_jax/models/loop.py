"""How a network's blocks follow one another, and the parts in which a batch goes through them."""

import jax
import jax.numpy as jnp
from flax import nnx


def in_turn(blocks, z, branches=None, **rows):
    """Blocks one after the other: z [b, n, d] -> (z, rows as `Block` returns them, stacked).

    `branches` [l, 2, b]: the weights of these blocks' branches (and of more), or None. Of no block
    the rows are None.
    """
    if not blocks:
        return z, None
    branches = None if branches is None else branches[: len(blocks)]
    images, tokens, _ = z.shape
    parts = _parts(images, tokens, blocks[0].mlp.expand.bias.size)
    graph, _ = nnx.split(blocks[0])

    @jax.jit  # traced once for all blocks, of which XLA compiles each in its place
    def one_block(params, z, branches):
        return nnx.merge(graph, params)(z, **rows, branches=branches)

    if not _in_a_loop(images, parts):
        found = []
        for place, block in enumerate(blocks):
            z, row = one_block(nnx.state(block), z, None if branches is None else branches[place])
            found.append(row)
        return z, None if found[0] is None else jnp.stack(found)
    layers = jax.tree.map(lambda *x: jnp.stack(x), *(nnx.state(b) for b in blocks))

    def layer(z, inputs):
        params, branches = inputs
        shares = [None if branches is None else branches[:, part] for part in parts]
        found = [one_block(params, x, s) for x, s in zip(z, shares, strict=True)]
        return tuple(x for x, _ in found), tuple(row for _, row in found)

    z, found = jax.lax.scan(layer, tuple(z[part] for part in parts), (layers, branches))
    if len(parts) == 1:
        return z[0], found[0]
    return jnp.concatenate(z), None if found[0] is None else jnp.concatenate(found, axis=1)


def in_a_loop(images, tokens: int, mlp_width: int) -> bool:
    """Whether `in_turn` runs blocks in a loop, whose parameters had better be stacked.

    A loop compiles one block, not twelve. But it keeps what every block leaves for the backward
    pass in arrays of all blocks, which are written, read and filled with zeros first: 2 to 9 % of a
    train step on a CPU. There blocks are written out where they take a batch whole, which compiles
    no slower; those of several parts would compile for half a minute.
    """
    return _in_a_loop(images, _parts(images, tokens, mlp_width))


def _in_a_loop(images, parts) -> bool:
    return not _on_one_cpu(images) or len(parts) > 1


def _on_one_cpu(images) -> bool:
    """Whether a single CPU device takes a batch of known size."""
    return jax.default_backend() != "gpu" and jax.device_count() == 1 and isinstance(images, int)


_PART_ROWS, _PART_BYTES, _MOST_PARTS = 1300, 8 * 2**20, 4


def _parts(images, tokens: int, mlp_width: int) -> list[slice]:
    """Equal parts of a batch that a block takes one after the other on a single CPU device.

    There the widest array of a part, [images, tokens, mlp_width] in float32, fits the cache with
    what is made of it, but for wide networks, whose weights want some rows for every reading. Two
    parts stay one, since each adds to the sum of the gradients, and no more than four are
    compiled. Elsewhere, and where the batch has no size yet, the part is the whole.
    """
    most = max(1, _PART_ROWS // tokens, _PART_BYTES // (4 * tokens * mlp_width))
    if not _on_one_cpu(images) or images <= 2 * most:
        return [slice(None)]
    size = -(-images // min(_MOST_PARTS, -(-images // most)))
    return [slice(start, start + size) for start in range(0, images, size)]
