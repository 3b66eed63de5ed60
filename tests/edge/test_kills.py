"""However a device dies, its active adapter is whole, and the next sync goes on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from helpers.edge import serving
from helpers.edge_kills import Mortal, forking, kill_at_random

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Mortal]:
    with serving(tmp_path) as server:
        server.faults.slow_s = 0.0005
        yield Mortal(server, tmp_path / "device", forking(), [])


def test_killed_at_random_moments(mortal: Mortal) -> None:
    assert kill_at_random(mortal, 25, np.random.default_rng(0)) > 2


STEP = 23
"""Of about 150 touches."""


def test_killed_before_ever_later_touches_of_the_disk(mortal: Mortal) -> None:
    """An update is cut off ever later, each time from the same start, until it comes through."""
    mortal.publish()
    assert mortal.run()
    die_at, n_cut = 0, 0
    while True:
        mortal.publish()
        finished = mortal.run(die_at=die_at)
        mortal.check()
        if finished:
            break
        n_cut += 1
        die_at += STEP
        assert mortal.run()
        mortal.check()
        assert mortal.is_done
    assert n_cut > 4
    assert mortal.is_done
