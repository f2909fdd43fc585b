"""An exported network on the cells of another laboratory, BCCD:

    python -m tests.benchmarks.elsewhere --bccd BCCD --model exported/mine [--cut 1.2] [--json FILE]

`--cut` cuts the pictures as closely as other collections do, to that many times the cell's box;
`--picture FILE` draws some cells as they came and as the network is shown them.

BCCD (github.com/Shenggan/BCCD_Dataset, MIT) marks white cells without telling their type.
bccd_labels.csv tells it for 228 of the 372: by eye, by one of this project's authors, who is no
haematologist; cells cut by the border, blurred beyond telling or burst are left out. `NGS` there is
any neutrophil, so NGB counts as right too. Donors are not known. The recipe's colours were chosen
with these cells in sight (README): the figure is one of development, not of a test.
"""

import argparse
import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bcvit_jax.exported import BatchStep, Classifier, Preprocessing, from_pretrained
from bcvit_jax.files import write_whole
from bcvit_jax.intervals import proportion
from bcvit_jax.summary import aligned

SHOWN = {"NGS": 5, "EOS": 3, "LYT": 2}
LABELS = Path(__file__).with_name("bccd_labels.csv")
SIDE = 484  # pixels that show as much of the smear as 360 of pbc10's do, by their red cells
NEUTROPHILS = ("NGS", "NGB")
COMMON = 20  # cells that a class needs to count in the mean


def cells(folder: Path, cut: float = 0.0) -> tuple[list[np.ndarray], list[str], list[str]]:
    """Pictures uint8 [SIDE, SIDE, 3], mirrored at the border of their field; labels; files.

    With `cut` they are squares of that many times the longer side of the cell's box, at most SIDE.
    """
    pictures, labels, files = [], [], []
    half = SIDE // 2
    with LABELS.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            with Image.open(folder / "JPEGImages" / row["image"]) as opened:
                field = np.asarray(opened.convert("RGB"))
            field = np.pad(field, ((half, half), (half, half), (0, 0)), mode="reflect")
            x, y = int(row["x"]) + half, int(row["y"]) + half
            reach = min(half, round(cut * int(row["side"]) / 2)) if cut else half
            pictures.append(field[y - reach : y + reach, x - reach : x + reach])
            labels.append(row["label"])
            files.append(row["image"])
    return pictures, labels, files


def predicted(classifier: Classifier, pictures: list[np.ndarray], batch: int = 64) -> list[str]:
    """The most probable class of each picture."""
    step = BatchStep(classifier, batch)
    images = [classifier.preprocessing(picture) for picture in pictures]
    found: list[str] = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        logits = np.asarray(step(part)[0])[: len(part)]
        found += [classifier.class_names[place] for place in logits.argmax(axis=1)]
    return found


def score(labels: list[str], found: list[str], files: list[str]) -> dict[str, Any]:
    """Recall of each class with a 95 % interval that counts fields, and the mean over the classes
    of at least `COMMON` cells."""
    true, group = np.array(labels), np.array(files)
    pairs = zip(labels, found, strict=True)
    hit = np.array([a == b or {a, b} <= set(NEUTROPHILS) for a, b in pairs])
    classes = {}
    for name in sorted(set(labels)):
        own = true == name
        classes[name] = {
            "n": int(own.sum()),
            "recall": float(hit[own].mean()),
            "interval": proportion(hit[own], group[own]),
            "called": {
                other: int((np.array(found)[own] == other).sum())
                for other in sorted(set(np.array(found)[own]))
            },
        }
    common = [entry["recall"] for entry in classes.values() if entry["n"] >= COMMON]
    return {"balanced_accuracy": float(np.mean(common)), "classes": classes}


def table(result: dict[str, Any]) -> str:
    lines = [["label", "n", "recall", "95 %", "called"]]
    for name, entry in result["classes"].items():
        low, high = entry["interval"]
        called = sorted(entry["called"].items(), key=lambda pair: -pair[1])
        told = ", ".join(f"{other} {count}" for other, count in called)
        bounds = f"{low:.2f}–{high:.2f}"
        lines.append([name, str(entry["n"]), f"{entry['recall']:.2f}", bounds, told])
    mean = f"balanced accuracy of the classes with {COMMON} cells or more"
    return "\n".join([*aligned(lines), f"{mean}: {result['balanced_accuracy']:.3f}"])


def picture(classifier: Classifier, pictures: list[np.ndarray], labels: list[str]) -> Image.Image:
    """Some of the pictures' middles as they came, and below as the network is shown them."""
    rng = np.random.default_rng(0)
    rows = np.concatenate(
        [rng.permutation(np.flatnonzero(np.array(labels) == name))[:n] for name, n in SHOWN.items()]
    )
    taken = classifier.preprocessing
    plain = Preprocessing(taken.image_size, taken.square_size, taken.centre_crop)
    edge = ((0, 3), (0, 3), (0, 0))
    shown = [
        np.concatenate(
            [np.pad(way(pictures[row]), edge, constant_values=255) for row in rows], axis=1
        )
        for way in (plain, taken)
    ]
    return Image.fromarray(np.concatenate(shown))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.elsewhere",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bccd", type=Path, required=True, metavar="DIR", help="with JPEGImages/")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="of export")
    parser.add_argument("--turns", type=int, default=1, help="as predict's (1)")
    parser.add_argument("--cut", type=float, default=0.0, help="times the cell's box (pbc10's way)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw some cells as seen")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    chosen = parser.parse_args()
    pictures, labels, files = cells(chosen.bccd, chosen.cut)
    classifier = dataclasses.replace(from_pretrained(chosen.model), turns=chosen.turns)
    result = score(labels, predicted(classifier, pictures), files)
    print(table(result))
    if chosen.picture:
        picture(classifier, pictures, labels).save(chosen.picture)
    if chosen.json:
        write_whole(chosen.json, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
