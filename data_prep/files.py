"""Annotation files read and written with care: limits, whole sentences, never half a file."""

import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from data_prep.errors import BuildError
from data_prep.fields import Fault
from data_prep.images import FORMATS

MAX_BYTES = 256 * 2**20  # of one annotation file


def read_text(path: Path) -> str:
    """The text of an annotation file; raises Fault for what is too large or not UTF-8."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise Fault(
                f"has {size / 2**20:.0f} MiB, but an annotation file may have "
                f"{MAX_BYTES // 2**20}: if it holds imageData, save it without"
            )
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise Fault("is not text in UTF-8") from None
    except OSError as error:
        raise Fault(f"cannot be read ({error.strerror})") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises Fault."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise Fault(
            f"is no whole JSON file (line {error.lineno}, column {error.colno}: {error.msg})"
        ) from None
    except Fault:
        raise
    except ValueError:  # Python limits the digits of a whole number
        raise Fault("holds a number of thousands of digits") from None
    except RecursionError:
        raise Fault("is nested too deeply") from None


def size_of_image(path: Path) -> tuple[int, int] | None:
    """Width and height as a person sees the image, EXIF orientation applied; None if unreadable."""
    limit, Image.MAX_IMAGE_PIXELS = (Image.MAX_IMAGE_PIXELS, None)  # only the header is read
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                # Of a TIFF, Pillow tells the size as it is shown.
                turned = image.format != "TIFF" and image.getexif().get(0x0112) in (5, 6, 7, 8)
                width, height = image.size
                return (height, width) if turned else (width, height)
    except Exception:  # Pillow's readers raise many things
        return None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def json_text(content: Any) -> str:
    """JSON as Labelme writes it: UTF-8, indented by two; raises BuildError for NaN."""
    try:
        text = json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False)
    except ValueError as error:
        raise BuildError(f"A number cannot be written as JSON ({error}): mend it.") from error
    return text + "\n"


def write_json(path: Path, content: Any, overwrite: bool = False) -> None:
    """Write one JSON file, beside and renamed; raises BuildError if it is there."""
    write_files({path: json_text(content)}, overwrite)


def write_files(texts: dict[Path, str], overwrite: bool = False) -> None:
    """Write text files, each beside and renamed; none at all if one is there already."""
    there = [str(path) for path in texts if path.exists()]
    if folders := [str(path) for path in texts if path.is_dir()]:
        raise BuildError(f"{folders[0]} is a folder: give the name of a file.")
    if there and not overwrite:
        more = f" and {len(there) - 1} more files" if len(there) > 1 else ""
        raise BuildError(
            f"{there[0]}{more} would be overwritten: give --overwrite, or another --out."
        )
    for path, text in texts.items():
        # Half a surrogate pair, which UTF-8 has not, becomes the \\u… that JSON writes for it.
        data = text.encode("utf-8", "backslashreplace")
        replace_file(path, lambda file, data=data: file.write(data))


def replace_file(path: Path, write: Callable[[Any], Any]) -> None:
    """Write a file beside `path` (open for bytes), then rename it: never half there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
