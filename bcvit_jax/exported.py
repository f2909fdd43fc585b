"""A folder that holds trained networks for others: `export` writes it, `predict` reads it.

config.json                the network's fields, classes, preprocessing, where it comes from
model.safetensors          a flat dict of weights; of several networks, FOLD.safetensors each
preprocessor_config.json   size, mean and deviation of the pixels, for people and other programs
README.md                  the model card
SHA256SUMS                 of every file, as sha256sum writes them

preprocessor_config.json has the names that Hugging Face's files have, but names no processor of
theirs: none takes the light, the dyes or the magnification out. `Preprocessing` does.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from bcvit_jax.augment import centre_square, resize
from bcvit_jax.errors import UserError
from bcvit_jax.models import ARCHITECTURES, NetworkConfig, build, compiler_options, scale
from bcvit_jax.normalisation import Normalisation, current
from bcvit_jax.run_files import refuse_other_form
from bcvit_jax.weights import from_flat, read_arrays
from data_prep.images import BadImage, rgb

FORMAT = 1
SUMS = "SHA256SUMS"
_WAYS = {1: (0,), 2: (0, 2), 4: (0, 1, 2, 3), 8: tuple(range(8))}  # as `augment.dihedral` counts
TURNS = tuple(_WAYS)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the network's input; as the run's own evaluation did it."""

    image_size: int
    square_size: int
    """Side in pixels to which the centred square is scaled first (bicubic)."""
    centre_crop: float
    """Side of that square as a share of the picture's shorter side; 1 is the whole picture."""
    white_background: bool = False
    """Whether the light's colour is taken out first, see normalisation.py."""
    normalise_stain: bool = False
    """And the dyes' colours."""
    normalise_scale: bool = False
    """And the magnification, where it is far from usual."""

    def __call__(self, picture: np.ndarray | Image.Image) -> np.ndarray:
        """A picture, uint8 [h, w, 3] or Pillow's -> uint8 [s, s, 3].

        Pillow's becomes RGB as `predict` reads a file: turned upright, on white, from 16 bits too.
        Errors: UserError for other arrays, and for a picture that `predict` calls bad.
        """
        image = Image.fromarray(_pixels(picture))
        way = self.normalisation
        square = centre_square(image, self.centre_crop, self.square_size, normalise=way)
        return resize(square, self.image_size)

    @property
    def normalisation(self) -> Normalisation:
        """What is taken out of every picture."""
        return Normalisation(self.white_background, self.normalise_stain, self.normalise_scale)


def _pixels(picture: np.ndarray | Image.Image) -> np.ndarray:
    """uint8 [h, w, 3] of a picture; UserError where it is none."""
    if isinstance(picture, Image.Image):
        try:
            return rgb(picture)
        except BadImage as error:
            raise UserError(f"the picture {error}") from None
    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UserError(
            f"the picture is {pixels.dtype} {list(pixels.shape)}; it must be a Pillow image or "
            "uint8 [h, w, 3] in RGB, so convert it (values from 0 to 1: times 255, and rounded)"
        )
    return pixels


def preprocessing_of(data: Any, image_size: int) -> Preprocessing:
    """What the evaluation of a run does: of its `config.data` and its network's image size."""
    side = data.cache_size or image_size
    changes = data.white_background, data.normalise_stain, data.normalise_scale
    return Preprocessing(image_size, side, data.centre_crop, *changes)


@dataclasses.dataclass(frozen=True)
class Classifier:
    """One trained network, or one a fold, whose probabilities are averaged.

    With `turns` 2, 4 or 8 also those of the picture turned: by half a turn, by quarter turns, by
    quarter turns and mirrored. A smear has no upside, and networks that hardly mind a turn still
    err apart.
    """

    model: NetworkConfig
    params: tuple[Any, ...]
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    card: Mapping[str, Any]
    """The whole config.json."""
    turns: int = 1

    def __post_init__(self):
        if self.turns not in TURNS:
            raise UserError(
                f"turns is {self.turns}; it must be one of {', '.join(map(str, TURNS))}, the ways "
                "a picture is turned for one prediction"
            )

    def networks(self) -> list[Any]:
        """Flax modules with the weights, in the order of `card["networks"]`."""
        graph, _ = nnx.split(nnx.eval_shape(lambda: build(self.model, rngs=nnx.Rngs(0))))
        return [nnx.merge(graph, params) for params in self.params]

    def __call__(self, all_params: Any, images: Any) -> tuple[jax.Array, jax.Array]:
        """(`params`, images [b, s, s, 3] float in [−1, 1]) -> logits [b, c], kept [b, k].

        Of several networks or turns: the log of their mean probability, and the kept patches of
        the first network in the picture as it came.
        """
        graph, _ = nnx.split(nnx.eval_shape(lambda: build(self.model, rngs=nnx.Rngs(0))))

        def of(images):
            return [nnx.merge(graph, params)(images)[::2] for params in all_params]

        if self.turns == 1:
            outputs = of(images)
            logits, kept = jnp.stack([each for each, _ in outputs]), outputs[0][1]
        else:
            turned = jnp.stack([_turned(images, turn) for turn in _WAYS[self.turns]])
            outputs = jax.lax.map(of, turned)  # one compiled network, one way after the other
            logits, kept = jnp.concatenate([each for each, _ in outputs]), outputs[0][1][0]
        if len(logits) == 1:
            return logits[0], kept
        each = jax.nn.log_softmax(logits, axis=-1)
        return jax.nn.logsumexp(each, axis=0) - np.log(len(logits)), kept

    def predict_step(self) -> Any:
        """The call as a jitted function of `params` and images uint8 [b, s, s, 3].

        Within a jitted function of your own call the classifier itself.
        """
        return jax.jit(
            lambda all_params, images: self(all_params, scale(images)),
            compiler_options=compiler_options(self.model),
        )


def _turned(images: jax.Array, transform: int) -> jax.Array:
    """`augment.dihedral` of images [b, s, s, 3]."""
    images = images[:, :, ::-1] if transform >= 4 else images
    return jnp.rot90(images, transform % 4, axes=(1, 2))


class BatchStep:
    """The compiled networks on lists of up to `batch_size` images uint8 [s, s, 3].

    The rest of a batch is black; logits and kept are those of the whole batch.
    """

    def __init__(self, classifier: Classifier, batch_size: int):
        side = classifier.preprocessing.image_size
        self.shape = (batch_size, side, side, 3)
        self.params = classifier.params
        images = jax.ShapeDtypeStruct(self.shape, jnp.uint8)
        self.run = classifier.predict_step().lower(self.params, images).compile()

    def __call__(self, images: Sequence[np.ndarray]) -> tuple[jax.Array, jax.Array]:
        batch = np.zeros(self.shape, np.uint8)
        batch[: len(images)] = images
        return self.run(self.params, batch)


_PARTIAL = ".partial"


def check_new(folder: Path) -> None:
    """UserError where something is in `folder` already; an empty folder may be there."""
    if folder.exists() and (
        not folder.is_dir() or any(path.name != _PARTIAL for path in folder.iterdir())
    ):
        raise UserError(f"{folder} is there already; choose another --out, or delete it")


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """A new folder with `files` and their sums, whole or not at all.

    An empty folder is filled, not replaced: it may be the one that a terminal stands in. Its sums
    come last. Errors: UserError where something is there already.
    """
    check_new(folder)
    there = folder.exists()
    partial = folder / _PARTIAL if there else folder.with_name(f".{folder.name}{_PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    lines = (f"{hashlib.sha256(c).hexdigest()}  {n}\n" for n, c in sorted(files.items()))
    files = {**files, SUMS: "".join(lines).encode()}
    try:
        for name, content in files.items():
            (partial / name).write_bytes(content)
        if not there:
            os.replace(partial, folder)
            return
        for name in files:
            os.replace(partial / name, folder / name)
        partial.rmdir()
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for name in files if there else ():
            (folder / name).unlink(missing_ok=True)
        raise


def verify(folder: Path) -> None:
    """UserError that names every file which is missing or is not what the sums say."""
    try:
        lines = (folder / SUMS).read_text("utf-8").splitlines()
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError):
        raise UserError(
            f"{folder} is no exported network: it has no readable {SUMS}; make one with "
            "python -m bcvit_jax.export"
        ) from None
    faults = []
    for name, digest in sums.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            faults.append(f"{name} is missing")
        elif _digest(file) != digest:
            faults.append(f"{name} is damaged")
    faults += [f"{name} is not in {SUMS}" for name in ("config.json",) if name not in sums]
    if faults:
        raise UserError(f"{folder} is not whole: {'; '.join(faults)}; export or copy it again")


def _digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def from_pretrained(folder: str | Path) -> Classifier:
    """The networks in an exported folder, every file checked.

    Errors: one UserError that lists what is missing, damaged or does not fit, or says that the
    networks were trained on pictures that this version does not make.
    """
    folder = Path(folder)
    verify(folder)
    try:
        card = json.loads((folder / "config.json").read_text("utf-8"))
        if card["format"] != FORMAT:
            raise UserError(
                f"{folder} is of format {card['format']}, this version reads {FORMAT}; "
                "export it again with the version that you read it with"
            )
        fields = {n: tuple(v) if isinstance(v, list) else v for n, v in card["model"].items()}
        # The first exports were of BCViT alone, and did not say so.
        model = ARCHITECTURES[card.get("architecture", "BCViT")][0](**fields)
        preprocessing = Preprocessing(**current(card["preprocessing"], str(folder)))
        class_names = tuple(map(str, card["class_names"]))
        files = [str(network["file"]) for network in card["networks"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / 'config.json'} can't be understood ({error!r})") from None
    refuse_other_form(folder, "config.json", str(preprocessing.normalisation))
    if len(class_names) != model.num_classes:
        raise UserError(
            f"{folder / 'config.json'} names {len(class_names)} classes, and its network tells "
            f"{model.num_classes} apart"
        )
    abstract = nnx.state(nnx.eval_shape(lambda: build(model, rngs=nnx.Rngs(0))))
    params = tuple(
        jax.tree.map(
            jnp.asarray, from_flat(abstract, read_arrays(folder / name), str(folder / name))
        )
        for name in files
    )
    return Classifier(model, params, class_names, preprocessing, card)


def untrained_folds(networks: Iterable[Mapping[str, Any]], folds: Iterable[str]) -> list[str]:
    """Those of `folds` that none of a card's `networks` was trained on.

    A network of an older card, which does not tell, was trained on all but what it held out.
    """

    def trained(network: Mapping[str, Any], fold: str) -> bool:
        if "trained_on" in network:
            return fold in network["trained_on"]
        return fold != network.get("held_out")

    networks = list(networks)
    return [fold for fold in folds if not any(trained(network, fold) for network in networks)]
