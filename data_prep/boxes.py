"""Boxes of cells from one format to another: Labelme, MS COCO, Pascal VOC, out to Label Studio.

    python -m data_prep.boxes --from bccd/Annotations --to coco --out bccd.json
    python -m data_prep.boxes --from boxes.json --images smears --to labelme --out smears

What is read is told by what it is: a folder of JSON files (Labelme), a folder of XML files (VOC) or
one JSON file (COCO, which CVAT writes and reads as "COCO 1.0"). What one format knows and another
does not is kept in the files under other_formats, for the way back; of a COCO file's own lists,
licenses and categories without a box have no place in a folder of files. Nothing is overwritten
unasked.
"""

import argparse
import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_prep.coco import coco_from_fields, fields_from_coco, label_studio_from_fields
from data_prep.command import names, run_command, say
from data_prep.errors import BuildError
from data_prep.fields import Fault, Field, FieldSet, Findings, image_path, labels_of
from data_prep.files import (
    json_text,
    read_json,
    read_text,
    size_of_image,
    write_files,
    write_json,
)
from data_prep.labelme import field_from_labelme, labelme_from_field
from data_prep.tree import listing
from data_prep.voc import field_from_voc, voc_from_field

NOTES_SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.boxes",
        description="Convert boxes between Labelme, COCO, Pascal VOC and Label Studio.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        required=True,
        help="a COCO file, or a folder of Labelme or VOC files",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="file or folder to write; CVAT takes the COCO file in Upload annotations, COCO 1.0",
    )
    parser.add_argument(
        "--to", choices=("coco", "labelme", "voc", "label-studio"), required=True, help="the format"
    )
    parser.add_argument(
        "--images", type=Path, help="folder of the images: their names and sizes are checked"
    )
    parser.add_argument("--labels", type=names, help="only boxes with these labels, as in WBC,RBC")
    parser.add_argument(
        "--only", type=Path, help="only the images in this list, a name with or without suffix each"
    )
    parser.add_argument(
        "--prefix", default="", help="before each path for Label Studio: /data/local-files/?d="
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    return run_command(parser, arguments)


def run(options: argparse.Namespace) -> None:
    """Read, check, write and say what was found."""
    fields = read_boxes(options.source, options.images, notes=True)
    if options.only:
        fields = only(fields, options.only)
    if options.labels == ():
        raise BuildError("--labels names no label: give them as in WBC,RBC, or leave it out.")
    if options.labels:
        fields = fields.of_labels(options.labels)
    out: Path = options.out
    if options.to == "coco":
        write_json(out, coco_from_fields(fields), options.overwrite)
    elif options.to == "label-studio":
        tasks = label_studio_from_fields(fields, options.prefix)
        write_json(out, tasks, options.overwrite)
    elif options.to == "labelme":
        write_labelme(fields, out, options.images, options.overwrite)
    else:
        write_voc(fields, out, options.overwrite)
    say(f"{out}: {summary(fields)}")


def summary(fields: FieldSet) -> str:
    """As in `364 images, 4888 boxes (372 WBC, 4155 RBC, 361 Platelets)`."""
    counts = Counter(box.label for item in fields.fields for box in item.boxes)
    parts = [f"{counts[label]} {label}" for label in labels_of(fields.fields, fields.labels)]
    total = sum(counts.values())
    return f"{len(fields.fields)} images, {total} boxes" + (f" ({', '.join(parts)})" * bool(parts))


def read_boxes(source: Path, images: Path | None = None, notes: bool = False) -> FieldSet:
    """The fields of a COCO file or of a folder of Labelme or VOC files, in order of image.

    With `images`, every image must be there with the size that the boxes were drawn on. Raises
    BuildError with all faults at once; with `notes`, what was mended is printed.
    """
    findings = Findings()
    if source.is_dir():
        fields = _read_folder(source, images, findings)
    elif source.is_file():
        fields = _read_file(source, images, findings)
    else:
        raise BuildError(f"{source} is not there: give a file or folder with boxes.")
    if images is not None and not findings.faults:
        findings.faults.extend(_image_faults(fields, images))
    findings.raise_faults(str(source))
    if notes and findings.notes:
        shown = findings.notes[:NOTES_SHOWN]
        if more := len(findings.notes) - len(shown):
            shown.append(f"… and {more} more")
        say(listing(f"{source}: {len(findings.notes)} notes", shown))
    return fields


def _read_folder(folder: Path, images: Path | None, findings: Findings) -> FieldSet:
    places = {path.relative_to(folder): path for path in sorted(folder.rglob("*"))}
    files = {
        place.as_posix(): path
        for place, path in places.items()
        if path.suffix.lower() in (".json", ".xml")
        and not any(part.startswith(".") for part in place.parts)
    }
    suffixes = {path.suffix.lower() for path in files.values()}
    if len(suffixes) != 1:
        raise BuildError(
            f"{folder} holds {'JSON and XML files' if suffixes else 'no JSON or XML files'}: give "
            "a folder of either Labelme's .json or Pascal VOC's .xml files."
        )
    fields: dict[str, Field] = {}
    of_file: dict[str, str] = {}
    for place, path in files.items():
        try:
            item = _read_one(path, images or folder, findings, place)
            if item.image in fields:
                raise Fault(f"describes {item.image}, as {of_file[item.image]} does")
        except Fault as fault:
            findings.faults.append(f"{place} {fault}")
            continue
        fields[item.image], of_file[item.image] = item, place
    ordered = tuple(fields[image] for image in sorted(fields))
    return FieldSet(ordered, labels_of(ordered))


def _read_one(path: Path, images: Path, findings: Findings, place: str) -> Field:
    """A file of one image; raises Fault."""
    if path.suffix.lower() == ".xml":
        return field_from_voc(read_text(path), place, findings)
    return read_labelme(path, images, findings, place)


def _read_file(path: Path, images: Path | None, findings: Findings) -> FieldSet:
    try:
        of_one = path.suffix.lower() == ".xml"
        content = None if of_one else read_json(path)
        if of_one or (isinstance(content, dict) and "shapes" in content):
            item = _read_one(path, images or path.parent, findings, path.name)
            return FieldSet((item,), labels_of([item]))
    except Fault as fault:
        findings.faults.append(f"{path.name} {fault}")
        return FieldSet((), ())
    return fields_from_coco(content, findings)


def read_labelme(path: Path, images: Path, findings: Findings, place: str = "") -> Field:
    """One Labelme file; its image is a path relative to it and must lie under `images`.

    Folders are compared as they are named, then as they are with symbolic links followed.
    """
    content, size = read_json(path), None
    text = content.get("imagePath") if isinstance(content, dict) else None
    folder = root = ""
    for named in (os.path.abspath, os.path.realpath):
        folder, root = _slashes(named(path.parent)), _slashes(named(images))
        with contextlib.suppress(Fault):
            size = size_of_image(images / image_path(text, folder, root))
            break
    return field_from_labelme(content, place or path.name, folder, findings, size, root)


def _slashes(path: str) -> str:
    return path.replace(os.sep, "/")


def _image_faults(fields: FieldSet, images: Path) -> Iterable[str]:
    if not images.is_dir():
        yield f"--images {images} is not a folder"
        return
    for item in fields.fields:
        path = images / item.image
        if not path.is_file():
            yield f"{item.image} is not in {images}"
        elif (size := size_of_image(path)) is None:
            yield f"{item.image} cannot be read as a PNG, JPEG, TIFF or BMP image"
        elif size != (item.width, item.height):
            drawn = f"{item.width} x {item.height}"
            turned = size == (item.height, item.width)
            why = ": they were drawn on the picture as stored, not as shown (EXIF)" * turned
            yield f"{item.image} has {size[0]} x {size[1]} pixels, its boxes {drawn}{why}"


def only(fields: FieldSet, path: Path) -> FieldSet:
    """The fields named in a text file, a line each: the path or its last part, with suffix or not.

    Lines that begin with # are passed over. A name that fits no image, or several, is an error.
    """
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except Fault as fault:
        raise BuildError(f"{path} {fault}.") from fault
    by_name: dict[str, set[str]] = {}
    for image in (item.image for item in fields.fields):
        for name in (image, os.path.splitext(image)[0], Path(image).name, Path(image).stem):
            by_name.setdefault(name, set()).add(image)
    chosen, faults = [], []
    for line in lines:
        if line and not line.startswith("#"):
            fits = by_name.get(line, set())
            fits = fits & {line} or fits
            if len(fits) == 1:
                chosen += fits
            else:
                why = f"may be {' or '.join(sorted(fits))}" if fits else "is not among the images"
                faults.append(f"{line}: {why}")
    if faults:
        raise BuildError(listing(f"{path} does not fit the images, in {len(faults)} lines", faults))
    return fields.of_images(chosen)


def _file_names(fields: FieldSet, suffix: str) -> dict[str, Field]:
    """A file name for each field: that of its image; raises BuildError where two would be one."""
    found: dict[str, list[Field]] = {}
    for item in fields.fields:
        found.setdefault(os.path.splitext(item.image)[0] + suffix, []).append(item)
    doubled = [
        f"{name}: of {' and '.join(item.image for item in items)}"
        for name, items in found.items()
        if len(items) > 1
    ]
    if doubled:
        raise BuildError(listing("Several images would have one file: rename them", doubled))
    return {name: items[0] for name, items in found.items()}


def write_labelme(
    fields: FieldSet, out: Path, images: Path | None = None, overwrite: bool = False
) -> None:
    """A Labelme file for each image, under `out`; it points to the image in `images` (or `out`)."""
    root = os.path.realpath(images or out)
    texts = {}
    for name, item in _file_names(fields, ".json").items():
        folder = os.path.realpath((out / name).parent)
        content = labelme_from_field(item, _slashes(folder), _slashes(root))
        texts[out / name] = json_text(content)
    write_files(texts, overwrite)


def write_voc(fields: FieldSet, out: Path, overwrite: bool = False) -> None:
    """A VOC file for each image, under `out`; raises BuildError with all that XML cannot hold."""
    texts, findings = {}, Findings()
    for name, item in _file_names(fields, ".xml").items():
        try:
            texts[out / name] = voc_from_field(item)
        except Fault as fault:
            findings.faults.append(f"{item.image} {fault}")
    findings.raise_faults("The boxes")
    write_files(texts, overwrite)


if __name__ == "__main__":
    sys.exit(main())
