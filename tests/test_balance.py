"""The paper's order, balancing before the split: what leaks, and that nothing else changes."""

from types import SimpleNamespace

import numpy as np
import pytest

from bcvit_jax.balance import Copies, deal, under_protocol
from bcvit_jax.data import DataConfig, balance_plan, evaluation_batches, train_batches
from bcvit_jax.errors import UserError
from bcvit_jax.fold_run import balanced_counts
from bcvit_jax.report.page import donor_statement

SIZE = 24


@pytest.fixture(scope="module")
def copies(cells) -> Copies:
    """30, 20 and 10 cells as 20 a class."""
    return Copies(cells, 0)


def cells_of(dataset, folds) -> set[str]:
    """The cells behind the images of some folds."""
    return {source.partition("#")[0] for fold in folds for source in dataset.sources[fold]}


def test_the_papers_order_shares_cells_between_training_and_held_out_images(cells, copies):
    for held_out in cells.folds:
        others = [fold for fold in cells.folds if fold != held_out]
        assert not cells_of(cells, [held_out]) & cells_of(cells, others)
        assert cells_of(copies, [held_out]) & cells_of(copies, others)


def test_the_folds_are_the_balanced_images_each_once_and_stratified(cells, copies):
    assert copies.folds == cells.folds
    for fold in copies.folds:
        assert np.bincount(copies.labels[fold]).tolist() == [4, 4, 4]
    sources = [str(source) for fold in copies.folds for source in copies.sources[fold]]
    assert len(set(sources)) == 60
    labels = np.concatenate([cells.labels[fold] for fold in cells.folds])
    names = np.concatenate([cells.sources[fold] for fold in cells.folds])
    index, transform = balance_plan(labels, 0, 0)
    assert set(sources) == {f"{n}#{t}" for n, t in zip(names[index], transform, strict=True)}


def test_a_copy_is_its_cell_turned_and_keeps_its_group(cells, copies):
    places = {str(s): (f, i) for f in cells.folds for i, s in enumerate(cells.sources[f])}
    turned = 0
    for fold in copies.folds:
        for i, source in enumerate(copies.sources[fold]):
            name, _, transform = str(source).partition("#")
            origin, place = places[name]
            image, k = cells.image(origin, place), int(transform)
            expected = np.rot90(image[:, ::-1] if k >= 4 else image, k % 4)
            np.testing.assert_array_equal(copies.image(fold, i), expected)
            assert copies.png(fold, i) == cells.png(origin, place)
            assert copies.groups[fold][i] == cells.groups[origin][place]
            turned += k > 0
    assert turned == 10


def test_a_copys_digest_is_its_cells(cells):
    """By which an encoder that has seen a cell is told, however the copies were dealt."""
    copies = Copies(cells, 0)  # nothing read yet
    of_cell = {
        str(source): digest
        for fold in cells.folds
        for source, digest in zip(cells.sources[fold], cells.digests(fold), strict=True)
    }
    for fold in copies.folds:
        sources = [str(source).partition("#")[0] for source in copies.sources[fold]]
        assert copies.digests(fold) == [of_cell[source] for source in sources]


def test_training_sees_the_copies_of_the_other_folds_and_balances_no_more(cells, copies):
    config = DataConfig(path="tiny", protocol="paper", threads=1)
    stream = train_batches(copies, (1, 2, 3, 4), config, SIZE, 12, seed=0)
    try:
        assert stream.balanced_counts.tolist() == stream.counts.tolist() == [16, 16, 16]
        seen = {image.tobytes() for _ in range(4) for image in next(stream)["image"]}
    finally:
        stream.close()
    expected = {
        batch["image"][i].tobytes()
        for fold in (1, 2, 3, 4)
        for batch in evaluation_batches(copies, fold, config, SIZE, 12)
        for i in range(12)
        if batch["mask"][i]
    }
    assert seen == expected
    run = SimpleNamespace(data=config, train_folds=())
    assert balanced_counts(run, copies, 0).tolist() == [16, 16, 16]  # pyright: ignore


def test_runs_of_any_seed_hold_out_the_same_copies_of_a_data_set_of_its_own(cells, copies):
    again = under_protocol(cells, "paper", 0)
    for fold in copies.folds:
        np.testing.assert_array_equal(again.sources[fold], copies.sources[fold])
    assert again.fingerprint == copies.fingerprint != cells.fingerprint
    assert again.file_key == copies.file_key != cells.file_key
    assert under_protocol(cells, "paper", 12).fingerprint != copies.fingerprint
    assert under_protocol(cells, "leak_free", 12) is cells


def test_classes_that_no_fold_divides_fill_the_folds_evenly():
    labels = np.repeat([0, 1, 2], [7, 8, 4])
    fold = deal(labels, 5, seed=0)
    assert sorted(np.bincount(fold)) == [3, 4, 4, 4, 4]
    for label in range(3):
        counts = np.bincount(fold[labels == label], minlength=5)
        assert np.ptp(counts) <= 1
    np.testing.assert_array_equal(fold, deal(labels, 5, seed=0))


def test_the_report_says_that_the_figures_are_too_high():
    described = {"protocol": "paper", "donor_separated": True}
    assert "stand in training and among the held-out images" in donor_statement(described)
    assert "too high" not in donor_statement({"protocol": "leak_free"})


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"protocol": "leaky"}, "config.data.protocol is leaky; it must be leak_free or paper"),
        ({"protocol": "paper", "balance": False}, "config.data.balance is False; it must be True"),
    ],
)
def test_protocols_that_make_no_sense_are_refused(settings, rule):
    with pytest.raises(UserError, match=rule):
        DataConfig(path="x", **settings)
