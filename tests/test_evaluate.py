"""Every image once, in the order of the fold, and nothing that does not belong there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bcvit_jax import evaluate
from bcvit_jax.evaluate import evaluate_fold
from tests.evaluation import C, N, make_batches, make_cells, make_logits, network


@pytest.mark.parametrize("order", [range(N), range(N - 1, -1, -1)])
@pytest.mark.parametrize("size", [1, 8, 32])
def test_every_image_has_its_own_prediction_in_the_order_of_the_fold(order, size):
    cells = make_cells()
    logits = make_logits(cells)
    batches = make_batches(cells, list(order), size)
    found, counts = evaluate_fold(jax.jit(network), jnp.asarray(logits), cells, "fold0", batches)
    expected = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-5)
    assert found.probabilities.dtype == np.float32
    np.testing.assert_array_equal(found.predicted, logits.argmax(axis=-1))
    np.testing.assert_array_equal(found.label, cells.labels["fold0"])
    np.testing.assert_array_equal(found.source, cells.sources["fold0"])
    np.testing.assert_array_equal(found.group, cells.groups["fold0"])
    np.testing.assert_array_equal(found.kept, np.arange(N)[:, None] + np.arange(2))
    np.testing.assert_array_equal(counts.confusion, found.count().confusion)
    assert counts.confusion.sum() == N and counts.top5 == found.count().top5


def test_bfloat16_logits_become_float32_probabilities():
    cells = make_cells()
    logits = jnp.asarray(make_logits(cells), jnp.bfloat16)
    found, _ = evaluate_fold(network, logits, cells, "fold0", make_batches(cells, range(N)))
    np.testing.assert_allclose(found.probabilities.sum(axis=-1), 1, rtol=1e-6)


def test_a_network_that_keeps_nothing():
    cells = make_cells()

    def plain(params, images):
        logits, kept = network(params, images)
        return logits, kept[:, :0]

    batches = make_batches(cells, range(N))
    found, _ = evaluate_fold(plain, jnp.asarray(make_logits(cells)), cells, "fold0", batches)
    assert found.kept.shape == (N, 0)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (range(N - 1), "left out 1 and repeated 0 of 21"),
        ([*range(N), 4], "left out 0 and repeated 1 of 21"),
        ([], "left out 21"),
        ([*range(N), N], "which holds 21"),
    ],
)
def test_a_missing_or_doubled_image_is_an_error(order, message):
    cells = make_cells()
    params = jnp.asarray(make_logits(cells))
    with pytest.raises(RuntimeError, match=message):
        evaluate_fold(network, params, cells, "fold0", make_batches(cells, list(order)))


def test_a_label_of_another_data_set_is_an_error():
    cells = make_cells()
    other = dataclasses.replace(cells, labels={"fold0": (cells.labels["fold0"] + 1) % C})
    with pytest.raises(RuntimeError, match="label that differs"):
        evaluate_fold(
            network, jnp.zeros((N, C)), cells, "fold0", make_batches(other, list(range(N)))
        )


def test_broken_weights_name_an_image():
    cells = make_cells()
    logits = make_logits(cells)
    logits[[5, 9], 2] = np.nan
    with pytest.raises(FloatingPointError, match=r"2 of 21 images \(first: ./cell_005.png"):
        evaluate_fold(
            network, jnp.asarray(logits), cells, "fold0", make_batches(cells, list(range(N)))
        )


def test_the_next_batch_is_under_way_before_the_last_is_fetched(monkeypatch):
    events = []
    fetch = evaluate.fetch

    def step(params, images):
        events.append("step")
        return network(params, images)

    def watched(array):
        events.append("fetch")
        return fetch(array)

    monkeypatch.setattr(evaluate, "fetch", watched)
    cells = make_cells()
    params = jnp.asarray(make_logits(cells))
    evaluate_fold(step, params, cells, "fold0", make_batches(cells, range(N)))
    both = ["fetch", "fetch"]
    assert events == ["step", "step", *both, "step", *both, *both, *both]  # the last: the counts
