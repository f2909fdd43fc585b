"""The file of decoded squares: built once, whole or not at all."""

import os
import resource

import numpy as np
import pytest

from bcvit_jax.cache import Squares, open_square_file
from bcvit_jax.errors import UserError
from bcvit_jax.normalisation import Normalisation


def square(row: int) -> np.ndarray:
    return np.full((2, 2, 3), row, np.uint8)


def test_a_cache_is_built_once_and_a_damaged_one_again(tmp_path):
    path = tmp_path / "cache" / "squares.npy"
    open_square_file(path, 5, 2, square, threads=2)
    kept = open_square_file(path, 5, 2, lambda row: pytest.fail("built again"), threads=2)
    np.testing.assert_array_equal(kept[3], square(3))
    path.write_bytes(path.read_bytes()[:-20])
    mended = open_square_file(path, 5, 2, square, threads=2)
    np.testing.assert_array_equal(mended[4], square(4))


def test_a_build_that_fails_leaves_nothing_behind(tmp_path):
    def fails(row: int) -> np.ndarray:
        if row == 3:
            raise UserError("image 3 is broken")
        return square(row)

    with pytest.raises(UserError, match="image 3 is broken"):
        open_square_file(tmp_path / "squares.npy", 9, 2, fails, threads=2)
    assert list(tmp_path.iterdir()) == []


def test_two_builds_at_once_both_end_with_the_whole_file(tmp_path):
    path = tmp_path / "squares.npy"

    def interrupted(row: int) -> np.ndarray:
        if row == 2:  # another process builds the same file meanwhile
            open_square_file(path, 5, 2, square, threads=1)
        return square(row)

    ours = open_square_file(path, 5, 2, interrupted, threads=1)
    assert [int(ours[row][0, 0, 0]) for row in range(5)] == [0, 1, 2, 3, 4]
    assert [file.name for file in tmp_path.iterdir()] == ["squares.npy"]


def test_what_killed_builds_left_is_removed_but_not_a_build_under_way(tmp_path):
    old, new = (tmp_path / f"squares.npy.partial-{name}" for name in ("old", "new"))
    for file in (old, new):
        file.write_bytes(b"x")
    os.utime(old, (0, 0))
    open_square_file(tmp_path / "squares.npy", 2, 2, square, threads=1)
    assert not old.exists() and new.exists()


def test_a_cache_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cache .* can't be written .*config\.data\.cache"):
        open_square_file(tmp_path / "file" / "squares.npy", 2, 2, square, threads=1)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match="it needs 3 MB; make room"):
            open_square_file(
                tmp_path / "squares.npy", 10, 316, lambda _: np.zeros((316, 316, 3), np.uint8), 1
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_squares_normalised_otherwise_share_no_file(cells, tmp_path):
    middles = []
    ways = ((), (True,), (True, True), (True, True, True))
    for margin, way in zip((0, 4, 4, 4), ways, strict=True):
        normalise = Normalisation(*way)
        squares = Squares(cells, str(tmp_path), 0.8, 20, margin, normalise)
        middles.append(squares.middle("fold0", 3))
        expected = cells.square("fold0", 3, 0.8, 20, normalise=normalise)
        np.testing.assert_array_equal(middles[-1], expected)
    assert len({middle.tobytes() for middle in middles}) == 4


@pytest.mark.parametrize("cached", [False, True])
def test_the_middle_of_the_squares_is_the_same_with_a_margin_and_a_cache(cells, tmp_path, cached):
    cache = str(tmp_path) if cached else ""
    plain = Squares(cells, "", 0.8, 20)
    wide = Squares(cells, cache, 0.8, 20, margin=6)
    for fold, index in (("fold0", 0), ("fold4", 11)):
        expected = cells.square(fold, index, 0.8, 20)
        np.testing.assert_array_equal(plain.get(fold, index), expected)
        np.testing.assert_array_equal(wide.middle(fold, index), expected)
        assert wide.get(fold, index).shape == (32, 32, 3)
        np.testing.assert_array_equal(wide.get(fold, index)[6:26, 6:26], expected)
