"""The report tells what the saved predictions hold, whole, and in any shape of data set."""

import base64
import dataclasses
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score

from bcvit_jax.evaluate import Predictions, save_predictions
from bcvit_jax.report import main, to_json, write_report
from bcvit_jax.report_page import NOTICE, donor_statement, result_line

RUN: dict[str, Any] = {
    "title": "a run of <b>cells & co</b>",
    "config": {"model": {"name": "bcvit_tiny_patch16_s12_128", "stride": 12}, "seed": 3},
    "provenance": {"commit": "0123abcd", "command": 'main --config="<x>"'},
    "training": {"parameters": 2812345, "final_loss": float("nan"), "images_per_second": 78.21},
}


def make_predictions(fold: str, names: tuple[str, ...], label: np.ndarray) -> Predictions:
    rng = np.random.default_rng(int(fold[4:]))
    probabilities = rng.dirichlet(np.ones(len(names)), len(label)).astype(np.float32)
    probabilities[np.arange(len(label)), label] += 0.2
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    return Predictions(
        fold=fold,
        source=np.array([f"{names[k]}/{fold}_{i}.png" for i, k in enumerate(label)], dtype=str),
        group=np.array([f"{fold}_{i}" for i in range(len(label))], dtype=str),
        label=label.astype(np.int32),
        probabilities=probabilities,
        kept=rng.integers(0, 81, (len(label), 3)).astype(np.int32),
        class_names=names,
    )


def make_folds(folds: int = 2, classes: int = 10, n: int = 50) -> list[Predictions]:
    names = tuple(f"C{i:02d}" for i in range(classes))
    labels = np.arange(n) % classes
    return [make_predictions(f"fold{i}", names, labels) for i in range(folds)]


def describe(predictions: list[Predictions], **more: Any) -> dict[str, Any]:
    """The run of these predictions, with its data set counted."""
    names = predictions[0].class_names
    counts = {p.fold: np.bincount(p.label, minlength=len(names)) for p in predictions}
    dataset = {
        "path": "data/cells",
        "class_names": names,
        "donor_separated": False,
        "group_kind": "image",
        "counts": counts,
        "balanced": {fold: [7] * len(names) for fold in counts},
    }
    return {**RUN, "dataset": {**dataset, **more}}


class Page(HTMLParser):
    """Checks that tags close in order; keeps the text, the addresses and the rows of tables."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(workdir: Path) -> tuple[dict, Page]:
    text = (workdir / "report.json").read_text(encoding="utf-8")
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in report.json"))
    return content, Page((workdir / "report.html").read_text(encoding="utf-8"))


def test_numbers_equal_scikit_learn_on_the_predictions(tmp_path):
    folds = make_folds(3)
    write_report(tmp_path, describe(folds), folds)
    content, page = read(tmp_path)
    for told, fold in zip(content["folds"], folds, strict=True):
        assert told["top1"] == pytest.approx(np.mean(fold.predicted == fold.label))
        assert told["macro_f1"] == pytest.approx(
            f1_score(fold.label, fold.predicted, average="macro")
        )
    label = np.concatenate([fold.label for fold in folds])
    predicted = np.concatenate([fold.predicted for fold in folds])
    pooled = content["pooled"]
    assert pooled["confusion"] == confusion_matrix(label, predicted).tolist()
    assert pooled["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(label, predicted))
    top1 = [fold["top1"] for fold in content["folds"]]
    assert content["mean"]["top1"]["sd"] == pytest.approx(np.std(top1, ddof=1))

    first = pooled["classes"][0]
    expected = [f"{first[key]:.3f}" for key in ("precision", "recall", "f1")]
    assert ["C00", *expected, str(first["n"])] in page.rows
    assert any(row[:2] == ["mean", f"{np.mean(top1):.4f}"] for row in page.rows)
    assert any(row[:2] == ["fold1", f"{top1[1]:.4f}"] for row in page.rows)
    assert content["run"]["training"]["final_loss"] is None


def test_the_page_is_whole_escaped_and_holds_its_picture(tmp_path):
    folds = make_folds()
    write_report(tmp_path, describe(folds), folds)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    _, page = read(tmp_path)
    assert "<b>cells" not in html and "a run of <b>cells & co</b>" in page.text
    assert ["provenance" in html, "<x>" in html] == [False, False]
    assert "<script" not in html and "http" not in html
    picture = next(a for a in page.addresses if a.startswith("data:image/png;base64,"))
    data = base64.b64decode(picture.split(",")[1])
    assert data == (tmp_path / "confusion_matrix.png").read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG" and min(image.size) > 600
    for part in (
        NOTICE,
        "donors may be shared between folds, so these figures may be optimistic",
        "What was trained",
        "Each class",
        "Folds",
        "Confusion matrix",
        "Data set",
        "Training settings",
        "Provenance",
        "2,812,345",
        "model.stride",
        'main --config="<x>"',
    ):
        assert part in page.text
    assert ["C00", "5", "5", "10"] in page.rows  # images a fold and in all
    assert ["C00", "7", "7"] in page.rows  # after balancing


SHAPES = {
    "two classes": (("A", "B"), [[0, 1, 1, 0], [1, 0, 0, 0]]),
    "fifteen classes": (tuple(f"K{i}" for i in range(15)), [list(range(15)) * 3] * 2),
    "a class with one image": (tuple("ABCDEFG"), [[0, 0, 1, 2, 3, 4, 5, 6] * 2, [0, 1] * 4]),
    "a fold without some class": (tuple("ABCDEFG"), [[0, 1, 2, 3, 4, 5, 6] * 2, [0, 1, 2] * 4]),
    "one image": (tuple("ABCDEFG"), [[3]]),
    "a fold without any image": (tuple("ABCDEFG"), [[], [0, 1, 2]]),
    "no image": (tuple("ABCDEFG"), [[]]),
    "one class": (("ONLY",), [[0, 0]]),
    "long and odd names": (("$a^$ & <i>", "neutrophil, segmented", "a_b"), [[0, 1, 2]]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape_of_data_set_reads_well(shape, tmp_path):
    names, labels = SHAPES[shape]
    folds = [
        make_predictions(f"fold{i}", names, np.array(part, int)) for i, part in enumerate(labels)
    ]
    write_report(tmp_path, describe(folds), folds)
    content, page = read(tmp_path)
    assert content["pooled"]["n"] == sum(map(len, labels))
    words = page.text.lower().replace("(", " ").split()
    assert "nan" not in words and "none" not in words and "inf" not in words
    for name in names:
        assert name in page.text


def test_a_run_that_tells_nothing_of_itself(tmp_path):
    write_report(tmp_path, {}, make_folds(1))
    _, page = read(tmp_path)
    assert "Not recorded." in page.text


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ({"donor_separated": True, "group_kind": "donor"}, "donors not seen before"),
        ({"donor_separated": False, "group_kind": "slide"}, "All cells of a slide are in one fold"),
        ({"donor_separated": False, "group_kind": "image"}, "does not say which donor"),
        ({}, "does not say which donor"),
    ],
)
def test_what_is_said_of_donors(dataset, said):
    statement = donor_statement(dataset)
    assert said in statement
    assert ("optimistic" in statement) != bool(dataset.get("donor_separated"))


def test_the_result_in_one_line(tmp_path):
    folds = make_folds(1, n=40)
    exact = dataclasses.replace(
        folds[0], probabilities=np.eye(10, dtype=np.float32)[folds[0].label]
    )
    assert result_line(write_report(tmp_path, {}, [exact])) == (
        "Top-1 accuracy 1.0000 on the 40 held-out images of fold0, of 10 classes; always naming "
        "the commonest class would score 0.1000."
    )


def test_plain_json_of_anything():
    given = {
        "path": Path("a/b"),
        1: (np.float32("nan"), np.int64(3), jnp.float32(0.5), float("inf")),
        "array": np.array([[1, 2]]),
        "yes": np.bool_(True),
    }
    assert to_json(given) == {
        "path": "a/b",
        "1": [None, 3, 0.5, None],
        "array": [[1, 2]],
        "yes": True,
    }


def test_the_command_writes_the_same_report_again(tmp_path, capsys):
    folds = make_folds(12, n=20)
    for fold in folds:
        save_predictions(tmp_path / fold.fold / "predictions", fold)
    write_report(tmp_path, describe(folds), folds)
    names = ("report.json", "report.html", "confusion_matrix.png")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    (tmp_path / "report.html").unlink()
    assert main(["--workdir", str(tmp_path)]) == 0
    assert {name: (tmp_path / name).read_bytes() for name in names} == before
    assert "mean ± sd" in capsys.readouterr().out


def test_the_command_without_a_report_takes_the_saved_config(tmp_path):
    fold = make_folds(1)[0]
    save_predictions(tmp_path / "fold0" / "predictions", fold)
    (tmp_path / "config.json").write_text('{"model": "vit_tiny_patch16_224"}')
    assert main(["--workdir", str(tmp_path)]) == 0
    _, page = read(tmp_path)
    assert "vit_tiny_patch16_224" in page.text


@pytest.mark.parametrize("what", ["empty", "missing", "broken config"])
def test_a_folder_without_a_run_is_told_in_one_sentence(what, tmp_path, capsys):
    workdir = tmp_path / "missing" if what == "missing" else tmp_path
    if what == "broken config":
        save_predictions(tmp_path / "fold0" / "predictions", make_folds(1)[0])
        (tmp_path / "config.json").write_text("{")
    assert main(["--workdir", str(workdir)]) == 2
    told = capsys.readouterr().err
    expected = "is not whole JSON" if what == "broken config" else "holds no fold*/predictions.npz"
    assert expected in told and len(told.splitlines()) == 1
