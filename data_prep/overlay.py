"""Pictures of fields with their boxes drawn in: true ones found, missed ones, false ones."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_prep.average_precision import Match
from data_prep.fields import Box
from data_prep.files import replace_file
from data_prep.pictures import read_pixels

# Okabe and Ito's colours, which the colour-blind tell apart; none of them is a dye's.
FOUND, MISSED, FALSE, TRUE = "#009E73", "#D55E00", "#F0E442", "#56B4E9"
LEGEND = (("found", FOUND), ("true place", TRUE), ("missed", MISSED), ("false", FALSE))
TILE = 320  # pixels of a picture on the sheet, at most


def draw_match(rgb: np.ndarray, match: Match) -> Image.Image:
    """The picture with the boxes of a comparison: found ones with score, missed and false ones."""
    picture = Image.fromarray(rgb)
    pen = ImageDraw.Draw(picture)
    for truth, found in match.pairs:
        _draw(pen, found, FOUND, 3, picture.height)
        _draw(pen, truth, TRUE, 1)
    for box in match.missed:
        _draw(pen, box, MISSED, 3)
    for box in match.false:
        _draw(pen, box, FALSE, 3, picture.height)
    return picture


def draw_boxes(rgb: np.ndarray, boxes: Sequence[Box]) -> Image.Image:
    """The picture with boxes and their scores."""
    picture = Image.fromarray(rgb)
    pen = ImageDraw.Draw(picture)
    for box in boxes:
        _draw(pen, box, FOUND, 3, picture.height)
    return picture


def _draw(
    pen: ImageDraw.ImageDraw, box: Box, colour: str, width: int, height: int | None = None
) -> None:
    # Pillow draws the second corner, too, which a box does not cover.
    x1, y1 = max(box.x1 - 1, box.x0), max(box.y1 - 1, box.y0)
    pen.rectangle((box.x0, box.y0, x1, y1), outline=colour, width=width)
    if height is not None and box.score is not None:
        text = f"{box.label} {box.score:.2f}"
        font = _font(max(11, height // 32))
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        x, y = box.x0, max(box.y0 - (bottom - top) - 6, 0)
        pen.rectangle((x, y, x + right - left + 6, y + bottom - top + 6), fill=colour)
        pen.text((x + 3 - left, y + 3 - top), text, fill="black", font=font)


@functools.lru_cache(16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def write_png(picture: Image.Image, path: Path) -> None:
    """Write a picture, beside and renamed."""
    replace_file(path, lambda file: picture.save(file, "PNG"))


def write_worst(matches: Sequence[Match], images: Path, folder: Path, count: int = 12) -> list[str]:
    """Write the fields with most errors as PNG, and all of them as the sheet `worst.png`.

    Those of an earlier call go. Returns the images drawn; none, and no file, without errors.
    """
    worst = sorted((match for match in matches if match.errors), key=lambda m: -m.errors)[:count]
    for path in ((folder / "worst.png"), *(folder / "worst").glob("[0-9][0-9]_*.png")):
        path.unlink(missing_ok=True)
    tiles = []
    for number, match in enumerate(worst, 1):
        picture = draw_match(read_pixels(images / match.image), match)
        write_png(picture, folder / "worst" / f"{number:02}_{Path(match.image).stem}.png")
        picture.thumbnail((TILE, TILE))
        tiles.append((picture, match))
    if tiles:
        write_png(contact_sheet(tiles), folder / "worst.png")
    return [match.image for match in worst]


def contact_sheet(pictures: Sequence[tuple[Image.Image, Match]], tile: int = TILE) -> Image.Image:
    """Pictures in rows of four at most, each with its name and errors; a legend on top."""
    columns = min(4, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    legend, caption = 28, 20
    size = (columns * (tile + 8) + 8, legend + rows * (tile + caption + 8) + 8)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    x = 10.0
    for text, colour in LEGEND:
        pen.rectangle((x, 8, x + 14, 22), fill=colour, outline="black")
        pen.text((x + 19, 8), text, fill="black", font=_font(12))
        x += 30 + pen.textlength(text, font=_font(12))
    for index, (picture, match) in enumerate(pictures):
        left = 8 + index % columns * (tile + 8)
        top = legend + index // columns * (tile + caption + 8)
        small = picture.copy()
        small.thumbnail((tile, tile))
        sheet.paste(small, (left, top + caption))
        text = f"{Path(match.image).name}: {len(match.missed)} missed, {len(match.false)} false"
        pen.text((left, top + 2), text, fill="black", font=_font(12))
    return sheet
