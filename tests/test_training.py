"""Training: boxes move with their pixels, a run goes on exactly where it was killed."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.detector import create_detector
from data_prep.errors import BuildError
from data_prep.fields import Box, Field, FieldSet
from data_prep.training import (
    Recipe,
    augmented_example,
    chunks,
    jittered,
    train_detector,
    turned_boxes,
    turned_pixels,
)
from tests.smears import TINY, equal_weights, tiny_torch, write_smears

QUICK = Recipe(epochs=3, batch_size=4, warm_up=2)


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    with tiny_torch(monkeypatch):
        yield


@pytest.fixture(scope="module")
def smears(tmp_path_factory) -> tuple[FieldSet, Path]:
    """Six fields and their folder."""
    folder = tmp_path_factory.mktemp("smears") / "images"
    return write_smears(folder, 6), folder


def fresh(seed: int = 0, size: int | None = None):
    return create_detector(TINY, ("WBC",), "none", size, seed)


def bounds(mask: np.ndarray) -> list[int]:
    """Half-open box of the pixels that are set in a mask [h, w]."""
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirror", [False, True])
def test_boxes_are_turned_as_their_pixels_are(mirror, turns):
    rng = np.random.default_rng(turns)
    boxes = []
    views = []
    for _ in range(20):
        rgb = np.zeros((30, 47, 3), np.uint8)
        (x0, x1), (y0, y1) = (np.sort(rng.choice(n + 1, 2, replace=False)) for n in (47, 30))
        rgb[y0:y1, x0:x1] = 255
        boxes.append((x0, y0, x1, y1))
        views.append(bounds(turned_pixels(rgb, mirror, turns)[..., 0]))
    moved = turned_boxes(np.array(boxes), 47, 30, mirror, turns)
    np.testing.assert_array_equal(moved, views)
    assert turned_boxes(np.zeros((0, 4)), 47, 30, mirror, turns).shape == (0, 4)


def test_the_eight_views_are_all_drawn_and_the_target_goes_along(tmp_path):
    rgb = np.zeros((40, 60, 3), np.uint8)
    rgb[5:15, 8:30] = 255
    Image.fromarray(rgb).save(tmp_path / "a.png")
    boxes = (Box("B", 8, 5, 30, 15), Box("A", 1, 1, 1.5, 9), Box("A", 8, 5, 30, 15))
    item, seen = Field("a.png", 60, 40, boxes), set()
    for seed in range(60):
        picture, target = augmented_example(item, tmp_path, ("A", "B"), 0.0, str(seed))
        # The second, half a pixel wide, is not learnt.
        assert target["labels"].tolist() == [2, 1]
        assert target["boxes"].tolist() == [bounds(picture[0].numpy() > 0.5)] * 2
        assert picture.dtype == target["boxes"].dtype == torch.float32
        seen.add((tuple(picture.shape), *target["boxes"][0].tolist()))
        again, _ = augmented_example(item, tmp_path, ("A", "B"), 0.0, str(seed))
        assert torch.equal(picture, again)
    assert len(seen) == 8


def test_colours_change_by_no_more_than_asked():
    picture = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    assert jittered(picture, 0.0, random.Random(0)) is picture
    drawn = [jittered(picture, 0.2, random.Random(seed)) for seed in range(50)]
    assert all(view.min() >= 0 and view.max() <= 1 for view in drawn)
    means = torch.stack([view.mean((1, 2)) for view in drawn])
    assert means.std(0).min() > 0.02 and (means - picture.mean((1, 2))).abs().max() < 0.25
    assert torch.equal(drawn[3], jittered(picture, 0.2, random.Random(3)))


@pytest.mark.parametrize(
    ("count", "size", "lengths"),
    [(8, 4, [4, 4]), (9, 4, [4, 5]), (5, 4, [5]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 8, [3])],
)
def test_an_epoch_holds_every_image_once_and_no_batch_of_one(count, size, lengths):
    recipe = Recipe(batch_size=size)
    epochs = [chunks(count, recipe, epoch) for epoch in range(2)]
    for epoch in epochs:
        assert [len(chunk) for chunk in epoch] == lengths
        assert sorted(at for chunk in epoch for at in chunk) == list(range(count))
    assert count < 3 or epochs[0] != epochs[1]


def test_the_loss_falls(smears):
    fields, images = smears
    made, losses, steps = fresh(), [], []
    recipe = Recipe(epochs=14, batch_size=3, learning_rate=3e-3, warm_up=5, jitter=0.1)
    train_detector(
        made, fields, images, recipe, None, lambda epoch, loss: losses.append(loss), steps.append
    )
    assert len(losses) == 14 and len(steps) == 28
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert made.model.transform.min_size == (96,) and not made.model.training


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("after", [1, 2])
def test_a_run_taken_up_again_gives_what_an_undisturbed_one_gives(smears, tmp_path, after):
    fields, images = smears
    state, whole, losses = tmp_path / "training.pt", fresh(), []
    train_detector(whole, fields, images, QUICK, None, lambda epoch, loss: losses.append(loss))

    def stop(epoch, loss):
        if epoch == after:
            raise Killed

    with pytest.raises(Killed):
        train_detector(fresh(), fields, images, QUICK, state, stop)
    torch.rand(17)  # numbers drawn elsewhere do not matter
    resumed, rest = fresh(), []
    train_detector(resumed, fields, images, QUICK, state, lambda epoch, loss: rest.append(loss))
    assert rest == losses[after:]
    assert equal_weights(whole.model, resumed.model)
    finished, nothing = fresh(), []
    train_detector(finished, fields, images, QUICK, state, lambda *row: nothing.append(row))
    assert nothing == [] and equal_weights(whole.model, finished.model)


def test_a_state_of_another_run_or_none_is_refused(smears, tmp_path):
    fields, images = smears
    state = tmp_path / "training.pt"
    recipe = Recipe(epochs=1, batch_size=6, warm_up=1)
    train_detector(fresh(), fields, images, recipe, state)
    others = {
        "boxes": (fresh(), fields.of_images(["00.png", "01.png"]), recipe),
        "rate": (fresh(), fields, Recipe(epochs=1, batch_size=6, warm_up=1, learning_rate=1e-4)),
        "weights": (fresh(seed=1), fields, recipe),
        "size": (fresh(size=64), fields, recipe),
    }
    for made, boxes, another in others.values():
        with pytest.raises(BuildError, match="with other boxes, weights or settings"):
            train_detector(made, boxes, images, another, state)
    content = state.read_bytes()
    state.write_bytes(content[: len(content) // 2])
    with pytest.raises(BuildError, match="is damaged: remove it to train anew"):
        train_detector(fresh(), fields, images, recipe, state)
    torch.save([1, 2], state)
    with pytest.raises(BuildError, match="is damaged"):
        train_detector(fresh(), fields, images, recipe, state)

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"fingerprint": Code()}, state)
    with pytest.raises(BuildError, match="nothing in it was executed"):
        train_detector(fresh(), fields, images, recipe, state)
    assert not (tmp_path / "executed").exists()


def test_fields_without_boxes_and_slivers_are_trained_on(smears, tmp_path):
    fields, images = smears
    first, second, third = fields.fields[:3]
    sliver = Box("WBC", 100.0, 5.0, 100.0001, 9.0)
    items = (
        Field(first.image, first.width, first.height),
        Field(second.image, second.width, second.height, (sliver,)),
        third,
    )
    made, losses = fresh(), []
    recipe = Recipe(epochs=1, batch_size=3, warm_up=1)
    train_detector(
        made, FieldSet(items, ("WBC",)), images, recipe, None, lambda e, loss: losses.append(loss)
    )
    assert np.isfinite(losses).all()


def test_what_stops_a_training_is_a_sentence(smears, tmp_path, monkeypatch):
    fields, images = smears
    made = fresh()
    with pytest.raises(BuildError, match=r"The loss became (inf|nan): try a smaller"):
        train_detector(made, fields, images, Recipe(epochs=9, learning_rate=1e12, warm_up=1))
    assert made.model.transform.min_size == (96,) and not made.model.training
    folder = tmp_path / "images"
    folder.mkdir()
    for item in fields.fields:
        (folder / item.image).write_bytes((images / item.image).read_bytes()[:3000])
    with pytest.raises(BuildError, match="cannot be decoded"):
        train_detector(fresh(), fields, folder, QUICK)
