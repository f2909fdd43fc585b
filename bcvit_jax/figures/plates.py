"""A printed figure: its size and its panels in inches, and its files as PNG and SVG."""

import io
import textwrap

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bcvit_jax import __version__

DPI = 300
WIDTH = 7.0
"""Inches of a page's two columns."""
HEIGHT = 8.8
INK, GREY, RED = "#1b2733", "#4d5966", "#d11f1f"
SIZE = 7.5
"""Points of text."""
MARGIN = 0.04
LEAST = 3.5
"""Inches of a page's one column."""

_LETTERS, _LINE = 23, 0.105  # of a note: letters an inch, inches a line


class Plate:
    """An empty figure of width × height inches, on which panels and text are put by hand."""

    def __init__(self, title: str, width: float, height: float, note: str = "", left: float = 0):
        """`note` stands below the `height` inches, from `left` on, as many lines as it needs."""
        self.width = max(width + MARGIN, LEAST)
        lines = textwrap.wrap(note, int((self.width - left) * _LETTERS))
        self.height = height + _LINE * len(lines) + 2 * MARGIN
        self.figure = Figure(figsize=(self.width, self.height))
        FigureCanvasAgg(self.figure)
        self.text(MARGIN, 0.03, title, size=SIZE + 1.5, weight="bold")
        self.text(left, height + MARGIN, "\n".join(lines), size=SIZE - 1.5, color=GREY)

    def panel(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes without ticks, their place in inches from the upper left corner."""
        w, h = self.width, self.height
        axes = self.figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_linewidth(0.5)
            spine.set_color(GREY)
        return axes

    def text(self, left: float, top: float, words: str, **style) -> None:
        """Words at a place in inches from the upper left corner; no formulas, ink of SIZE."""
        style = {"size": SIZE, "color": INK, "va": "top", "parse_math": False} | style
        self.figure.text(left / self.width, 1 - top / self.height, words, **style)

    def files(self, name: str) -> dict[str, bytes]:
        """`name`.png and `name`.svg, the same bytes every time."""
        files = {}
        facts = {"png": {"Software": f"bcvit {__version__}"}, "svg": {"Date": None}}
        with rc_context({"svg.hashsalt": name}):
            for kind, metadata in facts.items():
                written = io.BytesIO()
                self.figure.savefig(written, format=kind, dpi=DPI, metadata=metadata)
                files[f"{name}.{kind}"] = written.getvalue()
        return files


def show(axes: Axes, picture: np.ndarray, size: int, **style) -> None:
    """A picture of any resolution in the coordinates of a network's size × size pixels."""
    extent = (-0.5, size - 0.5, size - 0.5, -0.5)
    smooth = "nearest" if style else "bicubic"
    axes.imshow(picture, extent=extent, interpolation=smooth, **style)
