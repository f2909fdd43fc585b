"""A trained run, exported and used elsewhere: the same numbers, or a refusal that says why."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from bcvit_jax import export, export_onnx, predict
from bcvit_jax.augment import dihedral
from bcvit_jax.errors import UserError
from bcvit_jax.exported import SUMS, from_pretrained
from bcvit_jax.predictions import load_predictions
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
    assert len(again.source) == 60
    words = ["--model", folder, "--data", tiny_dataset, "--out", tmp_path / "held.csv"]
    assert predict.main([*map(str, words), "--folds", "fold0"]) == 0
    assert sorted(load_predictions(tmp_path / "held").source) == sorted(own.source)
    content = json.loads((tmp_path / "held.json").read_text())
    assert (content["folds"], content["scored"]) == (["fold0"], len(own.source))


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


def test_an_ensemble_gives_the_mean_probability(trained, tmp_path):
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
    assert "The ensemble itself has no figure" in card


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


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "has 2 finished folds; choose one with --fold (fold0, fold1), or all"),
        (["--fold", "fold4"], "--fold is fold4; finished folds of"),
        (["--fold", "fold0", "--format", "pickle"], "--format has 'pickle'; it must be of"),
        (["--fold", "fold0", "--workdir", "absent"], "absent has no config.json"),
    ],
)
def test_a_wrong_export_is_one_sentence(trained, words, sentence, tmp_path, capsys):
    start = ["--workdir", str(trained), "--out", str(tmp_path / "out")]
    assert export.main([*start, *words]) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(trained, folder, capsys):
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
    monkeypatch.setattr(data, "open_dataset", lambda _: dataset)
    words = ["--model", folder, "--data", tiny_dataset, "--out", tmp_path / "r.csv"]
    assert predict.main([*map(str, words), "--map", "Torus=RING"]) == 0
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
    ("words", "sentence"),
    [
        (["absent.png"], "there is no absent.png; name image files"),
        ([], "name images to predict, or a data set to score"),
        (["{pictures}", "--data", "x"], "name images to predict, or a data set to score"),
        (["{pictures}/notes.txt", "--threshold", "1.5"], "--threshold is 1.5; it must lie in"),
        (["{pictures}", "--turns", "3"], "--turns is 3; it must be 1, 2, 4 or 8"),
        (["{pictures}", "--out", "results.txt"], "--out is results.txt; it must end in .csv"),
        (["{pictures}", "--model", "{pictures}"], "is no exported network"),
        (["{pictures}", "--map", "x"], "--map is 'x'; it must be THEIRS=OURS"),
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
    before = sorted(tmp_path.iterdir())
    words = [word.format(pictures=pictures, tmp=tmp_path, data=tiny_dataset) for word in words]
    start = ["--model", str(folder), "--out", str(tmp_path / "r.csv")]
    assert predict.main([*start, *words]) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


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
