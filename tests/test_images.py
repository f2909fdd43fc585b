"""Any image file to RGB: modes, depths, orientation, and what is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data_prep.images import (
    MAX_PIXELS,
    BadImage,
    dihedral_digest,
    encode_png,
    read_rgb,
    scale_to_bytes,
)

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
GREY = RGB[..., 0]
WIDE = GREY.astype(np.uint16) * 257


def saved(image: Image.Image, form: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, form, **options)
    file.seek(0)
    return file


def png16(samples: np.ndarray) -> io.BytesIO:
    """A 16-bit RGB PNG [h, w, 3], which Pillow cannot write."""
    height, width, _ = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    file = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    file.seek(0, io.SEEK_END)
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        file.write(struct.pack(">I", len(data)) + name + data)
        file.write(struct.pack(">I", zlib.crc32(name + data)))
    file.seek(0)
    return file


def empty_png(width: int, height: int) -> io.BytesIO:
    """A PNG whose header promises pixels that are not there."""
    file = saved(Image.new("RGB", (1, 1)), "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return io.BytesIO(bytes(data))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
def test_8_bit_rgb_is_kept_as_it_is(form):
    np.testing.assert_array_equal(read_rgb(saved(Image.fromarray(RGB), form)), RGB)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate"])
def test_tiff_with_opaque_alpha_loses_only_alpha(compression):
    image = Image.fromarray(RGB)
    image.putalpha(255)
    read = read_rgb(saved(image, "TIFF", compression=compression))
    np.testing.assert_array_equal(read, RGB)


def test_jpeg_gives_the_decoded_pixels():
    file = saved(Image.fromarray(RGB), "JPEG")
    np.testing.assert_array_equal(read_rgb(file), np.asarray(Image.open(file)))


def test_transparent_pixels_become_white():
    image = Image.fromarray(RGB)
    alpha = np.where(np.arange(7) < 3, 0, 255) * np.ones((5, 1))
    image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    read = read_rgb(saved(image, "PNG"))
    assert (read[:, :3] == 255).all()
    np.testing.assert_array_equal(read[:, 3:], RGB[:, 3:])


def test_palette_with_a_transparent_colour_is_laid_on_white():
    image = Image.fromarray(np.eye(4, dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    read = read_rgb(saved(image, "PNG", transparency=0))
    assert read[0, 0].tolist() == [40, 50, 60]
    assert read[0, 1].tolist() == [255, 255, 255]


def grey3(samples) -> np.ndarray:
    return np.repeat(np.asarray(samples, np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize(
    ("image", "form", "expected"),
    [
        (Image.fromarray(GREY), "PNG", grey3(GREY)),
        (Image.fromarray(GREY > 99), "TIFF", grey3((GREY > 99) * 255)),
        (Image.fromarray(WIDE), "PNG", grey3(GREY)),
        (Image.fromarray(WIDE), "TIFF", grey3(GREY)),
        (Image.fromarray(WIDE.astype(np.int32)), "TIFF", grey3(GREY)),
        (Image.fromarray(RGB).convert("CMYK"), "TIFF", RGB),
        (Image.fromarray(RGB // 128 * 128).quantize(8), "PNG", RGB // 128 * 128),
    ],
    ids=["grey", "1-bit", "16-bit PNG", "16-bit TIFF", "32-bit TIFF", "CMYK", "palette"],
)
def test_other_modes_become_rgb(image, form, expected):
    np.testing.assert_array_equal(read_rgb(saved(image, form)), expected)


def test_16_bit_colour_keeps_the_upper_byte():
    samples = RGB.astype(np.uint16) * 256 + 17
    np.testing.assert_array_equal(read_rgb(png16(samples)), RGB)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([0, 128, 255], [0, 128, 255]),
        ([0, 512, 1023], [0, 128, 255]),
        ([0, 2048, 4095], [0, 128, 255]),
        ([0, 8192, 16383], [0, 128, 255]),
        ([0, 257, 65535], [0, 1, 255]),
        ([0, 32768, 40000], [0, 128, 156]),
    ],
)
def test_grey_is_scaled_by_the_depth_of_the_camera(samples, expected):
    assert scale_to_bytes(np.array(samples)).tolist() == expected


@pytest.mark.parametrize("form", ["JPEG", "TIFF", "PNG"])
def test_exif_orientation_is_applied(form):
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:, 8:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    file = saved(Image.fromarray(np.rot90(upright)), form, exif=exif)
    np.testing.assert_allclose(read_rgb(file), upright, atol=3)


def test_an_image_too_large_is_refused_from_its_header():
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(BadImage, match="has 20000 x 20000 pixels"):
        read_rgb(empty_png(20_000, 20_000))
    assert limit == Image.MAX_IMAGE_PIXELS
    assert MAX_PIXELS < 20_000**2


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (io.BytesIO(b"path,label\n"), "is not a PNG, JPEG, TIFF or BMP image"),
        (saved(Image.fromarray(RGB), "GIF"), "is not a PNG, JPEG, TIFF or BMP image"),
        (io.BytesIO(saved(Image.fromarray(RGB), "PNG").getvalue()[:90]), "cannot be decoded"),
        (io.BytesIO(saved(Image.fromarray(RGB), "TIFF").getvalue()[:-99]), "cannot be decoded"),
        (empty_png(3000, 3000), "cannot be decoded"),
        (saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "floating-point"),
        (saved(Image.fromarray(GREY.astype(np.int32) * -9), "TIFF"), "has samples from -"),
        (png16(RGB.astype(np.uint16) * 16), "uses 14 bits or fewer"),
    ],
    ids=["text", "gif", "cut png", "cut tiff", "no pixels", "float", "negative", "12-bit colour"],
)
def test_bad_files_are_refused_with_a_reason(file, reason):
    with pytest.raises(BadImage, match=reason):
        read_rgb(file)


def all_eight(image: np.ndarray) -> list[np.ndarray]:
    return [np.rot90(side, turn) for side in (image, np.fliplr(image)) for turn in range(4)]


@pytest.mark.parametrize("shape", [(6, 6), (5, 7), (7, 5), (1, 4), (1, 1)])
def test_digest_is_the_same_for_the_eight_flips_and_turns(shape):
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 2, (2, *shape, 3), np.uint8)
    second[0, 0] = 7
    assert len({dihedral_digest(view) for view in all_eight(first)}) == 1
    assert dihedral_digest(first) != dihedral_digest(second)


def test_digest_tells_equal_bytes_of_other_shapes_apart():
    flat = np.zeros((2, 8, 3), np.uint8)
    assert dihedral_digest(flat) == dihedral_digest(flat.transpose(1, 0, 2))
    assert dihedral_digest(flat) != dihedral_digest(flat.reshape(4, 4, 3))


def test_digest_does_not_join_a_rearrangement_of_the_same_pixels():
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert dihedral_digest(image) != dihedral_digest(np.roll(image, 1, axis=0))


def test_png_is_lossless():
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(RGB)))), RGB)
