"""SVG as text: short numbers, escaped words, paths without points that nobody can see."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from rankcast.records import FloatArray, IntArray

INK, SOFT, LINE, CARD = "#1c1e21", "#555", "#ddd", "#fcfcfb"
FONT = 'font-family="DejaVu Sans,Verdana,Arial,sans-serif"'
WIDTH_OF_A_LETTER = 0.58
"""Of the size of the font, on average, on the safe side."""


def short(value: float) -> str:
    """Return a coordinate with a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def points(x: FloatArray, y: FloatArray, *, parts: int = 10) -> str:
    """Return places as the data of a path: the first, then the step to each next.

    Args:
        x: from left to right [px].
        y: from top to bottom [px].
        parts: of a pixel, to which places are rounded.
    """
    places = np.rint(parts * np.stack([x, y], axis=1)).astype(int)
    data = f"{short(places[0, 0] / parts)} {short(places[0, 1] / parts)}"
    steps = [short(step / parts) for step in np.diff(places, axis=0).ravel()]
    if not steps:
        return data
    return f"{data}l" + re.sub(r" -", "-", " ".join(steps))


def element(name: str, content: str | None = None, **attributes: str | float) -> str:
    """Return an element; underscores in attributes stand for dashes."""
    words = "".join(
        f" {key.rstrip('_').replace('_', '-')}={quoteattr(_plain(value))}"
        for key, value in attributes.items()
        if value != ""
    )
    return f"<{name}{words}/>" if content is None else f"<{name}{words}>{content}</{name}>"


def text(x: float, y: float, words: str, **attributes: str | float) -> str:
    """Return words at a place."""
    return element("text", escape(words), x=x, y=y, **attributes)


def lines_of_text(x: float, y: float, lines: Sequence[str], **attributes: str | float) -> str:
    """Return several lines of 12 px, of which the first stands at a place."""
    if len(lines) == 1:
        return text(x, y, lines[0], **attributes)
    spans = (element("tspan", escape(line), x=x, y=y + 12 * i) for i, line in enumerate(lines))
    return element("text", " ".join(spans), **attributes)


def wrapped(words: str, width: float, size: float = 11.0) -> list[str]:
    """Return words in lines that are no wider than a width [px]."""
    letters = max(8, int(width / (WIDTH_OF_A_LETTER * size)))
    return textwrap.wrap(words, letters, break_long_words=True) or [""]


def width_of(words: str, size: float = 11.0) -> float:
    """Return about how wide words are [px]."""
    return WIDTH_OF_A_LETTER * size * len(words)


def thinned(x: FloatArray, y: FloatArray, tolerance: float = 0.7) -> IntArray:
    """Return the indices of the points that a line needs to be no further off [px].

    The method of Ramer, Douglas and Peucker.
    """
    keep = np.zeros(len(x), dtype=bool)
    keep[[0, -1]] = True
    waiting = [(0, len(x) - 1)]
    while waiting:
        first, last = waiting.pop()
        if last - first < 2:
            continue
        dx, dy = x[last] - x[first], y[last] - y[first]
        inner = slice(first + 1, last)
        off = np.abs(dx * (y[inner] - y[first]) - dy * (x[inner] - x[first]))
        off = off / max(float(np.hypot(dx, dy)), 1e-9)
        if off.max() > tolerance:
            middle = first + 1 + int(off.argmax())
            keep[middle] = True
            waiting += [(first, middle), (middle, last)]
    return np.flatnonzero(keep).astype(np.int64)


def document(width: float, height: float, parts: Sequence[str]) -> str:
    """Return a drawing on a light card."""
    body = "\n".join(part for part in parts if part)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {short(width)} {short(height)}" '
        f'width="{short(width)}" height="{short(height)}" {FONT} font-size="11" fill="{INK}">\n'
        f'<path fill="{CARD}" d="M0 0H{short(width)}V{short(height)}H0Z"/>\n'
        f'<g stroke-linejoin="round">{body}</g>\n</svg>\n'
    )


def _plain(value: str | float) -> str:
    return value if isinstance(value, str) else short(value)
