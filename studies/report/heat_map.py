"""Draw a matrix as shades of blue, with numbers while they can be read."""

from __future__ import annotations

import numpy as np

from rankcast.errors import ConfigError
from rankcast.records import FloatArray
from studies.harness.spec import HeatMap
from studies.report.svg import SOFT, document, element, short, text, width_of

_PALE, _MIDDLE, _DEEP = (0xEF, 0xF5, 0xFB), (0x6B, 0xAE, 0xD6), (0x08, 0x30, 0x6B)
_NOTHING = "#dcdedf"
_NUMBERED_CELLS = 260
"""Beyond, the numbers could not be read."""
_ROW = 26.0


def heat_map_svg(chart: HeatMap) -> str:
    """Return a matrix of shades with a scale beside it.

    Raises:
        ConfigError: values that do not fit the labels.
    """
    values = np.asarray(chart.values, dtype=np.float64)
    rows, columns = len(chart.row_labels), len(chart.column_labels)
    if values.shape != (rows, columns) or not values.size:
        raise ConfigError(
            f"{chart.title!r} has {rows} rows and {columns} columns, but values of shape "
            f"{values.shape}."
        )
    left = 14 + max(width_of(label) for label in chart.row_labels)
    cell = min(max(26.0, 430.0 / columns), 62.0)
    right, bottom = left + cell * columns, 12 + _ROW * rows
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    parts = [_cells(values, left, cell, low, high), _labels(chart, left, cell, bottom)]
    parts.append(_scale(right + 24, bottom, low, high, chart.unit))
    return document(right + 40 + max(60.0, width_of(chart.unit)), bottom + 26, parts)


def _cells(values: FloatArray, left: float, cell: float, low: float, high: float) -> str:
    numbered = values.size <= _NUMBERED_CELLS
    whole = bool((values[np.isfinite(values)] % 1 == 0).all())
    boxes, numbers = [], []
    for (row, column), value in np.ndenumerate(values):
        x, y = left + cell * column, 12 + _ROW * row
        share = (value - low) / (high - low) if high > low else 0.5
        fill = shade(share) if np.isfinite(value) else _NOTHING
        d = f"M{short(x)} {short(y)}h{short(cell - 1)}v{short(_ROW - 1)}h-{short(cell - 1)}Z"
        boxes.append(element("path", d=d, fill=fill))
        if numbered and np.isfinite(value):
            words = f"{value:.0f}" if whole or abs(value) >= 100 else f"{value:.1f}"
            ink = "#fff" if share > 0.55 else ""
            numbers.append(text(x + cell / 2, y + 17, words, fill=ink))
    return "".join(boxes) + element("g", "".join(numbers), text_anchor="middle", font_size=10.0)


def _labels(chart: HeatMap, left: float, cell: float, bottom: float) -> str:
    step = max(1, -(-len(chart.column_labels) // 32))
    below = "".join(
        text(left + cell * (i + 0.5), bottom + 15, label)
        for i, label in enumerate(chart.column_labels)
        if i % step == 0
    )
    beside = "".join(
        text(left - 6, 12 + _ROW * i + 17, label) for i, label in enumerate(chart.row_labels)
    )
    return element("g", below, text_anchor="middle", fill=SOFT) + element(
        "g", beside, text_anchor="end", fill=SOFT
    )


def _scale(x: float, bottom: float, low: float, high: float, unit: str) -> str:
    """Draw the shades from low to high with both ends written."""
    top, n = 30.0, 12
    each = (bottom - top - 4) / n
    boxes = "".join(
        element("path", d=f"M{short(x)} {short(top + i * each)}h14v{short(each + 0.3)}h-14Z",
                fill=shade(1 - i / (n - 1)))
        for i in range(n)
    )  # fmt: skip
    ends = text(x + 20, top + 9, f"{high:.3g}") + text(x + 20, bottom - 5, f"{low:.3g}")
    return boxes + element("g", ends, fill=SOFT) + text(x, 20, unit, fill=SOFT)


def shade(share: float) -> str:
    """Return a colour from pale (0) to deep (1)."""
    ends, part = ((_PALE, _MIDDLE), 2 * share) if share < 0.5 else ((_MIDDLE, _DEEP), 2 * share - 1)
    mixed = (round(a + (b - a) * min(max(part, 0.0), 1.0)) for a, b in zip(*ends, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
