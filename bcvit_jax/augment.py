"""Changes to one cell image or one batch that keep the label: flips, turns, crops, colours, mixing.

Pixels stay uint8 from end to end, and the inner loops are C's (Pillow, NumPy).
"""

import math

import numpy as np
from PIL import Image

from bcvit_jax.appearance import OFF, AugmentConfig, change_look, change_quality, view
from bcvit_jax.normalisation import AS_IT_IS, Normalisation
from bcvit_jax.shifts import background, recolour, window

_TRANSPOSE = (
    None,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSVERSE,
)
_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601 luma, as Pillow and torchvision
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = np.linalg.inv(_YIQ)
# A turn of the hue is grey + cos · chroma + sin · across (each [3, 3], of rgb).
_GREY_OF = np.outer(np.ones(3), _GREY)
_CHROMA = np.eye(3) - _GREY_OF
_ACROSS = _RGB @ np.array([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]) @ _YIQ


def dihedral(image: np.ndarray, transform: int) -> np.ndarray:
    """One of the eight flips and quarter turns of `image` [h, w, ...]; 0 is the image itself.

    1, 2, 3 turn by 90, 180, 270 degrees against the clock; 4 … 7 mirror left-right first and then
    turn by 0, 90, 180, 270 degrees (so 6 is the top-bottom flip). Returns a view.
    """
    if not 0 <= transform < 8:
        raise ValueError(f"transform is {transform}; the flips and turns are numbered 0 … 7")
    return np.rot90(image[:, ::-1] if transform >= 4 else image, transform % 4)


def centre_square(
    image: Image.Image,
    fraction: float,
    side: int,
    margin: int = 0,
    normalise: Normalisation = AS_IT_IS,
) -> np.ndarray:
    """The middle of `image` as a square, uint8 [side, side, 3]; bicubic, antialiased.

    `fraction` < 1 keeps the centred square of that fraction of the shorter side. Reading: at 1 the
    whole picture is resized to the square, as the paper does, so a picture that is not square
    changes its aspect. With a `margin` the square is side + 2 · margin: the same middle, bit for
    bit, and as many pixels of its surroundings, mirrored where the picture ends. `normalise`
    changes `fraction` and the colours by what the whole picture holds; a fraction that it raises
    to 1 is that of a square still, so that a cell keeps its shape.
    """
    if image.mode != "RGB":
        image = image.convert("RGB")
    width, height = image.size
    box = (0.0, 0.0, float(width), float(height))
    usual, fraction = fraction, normalise.fraction(image, fraction)
    if min(usual, fraction) < 1.0:
        edge = max(1.0, fraction * min(width, height))
        left, top = (width - edge) / 2, (height - edge) / 2
        box = (left, top, left + edge, top + edge)
    colours = normalise.colours(image, box)
    middle = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=box))
    if not margin:
        return colours(middle)
    left, top, right, bottom = box
    across, down = margin / side * (right - left), margin / side * (bottom - top)
    wide_box = (left - across, top - down, right + across, bottom + down)
    whole = side + 2 * margin
    square = window(np.asarray(image), wide_box, (whole, whole)).copy()
    square[margin:-margin, margin:-margin] = middle  # resized by itself it rounds alike
    return colours(square)


def resize(square: np.ndarray, size: int) -> np.ndarray:
    """uint8 [s, s, 3] → uint8 [size, size, 3], bilinear with antialiasing."""
    if square.shape[:2] == (size, size):
        return square
    return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR))


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """`rng.uniform(low, high)`, the same number, in a fifth of its time."""
    return low + (high - low) * rng.random()


def crop_box(
    rng: np.random.Generator, area: tuple[float, float], ratio: tuple[float, float]
) -> tuple[float, float, float, float]:
    """A random part of the unit square: (left, top, right, bottom), all in [0, 1].

    As torchvision's RandomResizedCrop: area uniform, aspect (width / height) log-uniform, place
    uniform; after ten shapes that don't fit, the whole square. Unlike there the edges are not
    rounded to pixels.
    """
    for _ in range(10):
        share = _uniform(rng, *area)
        aspect = math.exp(_uniform(rng, math.log(ratio[0]), math.log(ratio[1])))
        width, height = math.sqrt(share * aspect), math.sqrt(share / aspect)
        if width <= 1.0 and height <= 1.0:
            left, top = rng.random() * (1.0 - width), rng.random() * (1.0 - height)
            return left, top, min(left + width, 1.0), min(top + height, 1.0)
    return 0.0, 0.0, 1.0, 1.0


def colour_matrix(
    brightness: float, contrast: float, saturation: float, hue: float, mean: np.ndarray
) -> np.ndarray:
    """The four colour changes as one affine map: float [3, 4], new = m[:, :3] · rgb + m[:, 3].

    Factors are 1 for no change, `hue` is in turns (red → yellow → green for a positive one) and
    `mean` [3] is the picture's mean colour, which contrast needs. The four commute, since the last
    three keep the mean grey, so no order is drawn. Departures from torchvision's ColorJitter:
    values are clipped once, at the end; hue turns about the grey axis in YIQ, not in HSV.
    """
    turn = -2.0 * math.pi * hue
    chroma = math.cos(turn) * _CHROMA + math.sin(turn) * _ACROSS
    matrix = np.empty((3, 4))
    matrix[:, :3] = contrast * brightness * (_GREY_OF + saturation * chroma)
    matrix[:, 3] = (1.0 - contrast) * brightness * (_GREY @ mean)
    return matrix


def jitter_matrix(
    rng: np.random.Generator,
    image: Image.Image,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> np.ndarray:
    """Draw factors in [max(0, 1-s), 1+s], a hue in [-hue, hue] turns; their `colour_matrix`."""

    def factor(strength: float) -> float:
        return _uniform(rng, max(0.0, 1.0 - strength), 1.0 + strength) if strength else 1.0

    factors = factor(brightness), factor(contrast), factor(saturation)
    turn = _uniform(rng, -hue, hue) if hue else 0.0
    mean = np.zeros(3)
    if contrast:
        pixels = np.asarray(image).reshape(image.height, -1).sum(axis=0, dtype=np.uint32)
        mean = pixels.reshape(-1, 3).sum(axis=0) / (image.width * image.height)
    return colour_matrix(*factors, turn, mean)


def augment(
    square: np.ndarray,
    size: int,
    transform: int,
    rng: np.random.Generator,
    *,
    margin: int = 0,
    flips_turns: bool = False,
    crop_area: tuple[float, float] = (1.0, 1.0),
    crop_ratio: tuple[float, float] = (1.0, 1.0),
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    look: AugmentConfig = OFF,
) -> np.ndarray:
    """One training image: uint8 [s, s, 3] → uint8 [size, size, 3].

    Zoom and shift, then a random resized crop of what they show, in one resize; the planned flip or
    turn (`transform`, 0 … 7) or with `flips_turns` one drawn anew; the look of another laboratory;
    colour jitter; blur, noise, JPEG. With everything off it equals `resize` of the square without
    its `margin`.
    """
    side = square.shape[0] - 2 * margin
    image = Image.fromarray(square)
    if look.share < 1.0 and rng.random() >= look.share:
        look = OFF
    bright = background(square) if look.recolours else np.zeros(3)
    left, top, right, bottom = view(side, margin, look, rng)
    if crop_area != (1.0, 1.0) or crop_ratio != (1.0, 1.0):
        crop = crop_box(rng, crop_area, crop_ratio)
        width, height = right - left, bottom - top
        right, bottom = left + crop[2] * width, top + crop[3] * height
        left, top = left + crop[0] * width, top + crop[1] * height
    if (side, left, top, right, bottom) != (size, 0, 0, side, side):
        box = (left, top, right, bottom)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    if flips_turns:  # a planned one before it would leave the draw uniform over the eight
        transform = int(rng.integers(8))
    turn = _TRANSPOSE[transform]
    if turn is not None:
        image = image.transpose(turn)
    if look.recolours:
        image = change_look(image, bright, look, rng)
    if brightness or contrast or saturation or hue:
        matrix = jitter_matrix(rng, image, brightness, contrast, saturation, hue)
        image = recolour(image, matrix)
    if look.degrades:
        image = change_quality(image, look, rng)
    return np.asarray(image)


def mix_batch(
    images: np.ndarray, labels: np.ndarray, rng: np.random.Generator, mixup: float, cutmix: float
) -> dict[str, np.ndarray]:
    """Mix each image with another of its batch by mixup (Zhang 2018) or CutMix (Yun 2019).

    images uint8 [b, s, s, 3], labels int32 [b] → image, label, mixed_label int32 [b] and mix
    float32 [b], the share of `label`. `mixup` and `cutmix` are the parameters of Beta(a, a); 0
    switches one off, and with both on a fair coin chooses one for the batch. The share is drawn
    for each image and exact: mixup weighs in steps of 1/256, CutMix counts the pixels left after
    clipping its box.
    """
    count, side = images.shape[0], images.shape[1]
    partner = rng.permutation(count)
    mixed = {"image": images, "label": labels, "mixed_label": labels[partner]}
    if mixup and not (cutmix and rng.random() < 0.5):
        weight = np.rint(rng.beta(mixup, mixup, count) * 256).astype(np.uint16)
        own = weight[:, None, None, None]
        blend = images * own
        blend += images[partner] * (256 - own)
        blend += 128
        blend >>= 8
        return mixed | {
            "image": blend.astype(np.uint8),
            "mix": (weight / 256).astype(np.float32),
        }
    cut = np.sqrt(1.0 - rng.beta(cutmix, cutmix, count)) * side
    centre = rng.uniform(0, side, (count, 2))
    low = np.clip(np.rint(centre - cut[:, None] / 2), 0, side).astype(int)
    high = np.clip(np.rint(centre + cut[:, None] / 2), 0, side).astype(int)
    pasted = images.copy()
    for i, ((top, left), (bottom, right)) in enumerate(zip(low, high, strict=True)):
        pasted[i, top:bottom, left:right] = images[partner[i], top:bottom, left:right]
    mix = 1.0 - np.prod(high - low, axis=1) / side**2
    return mixed | {"image": pasted, "mix": mix.astype(np.float32)}
