"""The replay of active learning: what it trains, what it keeps, what it says."""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import review, simulation
from data_prep.detect import split_fields
from data_prep.errors import BuildError
from data_prep.fields import Field, FieldSet
from data_prep.simulation import simulate
from tests.smears import TINY, tiny_torch, write_smears


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    with tiny_torch(monkeypatch):
        yield


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> tuple[Path, FieldSet]:
    folder = tmp_path_factory.mktemp("smears") / "images"
    return folder, write_smears(folder, 20)


@pytest.fixture
def options(rendered, tmp_path) -> argparse.Namespace:
    """Three rounds of 4, 8 and 12 images, two runs of each kind."""
    folder = rendered[0]
    arguments = ["simulate", "--images", folder, "--boxes", folder.parent / "boxes.json"]
    arguments += ["--out", tmp_path / "out", "--first", 4, "--count", 4, "--rounds", 3]
    arguments += ["--seeds", 2, "--steps", 1, "--size", 96, "--architecture", TINY]
    return review._parser().parse_args([*map(str, arguments)])


class Teacher:
    """Stands for training and looking: good where it has seen images of even numbers."""

    def __init__(self, monkeypatch) -> None:
        self.trained: list[tuple[int, tuple[str, ...]]] = []
        self.fail_after: int | None = None
        monkeypatch.setattr(simulation, "_train", self.train)
        monkeypatch.setattr(simulation, "predict_set", self.predict)
        monkeypatch.setattr(review, "look_at", self.look_at)

    def train(self, fields: FieldSet, options, seed: int) -> tuple[str, ...]:
        images = tuple(item.image for item in fields.fields)
        if self.fail_after is not None and len(self.trained) >= self.fail_after:
            raise KeyboardInterrupt
        self.trained.append((seed, images))
        return images

    def predict(self, images: tuple[str, ...], test: FieldSet, root, progress=True) -> FieldSet:
        share = np.mean([int(name[:2]) % 2 == 0 for name in images])
        kept = round(len(test.fields) * share)
        return FieldSet(test.fields[:kept], test.labels)

    def look_at(self, detector, pool, images, progress=True) -> review.Views:
        assert detector in [images for _, images in self.trained]
        worth = [float(int(name[:2]) % 2 == 0) for name in pool]
        return review.Views([Field(name, 9, 9) for name in pool], worth, np.zeros((len(pool), 1)))


def journal(options) -> list[dict]:
    lines = (options.out / "runs.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def test_both_kinds_begin_alike_and_grow_by_their_own_choice(options, rendered, monkeypatch):
    teacher = Teacher(monkeypatch)
    told = simulate(options)
    rows = journal(options)
    # A run: one shared training of the first round, two more of each kind.
    assert len(rows) == len(teacher.trained) == 2 * (1 + 2 + 2)
    pool, test = split_fields(rendered[1], 0.2, 0)
    names = {item.image for item in pool.fields}
    held_out = {item.image for item in test.fields}
    for seed in range(2):
        first = next(row["images"] for row in rows if row["seed"] == seed)
        for kind in ("active", "random"):
            run = [row for row in rows if row["seed"] == seed and row["kind"] == kind]
            images = [set(row["images"]) for row in run]
            if kind == "random":
                images.insert(0, set(first))
            assert [len(some) for some in images] == [4, 8, 12]
            assert images[0] < images[1] < images[2] <= names
            assert not images[2] & held_out
    firsts = [set(row["images"]) for row in rows if len(row["images"]) == 4]
    assert firsts[0] != firsts[1]
    # The teacher learns from even numbers and chooses them: the replay must show it.
    assert "active minus random: +" in told
    summary = json.loads((options.out / "summary.json").read_text())
    assert list(summary)[:3] == ["AP 4", "AP 8", "AP 12"]
    assert summary["AP50 4"]["difference"] == 0 < summary["AP50 8"]["difference"]
    row = summary["AP50 12"]
    assert row["low"] <= row["difference"] == pytest.approx(row["active"] - row["random"])
    table = list(csv.DictReader((options.out / "runs.csv").read_text().splitlines()))
    assert [int(line["labelled"]) for line in table] == [len(row["images"]) for row in rows]
    for metric in ("AP", "AP50"):
        with Image.open(options.out / f"{metric}.png") as plot:
            assert plot.size == (720, 480)


def test_a_replay_goes_on_where_it_was(options, monkeypatch):
    teacher = Teacher(monkeypatch)
    simulate(options)
    whole, summary = journal(options), (options.out / "summary.json").read_text()
    lines = (options.out / "runs.jsonl").read_text().splitlines(keepends=True)
    for kept in range(1, len(lines)):
        half = lines[kept][: len(lines[kept]) // 2]  # killed in the middle of a line
        (options.out / "runs.jsonl").write_text("".join(lines[:kept]) + half)
        teacher.trained.clear()
        simulate(options)
        rows = [row for row in journal_whole(options) if row is not None]
        assert rows == whole
        assert (options.out / "summary.json").read_text() == summary
        # What is missing is trained, and at most one detector more that has to choose.
        missing = len(lines) - kept
        assert missing <= len(teacher.trained) <= missing + 1
    teacher.trained.clear()
    simulate(options)
    assert teacher.trained == []


def journal_whole(options) -> list[dict | None]:
    found = []
    for line in (options.out / "runs.jsonl").read_text().splitlines()[1:]:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            found.append(None)
    return found


def test_ctrl_c_keeps_what_is_done_and_more_seeds_are_added(options, monkeypatch, capsys):
    teacher = Teacher(monkeypatch)
    teacher.fail_after = 3
    with pytest.raises(KeyboardInterrupt):
        simulate(options)
    assert len(journal(options)) == 3
    teacher.fail_after = None
    options.seeds = 1
    told = simulate(options)
    assert "one run has no interval" in told and "no difference is shown" in told
    assert "low" not in json.loads((options.out / "summary.json").read_text())["AP 8"]
    options.seeds = 2
    assert "one run" not in simulate(options)
    assert len(journal(options)) == 10


def test_another_replay_is_not_mixed_in(options, rendered, monkeypatch, tmp_path):
    Teacher(monkeypatch)
    simulate(options)
    content = json.loads(options.boxes.read_text())
    content["annotations"][0]["bbox"][0] += 1
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    before = (options.out / "runs.jsonl").read_bytes()
    for changes in ({"boxes": other}, {"steps": 2}, {"count": 5}, {"weights": "x.pth"}):
        changed = argparse.Namespace(**{**vars(options), **changes})
        with pytest.raises(BuildError, match="with other boxes or settings: choose another --out"):
            simulate(changed)
    assert (options.out / "runs.jsonl").read_bytes() == before
    (options.out / "runs.jsonl").write_bytes(before[:30])
    with pytest.raises(BuildError, match="with other boxes or settings"):
        simulate(options)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"first": 12, "count": 3}, "16 images to choose from and 4 to judge on are too few for 3"),
        ({"rounds": 5}, "which label 20"),
        ({"hold_out": 0.0}, "and 0 to judge on"),
        ({"seeds": 0}, "--seeds is 0"),
        ({"steps": -1}, "--steps is -1"),
        ({"hold_out": 1.5}, "--hold-out is 1.5"),
        ({"labels": ("RBC",)}, "--labels names RBC"),
        ({"architecture": "resnet"}, '"resnet" is unknown here'),
        ({"size": 3}, "The size is 3"),
    ],
)
def test_options_are_judged(options, changes, why):
    for name, value in changes.items():
        setattr(options, name, value)
    with pytest.raises(BuildError, match=why):
        simulate(options)


def test_a_small_replay_runs_and_is_the_same_again(options, capsys):
    options.rounds, options.seeds, options.steps = 2, 1, 2
    told = simulate(options)
    assert "Mean AP50 over the rounds after the first" in told
    rows = journal(options)
    assert [len(row["images"]) for row in rows] == [4, 8, 8]
    lines = (options.out / "runs.jsonl").read_text().splitlines(keepends=True)
    (options.out / "runs.jsonl").write_text("".join(lines[:2]))
    simulate(options)
    assert journal(options) == rows
    arguments = ["simulate", "--images", options.images, "--boxes", options.boxes]
    arguments += ["--out", options.out, "--seeds", "0"]
    assert review.main([*map(str, arguments)]) == 2
    assert "--seeds is 0, but must be at least 1." in capsys.readouterr().err
