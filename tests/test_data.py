"""Batches: balancing, exact resume, exact evaluation, and settings refused with their rule."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bcvit_jax.appearance import AugmentConfig
from bcvit_jax.data import (
    DataConfig,
    balance_plan,
    dihedral,
    evaluation_batches,
    train_batches,
)
from bcvit_jax.errors import UserError
from bcvit_jax.exported import preprocessing_of

SIZE = 24
LIVELY = {
    "flips_turns": True,
    "crop_area": (0.5, 1.0),
    "crop_ratio": (0.8, 1.25),
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "hue": 0.05,
    "mixup": 0.4,
    "cutmix": 1.0,
    "augment": AugmentConfig(stain_hue=0.05, noise=5.0, jpeg=40, zoom=(0.6, 1.5), shift=0.1),
}


@pytest.fixture
def stream(cells):
    """Make a training stream of folds 1 … 4; closed after the test."""
    made = []

    def make(batch_size=8, seed=0, folds=(1, 2, 3, 4), place=(0, 1), **settings):
        config = DataConfig(path="tiny", **settings)
        made.append(train_batches(cells, folds, config, SIZE, batch_size, seed, *place))
        return made[-1]

    yield make
    for one in made:
        one.close()


def take(stream, count):
    return [next(stream) for _ in range(count)]


def assert_same(batches, others):
    assert len(batches) == len(others)
    for one, other in zip(batches, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def examples(batches):
    """The images of all batches as bytes, in order."""
    return [image.tobytes() for batch in batches for image in batch["image"]]


# Settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("centre_crop", 0.0),
        ("centre_crop", 1.5),
        ("crop_area", (0.0, 1.0)),
        ("crop_area", (0.9, 0.5)),
        ("crop_ratio", (1.0,)),
        ("hue", 0.6),
        ("mixup", -1.0),
        ("balance_target", -1),
        ("threads", -1),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_rule(field, value):
    with pytest.raises(UserError, match=rf"config\.data\.{field} is .*must"):
        DataConfig(path="x", **{field: value})


def test_a_batch_that_processes_cannot_share_and_a_negative_seed_are_refused(stream):
    with pytest.raises(UserError, match="batch size is 9"):
        stream(batch_size=9, place=(0, 2))
    with pytest.raises(UserError, match="seed is -1"):
        stream(seed=-1)


# Balancing


def test_the_plan_meets_the_target_by_dropping_and_by_turning():
    labels = np.repeat(np.arange(4), [50, 20, 6, 1]).astype(np.int32)
    index, transform = balance_plan(labels, target=20, seed=0)
    assert index.dtype == np.int64 and transform.dtype == np.int8
    assert np.bincount(labels[index]).tolist() == [20, 20, 20, 8]  # 1 cell: at most eightfold
    pairs = list(zip(index.tolist(), transform.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    turned = np.bincount(labels[index][transform > 0], minlength=4)
    assert turned.tolist() == [0, 0, 14, 7]
    grown = index[labels[index] == 2]
    assert set(grown) == set(range(70, 76))
    assert set(Counter(grown.tolist()).values()) <= {3, 4}  # 20 / 6: none much more than another


def test_originals_come_first_and_a_copy_is_another_picture():
    labels = np.zeros(5, np.int32)
    index, transform = balance_plan(np.append(labels, [1] * 30), target=30, seed=3)
    own = index < 5
    assert (transform[own][:5] == 0).all() and set(index[own][:5]) == set(range(5))
    image = np.arange(75, dtype=np.uint8).reshape(5, 5, 3)
    shown = {dihedral(image, t).tobytes() for t in transform[index == 0]}
    assert len(shown) == (index == 0).sum()


def test_target_0_is_the_median_count_of_the_classes_present():
    labels = np.repeat([0, 2, 5], [3, 10, 40])
    index, _ = balance_plan(labels, target=0, seed=0)
    assert np.bincount(labels[index]).tolist() == [10, 0, 10, 0, 0, 10]


def test_the_plan_depends_on_the_seed_alone():
    labels = np.repeat([0, 1], [40, 7])
    one, again, other = (balance_plan(labels, 12, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_counts_before_and_after_balancing(stream):
    balanced, natural = stream(balance_target=12), stream(balance=False)
    assert balanced.counts.tolist() == natural.counts.tolist() == [24, 16, 8]
    assert balanced.balanced_counts.tolist() == [12, 12, 12]
    assert natural.balanced_counts.tolist() == [24, 16, 8]
    assert (balanced.examples_per_epoch, natural.examples_per_epoch) == (36, 48)


def test_balanced_training_never_shows_a_held_out_cell(cells, stream):
    config = DataConfig(path="tiny")
    held_out = {
        dihedral(image, t).tobytes()
        for batch in evaluation_batches(cells, 0, config, SIZE, 12)
        for image in batch["image"]
        for t in range(8)
    }
    assert len(held_out) == 12 * 8
    train = stream(balance_target=24, batch_size=24)
    shown = set(examples(take(train, 2 * train.examples_per_epoch // 24)))
    assert len(shown) == 72
    assert not shown & held_out


# Training batches


def test_a_batch_is_what_the_train_step_expects(stream):
    batch = next(stream())
    assert {name: (a.shape, a.dtype.name) for name, a in batch.items()} == {
        "image": ((8, SIZE, SIZE, 3), "uint8"),
        "label": ((8,), "int32"),
        "mixed_label": ((8,), "int32"),
        "mix": ((8,), "float32"),
    }
    assert (batch["mix"] == 1).all() and (batch["label"] == batch["mixed_label"]).all()


def test_an_epoch_shows_each_planned_example_once_and_the_next_in_another_order(cells, stream):
    train = stream(balance=False)
    first, second = take(train, 6), take(train, 6)
    config = DataConfig(path="tiny")
    expected = Counter(
        (image.tobytes(), int(label))
        for fold in (1, 2, 3, 4)
        for batch in evaluation_batches(cells, fold, config, SIZE, 12)
        for image, label in zip(batch["image"], batch["label"], strict=True)
    )
    for epoch in (first, second):
        labels = np.concatenate([batch["label"] for batch in epoch]).tolist()
        assert Counter(zip(examples(epoch), labels, strict=True)) == expected
    assert examples(first) != examples(second)


def test_batches_stay_full_where_an_epoch_ends_within_one(stream):
    train = stream(batch_size=20, balance=False)
    batches = take(train, 12)  # 240 examples = 5 epochs of 48
    assert all(len(batch["label"]) == 20 for batch in batches)
    assert set(Counter(examples(batches)).values()) == {5}


def test_each_epoch_augments_anew(stream):
    train = stream(batch_size=24, balance=False, crop_area=(0.5, 1.0))
    assert len(set(examples(take(train, 6)))) == 3 * 48


@pytest.mark.parametrize("position", [0, 3, 7])
def test_a_resumed_stream_goes_on_exactly(stream, position):
    first = stream(**LIVELY)
    take(first, position)
    state = json.loads(json.dumps(first.get_state()))
    expected = take(first, 8)
    resumed = stream(**LIVELY)
    take(resumed, 2)  # whatever it handed out before
    resumed.set_state(state)
    assert_same(take(resumed, 8), expected)


def test_the_batches_depend_on_seed_and_place_not_on_threads_or_cache(stream, tmp_path):
    expected = take(stream(threads=0, **LIVELY), 8)
    assert_same(take(stream(threads=1, **LIVELY), 8), expected)
    assert_same(take(stream(threads=7, **LIVELY), 8), expected)
    assert_same(take(stream(cache=str(tmp_path), **LIVELY), 8), expected)
    other = take(stream(seed=1, **LIVELY), 8)
    assert set(examples(other)).isdisjoint(examples(expected))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed 0 → 1"),
        ({"batch_size": 4}, "batch_size 8 → 4"),
        ({"folds": (0, 1)}, "folds .*fold4.* → .*fold0"),
        ({"hue": 0.1}, r"data\.hue 0\.05 → 0\.1"),
        ({"augment": AugmentConfig(noise=5.0)}, r"data\.augment\.zoom \[0\.6, 1\.5\] → None"),
        ({"balance": False, "mixup": 0.0}, r"data\.balance True → False; data\.mixup 0\.4 → 0\.0"),
    ],
)
def test_the_state_of_another_stream_is_refused_and_the_difference_named(stream, change, words):
    state = stream(**LIVELY).get_state()
    with pytest.raises(UserError, match=words):
        stream(**(LIVELY | change)).set_state(state)


def test_a_stream_saved_before_a_change_existed_goes_on_with_it_off(stream):
    plain = stream()
    take(plain, 2)
    state = plain.get_state()
    assert not [name for name in state["made_of"] if "augment" in name]
    again = stream(augment=AugmentConfig())
    again.set_state(state)
    assert_same(take(again, 2), take(plain, 2))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_each_global_batch(stream, count):
    settings = {name: value for name, value in LIVELY.items() if name not in ("mixup", "cutmix")}
    whole = take(stream(**settings), 7)
    parts = [take(stream(place=(i, count), **settings), 7) for i in range(count)]
    for step, batch in enumerate(whole):
        shares = [part[step] for part in parts]
        assert all(len(share["label"]) == 8 // count for share in shares)
        assert Counter(examples(shares)) == Counter(examples([batch]))


# Evaluation


@pytest.mark.parametrize("batch_size", [5, 12, 64])
def test_evaluation_counts_every_image_exactly_once(cells, batch_size):
    batches = list(evaluation_batches(cells, 0, DataConfig(path="tiny"), SIZE, batch_size))
    assert all(batch["image"].shape == (batch_size, SIZE, SIZE, 3) for batch in batches)
    mask = np.concatenate([batch["mask"] for batch in batches])
    index = np.concatenate([batch["index"] for batch in batches])
    label = np.concatenate([batch["label"] for batch in batches])
    assert index[mask].tolist() == list(range(12))
    np.testing.assert_array_equal(label[mask], cells.labels["fold0"])
    assert (index[~mask] == -1).all() and mask[:12].all() and not mask[12:].any()
    assert index.dtype == np.int64 and label.dtype == np.int32 and mask.dtype == bool


def test_evaluation_ignores_the_augmentation(cells):
    plain, lively = DataConfig(path="tiny"), DataConfig(path="tiny", **LIVELY)
    assert_same(
        list(evaluation_batches(cells, 1, plain, SIZE, 8)),
        list(evaluation_batches(cells, 1, lively, SIZE, 8)),
    )


@pytest.mark.parametrize("cache_size", [0, SIZE, 40])
def test_evaluation_sees_the_same_pixels_with_and_without_a_cache(cells, tmp_path, cache_size):
    config = DataConfig(path="tiny", centre_crop=0.8, cache_size=cache_size)
    cached = dataclasses.replace(config, cache=str(tmp_path))
    expected = list(evaluation_batches(cells, 2, config, SIZE, 8))
    assert_same(list(evaluation_batches(cells, 2, cached, SIZE, 8)), expected)
    wide = dataclasses.replace(cached, augment=AugmentConfig(zoom=(0.5, 1.0)))
    assert_same(list(evaluation_batches(cells, 2, wide, SIZE, 8)), expected)
    assert len(list(tmp_path.glob("*.npy"))) == 2  # one of them with the surroundings


@pytest.mark.parametrize(
    "way",
    [
        {},
        {"white_background": True},
        {"white_background": True, "normalise_stain": True},
        {"normalise_scale": True},
    ],
)
def test_prediction_sees_what_evaluation_saw(cells, way):
    config = DataConfig(path="tiny", centre_crop=0.8, cache_size=40, **way)
    preprocess = preprocessing_of(config, SIZE)
    for batch in evaluation_batches(cells, 2, config, SIZE, 8):
        for image, index in zip(batch["image"], batch["index"], strict=True):
            if index >= 0:
                np.testing.assert_array_equal(image, preprocess(cells.image("fold2", index)))


def test_a_zoomed_out_training_image_shows_more_of_the_picture(cells, stream):
    train = stream(
        batch_size=24, balance=False, centre_crop=0.4, augment=AugmentConfig(zoom=(0.5, 0.5))
    )
    config = DataConfig(path="tiny", centre_crop=0.8)
    whole = np.concatenate(
        [b["image"] for f in range(1, 5) for b in evaluation_batches(cells, f, config, SIZE, 12)]
    ).astype(int)
    for image in next(train)["image"][:6]:
        assert np.abs(whole - image).mean(axis=(1, 2, 3)).min() < 8  # bilinear against bicubic


# The cache of decoded images


def test_one_cache_file_serves_all_folds_and_another_crop_gets_its_own(cells, tmp_path):
    config = DataConfig(path="tiny", cache=str(tmp_path))
    for fold in (0, 4):
        list(evaluation_batches(cells, fold, config, SIZE, 8))
    (file,) = tmp_path.glob("*.npy")
    assert np.load(file, mmap_mode="r").shape == (60, SIZE, SIZE, 3)
    zoomed = dataclasses.replace(config, centre_crop=0.7)
    list(evaluation_batches(cells, 0, zoomed, SIZE, 8))
    assert len(list(tmp_path.glob("*.npy"))) == 2
    assert not list(tmp_path.glob("*.partial-*"))


# Worker processes


def test_worker_processes_give_the_same_batches(tiny_dataset, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import dataclasses
            from absl import app
            import numpy as np
            from bcvit_jax.data import DataConfig, open_dataset, train_batches

            def main(_):
                cells = open_dataset({str(tiny_dataset)!r})
                config = DataConfig(path="", cache={str(tmp_path)!r}, mixup=0.4, hue=0.1)
                inside = train_batches(cells, (1, 2), config, 16, 4, 0)
                config = dataclasses.replace(config, workers=2)
                outside = train_batches(cells, (1, 2), config, 16, 4, 0)
                for _ in range(7):
                    one, other = next(inside), next(outside)
                    assert all(np.array_equal(one[name], other[name]) for name in one)
                state = inside.get_state()
                outside.set_state(state)  # workers may differ
                one, other = next(inside), next(outside)
                assert all(np.array_equal(one[name], other[name]) for name in one)
                inside.close()
                outside.close()
                print("same")

            if __name__ == "__main__":
                app.run(main)
            """
        )
    )
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": root, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["same"], done.stderr


def test_worker_processes_outside_an_absl_program_are_refused(stream, monkeypatch):
    monkeypatch.setattr("absl.flags.FLAGS", SimpleNamespace(is_parsed=lambda: False))
    with pytest.raises(UserError, match=r"config\.data\.workers is 1"):
        next(stream(workers=1))
