"""Fine-tuning pretrained ViT-B/16 weights as BCViT-Base: GELU, layer-wise learning rates.

    python -m bcvit_jax.main --config=configs/finetune.py --config.weights.path=ViT-B_16.npz
    python -m bcvit_jax.main --config=configs/finetune.py:dinov2 \\
        --config.weights.path=dinov2_vitb14_reg4_pretrain.pth

The weights are Google's npz, or timm's or Hugging Face's safetensors; `:dinov2` fits DINOv2 and
DinoBloom ViT-B/14 with four registers. Wall-clock and result: not measured yet (they need the
weights, the data set and a GPU).
"""

from configs import base


def get_config(variant: str = ""):
    """AdamW with warm-up, cosine and layer-wise decay; the last block begins as the twelfth."""
    if variant not in ("", "dinov2"):
        raise ValueError(f"configs/finetune.py has no variant {variant!r}; it knows dinov2")
    config = base.get_config()
    config.title = "BCViT-Base from pretrained ViT-B/16 weights"
    config.epochs = 30
    config.model.activation = "gelu"
    config.model.drop_path = 0.1
    config.weights.last_block = "copy"

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.weight_decay = 0.05
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 3.0
    config.optimizer.clip_norm = 1.0
    config.optimizer.layer_decay = 0.75
    config.loss.label_smoothing = 0.1

    config.data.flips_turns = True
    config.data.crop_area = (0.7, 1.0)
    config.data.crop_ratio = (0.9, 1.1)
    config.data.brightness = 0.2
    config.data.contrast = 0.2
    config.data.saturation = 0.2
    config.data.hue = 0.02

    if variant == "dinov2":
        config.title = "BCViT-Base from pretrained DINOv2 ViT-B/14 weights"
        config.model.patch_size = 14
        config.model.stride = 10
        config.model.registers = 4
        config.model.layer_scale = 1e-5
    return config
