"""The embedded data set: a very small BCViT on rendered cells, one fold held out; `make demo`.

python -m data_prep.build synthetic --out data/synthetic
python -m bcvit_jax.main --config=configs/demo.py
"""

from configs import base


def get_config():
    """96 pixels, four blocks and the block of kept tokens, two minutes on two cores."""
    config = base.get_config()
    config.title = "Demo: a small BCViT on rendered cells"
    config.folds = (0,)
    config.epochs = 14
    config.eval_batch_size = 100
    config.checkpoint_epochs = 6.0

    config.model.name = "bcvit_tiny_patch16_s12_128"
    config.model.image_size = 96
    config.model.stem = (32, 64)
    config.model.depth = 3
    config.model.width = 128
    config.model.heads = 4
    config.model.mlp_width = 512

    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 0.5
    config.optimizer.clip_norm = 1.0

    config.data.path = "data/synthetic"
    config.data.flips_turns = True
    config.data.brightness = 0.3
    config.data.contrast = 0.3
    config.data.saturation = 0.3
    config.data.hue = 0.1
    config.data.crop_area = (0.8, 1.0)
    config.data.cache = "data/cache"
    config.data.threads = 1
    return config
