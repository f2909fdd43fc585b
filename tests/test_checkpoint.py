"""Checkpoints are whole or not at all, and no damage to one goes unseen."""

import errno
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from bcvit_jax import checkpoint
from bcvit_jax.checkpoint import Checkpoints, all_finite, verify
from bcvit_jax.errors import RunError, UserError

EXTRA = {"stream": {"position": 3}, "seconds": 1.5}


def state(seed: int = 0) -> dict[str, Any]:
    """A nested state with a whole number and three float arrays."""
    rng = np.random.default_rng(seed)
    layers = [{"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)} for _ in range(2)]
    half = jnp.asarray(rng.normal(size=5), jnp.bfloat16)
    return {"step": jnp.asarray(seed, jnp.int32), "layers": layers, "half": half}


def abstract(tree: Any) -> Any:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        jax.eval_shape(lambda: tree),
    )


def assert_equal(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def flip_bit(path: Path) -> None:
    """One bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with the checkpoints of steps 3 and 7."""
    folder = tmp_path_factory.mktemp("saved")
    for step in (3, 7):
        Checkpoints(folder).save(step, state(step), {**EXTRA, "at": step})
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy of `saved` to damage."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def test_comes_back_as_it_was(saved):
    found = Checkpoints(saved).restore(abstract(state()))
    assert found is not None
    step, restored, extra = found
    assert (step, extra) == (7, {"step": 7, **EXTRA, "at": 7})
    assert_equal(restored, state(7))


def test_a_relative_folder_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Checkpoints(Path("run")).save(1, state(1), EXTRA)
    found = Checkpoints(Path("run")).restore(abstract(state()))
    assert found is not None
    assert_equal(found[1], state(1))


def test_nothing_there_is_none(tmp_path):
    assert Checkpoints(tmp_path / "none").restore(abstract(state())) is None


def test_the_newest_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 10, 11):
        checkpoints.save(step, state(step), EXTRA)
    assert checkpoints.steps() == [2, 10, 11]
    assert Checkpoints(tmp_path, keep=0).keep == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step_00000002",
        "step_00000010",
        "step_00000011",
    ]


def test_a_step_can_be_saved_again(folder):
    Checkpoints(folder).save(7, state(8), EXTRA)
    found = Checkpoints(folder).restore(abstract(state()))
    assert found is not None
    assert_equal(found[1], state(8))


def test_what_killed_processes_left_is_removed(folder):
    for name in (".partial-00000009", ".partial-00000001-old"):
        (folder / name / "state").mkdir(parents=True)
        (folder / name / "state" / "data").write_text("half")
    found = Checkpoints(folder).restore(abstract(state()))
    assert found is not None and found[0] == 7
    assert not list(folder.glob(".partial*"))


def files_of(path: Path) -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


def test_one_flipped_bit_in_any_file_is_found(folder):
    path = folder / "step_00000007"
    names = files_of(path)
    assert {"SHA256SUMS", "extra.json", "state/_CHECKPOINT_METADATA"} < set(names)
    assert len(names) > 8
    for name in names:
        content = (path / name).read_bytes()
        if content:
            flip_bit(path / name)
            assert verify(path) == f"{name} has changed"
        (path / name).write_bytes(content + b"\0")
        assert verify(path) == f"{name} has changed"
        (path / name).unlink()
        assert name in str(verify(path))
        (path / name).write_bytes(content)
    assert verify(path) is None
    (path / "stray").touch()
    assert verify(path) == "stray is not listed"


def test_any_flipped_bit_of_the_sums_is_found(folder):
    path = folder / "step_00000007"
    sums = path / "SHA256SUMS"
    content = sums.read_bytes()
    places = {*range(0, len(content), 29), *range(len(content) - 70, len(content))}
    for place in places | {i for i, byte in enumerate(content) if byte == ord("\n")}:
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            sums.write_bytes(damaged)
            assert verify(path) == "SHA256SUMS has changed", (place, bit)


@pytest.mark.parametrize("name", ["SHA256SUMS", "extra.json", "state/_CHECKPOINT_METADATA"])
def test_a_damaged_checkpoint_is_named_and_the_older_one_used(folder, name):
    flip_bit(folder / "step_00000007" / name)
    told: list[str] = []
    found = Checkpoints(folder, warn=told.append).restore(abstract(state()))
    assert found is not None
    assert found[0] == 3
    assert_equal(found[1], state(3))
    assert told == [f"checkpoint {folder / 'step_00000007'} is damaged: {name} has changed"]
    assert sorted(p.name for p in folder.iterdir()) == ["step_00000003", "step_00000007.bad"]
    Checkpoints(folder).save(7, state(7), EXTRA)  # the bad one is in nobody's way
    assert Checkpoints(folder).steps() == [3, 7]


def test_nothing_but_damaged_ones_is_an_error_that_stays(folder):
    for step in (3, 7):
        flip_bit(folder / f"step_{step:08d}" / "extra.json")
    for _ in range(2):  # a second try must not train anew in silence
        told: list[str] = []
        with pytest.raises(UserError, match="is damaged; restore one from a backup"):
            Checkpoints(folder, warn=told.append).restore(abstract(state()))
        assert len(told) == 2


def test_another_network_is_refused(saved):
    other = state()
    other["layers"][0]["kernel"] = jnp.zeros((3, 5))
    other["layers"].append({"kernel": jnp.zeros(2)})
    other["half"] = jnp.zeros(5, jnp.float32)  # Orbax alone would cast it in silence
    with pytest.raises(UserError) as error:
        Checkpoints(saved).restore(abstract(other))
    text = str(error.value)
    assert "step_00000007 is of another network" in text
    assert "layers.2.kernel is missing" in text
    assert "layers.0.kernel is float32(3, 4), not float32(3, 5)" in text
    assert "half is bfloat16(5,), not float32(5,)" in text


def no_space(*_args: Any, **_kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def hidden_in_tensorstore(*_args: Any, **_kwargs: Any) -> None:
    raise ValueError("RESOURCE_EXHAUSTED: Failed writing: /x [os_error_code='28']")


@pytest.mark.parametrize("fault", [no_space, hidden_in_tensorstore])
@pytest.mark.parametrize("place", ["save", "_write_sums"])
def test_a_full_disk_is_one_sentence_and_leaves_the_others(folder, monkeypatch, fault, place):
    monkeypatch.setattr(ocp if place == "save" else checkpoint, place, fault)
    with pytest.raises(RunError) as error:
        Checkpoints(folder).save(9, state(), EXTRA)
    assert str(error.value) == (
        f"checkpoint {folder / 'step_00000009'} can't be written (No space left on device); make "
        "room or mend the folder, then the same command again goes on from "
        f"{folder / 'step_00000007'}"
    )
    assert [verify(folder / f"step_0000000{n}") for n in (3, 7)] == [None, None]
    assert sorted(p.name for p in folder.iterdir()) == ["step_00000003", "step_00000007"]


def test_other_faults_of_saving_keep_their_traceback(tmp_path):
    with pytest.raises(TypeError):
        Checkpoints(tmp_path).save(1, state(), {"stream": object()})
    assert not list(tmp_path.iterdir())


def test_the_sums_are_those_of_sha256sum(saved):
    path = saved / "step_00000003"
    *lines, _ = (path / "SHA256SUMS").read_text().splitlines()
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((path / name).read_bytes()).hexdigest() == digest
    assert json.loads((path / "extra.json").read_text())["step"] == 3


@pytest.mark.parametrize(
    ("bad", "finite"), [(None, True), (np.nan, False), (np.inf, False), (-np.inf, False)]
)
def test_finite(bad, finite):
    tree = state()
    if bad is not None:
        tree["layers"][1]["kernel"] = tree["layers"][1]["kernel"].at[2, 3].set(bad)
    assert all_finite(tree) is finite
