"""AML-Cytomorphology_LMU as TCIA ships it: CLASS/CLASS_0001.tiff, every class of a known size."""

import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from data_prep.cells import LMU_COUNTS, LMU_LEAST
from data_prep.crop import make_plan, rows_of, write_crops
from data_prep.cut import Rule
from data_prep.errors import BuildError
from data_prep.tree import find_images, listing

TITLE = "AML-Cytomorphology_LMU"
SHOWN = 12  # names or ranges in a line


def lmu_classes(every: bool) -> tuple[str, ...]:
    """The ten classes of the paper, or all fifteen."""
    return tuple(code for code, count in LMU_COUNTS.items() if every or count > LMU_LEAST)


def find_lmu(
    images: Path, every: bool = False, partial: bool = False
) -> tuple[dict[str, list[str]], list[str]]:
    """Sources of each class, and notes; what is not as it should be is a note if `partial`.

    Raises BuildError for a tree that is another one, or that is not whole.
    """
    found, notes = find_images(images)
    wanted = lmu_classes(every)
    if not any(code in found for code in LMU_COUNTS):
        below = sorted({path.parent.name for path in images.glob(f"*/{wanted[0]}")})
        hint = f" (--images {images / below[0]}?)" if below else ""
        raise BuildError(
            f"{images} has none of the class folders {', '.join(wanted)}: give the folder of "
            f"{TITLE} that holds them{hint}."
        )
    lines = [line for code in wanted for line in compare(code, found.get(code, []))]
    if lines and not partial:
        mend = "complete the download, or build from what is there with --partial"
        raise BuildError(listing(f"{images} is not the whole of {TITLE} ({mend})", lines))
    if lines:
        notes.append(listing(f"This is not the whole of {TITLE}", lines))
    if others := [name for name in found if name not in LMU_COUNTS]:
        notes.append(f"Folders that are no class of {TITLE} are left out: {', '.join(others)}.")
    if small := [code for code in LMU_COUNTS if code in found and code not in wanted]:
        notes.append(
            f"Classes of {LMU_LEAST} images or fewer are left out, as in the paper (--all-classes "
            f"takes them): {', '.join(f'{code} ({len(found[code])})' for code in small)}."
        )
    return {code: found[code] for code in sorted(wanted) if code in found}, notes


def compare(code: str, sources: Sequence[str]) -> list[str]:
    """A line if the class has not as many images as it should: how many, which numbers."""
    count = LMU_COUNTS[code]
    if len(sources) == count:
        return []
    form = re.compile(rf"{code}/{code}_(\d+)\.tiff?", re.IGNORECASE)
    numbers, others = set(), []
    for source in sources:
        match = form.fullmatch(source)
        if match and 1 <= int(match[1]) <= count and int(match[1]) not in numbers:
            numbers.add(int(match[1]))
        else:
            others.append(source)
    text = f"{code}: {len(sources)} of {count} images"
    missing = [number for number in range(1, count + 1) if number not in numbers]
    if missing and sources:
        text += f"; missing: {_few(ranges(missing))}"
    if others:
        text += f"; not of the data set: {_few(others)}"
    return [text]


def ranges(numbers: Sequence[int]) -> list[str]:
    """Rising numbers as file names have them, as in 0001, 0004–0009."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return [f"{low:04}" if low == high else f"{low:04}–{high:04}" for low, high in runs]


def _few(texts: Sequence[str]) -> str:
    more = len(texts) - SHOWN
    return ", ".join(texts[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def crop_lmu(
    images: Path,
    found: dict[str, list[str]],
    boxes: Path,
    rule: Rule,
    folder: Path,
    workers: int | None = None,
) -> tuple[dict[str, list[str]], dict[str, str], list[tuple[str, str]]]:
    """A tree of crops in folder/crops: its sources a class, the field of each, and what is uncut.

    A field with one cell becomes its crop. One with none or several stays as it is: its label
    belongs to one cell, and nothing says to which; it is returned as (field, reason).
    """
    plan = make_plan(boxes, images, rule, {s for sources in found.values() for s in sources})
    whole = list(plan.without)
    whole += [(f.source, f"{len(f.cells)} cells in the field") for f in plan.fields if f.cells[1:]]
    plan = replace(plan, fields=[field for field in plan.fields if len(field.cells) == 1])
    crops = folder / "crops"
    bad = write_crops(plan, crops, folder / "parts", workers)
    field_of = {row.crop: row.source for row in rows_of(folder / "parts")}
    for source in [source for source, _ in (*whole, *bad)]:  # a bad file is told by the next step
        (crops / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(images / source, crops / source)
        field_of[source] = source
    return _by_class(field_of), field_of, sorted(whole)


def _by_class(sources: Iterable[str]) -> dict[str, list[str]]:
    classes: dict[str, list[str]] = {}
    for source in sorted(sources):
        classes.setdefault(PurePosixPath(source).parts[0], []).append(source)
    return classes
