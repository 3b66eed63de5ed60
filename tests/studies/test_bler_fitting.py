"""Fits of waterfalls to counts that were drawn from a known one, and counts that decide nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special

from rankcast.errors import LinkError
from rankcast.link.bler import Waterfall
from studies.bler.fitting import Count, fit_waterfall

TRUTH = Waterfall(640, 3.2, 0.4)


def drawn(seed: int, n_blocks: int = 200) -> list[Count]:
    rng = np.random.default_rng(seed)
    snr_db = TRUTH.middle_db + TRUTH.width_db * np.array([-1.4, -0.7, 0.0, 0.7, 1.4])
    lost = rng.binomial(n_blocks, special.ndtr((TRUTH.middle_db - snr_db) / TRUTH.width_db))
    return [Count(float(s), n_blocks, int(n)) for s, n in zip(snr_db, lost, strict=True)]


def test_fit_recovers_the_waterfall_and_knows_its_error() -> None:
    runs = 100
    fits = [fit_waterfall(640, drawn(seed)) for seed in range(runs)]
    for name in ("middle", "width"):
        fitted_db = np.array([getattr(fit, f"{name}_db") for fit in fits])
        error = np.array([getattr(fit, f"{name}_se_db") for fit in fits])
        truth = getattr(TRUTH, f"{name}_db")
        assert fitted_db.mean() == pytest.approx(truth, abs=5 * fitted_db.std() / math.sqrt(runs))
        # A standard deviation of 100 values is known to 7 %; four of those.
        assert error.mean() == pytest.approx(fitted_db.std(), rel=0.28)
        # Of 100 intervals of 95 %, 95 ± 2.2 hold the truth; four of those.
        assert np.sum(np.abs(fitted_db - truth) <= 1.96 * error) >= 86


def test_fit_of_exact_shares_is_exact() -> None:
    n = 10**8
    shares = [(s, float(special.ndtr((3.2 - s) / 0.4))) for s in (2.8, 3.1, 3.5)]
    fit = fit_waterfall(2000, [Count(s, n, round(n * p)) for s, p in shares])
    assert fit.n_info_bits == 2000
    assert (fit.middle_db, fit.width_db) == pytest.approx((3.2, 0.4), abs=1e-4)


def test_error_shrinks_with_the_root_of_the_blocks() -> None:
    few, many = (fit_waterfall(640, drawn(0, n)) for n in (400, 40_000))
    assert few.middle_se_db / many.middle_se_db == pytest.approx(10.0, rel=0.15)


@pytest.mark.parametrize(
    "counts",
    [
        [Count(0.0, 10, 10), Count(1.0, 10, 10)],  # nothing arrived
        [Count(0.0, 10, 0), Count(1.0, 10, 0)],  # everything did
        [Count(0.0, 10, 5)],  # one place fits any width
        [Count(0.0, 10, 10), Count(1.0, 10, 0)],  # somewhere in between, of any width
        [Count(0.0, 10, 10), Count(1.0, 10, 4), Count(2.0, 10, 0)],  # as steep as one likes
        [Count(0.0, 10, 2), Count(1.0, 10, 8)],  # upside down
    ],
)
def test_counts_that_decide_nothing(counts: list[Count]) -> None:
    with pytest.raises(LinkError, match="waterfall"):
        fit_waterfall(640, counts)
