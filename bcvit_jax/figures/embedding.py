"""The paper's figure 11: images and features of the held-out cells in two dimensions, by t-SNE."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.lines import Line2D

from bcvit_jax.errors import UserError
from bcvit_jax.figures.plates import GREY, LEAST, MARGIN, SIZE, WIDTH, Plate

DIMENSIONS = 50
PERPLEXITY = 30.0
PIXELS = 32
"""Side in pixels to which images are scaled before they are compared."""

# Ten colours that stay apart for colour-blind eyes (Petroff 2021, arXiv 2107.02270), and a marker
# each, as hue alone would not do.
_COLOURS = (
    "#3f90da #ffa90e #bd1f01 #94a4a2 #832db6 #a96b59 #e76300 #b9ac70 #717581 #92dadd"
).split()
_MARKERS = "o s ^ D v P X < > *".split()


class Panel(NamedTuple):
    """Points of one kind."""

    name: str
    title: str
    points: np.ndarray
    """float [n, 2]."""
    silhouette: float | None
    """Of the classes, before t-SNE; None where there are fewer than two."""


def require() -> None:
    """UserError where scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise UserError(
            "t-SNE needs scikit-learn, which is not installed: pip install -e '.[figures]', or "
            "leave it out with --only attention,kept,patches"
        ) from None


def embed(name: str, title: str, vectors: np.ndarray, labels: np.ndarray) -> Panel:
    """vectors float [n, d] in at most DIMENSIONS principal components, then in two by t-SNE.

    The silhouette is that of the components: t-SNE's own distances mean little.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.metrics import silhouette_score

    n, d = vectors.shape
    few = min(DIMENSIONS, d, n - 1)
    components = PCA(few, svd_solver="full", random_state=0).fit_transform(vectors)
    perplexity = min(PERPLEXITY, (n - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(components)
    classes = len(np.unique(labels))
    silhouette = float(silhouette_score(components, labels)) if 2 <= classes < n else None
    return Panel(name, title, points, silhouette)


def unit(features: np.ndarray) -> np.ndarray:
    """Features [n, d] of length 1, as the contrastive loss compares them by their cosine."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def cosines(features: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Mean cosine of equation 14 over pairs of images, of one class and of two."""
    alike = unit(features) @ unit(features).T
    same = labels[:, None] == labels
    other = ~np.eye(len(labels), dtype=bool)
    pairs = {"within": same & other, "between": ~same}
    return {name: float(alike[of].mean()) if of.any() else None for name, of in pairs.items()}


def embedding_plate(panels: Sequence[Panel], labels: np.ndarray, names: Sequence[str]) -> Plate:
    """The panels side by side, a colour and marker a class, named below."""
    gap, top, shown = 0.12, 0.58, np.unique(labels)
    side = (WIDTH - 2 * MARGIN - 2 * gap) / 3
    width = max(MARGIN + len(panels) * (side + gap) - gap, LEAST)
    longest = max(len(str(names[label])) for label in shown)
    abreast = max(1, min(len(shown), int(width / (0.36 + 0.075 * longest))))
    lines = -(-len(shown) // abreast)
    abreast = -(-len(shown) // lines)
    plate = Plate("Held-out cells by t-SNE", width, top + side + 0.1 + 0.17 * lines)
    # Drawn in a mixed order, so that the last class does not cover the others.
    order = np.random.default_rng(0).permutation(len(labels))
    for place, panel in enumerate(panels):
        x = MARGIN + place * (side + gap)
        plate.text(x, top - 0.17, panel.title, va="bottom", weight="bold")
        if panel.silhouette is not None:
            told = f"silhouette of the classes {panel.silhouette:.2f}".replace("-", "−")
            plate.text(x, top - 0.04, told, va="bottom", color=GREY, size=SIZE - 1)
        axes = plate.panel(x, top, side, side)
        for part in np.array_split(order, 20):
            for label in shown:
                own = part[labels[part] == label]
                axes.scatter(*panel.points[own].T, **_style(label, 7))
        axes.margins(0.03)
    handles = [Line2D([], [], ls="", **_line(label)) for label in shown]
    legend = plate.figure.legend(
        handles,
        [str(names[label]) for label in shown],
        loc="lower center",
        ncols=abreast,
        fontsize=SIZE,
        frameon=False,
        borderaxespad=0.1,
        columnspacing=1.2,
        handletextpad=0.1,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return plate


def _look(label: int) -> tuple[str, str]:
    """Colour and marker: after ten classes the colours come again with other markers."""
    colour, turn = label % len(_COLOURS), label // len(_COLOURS)
    return _COLOURS[colour], _MARKERS[(colour + 3 * turn) % len(_MARKERS)]


def _style(label: int, area: float) -> dict[str, Any]:
    colour, marker = _look(label)
    return {"s": area, "marker": marker, "color": colour, "linewidths": 0, "alpha": 0.85}


def _line(label: int) -> dict[str, Any]:
    colour, marker = _look(label)
    return {"marker": marker, "color": colour, "markersize": 4, "markeredgewidth": 0}
