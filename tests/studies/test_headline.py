"""The table at the top of the README: how it reads as rows come."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from studies.byte_frontier.curves import Curve, Measured
from studies.shared.judging import Answers

SCRIPT = Path(__file__).parents[2] / "studies" / "headline" / "render.py"


@pytest.fixture(scope="module")
def headline() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def measured(code: str, n_bytes: float, seeds: tuple[int, ...], right: float) -> Measured:
    """Return a code that answers a share of a hundred texts right, for every seed."""
    correct = np.tile(np.arange(100) < 100 * right, (len(seeds), 1)).astype(np.float64)
    return Measured(code, dict.fromkeys(seeds, n_bytes), 0.3, Answers(correct, seeds))


def lora(method: str, size: str, seeds: tuple[int, ...], right: float) -> Curve:
    return Curve(method, size, "reference", (measured("fp32", 4000.0, seeds, right),))


def ours(way: str, seeds: tuple[int, ...], right: float) -> Curve:
    return Curve(way, "", way, (measured("2,000 bytes", 1990.0, seeds, right),))


def test_a_single_seed_is_called_so(headline: dict[str, Any]) -> None:
    line = headline["frontier_line"]([lora("lora", "4", (0,), 0.9), ours("taught", (0,), 0.8)])
    assert line.repeated == "one seed so far"
    assert line.what == "a file that was trained for 2,000 bytes: 1,990 with its header"
    assert "(rank 4): 4,000 bytes" in line.beside
    assert line.result.startswith("-10.00 points of accuracy (")


def test_seeds_that_only_one_side_has_do_not_count(headline: dict[str, Any]) -> None:
    curves = [lora("lora", "1", (0, 1, 2), 0.9), ours("taught", (0, 1, 2, 3), 0.9)]
    line = headline["frontier_line"](curves)
    assert line.repeated == "three seeds"
    assert line.result.startswith("+0.00 points")


def test_a_reference_that_trained_for_longer_says_so(headline: dict[str, Any]) -> None:
    curves = [lora("lora", "4", (0,), 0.8), lora("lora_long", "8", (0,), 0.9)]
    line = headline["frontier_line"]([*curves, ours("taught", (0,), 0.9)])
    assert "(rank 8, trained for longer)" in line.beside


def test_there_is_no_line_before_both_sides_are_judged(headline: dict[str, Any]) -> None:
    line_of = headline["frontier_line"]
    assert line_of([]) is None
    assert line_of([lora("lora", "4", (0,), 0.9)]) is None
    assert line_of([lora("lora", "4", (0,), 0.9), ours("taught", (1,), 0.9)]) is None


def test_the_way_with_teachers_is_shown_once_it_is_there(headline: dict[str, Any]) -> None:
    curves = [lora("lora", "4", (0,), 0.9), ours("trained", (0,), 0.7)]
    assert headline["frontier_line"](curves).result.startswith("-20")
    assert headline["frontier_line"]([*curves, ours("taught", (0,), 0.8)]).result.startswith("-10")
