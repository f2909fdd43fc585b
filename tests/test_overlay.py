"""Pictures with boxes: colours say what was found, missed and false; the worst come first."""

import numpy as np
import pytest
from PIL import Image, ImageColor

from data_prep.average_precision import Match
from data_prep.errors import BuildError
from data_prep.fields import Box
from data_prep.overlay import (
    FALSE,
    FOUND,
    LEGEND,
    MISSED,
    TRUE,
    contact_sheet,
    draw_boxes,
    draw_match,
    write_worst,
)

GREY = np.full((120, 160, 3), 128, np.uint8)


def painted(picture: Image.Image, colour: str) -> np.ndarray:
    """Mask [h, w] of a colour."""
    return (np.asarray(picture) == ImageColor.getrgb(colour)).all(-1)


def bounds(mask: np.ndarray) -> tuple[int, ...]:
    rows, columns = np.nonzero(mask)
    return tuple(int(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))


def test_each_kind_of_box_has_its_colour_and_place():
    true, found = Box("WBC", 20, 60, 60, 100), Box("WBC", 24, 64, 64, 104, 0.87)
    missed, false = Box("RBC", 100, 70, 120, 90), Box("RBC", 130, 60, 160, 120, 0.5)
    match = Match("a.png", ((true, found),), (missed,), (false,))
    picture = draw_match(GREY, match)
    assert bounds(painted(picture, TRUE)) == true.corners
    assert bounds(painted(picture, MISSED)) == missed.corners
    x0, y0, x1, y1 = bounds(painted(picture, FOUND))
    assert (x0, y1) == (24, 104) and x1 >= 64 and y0 < 64  # with its score above
    x0, y0, x1, y1 = bounds(painted(picture, FALSE))
    assert (x0, x1, y1) == (130, 160, 120) and y0 < 60
    assert painted(picture, "black").any()  # the score
    assert len({colour for _, colour in LEGEND}) == 4
    assert (GREY == 128).all()  # the array is not drawn on


def test_boxes_at_the_border_and_of_one_pixel_are_drawn():
    boxes = [
        Box("WBC", 0, 0, 160, 120, 0.9),
        Box("WBC", 5, 5, 5.5, 5.5, 0.3),
        Box("é中", 1, 1, 9, 9),
    ]
    picture = draw_boxes(GREY, boxes)
    assert picture.size == (160, 120) and painted(picture, FOUND)[119, 159]
    assert painted(picture, FOUND)[5, 5]


def matches_of(tmp_path, errors: dict[str, int]) -> list[Match]:
    (tmp_path / "images").mkdir(exist_ok=True)
    found = []
    for name, count in errors.items():
        Image.fromarray(GREY).save(tmp_path / "images" / name)
        found.append(Match(name, (), (Box("WBC", 10, 10, 40, 40),) * count, ()))
    return found


def test_the_worst_are_written_and_those_of_before_go(tmp_path):
    out = tmp_path / "out"
    matches = matches_of(tmp_path, {"a.png": 1, "b.png": 0, "c.png": 3, "d.png": 1})
    assert write_worst(matches, tmp_path / "images", out) == ["c.png", "a.png", "d.png"]
    files = sorted(path.name for path in (out / "worst").iterdir())
    assert files == ["01_c.png", "02_a.png", "03_d.png"]
    sheet = Image.open(out / "worst.png")
    assert sheet.size[0] == 3 * 328 + 8 and painted(sheet, MISSED).any()
    (out / "worst" / "mine.png").write_bytes(b"kept")
    assert write_worst(matches, tmp_path / "images", out, 1) == ["c.png"]
    assert sorted(path.name for path in (out / "worst").iterdir()) == ["01_c.png", "mine.png"]
    assert write_worst(matches[1:2], tmp_path / "images", out) == []
    assert not (out / "worst.png").exists()


def test_an_image_that_cannot_be_read_is_a_sentence(tmp_path):
    matches = matches_of(tmp_path, {"a.png": 1})
    (tmp_path / "images/a.png").write_bytes(b"no picture")
    with pytest.raises(BuildError, match=r"a\.png is not a PNG, JPEG, TIFF or BMP image"):
        write_worst(matches, tmp_path / "images", tmp_path / "out")


def test_the_sheet_has_rows_of_four():
    tiles = [(Image.fromarray(GREY), Match("a.png", (), (), ()))] * 6
    assert contact_sheet(tiles, tile=80).size == (4 * 88 + 8, 28 + 2 * 108 + 8)
