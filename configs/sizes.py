"""Table 4 of the paper: fewer blocks, fewer heads, a narrower network.

    python -m bcvit_jax.main --config=configs/sizes.py:depth2
    python -m bcvit_jax.sweep --config=configs/sizes.py --out runs/sizes

Published (non-overlapping patches, AML-Cytomorphology_LMU): `:depth12` 91.88, `:depth2` 83.17,
`:width256` 78.08 with "7 MB" and "1.18 GFLOPs" (multiply-accumulates). The rest of the table is
lost. How the paper counts a size is unresolved: no MLP of four times the width fits its smallest
network. Here `depth` counts the blocks that give attention maps and the sparse block is extra, as
everywhere else, and the MLP is 3072 wide in all rows, so `:width256` has 9.45 M parameters. The two
nearest other readings of that row are `:width256_counted` (four blocks with the sparse one, 7.61 M,
1.13 GMAC without the attention products) and `:width256_mlp2048` (6.83 M, 1.08 GMAC). `:width512`
and `:width384` are ours, for the curve between. Wall-clock and results: not measured (they need the
data set and a GPU).
"""

from configs import base

_SIZES = {
    "depth12": dict(depth=12, width=768, heads=12),
    "depth2": dict(depth=2, width=768, heads=12),
    "width512": dict(depth=4, width=512, heads=8),
    "width384": dict(depth=4, width=384, heads=6),
    "width256": dict(depth=4, width=256, heads=4),
    "width256_counted": dict(depth=3, width=256, heads=4),
    "width256_mlp2048": dict(depth=4, width=256, heads=4, mlp_width=2048),
}


def variants() -> list[str]:
    """The sizes by name; `depth12` is what a file without a variant gives."""
    return list(_SIZES)


def get_config(variant: str = ""):
    """`configs/base.py`, non-overlapping, in one of the sizes."""
    name = variant or "depth12"
    if name not in _SIZES:
        raise ValueError(f"configs/sizes.py has no variant {name!r}; it knows {', '.join(_SIZES)}")
    config = base.get_config()
    config.title = f"BCViT, non-overlapping patches, {name}"
    config.model.stride = 16
    config.model.update(_SIZES[name])
    return config
