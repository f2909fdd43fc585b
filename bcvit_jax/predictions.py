"""The predictions of one held-out fold, and their files.

All figures come from the saved float32 probabilities, so whoever reads the files can compute them
again.
"""

import csv
import io
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bcvit_jax.errors import UserError
from bcvit_jax.files import write_whole
from bcvit_jax.metrics import Counts, count
from bcvit_jax.run_files import read_json_if_there, refuse_pretraining

_count = jax.jit(count, static_argnums=3)


@dataclass(frozen=True)
class Predictions:
    """What the network said of every image of one held-out fold, in the fold's order.

    source, group: str [n]; label: int32 [n]; probabilities: float32 [n, c]; kept: int32 [n, k],
    the patches that reached the last block, numbered from 0 row by row (k = 0 without selection).
    """

    fold: str
    source: np.ndarray
    group: np.ndarray
    label: np.ndarray
    probabilities: np.ndarray
    kept: np.ndarray
    class_names: tuple[str, ...]

    @property
    def predicted(self) -> np.ndarray:
        """int32 [n]: the most probable class, the lower index where two are equal."""
        return np.argmax(self.probabilities, axis=-1).astype(np.int32)

    def count(self) -> Counts:
        """The counts of these predictions, as NumPy arrays."""
        everything = np.ones(len(self.label), bool)
        counts = _count(self.probabilities, self.label, everything, len(self.class_names))
        return Counts(*(np.asarray(part) for part in counts))


def save_predictions(path: str | Path, predictions: Predictions) -> tuple[Path, Path]:
    """Writes `path`.npz (exact, for programs) and `path`.csv (for people); returns both paths.

    Columns of the CSV: source, group, fold, label, predicted, correct (1 or 0), p_<class> for
    every class (digits enough to give back the float32), kept (patch indices between spaces).
    """
    path = Path(path)
    arrays = io.BytesIO()
    np.savez_compressed(
        arrays,
        fold=np.asarray(predictions.fold),
        source=np.asarray(predictions.source, dtype=str),
        group=np.asarray(predictions.group, dtype=str),
        label=predictions.label.astype(np.int32),
        probabilities=predictions.probabilities.astype(np.float32),
        kept=predictions.kept.astype(np.int32),
        class_names=np.asarray(predictions.class_names, dtype=str),
    )
    names, predicted = predictions.class_names, predictions.predicted
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["source", "group", "fold", "label", "predicted", "correct"]
    writer.writerow([*head, *(f"p_{name}" for name in names), "kept"])
    for i, label in enumerate(predictions.label):
        writer.writerow(
            [
                predictions.source[i],
                predictions.group[i],
                predictions.fold,
                names[label],
                names[predicted[i]],
                int(label == predicted[i]),
                *(f"{p:.9g}" for p in predictions.probabilities[i]),
                " ".join(map(str, predictions.kept[i])),
            ]
        )
    npz, table_file = (path.with_name(path.name + suffix) for suffix in (".npz", ".csv"))
    write_whole(table_file, text.getvalue().encode())
    write_whole(npz, arrays.getvalue())
    return npz, table_file


def load_predictions(path: str | Path) -> Predictions:
    """Reads what `save_predictions` wrote, from `path`.npz. UserError if it cannot.

    Where the file names no groups, every image is its own: `group` is then `source`.
    """
    npz = Path(path).with_name(Path(path).name + ".npz")
    try:
        with np.load(io.BytesIO(npz.read_bytes()), allow_pickle=False) as arrays:
            return Predictions(
                fold=str(arrays["fold"]),
                source=arrays["source"],
                group=arrays["group" if "group" in arrays else "source"],
                label=arrays["label"],
                probabilities=arrays["probabilities"],
                kept=arrays["kept"],
                class_names=tuple(str(name) for name in arrays["class_names"]),
            )
    except FileNotFoundError:
        raise UserError(
            f"there are no predictions at {npz}: they are written when a fold's training ends"
        ) from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{npz} is not a whole file of predictions ({error}): delete it and run the training "
            "command again, which evaluates the fold anew"
        ) from None


def load_run(workdir: str | Path) -> tuple[dict[str, Any], list[Predictions]]:
    """What a work folder keeps of its run, and the predictions of its finished folds.

    The run comes from report.json, config and provenance from their own files where they exist;
    without report.json all that is known of the data set is what the config says.
    Raises UserError where no fold has saved predictions.
    """
    workdir = Path(workdir)
    found = sorted(workdir.glob("fold*/predictions.npz"), key=lambda path: _natural(path.parent))
    if not found:
        refuse_pretraining(workdir)
        raise UserError(
            f"{workdir} holds no fold*/predictions.npz: name the work folder of a run of which at "
            "least one fold has ended"
        )
    run: dict[str, Any] = {"title": workdir.resolve().name}
    run |= read_json_if_there(workdir / "report.json").get("run") or {}
    for part in ("config", "provenance"):
        run[part] = read_json_if_there(workdir / f"{part}.json") or run.get(part)
    if "dataset" not in run:
        data = (run["config"] or {}).get("data") or {}
        run["dataset"] = {name: data.get(name) for name in ("path", "protocol")}
    return run, [load_predictions(path.with_suffix("")) for path in found]


def _natural(path: Path) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
