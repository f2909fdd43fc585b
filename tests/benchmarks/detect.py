"""`detect predict` beside bare torchvision on the same detector and images, A B A B.

    python -m tests.benchmarks.detect --detector DIR --images DIR [--count 64] [--pairs 5]

Bare: Pillow decodes one image after another, the model takes batches of the same size; the weights,
their memory format and the number of threads are the same. A ratio is ours / bare in images a
second of a pair, so more is better; low and high are the smallest and largest of the pairs.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from data_prep.detect import find_image_files
from data_prep.detector import Detector, load_detector, predict_fields


def bare(detector: Detector, paths: Sequence[Path], batch_size: int) -> int:
    """The number of boxes that torchvision's model finds."""
    found, rows = 0, iter(paths)
    while batch := list(itertools.islice(rows, batch_size)):
        pictures = [to_tensor(Image.open(path).convert("RGB")) for path in batch]
        with torch.inference_mode():
            results = detector.model([picture.to(detector.device) for picture in pictures])
        found += sum(len(result["boxes"].tolist()) for result in results)
    return found


def ours(detector: Detector, paths: Sequence[Path], batch_size: int) -> int:
    """The number of boxes that `predict` finds, without a limit of score."""
    rows = ((path.name, path) for path in paths)
    return sum(len(item.boxes) for item in predict_fields(detector, rows, batch_size, 0.0))


def rates(
    sides: Sequence[Callable[..., int]], arguments: tuple[Detector, list[Path], int], pairs: int
) -> Iterator[list[float]]:
    """Images a second of each side, in turn; a first round, unmeasured, wakes both up."""
    for number in range(pairs + 1):
        row = []
        for side in sides:
            started = time.perf_counter()
            side(*arguments)
            row.append(len(arguments[1]) / (time.perf_counter() - started))
        if number:
            yield row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.detect")
    parser.add_argument("--detector", type=Path, required=True, help="folder that `train` wrote")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=64, help="images of a side; default 64")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    detector = load_detector(options.detector)
    names = itertools.islice(find_image_files(options.images), options.count)
    paths = [options.images / name for name in names]
    found = [side(detector, paths[:8], options.batch_size) for side in (ours, bare)]
    print(f"{found[0]} and {found[1]} boxes in the first {len(paths[:8])} images")
    rows = list(rates((ours, bare), (detector, paths, options.batch_size), options.pairs))
    ratios = [a / b for a, b in rows]
    middles = [statistics.median(side) for side in zip(*rows, strict=True)]
    print(
        f"{detector.architecture}, {torch.get_num_threads()} threads, {detector.device}: ours "
        f"{middles[0]:.3g}, torchvision {middles[1]:.3g} images/s, ratio "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
