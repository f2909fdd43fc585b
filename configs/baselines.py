"""Convolutional networks from scratch on pbc10, as the paper's Table 3 sets them beside BCViT.

    python -m data_prep.build folder --images PBC10 --out data/pbc10
    python -m bcvit_jax.main --config=configs/baselines.py:resnet50
    python -m bcvit_jax.main --config=configs/baselines.py:resnet50,groupnorm

Variants: `:vgg16`, `:resnet18`, `:resnet50` (also without a variant), `:seresnet50`,
`:resnext50_32x4d`, `:efficientnet_b0`; `,groupnorm` takes group norm for batch norm, and `,short`
and `,plain` are those of configs/pbc10.py. Data, pixels, epochs and batch are that file's too;
the loss is cross-entropy alone. SGD with momentum and cosine for VGG and the ResNets (a tenth of
the rate for VGG, which has no norm), AdamW for EfficientNet. Wall-clock, results and learning
rates: not measured yet. With pretrained weights: --config.weights.path=resnet50.safetensors.
"""

from ml_collections.config_dict import placeholder

from configs import pbc10

NAMES = ("vgg16", "resnet18", "resnet50", "seresnet50", "resnext50_32x4d", "efficientnet_b0")


def get_config(variant: str = ""):
    """The first word of `variant` is the network."""
    name, *words = (variant or "resnet50").split(",")
    more = [word for word in words if word != "groupnorm"]
    if name not in NAMES or set(more) - {"short", "plain"}:
        raise ValueError(
            f"configs/baselines.py has no variant {variant!r}; it knows {', '.join(NAMES)}; behind "
            "each may stand ,groupnorm ,short ,plain"
        )
    config = pbc10.get_config(",".join(more))
    config.title = f"{', '.join([name, *words])}, from scratch on pbc10"
    config.model.name = name
    config.model.image_size = 112
    config.model.norm = placeholder(str)
    config.model.dropout = placeholder(float)
    if "groupnorm" in words:
        config.model.norm = "group"

    config.loss.contrastive = 0.0

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 5e-4
    config.optimizer.warmup_epochs = 1.0
    if name == "vgg16":
        config.optimizer.learning_rate = 0.005
    if name == "efficientnet_b0":
        config.optimizer.name = "adamw"
        config.optimizer.learning_rate = 2e-3
        config.optimizer.weight_decay = 0.05
    return config
