"""A trained run, exported and used elsewhere: the same numbers, or a refusal that says why."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from bcvit_jax import export, export_onnx, predict
from bcvit_jax import trained as trained_run
from bcvit_jax.augment import dihedral
from bcvit_jax.errors import UserError
from bcvit_jax.exported import SUMS, Preprocessing, from_pretrained, untrained_folds
from bcvit_jax.normalisation import Normalisation
from bcvit_jax.predictions import load_predictions
from bcvit_jax.run_files import read_classifier
from data_prep.images import read_rgb
from tests.tiny_run import train

CHANGES = {"folds": "(0, 1)", "epochs": 4, "batch_size": 8, "data.centre_crop": 0.9}
CHANGES["data.white_background"] = True
CHANGES["data.normalise_stain"] = True
CHANGES["data.normalise_scale"] = True


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory):
    """The folder of a run with two finished folds."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    return train(workdir, tiny_dataset, data__cache_size=40, **CHANGES)


@pytest.fixture(scope="module")
def folder(trained):
    """fold0's network, exported with its program."""
    out = trained.parent / "fold0"
    words = ["--workdir", trained, "--out", out, "--fold", "fold0"]
    assert export.main([*map(str, words), "--format", "safetensors,stablehlo"]) == 0
    return out


def changed(folder: Path, target: Path, name: str, content: bytes, sums: bool) -> Path:
    """A copy with another file; `sums` makes the checksums agree."""
    shutil.copytree(folder, target)
    (target / name).write_bytes(content)
    if sums:
        lines = (target / SUMS).read_text().splitlines()
        digest = hashlib.sha256(content).hexdigest()
        lines = [f"{digest}  {name}" if line.endswith(f"  {name}") else line for line in lines]
        (target / SUMS).write_text("\n".join(lines) + "\n")
    return target


def test_the_exported_network_scores_as_the_run_did(trained, folder, tiny_dataset, tmp_path):
    """To the last label, and with the same patches kept."""
    words = ["--model", folder, "--data", tiny_dataset, "--out", tmp_path / "r.csv"]
    assert predict.main([*map(str, words), "--batch-size", "7"]) == 0
    again, own = load_predictions(tmp_path / "r"), load_predictions(trained / "fold0/predictions")
    rows = [list(again.source).index(source) for source in own.source]
    np.testing.assert_allclose(again.probabilities[rows], own.probabilities, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(again.predicted[rows], own.predicted)
    np.testing.assert_array_equal(again.kept[rows], own.kept)
    assert sorted(again.source) == sorted(own.source)


def test_of_its_own_data_set_only_folds_new_to_the_network_are_scored(
    folder, tiny_dataset, tmp_path, capsys
):
    def scored(model, out, *words):
        start = ["--model", model, "--data", tiny_dataset, "--out", tmp_path / f"{out}.csv"]
        assert predict.main([*map(str, start), *words]) == 0
        return json.loads((tmp_path / f"{out}.json").read_text())

    content = scored(folder, "held")
    assert (content["folds"], content["scored"], content["held_out"]) == (["fold0"], 12, True)
    assert content["left_out_as_trained_on"] == ["fold1", "fold2", "fold3", "fold4"]
    assert "trained on them: fold1, fold2, fold3, fold4" in capsys.readouterr().out
    words = ["--model", folder, "--data", tiny_dataset, "--out", tmp_path / "t.csv"]
    assert predict.main([*map(str, words), "--folds", "fold0,fold2"]) == 2
    err = capsys.readouterr().err
    assert "--folds names fold2, on which a network was trained; of this data set fold0" in err
    assert err.count("\n") == 1 and not (tmp_path / "t.json").exists()
    card = json.loads((folder / "config.json").read_text())
    card["networks"][0]["trained_on"] = ["fold2", "fold3"]  # as of config.train_folds
    fewer = json.dumps(card).encode()
    fewer = changed(folder, tmp_path / "fewer", "config.json", fewer, sums=True)
    assert scored(fewer, "fewer")["folds"] == ["fold0", "fold1", "fold4"]
    card["dataset"]["fingerprint"] = "another"
    other = json.dumps(card).encode()
    other = changed(folder, tmp_path / "other", "config.json", other, sums=True)
    content = scored(other, "other", "--folds", "fold2")
    assert (content["folds"], content["held_out"]) == (["fold2"], None)


def test_the_card_tells_what_each_network_was_trained_on(trained, folder):
    (network,) = json.loads((folder / "config.json").read_text())["networks"]
    assert network["trained_on"] == ["fold1", "fold2", "fold3", "fold4"]
    config = read_classifier(trained)
    report = {"run": {"dataset": {"counts": {f"fold{i}": [1] for i in range(5)}}}}
    for train_folds, path, seen in (
        ((), "", [0, 2, 3, 4]),
        ((2, 4), "", [2, 4]),
        ((2, 4), "encoder.safetensors", [0, 2, 3, 4]),  # which may have seen them
    ):
        weights = dataclasses.replace(config.weights, path=path)
        config = dataclasses.replace(config, train_folds=train_folds, weights=weights)
        found = export._trained_on(config, report, "fold1")
        assert found == {"trained_on": [f"fold{i}" for i in seen]}
    assert export._trained_on(config, {"run": {"dataset": {"path": "x"}}}, "fold1") == {}
    older = [{"held_out": "fold0"}, {"held_out": "fold1"}]
    assert untrained_folds(older[:1], ["fold0", "fold1"]) == ["fold0"]
    assert untrained_folds(older, ["fold0", "fold1"]) == []
    newer = [{**older[0], "trained_on": ["fold2"]}, {**older[1], "trained_on": ["fold2", "fold0"]}]
    assert untrained_folds(newer, ["fold0", "fold1", "fold2"]) == ["fold1"]


ELSEWHERE = """
import sys
import numpy as np
import jax
import jax.export
from safetensors.numpy import load_file
folder, images, out = sys.argv[1:]
program = jax.export.deserialize(bytearray(open(folder + "/network.stablehlo", "rb").read()))
weights = load_file(folder + "/model.safetensors")
images = np.load(images)
logits = [np.asarray(program.call(weights, images[:n])) for n in (1, 7)]
assert not {"flax", "orbax", "bcvit_jax", "torch"} & set(sys.modules), sorted(sys.modules)
assert program.platforms == ("cpu", "cuda")
np.savez(out, one=logits[0], seven=logits[1])
"""


def test_the_program_runs_where_neither_flax_nor_this_project_is(folder, tmp_path):
    classifier = from_pretrained(folder)
    side = classifier.model.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (7, side, side, 3), np.uint8)
    logits, _ = classifier.predict_step()(classifier.params, pixels)
    np.save(tmp_path / "images.npy", (pixels / 127.5 - 1).astype(np.float32))
    command = [sys.executable, "-c", ELSEWHERE, folder, tmp_path / "images.npy", tmp_path / "l.npz"]
    subprocess.run(list(map(str, command)), check=True, cwd=tmp_path, timeout=120)
    with np.load(tmp_path / "l.npz") as found:
        np.testing.assert_allclose(found["seven"], logits, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found["one"], logits[:1], rtol=0, atol=1e-5)


def test_onnx_without_its_packages_or_over_a_file_is_one_sentence(folder, tmp_path, capsys):
    (tmp_path / "there.onnx").write_bytes(b"0")
    for name, sentence in (
        ("there.onnx", "is there already"),
        ("x.bin", "must end in .onnx"),
        ("x.onnx", "in an environment of its own: pip install jax2onnx onnxruntime"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "onnxruntime", None)
            words = ["--model", str(folder), "--out", str(tmp_path / name)]
            assert export_onnx.main(words) == 2
        err = capsys.readouterr().err
        assert sentence in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]


def test_onnxruntime_gives_the_same_logits(folder, tmp_path):
    pytest.importorskip("jax2onnx", reason="needs the environment that export_onnx tells of")
    assert export_onnx.export_onnx(folder, tmp_path / "x.onnx") <= 1e-4


def test_an_ensemble_gives_the_mean_probability(trained, tiny_dataset, tmp_path, capsys):
    words = ["--workdir", trained, "--out", tmp_path / "all", "--fold", "all"]
    assert export.main(list(map(str, words))) == 0
    classifier = from_pretrained(tmp_path / "all")
    assert [n["held_out"] for n in classifier.card["networks"]] == ["fold0", "fold1"]
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    together, kept = classifier.predict_step()(classifier.params, images)
    each = [network(images / np.float32(127.5) - 1) for network in classifier.networks()]
    mean = np.mean([jax.nn.softmax(output.logits) for output in each], axis=0)
    np.testing.assert_allclose(jax.nn.softmax(together), mean, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(kept, each[0].kept)
    card = (tmp_path / "all/README.md").read_text()
    assert "The ensemble itself has no figure: every cell" in card
    words = ["--model", tmp_path / "all", "--data", tiny_dataset, "--out", tmp_path / "r.csv"]
    assert predict.main(list(map(str, words))) == 2
    assert "every fold of this data set trained one of the networks" in capsys.readouterr().err


def test_runs_of_several_seeds_are_averaged_and_scored_where_none_was_trained(
    trained, tiny_dataset, tmp_path
):
    """The card's figures are those of predict on the fold that all of them held out."""
    changes = CHANGES | {"folds": "(0,)", "epochs": 2, "seed": 5}
    other = train(tmp_path / "other", tiny_dataset, data__cache_size=40, **changes)
    words = ["--workdir", trained, other, "--out", tmp_path / "two", "--fold", "fold0"]
    assert export.main(list(map(str, words))) == 0
    classifier = from_pretrained(tmp_path / "two")
    assert [(n["held_out"], n["seed"]) for n in classifier.card["networks"]] == [
        ("fold0", 0),
        ("fold0", 5),
    ]
    words = ["--model", tmp_path / "two", "--data", tiny_dataset, "--folds", "fold0"]
    assert predict.main([*map(str, words), "--out", str(tmp_path / "r.csv")]) == 0
    runs = [load_predictions(run / "fold0/predictions") for run in (trained, other)]
    mean = np.mean([each.probabilities for each in runs], axis=0)
    together = load_predictions(tmp_path / "r")
    assert list(together.source) == list(runs[0].source)
    np.testing.assert_allclose(together.probabilities, mean, rtol=0, atol=1e-5)
    top1 = float(np.mean(mean.argmax(1) == runs[0].label))
    card = (tmp_path / "two/README.md").read_text()
    assert f"| all together | fold0 | {top1:.3f} |" in card
    assert "4 epochs, batch 8, sgd, seed 0." in card and "2 epochs, batch 8, sgd, seed 5." in card


def test_runs_that_cannot_be_averaged_are_refused(trained, tiny_dataset, tmp_path, capsys):
    changes = CHANGES | {"folds": "(0,)", "epochs": 1, "data.normalise_scale": False}
    other = train(tmp_path / "other", tiny_dataset, data__cache_size=40, **changes)
    words = ["--workdir", trained, other, "--out", tmp_path / "two", "--fold", "fold0"]
    capsys.readouterr()  # the training's
    assert export.main(list(map(str, words))) == 2
    err = capsys.readouterr().err
    assert "the runs of --workdir differ in preprocessing;" in err and err.count("\n") == 1
    assert not (tmp_path / "two").exists()


def test_a_prediction_from_all_turns_is_their_mean_and_knows_no_upside(trained, folder, tmp_path):
    """Of one network and of an ensemble; kept are the patches of the picture as it came."""
    words = ["--workdir", trained, "--out", tmp_path / "both", "--fold", "all"]
    assert export.main(list(map(str, words))) == 0
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    for source in (folder, tmp_path / "both"):
        plain = from_pretrained(source)
        step = plain.predict_step()
        ways = [np.stack([dihedral(image, t) for image in images]) for t in range(8)]
        each = np.stack([jax.nn.softmax(step(plain.params, way)[0]) for way in ways])
        assert np.abs(each - each[0]).max() > 1e-3
        for turns, members in ((2, (0, 2)), (4, (0, 1, 2, 3)), (8, range(8))):
            turned = dataclasses.replace(plain, turns=turns)
            logits, kept = turned.predict_step()(plain.params, images)
            mean = each[list(members)].mean(0)
            np.testing.assert_allclose(jax.nn.softmax(logits), mean, rtol=0, atol=1e-6)
            np.testing.assert_array_equal(kept, step(plain.params, images)[1])
        other, _ = turned.predict_step()(plain.params, ways[5])
        np.testing.assert_allclose(other, logits, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="turns is 3; it must be one of 1, 2, 4, 8"):
        dataclasses.replace(plain, turns=3)


def test_the_command_averages_over_turns_and_says_so(folder, pictures, tmp_path):
    words = ["--model", folder, pictures, "--out", tmp_path / "r.csv", "--turns", "4"]
    assert predict.main(list(map(str, words))) == 0
    assert json.loads((tmp_path / "r.json").read_text())["turns"] == 4
    classifier = dataclasses.replace(from_pretrained(folder), turns=4)
    row = rows_of(tmp_path / "r.csv")[0]
    with Image.open(row["path"]) as picture:
        inputs = classifier.preprocessing(picture)[None]
    logits, _ = classifier.predict_step()(classifier.params, inputs)
    found = [float(row[f"p_{name}"]) for name in classifier.class_names]
    np.testing.assert_allclose(found, jax.nn.softmax(logits)[0], rtol=0, atol=1e-5)


def test_the_model_card_tells_what_the_report_told(trained, folder):
    card, report = (
        (folder / "README.md").read_text(),
        json.loads((trained / "report.json").read_text()),
    )
    entry = next(fold for fold in report["folds"] if fold["fold"] == "fold0")
    figures = f"{entry['top1']:.3f} | {entry['macro_f1']:.3f} | {entry['n']}"
    assert f"| model.safetensors | fold0 | {figures} |" in card
    for heading in ("Details", "Uses", "Limits", "How to start", "Training", "Evaluation"):
        assert f"\n## {heading}\n" in card
    assert report["donor_statement"] in card.replace("\n", " ") and "DISC" in card
    for told in ("becomes 240 t", "(0.543, 0.742, 0.259)", "more than 0.36 (or less than 0.12)"):
        assert told in card
    subprocess.run(["sha256sum", "-c", SUMS], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def test_one_flipped_bit_anywhere_is_refused_and_named(folder, tmp_path):
    for place, path in enumerate(sorted(folder.iterdir())):
        if path.name == SUMS:
            continue
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        copy = changed(folder, tmp_path / str(place), path.name, bytes(content), sums=False)
        with pytest.raises(UserError, match=f"{path.name} is damaged"):
            from_pretrained(copy)
    shutil.copytree(folder, tmp_path / "less")
    (tmp_path / "less" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        from_pretrained(tmp_path / "less")


def test_folders_that_do_not_agree_with_themselves_are_refused(folder, tmp_path):
    card = json.loads((folder / "config.json").read_text())
    cases = {
        "classes": (card | {"class_names": ["A", "B"]}, "names 2 classes, and its network tells 3"),
        "format": (card | {"format": 99}, "is of format 99"),
        "width": (card | {"model": card["model"] | {"width": 48}}, "the network's 1×1×48"),
        "field": (card | {"model": card["model"] | {"depth": 0}}, "can't be understood"),
        "lacking": ({"format": 1}, "can't be understood"),
        "older": (
            card | {"preprocessing": card["preprocessing"] | {"even_stain": True}},
            "with even_stain, which this version does not make",
        ),
    }
    for name, (content, sentence) in cases.items():
        content = json.dumps(content).encode()
        copy = changed(folder, tmp_path / name, "config.json", content, sums=True)
        with pytest.raises(UserError) as error:
            from_pretrained(copy)
        assert sentence in str(error.value), name
    with pytest.raises(UserError, match="is no exported network"):
        from_pretrained(tmp_path)


def test_a_network_that_saw_other_colours_is_refused(folder, tmp_path):
    card = json.loads((folder / "config.json").read_text())
    assert card["preprocessing_form"] == str(Normalisation(True, True, True))
    for name, form in (("other", "stain0 scale"), ("older", None)):
        content = {k: v for k, v in card.items() if k != "preprocessing_form"}
        content |= {"preprocessing_form": form} if form else {}
        content = json.dumps(content).encode()
        copy = changed(folder, tmp_path / name, "config.json", content, sums=True)
        if not form:  # an older card says nothing
            assert from_pretrained(copy).class_names == tuple(card["class_names"])
            continue
        with pytest.raises(UserError, match=r"another form of normalise_stain .*\(stain0 scale\)"):
            from_pretrained(copy)


def test_the_preprocessor_names_no_processor_that_would_do_otherwise(folder):
    found = json.loads((folder / "preprocessor_config.json").read_text())
    assert not {"image_processor_type", "do_center_crop"} & set(found)
    assert found["crop_fraction_of_shorter_side"] == 0.9
    assert found["size"] == {"height": 32, "width": 32}
    assert (found["image_mean"], found["image_std"]) == ([0.5] * 3, [0.5] * 3)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "has 2 finished folds; choose one with --fold (fold0, fold1), or all"),
        (["--fold", "fold4"], "--fold is fold4; finished folds of"),
        (["--fold", "fold0", "--format", "pickle"], "--format has 'pickle'; it must be of"),
        (["--format", "onnx"], "stablehlo; python -m bcvit_jax.export_onnx makes ONNX of the"),
        (["--fold", "fold0", "--workdir", "absent"], "absent has no config.json"),
    ],
)
def test_a_wrong_export_is_one_sentence(trained, words, sentence, tmp_path, capsys):
    start = ["--workdir", str(trained), "--out", str(tmp_path / "out")]
    assert export.main([*start, *words]) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_report_without_its_run_is_one_sentence(trained, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(trained / "config.json", run)
    report = json.loads((trained / "report.json").read_text())
    report["run"] = {part: report["run"][part] for part in ("title", "config", "provenance")}
    (run / "report.json").write_text(json.dumps(report))
    words = ["--workdir", run, "--out", tmp_path / "out", "--fold", "fold0"]
    assert export.main(list(map(str, words))) == 2
    err = capsys.readouterr().err
    assert "does not tell the run's dataset and training; start" in err and err.count("\n") == 1


def test_an_empty_folder_is_filled_even_where_one_stands_in_it(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert export.main(["--workdir", str(trained), "--out", ".", "--fold", "fold0"]) == 0
    assert Path.cwd() == tmp_path and from_pretrained(".").turns == 1
    names = {"README.md", SUMS, "config.json", "model.safetensors", "preprocessor_config.json"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_nothing_is_overwritten(trained, folder, capsys, monkeypatch):
    def never(*_):
        raise AssertionError("networks were read before --out was looked at")

    monkeypatch.setattr(trained_run, "restore", never)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    words = ["--workdir", trained, "--out", folder, "--fold", "fold1"]
    assert export.main(list(map(str, words))) == 2
    assert "is there already" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# ------------------------------------------------------------------------------------- predicting


@pytest.fixture(scope="module")
def pictures(cells, tmp_path_factory) -> Path:
    """The cells of fold0 as files, and ten that are no images, in two folders."""
    root = tmp_path_factory.mktemp("pictures")
    for place, source in enumerate(cells.sources["fold0"]):
        file = root / source
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(cells.png("fold0", place))
    whole = cells.png("fold0", 0)
    bad = {f"DISC/bad{i}.png": whole[: 20 + 10 * i] for i in range(4)}
    bad |= {"empty.png": b"", "text.png": b"no picture", "page.html.png": b"<html>"}
    bad |= {"half.jpg": b"\xff\xd8\xff\xe0", "scan.gif": b"GIF89a", "deep.tif": b"II*\0"}
    for name, content in bad.items():
        (root / name).write_bytes(content)
    (root / "notes.txt").write_text("not an image, and not named so")
    return root


def rows_of(file: Path) -> list[dict[str, str]]:
    import csv

    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def test_bad_files_are_named_and_the_rest_is_as_the_run_saw_it(trained, folder, pictures, tmp_path):
    out = tmp_path / "deep" / "results.csv"
    words = ["--model", folder, pictures, "--out", out, "--batch-size", 4, "--threshold", 0.6]
    assert predict.main(list(map(str, words))) == 0
    own = load_predictions(trained / "fold0/predictions")
    rows = {str(Path(row["path"]).relative_to(pictures)): row for row in rows_of(out)}
    assert set(rows) == set(own.source)
    assert [row["path"] for row in rows_of(out)] == sorted(row["path"] for row in rows_of(out))
    for i, source in enumerate(own.source):
        row, p = rows[source], own.probabilities[i]
        assert row["predicted"] == own.class_names[own.predicted[i]]
        assert row["kept"] == " ".join(map(str, own.kept[i]))
        found = [float(row[f"p_{name}"]) for name in own.class_names]
        np.testing.assert_allclose(found, p, rtol=0, atol=1e-5)
        assert row["unidentified"] == str(int(p.max() < 0.6))
        assert float(row["entropy"]) == pytest.approx(-(p * np.log(p)).sum(), abs=1e-4)
        assert row["top2"] == own.class_names[np.argsort(-p)[1]]
    bad = rows_of(tmp_path / "deep/results.bad.csv")
    assert len(bad) == 10 and all(row["reason"] for row in bad)
    summary = json.loads((tmp_path / "deep/results.json").read_text())
    assert (summary["images"], summary["bad"]) == (12, 10)
    assert sum(summary["counts"].values()) == 12
    doubtful = Counter(row["predicted"] for row in rows.values() if row["unidentified"] == "1")
    assert summary["unidentified_counts"] == {name: doubtful[name] for name in own.class_names}
    assert 0 < sum(doubtful.values()) == summary["unidentified"]
    table = predict.told(summary, out).splitlines()
    assert table[0].split() == ["class", "cells", "share", "unidentified"]
    assert [line.split()[-1] for line in table[2:5]] == [str(doubtful[n]) for n in own.class_names]
    page = (tmp_path / "deep/results.html").read_text()
    assert page.count("<figure") == 12
    assert page.count('class="doubtful"') == summary["unidentified"]
    assert not list(tmp_path.rglob("*.partial"))


def test_a_manifest_names_images_beside_itself(folder, pictures, cells, tmp_path):
    sources = [str(s) for s in cells.sources["fold0"][:3]]
    manifest = pictures / "list.csv"
    manifest.write_text("donor,path\n" + "".join(f"x,{source}\n" for source in sources))
    words = ["--model", folder, manifest, "--out", tmp_path / "r.csv"]
    assert predict.main(list(map(str, words))) == 0
    found = [Path(row["path"]) for row in rows_of(tmp_path / "r.csv")]
    assert found == [pictures / source for source in sources]
    manifest.unlink()


def test_only_bad_images_are_a_failure(folder, pictures, tmp_path):
    words = ["--model", folder, pictures / "empty.png", "--out", tmp_path / "r.csv"]
    assert predict.main(list(map(str, words))) == 1
    assert len(rows_of(tmp_path / "r.bad.csv")) == 1


def test_another_laboratorys_names_are_mapped_and_unknown_classes_left_out(
    folder, tiny_dataset, tmp_path, capsys, monkeypatch
):
    from bcvit_jax import data

    dataset = data.open_dataset(str(tiny_dataset))
    monkeypatch.setattr(dataset, "class_names", ("disc", "Torus", "BLAST"))
    monkeypatch.setattr(dataset, "fingerprint", "another")
    monkeypatch.setattr(data, "open_dataset", lambda _: dataset)
    words = ["--model", folder, "--data", tiny_dataset, "--out", tmp_path / "r.csv"]
    assert predict.main([*map(str, words), "--map", "torus=Ring"]) == 0
    out = capsys.readouterr().out
    assert "classes that the network does not know, left out: BLAST (10)" in out
    assert "classes that this data set does not have: BARS" in out
    content = json.loads((tmp_path / "r.json").read_text())
    assert (content["scored"], content["pooled"]["n"]) == (50, 50)
    assert content["unknown_to_the_network"] == {"BLAST": 10}
    monkeypatch.setattr(dataset, "class_names", ("A", "B", "C"))
    words[-1] = tmp_path / "s.csv"
    assert predict.main(list(map(str, words))) == 2
    assert "none of the data set's classes (A, B, C) is one of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("theirs", "renamed", "sentence"),
    [
        (("disc", "Torus"), {"Tours": "RING"}, "--map renames Tours; .* are disc, Torus"),
        (("disc", "Torus"), {"Torus": "RIGN"}, "gives the name RIGN; .* are DISC, RING"),
        (("disc", "RING", "Disc"), {}, "classes disc, Disc differ in capitals alone"),
        (("A", "B"), {}, r"none of the data set's classes \(A, B\)"),
    ],
)
def test_names_that_are_no_class_are_refused(theirs, renamed, sentence):
    from bcvit_jax.score import matched

    with pytest.raises(UserError, match=sentence):
        matched(theirs, ("DISC", "RING"), renamed)
    assert matched(("b", "A", "c"), ("a", "B"), {"C": "b"}).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["absent.png"], "there is no absent.png; name image files"),
        ([], "name images to predict, or a data set to score"),
        (["{pictures}", "--data", "x"], "name images to predict, or a data set to score"),
        (["{pictures}/notes.txt", "--threshold", "1.5"], "--threshold is 1.5; it must lie in"),
        (["{pictures}", "--turns", "3"], "--turns is 3; it must be 1, 2, 4 or 8"),
        (["{pictures}", "--out", "results.txt"], "--out is results.txt; it must end in .csv"),
        (["{pictures}", "--model", "{pictures}"], "is no exported network"),
        (["--data", "{data}", "--map", "x"], "--map is 'x'; it must be THEIRS=OURS"),
        (["--data", "{data}", "--map", "x= "], "--map is 'x= '; it must be THEIRS=OURS"),
        (["--data", "{data}", "--map", "x=A,X=B"], "--map names x and X; give every class one"),
        (["{pictures}", "--map", "x=RING"], "--map is x=RING; it must name classes of --data"),
        (["{pictures}", "--out", "{tmp}/early.csv"], "early.csv.partial is there already"),
        (["{tmp}/hidden"], "holds no images"),
        (["{tmp}"], "holds no images"),
        (["{tmp}/list.csv"], "list.csv has no column `path`"),
        (["{pictures}", "--out", "{tmp}/there.csv"], "there.json is there already"),
        (["--data", "{pictures}"], "data_prep.build folder"),
        (["--data", "{data}", "--folds", "fold0,fold7"], "--folds names fold7; the data set has f"),
        (["{pictures}", "--folds", "fold0"], "--folds is fold0; it must name folds of --data"),
    ],
)
def test_a_wrong_prediction_is_one_sentence(
    folder, pictures, tiny_dataset, words, sentence, tmp_path, capsys
):
    (tmp_path / "list.csv").write_text("file\nx.png\n")
    (tmp_path / "there.json").write_text("{}")
    (tmp_path / "early.csv.partial").write_text("rows of yesterday")
    (tmp_path / "hidden/.trash").mkdir(parents=True)
    for name in ("._BAS_0001.png", ".trash/BAS_0002.png"):
        (tmp_path / "hidden" / name).write_bytes(b"")
    before = sorted(tmp_path.iterdir())
    words = [word.format(pictures=pictures, tmp=tmp_path, data=tiny_dataset) for word in words]
    start = ["--model", str(folder), "--out", str(tmp_path / "r.csv")]
    assert predict.main([*start, *words]) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    for name in ("b.png", "._b.png", ".trash/c.png", "sub/a.png", "sub/.d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in predict.find_images([str(tmp_path)])]
    assert found == ["b.png", "sub/a.png"]
    named = str(tmp_path / "._b.png")  # by hand
    assert list(predict.find_images([named])) == [Path(named)]


def test_file_names_that_are_no_utf8_are_escaped_and_no_row_is_lost(
    folder, cells, tmp_path, capsys
):
    images = tmp_path / os.fsdecode(b"cells\xe4")
    images.mkdir()
    (images / os.fsdecode(b"a\xff.png")).write_bytes(cells.png("fold0", 0))
    (images / os.fsdecode(b"b\xfe.png")).write_bytes(b"")
    (images / "c.png").write_bytes(cells.png("fold0", 1))
    out = images / "r.csv"
    assert predict.main(["--model", str(folder), str(images), "--out", str(out)]) == 0
    assert [row["path"].rsplit("/", 1)[1] for row in rows_of(out)] == ["a\\udcff.png", "c.png"]
    assert rows_of(images / "r.bad.csv")[0]["path"].endswith("b\\udcfe.png")
    assert "a\\udcff.png" in (images / "r.html").read_text("utf-8")
    assert json.loads((images / "r.json").read_text("utf-8"))["images"] == 2
    assert "cells\\udce4/r.csv" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "status"), [(KeyboardInterrupt, 130), (OSError, 1)])
def test_what_ends_early_keeps_its_rows_and_says_where(
    folder, pictures, tmp_path, capsys, monkeypatch, kind, status
):
    from bcvit_jax.gallery import Gallery

    seen = []

    def third(*_):
        seen.append(1)
        if len(seen) == 3:
            raise kind("no more")

    monkeypatch.setattr(Gallery, "add", third)
    words = ["--model", folder, pictures / "RING", "--out", tmp_path / "r.csv"]
    assert predict.main(list(map(str, words))) == status
    partial = tmp_path / "r.csv.partial"
    assert [path for path in tmp_path.iterdir()] == [partial]
    assert len(rows_of(partial)) == 3
    assert f"the rows so far (3) are kept in {partial}\n" in capsys.readouterr().err
    before = partial.read_bytes()
    assert predict.main(list(map(str, words))) == 2
    assert "r.csv.partial is there already" in capsys.readouterr().err
    assert partial.read_bytes() == before


def test_what_ends_before_its_first_row_leaves_nothing(tmp_path, capsys):
    from bcvit_jax.results import Results

    with pytest.raises(KeyboardInterrupt), Results(tmp_path / "r.csv", ("A", "B"), 2, 0.5):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().err


PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


def _clear(alpha: int) -> Image.Image:
    image = Image.fromarray(PIXELS)
    image.putalpha(alpha)
    return image


@pytest.mark.parametrize(
    ("image", "form"),
    [
        (Image.fromarray(PIXELS), "PNG"),
        (Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 16), "PNG"),
        (Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), "TIFF"),
        (_clear(90), "PNG"),
        (Image.fromarray(PIXELS).quantize(8), "PNG"),
        (Image.fromarray(PIXELS), "JPEG"),
    ],
    ids=["RGB", "12-bit", "16-bit", "transparent", "palette", "turned by EXIF"],
)
def test_pillows_image_becomes_what_predict_makes_of_the_file(image, form, tmp_path):
    exif = Image.Exif()
    if form == "JPEG":
        exif[0x0112] = 6
    file = tmp_path / "cell"
    image.save(file, form, exif=exif)
    way = Preprocessing(16, 20, 0.9, white_background=True)
    with open(file, "rb") as opened:
        pixels = read_rgb(opened)
    with Image.open(file) as picture:
        found = way(picture)
    np.testing.assert_array_equal(found, way(pixels))
    np.testing.assert_array_equal(found, predict.read(file, way))
    assert found.shape == (16, 16, 3) and np.ptp(found) > 30


@pytest.mark.parametrize(
    ("picture", "sentence"),
    [
        (PIXELS / np.float32(255), r"is float32 \[24, 32, 3\]; it must be .*times 255"),
        (PIXELS.astype(np.int64), "is int64"),
        (PIXELS[..., 0], r"is uint8 \[24, 32\]"),
        (PIXELS[..., [0, 1, 2, 0]], r"is uint8 \[24, 32, 4\]"),
        (PIXELS[None], r"is uint8 \[1, 24, 32, 3\]"),
        (PIXELS[:0], r"is uint8 \[0, 32, 3\]"),
        (Image.fromarray(PIXELS[..., 0].astype(np.float32)), "has floating-point samples"),
    ],
)
def test_what_is_no_picture_is_refused(picture, sentence):
    with pytest.raises(UserError, match=f"the picture {sentence}"):
        Preprocessing(16, 16, 1.0)(picture)


def test_images_are_read_ahead_by_a_bounded_number():
    class Pool:
        running = most = 0

        def submit(self, *_):
            self.running += 1
            self.most = max(self.most, self.running)
            return self

        def result(self):
            self.running -= 1

    pool = Pool()
    paths = (Path(str(i)) for i in range(1000))
    assert len(list(predict._ahead(pool, paths, None, 12))) == 1000
    assert pool.most == 12


def test_the_page_keeps_the_least_certain():
    from bcvit_jax.gallery import Gallery

    gallery = Gallery(("A", "B"), 0.6, most=3)
    rng = np.random.default_rng(0)
    certain = rng.permutation(np.linspace(0.51, 0.99, 40))
    image = np.zeros((8, 8, 3), np.uint8)
    for i, p in enumerate(certain):
        gallery.add(f"cell{i}<b>.png", image, np.array([p, 1 - p], np.float32))
    page = gallery.page({"images": 40, "unidentified": 8, "threshold": 0.6, "bad": 0}, "r.csv")
    least = np.argsort(certain)[:3]
    places = [page.index(f"<span>cell{i}&lt;b&gt;.png</span>") for i in least]
    assert places == sorted(places) and page.count("<figure") == 3
    assert "A: 40, the 3 least certain" in page
