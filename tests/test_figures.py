"""The command: files of a tiny run, drawn again alike, and answers to bad input."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bcvit_jax.figures import __main__ as figures
from bcvit_jax.figures.__main__ import main
from bcvit_jax.predictions import load_predictions
from tests.networks import tiny_config
from tests.test_figures_seen import opened
from tests.tiny_run import train

FILES = {f"{name}.{kind}" for name in figures.KINDS for kind in ("png", "svg", "csv")}


@pytest.fixture(scope="module", autouse=True)
def coarse():
    """Pictures of few pixels, which are drawn sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bcvit_jax.figures.plates.DPI", 40)
        yield


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory) -> Path:
    """The folder of a small run with contrastive loss and one finished fold."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    return train(workdir, tiny_dataset, epochs=1, model__depth=2)


@pytest.fixture(scope="module")
def drawn(trained, tmp_path_factory) -> Path:
    """All figures of the run, beside a run of the same weights that is said to lack the loss."""
    other = copied(trained, tmp_path_factory.mktemp("other") / "run", contrastive=0.0)
    out = tmp_path_factory.mktemp("drawn") / "figures"
    flags = ["--images", "4", "--contrast", str(other), "--out", str(out)]
    assert main(["--workdir", str(trained), *flags]) == 0
    return out


def copied(run: Path, to: Path, **loss) -> Path:
    shutil.copytree(run, to)
    config = json.loads((to / "config.json").read_text())
    config["loss"] |= loss
    (to / "config.json").write_text(json.dumps(config))
    return to


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def test_every_figure_has_its_files_and_its_numbers(drawn, trained, cells):
    assert {file.name for file in drawn.iterdir()} == FILES | {"figures.json"}
    content = json.loads((drawn / "figures.json").read_text())
    assert tuple(content) == figures.KINDS
    assert {part["fold"] for part in content.values()} == {"fold0"}
    shown = content["attention"]["cells"]
    saved = load_predictions(trained / "fold0" / "predictions")
    by_source = {source: row for row, source in enumerate(saved.source)}
    for cell in shown:
        row = by_source[cell["source"]]
        assert cell["label"] == cells.class_names[saved.label[row]]
        assert cell["predicted"] == cells.class_names[saved.predicted[row]]
        assert cell["probability"] == pytest.approx(saved.probabilities[row].max(), abs=1e-4)
        assert cell["kept"] == saved.kept[row].tolist()
    assert len(rows(drawn / "attention.csv")) == len(shown) * 2 * 25
    heaviest = max(rows(drawn / "attention.csv")[:25], key=lambda row: float(row["attention"]))
    assert int(heaviest["patch"]) == shown[0]["kept"][0]


def test_shares_are_of_all_held_out_images(drawn):
    content = json.loads((drawn / "figures.json").read_text())["kept"]
    table = [row for row in rows(drawn / "kept.csv") if row["chance"]]
    assert content["images"] + content["left_out"] == 12 and len(table) == content["images"]
    for name in ("kept", "attention"):
        mean = np.mean([float(row[name]) for row in table])
        chance = np.mean([float(row["chance"]) for row in table])
        assert content["on_cell"][name]["share"] == pytest.approx(mean, abs=1e-5)
        assert content["on_cell"][name]["ratio"] == pytest.approx(mean / chance, abs=1e-4)
    assert sum(part["images"] for part in content["classes"].values()) == content["images"]


def test_tsne_has_a_panel_for_images_and_for_features_without_and_with_the_loss(drawn):
    content = json.loads((drawn / "figures.json").read_text())["tsne"]
    names = ["pixels", "features_without", "features_with"]
    assert list(content["silhouette"]) == names
    assert content["cosine_with"] == content["cosine_without"]  # the same weights
    table = rows(drawn / "tsne.csv")
    assert [row["panel"] for row in table] == [name for name in names for _ in range(12)]


def test_drawn_again_the_files_are_the_same_and_what_is_not_asked_for_stays(drawn, trained):
    before = {file.name: file.read_bytes() for file in drawn.iterdir()}
    flags = ["--out", str(drawn), "--images", "4", "--only", "patches,kept"]
    assert main(["--workdir", str(trained), *flags]) == 0
    assert {file.name: file.read_bytes() for file in drawn.iterdir()} == before


def test_without_another_run_there_is_a_panel_fewer_and_a_hint(trained, tmp_path, capsys):
    out = tmp_path / "figures"
    flags = ["--limit", "9", "--only", "tsne", "--out", str(out)]
    assert main(["--workdir", str(trained), *flags]) == 0
    assert "--contrast OTHER_RUN adds" in capsys.readouterr().out
    content = json.loads((out / "figures.json").read_text())["tsne"]
    assert content["images"] == 9 and list(content["silhouette"]) == ["pixels", "features_with"]


def test_a_network_without_selection_shows_its_last_block_and_says_what_it_lacks(
    trained, tmp_path, capsys, monkeypatch
):
    network = opened(tiny_config(num_classes=3, selection=False))
    monkeypatch.setattr("bcvit_jax.figures.collection.restore", lambda *_: network)
    out = tmp_path / "figures"
    flags = ["--only", "attention,kept", "--images", "2", "--out", str(out)]
    assert main(["--workdir", str(trained), *flags]) == 0
    said = capsys.readouterr().out
    assert "class row of the last block" in said and "no kept patches, no fused map" in said
    content = json.loads((out / "figures.json").read_text())
    assert list(content["kept"]["on_cell"]) == ["attention"]
    assert "kept" not in rows(out / "kept.csv")[0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--only", "tsne,heads"], "--only has 'heads'; it must be of attention, kept, patches"),
        (["--limit", "-1"], "--limit is -1; it must be 0 (all) or more"),
        (["--images", "0"], "--images is 0; it must be 1 to 24 cells"),
        (["--images", "nothing.png"], "nothing.png is no image of fold0"),
        (["--fold", "fold3"], "--fold is fold3; finished folds of"),
        (["--contrast", "RUN"], "has loss.contrastive 1, and"),
        (["--out", "RUN"], "holds files that are no figures; name a new folder with --out"),
        (["--limit", "3", "--only", "tsne"], "--limit leaves 3 images; t-SNE needs 4 or more"),
        (["--data", "RUN"], "not a data set"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(flags, words, trained, tmp_path, capsys):
    flags = [str(trained) if flag == "RUN" else flag for flag in flags]
    if "--out" not in flags:
        flags += ["--out", str(tmp_path / "out")]
    assert main(["--workdir", str(trained), *flags]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_another_runs_folder_must_be_one_of_the_same_cells(trained, tmp_path, capsys):
    assert main(["--workdir", str(tmp_path)]) == 2
    assert "it is no finished run" in capsys.readouterr().err
    other = copied(trained, tmp_path / "other", contrastive=0.0)
    origin = json.loads((other / "provenance.json").read_text())
    (other / "provenance.json").write_text(json.dumps(origin | {"dataset_fingerprint": "0"}))
    assert main(["--workdir", str(trained), "--contrast", str(other)]) == 2
    assert "was trained on another data set" in capsys.readouterr().err


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys; from bcvit_jax.figures.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('jax', 'matplotlib', 'sklearn', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "figure 11" in done.stdout
