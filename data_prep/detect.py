"""Find the cells of smear images: train, judge and use a Faster R-CNN of torchvision's.

    python -m data_prep.detect train    --images smears --boxes boxes.json --out detector
    python -m data_prep.detect evaluate --images others --boxes truth.json --detector detector …
    python -m data_prep.detect predict  --images smears --out found.json   --detector detector

Boxes are a COCO file, or a folder of Labelme or Pascal VOC files. Needs the extra `data-prep`.
"""

import argparse
import hashlib
import importlib.util
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from data_prep.boxes import only, read_boxes, summary
from data_prep.coco import coco_from_fields
from data_prep.command import names, run_command, say
from data_prep.errors import BuildError
from data_prep.fields import Field, FieldSet
from data_prep.files import json_text, replace_file, write_json
from data_prep.images import SUFFIXES
from data_prep.judge import WRITTEN, check_labels, report_evaluation
from data_prep.tree import images_under

if TYPE_CHECKING:
    from data_prep.detector import Detector

DEFAULT = "fasterrcnn_resnet50_fpn_v2"
SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = _parser()
    return run_command(parser, arguments, "Stopped: `train` goes on if it is given again.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.detect", description="Find the cells of smear images."
    )
    commands = parser.add_subparsers(required=True, metavar="train | evaluate | predict")
    train = commands.add_parser("train", help="train a Faster R-CNN on boxes")
    train.set_defaults(run=run_train)
    train.add_argument(
        "--architecture",
        choices=(DEFAULT, "fasterrcnn_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_fpn", SMALL),
        default=DEFAULT,
        help=f"of torchvision; default {DEFAULT}; for CPUs take {SMALL}",
    )
    train.add_argument(
        "--weights",
        default="DEFAULT",
        help="to begin with: torchvision's DEFAULT (downloaded) or COCO_V1, a file, or none",
    )
    train.add_argument("--size", type=int, help="shorter side in pixels (default: the network's)")
    train.add_argument("--hold-out", type=float, default=0.0, metavar="SHARE", help=HOLD_OUT)
    train.add_argument("--epochs", type=int, default=20)
    train.add_argument("--batch-size", type=int, default=8)
    train.add_argument("--learning-rate", type=float, default=1e-3)
    train.add_argument("--jitter", type=float, default=0.2, help="of colours; default 0.2, 0 none")
    train.add_argument("--seed", type=int, default=0)

    evaluate = commands.add_parser("evaluate", help="average precision, and pictures of the worst")
    evaluate.set_defaults(run=run_evaluate)
    found = evaluate.add_mutually_exclusive_group(required=True)
    found.add_argument("--detector", type=Path, help="folder that `train` wrote")
    found.add_argument("--predictions", type=Path, help="boxes that were found, instead")
    evaluate.add_argument("--min-score", type=float, default=0.5, help="of a cell; default 0.5")

    predict = commands.add_parser("predict", help="propose boxes for images")
    predict.set_defaults(run=run_predict)
    predict.add_argument("--detector", type=Path, required=True, help="folder that `train` wrote")
    predict.add_argument("--min-score", type=float, default=0.05, help="of a box; default 0.05")
    predict.add_argument("--batch-size", type=int, default=4)
    predict.add_argument("--overlays", type=Path, help="folder for pictures with the boxes drawn")

    for command in (train, evaluate):
        command.add_argument("--boxes", type=Path, required=True, help="true boxes")
        command.add_argument("--labels", type=names, help="only boxes with these labels, as WBC")
        command.add_argument("--only", type=Path, help="only the images in this list")
    for command in (train, evaluate, predict):
        command.add_argument("--images", type=Path, required=True, help="folder of the images")
        command.add_argument("--out", type=Path, required=True, help="what is written")
        command.add_argument("--overwrite", action="store_true", help="replace what is there")
    return parser


HOLD_OUT = "share of the images kept aside and evaluated at the end, as 0.2 (default: none)"


def run_train(options: argparse.Namespace) -> None:
    """The sub-command `train`."""
    _check_training(options)
    out: Path = options.out
    written = ("detector.json", *(WRITTEN if options.hold_out else ()))
    check_outputs(out, written, options.overwrite)
    fields = read_fields(options)
    train, held_out = split_fields(fields, options.hold_out, options.seed)
    if not any(item.boxes for item in train.fields):
        raise BuildError(f"{options.boxes} holds no box to train on: label some cells first.")
    if options.hold_out:
        if not any(item.boxes for item in held_out.fields):
            raise BuildError(
                f"--hold-out {options.hold_out} keeps {len(held_out.fields)} of "
                f"{len(fields.fields)} images aside, without a box: give a larger share, or 0."
            )
        _keep_held_out(held_out, out / "held_out.json", options.overwrite)
    say(f"Training on {summary(train)}.")
    detector = train_to_folder(train, options.images, out, options)
    say(f"{out}: {detector.id}")
    if options.hold_out:
        found = predict_set(detector, held_out, options.images)
        say(report_evaluation(held_out, found, options.images, out, 0.5))


def _keep_held_out(held_out: FieldSet, path: Path, overwrite: bool) -> None:
    """Write the boxes that are held out, unless a killed run has done it."""
    content = coco_from_fields(held_out)
    if not path.is_file() or path.read_bytes() != json_text(content).encode():
        write_json(path, content, overwrite)


def _check_training(options: argparse.Namespace) -> None:
    for name, least in (("epochs", 1), ("batch_size", 2), ("seed", 0)):
        if not least <= getattr(options, name) < 2**32:
            raise BuildError(f"--{name.replace('_', '-')} must be at least {least}.")
    check_share("--hold-out", options.hold_out, 0.99)
    check_share("--jitter", options.jitter)
    if not 0 < options.learning_rate <= 1:
        raise BuildError(
            f"--learning-rate is {options.learning_rate}, but must be above 0 and at most 1."
        )


def check_share(option: str, value: float, most: float = 1.0) -> None:
    """Raise BuildError for a number that is not from 0 to `most`."""
    if not 0 <= value <= most:
        raise BuildError(f"{option} is {value}, but must be from 0 to {most:g}.")


def train_to_folder(
    fields: FieldSet, images: Path, out: Path, options: argparse.Namespace
) -> "Detector":
    """Train with progress and a log, resuming what is in `out`; leaves the finished detector."""
    parts = torch_part()
    from data_prep import training

    recipe = training.Recipe(
        options.epochs,
        options.batch_size,
        options.learning_rate,
        jitter=options.jitter,
        seed=options.seed,
    )
    detector = parts.create_detector(
        options.architecture, fields.labels, options.weights, options.size, options.seed
    )
    out.mkdir(parents=True, exist_ok=True)
    state, started = out / "training.pt", time.monotonic()
    steps = len(training.chunks(len(fields.fields), recipe, 0))
    with tqdm(total=steps * recipe.epochs, desc="training", unit=" steps", disable=None) as bar:

        def each_step(loss: float) -> None:
            bar.update()

        def each_epoch(epoch: int, loss: float) -> None:
            bar.n = epoch * steps
            bar.refresh()
            minutes = (time.monotonic() - started) / 60
            row = {"epoch": epoch, "loss": round(loss, 5), "minutes": round(minutes, 2)}
            _log(out / "training.jsonl", row)
            if bar.disable:
                say(f"epoch {epoch} of {recipe.epochs}: loss {loss:.4f}, {minutes:.1f} min")

        training.train_detector(detector, fields, images, recipe, state, each_epoch, each_step)
    card = {
        "images": len(fields.fields),
        "boxes": sum(len(item.boxes) for item in fields.fields),
        "weights": options.weights,
        "recipe": {name: getattr(recipe, name) for name in recipe.__dataclass_fields__},
        "versions": parts.versions(),
    }
    detector = parts.save_detector(detector, out, card)
    state.unlink(missing_ok=True)
    return detector


def _log(path: Path, row: dict[str, Any]) -> None:
    """Put the row of an epoch after those of the epochs before it; what stood behind goes."""
    before = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    text = "".join(line + "\n" for line in (*before[: row["epoch"] - 1], json.dumps(row)))
    replace_file(path, lambda file: file.write(text.encode()))


def run_evaluate(options: argparse.Namespace) -> None:
    """The sub-command `evaluate`."""
    check_share("--min-score", options.min_score)
    more = () if options.predictions else ("predictions.json",)
    check_outputs(options.out, (*WRITTEN, *more), options.overwrite)
    fields = read_fields(options)
    if not any(item.boxes for item in fields.fields):
        raise BuildError(f"{options.boxes} holds no box to judge by.")
    if options.predictions:
        found = read_boxes(options.predictions)
        check_labels(options.predictions, found.labels, fields)
    else:
        detector = load_detector(options.detector)
        check_labels(options.detector, detector.labels, fields)
        if not options.labels:
            fields = fields.of_labels([name for name in fields.labels if name in detector.labels])
        found = predict_set(detector, fields, options.images)
        write_json(options.out / "predictions.json", coco_from_fields(found), overwrite=True)
    say(report_evaluation(fields, found, options.images, options.out, options.min_score))


def run_predict(options: argparse.Namespace) -> None:
    """The sub-command `predict`."""
    check_share("--min-score", options.min_score)
    if options.batch_size < 1:
        raise BuildError(f"--batch-size is {options.batch_size}, but must be at least 1.")
    if options.out.is_dir():
        raise BuildError(f"{options.out} is a folder: --out takes the name of a COCO file.")
    check_outputs(options.out.parent, (options.out.name,), options.overwrite)
    if options.overlays:
        check_outputs(options.overlays.parent, (options.overlays.name,), options.overwrite)
    paths = list(find_image_files(options.images))
    detector = load_detector(options.detector)
    found = predict_set(detector, paths, options.images, options.batch_size, options.min_score)
    write_json(options.out, coco_from_fields(found), options.overwrite)
    if options.overlays:
        _draw_overlays(found, options.images, options.overlays)
    say(f"{options.out}: {summary(found)}")


def _draw_overlays(found: FieldSet, images: Path, folder: Path) -> None:
    """A PNG for each image; its name keeps the suffix, so that a.jpg and a.tif have one each."""
    from data_prep.overlay import draw_boxes, write_png
    from data_prep.pictures import read_pixels

    for item in tqdm(found.fields, desc="drawing", unit=" images", disable=None):
        boxes = [box for box in item.boxes if (box.score or 0) >= 0.5]
        picture = draw_boxes(read_pixels(images / item.image), boxes)
        write_png(picture, folder / f"{item.image}.png")


def predict_set(
    detector: "Detector",
    images: FieldSet | Sequence[str],
    root: Path,
    batch_size: int = 4,
    min_score: float = 0.05,
    progress: bool = True,
) -> FieldSet:
    """What the detector finds in these images under `root`, with progress."""
    paths = [item.image for item in images.fields] if isinstance(images, FieldSet) else images
    found: list[Field] = []
    rows = ((path, root / path) for path in paths)
    disable = None if progress else True
    with tqdm(total=len(paths), desc="detecting", unit=" images", disable=disable) as bar:
        for item in torch_part().predict_fields(detector, rows, batch_size, min_score):
            found.append(item)
            bar.update()
    return FieldSet(tuple(found), detector.labels, {"detector": detector.id})


def find_image_files(folder: Path) -> Iterator[str]:
    """Paths of all images under a folder, with slashes, in order; raises BuildError for none.

    Hidden files and folders are passed over.
    """
    if not folder.is_dir():
        raise BuildError(f"{folder} is not a folder: --images takes a folder of images.")
    paths = sorted(images_under(folder, folder))
    paths = [path for path in paths if Path(path).suffix.lower() in SUFFIXES]
    if not paths:
        raise BuildError(f"{folder} holds no PNG, JPEG, TIFF or BMP image.")
    yield from paths


def read_fields(options: argparse.Namespace) -> FieldSet:
    """The true boxes that a command was given, checked against their images."""
    if options.labels == ():
        raise BuildError("--labels names no label: give them as in WBC,RBC, or leave it out.")
    fields = read_boxes(options.boxes, options.images, notes=True)
    if options.only:
        fields = only(fields, options.only)
    return fields.of_labels(options.labels) if options.labels else fields


def split_fields(fields: FieldSet, share: float, seed: int) -> tuple[FieldSet, FieldSet]:
    """Fields to train on and fields held out, chosen by a hash of seed and image."""
    images = sorted(
        (item.image for item in fields.fields),
        key=lambda image: hashlib.sha256(f"{seed}:{image}".encode()).digest(),
    )
    held_out = images[: int(len(images) * share)]
    return fields.of_images(images[len(held_out) :]), fields.of_images(held_out)


def check_outputs(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """Raise BuildError if one of the files (or folders) is there and may not be replaced."""
    if folder.exists() and not folder.is_dir():
        raise BuildError(f"{folder} is a file: give the name of a folder, or of one to be made.")
    there = [str(folder / name) for name in names if (folder / name).exists()]
    if there and not overwrite:
        raise BuildError(f"{there[0]} exists: give --overwrite to replace it, or another name.")


def load_detector(folder: Path) -> "Detector":
    """A detector from the folder that `train` wrote; its checksum is verified."""
    return torch_part().load_detector(folder)


def torch_part() -> Any:
    """`data_prep.detector`, imported when it is needed."""
    for package in ("torch", "torchvision"):
        if importlib.util.find_spec(package) is None:
            raise BuildError(
                f"{package} is not installed: pip install -e '.[data-prep]' brings what "
                "detection needs."
            )
    from data_prep import detector

    return detector


if __name__ == "__main__":
    sys.exit(main())
