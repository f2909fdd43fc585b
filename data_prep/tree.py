"""A tree of class folders and its groups.csv, read by name only: no image is opened here."""

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_prep.errors import BuildError
from data_prep.images import OTHER_SUFFIXES, SUFFIXES

# Columns of groups.csv that may name the group, and the kind of group that each stands for.
GROUP_KINDS = {"donor": "donor", "patient": "donor", "slide": "slide"}
SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


def find_images(images: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Sorted sources (paths under `images`, with slashes) of each class folder, and notes.

    A class folder is a folder directly in `images`; its own subfolders belong to the class.
    Hidden files and whatever has no image suffix are passed over. Raises BuildError.
    """
    if not images.is_dir():
        raise BuildError(f"{images} is not a folder: --images takes a tree of class folders.")
    entries = sorted(path for path in images.iterdir() if not path.name.startswith("."))
    folders = {path.name: sorted(images_under(path, images)) for path in entries if path.is_dir()}
    found = {name: sources for name, sources in folders.items() if sources}
    if not found:
        raise BuildError(
            f"{images} has no class folders with images: put the images of each class into a "
            f"folder of its name, as in {images.name}/BAS/BAS_0001.tiff."
        )
    if SPLIT_NAMES.issuperset(name.lower() for name in found):
        raise BuildError(
            f"The folders of {images} are splits ({', '.join(found)}), not classes: give a tree "
            "whose folders are the classes; the build splits it into folds itself."
        )
    notes = []
    if empty := [name for name in folders if name not in found]:
        notes.append(f"Folders without images are left out: {', '.join(empty)}.")
    if stray := [path.name for path in entries if path.is_file() and _is_image(path.name)]:
        notes.append(f"Images in no class folder are left out: {', '.join(stray)}.")
    return found, notes


def _is_image(name: str) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    return not name.startswith(".") and (suffix in SUFFIXES or suffix in OTHER_SUFFIXES)


def images_under(folder: Path, images: Path) -> Iterable[str]:
    """The images in `folder` and its subfolders, as paths under `images`."""
    for directory, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            if _is_image(name):
                yield Path(directory, name).relative_to(images).as_posix()


def choose_classes(
    found: dict[str, list[str]],
    classes: Sequence[str],
    min_images: int,
    what: str = "class folders",
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The chosen classes (all, if `classes` is empty), and those dropped for too few images."""
    unknown = sorted(set(classes) - set(found))
    if unknown:
        raise BuildError(
            f"--classes names {', '.join(unknown)}, but the {what} are {', '.join(found)}."
        )
    chosen = {name: found[name] for name in found if not classes or name in classes}
    kept = {name: sources for name, sources in chosen.items() if len(sources) >= min_images}
    if not kept:
        largest = max(map(len, chosen.values()))
        raise BuildError(
            f"--min-images {min_images} leaves no class: the largest has {largest} images."
        )
    return kept, {name: sources for name, sources in chosen.items() if name not in kept}


def read_groups(
    path: Path, known: Iterable[str] | None, wanted: Iterable[str]
) -> tuple[str, dict[str, str]]:
    """The kind of group, "donor" or "slide", and the group of each source, from a groups.csv.

    Its header is `path,donor` or `path,slide` (more columns may follow). Every `wanted` source
    needs a group, and every path must be `known` (None: any path may stand there); what is wrong
    is listed in one BuildError.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            columns = list(rows.fieldnames or ())
            named = [name for name in columns if name in GROUP_KINDS]
            if "path" not in columns or len(named) != 1:
                raise BuildError(
                    f"{path} has the columns {', '.join(columns) or '(none)'}, but its first line "
                    "must be path,donor or path,slide."
                )
            pairs = [
                ((row["path"] or "").strip().replace("\\", "/"), (row[named[0]] or "").strip())
                for row in rows
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BuildError(f"{path} cannot be read as a CSV file in UTF-8: {error}.") from error
    known = None if known is None else set(known)
    groups, faults = {}, []
    for source, group in pairs:
        if not group:
            faults.append(f"{source}: has no {named[0]}")
        elif known is not None and source not in known:
            faults.append(f"{source}: is not an image of the tree")
        elif groups.setdefault(source, group) != group:
            faults.append(f"{source}: has two {named[0]}s, {groups[source]} and {group}")
    named_sources = {source for source, _ in pairs}
    faults += [f"{source}: is not in the table" for source in wanted if source not in named_sources]
    if faults:
        raise BuildError(listing(f"{path} does not fit the images in {len(faults)} places", faults))
    return GROUP_KINDS[named[0]], groups


def listing(sentence: str, lines: Iterable[str]) -> str:
    """The sentence with the lines below it."""
    return "\n  ".join([f"{sentence}:", *lines])
