"""Train a Faster R-CNN: augmentation by flips, quarter turns, colour and size; exact resume."""

import hashlib
import json
import math
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_prep.detector import Detector, as_tensor
from data_prep.errors import BuildError
from data_prep.fields import Field, FieldSet
from data_prep.files import replace_file
from data_prep.pictures import read_pixels

SCALES = (0.8, 0.9, 1.0, 1.1, 1.25)  # of the network's own image size
LEAST_SIDE = 1.0  # of a box to learn, in pixels; torchvision raises for what rounds to no area


@dataclass(frozen=True)
class Recipe:
    """How a detector is trained; lengths of the shorter image side in pixels."""

    epochs: int = 20
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warm_up: int = 50  # steps
    sizes: tuple[int, ...] = ()  # of training; default: around the network's own
    jitter: float = 0.2  # of brightness, contrast and each colour
    seed: int = 0


def turned_pixels(rgb: np.ndarray, mirror: bool, turns: int) -> np.ndarray:
    """The picture [h, w, 3] mirrored left to right, then turned by quarters to the left."""
    return np.rot90(rgb[:, ::-1] if mirror else rgb, turns)


def turned_boxes(
    boxes: np.ndarray, width: int, height: int, mirror: bool, turns: int
) -> np.ndarray:
    """Boxes [n, 4] (x0, y0, x1, y1) moved as `turned_pixels` moves the picture."""
    x0, y0, x1, y1 = boxes.T
    if mirror:
        x0, x1 = width - x1, width - x0
    for _ in range(turns % 4):
        x0, y0, x1, y1 = y0, width - x1, y1, width - x0
        width, height = height, width
    return np.stack([x0, y0, x1, y1], axis=1)


def jittered(picture: Tensor, strength: float, rng: random.Random) -> Tensor:
    """Contrast, brightness and the strength of each colour changed by up to `strength`."""
    if not strength:
        return picture
    gain = torch.tensor([math.exp(rng.uniform(-strength, strength) / 2) for _ in range(3)])
    contrast = math.exp(rng.uniform(-strength, strength))
    shift = rng.uniform(-strength, strength) / 2
    mean = picture.mean()
    changed = (picture - mean) * contrast + mean + shift
    return (changed * gain[:, None, None]).clamp_(0.0, 1.0)


def augmented_example(
    item: Field, images: Path, labels: Sequence[str], jitter: float, seed: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """One picture [3, h, w] with its target, flipped, turned and coloured by `seed` alone."""
    rng = random.Random(seed)
    mirror, turns = rng.random() < 0.5, rng.randrange(4)
    rgb = read_pixels(images / item.image)
    kept = [box for box in item.boxes if min(box.x1 - box.x0, box.y1 - box.y0) >= LEAST_SIDE]
    corners = np.array([box.corners for box in kept], np.float32).reshape(-1, 4)
    corners = turned_boxes(corners, rgb.shape[1], rgb.shape[0], mirror, turns)
    picture = jittered(as_tensor(turned_pixels(rgb, mirror, turns)), jitter, rng)
    names = torch.tensor([labels.index(box.label) + 1 for box in kept], dtype=torch.int64)
    return picture, {"boxes": torch.from_numpy(corners.astype(np.float32)), "labels": names}


def chunks(count: int, recipe: Recipe, epoch: int) -> list[list[int]]:
    """Indices of the `count` images by batch, in the order of an epoch."""
    order = list(range(count))
    random.Random(f"{recipe.seed} {epoch}").shuffle(order)
    found = [order[at : at + recipe.batch_size] for at in range(0, count, recipe.batch_size)]
    if len(found) > 1 and len(found[-1]) < 2:  # batch norm wants two
        last = found.pop()
        found[-1] += last
    return found


def train_detector(
    detector: Detector,
    fields: FieldSet,
    images: Path,
    recipe: Recipe,
    state: Path | None = None,
    each_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
    each_step: Callable[[float], None] = lambda loss: None,
) -> None:
    """Train in place by AdamW with warm-up and a cosine to zero; every epoch is kept in `state`.

    Epochs and pictures follow from the recipe's seed, so a run taken up again from `state` gives
    what an undisturbed one gives. Raises BuildError if `state` is of another run.
    """
    model, items = detector.model, list(fields.fields)
    steps = len(chunks(len(items), recipe, 0))
    optimizer, schedule = _optimizer(model, recipe, steps * recipe.epochs)
    run, first = Run(model, optimizer, schedule), 0
    fingerprint = run_fingerprint(detector, fields, recipe) if state is not None else ""
    if state is not None and state.is_file():
        first = run.restore(state, fingerprint)
    own_sizes = model.transform.min_size
    model.transform.min_size = recipe.sizes or tuple(
        round(own_sizes[-1] * scale) for scale in SCALES
    )
    model.train()
    try:
        with ThreadPoolExecutor(2) as pool:
            for epoch in range(first, recipe.epochs):
                torch.manual_seed(recipe.seed * 1_000_003 + epoch)  # sampling of sizes and boxes
                losses = []
                for batch in _batches(pool, items, images, detector.labels, recipe, epoch):
                    losses.append(_train_step(detector, optimizer, *batch))
                    schedule.step()
                    each_step(losses[-1])
                if state is not None:
                    run.store(state, fingerprint, epoch + 1)
                each_epoch(epoch + 1, sum(losses) / len(losses))
    finally:
        model.transform.min_size = own_sizes
        model.eval()


def _optimizer(model: nn.Module, recipe: Recipe, total: int) -> tuple[Any, Any]:
    """AdamW without decay of norms and biases, and its schedule over `total` steps."""
    learned = [value for value in model.parameters() if value.requires_grad]
    decay = [value for value in learned if value.ndim > 1]
    other = [value for value in learned if value.ndim <= 1]
    groups = [{"params": decay, "weight_decay": recipe.weight_decay}]
    groups += [{"params": other, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    warm_up = min(recipe.warm_up, max(total // 4, 1))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / total)),
    )
    return optimizer, schedule


def _batches(
    pool: ThreadPoolExecutor,
    items: list[Field],
    images: Path,
    labels: Sequence[str],
    recipe: Recipe,
    epoch: int,
) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    """The batches of an epoch, each made while the one before is trained on."""

    def start(chunk: list[int]) -> list:
        return [
            pool.submit(
                augmented_example,
                items[at],
                images,
                labels,
                recipe.jitter,
                f"{recipe.seed} {epoch} {at}",
            )
            for at in chunk
        ]

    first, *others = chunks(len(items), recipe, epoch)
    waiting = start(first)
    for chunk in [*others, []]:
        ready, waiting = waiting, start(chunk)
        pictures, targets = zip(*(future.result() for future in ready), strict=True)
        yield list(pictures), list(targets)


def _train_step(
    detector: Detector,
    optimizer: torch.optim.Optimizer,
    pictures: list[Tensor],
    targets: list[dict[str, Tensor]],
) -> float:
    """One step, in float32: torchvision's anchors and boxes take the type of the maps, and in
    bfloat16 they would be whole pixels off.
    """
    device = detector.device
    pictures = [picture.to(device) for picture in pictures]
    targets = [{name: value.to(device) for name, value in row.items()} for row in targets]
    loss = sum(detector.model(pictures, targets).values(), torch.zeros((), device=device))
    value = float(loss.detach())
    if not math.isfinite(value):
        raise BuildError(f"The loss became {value}: try a smaller --learning-rate.")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(detector.model.parameters(), 5.0)
    optimizer.step()
    return value


def run_fingerprint(detector: Detector, fields: FieldSet, recipe: Recipe) -> str:
    """SHA-256 of all that decides a training but the pictures: weights at the start, boxes, recipe.

    To be taken before training changes the weights.
    """
    rows = [
        (item.image, [(box.label, *box.corners) for box in item.boxes]) for item in fields.fields
    ]
    transform = detector.model.transform
    size = [list(transform.min_size), transform.max_size]
    decides = [detector.architecture, detector.labels, size, rows, asdict(recipe)]
    digest = hashlib.sha256(json.dumps(decides).encode())
    for name, value in detector.model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy())
    return digest.hexdigest()


@dataclass(frozen=True)
class Run:
    """What changes in a training, kept in a file after every epoch."""

    model: Any
    optimizer: Any
    schedule: Any

    def store(self, state: Path, fingerprint: str, epoch: int) -> None:
        """Write the state after so many epochs."""
        parts = {name: part.state_dict() for name, part in vars(self).items()}
        content = {"fingerprint": fingerprint, "epoch": epoch, **parts}
        replace_file(state, lambda file: torch.save(content, file))

    def restore(self, state: Path, fingerprint: str) -> int:
        """Take up the training kept in `state`; returns the number of epochs done."""
        try:
            content = torch.load(state, map_location="cpu", weights_only=True)
            if content["fingerprint"] == fingerprint:
                for name, part in vars(self).items():
                    part.load_state_dict(content[name])
                return int(content["epoch"])
        except pickle.UnpicklingError as error:
            raise BuildError(
                f"{state} is no state of a training, nothing in it was executed: remove it to "
                "train anew."
            ) from error
        except Exception as error:  # of damaged files: IndexError, KeyError, RuntimeError, …
            raise BuildError(f"{state} is damaged: remove it to train anew.") from error
        raise BuildError(
            f"{state} is of a training with other boxes, weights or settings: choose another "
            "--out, or remove it to train anew."
        )
