"""The same jobs in PyTorch, from timm's blocks: what we want to be faster and lighter than."""

import io
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2

from tests.benchmarks.jobs import CLASSES, SIZES, Shape, random_batch


class RowAttention(Attention):
    """timm's attention, fused; `row` keeps the class token's row of the map."""

    def forward(self, x, attn_mask=None, is_causal=False):
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        self.row = self.look(q * self.scale, k)
        return self.proj(out.transpose(1, 2).reshape(b, n, self.attn_dim))

    def look(self, q, k):
        return (q[:, :, :1] @ k.transpose(-2, -1)).softmax(-1)[:, :, 0]


class MapAttention(RowAttention):
    """The whole map is made and kept, as in TransFG."""

    def forward(self, x, attn_mask=None, is_causal=False):
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        self.row = (q * self.scale @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((self.row @ v).transpose(1, 2).reshape(b, n, self.attn_dim))


class Network(nn.Module):
    """BCViT in PyTorch: class rows fused by squeeze-excitation and gathered at once (P1), or whole
    maps multiplied through the layers and tokens gathered image by image as in TransFG (P2)."""

    def __init__(self, shape: Shape, whole_maps: bool):
        super().__init__()
        width, heads, depth = SIZES[shape.size]
        side = (shape.side - 16) // shape.stride + 1
        self.patches = nn.Conv2d(3, width, 16, shape.stride)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, side * side + 1, width) * 0.02)
        layer = MapAttention if whole_maps else RowAttention
        settings: dict[str, Any] = dict(
            qkv_bias=True, act_layer=nn.ReLU, norm_layer=lambda d, **k: nn.LayerNorm(d, 1e-6, **k)
        )
        self.blocks = nn.ModuleList(
            Block(width, heads, attn_layer=layer, **settings) for _ in range(depth)
        )
        self.attentions: list[Any] = [cast(Any, block).attn for block in self.blocks]
        self.last = Block(width, heads, **settings)
        self.reduce, self.excite = nn.Linear(depth, depth), nn.Linear(depth, depth)
        self.norm, self.head = nn.LayerNorm(width, 1e-6), nn.Linear(width, CLASSES)
        self.whole_maps = whole_maps

    def forward(self, images):
        z = self.patches(images).flatten(2).transpose(1, 2)
        z = torch.cat([self.token.expand(len(z), -1, -1), z], 1) + self.position
        for block in self.blocks:
            z = block(z)
        rows = [attention.row for attention in self.attentions]
        z = self.roll_out(z, rows) if self.whole_maps else self.fuse(z, rows)
        feature = self.norm(self.last(z)[:, 0])
        return self.head(feature), feature

    def fuse(self, z, rows):
        rows = torch.stack(rows)  # [l, b, h, n]
        s = rows[..., 1:].amax(-1).mean(-1).T
        w = self.excite(self.reduce(s).relu()).softmax(-1)
        weight, kept = torch.einsum("bl,lbhn->bhn", w, rows)[:, :, 1:].max(-1)
        tokens = z[:, 1:].gather(1, kept[..., None].expand(-1, -1, z.shape[-1]))
        gate = 1.0 + (weight - weight.detach())
        return torch.cat([z[:, :1], tokens * gate[..., None]], 1)

    def roll_out(self, z, maps):
        product = maps[0]
        for other in maps[1:]:
            product = other @ product
        kept = product[:, :, 0, 1:].max(-1)[1] + 1
        parts = [z[i, kept[i]] for i in range(len(z))]
        return torch.cat([z[:, :1], torch.stack(parts)], 1)


def contrastive(feature, label, alpha: float = 0.4):
    feature = F.normalize(feature)
    cosine = feature @ feature.T
    same = label[:, None] == label[None]
    return torch.where(same, 1 - cosine, (cosine - alpha).clamp_min(0)).mean()


def train(
    shape: Shape, network: nn.Module | None = None, weight: float = 1.0
) -> Callable[[], object]:
    """A step of SGD with momentum on a fixed batch (P1); `weight` of the contrastive loss."""
    network = network or Network(shape, whole_maps=False)
    batch = random_batch(shape)
    pixels = torch.from_numpy(batch["image"])
    label = torch.from_numpy(batch["label"]).long()
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)

    def step():
        with _products_in(shape.dtype):
            output = network(prepared(pixels))
        logits, *feature = output if weight else (output,)
        loss = F.cross_entropy(logits.float(), label)
        if weight:
            loss = loss + weight * contrastive(feature[0].float(), label)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def train_whole_maps(shape: Shape) -> Callable[[], object]:
    """The same with whole maps (P2)."""
    return train(shape, Network(shape, whole_maps=True))


def train_cnn(shape: Shape) -> Callable[[], object]:
    """The same of a convolutional network, with cross-entropy alone."""
    return train(shape, baseline(shape.size), weight=0.0)


def baseline(name: str, **changes: Any) -> nn.Module:
    """torchvision's network; timm's SE-ResNet-50, which torchvision has not."""
    if name == "seresnet50":
        return timm.create_model(name, num_classes=CLASSES, **changes)
    return getattr(torchvision.models, name)(num_classes=CLASSES, **changes)


def forward(shape: Shape) -> Callable[[], object]:
    """Logits of a fixed batch (P1)."""
    return _inference(Network(shape, False).eval(), shape)


def forward_plain(shape: Shape) -> Callable[[], object]:
    """timm's plain Vision Transformer of stride 16 (P3)."""
    name = {"vit_t": "tiny", "vit_s": "small", "vit_b": "base"}[shape.size]
    return _inference(timm.create_model(f"vit_{name}_patch16_224", num_classes=CLASSES), shape)


def _inference(network: nn.Module, shape: Shape) -> Callable[[], object]:
    network.eval()
    pixels = torch.from_numpy(random_batch(shape)["image"])

    @torch.inference_mode()
    def step():
        with _products_in(shape.dtype):
            return network(prepared(pixels))

    return step


def _products_in(dtype: str):
    """Nothing for float32, PyTorch's own mixed precision for bfloat16."""
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")


def prepared(pixels):
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0


class Cells(Dataset):
    """PNG bytes → the augmentation of configs/pbc10.py, as torchvision has it (P4)."""

    def __init__(self, images: list[bytes], shape: Shape):
        self.images = images
        self.changes = v2.Compose(
            [
                v2.PILToTensor(),
                v2.CenterCrop(shape.decoded),
                v2.Resize(shape.cached, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
                v2.RandomResizedCrop(shape.side, (0.7, 1.0), (0.9, 1.1), antialias=True),
                v2.ColorJitter(0.2, 0.2, 0.2, 0.02),
            ]
        )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        with Image.open(io.BytesIO(self.images[index])) as image:
            return self.changes(image.convert("RGB"))


def read(shape: Shape, images: list[bytes]) -> Callable[[], object]:
    """A batch from a DataLoader of two workers, which go on without end."""
    cells = Cells(images, shape)
    order = RandomSampler(cells, replacement=True, num_samples=2**31)
    batches = iter(DataLoader(cells, shape.batch, sampler=order, num_workers=2))
    return lambda: np.asarray(next(batches))
