"""What goes into the data set: every image read once, its group and its fold."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.cells import CELL_NAMES
from data_prep.errors import BuildError
from data_prep.folds import assign_folds, join_groups
from data_prep.scan import Scan, Spooled, scan_files
from data_prep.tree import choose_classes, find_images, listing, read_groups


@dataclass(frozen=True, slots=True)
class Example:
    """One image of the data set."""

    source: str  # path under the images folder, with slashes
    label: int
    group: str
    sha256: str  # of the source file
    fold: int
    png: Spooled


@dataclass(frozen=True)
class Plan:
    """All examples in order of source; `notes` are sentences for the person who builds.

    `tables` are further CSV files of the data set: file name -> rows, the header first.
    """

    class_names: tuple[str, ...]
    folds: int
    group_kind: str  # "donor", "slide" or "image"
    examples: list[Example]
    skipped: list[Scan] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)

    def counts(self) -> np.ndarray:
        """Images a class and fold, int [c, f]."""
        counts = np.zeros((len(self.class_names), self.folds), np.int64)
        for example in self.examples:
            counts[example.label, example.fold] += 1
        return counts

    def table(self) -> str:
        """The counts as text, a line a class, with the meaning of the codes that have one."""
        counts = self.counts()
        rows = [["class", "", *(f"fold{fold}" for fold in range(self.folds)), "all"]]
        for name, line in zip(self.class_names, counts, strict=True):
            rows.append([name, CELL_NAMES.get(name, ""), *map(str, line), str(line.sum())])
        rows.append(["all", "", *map(str, counts.sum(0)), str(counts.sum())])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )

    def metadata(self, tool: str, version: str) -> dict[str, str | bool]:
        """What the data set remembers of how it was made; the hash is over all its examples."""
        lines = sorted(
            f"fold{example.fold} {example.source} {example.label} {example.sha256}\n"
            for example in self.examples
        )
        return {
            "donor_separated": self.group_kind == "donor",
            "group_kind": self.group_kind,
            "content_sha256": hashlib.sha256("".join(lines).encode()).hexdigest(),
            "tool": tool,
            "version": version,
        }


def make_plan(
    images: Path,
    spool: Path,
    groups: Path | None = None,
    classes: Sequence[str] = (),
    min_images: int = 0,
    **how: Any,
) -> Plan:
    """Read a tree of class folders; the PNG of every image is left in the folder `spool`.

    `groups` defaults to groups.csv in the tree, if there is one; `how` is as in plan_images.
    """
    found, notes = find_images(images)
    chosen, dropped = choose_classes(found, classes, min_images)
    if groups is None and (images / "groups.csv").is_file():
        groups = images / "groups.csv"
    kind, group_of = "image", {}
    if groups is not None:
        known = (source for sources in found.values() for source in sources)
        wanted = (source for sources in chosen.values() for source in sources)
        kind, group_of = read_groups(groups, known, wanted)
    plan = plan_images(images, chosen | dropped, spool, kind, group_of, min_images, **how)
    if len(plan.class_names) == 1:
        (name,) = plan.class_names
        notes.append(
            f"There is one class only, {name}, which is enough to pretrain on and no more. The "
            f"folders in {images} are the classes: is it {images / name} that holds them?"
        )
    plan.notes[:0] = notes
    return plan


def plan_images(
    root: Path,
    found: dict[str, list[str]],
    spool: Path,
    kind: str,
    group_of: dict[str, str],
    min_images: int = 0,
    folds: int = 5,
    seed: int = 0,
    skip_bad: bool = False,
    workers: int | None = None,
    scan: Callable[..., list[Scan]] = scan_files,
) -> Plan:
    """The plan of the images of each class, paths under `root`, in their groups.

    `kind` is "donor", "slide" or "image"; an image that is not in `group_of` is a group of its own.
    `scan` reads the files, as scan_files does.
    Raises BuildError, which lists all bad files at once unless `skip_bad` leaves them out.
    """
    if folds < 2:
        raise BuildError(f"--folds is {folds}, but a held-out fold needs at least 2.")
    chosen, dropped = choose_classes(found, (), min_images)
    scans = scan(root, [s for sources in chosen.values() for s in sources], spool, workers)
    good, bad = _good_and_bad(scans, skip_bad)
    notes = []
    usable = {name: [s for s in sources if s in good] for name, sources in chosen.items()}
    kept, too_few = choose_classes(usable, (), max(min_images, 1))
    if small := sorted((dropped | too_few).items()):
        sizes = ", ".join(f"{name} ({len(sources)})" for name, sources in small)
        reason = f"fewer than {min_images} images" if min_images > 1 else "no usable image"
        notes.append(f"Classes with {reason} are left out: {sizes}.")

    names = tuple(kept)
    label_of = {s: label for label, sources in enumerate(kept.values()) for s in sources}
    sources = sorted(label_of)
    labels = [label_of[source] for source in sources]
    scans = [good[source] for source in sources]
    group_names, group_notes = name_groups(scans, labels, names, kind, group_of)
    if (separate := len(set(group_names))) < folds:
        raise BuildError(
            f"{separate} separate {kind}s cannot fill {folds} folds: "
            "give more images or a smaller --folds."
        )
    fold_of = assign_folds(labels, group_names, folds, seed)
    examples = [
        Example(source, label, group, good[source].sha256, fold, png)
        for source, label, group, fold in zip(sources, labels, group_names, fold_of, strict=True)
        if (png := good[source].png)
    ]
    plan = Plan(names, folds, kind, examples, bad, notes + group_notes)
    plan.notes.extend(_thin_classes(plan))
    return plan


def _good_and_bad(scans: Sequence[Scan], skip_bad: bool) -> tuple[dict[str, Scan], list[Scan]]:
    """What was read, by source, and the bad files; raises BuildError unless they are skipped."""
    bad = [scan for scan in scans if scan.reason]
    good = {scan.source: scan for scan in scans if not scan.reason}
    if bad and not (skip_bad and good):
        mend = "--skip-bad leaves them out" if good else "no image is left"
        lines = [f"{scan.source}: {scan.reason}" for scan in bad]
        raise BuildError(
            listing(f"{len(bad)} of {len(scans)} files cannot be used ({mend})", lines)
        )
    return good, bad


def name_groups(
    scans: Sequence[Scan],
    labels: Sequence[int],
    names: Sequence[str],
    kind: str,
    group_of: dict[str, str],
) -> tuple[list[str], list[str]]:
    """The group of each image, and notes on pixel-equal images that join groups or disagree.

    A group is a donor or slide if the user gave them, else the image (of a crop, the field that it
    is from); images that are pixel-equal under the eight flips and turns share one: donors are
    then joined by " + ", images take the name of the first.
    """
    own = [group_of.get(scan.source, scan.source) for scan in scans]
    roots = join_groups(
        [(("group", o), ("pixels", s.pixels)) for o, s in zip(own, scans, strict=True)]
    )
    members: dict[int, set[str]] = defaultdict(set)
    twins: dict[str, list[int]] = defaultdict(list)
    for item, root in enumerate(roots):
        members[root].add(own[item])
        twins[scans[item].pixels].append(item)
    merge = min if kind == "image" else " + ".join
    title = {root: merge(sorted(group)) for root, group in members.items()}
    notes = []
    twins = {pixels: items for pixels, items in twins.items() if len(items) > 1}
    if twins:
        notes.append(
            f"{sum(map(len, twins.values()))} images are {len(twins)} up to flips and turns: "
            "all are kept, equal ones in one fold."
        )
    conflicts = [items for items in twins.values() if len({labels[item] for item in items}) > 1]
    if conflicts:
        lines = [
            " = ".join(f"{scans[item].source} ({names[labels[item]]})" for item in items)
            for items in conflicts
        ]
        notes.append(listing(f"Equal images with different labels, {len(lines)} times", lines))
    joined = sorted(title[root] for root, group in members.items() if len(group) > 1)
    if kind != "image" and joined:
        notes.append(listing("Groups that share an equal image are kept together as one", joined))
    return [title[root] for root in roots], notes


def _thin_classes(plan: Plan) -> Iterator[str]:
    """A note on the classes that are missing from some folds."""
    filled = (plan.counts() > 0).sum(1)
    thin = [f"{n} ({k})" for n, k in zip(plan.class_names, filled, strict=True) if k < plan.folds]
    if thin:
        yield (
            f"Too few images or groups to fill {plan.folds} folds (number of folds filled): "
            f"{', '.join(thin)}; these classes are spread over as many folds as there are, and "
            "the other folds hold none of them."
        )
