"""Charts as SVG: legible on a light card in light and dark, distinguishable without colour too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from io import StringIO
from typing import Any

import numpy as np

from rankcast.errors import ConfigError
from studies.harness.spec import Chart, HeatMap, LineChart

_COLOURS = (
    "#0072b2", "#d55e00", "#008060", "#b3478f", "#5a5a5a", "#a06a00", "#3fa0d8", "#000000",
)  # fmt: skip
"""After Okabe and Ito, those too pale for a line on white darkened."""

_STYLES = ("-", "--", "-.", ":")
_MARKERS = "osD^vPX*"
_CARD = "#fcfcfb"
_INK = "#1c1e21"
_NUMBERED_CELLS = 260  # beyond, the numbers in a heat map could not be read
_SETTINGS: Mapping[str, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud and enlarged
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "sans-serif"],
    "font.size": 9.0,
    "axes.edgecolor": "#777b80",
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "path.simplify": True,
}


def chart_svg(chart: Chart, name: str) -> str:
    """Return a chart as an SVG document; the same chart and name give the same text.

    Args:
        chart: what to draw.
        name: letters, digits and dashes; the beginning of every id in it, so that several
            drawings can stand in one page.

    Raises:
        ConfigError: a chart without anything to draw, or whose sizes do not fit one another.
    """
    import matplotlib as mpl  # noqa: PLC0415 takes a second
    from matplotlib.figure import Figure  # noqa: PLC0415

    settings: Any = {**_SETTINGS, "svg.hashsalt": name}
    with mpl.rc_context(settings):
        figure = Figure(layout="constrained", facecolor=_CARD)
        if isinstance(chart, LineChart):
            _draw_lines(figure, chart)
        else:
            _draw_heat_map(figure, chart)
        out = StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None}, facecolor=_CARD)
    return _tidy(out.getvalue(), name)


def _draw_lines(figure: Any, chart: LineChart) -> None:
    """Draw series with bands; the legend stands below."""
    if not chart.series:
        raise ConfigError(f"The chart {chart.title!r} has no series.")
    columns = 2 if len(chart.series) > 1 else 1
    legend_rows = -(-len(chart.series) // columns)
    figure.set_size_inches(6.4, 3.7 + 0.2 * legend_rows)
    axes = figure.add_subplot()
    for number, series in enumerate(chart.series):
        lengths = {len(x) for x in (series.x, series.y, series.low, series.high) if x is not None}
        if len(lengths) != 1:
            raise ConfigError(f"{chart.title!r}: the parts of {series.label!r} differ in length.")
        colour = _COLOURS[number % len(_COLOURS)]
        mark = {"marker": _MARKERS[number % len(_MARKERS)], "markersize": 4.5}
        axes.plot(
            series.x, series.y, _STYLES[number % len(_STYLES)], color=colour, linewidth=1.6,
            label=series.label, **(mark if chart.markers or len(series.x) == 1 else {}),
        )  # fmt: skip
        if series.low is not None and series.high is not None:
            _draw_interval(axes, chart, number, colour)
    if chart.log_x:
        _scale_by_logarithm(axes, [x for series in chart.series for x in series.x])
    else:
        axes.xaxis.set_major_formatter("{x:,.10g}")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set(xlabel=chart.x_label, ylabel=chart.y_label)
    axes.grid(color="#d9dbde", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)


def _draw_interval(axes: Any, chart: LineChart, number: int, colour: str) -> None:
    """Draw the ends of an interval: as bars at single points, else as a band."""
    series = chart.series[number]
    x, y, low, high = (
        np.asarray(v, dtype=np.float64) for v in (series.x, series.y, series.low, series.high)
    )
    if chart.markers:
        around = np.clip(np.array([y - low, high - y]), 0.0, None)
        axes.errorbar(x, y, around, fmt="none", ecolor=colour, elinewidth=1.0, capsize=2.5)
    else:
        axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)


def _scale_by_logarithm(axes: Any, values: list[float]) -> None:
    """Give the x axis logarithmic steps with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator  # noqa: PLC0415

    if min(values) <= 0:
        raise ConfigError(f"A logarithmic axis needs positive numbers, got {min(values)}.")
    decades = np.log10(max(values) / min(values))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _draw_heat_map(figure: Any, chart: HeatMap) -> None:
    """Draw a matrix as shades, with numbers while they can be read."""
    values = np.asarray(chart.values, dtype=np.float64)
    rows, columns = len(chart.row_labels), len(chart.column_labels)
    if values.shape != (rows, columns) or not values.size:
        raise ConfigError(
            f"{chart.title!r} has {rows} rows and {columns} columns, but values of shape "
            f"{values.shape}."
        )
    figure.set_size_inches(max(6.4, 0.3 * columns + 2.0), 0.32 * rows + 1.3)
    axes = figure.add_subplot()
    axes.set_facecolor("#e3e4e6")  # what has no value
    edges = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    mesh = axes.pcolormesh(
        *edges, np.ma.masked_invalid(values), cmap="viridis", vmin=low, vmax=high,
        edgecolors=_CARD, linewidth=0.6,
    )  # fmt: skip
    axes.invert_yaxis()
    step = max(columns // 32, 1)
    axes.set_xticks(range(0, columns, step), chart.column_labels[::step])
    axes.set_yticks(range(rows), chart.row_labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if values.size <= _NUMBERED_CELLS:
        _write_numbers(axes, values, (low + 0.6 * (high - low)))
    figure.colorbar(mesh, ax=axes, label=chart.unit, shrink=0.9, pad=0.02).outline.set_visible(
        False
    )


def _write_numbers(axes: Any, values: np.ndarray[Any, Any], bright_from: float) -> None:
    """Write each value into its cell, in a colour that can be read on it."""
    whole = bool((values[np.isfinite(values)] % 1 == 0).all())
    size = 8 if values.shape[1] <= 16 else 6.5
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            text = f"{value:.0f}" if whole or abs(value) >= 100 else f"{value:.1f}"
            colour = "black" if value > bright_from else "white"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)


def _tidy(svg: str, name: str) -> str:
    """Drop what is not drawn, and make every id the drawing's own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href=")#', rf"\1#{name}-", svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"
