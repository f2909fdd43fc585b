"""Files that are there whole or not at all, and values as JSON."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes) -> None:
    """Writes beside `path`, then renames: a reader finds the old file or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """`content` as `to_json` gives it, in UTF-8."""
    write_whole(path, json_bytes(content, indent))


def json_bytes(content: Any, indent: int | None = 1) -> bytes:
    """JSON text of `content` in UTF-8, with a new line at its end.

    Bytes of a file name that are no UTF-8 come as JSON's own escapes, and come back when read.
    """
    text = json.dumps(to_json(content), indent=indent, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode(errors="backslashreplace")


def to_json(value: Any) -> Any:
    """The same value of plain JSON types; NaN and infinity become null, unknown things text."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): to_json(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [to_json(item) for item in value]
        case _ if hasattr(value, "tolist"):  # arrays and scalars of NumPy and JAX
            return to_json(value.tolist())
    return str(value)
