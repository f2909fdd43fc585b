"""t-SNE panels: classes that are apart stay apart, the same every time."""

import builtins

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from bcvit_jax.errors import UserError
from bcvit_jax.figures.embedding import cosines, embed, embedding_plate, require, unit

LABELS = np.arange(40) % 2


def clouds(distance: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(0, 1, (40, 60)) + distance * LABELS[:, None]


def test_classes_that_are_apart_stay_apart_and_points_are_the_same_every_time():
    one, other = (embed("x", "X", clouds(5), LABELS) for _ in range(2))
    np.testing.assert_array_equal(one.points, other.points)
    assert silhouette_score(one.points, LABELS) > 0.5
    mixed = embed("x", "X", clouds(0), LABELS)
    assert one.silhouette is not None and mixed.silhouette is not None
    assert one.silhouette > 0.3 > 0.1 > mixed.silhouette


def test_the_silhouette_of_few_dimensions_is_scikit_learns():
    vectors = clouds(1)[:, :5]
    found = embed("x", "X", vectors, LABELS).silhouette
    assert found == pytest.approx(silhouette_score(vectors, LABELS), abs=1e-5)
    assert embed("x", "X", vectors, np.zeros(40, int)).silhouette is None


def test_cosines_are_the_mean_over_pairs():
    features, labels = np.array([[2.0, 0], [0, 3.0], [1.0, 0], [1.0, 1.0]]), np.array([0, 0, 1, 1])
    half = 0.5**0.5
    assert cosines(features, labels) == pytest.approx(
        {"within": (0 + half) / 2, "between": (1 + half + 0 + half) / 4}
    )
    np.testing.assert_allclose(np.linalg.norm(unit(features), axis=1), 1)


@pytest.mark.parametrize(("panels", "classes"), [(2, 2), (3, 23)])
def test_every_class_is_named_and_looks_its_own(panels, classes):
    labels = np.arange(60) % classes
    panel = embed("x", "X", clouds(1)[np.arange(60) % 40], labels)
    names = [f"class {label}" for label in range(classes)]
    plate = embedding_plate([panel] * panels, labels, names)
    (legend,) = plate.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    looks = {(h.get_marker(), h.get_color()) for h in legend.legend_handles}  # pyright: ignore
    assert len(looks) == classes
    plate.figure.canvas.draw()  # pyright: ignore
    box, page = legend.get_window_extent(), plate.figure.bbox
    assert box.x0 >= 0 and box.x1 <= page.x1 and box.y0 >= 0
    lowest = min(axes.get_window_extent().y0 for axes in plate.figure.axes)
    assert box.y1 <= lowest


def test_without_scikit_learn_the_mend_is_told(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **more):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install -e '\.\[figures\]'"):
        require()
