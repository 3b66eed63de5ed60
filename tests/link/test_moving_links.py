"""Jakes' fading against J₀, composed processes, paths: against closed forms and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from rankcast.errors import LinkError
from rankcast.link.jakes import JakesSnr
from rankcast.link.path import PathSnr
from rankcast.link.processes import GaussMarkovSnr, StaticSnr, SummedSnr, doppler_hz

N = 20_000


def test_doppler_spread_by_hand() -> None:
    assert doppler_hz(29.9792458, 3.5e9) == pytest.approx(350.0)


@pytest.mark.parametrize("n_paths", [4, 16])
def test_autocorrelation_of_jakes_is_bessels(n_paths: int) -> None:
    process = JakesSnr(0.0, 1.5, 3.5e9, step_s=2e-3, n_paths=n_paths)
    rng = np.random.default_rng(0)
    start = process.start(rng, N)
    first = process.gain(start.hidden, start.age)
    f_d = doppler_hz(1.5, 3.5e9)
    for lag in (0, 3, 10, 25, 60):
        later = process.gain(start.hidden, start.age + lag)
        correlation = np.mean(later * first.conj())
        expected = special.j0(2 * math.pi * f_d * lag * 2e-3)
        assert abs(correlation - expected) < 5 / math.sqrt(N)


def test_the_gain_of_jakes_is_exponential_and_with_a_direct_path_rician() -> None:
    rng = np.random.default_rng(1)
    state = JakesSnr(0.0, 1.5, 3.5e9, 1e-3, n_paths=32).start(rng, N)
    power = 10 ** (state.snr_db / 10)
    assert stats.kstest(power, "expon").statistic < 0.02
    k = 4.0
    state = JakesSnr(0.0, 1.5, 3.5e9, 1e-3, k_factor=k, n_paths=32).start(rng, N)
    scaled = 2 * (1 + k) * 10 ** (state.snr_db / 10)
    assert stats.kstest(scaled, stats.ncx2(2, 2 * k).cdf).statistic < 0.02


def test_decibels_add_up() -> None:
    process = SummedSnr((StaticSnr(7.0), GaussMarkovSnr(0.0, 3.0, 0.9), StaticSnr(-2.0)))
    rng, alone = np.random.default_rng(2), np.random.default_rng(2)
    state = process.start(rng, 5)
    shadow = GaussMarkovSnr(0.0, 3.0, 0.9)
    expected = shadow.start(alone, 5)
    for _ in range(4):
        np.testing.assert_allclose(state.snr_db, 5.0 + expected.snr_db, rtol=1e-12)
        state, expected = process.advance(state, rng), shadow.advance(expected, alone)


def test_a_path_by_hand() -> None:
    path = PathSnr(((100.0, 0.0), (1000.0, 0.0)), 90.0, 1.0, 20.0, exponent=2.0, std_db=0.0)
    assert path.distance_m(np.array([0.0, 900.0, 1000.0, 1800.0])).tolist() == [
        100.0, 1000.0, 900.0, 100.0,
    ]  # fmt: skip
    state = path.start(np.random.default_rng(0), 3)
    place = state.hidden[:, 0]
    for step in range(25):
        now = np.mod(place + 90.0 * step, 1800.0)
        np.testing.assert_allclose(
            state.snr_db, 20.0 - 20.0 * np.log10(path.distance_m(now) / 100.0), rtol=1e-9
        )
        state = path.advance(state, np.random.default_rng(0))


def test_shadowing_on_a_path_forgets_with_the_distance() -> None:
    path = PathSnr(((50.0, 0.0), (60.0, 0.0)), 10.0, 1.0, 0.0, 0.0, 8.0, decorrelation_m=25.0)
    rng = np.random.default_rng(3)
    first = path.start(rng, N)
    later = first
    for _ in range(3):
        later = path.advance(later, rng)
    assert later.snr_db.std() == pytest.approx(8.0, rel=0.03)
    correlation = np.corrcoef(first.snr_db, later.snr_db)[0, 1]
    assert correlation == pytest.approx(math.exp(-30 / 25), abs=0.03)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(LinkError):
        JakesSnr(0.0, -1.0, 3.5e9, 1e-3)
    with pytest.raises(LinkError):
        JakesSnr(0.0, 1.0, 3.5e9, 1e-3, n_paths=0)
    with pytest.raises(LinkError):
        SummedSnr(())
    with pytest.raises(LinkError, match="corners"):
        PathSnr(((1.0, 1.0),), 1.0, 1.0, 0.0)
    with pytest.raises(LinkError, match="corners"):
        PathSnr(((1.0, 1.0), (1.0, 1.0)), 1.0, 1.0, 0.0)
