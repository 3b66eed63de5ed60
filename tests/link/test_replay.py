"""Replayed traces step by step, and the equivalent SNR against its own definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rankcast.errors import LinkError
from rankcast.link.capacity import Awgn, rate_bps
from rankcast.link.jakes import fitting_rate_reading
from rankcast.link.processes import coherence_time_s
from rankcast.link.replay import LOWEST_EQUIVALENT_DB, ReplayedSnr, equivalent_snr_db
from rankcast.link.traces import Trace
from rankcast.records import LinkState

SNR = Trace(np.arange(4.0), np.array([3.0, -1.0, 8.0, 5.0]), "snr")
THROUGHPUT = Trace(np.arange(3.0), np.array([30e6, 0.0, 6e6]), "throughput")


def test_a_trace_goes_round_from_a_random_place() -> None:
    process = ReplayedSnr.of_snr(SNR, step_s=1.0)
    rng = np.random.default_rng(0)
    state = process.start(rng, 500)
    assert set(state.snr_db) == {3.0, -1.0, 8.0, 5.0}
    begun = state.hidden[:, 0].astype(int)
    for step in range(10):
        assert state.snr_db.tolist() == SNR.values[(begun + step) % 4].tolist()
        assert (state.age == step).all()
        state = process.advance(state, rng)


def test_throughput_comes_back_through_awgn() -> None:
    process = ReplayedSnr.of_throughput(THROUGHPUT, 1.0, bandwidth_hz=20e6)
    state = process.start(np.random.default_rng(0), 50)
    link = LinkState(state.snr_db, np.array([20e6]), np.array([1.0]))
    measured = THROUGHPUT.values[state.hidden[:, 0].astype(int)]
    np.testing.assert_allclose(rate_bps(Awgn(), link), measured, rtol=1e-9, atol=30.0)


@pytest.mark.parametrize("bandwidth_hz", [1.0, 180e3, 20e6, 400e6])
def test_the_round_trip_is_exact_from_the_floor_to_the_ceiling(bandwidth_hz: float) -> None:
    wanted = bandwidth_hz * np.geomspace(1.5e-6, 99.0, 400)
    back = bandwidth_hz * Awgn().spectral_efficiency(equivalent_snr_db(wanted, bandwidth_hz))
    np.testing.assert_allclose(back, wanted, rtol=1e-9)


def test_equivalent_snr_by_hand() -> None:
    assert equivalent_snr_db(20e6, 20e6) == pytest.approx(0.0, abs=1e-12)
    assert equivalent_snr_db([20e6, 40e6], 20e6)[1] == pytest.approx(10 * math.log10(3))
    assert equivalent_snr_db([0.0, 1e-320, 1e-9, 1.0], 20e6).tolist() == [LOWEST_EQUIVALENT_DB] * 4


def test_snr_and_throughput_are_never_taken_for_one_another() -> None:
    with pytest.raises(LinkError, match="holds throughput, not snr"):
        ReplayedSnr.of_snr(THROUGHPUT, 1.0)
    with pytest.raises(LinkError, match="holds snr, not throughput"):
        ReplayedSnr.of_throughput(SNR, 1.0, 20e6)


@pytest.mark.parametrize(
    ("throughput_bps", "bandwidth_hz", "message"),
    [
        (-1.0, 20e6, "at least 0"),
        (math.nan, 20e6, "finite"),
        (math.inf, 20e6, "finite"),
        (1e6, 0.0, "bandwidth"),
        (1e6, math.nan, "bandwidth"),
        (1e6, math.inf, "bandwidth"),
        (1e9, 1e6, "mind the unit"),
        (1e300, 1e-300, "mind the unit"),
    ],
)
def test_impossible_throughput_is_refused(
    throughput_bps: float, bandwidth_hz: float, message: str
) -> None:
    with pytest.raises(LinkError, match=message):
        equivalent_snr_db(throughput_bps, bandwidth_hz)


@pytest.mark.parametrize("values_db", [[], [[1.0]], [1.0, math.nan], [-math.inf]])
def test_impossible_replays_are_refused(values_db: list[float]) -> None:
    with pytest.raises(LinkError):
        ReplayedSnr(np.array(values_db))


def test_the_reading_that_fits_goes_by_the_coherence_time() -> None:
    assert fitting_rate_reading(1.5, 3.5e9, deadline_s=1.0) == "ergodic"  # 41 coherence times
    assert fitting_rate_reading(1.5, 3.5e9, deadline_s=0.05) == "instantaneous"
    assert fitting_rate_reading(0.0, 3.5e9, deadline_s=1e9) == "instantaneous"
    ten_s = 10 * coherence_time_s(30.0, 3.5e9)
    assert fitting_rate_reading(30.0, 3.5e9, ten_s * 1.001) == "ergodic"
    assert fitting_rate_reading(30.0, 3.5e9, ten_s * 0.999) == "instantaneous"
    for speed, carrier, deadline in ((-1.0, 3.5e9, 1.0), (1.0, 0.0, 1.0), (1.0, 3.5e9, 0.0)):
        with pytest.raises(LinkError):
            fitting_rate_reading(speed, carrier, deadline)
