"""Faster R-CNN by torchvision: create, save, load, use.

Torch is known here, in weight_files.py and in training.py alone.

Ren et al. 2015, arXiv 1506.01497; with feature pyramids, Lin et al. 2017, arXiv 1612.03144.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from safetensors.torch import save
from torch import Tensor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d

from data_prep.errors import BuildError
from data_prep.fields import Box, Field, number
from data_prep.files import replace_file
from data_prep.pictures import read_pixels
from data_prep.weight_files import (
    SUFFIXES,
    first_line,
    freeze_norms,
    load_weights,
    read_weights,
)

ARCHITECTURES = (
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
)
WEIGHTS_FILE, CARD_FILE = "detector.safetensors", "detector.json"
CARD = {"id": str, "architecture": str, "labels": list, "size": int, "sha256": str}
MORE = {"longest": int, "frozen_norms": float}
SIZES = (32, 8192)  # of the shorter side of an image, in pixels

# Smear images hold a few cells, not COCO's crowds: most of a training step on a CPU would go to
# 512 sampled boxes an image.
SAMPLING = {
    "rpn_pre_nms_top_n_train": 1000,
    "rpn_post_nms_top_n_train": 500,
    "box_batch_size_per_image": 64,
}


@dataclass
class Detector:
    """A network with what is needed to use it; `id` names its weights."""

    model: Any  # torchvision's FasterRCNN
    labels: tuple[str, ...]
    architecture: str
    id: str = ""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def versions() -> dict[str, str]:
    """What a detector was made with."""
    return {"torch": torch.__version__, "torchvision": torchvision.__version__}


def best_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# Create, save and load


def create_detector(
    architecture: str, labels: Sequence[str], weights: str, size: int | None = None, seed: int = 0
) -> Detector:
    """A Faster R-CNN for these labels on the best device.

    `size` is the length in pixels that the shorter side of an image is resized to (the longer one
    may reach twice that); by default the network's own.

    `weights`: "none" (random), a name of torchvision's (DEFAULT, COCO_V1: downloaded), or a local
    file (.safetensors, or a state dict of PyTorch's, read without executing anything). The layer
    that names the classes is always new, unless a file fits it.
    """
    _flush_denormals()
    _check_architecture(architecture)
    torch.manual_seed(seed)
    if weights == "none":
        model = _new_network(architecture, labels)
    elif Path(weights).suffix.lower() in SUFFIXES:
        tensors = read_weights(Path(weights))
        model = _new_network(architecture, labels)
        if not any(name.endswith("num_batches_tracked") for name in tensors):
            freeze_norms(model)  # as in torchvision's own files
        load_weights(model, tensors, weights)
    else:
        model = _published_network(architecture, weights)
        width = model.roi_heads.box_predictor.cls_score.in_features
        model.roi_heads.box_predictor = FastRCNNPredictor(width, len(labels) + 1)
    if size is not None:
        _set_sizes(model, size, 2 * size)
    return _on_best_device(model, labels, architecture)


def _flush_denormals() -> None:
    """Flush denormal numbers, which slow a CPU down three times in the first steps.

    Before all else: the threads that PyTorch starts later take the setting over.
    """
    torch.set_flush_denormal(True)


def _check_architecture(name: str) -> None:
    if name not in ARCHITECTURES:
        raise BuildError(
            f'The network "{name}" is unknown here: choose one of {", ".join(ARCHITECTURES)}.'
        )


def _new_network(architecture: str, labels: Sequence[str]) -> Any:
    make = getattr(torchvision.models.detection, architecture)
    # Without weights_backbone=None torchvision would still download a backbone.
    return make(weights=None, weights_backbone=None, num_classes=len(labels) + 1, **SAMPLING)


def _published_network(architecture: str, name: str) -> Any:
    known = torchvision.models.get_model_weights(architecture).__members__
    if name not in known:
        raise BuildError(
            f'--weights "{name}" is none of {architecture}: choose {", ".join(sorted(known))}, a '
            f"file ({', '.join(SUFFIXES)}), or none."
        )
    try:
        return getattr(torchvision.models.detection, architecture)(weights=known[name], **SAMPLING)
    except (OSError, HTTPException, RuntimeError) as error:  # no network, no room, a wrong hash
        raise BuildError(
            f"The weights {name} of {architecture} cannot be downloaded ({first_line(error)}): "
            "give --weights a local file, or none to train from nothing."
        ) from error


def _set_sizes(model: Any, shorter: int, longest: int) -> None:
    if not SIZES[0] <= shorter <= SIZES[1]:
        raise BuildError(f"The size is {shorter}, but must be from {SIZES[0]} to {SIZES[1]}.")
    model.transform.min_size, model.transform.max_size = (shorter,), longest


def _on_best_device(model: Any, labels: Sequence[str], architecture: str) -> Detector:
    # Channels last: PyTorch's convolutions on a CPU train 1.2 times as fast, on a GPU more.
    model = model.to(best_device(), memory_format=torch.channels_last)
    _settle_scales(model)
    return Detector(model, tuple(labels), architecture)


@torch.inference_mode()
def _settle_scales(model: Any) -> None:
    """Show the network a square of 256 pixels, of which it learns the strides of its maps.

    Left to itself torchvision guesses them from the first batch, and keeps a wrong guess where
    that is small: predictions would depend on the first image, and a resumed training differ.
    """
    side = 256
    maps = model.eval().backbone(torch.zeros(1, 3, side, side, device=best_device()))
    corners = torch.tensor([[0.0, 0.0, side, side]], device=best_device())
    model.roi_heads.box_roi_pool(maps, [corners], [(side, side)])


def save_detector(detector: Detector, folder: Path, card: Mapping[str, Any]) -> Detector:
    """Write weights and card to a folder; returns the detector with its id."""
    model = detector.model
    tensors = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    content = save(tensors)
    digest = hashlib.sha256(content).hexdigest()
    named = replace(detector, id=f"{detector.architecture}-{digest[:12]}")
    card = {
        "id": named.id,
        "architecture": detector.architecture,
        "labels": list(detector.labels),
        "size": model.transform.min_size[-1],
        "longest": model.transform.max_size,
        "sha256": digest,
        **_frozen_norms(model),
        **card,
    }
    replace_file(folder / WEIGHTS_FILE, lambda file: file.write(content))
    text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    replace_file(folder / CARD_FILE, lambda file: file.write(text.encode()))
    return named


def _frozen_norms(model: Any) -> dict[str, float]:
    """The epsilon of frozen batch norms, which no weight tells, if there are any."""
    found = {module.eps for module in model.modules() if isinstance(module, FrozenBatchNorm2d)}
    return {"frozen_norms": found.pop()} if found else {}


def load_detector(folder: Path) -> Detector:
    """A detector from the folder that training wrote; its checksum is verified."""
    _flush_denormals()
    card, path = _read_card(folder / CARD_FILE), folder / WEIGHTS_FILE
    _check_architecture(card["architecture"])
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != card["sha256"]:
        raise BuildError(
            f"{path} is missing or not the file that {CARD_FILE} was written with: train again, "
            "or copy the whole folder again."
        )
    model = _new_network(card["architecture"], card["labels"])
    if "frozen_norms" in card:
        freeze_norms(model, card["frozen_norms"])
    load_weights(model, read_weights(path), str(path), whole=True)
    _set_sizes(model, card["size"], card.get("longest", 2 * card["size"]))
    return replace(_on_best_device(model, card["labels"], card["architecture"]), id=card["id"])


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BuildError(
            f"{path} is not there: --detector needs the folder of a finished training."
        ) from None
    except (ValueError, OSError) as error:
        raise BuildError(f"{path} is damaged ({first_line(error)}): train again.") from error
    card = card if isinstance(card, dict) else {}
    # Cards of the first version have no "longest", those of networks that learn norms no norms.
    wanted = {**CARD, **{name: kind for name, kind in MORE.items() if name in card}}
    wrong = [name for name, kind in wanted.items() if not isinstance(card.get(name), kind)]
    if not wrong and not all(isinstance(label, str) and label for label in card["labels"]):
        wrong = ["labels"]
    if wrong:
        raise BuildError(f"{path} is damaged: it has no proper {', '.join(wrong)}; train again.")
    return card


# Use


def read_picture(path: Path) -> Tensor:
    """Pixels as float32 [3, h, w] in 0 … 1, as the picture is shown; raises BuildError."""
    return as_tensor(read_pixels(path))


def as_tensor(rgb: np.ndarray) -> Tensor:
    """uint8 [h, w, 3] to float32 [3, h, w]."""
    return torch.from_numpy(rgb.copy()).permute(2, 0, 1).float().div_(255.0)


def predict_fields(
    detector: Detector,
    paths: Iterable[tuple[str, Path]],
    batch_size: int = 4,
    min_score: float = 0.05,
) -> Iterator[Field]:
    """The boxes of each image (name, path), in order; images are decoded while others are run."""
    for names, pictures in _loaded(paths, batch_size):
        for name, picture, found in zip(names, pictures, detect(detector, pictures), strict=True):
            height, width = picture.shape[1:]
            boxes = tuple(box for box in found if (box.score or 0.0) >= min_score)
            yield Field(name, width, height, boxes)


def _loaded(
    paths: Iterable[tuple[str, Path]], batch_size: int
) -> Iterator[tuple[list[str], list[Tensor]]]:
    """Batches of names and pictures; two batches at most wait in memory."""
    rows = iter(paths)
    with ThreadPoolExecutor(1) as pool:

        def start() -> list[tuple[str, Any]]:
            chunk = [row for _, row in zip(range(batch_size), rows, strict=False)]
            return [(name, pool.submit(read_picture, path)) for name, path in chunk]

        waiting = start()
        while waiting:
            ready, waiting = waiting, start()
            yield [name for name, _ in ready], [future.result() for _, future in ready]


@torch.inference_mode()
def detect(detector: Detector, pictures: Sequence[Tensor]) -> list[tuple[Box, ...]]:
    """The boxes found in each picture [3, h, w], the surest first."""
    detector.model.eval()
    results = detector.model([picture.to(detector.device) for picture in pictures])
    return [
        _boxes(result, detector.labels, picture.shape[2], picture.shape[1])
        for result, picture in zip(results, pictures, strict=True)
    ]


def _boxes(
    result: Mapping[str, Tensor], labels: Sequence[str], width: int, height: int
) -> tuple[Box, ...]:
    rows = (result[name].tolist() for name in ("labels", "boxes", "scores"))
    boxes = []
    for index, (x0, y0, x1, y1), score in zip(*rows, strict=True):
        # Scaled back to the picture, a box may reach a rounding error over its border.
        x0, y0, x1, y1 = (number(v) for v in (x0, y0, min(x1, width), min(y1, height)))
        if x0 < x1 and y0 < y1:
            boxes.append(Box(labels[int(index) - 1], x0, y0, x1, y1, round(float(score), 4)))
    return tuple(boxes)


@torch.inference_mode()
def two_views(
    detector: Detector, picture: Tensor
) -> tuple[tuple[Box, ...], tuple[Box, ...], np.ndarray]:
    """Boxes found in a picture [3, h, w], those of its mirror image turned back, and features.

    The features are the means of the backbone's coarsest map, float32 [d] of length 1.
    """
    maps: list[Tensor] = []
    hook = detector.model.backbone.register_forward_hook(
        lambda module, inputs, output: maps.append(list(output.values())[-1])
    )
    try:
        plain, mirrored = detect(detector, [picture, picture.flip(-1)])
    finally:
        hook.remove()
    width = picture.shape[-1]
    back = tuple(replace(box, x0=width - box.x1, x1=width - box.x0) for box in mirrored)
    feature = maps[0][0].mean((-2, -1)).float().cpu().numpy()
    return plain, back, feature / max(float(np.linalg.norm(feature)), 1e-9)
