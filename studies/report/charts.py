"""Charts as SVG: legible on a light card in light and dark, distinguishable without colour too."""

from __future__ import annotations

from studies.harness.spec import Chart, LineChart
from studies.report.heat_map import heat_map_svg
from studies.report.line_chart import line_chart_svg


def chart_svg(chart: Chart, name: str) -> str:
    """Return a chart as an SVG document; the same chart and name give the same text.

    Args:
        chart: what to draw.
        name: letters, digits and dashes; the beginning of every id in it, so that several
            drawings can stand in one page.

    Raises:
        ConfigError: a chart without anything to draw, or whose sizes do not fit one another.
    """
    return line_chart_svg(chart, name) if isinstance(chart, LineChart) else heat_map_svg(chart)
