"""A page of predicted cells to look through, the least certain first."""

import base64
import heapq
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from bcvit_jax.report.page import NOTICE, STYLE

SIDE = 96
"""Pixels of a thumbnail."""

_STYLE = """
.cells { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: .6rem; }
figure { margin: 0; font-size: .8rem; line-height: 1.3; overflow-wrap: anywhere; }
figure img { width: 100%; margin: 0 0 .2rem; border-radius: .3rem; }
figure b { font-weight: 600; }
figure.doubtful img { outline: 3px solid #c8501e; }
figure span { display: block; color: #4d5966; }
"""


class Gallery:
    """Keeps thumbnails of the `most` least certain cells a predicted class, whatever comes."""

    def __init__(self, class_names: Sequence[str], threshold: float, most: int = 48):
        self.class_names, self.threshold, self.most = class_names, threshold, most
        self._kept: list[list[tuple[float, int, bytes, str, str]]] = [[] for _ in class_names]
        self._seen = [0] * len(class_names)

    def add(self, path: str, image: np.ndarray, probabilities: np.ndarray) -> None:
        """A cell: its name, pixels uint8 [s, s, 3] and probabilities [c]."""
        order = (-probabilities).argsort(kind="stable")[:2]
        chosen, best = int(order[0]), float(probabilities[order[0]])
        self._seen[chosen] += 1
        kept = self._kept[chosen]
        if len(kept) == self.most and -best <= kept[0][0]:
            return
        second = ""
        if len(order) > 1:
            share = 100 * float(probabilities[order[1]])
            second = f"{self.class_names[order[1]]} {share:.0f} %"
        item = (-best, -self._seen[chosen], _jpeg(image), path, second)
        (heapq.heappushpop if len(kept) == self.most else heapq.heappush)(kept, item)

    def page(self, summary: Mapping[str, Any], file: str) -> str:
        """The whole page; `summary` as results.json holds it."""
        parts = [
            "<h1>Predicted cells</h1>",
            f'<p class="notice">{NOTICE}</p>',
            f'<p class="result">{summary["images"]:,} cells; in {summary["unidentified"]} no class '
            f"reaches {summary['threshold']:g} (framed). All of them are in {_text(file)}.</p>",
            '<p class="small">A picture shows what the network saw. The least certain come first; '
            "below stand the probability, the second class and the file.</p>",
        ]
        if summary["bad"]:
            parts.append(f"<p>{summary['bad']} images could not be read.</p>")
        for name, kept, seen in zip(self.class_names, self._kept, self._seen, strict=True):
            if seen:
                shown = f", the {len(kept)} least certain" if len(kept) < seen else ""
                parts.append(f"<h2>{_text(name)}: {seen}{shown}</h2>")
                cells = sorted(kept, key=lambda item: (-item[0], -item[1]))
                parts.append(f'<div class="cells">{"".join(map(self._figure, cells))}</div>')
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>Predicted cells</title>\n<style>{STYLE}{_STYLE}</style>\n</head>\n<body>\n"
            + "\n".join(parts)
            + "\n</body>\n</html>\n"
        )

    def _figure(self, item: tuple[float, int, bytes, str, str]) -> str:
        certainty, _, jpeg, path, second = item
        data = base64.b64encode(jpeg).decode()
        doubtful = ' class="doubtful"' if -certainty < self.threshold else ""
        name = path.replace("\\", "/").rsplit("/", 1)[-1]
        return (
            f'<figure{doubtful} title="{_text(path)}"><img src="data:image/jpeg;base64,{data}" '
            f'alt="{_text(name)}"><b>{-100 * certainty:.0f} %</b> {_text(second)}'
            f"<span>{_text(name)}</span></figure>"
        )


def _jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).resize((SIDE, SIDE)).save(file, "JPEG", quality=85)
    return file.getvalue()


def _text(value: Any) -> str:
    """For a page; bytes of a file name that are no UTF-8 are escaped."""
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode())
