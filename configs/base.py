"""The paper: BCViT-Base, patch 16, stride 12, five folds of AML-Cytomorphology_LMU.

    python -m data_prep.build lmu --images AML-Cytomorphology_LMU --out data/lmu
    python -m bcvit_jax.main --config=configs/base.py
    python -m bcvit_jax.main --config=configs/base.py:literal

`:literal` takes the paper's words to the letter wherever a reading was chosen. Wall-clock and
result: not measured yet (they need the data set and a GPU).
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(variant: str = "") -> Any:
    """Section 3 of the paper; `variant` is "" or "literal"."""
    if variant not in ("", "literal"):
        raise ValueError(f"configs/base.py has no variant {variant!r}; it knows literal")
    config: Any = ConfigDict()
    config.title = "BCViT-Base, overlapping patches, contrastive loss"
    config.folds = (0, 1, 2, 3, 4)
    config.train_folds = ()
    config.epochs = 100
    config.batch_size = 32
    config.eval_batch_size = 64
    config.seed = 0
    config.checkpoint_epochs = 1.0
    config.log_steps = 20
    config.distributed = False

    # Empty fields keep the value that belongs to the name; bcvit_jax.models.BCViTConfig tells them.
    config.model = ConfigDict()
    config.model.name = "bcvit_base_patch16_s12_224"
    config.model.dtype = "float32"
    for name in ("image_size", "patch_size", "stride", "width", "depth", "heads", "mlp_width"):
        config.model[name] = placeholder(int)
    config.model.stem = placeholder(tuple)
    config.model.drop_path = placeholder(float)
    # The readings: relu | gelu, max | entropy | mean, extra | last, straight_through | none.
    config.model.activation = placeholder(str)
    config.model.squeeze = placeholder(str)
    config.model.selection_depth = placeholder(str)
    config.model.selection_gradient = placeholder(str)
    config.model.tokens_per_head = placeholder(int)
    config.model.selection = placeholder(bool)
    # What DINOv2 weights bring: layer_scale any number above 0, registers 4 or 0.
    config.model.layer_scale = placeholder(float)
    config.model.registers = placeholder(int)

    # Pretrained weights to begin with: a file, a folder, or owner/name on the Hugging Face hub.
    config.weights = ConfigDict()
    config.weights.path = ""
    config.weights.last_block = "copy"
    config.weights.mean = ()
    config.weights.std = ()

    config.loss = ConfigDict()
    config.loss.contrastive = 1.0
    config.loss.alpha = 0.4
    config.loss.label_smoothing = 0.0

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule = "milestones"
    config.optimizer.milestones = (40, 70, 90)
    config.optimizer.decay = 0.1
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.clip_norm = 0.0
    config.optimizer.layer_decay = 1.0
    config.optimizer.frozen_blocks = 0

    config.data = ConfigDict()
    config.data.path = "data/lmu"
    # leak_free: split, then balance the training folds. paper: the other way round, which leaks.
    config.data.protocol = "leak_free"
    config.data.balance = True
    config.data.balance_target = 0
    config.data.centre_crop = 1.0
    config.data.white_background = False
    config.data.normalise_stain = False
    config.data.normalise_scale = False
    config.data.flips_turns = False
    config.data.crop_area = (1.0, 1.0)
    config.data.crop_ratio = (1.0, 1.0)
    config.data.brightness = 0.0
    config.data.contrast = 0.0
    config.data.saturation = 0.0
    config.data.hue = 0.0
    config.data.mixup = 0.0
    config.data.cutmix = 0.0
    config.data.cache = ""
    config.data.cache_size = 0
    config.data.workers = 0
    config.data.threads = 4
    # What other laboratories do otherwise; bcvit_jax.appearance.AugmentConfig tells them. All off.
    config.data.augment = ConfigDict()
    config.data.augment.share = 1.0
    for name in ("stain_hue", "channel_mix", "background", "white_balance", "stray_light", "grey"):
        config.data.augment[name] = 0.0
    for name in ("blur", "sharpen", "noise", "shift"):
        config.data.augment[name] = 0.0
    for name in ("stain_strength", "stain_ratio", "gamma", "zoom"):
        config.data.augment[name] = (1.0, 1.0)
    config.data.augment.jpeg = 0

    if variant == "literal":
        config.title += " (the paper to the letter)"
        config.model.squeeze = "mean"
        config.model.selection_gradient = "none"
    return config
