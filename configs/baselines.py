"""Convolutional networks from scratch on pbc10, as the paper's Table 3 sets them beside BCViT.

    python -m data_prep.build folder --images PBC10 --out data/pbc10
    python -m bcvit_jax.main --config=configs/baselines.py:resnet50
    python -m bcvit_jax.main --config=configs/baselines.py:resnet50,groupnorm

Table 3, the networks beside BCViT with the same images, pixels and minutes:

    python -m bcvit_jax.sweep --config=configs/baselines.py:minutes --seeds 0,1,2 --out runs/table3

Variants: `:vgg16`, `:resnet18`, `:resnet50` (also without a variant), `:seresnet50`,
`:resnext50_32x4d`, `:efficientnet_b0`, and `:bcvit`, which is `configs/pbc10.py`; `,groupnorm`
takes group norm for batch norm, `,short`, `,six` and `,plain` are those of configs/pbc10.py. Data,
pixels, epochs and batch are that file's too; with `,minutes` as many epochs, or what part of one,
as a CPU core with AVX512-BF16 does in BCViT's time. Cross-entropy alone, with warm-up and cosine.
Optimizers were chosen on fold 1, trained on folds 2-4, `,short,minutes` at `e73b8f1` (two epochs of
ResNet-18, three of EfficientNet), seed 0: ResNet-18 0.639 with AdamW at 2e-3 and 0.592 with SGD at
0.05 (Muon, BCViT's own, takes nearly half of its images a second); EfficientNet 0.553 with Muon at
4e-3 and 0.531 with AdamW at 2e-3. The deeper ResNets have ResNet-18's, VGG, which has no norm, SGD
at 0.005: not searched. With pretrained weights: --config.weights.path=resnet50.safetensors.
"""

from ml_collections.config_dict import placeholder

from configs import pbc10

NAMES = ("vgg16", "resnet18", "resnet50", "seresnet50", "resnext50_32x4d", "efficientnet_b0")
# Training images a second beside BCViT's (56 on one of two busy CPU cores, batch 64): BCViT's
# products are bfloat16, the convolutions float32, which XLA has no faster form of.
_SPEED = {"vgg16": 0.05, "resnet18": 0.48, "resnet50": 0.16, "seresnet50": 0.14}
_SPEED |= {"resnext50_32x4d": 0.12, "efficientnet_b0": 0.52}


def variants() -> list[str]:
    """The networks of Table 3 by name, the paper's own first."""
    return ["bcvit", *NAMES]


def get_config(variant: str = ""):
    """One network's name, and any of the other words, in any order."""
    words = variant.split(",") if variant else []
    names = [word for word in words if word in variants()] or ["resnet50"]
    more = [word for word in words if word not in names]
    name, own = names[0], set(more) & {"groupnorm", "minutes"}
    if (
        len(names) > 1
        or set(more) - own - {*pbc10.EPOCHS, "plain"}
        or (name == "bcvit" and "groupnorm" in own)
    ):
        raise ValueError(
            f"configs/baselines.py has no variant {variant!r}; it knows "
            f"{', '.join(variants())}; behind each may stand ,short or ,six, ,plain, ,minutes and, "
            "but for bcvit, ,groupnorm"
        )
    base = ",".join(word for word in more if word not in own)
    config = pbc10.get_config(base)
    if name == "bcvit":
        return config
    config.title = f"{', '.join([name, *more])}, from scratch on pbc10"
    if "minutes" in own:
        with config.ignore_type():  # the field is of whole numbers in configs/base.py
            config.epochs = round(config.epochs * _SPEED[name], 2)
    config.model.name = name
    config.model.image_size = 112
    config.model.stem = placeholder(tuple)
    del config.model["squeeze"]  # a BCViT's is a word
    config.model.squeeze = placeholder(int)
    config.model.dtype = "float32"
    config.model.norm = placeholder(str)
    config.model.dropout = placeholder(float)
    if "groupnorm" in words:
        config.model.norm = "group"

    config.loss.contrastive = 0.0

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.warmup_epochs = min(1.0, config.epochs / 6)
    if name == "efficientnet_b0":
        config.optimizer.name = "muon"
        config.optimizer.learning_rate = 4e-3
    if name == "vgg16":
        config.optimizer.name = "sgd"
        config.optimizer.momentum = 0.9
        config.optimizer.learning_rate = 0.005
        config.optimizer.weight_decay = 5e-4
    return config
