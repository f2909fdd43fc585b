"""What each kind of changed picture is worth: the recipe of configs/pbc10.py without one at a time.

    python -m bcvit_jax.main --config=configs/augmentations.py:short,no_zoom
    python -m bcvit_jax.sweep --config=configs/augmentations.py:short --out runs/augmentations

Then `python -m bcvit_jax.robustness --workdir RUN` for every run, and the sweep again, whose table
then holds accuracy under other laboratories' conditions beside that on the laboratory's own cells.
Changes: `:recipe` (none); what is taken out of every picture, `:light_left`, `:stain_left` and
`:scale_left`; what three of four training pictures are given, `:no_dyes`, `:no_focus`
and `:no_zoom`, and `:no_changes`, none of them; `:light` changes their light as well, which helped
no other laboratory's cells, and `:strong_dyes` their dyes twice as much, which cost 0.03 at home.
`:short` and `:six` before the change as in configs/pbc10.py. Results of `:short`: README.
"""

from configs import pbc10

_DYES = {"stain_hue": 0.0, "stain_ratio": (1.0, 1.0), "channel_mix": 0.0}
_DYES |= {"stain_strength": (1.0, 1.0)}
_STRONG = {"stain_hue": 0.15, "stain_ratio": (0.35, 2.8), "channel_mix": 0.25}
_STRONG |= {"stain_strength": (0.5, 2.0)}
_LIGHT = {"background": 0.15, "white_balance": 0.3, "gamma": (0.6, 1.6), "grey": 0.5}
_LIGHT |= {"stray_light": 1.2}
_FOCUS = {"blur": 0.0, "sharpen": 0.0, "noise": 0.0, "jpeg": 0}
_ZOOM = {"zoom": (1.0, 1.0), "shift": 0.0}
_CHANGES = {
    "recipe": {},
    "light_left": {"white_background": False, "normalise_stain": False},  # dye is told by its light
    "stain_left": {"normalise_stain": False},
    "scale_left": {"normalise_scale": False},
    "no_dyes": {f"augment.{name}": off for name, off in _DYES.items()},
    "strong_dyes": {f"augment.{name}": strength for name, strength in _STRONG.items()},
    "light": {f"augment.{name}": strength for name, strength in _LIGHT.items()},
    "no_focus": {f"augment.{name}": off for name, off in _FOCUS.items()},
    "no_zoom": {f"augment.{name}": off for name, off in _ZOOM.items()},
    "no_changes": {f"augment.{name}": off for name, off in (_DYES | _FOCUS | _ZOOM).items()},
}


def variants() -> list[str]:
    """The changes by name, the whole recipe first."""
    return list(_CHANGES)


def get_config(variant: str = ""):
    """configs/pbc10.py with one change: "", `CHANGE`, `short,CHANGE` or `six,CHANGE`."""
    words = variant.split(",") if variant else []
    changes = [word for word in words if word not in pbc10.EPOCHS] or ["recipe"]
    if len(changes) > 1 or changes[0] not in _CHANGES:
        raise ValueError(
            f"configs/augmentations.py has no variant {variant!r}; it knows "
            f"{', '.join(_CHANGES)}, short, six; one change may follow short or six, as in "
            "short,no_zoom"
        )
    config = pbc10.get_config(",".join(word for word in words if word in pbc10.EPOCHS))
    config.title = f"{changes[0]}, changed pictures of {config.title}"
    config.data.update_from_flattened_dict(_CHANGES[changes[0]])
    return config
