"""Values as JSON, and files that are whole or not there."""

import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from bcvit_jax.files import to_json, write_json, write_whole


def test_plain_json_of_anything():
    given = {
        "path": Path("a/b"),
        1: (np.float32("nan"), np.int64(3), jnp.float32(0.5), float("inf")),
        "array": np.array([[1, 2]]),
        "yes": np.bool_(True),
    }
    assert to_json(given) == {
        "path": "a/b",
        "1": [None, 3, 0.5, None],
        "array": [[1, 2]],
        "yes": True,
    }


def test_names_that_are_no_text_come_back_from_the_file(tmp_path):
    """A file name in Latin-1 is bytes that are no UTF-8, which Python keeps as lone surrogates."""
    name = os.fsdecode("zählung é.png".encode("latin-1"))
    write_json(tmp_path / "names.json", {"names": [name, "Zählung µ.png"]})
    written = (tmp_path / "names.json").read_bytes()
    assert "Zählung µ.png".encode() in written and written.endswith(b"\n")
    assert json.loads(written) == {"names": [name, "Zählung µ.png"]}


def test_what_cannot_be_written_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "made" / "for it" / "file"
    write_whole(path, b"old")

    def no_room(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert [p.read_bytes() for p in path.parent.iterdir()] == [b"old"]
