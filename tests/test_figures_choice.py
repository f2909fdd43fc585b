"""Which cells a figure shows."""

from types import SimpleNamespace

import numpy as np
import pytest

from bcvit_jax.errors import UserError
from bcvit_jax.figures.choice import chosen, typical

LABELS = np.repeat([0, 1, 2], [6, 5, 4])
PREDICTED = LABELS.copy()
PREDICTED[[1, 3, 5]] = 1
PREDICTED[14] = 0
CONFIDENCE = np.array([9, 5, 8, 4, 7, 6, 9, 8, 7, 6, 5, 9, 7, 8, 6]) / 10


def test_of_each_class_with_mistakes_one_recognised_and_one_mistaken_of_median_confidence():
    rows = typical(LABELS, PREDICTED, CONFIDENCE, 4)
    assert rows == [2, 1, 13, 14]
    assert typical(LABELS, PREDICTED, CONFIDENCE, 2) == [2, 1]


def test_too_few_mistakes_leave_room_for_other_classes_and_then_the_rest():
    assert typical(LABELS, PREDICTED, CONFIDENCE, 5) == [2, 1, 13, 14, 8]
    everything = typical(LABELS, PREDICTED, CONFIDENCE, 40)
    assert sorted(everything) == list(range(15))
    assert typical(LABELS, LABELS, CONFIDENCE, 3) == [4, 8, 13]


def dataset():
    sources = {"fold0": np.array([f"a/{i:02}.png" for i in range(15)]), "fold1": np.array(["b/1"])}
    return SimpleNamespace(folds=("fold0", "fold1"), sources=sources, labels={"fold0": LABELS})


def test_cells_are_found_by_their_sources_in_the_order_asked():
    asked = ["a/11.png", "a/02.png"]
    assert chosen(asked, dataset(), "fold0", PREDICTED, CONFIDENCE) == [11, 2]  # pyright: ignore


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["0"], "--images is 0; it must be 1 to 24"),
        (["-3"], "--images is -3"),
        (["25"], "--images is 25"),
        (["a/02.pn"], "a/02.pn is no image of fold0; did you mean a/02.png"),
        (["b/1"], "it is in fold1: name one of fold0, or --fold fold1"),
        (["zzz"], "see the fold's predictions.csv"),
        (["a/02.png"] * 25, "--images names 25 cells; a page holds 24"),
    ],
)
def test_what_is_not_there_is_one_sentence(asked, words):
    with pytest.raises(UserError) as error:
        chosen(asked, dataset(), "fold0", PREDICTED, CONFIDENCE)  # pyright: ignore
    assert words in str(error.value)
