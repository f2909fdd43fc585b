"""Tables 5 and 6 of the paper, and the readings: one part of a recipe changed at a time.

    python -m bcvit_jax.main --config=configs/ablations.py:no_selection
    python -m bcvit_jax.main --config=configs/ablations.py:short,no_selection
    python -m bcvit_jax.sweep --config=configs/ablations.py:short --out runs/ablations

The recipe is the paper's (`configs/base.py`); the word `:pbc10` before the change takes
`configs/pbc10.py` instead, and `:short` or `:six` the same in minutes on two CPU cores. Changes:
`:bcvit` (none); Table 5, patches of 16 or 32 pixels, overlapping or side by side: `:patch16_apart`,
`:patch32_overlap`, `:patch32_apart`; Table 6: `:no_contrastive`, `:vit`, `:vit_no_contrastive`; the
selection alone: `:no_selection`; the readings: `:squeeze_mean`, `:squeeze_entropy`,
`:gradient_none`, `:literal` (both of the paper's words), `:last_block` (11+1 blocks); `:leaky`,
which balances before splitting, and whose held-out images are other ones. Reading: `:vit` keeps the
recipe's activation, so that it lacks the overlap and the selection and nothing else. Results of
five on `:short`: README; the rest: not measured.
"""

from configs import base, pbc10

_APART = {"model.stride": 16}
_VIT = _APART | {"model.selection": False}
_NO_CONTRASTIVE = {"loss.contrastive": 0.0}
_CHANGES = {
    "bcvit": {},
    "patch16_apart": _APART,
    "patch32_overlap": {"model.patch_size": 32, "model.stride": 24},
    "patch32_apart": {"model.patch_size": 32, "model.stride": 32},
    "no_contrastive": _NO_CONTRASTIVE,
    "vit": _VIT,
    "vit_no_contrastive": _VIT | _NO_CONTRASTIVE,
    "no_selection": {"model.selection": False},
    "squeeze_mean": {"model.squeeze": "mean"},
    "squeeze_entropy": {"model.squeeze": "entropy"},
    "gradient_none": {"model.selection_gradient": "none"},
    "literal": {"model.squeeze": "mean", "model.selection_gradient": "none"},
    "last_block": {"model.selection_depth": "last"},
    "leaky": {"data.protocol": "paper"},
}
_BASES = ("pbc10", *pbc10.EPOCHS)


def variants() -> list[str]:
    """The changes by name, the same for every recipe."""
    return list(_CHANGES)


def get_config(variant: str = ""):
    """A recipe with one change: "", `CHANGE`, `pbc10,CHANGE`, `short,CHANGE` or `six,CHANGE`."""
    words = variant.split(",") if variant else []
    changes = [word for word in words if word not in _BASES] or ["bcvit"]
    unknown = [word for word in changes if word not in _CHANGES]
    if unknown or len(changes) > 1:
        known = ", ".join([*_CHANGES, *_BASES])
        raise ValueError(
            f"configs/ablations.py has no variant {variant!r}; it knows {known}; one change may "
            "follow pbc10, short or six, as in short,no_selection"
        )
    config = base.get_config()
    if set(words) & set(_BASES):
        config = pbc10.get_config(",".join(word for word in words if word in pbc10.EPOCHS))
    config.title = f"{changes[0]}, an ablation of {config.title}"
    config.update_from_flattened_dict(_CHANGES[changes[0]])
    return config
