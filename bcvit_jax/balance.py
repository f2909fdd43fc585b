"""Equal classes: which images are left out, which are turned, and whether before the split.

Leak-free is to split first and to balance the training folds alone. The paper seems to have
balanced first and split what came out: then turned copies of one cell stand in training and among
the held-out images. `config.data.protocol="paper"` does so, for comparison.
"""

import hashlib

import numpy as np
from PIL import Image

from bcvit_jax.augment import dihedral
from bcvit_jax.dataset import CellDataset

LEAK = (
    "The images were balanced before they were split into folds (config.data.protocol is 'paper'), "
    "so turned copies of one cell stand in training and among the held-out images: the figures are "
    "too high, and hold for no new cell."
)
"""What is said of figures under `protocol="paper"`."""


def balance_plan(labels: np.ndarray, target: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which images, turned how, make the classes equal: (index int64 [m], transform int8 [m]).

    A class of more than `target` images (0 = the median count of the classes present, rounded down)
    is undersampled without replacement. A smaller one grows to `target`, but at most eightfold,
    by distinct (image, flip or turn) pairs: all its originals first, then round after round one
    new transform of each image, so that no image comes more than once more often than another.
    Reading: the paper turns by 90 and 180 degrees and flips both ways, to a target that is lost;
    here all eight count.
    """
    classes, counts = np.unique(labels, return_counts=True)
    target = target or int(np.median(counts))
    rng = np.random.default_rng(seed)
    indices, transforms = [], []
    for wanted in classes:
        own = np.flatnonzero(labels == wanted)
        if len(own) >= target:
            indices.append(np.sort(rng.choice(own, target, replace=False)))
            transforms.append(np.zeros(target, np.int8))
            continue
        turns = rng.permuted(np.tile(np.arange(1, 8, dtype=np.int8), (len(own), 1)), axis=1)
        order = np.concatenate([rng.permutation(len(own)) for _ in range(7)])
        rounds = np.repeat(np.arange(7), len(own))
        extra = min(target - len(own), 7 * len(own))
        indices += [own, own[order[:extra]]]
        transforms += [np.zeros(len(own), np.int8), turns[order, rounds][:extra]]
    return np.concatenate(indices).astype(np.int64), np.concatenate(transforms)


class Copies(CellDataset):
    """The balanced copies of a data set's cells, dealt to as many folds without regard to groups.

    A copy's source is `SOURCE#t`, t the number of its flip or turn (`augment.dihedral`; 0: none),
    and its group is that of its cell. The copies and their folds depend on the data set and
    `target` alone, so that runs of any seed hold out the same images.
    """

    def __init__(self, cells: CellDataset, target: int):
        self.__dict__ |= cells.__dict__
        self.cells, self.donor_separated = cells, False
        added = f"balanced before splitting, target {target}"
        self.fingerprint, self.file_key = (
            hashlib.sha256(f"{key} {added}".encode()).hexdigest()
            for key in (cells.fingerprint, cells.file_key)
        )
        sizes = [len(cells.labels[fold]) for fold in cells.folds]
        label, source, group = (
            np.concatenate([arrays[fold] for fold in cells.folds])
            for arrays in (cells.labels, cells.sources, cells.groups)
        )
        place = np.concatenate([np.arange(size) for size in sizes])
        origin = np.repeat(np.arange(len(sizes)), sizes)
        index, transform = balance_plan(label, target, seed=0)
        fold_of = deal(label[index], len(sizes), seed=0)
        self._origin: dict[str, list[tuple[str, int, int]]] = {}
        for number, fold in enumerate(cells.folds):
            rows = np.flatnonzero(fold_of == number)
            own, turns = index[rows], transform[rows].tolist()
            self.labels = self.labels | {fold: label[own]}
            names = [f"{name}#{turn}" for name, turn in zip(source[own], turns, strict=True)]
            self.sources = self.sources | {fold: np.array(names, str)}
            self.groups = self.groups | {fold: group[own]}
            self._origin[fold] = [
                (cells.folds[origin[i]], int(place[i]), turn)
                for i, turn in zip(own, turns, strict=True)
            ]

    def png(self, fold: str, index: int) -> bytes:
        """The encoded picture of the copy's cell as it is stored, not turned."""
        origin, place, _ = self._origin[fold][int(index)]
        return self.cells.png(origin, place)

    def digests(self, fold: str) -> list[str]:
        """Of the copies' cells, so that a copy and its cell have the same."""
        found = {name: self.cells.digests(name) for name in self.cells.folds}
        return [found[origin][place] for origin, place, _ in self._origin[fold]]

    def _decode(self, fold: str, index: int) -> Image.Image:
        transform = self._origin[fold][int(index)][2]
        return Image.fromarray(dihedral(np.asarray(super()._decode(fold, index)), transform))


def deal(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each image, int [n]: each class shuffled and dealt in turn, groups ignored.

    A class begins at the fold where the class before it ended, so the folds are of one size.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), int)
    fold[order] = np.arange(len(labels)) % folds
    return fold


def under_protocol(cells: CellDataset, protocol: str, target: int) -> CellDataset:
    """What a run trains and is evaluated on: `cells` ("leak_free") or their `Copies` ("paper")."""
    return cells if protocol == "leak_free" else Copies(cells, target)
