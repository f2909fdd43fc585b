"""Any image file to 8-bit RGB pixels, and the digest that finds one cell turned or flipped."""

import hashlib
import io
import warnings
from typing import IO

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".bmp"})
# Images that are not read: reported as bad files, where silence would lose cells.
OTHER_SUFFIXES = frozenset(
    {".gif", ".webp", ".jp2", ".heic", ".avif", ".dcm", ".czi", ".svs", ".ndpi", ".npy"}
)
MAX_PIXELS = 64_000_000
# Full scale of the cameras behind 16-bit files: 8, 10, 12, 14 or 16 bits.
FULL_SCALES = (255, 1023, 4095, 16383, 65535)


class BadImage(ValueError):
    """The reason why a file gives no picture, as the end of the sentence `FILE: …`."""


def read_rgb(file: IO[bytes]) -> np.ndarray:
    """Pixels of an open PNG, JPEG, TIFF or BMP file, uint8 [h, w, 3]; 8-bit RGB is kept as it is.

    The EXIF orientation is applied; grey, 1-bit, palette and CMYK become RGB; colour profiles are
    ignored; of several pages the first is read. A picture that is not opaque is laid on white.
    16-bit grey is scaled by the smallest of FULL_SCALES that holds its largest value; of 16-bit
    colour, Pillow keeps the upper byte, so files that use only the lower bits are refused.
    Raises BadImage.
    """
    limit, Image.MAX_IMAGE_PIXELS = (Image.MAX_IMAGE_PIXELS, None)  # we check the size ourselves
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(file)
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage("is not a PNG, JPEG, TIFF or BMP image") from None
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error, …
        raise BadImage(f"cannot be decoded ({error or type(error).__name__})") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _decode(file: IO[bytes]) -> np.ndarray:
    image = Image.open(file, formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(
            f"has {width} x {height} pixels, but an image may have {MAX_PIXELS // 10**6} million"
        )
    return rgb(image)


def rgb(image: Image.Image) -> np.ndarray:
    """Pixels of a Pillow image, uint8 [h, w, 3], turned, scaled and laid on white as `read_rgb`
    tells; of 16-bit colour only what is not loaded yet can be refused. Raises BadImage.
    """
    sixteen_bit_colour = ";16" in str(getattr(image, "tile", "")) and image.mode[0] != "I"
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise BadImage("has floating-point samples: convert it to 8 or 16 bits")
    if image.mode[0] == "I":
        return np.repeat(scale_to_bytes(np.asarray(image))[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
    pixels = np.asarray(image.convert("RGB"))
    if sixteen_bit_colour and pixels.max() <= FULL_SCALES[-2] >> 8:
        raise BadImage("is 16-bit colour that uses 14 bits or fewer: convert it to 8 bits")
    return pixels


def scale_to_bytes(samples: np.ndarray) -> np.ndarray:
    """Grey samples 0 … 65535 scaled to uint8 by the smallest of FULL_SCALES that holds them all."""
    low, high = int(samples.min()), int(samples.max())
    if low < 0 or high > FULL_SCALES[-1]:
        raise BadImage(f"has samples from {low} to {high}: convert it to 8 or 16 bits")
    scale = next(scale for scale in FULL_SCALES if high <= scale)
    return np.rint(samples * (255 / scale)).astype(np.uint8)


def dihedral_digest(rgb: np.ndarray) -> str:
    """SHA-256 hex of the pixels [h, w, 3] that is the same for all eight flips and quarter turns.

    Of the eight, the one whose bytes come first in lexicographic order is hashed; it is found row
    by row, which for a photograph ends in the first row.
    """
    views = [np.rot90(face, turn) for face in (rgb, rgb[:, ::-1]) for turn in range(4)]
    shape = min(view.shape for view in views)
    views = [view for view in views if view.shape == shape]
    for row in range(shape[0]):
        rows = [view[row].tobytes() for view in views]
        first = min(rows)
        views = [view for view, line in zip(views, rows, strict=True) if line == first]
        if len(views) == 1:
            break
    return hashlib.sha256(repr(shape).encode() + views[0].tobytes()).hexdigest()


def encode_png(rgb: np.ndarray) -> bytes:
    """The pixels as a PNG file; run-length coding is both the fastest and smallest on cells."""
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "PNG", compress_type=Image.core.RLE, compress_level=1)
    return file.getvalue()
