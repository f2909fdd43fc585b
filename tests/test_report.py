"""The report tells what the saved predictions hold, whole, and in any shape of data set."""

import base64
import csv
import dataclasses
import io
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    log_loss,
    multilabel_confusion_matrix,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from bcvit_jax.balance import LEAK
from bcvit_jax.calibration import fit_temperature
from bcvit_jax.normalisation import Normalisation
from bcvit_jax.predictions import Predictions, load_predictions, save_predictions
from bcvit_jax.report.__main__ import main
from bcvit_jax.report.diagrams import reliability_picture
from bcvit_jax.report.html import fraction
from bcvit_jax.report.numbers import analysis
from bcvit_jax.report.page import NOTICE, donor_statement, interval_statement, result_line
from bcvit_jax.report.writing import mistake_pictures, write_report
from bcvit_jax.summary import METRICS, summarise_run

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
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        data = data.replace("\N{NO-BREAK SPACE}", " ")
        if "style" not in self.open:
            self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(workdir: Path) -> tuple[dict, Page]:
    text = (workdir / "report.json").read_text(encoding="utf-8")
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in report.json"))
    return content, Page((workdir / "report.html").read_text(encoding="utf-8"))


def make_grouped(folds: int = 3, n: int = 240, classes: int = 7) -> list[Predictions]:
    """Overconfident predictions, six images a group, classes of very different size."""
    names, found = tuple(f"K{i}" for i in range(classes)), []
    for place in range(folds):
        rng = np.random.default_rng(100 + place)
        label = rng.choice(classes, n, p=np.arange(classes, 0, -1) / (classes * (classes + 1) / 2))
        logits = rng.normal(size=(n, classes))
        logits[np.arange(n), label] += 1.5 + np.repeat(rng.normal(size=n // 6), 6)
        shares = np.exp(3 * (logits - logits.max(axis=-1, keepdims=True)))
        shares /= shares.sum(axis=-1, keepdims=True)
        group = np.array([f"slide{place}_{i // 6}" for i in range(n)])
        p = make_predictions(f"fold{place}", names, label)
        found.append(dataclasses.replace(p, probabilities=shares.astype(np.float32), group=group))
    return found


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> tuple[Path, dict, Page, list[Predictions]]:
    """A report of three folds, with the predictions as they were saved."""
    workdir, folds = tmp_path_factory.mktemp("report"), make_grouped()
    for fold in folds:
        save_predictions(workdir / fold.fold / "predictions", fold)
    write_report(workdir, describe(folds, group_kind="slide"), folds)
    saved = [load_predictions(workdir / fold.fold / "predictions") for fold in folds]
    return workdir, *read(workdir), saved


def together(folds: list[Predictions]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, predicted classes and probabilities (float64, adding up to 1) of all folds."""
    label, shares = (
        np.concatenate([getattr(p, key) for p in folds]) for key in ("label", "probabilities")
    )
    shares = shares.astype(np.float64)
    return label, shares.argmax(axis=-1), shares / shares.sum(axis=-1, keepdims=True)


def figures_of(folds: list[Predictions]) -> dict[str, float]:
    label, predicted, shares = together(folds)
    return {
        "n": len(label),
        "top1": accuracy_score(label, predicted),
        "top5": top_k_accuracy_score(label, shares, k=5),
        "macro_f1": f1_score(label, predicted, average="macro"),
        "balanced_accuracy": balanced_accuracy_score(label, predicted),
        "cohen_kappa": cohen_kappa_score(label, predicted),
    }


def ece_of(confidence: np.ndarray, correct: np.ndarray) -> float:
    accuracy, mean = calibration_curve(correct, confidence, n_bins=15)
    held = np.histogram(-confidence, np.linspace(-1, 0, 16))[0][::-1]  # bins (low, high]
    return float(np.abs(accuracy - mean) @ held[held > 0] / len(correct))


def test_every_figure_is_that_of_scikit_learn(reported):
    _, content, page, folds = reported
    pooled = figures_of(folds)
    assert {key: content["pooled"][key] for key in pooled} == pytest.approx(pooled)
    of_folds = [figures_of([fold]) for fold in folds]
    for told, expected in zip(content["folds"], of_folds, strict=True):
        assert {key: told[key] for key in expected} == pytest.approx(expected)
    for key in METRICS:
        values = [expected[key] for expected in of_folds]
        assert content["mean"][key]["mean"] == pytest.approx(np.mean(values))
        assert content["mean"][key]["sd"] == pytest.approx(np.std(values, ddof=1))
    label, predicted, _ = together(folds)
    assert content["pooled"]["confusion"] == confusion_matrix(label, predicted).tolist()
    by_class: Any = precision_recall_fscore_support(label, predicted)
    others = multilabel_confusion_matrix(label, predicted)
    for place, row in enumerate(content["pooled"]["classes"]):
        told = [row[key] for key in ("precision", "recall", "f1", "n")]
        assert told == pytest.approx([column[place] for column in by_class])
        (right, wrong), _ = others[place]
        assert row["specificity"] == pytest.approx(right / (right + wrong))
        shown = ["precision", "recall", "f1", "specificity"]
        bounds = content["intervals"]["classes"][place]
        cells = [f"{row[key]:.3f} ({bounds[key][0]:.3f}–{bounds[key][1]:.3f})" for key in shown]
        assert [row["name"], *cells, str(row["n"])] in page.rows
        for key in shown:
            assert bounds[key][0] < row[key] < bounds[key][1]
    for fold, bounds in zip(content["folds"], content["intervals"]["folds"], strict=True):
        cells = [f"{fold[key]:.3f} ({bounds[key][0]:.3f}–{bounds[key][1]:.3f})" for key in METRICS]
        assert [fold["fold"], *cells, "240"] in page.rows
    assert ["mean", *(f"{content['mean'][key]['mean']:.3f}" for key in METRICS), ""] in page.rows


def test_calibration_is_that_of_scikit_learn_and_of_other_folds(reported):
    _, content, page, folds = reported
    for place, row in enumerate(content["calibration"]["folds"]):
        label, predicted, shares = together([folds[place]])
        assert row["ece"] == pytest.approx(ece_of(shares.max(axis=-1), predicted == label))
        assert row["log_loss"] == pytest.approx(log_loss(label, shares))
        others = [fold for fold in folds if fold is not folds[place]]
        assert row["temperature"] == fit_temperature(
            np.concatenate([fold.probabilities for fold in others]),
            np.concatenate([fold.label for fold in others]),
        )
        scaled = softmax(np.log(shares) / row["temperature"], axis=-1)
        assert row["ece_tempered"] == pytest.approx(ece_of(scaled.max(axis=-1), predicted == label))
        assert row["log_loss_tempered"] == pytest.approx(log_loss(label, scaled))
        assert row["ece_tempered"] < row["ece"] / 1.5  # overconfident logits, mended unseen
        assert row["log_loss_tempered"] < row["log_loss"]
        told = [f"{row['temperature']:.2f}", f"{row['ece']:.3f}", f"{row['ece_tempered']:.3f}"]
        assert [row["fold"], *told] in page.rows


def test_a_folds_own_labels_do_not_move_its_temperature():
    folds = make_grouped()
    before = analysis(folds)["calibration"]["folds"]
    turned = dataclasses.replace(folds[0], label=(folds[0].label + 1) % 7)
    after = analysis([turned, *folds[1:]])["calibration"]["folds"]
    assert after[0]["temperature"] == before[0]["temperature"]
    assert after[1]["temperature"] > before[1]["temperature"] + 0.5


def test_thresholds_by_counting(reported):
    workdir, content, _, folds = reported
    label, predicted, _ = together(folds)
    right = label == predicted
    confidence = np.concatenate([fold.probabilities.max(axis=-1) for fold in folds])
    fold = np.repeat(np.arange(3), 240)
    for row in content["selective"]:
        reached = []
        for own in (None, 0, 1, 2):
            seen = np.ones(720, bool) if own is None else fold != own
            for threshold in np.sort(confidence[seen]):
                kept = seen & (confidence >= threshold)
                if right[kept].mean() >= row["accuracy"]:
                    if own is None:
                        assert (row["threshold"], row["accepted"]) == (threshold, kept.sum())
                        assert row["coverage"] == kept.mean()
                    else:
                        reached.append((confidence >= threshold) & (fold == own))
                    break
        kept = np.any(reached, axis=0)
        assert row["other_folds"]["accepted"] == kept.sum()
        assert row["other_folds"]["reached"] == accuracy_score(label[kept], predicted[kept])
    with open(workdir / "risk_coverage.csv", newline="") as file:
        points = list(csv.DictReader(file))
    assert float(points[-1]["coverage"]) == 1
    assert float(points[-1]["accuracy"]) == pytest.approx(content["pooled"]["top1"])


def test_the_most_confident_mistakes_come_first(reported):
    _, content, page, folds = reported
    label, predicted, shares = together(folds)
    wrong = np.sort(shares.max(axis=-1)[label != predicted])[::-1]
    rows = content["confident_mistakes"]
    assert [row["confidence"] for row in rows] == pytest.approx(wrong[:20].tolist())
    for row in rows:
        fold = folds[int(row["fold"][4:])]
        assert fold.source[row["index"]] == row["source"]
        assert row["source"].startswith(f"{row['true']}/") and row["true"] != row["predicted"]
    assert "The data set can't be read at data/cells, so there are no pictures." in page.text


def test_the_tables_hold_the_numbers_of_the_json(reported):
    workdir, content, _, _ = reported
    tables = {}
    for name in ("classes", "folds", "reliability"):
        with open(workdir / f"{name}.csv", newline="") as file:
            tables[name] = list(csv.DictReader(file))
    pairs = zip(content["pooled"]["classes"], content["intervals"]["classes"], strict=True)
    for line, (row, bounds) in zip(tables["classes"], pairs, strict=True):
        assert (line["class"], int(line["n"])) == (row["name"], row["n"])
        assert float(line["specificity"]) == row["specificity"]
        assert [float(line["f1_low"]), float(line["f1_high"])] == bounds["f1"]
    assert [line["fold"] for line in tables["folds"]] == ["fold0", "fold1", "fold2", "pooled"]
    assert float(tables["folds"][-1]["ece"]) == content["calibration"]["pooled"]["ece"]
    assert float(tables["folds"][1]["cohen_kappa"]) == content["folds"][1]["cohen_kappa"]
    first = content["calibration"]["reliability"][0]
    assert float(tables["reliability"][0]["accuracy"]) == first["accuracy"]
    assert {line["tempered"] for line in tables["reliability"]} == {"0", "1"}


def test_one_fold_is_not_tempered_on_itself(tmp_path):
    folds = make_grouped(1)
    write_report(tmp_path, describe(folds), folds)
    content, page = read(tmp_path)
    assert content["calibration"]["folds"][0]["temperature"] is None
    assert "reliability_tempered" not in content["calibration"]
    assert "needs held-out predictions of other folds to fit on, and there are none" in page.text
    assert all(row["other_folds"] is None for row in content["selective"])


def test_groups_widen_the_intervals_and_the_page_says_so(reported):
    _, content, page, folds = reported
    alone = [dataclasses.replace(fold, group=fold.source) for fold in folds]
    plain = analysis(alone)["intervals"]
    assert (plain["groups"], content["intervals"]["groups"]) == (720, 120)
    for key in METRICS:
        low, high = content["intervals"]["pooled"][key]
        assert high - low > 1.1 * (plain["pooled"][key][1] - plain["pooled"][key][0])
    assert "The 720 images come from 120 slides" in page.text
    assert "Other laboratories' conditions" not in page.text
    summary = summarise_run(alone)
    assert "each image as its own group" in interval_statement(summary, plain, {})
    few = plain | {"groups": 12}
    assert "fewer than 30 donors" in interval_statement(summary, few, {"group_kind": "donor"})


def test_pictures_of_the_mistakes(cells, tmp_path):
    """From the data set where the run had it; of another data set there is none."""
    rng, folds = np.random.default_rng(0), []
    for fold in cells.folds[:2]:
        p = make_predictions(fold, cells.class_names, cells.labels[fold])
        shares = rng.dirichlet(np.ones(3), len(p.label)).astype(np.float32)
        folds.append(dataclasses.replace(p, source=cells.sources[fold], probabilities=shares))
    data = {"path": str(cells.path), "centre_crop": 0.4, "normalise_scale": True}
    run = {"config": {"data": data}}
    write_report(tmp_path, run, folds)
    content, page = read(tmp_path)
    scale = Normalisation(normalise_scale=True)
    pictures = [a for a in page.addresses if a.startswith("data:image/jpeg;base64,")]
    rows = content["confident_mistakes"]
    assert len(pictures) == len(rows) > 5
    for address, row in zip(pictures, rows, strict=True):
        with Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))) as image:
            shown = np.asarray(image, int)
        expected = cells.square(row["fold"], row["index"], 0.4, 128, normalise=scale)
        assert shown.shape == (128, 128, 3) and np.abs(shown - expected).mean() < 8
        assert f"labelled {row['true']} called {row['predicted']}" in page.text
    other = [dataclasses.replace(p, source=p.source[::-1]) for p in folds]
    rows = analysis(other)["confident_mistakes"]
    none, why = mistake_pictures(rows, run)
    assert none == [] and "is not that of this run, so there are no pictures" in why
    assert "The run does not name its data set" in mistake_pictures(rows, {})[1]


def test_other_laboratories_conditions_are_shown_where_they_were_tried(tmp_path):
    folds = make_folds(1)
    picture = reliability_picture(analysis(folds)["calibration"])
    (tmp_path / "robustness.png").write_bytes(picture)
    (tmp_path / "robustness.json").write_text("{}")
    write_report(tmp_path, {}, folds)
    _, page = read(tmp_path)
    assert "Other laboratories' conditions" in page.text
    encoded = base64.b64encode(picture).decode()
    assert page.addresses.count(f"data:image/png;base64,{encoded}") == 2


def test_a_run_of_the_size_of_the_paper_is_reported_in_seconds(tmp_path):
    names = tuple(f"K{i:02}" for i in range(15))
    labels = np.random.default_rng(0).choice(15, (5, 3600), p=np.r_[0.86, [0.01] * 14])
    folds = [make_predictions(f"fold{i}", names, label) for i, label in enumerate(labels)]
    start = time.process_time()
    write_report(tmp_path, describe(folds), folds)
    assert time.process_time() - start < 15
    assert len((tmp_path / "report.html").read_bytes()) < 1_500_000


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
    assert ["C00", "7 (5)", "7 (5)"] in page.rows  # after balancing, and before


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
    words = re.findall(r"[a-z]+", page.text.lower())
    assert not {"nan", "inf"} & set(words) and "None" not in page.text
    for name in ("classes", "folds", "risk_coverage", "reliability"):
        told = (tmp_path / f"{name}.csv").read_text()
        assert "nan" not in told and "inf" not in told
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


def test_the_result_in_one_line():
    folds = make_folds(1, n=40)
    exact = dataclasses.replace(
        folds[0], probabilities=np.eye(10, dtype=np.float32)[folds[0].label]
    )
    assert result_line(summarise_run([exact])) == (
        "Top-1 accuracy 1.000 on the 40 held-out images of fold0, of 10 classes; always naming "
        "the commonest class would score 0.100."
    )


def test_the_command_writes_the_same_report_again(tmp_path, capsys):
    folds = make_folds(12, n=20)
    for fold in folds:
        save_predictions(tmp_path / fold.fold / "predictions", fold)
    write_report(tmp_path, describe(folds), folds)
    tables = ("classes.csv", "folds.csv", "risk_coverage.csv", "reliability.csv")
    diagrams = ("confusion_matrix.png", "reliability.png", "risk_coverage.png")
    names = ("report.json", "report.html", *tables, *diagrams)
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


def test_the_warning_of_a_leak_does_not_hang_on_the_report(tmp_path):
    save_predictions(tmp_path / "fold0" / "predictions", make_folds(1)[0])
    config = {"model": "vit_tiny_patch16_224", "data": {"path": "gone", "protocol": "paper"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["--workdir", str(tmp_path)]) == 0
    assert LEAK in read(tmp_path)[1].text


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


def test_numbers_are_never_rounded_to_what_they_are_not():
    given = (None, 1, 0, 0.5, 0.85749, 0.9996, 0.99996, 0.0004)
    shown = ["–", "1.000", "0.000", "0.500", "0.857", "0.9996", "0.99996", "0.0004"]
    assert [fraction(value) for value in given] == shown


def test_without_a_mistake_only_proportions_have_intervals(tmp_path):
    (fold,) = make_folds(1, n=40)
    exact = dataclasses.replace(fold, probabilities=np.eye(10, dtype=np.float32)[fold.label])
    write_report(tmp_path, {}, [exact])
    content, page = read(tmp_path)
    bounds = content["intervals"]["pooled"]
    assert bounds["top1"] == pytest.approx([0.9124, 1.0], abs=1e-4)  # Wilson's of 40 of 40
    assert bounds["macro_f1"] is None and bounds["cohen_kappa"] is None
    assert "The network made no mistake on the held-out images." in page.text
