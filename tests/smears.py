"""Rendered smears with boxes and a detector of a few layers, as tests of detection need them."""

import contextlib
import json
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from data_prep import detector
from data_prep.coco import coco_from_fields
from data_prep.fields import Box, Field, FieldSet
from data_prep.files import write_json
from data_prep.synthetic import render_field

ROOT = Path(__file__).resolve().parents[1]
TINY = "fasterrcnn_tiny"


def write_smears(folder: Path, count: int, width: int = 128, height: int = 96) -> FieldSet:
    """`count` rendered fields 00.png … with the boxes of their white cells, also as boxes.json."""
    folder.mkdir(parents=True)
    fields = []
    for number in range(count):
        rng = np.random.default_rng(number)
        rgb, found = render_field(rng, width, height, white_cells=2, pixels_per_um=2.5)
        name = f"{number:02}.png"
        Image.fromarray(rgb).save(folder / name)
        boxes = tuple(
            Box("WBC", box.x0, box.y0, box.x1, box.y1)
            for box in found
            if box.label not in ("RBC", "PLT")
        )
        fields.append(Field(name, width, height, boxes))
    smears = FieldSet(tuple(fields), ("WBC",))
    write_json(folder.parent / "boxes.json", coco_from_fields(smears))
    return smears


class Backbone(nn.Module):
    """Three convolutions, one map of stride 8."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 16), (16, 32), (32, 32)):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return OrderedDict([("0", self.layers(x))])


def fasterrcnn_tiny(num_classes: int, weights=None, weights_backbone=None, **more) -> FasterRCNN:
    """A whole Faster R-CNN of a hundred thousand weights."""
    return FasterRCNN(
        Backbone(),
        rpn_anchor_generator=AnchorGenerator(((16, 32, 48),), ((0.75, 1.0, 1.33),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 5, 2),
        box_head=TwoMLPHead(32 * 25, 64),
        box_predictor=FastRCNNPredictor(64, num_classes),
        min_size=96,
        max_size=160,
        **more,
    )


@contextlib.contextmanager
def tiny_torch(monkeypatch) -> Iterator[None]:
    """One thread, the tiny network among torchvision's, and PyTorch's settings put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(torchvision.models.detection, TINY, fasterrcnn_tiny, raising=False)
    monkeypatch.setattr(detector, "ARCHITECTURES", (*detector.ARCHITECTURES, TINY))
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def equal_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks are the same, bit for bit."""
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


KILL = """
import os, runpy, signal, sys
count, before, module, *sys.argv[1:] = sys.argv[1:]
replace, calls = os.replace, []
def dying(source, target):
    calls.append(target)
    if len(calls) < int(count):
        return replace(source, target)
    if before != "before":
        replace(source, target)
    os.kill(os.getpid(), signal.SIGKILL)
os.replace = dying
runpy.run_module(module, run_name="__main__")
"""


def killed(count: int, when: str, module: str, *arguments: str | Path) -> None:
    """Run a command that is killed (SIGKILL) before or after it renames its `count`-th file."""
    command = [sys.executable, "-c", KILL, str(count), when, module, *map(str, arguments)]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == -9, (ended.stdout, ended.stderr)


def ran(module: str, *arguments: str | Path) -> str:
    """Run a command of data_prep as a person does; returns what it said."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def edit_json(path: Path, **changes) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
