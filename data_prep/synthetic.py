"""The embedded data set: rendered blood cells of ten types, and smear fields with boxes.

The types are told apart by what tells real ones apart on a Romanowsky-stained smear: shape and
lobes of the nucleus, chromatin, nucleoli, granules, nucleus-cytoplasm ratio and cytoplasm. Slides
differ so strongly in stain, light and camera that colour alone says little.

`render_cell` gives one crop, `render_field` a field with boxes, `render_dataset` a tree of class
folders with `groups.csv` (path, slide), as `python -m data_prep.build folder` reads it.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from data_prep.errors import BuildError
from data_prep.smear import Canvas, Disc, Drawn, free_spot, strew_platelets, strew_red_cells
from data_prep.stain import Stain, photograph
from data_prep.white_cell import CellType, Cytoplasm, Granules, Nucleus, draw_white_cell
from data_prep.workers import run_in_order

# Tints of granules: azure, purple, eosin, haemoglobin.
BASOPHILIC = (0.2, 1.0, 0.1, 0.0)
EOSINOPHILIC = (0.0, 0.0, 1.0, 0.15)
AZUROPHIL = (0.0, 0.75, 0.5, 0.0)
SPECIFIC = (0.0, 0.8, 0.4, 0.0)

# Typical values, general haematology knowledge as taught in atlases of blood and marrow smears
# (not measured on any one collection): lengths in µm, nucleus share = nucleus area / cell area,
# dye amounts in units of `data_prep.stain.DYES`.
CELL_TYPES = (
    CellType(
        "BAS",
        "basophil",
        diameter=(11.0, 14.0),
        nucleus=Nucleus("lobed", (0.40, 0.50), (0.60, 0.80), (0.10, 0.20), grain=1.0, lobes=(2, 3)),
        cytoplasm=Cytoplasm(azure=(0.05, 0.15), purple=(0.10, 0.25), mottling=0.2, ragged=0.02),
        granules=(Granules(BASOPHILIC, (1.3, 2.0), (0.30, 0.55), (0.7, 1.3), over_nucleus=0.95),),
    ),
    CellType(
        "EBO",
        "erythroblast",
        diameter=(8.5, 12.0),
        nucleus=Nucleus(
            "round",
            (0.26, 0.42),
            (1.10, 1.40),
            (0.12, 0.25),
            grain=1.1,
            off_centre=(0.0, 0.25),
        ),
        cytoplasm=Cytoplasm(
            azure=(0.08, 0.30), haemoglobin=(0.4, 0.9), mottling=0.05, ragged=0.025
        ),
    ),
    CellType(
        "EOS",
        "eosinophil",
        diameter=(12.0, 15.5),
        nucleus=Nucleus("lobed", (0.26, 0.33), (0.80, 1.05), (0.22, 0.32), grain=0.9, lobes=(2, 2)),
        cytoplasm=Cytoplasm(azure=(0.02, 0.08), eosin=(0.30, 0.50), mottling=0.1),
        granules=(Granules(EOSINOPHILIC, (2.4, 3.2), (0.30, 0.44), (0.6, 1.2)),),
    ),
    CellType(
        "LYT",
        "lymphocyte",
        diameter=(8.0, 11.0),
        nucleus=Nucleus(
            "round",
            (0.68, 0.85),
            (0.85, 1.10),
            (0.18, 0.28),
            grain=1.3,
            off_centre=(0.02, 0.12),
        ),
        cytoplasm=Cytoplasm(azure=(0.30, 0.60), mottling=0.1, rim=0.3, ragged=0.025),
    ),
    CellType(
        "MMZ",
        "metamyelocyte",
        diameter=(12.0, 15.5),
        nucleus=Nucleus(
            "kidney",
            (0.36, 0.46),
            (0.75, 1.00),
            (0.18, 0.30),
            grain=0.9,
            off_centre=(0.08, 0.22),
        ),
        cytoplasm=Cytoplasm(
            azure=(0.03, 0.10), purple=(0.03, 0.08), eosin=(0.06, 0.16), mottling=0.2
        ),
        granules=(Granules(SPECIFIC, (0.8, 2.0), (0.10, 0.17), (0.25, 0.5)),),
    ),
    CellType(
        "MON",
        "monocyte",
        diameter=(14.0, 18.5),
        nucleus=Nucleus(
            "folded",
            (0.42, 0.55),
            (0.55, 0.80),
            (0.18, 0.28),
            grain=0.6,
            off_centre=(0.0, 0.15),
        ),
        cytoplasm=Cytoplasm(
            azure=(0.18, 0.32),
            purple=(0.02, 0.08),
            mottling=0.2,
            vacuoles=(1, 6),
            ragged=0.055,
        ),
    ),
    CellType(
        "MYB",
        "myelocyte",
        diameter=(12.0, 16.0),
        nucleus=Nucleus(
            "oval",
            (0.42, 0.54),
            (0.72, 0.95),
            (0.18, 0.30),
            grain=0.9,
            off_centre=(0.22, 0.34),
        ),
        cytoplasm=Cytoplasm(
            azure=(0.08, 0.18),
            purple=(0.03, 0.08),
            eosin=(0.05, 0.12),
            mottling=0.2,
            pale_zone=0.3,
        ),
        granules=(Granules(SPECIFIC, (0.8, 1.8), (0.12, 0.22), (0.3, 0.6), over_nucleus=0.2),),
    ),
    CellType(
        "NGB",
        "neutrophil, band",
        diameter=(11.5, 15.0),
        nucleus=Nucleus("band", (0.28, 0.36), (0.85, 1.10), (0.18, 0.28), grain=0.8),
        cytoplasm=Cytoplasm(
            azure=(0.0, 0.06), purple=(0.03, 0.08), eosin=(0.06, 0.18), mottling=0.2
        ),
        granules=(Granules(SPECIFIC, (0.8, 2.0), (0.09, 0.15), (0.2, 0.4)),),
    ),
    CellType(
        "NGS",
        "neutrophil, segmented",
        diameter=(11.5, 15.0),
        nucleus=Nucleus("lobed", (0.28, 0.35), (0.90, 1.15), (0.18, 0.28), grain=0.8, lobes=(3, 5)),
        cytoplasm=Cytoplasm(
            azure=(0.0, 0.06), purple=(0.03, 0.08), eosin=(0.06, 0.18), mottling=0.2
        ),
        granules=(Granules(SPECIFIC, (0.8, 2.0), (0.09, 0.15), (0.2, 0.4)),),
    ),
    CellType(
        "PMO",
        "promyelocyte",
        diameter=(15.0, 19.0),
        nucleus=Nucleus(
            "round",
            (0.52, 0.66),
            (0.55, 0.78),
            (0.12, 0.22),
            grain=0.6,
            off_centre=(0.10, 0.20),
            nucleoli=(1, 3),
        ),
        cytoplasm=Cytoplasm(azure=(0.22, 0.42), mottling=0.2, rim=0.2, pale_zone=0.5),
        granules=(Granules(AZUROPHIL, (1.2, 2.4), (0.18, 0.32), (0.7, 1.1), over_nucleus=0.4),),
    ),
)
_BY_CODE = {kind.code: kind for kind in CELL_TYPES}
SYNTHETIC_CLASSES = tuple(_BY_CODE)

SLIDES = 25
CROP_UM = (18.5, 25.5)  # side of a crop


@dataclass(frozen=True)
class Box:
    """Tight box of one cell in pixels, half-open: x0 ≤ x < x1. Labels: codes, "RBC", "PLT"."""

    label: str
    x0: int
    y0: int
    x1: int
    y1: int


def render_cell(
    code: str, rng: np.random.Generator, size: int, stain: Stain | None = None
) -> NDArray[np.uint8]:
    """One white cell near the middle of a crop [size, size, 3], red cells around it.

    `stain` is the slide; by default a new one. Raises BuildError for an unknown code.
    """
    return render_cell_with_masks(code, rng, size, stain)[0]


def render_cell_with_masks(
    code: str, rng: np.random.Generator, size: int, stain: Stain | None = None
) -> tuple[NDArray[np.uint8], Drawn]:
    """As `render_cell`, with the masks and the box of the white cell."""
    kind = _kind(code)
    if size < 16:
        raise BuildError(f"size is {size}, but a rendered cell needs 16 pixels: ask for more.")
    stain = stain or Stain.draw(rng)
    side = rng.uniform(*CROP_UM)
    canvas = Canvas(size, size, size / side)
    x, y = (float(value) for value in side / 2 + np.clip(rng.normal(0.0, 1.4, 2), -3.0, 3.0))
    least, most = kind.diameter
    strew_red_cells(canvas, [(x, y, (least + most) / 4)], stain.crowding, rng)
    strew_platelets(canvas, [(x, y, most / 2)], int(rng.poisson(0.35)), rng)
    drawn = draw_white_cell(canvas, kind, (x, y), rng)
    return photograph(canvas.amounts, stain, canvas.pixels_per_um, rng), drawn


def render_field(
    rng: np.random.Generator,
    width: int = 640,
    height: int = 480,
    white_cells: int | None = None,
    pixels_per_um: float = 6.5,
    stain: Stain | None = None,
) -> tuple[NDArray[np.uint8], list[Box]]:
    """A smear field [height, width, 3] and the boxes of all its cells.

    Holds `white_cells` (default: two to six) cells of random types, red cells ("RBC") and
    platelets ("PLT"). Boxes are cut off at the border, as the cells are; a cell that lies behind
    another keeps its full box, slivers under three pixels have none.
    """
    if min(width, height) < 64:
        raise BuildError(f"a field is {width}x{height}, but needs 64 pixels a side: ask for more.")
    stain = stain or Stain.draw(rng)
    canvas = Canvas(width, height, pixels_per_um)
    count = int(rng.integers(2, 7)) if white_cells is None else white_cells
    kinds: list[CellType] = []
    places: list[Disc] = []
    for number in rng.integers(0, len(CELL_TYPES), count):
        radius = CELL_TYPES[number].diameter[1] / 2
        spot = free_spot(canvas, places, radius, 0.0, rng)
        if spot is not None:
            kinds.append(CELL_TYPES[number])
            places.append((*spot, radius))
    found = [("RBC", cell) for cell in strew_red_cells(canvas, places, stain.crowding, rng)]
    platelets = int(rng.poisson(width * height / pixels_per_um**2 / 900))
    found += [("PLT", cell) for cell in strew_platelets(canvas, places, platelets, rng)]
    for kind, (x, y, _) in zip(kinds, places, strict=True):
        found.append((kind.code, draw_white_cell(canvas, kind, (x, y), rng)))
    boxes = [Box(label, *cell.box) for label, cell in found if cell.box is not None]
    boxes = [box for box in boxes if min(box.x1 - box.x0, box.y1 - box.y0) >= 3]
    return photograph(canvas.amounts, stain, pixels_per_um, rng), boxes


def render_dataset(
    directory: Path,
    images_per_class: int = 150,
    size: int = 96,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Write `directory`/CODE/CODE_0001.png … and `directory`/groups.csv (path, slide).

    Each slide has its own stain and holds all classes. Every picture has a seed of its own, so
    the files depend on `seed` alone and not on `workers` (default: one a core).
    Raises BuildError if `directory` holds anything already or a number is not positive.
    """
    directory = Path(directory)
    if images_per_class < 1:
        raise BuildError(f"images_per_class is {images_per_class}, but must be at least 1.")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BuildError(f"{directory} is not an empty folder: name a new one or remove it.")
    for code in SYNTHETIC_CLASSES:
        (directory / code).mkdir(parents=True, exist_ok=True)
    slides = min(SLIDES, images_per_class)
    jobs = [
        (code, number, number % slides)
        for code in SYNTHETIC_CLASSES
        for number in range(images_per_class)
    ]
    tasks = [(directory, size, seed, *job) for job in jobs]
    rendered = run_in_order(_render_file, tasks, workers)
    rows = list(tqdm(rendered, total=len(jobs), desc="rendering", unit="image", disable=None))
    with (directory / "groups.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "slide"))
        writer.writerows(rows)


def _render_file(
    directory: Path, size: int, seed: int, code: str, number: int, slide: int
) -> tuple[str, str]:
    """Render and write one picture of the data set; its row of groups.csv."""
    stain = Stain.draw(np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, slide))))
    key = (1, SYNTHETIC_CLASSES.index(code), number)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
    name = f"{code}/{code}_{number + 1:04d}.png"
    picture = render_cell(code, rng, size, stain.vary(rng))
    Image.fromarray(picture).save(directory / name, compress_level=3)
    return name, f"slide{slide + 1:02d}"


def _kind(code: str) -> CellType:
    if code not in _BY_CODE:
        known = ", ".join(SYNTHETIC_CLASSES)
        raise BuildError(f'"{code}" is no cell type that can be rendered: choose one of {known}.')
    return _BY_CODE[code]
