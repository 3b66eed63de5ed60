"""Lines in charts are told apart by everyone, and ours looks the same in all of them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from helpers.browser import contrast
from rankcast.records import FloatArray
from report_data import line_chart
from studies.harness.spec import LineChart, Series
from studies.report.axes import Scale
from studies.report.charts import chart_svg
from studies.report.styles import OURS, PLACES, STYLES, styles_of
from studies.report.svg import CARD

DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
     [-0.011820, 0.042940, 0.968881]]
)  # fmt: skip
PROTANOPIA = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
     [-0.003882, -0.048116, 1.051998]]
)  # fmt: skip
"""Full severity, on linear sRGB: Machado, Oliveira and Fernandes (2009)."""

APART = 25.0
"""Least distance of two colours in CIELAB. A just noticeable difference is about 2.3; lines are
thin and lie far from their names, so this is ten times that."""


def linear(colour: str) -> FloatArray:
    """Return linear sRGB of `#rrggbb`."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: FloatArray) -> FloatArray:
    """Return CIELAB of linear sRGB, white point D65."""
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    share = to_xyz @ np.clip(rgb, 0, 1) / to_xyz.sum(axis=1)
    x, y, z = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eyes", [np.eye(3), DEUTERANOPIA, PROTANOPIA])
def test_any_two_colours_are_apart_for_everyone(eyes: FloatArray) -> None:
    seen = [lab(eyes @ linear(style.colour)) for style in STYLES]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) >= APART


def test_no_two_styles_share_a_colour_a_marker_or_a_dash() -> None:
    for part in ("colour", "marker", "dash"):
        assert len({getattr(style, part) for style in STYLES}) == len(STYLES)
    assert all(style.width < OURS.width for style in STYLES[1:])


def test_every_colour_stands_out_from_the_card() -> None:
    def css(colour: str) -> str:
        return str(tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)))

    assert min(contrast(css(style.colour), css(CARD)) for style in STYLES) >= 3.0


def test_a_method_keeps_its_style_whatever_is_beside_it() -> None:
    many = styles_of(["random", "AdaLoRA", "new", "AirLLM, λ = 0.1", "other"])
    few = styles_of(["AirLLM, λ = 0.1", "random"])
    assert many["AirLLM, λ = 0.1"] is few["AirLLM, λ = 0.1"] is OURS
    assert many["random"] is few["random"] is STYLES[PLACES["random"]]
    assert len(set(many.values())) == 5
    assert len(set(styles_of([f"number {n}" for n in range(14)]).values())) == 14


def test_what_is_not_ours_never_looks_like_ours() -> None:
    assert OURS not in styles_of([f"number {n}" for n in range(20)]).values()
    assert OURS not in styles_of(["SVD truncation", "DDIM"]).values()


def test_many_lines_get_panels_of_their_own() -> None:
    ours = Series("AirLLM", [1.0, 2.0], [0.1, 0.2])
    seven, eight = line_chart(7), line_chart(8)
    for chart, n_panels in ((seven, 0), (eight, 8)):
        both = LineChart(chart.title, "x", "y", (ours, *chart.series), markers=False)
        svg = chart_svg(both, "name")
        assert svg.count("<use ") == n_panels
        assert ("Thick blue in every panel: AirLLM." in svg) is (n_panels > 0)


def test_names_stand_at_the_ends_of_lines_or_below() -> None:
    short = Series("early", [1.0, 2.0], [1.0, 2.0])
    long = Series("late", [1.0, 9.0], [2.0, 3.0])
    ends = chart_svg(LineChart("t", "x", "y", (long, Series("too", [1.0, 9.0], [0.0, 1.0]))), "a")
    below = chart_svg(LineChart("t", "x", "y", (long, short)), "a")
    height = 'viewBox="0 0 680 330"'
    assert height in ends
    assert height not in below  # the legend makes it taller


def test_ticks_are_round_and_within_the_axis() -> None:
    assert [v for v, _ in Scale(0.0, 1.0).ticks(5)] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert [words for _, words in Scale(-0.31, -0.2).ticks(4)] == ["−0.30", "−0.25", "−0.20"]
    assert [words for _, words in Scale(0.001, 1.0, log=True).ticks(5)] == [
        "0.001", "0.01", "0.1", "1",
    ]  # fmt: skip
    assert [words for _, words in Scale(900, 2e4, log=True).ticks(8)] == [
        "1,000", "2,000", "5,000", "10,000", "20,000",
    ]  # fmt: skip
