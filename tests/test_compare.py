"""Runs side by side: their figures, what is pooled, what is refused, what is said of the rest."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from bcvit_jax import compare, compare_table
from bcvit_jax.config import from_dict, to_dict
from bcvit_jax.curves import METHOD
from bcvit_jax.models import BCViTConfig, model_config
from bcvit_jax.predictions import Predictions, save_predictions
from configs import base
from tests.tiny_run import TINY

NAMES = ("BAS", "EBO", "EOS", "LYT")
N = 120


def write_run(folder: Path, right: float, seed: int = 0, fold: int = 0, **changes: Any) -> Path:
    """A finished run that is right about a share of its images, without training it."""
    config = base.get_config()
    for name, value in (TINY | {"seed": seed, "folds": (fold,)} | changes).items():
        config.update_from_flattened_dict({name: value})
    values = to_dict(from_dict(config.to_dict()))
    rng = np.random.default_rng([seed, int(1000 * right)])
    label = np.arange(N, dtype=np.int32) % len(NAMES)
    said = np.where(np.arange(N) < right * N, label, rng.integers(0, len(NAMES), N))
    probabilities = np.eye(len(NAMES), dtype=np.float32)[said]
    source = np.array([f"{NAMES[k]}/{i:03}.png" for i, k in enumerate(label)])
    kept = np.zeros((N, 0), np.int32)
    found = Predictions(f"fold{fold}", source, source, label, probabilities, kept, NAMES)
    save_predictions(folder / f"fold{fold}" / "predictions", found)
    (folder / "config.json").write_text(json.dumps(values))
    origin = {"dataset_fingerprint": "abc", "commit": "0123"}
    (folder / "provenance.json").write_text(json.dumps(origin))
    lines = [json.dumps({"images_per_second": speed}) for speed in (10.0, 50.0, 40.0)]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    facts = {"seconds": {"evaluation": 0.6}}
    (folder / f"fold{fold}" / "training.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    """Two seeds of one recipe and one of a plain ViT."""
    return [
        write_run(tmp_path / "bcvit-0", 0.8, 0),
        write_run(tmp_path / "vit-0", 0.5, 0, **{"model.selection": False}),
        write_run(tmp_path / "bcvit-1", 0.7, 1),
    ]


def test_rows_hold_the_figures_of_their_runs(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert compare.main([*map(str, runs), "--out", str(out)]) == 0
    content = json.loads((out / "compare.json").read_text())
    bcvit, vit = content["rows"]
    assert (bcvit["name"], bcvit["runs"], bcvit["seeds"]) == (
        "bcvit",
        ["bcvit-0", "bcvit-1"],
        [0, 1],
    )
    assert (vit["name"], vit["runs"]) == ("vit", ["vit-0"])
    loaded = {run.name: run for run in compare.load_all(runs)}
    for row in (bcvit, vit):
        members = [loaded[name] for name in row["runs"]]
        top1 = [accuracy_score(run.label, run.predicted) for run in members]
        f1 = [f1_score(run.label, run.predicted, average="macro") for run in members]
        assert row["top1"]["runs"] == pytest.approx(top1)
        assert row["top1"]["value"] == pytest.approx(np.mean(top1))
        assert row["macro_f1"]["value"] == pytest.approx(np.mean(f1))
        assert row["training_ms"] == pytest.approx(25.0)
        assert row["inference_ms"] == pytest.approx(5.0)
    found = vit["difference"]["top1"]
    assert found["value"] == pytest.approx(vit["top1"]["value"] - bcvit["top1"]["value"])
    assert found["interval"][1] < 0 and vit["verdict"] == "worse"
    (test,) = vit["mcnemar"]  # of the seed that both have
    assert (test["run"], test["baseline"]) == ("vit-0", "bcvit-0")
    right = [loaded[name].predicted == loaded[name].label for name in ("vit-0", "bcvit-0")]
    assert test["only_baseline"] == int((~right[0] & right[1]).sum())
    said = capsys.readouterr().out
    assert "less bcvit" in said and "worse" in said


def test_costs_are_those_of_the_network(runs):
    found = compare.compare(compare.load_all(runs))["rows"]
    sizes = {key.partition(".")[2]: TINY[key] for key in TINY if key.startswith("model.")}
    model = model_config("bcvit_base_patch16_s12_224", 4, **sizes)
    assert isinstance(model, BCViTConfig)
    d, m, n, depth = model.width, model.mlp_width, model.num_patches + 1, model.num_maps
    block = n * (4 * d * d + 2 * d * m) + 2 * n * n * d
    assert found[1]["macs"] == (n - 1) * 8 * 8 * 3 * d + depth * block + d * 4
    assert found[1]["flops"] == 2 * found[1]["macs"]
    last = 4 * d * d + 2 * d * m + 9 * d + m  # its biases and two norms too
    fusing = 2 * (depth * depth + depth)
    assert found[0]["parameters"] - found[1]["parameters"] == last + fusing


def test_the_files_say_the_same(runs, tmp_path):
    content = compare.compare(compare.load_all(runs), "vit")
    assert [row["name"] for row in content["rows"]] == ["vit", "bcvit"]
    compare.write(content, tmp_path)
    with open(tmp_path / "compare.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["verdict"] for row in rows] == ["baseline", "better"]
    for row, told in zip(content["rows"], rows, strict=True):
        assert float(told["top1"]) == row["top1"]["value"]
        assert (float(told["top1_low"]), float(told["top1_high"])) == row["top1"]["interval"]
    assert rows[0]["difference_top1"] == "" and float(rows[1]["difference_top1"]) > 0
    page = (tmp_path / "compare.md").read_text()
    assert f"{content['rows'][1]['top1']['value']:.4f}" in page and "| bcvit |" in page
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    picture = (tmp_path / "compare.svg").read_text()
    assert "<svg" in picture
    compare.write(content, tmp_path, "again")
    assert (tmp_path / "again.svg").read_text() == picture


def test_no_difference_is_said_plainly(tmp_path):
    runs = [write_run(tmp_path / "a-0", 0.8), write_run(tmp_path / "b-0", 0.8, epochs=9)]
    content = compare.compare(compare.load_all(runs))
    assert content["rows"][1]["verdict"] == "no difference seen"
    assert "No difference to a seen in top-1: b" in content["notes"][1]


def test_images_are_matched_by_name_not_by_place(runs, tmp_path):
    before = compare.compare(compare.load_all(runs))
    run = compare.load(runs[1])
    with np.load(runs[1] / "fold0" / "predictions.npz") as arrays:
        kept = dict(arrays)
    for name in ("source", "group", "label", "probabilities", "kept"):
        kept[name] = kept[name][::-1]
    np.savez(runs[1] / "fold0" / "predictions.npz", **kept)
    assert compare.load(runs[1]).images == run.images
    assert compare.compare(compare.load_all(runs)) == before


def write_shifts(
    run: Path, worst: float, images: int = 40, finished: bool = True, method: int = METHOD
) -> None:
    """robustness.json as far as a comparison reads it."""
    at = {"shift": "blur", "strength": 0.03, "balanced_accuracy": worst}
    content: dict[str, Any] = {"made_of": {"method": method}}
    content |= {"finished": finished, "images": images, "clean": {"balanced_accuracy": 0.9}}
    content |= {"worst": at, "worst_untrained": at | {"balanced_accuracy": worst / 2}}
    content |= {"mean_at_stated": worst + 0.1, "mean_at_untrained": worst}
    (run / "robustness.json").write_text(json.dumps(content))


def test_changed_pictures_stand_beside_where_all_seeds_of_a_row_have_them(runs):
    for run, worst in zip((runs[0], runs[2]), (0.4, 0.6), strict=True):
        write_shifts(run, worst)
    content = compare.compare(compare.load_all(runs))
    bcvit, vit = content["rows"]
    assert vit["shifts"] is None
    assert bcvit["shifts"]["worst"] == {"value": pytest.approx(0.5), "runs": [0.4, 0.6]}
    assert bcvit["shifts"]["mean_at_untrained"]["value"] == pytest.approx(0.5)
    head, row = compare_table.shift_rows(content)
    assert dict(zip(head, row, strict=True)) == {
        "balanced accuracy": "bcvit",
        "clean": "0.900 (0.900\N{EN DASH}0.900)",
        "worst change": "0.500 (0.400\N{EN DASH}0.600)",
        "mean over changes": "0.600 (0.500\N{EN DASH}0.700)",
        "worst beyond training": "0.250 (0.200\N{EN DASH}0.300)",
        "mean beyond training": "0.500 (0.400\N{EN DASH}0.600)",
        "images a change": "40",
    }
    told = " ".join(content["notes"])
    assert "not measured for vit" in told and "different numbers" not in told
    rows = list(csv.DictReader(compare_table.csv_text(content).splitlines()))
    assert [row["balanced_accuracy_worst"] for row in rows] == ["0.5", ""]
    write_shifts(runs[1], 0.2, images=80)
    told = " ".join(compare.compare(compare.load_all(runs))["notes"])
    assert "not measured for" not in told and "different numbers of images" in told
    ways: list[dict[str, Any]] = [{"finished": False}, {"method": METHOD - 1}]
    for way in ways:
        write_shifts(runs[2], 0.6, **way)
        assert compare.compare(compare.load_all(runs))["rows"][0]["shifts"] is None


def test_timing_is_asked_for(runs, monkeypatch):
    monkeypatch.setattr("bcvit_jax.costs._SECONDS", 0.0)
    content = compare.compare(compare.load_all(runs[1:2]), timed=True, say=lambda _: None)
    assert 0 < content["rows"][0]["inference_ms"] < 1000
    assert "measured here" in " ".join(content["notes"])


def test_runs_of_other_images_are_refused_by_name(runs, tmp_path, capsys):
    other = write_run(tmp_path / "other", 0.8)
    with np.load(other / "fold0" / "predictions.npz") as arrays:
        kept = dict(arrays)
    kept["source"] = np.char.add("new/", kept["source"])
    np.savez(other / "fold0" / "predictions.npz", **kept)
    assert compare.main([*map(str, [*runs, other]), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "bcvit-0, vit-0, bcvit-1 (120 images of fold0, such as BAS/000.png)" in said
    assert "other (120 images of fold0, such as new/BAS/000.png)" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda runs: [*runs, runs[0]], "is named twice"),
        (lambda runs: [write_run(runs[0].parent / "twin", 0.6), *runs], "share a seed (0, 0, 1)"),
        (lambda runs: [runs[0].parent / "none"], "has no config.json"),
        (
            lambda runs: [*runs, "--baseline", "x"],
            "--baseline is 'x'; it must be one of bcvit, vit",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(runs, spoil, words, capsys):
    assert compare.main([str(word) for word in spoil(runs)]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1


def test_an_unfinished_run_is_named(runs):
    config = json.loads((runs[0] / "config.json").read_text())
    (runs[0] / "config.json").write_text(json.dumps(config | {"folds": [0, 3]}))
    with pytest.raises(compare.UserError, match=r"not finished \(fold3 has no predictions\)"):
        compare.load(runs[0])


def test_runs_on_other_pictures_of_the_same_names_are_rows_of_their_own(runs):
    origin = {"dataset_fingerprint": "another", "commit": "0123"}
    (runs[2] / "provenance.json").write_text(json.dumps(origin))
    content = compare.compare(compare.load_all(runs))
    assert [row["runs"] for row in content["rows"]] == [["bcvit-0"], ["vit-0"], ["bcvit-1"]]
    assert "different data sets" in content["notes"][-1]


@pytest.mark.parametrize(
    ("folders", "seeds", "name"),
    [
        (["m20_seed0", "m20_seed1"], [0, 1], "m20"),
        (["a-10", "a-11"], [10, 11], "a"),
        (["vit-0"], [0], "vit"),
        (["patch16-0"], [0], "patch16"),
        (["vit16"], [6], "vit16"),
        (["one", "two"], [0, 1], "one"),
        (["0"], [0], "0"),
    ],
)
def test_a_row_is_called_as_its_folders_without_their_seeds(folders, seeds, name, runs):
    some = compare.load(runs[0])
    pool = [
        some._replace(name=folder, config=dataclasses.replace(some.config, seed=seed))
        for folder, seed in zip(folders, seeds, strict=True)
    ]
    assert list(compare.by_recipe(pool)) == [name]
