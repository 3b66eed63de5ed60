"""Draw lines: together while eight styles tell them apart, else a panel for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from rankcast.errors import ConfigError
from rankcast.records import FloatArray
from studies.harness.spec import LineChart, Series
from studies.report.axes import Scale
from studies.report.styles import OURS, STYLES, Style, styles_of
from studies.report.svg import (
    LINE,
    SOFT,
    document,
    element,
    lines_of_text,
    points,
    short,
    text,
    thinned,
    width_of,
    wrapped,
)

WIDTH, HEIGHT = 680.0, 330.0
PANEL_HEIGHT = 118.0
COLUMNS = 3
GHOST = "#ccc"
LEFT = 62.0
LABEL_WIDTH = 186.0
"""What labels at the ends of lines may take [px]."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The rectangle of the axes [px] with its scales."""

    left: float
    top: float
    right: float
    bottom: float
    x: Scale
    y: Scale

    def xs(self, values: Sequence[float] | FloatArray) -> FloatArray:
        """Return where values lie from left to right [px]."""
        return self.left + self.x.place(values) * (self.right - self.left)

    def ys(self, values: Sequence[float] | FloatArray) -> FloatArray:
        """Return where values lie from top to bottom [px]."""
        return self.bottom - self.y.place(values) * (self.bottom - self.top)


def line_chart_svg(chart: LineChart, name: str) -> str:
    """Return a chart of lines.

    Raises:
        ConfigError: no series, or parts of one that differ in length.
    """
    _check(chart)
    styles = styles_of([series.label for series in chart.series])
    if not set(styles.values()) <= set(STYLES):
        return _panels(chart, name, styles)
    return _together(chart, name, styles)


def _check(chart: LineChart) -> None:
    if not chart.series:
        raise ConfigError(f"The chart {chart.title!r} has no series.")
    for series in chart.series:
        lengths = {len(x) for x in (series.x, series.y, series.low, series.high) if x is not None}
        if len(lengths) != 1:
            raise ConfigError(f"{chart.title!r}: the parts of {series.label!r} differ in length.")


def _scales(chart: LineChart) -> tuple[Scale, Scale]:
    parts = [v for s in chart.series for v in (s.y, s.low, s.high) if v is not None]
    x = Scale.of(
        chain.from_iterable(s.x for s in chart.series), log=chart.log_x, room=0.02 * chart.markers
    )
    return x, Scale.of(chain.from_iterable(parts), log=chart.log_y, room=0.04)


def _together(chart: LineChart, name: str, styles: dict[str, Style]) -> str:
    """Draw all lines into one frame, with their names at their ends or below."""
    x, y = _scales(chart)
    at_ends = _fit_at_ends(chart, x)
    right = WIDTH - (LABEL_WIDTH + 14 if at_ends else 16.0)
    frame = Frame(LEFT, 26.0, right, HEIGHT - 44.0, x, y)
    parts = [_axes(frame, chart.x_label, chart.y_label)]
    order = sorted(chart.series, key=lambda s: styles[s.label] is OURS)  # ours on top
    parts += [_line(frame, s, styles[s.label], chart.markers, f"{name}-{i}")
              for i, s in enumerate(order)]  # fmt: skip
    if at_ends:
        return document(WIDTH, HEIGHT, [*parts, _end_labels(frame, chart.series, styles)])
    legend, height = _legend(chart.series, styles, HEIGHT + 4.0)
    return document(WIDTH, height, [*parts, legend])


def _fit_at_ends(chart: LineChart, x: Scale) -> bool:
    """Return whether names can stand at the ends: all at the right edge, and room for each."""
    if len(chart.series) == 1:
        return False
    ends = x.place([series.x[-1] for series in chart.series])
    lines = sum(len(wrapped(series.label, LABEL_WIDTH - 18)) for series in chart.series)
    return bool(ends.min() > 0.93) and 14 * lines < HEIGHT - 80


def _axes(
    frame: Frame, x_label: str, y_label: str, *, wide: bool = True, words: bool = True
) -> str:
    """Draw the grid and the numbers beside it; a narrow panel gets fewer of them."""
    xs = frame.x.ticks(8 if wide else 4)
    ys = frame.y.ticks(7 if wide else 4)
    grid = "".join(
        f"M{short(a)} {short(frame.top)}V{short(frame.bottom)}"
        for a in frame.xs([v for v, _ in xs])
    ) + "".join(
        f"M{short(frame.left)} {short(b)}H{short(frame.right)}"
        for b in frame.ys([v for v, _ in ys])
    )
    parts = [element("path", d=grid, stroke=LINE, fill="none")]
    edge = f"M{short(frame.left)} {short(frame.top)}V{short(frame.bottom)}H{short(frame.right)}"
    parts.append(element("path", d=edge, stroke="#777", fill="none"))
    if words:
        parts += [_numbers(frame, xs, ys), text(frame.left, frame.top - 10, y_label, fill=SOFT)]
        middle = (frame.left + frame.right) / 2
        parts.append(text(middle, frame.bottom + 34, x_label, text_anchor="middle", fill=SOFT))
    return "".join(parts)


def _numbers(frame: Frame, xs: Sequence[tuple[float, str]], ys: Sequence[tuple[float, str]]) -> str:
    below = "".join(
        text(float(frame.xs([v])[0]), frame.bottom + 16, words) for v, words in _spaced(frame, xs)
    )
    beside = "".join(text(frame.left - 7, float(frame.ys([v])[0]) + 4, words) for v, words in ys)
    sides = ((below, "middle"), (beside, "end"))
    return "".join(
        element("g", numbers, text_anchor=anchor, fill=SOFT) for numbers, anchor in sides if numbers
    )


def _spaced(frame: Frame, ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Leave out numbers that would touch the one before."""
    kept: list[tuple[float, str]] = []
    edge = -1e9
    for value, words in ticks:
        at, half = float(frame.xs([value])[0]), width_of(words) / 2
        if at - half >= edge + 5:
            kept.append((value, words))
            edge = at + half
    return kept


def _line(frame: Frame, series: Series, style: Style, markers: bool, ident: str) -> str:
    """Draw a line with its markers and its intervals."""
    x, y = frame.xs(series.x), frame.ys(series.y)
    every = markers or len(x) == 1
    kept = np.arange(len(x)) if every else thinned(x, y)
    shape = element(
        "marker", element("path", d=style.marker, fill=style.colour, stroke=style.colour),
        id=f"{ident}m", markerUnits="userSpaceOnUse", overflow="visible",
    )  # fmt: skip
    path = element(
        "path", d=f"M{points(x[kept], y[kept])}", stroke_width=style.width,
        stroke_dasharray=style.dash, style=f"marker:url(#{ident}m)" if every else "",
    )  # fmt: skip
    bars = _bars(frame, series) if markers else ""
    line = element("g", bars + path, fill="none", stroke=style.colour)
    return (shape if every else "") + ("" if markers else _band(frame, series, style)) + line


def _bars(frame: Frame, series: Series) -> str:
    """Draw an interval at each point."""
    if series.low is None or series.high is None:
        return ""
    x, low, high = frame.xs(series.x), frame.ys(series.low), frame.ys(series.high)
    bars = "".join(
        f"M{short(a)} {short(b)}V{short(c)}" for a, b, c in zip(x, low, high, strict=True)
    )
    return element("path", d=bars, stroke_opacity=".55")


def _band(frame: Frame, series: Series, style: Style) -> str:
    """Fill what lies between the ends of the intervals."""
    if series.low is None or series.high is None:
        return ""
    x, low, high = frame.xs(series.x), frame.ys(series.low), frame.ys(series.high)
    up, down = thinned(x, high, 1.8), thinned(x, low, 1.8)[::-1]
    around = f"M{points(x[up], high[up], parts=1)}L{points(x[down], low[down], parts=1)}Z"
    return element("path", d=around, fill=style.colour, fill_opacity=".1")


def _end_labels(frame: Frame, series: Sequence[Series], styles: dict[str, Style]) -> str:
    """Write names beside the ends of lines, in their order, pushed apart where they touch."""
    ends = {s.label: float(frame.ys([s.y[-1]])[0]) for s in series}
    lines = {s.label: wrapped(s.label, LABEL_WIDTH - 18) for s in series}
    order = sorted(ends, key=lambda label: ends[label])
    places, edge = {}, frame.top - 12
    for label in order:
        half = 6.5 * len(lines[label]) + 1
        places[label] = max(ends[label], edge + half)
        edge = places[label] + half
    edge = frame.bottom + 22
    for label in reversed(order):
        half = 6.5 * len(lines[label]) + 1
        places[label] = min(places[label], edge - half)
        edge = places[label] - half
    return "".join(
        _end_label(frame, ends[label], places[label], lines[label], styles[label])
        for label in order
    )


def _end_label(frame: Frame, end: float, place: float, lines: list[str], style: Style) -> str:
    """Write one name, led to from the end of its line, with its marker before it."""
    at = frame.right + 16
    leader = f"M{short(frame.right + 1)} {short(end)}L{short(at)} {short(place)}"
    return (
        element("path", d=leader, stroke=style.colour, stroke_width=1.2)
        + element("path", d=style.marker, fill=style.colour, stroke=style.colour,
                  transform=f"translate({short(at)} {short(place)})")
        + lines_of_text(at + 9, place + 4 - 6 * (len(lines) - 1), lines,
                        font_weight="700" if style is OURS else "")
    )  # fmt: skip


def _legend(series: Sequence[Series], styles: dict[str, Style], top: float) -> tuple[str, float]:
    """Draw samples with names in two columns below; return them and where they end [px]."""
    column = (WIDTH - 40) / 2
    parts, y = [], top
    for first in range(0, len(series), 2):
        pair = series[first : first + 2]
        names = [wrapped(s.label, column - 44) for s in pair]
        for number, (one, lines) in enumerate(zip(pair, names, strict=True)):
            x = 24 + number * (column + 8)
            parts.append(_sample(x, y, styles[one.label]) + lines_of_text(x + 38, y + 4, lines))
        y += 12 * max(len(lines) for lines in names) + 6
    return "".join(parts), y


def _sample(x: float, y: float, style: Style, mark: str = "") -> str:
    """Draw a bit of a line with its marker, which may be one that the drawing has."""
    line = element(
        "path", d=f"M{short(x)} {short(y)}h15h15", stroke=style.colour, stroke_width=style.width,
        stroke_dasharray=style.dash, style=f"marker-mid:url(#{mark})" if mark else "",
    )  # fmt: skip
    if mark:
        return line
    return line + element(
        "path", d=style.marker, fill=style.colour, stroke=style.colour,
        transform=f"translate({short(x + 15)} {short(y)})",
    )  # fmt: skip


def _panels(chart: LineChart, name: str, styles: dict[str, Style]) -> str:
    """Draw a panel for each line, with ours in it and all others in grey."""
    x, y = _scales(chart)
    ours = [series for series in chart.series if styles[series.label] is OURS]
    shown = [series for series in chart.series if styles[series.label] is not OURS]
    wide = (WIDTH - LEFT - 10 - 14 * (COLUMNS - 1)) / COLUMNS
    base = Frame(0.0, 0.0, wide, PANEL_HEIGHT, x, y)
    defs = element("g", _axes(base, "", "", wide=False, words=False) + _ghosts(base, chart)
                   + "".join(_line(base, s, OURS, False, f"{name}-o") for s in ours),
                   id=f"{name}-all")  # fmt: skip
    parts = [element("defs", defs), text(LEFT, 15, chart.y_label, fill=SOFT)]
    each = PANEL_HEIGHT + 44
    for number, series in enumerate(shown):
        row, column = divmod(number, COLUMNS)
        left, top = LEFT + column * (wide + 14), 64 + row * each
        parts.append(element("use", href=f"#{name}-all", x=left, y=top))
        frame = Frame(left, top, left + wide, top + PANEL_HEIGHT, x, y)
        parts.append(_panel(frame, series, styles[series.label], chart, f"{name}-{number}"))
        parts.append(_panel_numbers(frame, first=column == 0, last=number + COLUMNS >= len(shown)))
    bottom = 64 + -(-len(shown) // COLUMNS) * each
    key = f"Thick blue in every panel: {ours[0].label}. Grey: all others." if ours else (
        "Grey in every panel: all others.")  # fmt: skip
    parts.append(text(LEFT, bottom + 16, key, fill=SOFT))
    parts.append(text(WIDTH - 12, bottom - 4, chart.x_label, text_anchor="end", fill=SOFT))
    return document(WIDTH, bottom + 26, parts)


def _ghosts(frame: Frame, chart: LineChart) -> str:
    lines, dots = "", ""
    for series in chart.series:
        x, y = frame.xs(series.x), frame.ys(series.y)
        kept = thinned(x, y, 1.2)
        lines += f"M{points(x[kept], y[kept], parts=2)}"
        dots += f"M{points(x, y)}h0" if len(x) == 1 else ""
    drawn = element("path", d=lines, fill="none", stroke=GHOST)
    if not dots:
        return drawn
    return drawn + element("path", d=dots, stroke=GHOST, stroke_width=5, stroke_linecap="round")


def _panel(frame: Frame, series: Series, style: Style, chart: LineChart, ident: str) -> str:
    """Draw one line and its name above."""
    lines = wrapped(series.label, frame.right - frame.left - 40, 10.5)[:3]
    above = frame.top - 9 - 12 * (len(lines) - 1)
    mark = f"{ident}m" if chart.markers else ""
    return (
        _sample(frame.left, above - 4, style, mark)
        + lines_of_text(frame.left + 36, above, lines, font_size=10.5)
        + _line(frame, series, style, chart.markers, ident)
    )


def _panel_numbers(frame: Frame, *, first: bool, last: bool) -> str:
    return _numbers(frame, frame.x.ticks(4) if last else (), frame.y.ticks(4) if first else ())
