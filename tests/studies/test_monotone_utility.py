from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankcast.learner.synthetic import transformer_layout
from studies.surrogate.monotone import MonotoneUtility
from studies.surrogate.probing import random_plans

EXAMPLES = settings(max_examples=60)


@st.composite
def utilities(draw: Any) -> MonotoneUtility:
    n, r_max = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    gains = rng.exponential(draw(st.sampled_from([0.01, 1.0, 30.0])), (n, r_max))
    gains[rng.random(gains.shape) < 0.2] = 0.0
    link = draw(st.sampled_from(["identity", "exp"]))
    return MonotoneUtility(link, draw(st.floats(0, 2)), draw(st.floats(0, 3)), gains)


@EXAMPLES
@given(utilities(), st.integers(0, 2**32 - 1))
def test_more_rank_never_loses_more(utility: MonotoneUtility, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, r_max = utility.gains.shape
    ranks = rng.integers(0, r_max + 1, (8, n))
    more = rng.integers(ranks, r_max + 1)
    assert (utility.loss(more) <= utility.loss(ranks) + 1e-9).all()


@EXAMPLES
@given(utilities(), st.integers(0, 2**32 - 1))
def test_the_loss_is_the_sum_written_out(utility: MonotoneUtility, seed: int) -> None:
    n, r_max = utility.gains.shape
    ranks = np.random.default_rng(seed).integers(0, r_max + 1, (1, n))
    total = sum(utility.gains[m, : ranks[0, m]].sum() for m in range(n))
    bent = np.exp(-total) if utility.link == "exp" else -total
    expected = utility.offset + utility.amplitude * bent
    assert utility.loss(ranks)[0] == pytest.approx(expected, abs=1e-9)


@EXAMPLES
@given(utilities())
def test_plain_values_round_once(utility: MonotoneUtility) -> None:
    plain = utility.to_plain()
    loaded = MonotoneUtility.from_plain(plain)
    assert loaded.to_plain() == plain
    assert loaded.gains == pytest.approx(utility.gains, rel=1e-5)


@EXAMPLES
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.sampled_from([1, 2, 8, 64]))
def test_random_plans_are_plans(seed: int, n: int, r_max: int) -> None:
    layout = transformer_layout(n_layers=1, r_max=r_max)
    plans = random_plans(np.random.default_rng(seed), n, layout)
    assert plans.shape == (n, 6)
    assert plans.dtype == np.int64
    assert plans.min() >= 0
    assert plans.max() <= r_max
