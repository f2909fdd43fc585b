"""Masked-autoencoder pretraining (He et al. 2022) of pbc10's network on cells without labels.

    python -m data_prep.build folder --images MY_CELLS --out data/unlabelled
    python -m bcvit_jax.main --config=configs/mae.py --config.data.path=data/unlabelled \\
        --config.folds="()"
    python -m bcvit_jax.main --config=configs/pbc10.py --config.weights.path=runs/mae

Labels are not read: MY_CELLS may hold one folder. Without --config.folds fold 0 is held out, so
that a network may be trained and scored on that fold afterwards; with "()" no cell of the data set
may be scored. `:base` pretrains the paper's BCViT-Base for each fold of configs/base.py (it wants a
GPU). What the network makes of hidden pixels: runs/mae/fold0/reconstructions.png. Wall-clock:
about two minutes an epoch on one CPU core. What four epochs bring stands in the README (nothing);
learning rates and longer pretraining: not measured.
"""

from ml_collections import ConfigDict

from configs import base, pbc10


def get_config(variant: str = ""):
    """Three quarters of the patches hidden; crops, flips and turns, no change of colour."""
    if variant not in ("", "base"):
        raise ValueError(f"configs/mae.py has no variant {variant!r}; it knows base")
    config = base.get_config() if variant == "base" else pbc10.get_config("plain")
    config.title = "Masked autoencoder of BCViT-Tiny with a convolutional stem"
    config.epochs = 100
    config.checkpoint_epochs = 5.0
    config.mae = ConfigDict()
    config.mae.ratio = 0.75
    config.mae.width = 128
    config.mae.depth = 2
    config.mae.heads = 4
    del config.loss  # a classifier's
    del config.weights

    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_epochs = 5.0

    config.data.balance = False  # which reads labels
    config.data.white_background = variant == ""  # as pbc10.py, which begins with its encoder
    config.data.normalise_stain = variant == ""
    config.data.normalise_scale = variant == ""
    config.data.flips_turns = True
    config.data.crop_area = (0.5, 1.0)
    config.data.crop_ratio = (0.9, 1.1)
    for name in ("brightness", "contrast", "saturation", "hue"):
        config.data[name] = 0.0

    if variant == "base":
        config.title = "Masked autoencoder of BCViT-Base"
        config.epochs = 400
        config.batch_size = 256
        config.mae.width = 512
        config.mae.depth = 8
        config.mae.heads = 16
        config.optimizer.name = "adamw"
        config.optimizer.learning_rate = 1.5e-4
        config.optimizer.weight_decay = 0.05
        config.optimizer.schedule = "cosine"
        config.optimizer.warmup_epochs = 40.0
    return config
