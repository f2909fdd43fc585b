"""Sizes and readings of a BCViT: the fields of `config.model`."""

import dataclasses
from typing import Literal

from bcvit_jax.models.layers import grid_shape
from bcvit_jax.models.loop import in_a_loop


@dataclasses.dataclass(frozen=True)
class BCViTConfig:
    """Sizes and readings of one network; a wrong value raises ValueError with the rule."""

    num_classes: int = 10
    image_size: int = 224
    patch_size: int = 16
    stride: int = 12
    width: int = 768
    depth: int = 12
    """Blocks that give attention maps; the block of the kept tokens is extra."""
    heads: int = 12
    mlp_width: int = 3072
    activation: Literal["relu", "gelu"] = "relu"
    stem: tuple[int, ...] = ()
    """Channels of 3×3 convolutions of stride 2 before the patches, each with layer norm and
    activation (Xiao et al. 2021, arXiv 2106.14881); empty is the paper. Patch size and stride stay
    in pixels of the image."""
    selection: bool = True
    selection_depth: Literal["extra", "last"] = "extra"
    """Reading: `extra` is 12+1 blocks (the paper's parameter count), `last` 11+1 (TransFG)."""
    tokens_per_head: int = 1
    squeeze: Literal["mean", "max", "entropy"] = "max"
    """Reading: `mean` is the paper's constant; the others look at the class row of the map."""
    squeeze_width: int = 0
    """Hidden width of the squeeze-excitation layers; 0 is the number of maps."""
    selection_gradient: Literal["none", "straight_through"] = "straight_through"
    """Reading: `none` is the paper's argmax, which gives the squeeze-excitation no gradient.

    That of `straight_through` is next to none: the last block norms a kept token before it reads
    it, so the token's factor counts through epsilon only (1e-12 of the whole gradient in a fresh
    network)."""
    registers: int = 0
    """Learned tokens between the class token and the patches, never selected (Darcet et al. 2024,
    arXiv 2309.16588); DINOv2 weights may bring them."""
    layer_scale: float = 0.0
    """First value of a learned factor a channel on both branches of every block (Touvron et al.
    2021, arXiv 2103.17239), which DINOv2 weights bring; 0 leaves it out."""
    drop_path: float = 0.0
    """Chance that a residual branch is left out of an image's pass, rising linearly with depth."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the products; weights rest in float32. On a CPU all between products does too, and so do
    attention's own products, and bfloat16 pays on processors that have instructions for it."""

    def __post_init__(self):
        for name in ("num_classes", "image_size", "patch_size", "stride", "width", "depth"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be >= 1")
        for name in ("heads", "mlp_width", "tokens_per_head"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be >= 1")
        for name, field in (
            ("activation", ("relu", "gelu")),
            ("selection_depth", ("extra", "last")),
            ("squeeze", ("mean", "max", "entropy")),
            ("selection_gradient", ("none", "straight_through")),
            ("dtype", ("float32", "bfloat16")),
        ):
            value = getattr(self, name)
            _require(value in field, f"{name} is {value!r}; it must be one of {', '.join(field)}")
        _require(
            self.image_size >= self.patch_size,
            f"image_size {self.image_size} is smaller than patch_size {self.patch_size}; "
            "choose a larger image or a smaller patch",
        )
        _require(
            self.stride <= self.patch_size,
            f"stride {self.stride} is larger than patch_size {self.patch_size}, which would leave "
            "pixels unseen; choose a stride of at most the patch size",
        )
        _require(
            self.width % self.heads == 0,
            f"width {self.width} is not a multiple of heads {self.heads}; change one of them",
        )
        width = self.squeeze_width
        _require(width >= 0, f"squeeze_width is {width}; it must be >= 0 (0: the number of maps)")
        _require(self.registers >= 0, f"registers is {self.registers}; it must be >= 0")
        _require(self.layer_scale >= 0, f"layer_scale is {self.layer_scale}; it must be >= 0")
        channels = f"stem is {self.stem}; it must be channels, each >= 1, or ()"
        _require(all(c >= 1 for c in self.stem), channels)
        _require(0 <= self.drop_path < 1, f"drop_path is {self.drop_path}; it must be in [0, 1)")
        reduction = 2 ** len(self.stem)
        _require(
            self.patch_size % reduction == 0
            and self.stride % reduction == 0
            and self.image_size % reduction == 0,
            f"a stem of {len(self.stem)} convolutions needs image_size, patch_size and stride to "
            f"be multiples of {reduction}, not {self.image_size}, {self.patch_size}, {self.stride}",
        )
        _require(
            self.selection_depth == "extra" or self.depth >= 2,
            "selection_depth 'last' needs a depth of at least 2",
        )
        _require(
            self.tokens_per_head <= self.num_patches,
            f"tokens_per_head {self.tokens_per_head} is more than the {self.num_patches} patches",
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches (equation 1)."""
        return grid_shape(self.image_size, self.image_size, self.patch_size, self.stride)

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def first_patch(self) -> int:
        """Place of the first patch among the tokens: after the class token and the registers."""
        return 1 + self.registers

    @property
    def num_maps(self) -> int:
        """L−1 of equation 9: blocks whose attention maps are fused."""
        return self.depth - (self.selection and self.selection_depth == "last")

    @property
    def num_kept(self) -> int:
        """Patches that reach the last block, a head's own counted each."""
        return self.heads * self.tokens_per_head * self.selection

    @property
    def takes_key(self) -> bool:
        """Whether training differs from evaluation: the network is called with a key then."""
        return self.drop_path > 0

    def in_a_loop(self, images: int) -> bool:
        """Whether a batch goes through the blocks in a loop (`loop.in_a_loop`)."""
        return in_a_loop(images, self.first_patch + self.num_patches, self.mlp_width)


@dataclasses.dataclass(frozen=True)
class ConvolutionalConfig:
    """What the convolutional networks have in common; a wrong value raises ValueError."""

    num_classes: int = 10
    image_size: int = 224
    """Side that training and evaluation resize to; the network itself takes any."""
    norm: str = "batch"
    """`batch`, or `group`: moments of each image alone, which other stains shift less."""
    dropout: float = 0.0
    """Chance that a number before the last dense layer is 0."""
    drop_path: float = 0.0
    """Chance that a residual branch is left out of an image's pass, rising linearly with depth."""
    dtype: Literal["float32", "bfloat16"] = "float32"

    norms = ("batch", "group")
    num_kept = 0
    takes_key = True

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            parts = value if isinstance(value, tuple) else (value,)
            if all(type(part) is int for part in parts):
                least = 0 if name == "squeeze" else 1
                _require(min(parts) >= least, f"{name} is {value}; it must be >= {least}")
        for name in ("dropout", "drop_path"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"{name} is {value}; it must be in [0, 1)")
        for name, known in (("norm", self.norms), ("dtype", ("float32", "bfloat16"))):
            value = getattr(self, name)
            _require(value in known, f"{name} is {value!r}; it must be one of {', '.join(known)}")
        side = self.image_size
        _require(
            side >= 32, f"image_size is {side}; these networks halve it five times: 32 or more"
        )

    def in_a_loop(self, images: int) -> bool:
        """Never: no block is like the one before."""
        return False


def _require(condition: bool, sentence: str):
    if not condition:
        raise ValueError(sentence)
