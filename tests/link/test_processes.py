"""Moments of the SNR processes, their physics helpers, and bad input."""

import math

import numpy as np
import pytest

from rankcast.errors import CheckpointError, LinkError
from rankcast.link.capacity import Nakagami, Rayleigh, Rician
from rankcast.link.processes import (
    BlockFadingSnr,
    GaussMarkovSnr,
    IidSnr,
    SnrProcess,
    SnrState,
    StaticSnr,
    coherence_time_s,
    shadowing_correlation,
)

NOT_NUMBERS = [math.nan, math.inf, -math.inf]


def path(process: SnrProcess, *, steps: int, size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    state = process.start(rng, size)
    rows = [state.snr_db]
    for _ in range(steps - 1):
        state = process.advance(state, rng)
        rows.append(state.snr_db)
    return np.stack(rows)


def test_static_never_moves() -> None:
    assert (path(StaticSnr(7.5), steps=5, size=3) == 7.5).all()


def test_iid_values_are_the_papers_and_uniform() -> None:
    draws = path(IidSnr(), steps=100, size=200).ravel()
    values, counts = np.unique(draws, return_counts=True)
    assert values.tolist() == [-5.0, 0.0, 5.0, 10.0, 15.0]
    # A count is binomial with p = 1/5; five standard errors.
    n = draws.size
    assert counts == pytest.approx(np.full(5, n / 5), abs=5.0 * math.sqrt(n * 0.2 * 0.8))


def test_iid_steps_are_uncorrelated() -> None:
    x = path(IidSnr(), steps=2, size=20_000)
    # A sample correlation of independent pairs has a standard error of 1/√n.
    assert abs(np.corrcoef(x)[0, 1]) < 5.0 / math.sqrt(20_000)


@pytest.mark.parametrize("fading", [Rayleigh(), Rician(4.0), Nakagami(2.5)], ids=str)
def test_block_fading_has_the_mean_snr(fading: Rayleigh | Rician | Nakagami) -> None:
    n = 20_000
    snr_db = path(BlockFadingSnr(8.0, fading, 3), steps=4, size=n)[-1]
    gain = 10.0 ** ((snr_db - 8.0) / 10.0)
    assert gain.mean() == pytest.approx(1.0, abs=5.0 * gain.std() / math.sqrt(n))


@pytest.mark.parametrize("block_length", [1, 2, 5])
def test_blocks_last_as_long_as_they_should(block_length: int) -> None:
    x = path(BlockFadingSnr(0.0, Rayleigh(), block_length), steps=8 * block_length, size=4)
    for sequence in x.T:
        changes = 1 + np.flatnonzero(np.diff(sequence))
        # The first block began at a random point of its life; all others are whole.
        assert 1 <= changes[0] <= block_length
        assert (np.diff(changes) == block_length).all()


def test_first_blocks_end_at_different_times() -> None:
    state = BlockFadingSnr(0.0, Rayleigh(), 4).start(np.random.default_rng(0), 4_000)
    # Each age has a count of 4000/4, binomial; five standard errors.
    counts = np.bincount(state.age, minlength=4)
    assert counts == pytest.approx(np.full(4, 1_000), abs=5.0 * math.sqrt(4_000 * 0.25 * 0.75))


def test_deepest_fade_stays_finite() -> None:
    class Gone(Rayleigh):
        def sample(self, rng: np.random.Generator, size: int) -> np.ndarray:
            return np.zeros(size)

    state = BlockFadingSnr(10.0, Gone()).start(np.random.default_rng(0), 2)
    assert state.snr_db == pytest.approx([-110.0, -110.0])


def test_gauss_markov_is_stationary_from_the_first_step() -> None:
    n, std = 20_000, 6.0
    x = path(GaussMarkovSnr(5.0, std, 0.9), steps=12, size=n)
    for row in (x[0], x[1], x[-1]):
        assert row.mean() == pytest.approx(5.0, abs=5.0 * std / math.sqrt(n))
        # The standard error of a normal sample's standard deviation is σ/√(2n).
        assert row.std() == pytest.approx(std, abs=5.0 * std / math.sqrt(2 * n))


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.95])
def test_gauss_markov_correlation_decays_geometrically(correlation: float) -> None:
    n = 20_000
    x = path(GaussMarkovSnr(0.0, 4.0, correlation), steps=4, size=n)
    for lag in (1, 3):
        expected = correlation**lag
        # The standard error of a sample correlation r is (1 - r²)/√n.
        tolerance = 5.0 * (1.0 - expected**2) / math.sqrt(n)
        assert np.corrcoef(x[0], x[lag])[0, 1] == pytest.approx(expected, abs=tolerance)


def test_gauss_markov_limits() -> None:
    frozen = path(GaussMarkovSnr(3.0, 5.0, 1.0), steps=4, size=3)
    assert frozen == pytest.approx(np.repeat(frozen[:1], 4, axis=0))
    assert (path(GaussMarkovSnr(3.0, 0.0, 0.5), steps=4, size=3) == 3.0).all()


def test_coherence_time_of_a_pedestrian() -> None:
    # 1.5 m/s at 3.5 GHz: a Doppler spread of 17.5 Hz, 0.423/17.5 = 24 ms.
    assert coherence_time_s(1.5, 3.5e9) == pytest.approx(0.0242, abs=5e-5)
    assert coherence_time_s(0.0, 3.5e9) == math.inf


def test_shadowing_correlation_by_hand() -> None:
    # After one decorrelation distance, 10 m/s · 3.7 s = 37 m, 1/e is left.
    assert shadowing_correlation(10.0, 3.7, 37.0) == pytest.approx(1.0 / math.e)
    assert shadowing_correlation(0.0, 1.0, 37.0) == 1.0


@pytest.mark.parametrize("bad", NOT_NUMBERS)
def test_snr_that_is_no_number(bad: float) -> None:
    with pytest.raises(LinkError, match="SNR"):
        StaticSnr(bad)
    with pytest.raises(LinkError, match="SNR"):
        IidSnr((0.0, bad))
    with pytest.raises(LinkError, match="SNR"):
        BlockFadingSnr(bad, Rayleigh())
    with pytest.raises(LinkError, match="SNR"):
        GaussMarkovSnr(bad, 1.0, 0.5)


def test_iid_without_values() -> None:
    with pytest.raises(LinkError, match="at least one value"):
        IidSnr(())


@pytest.mark.parametrize("block_length", [0, -1, 1.5])
def test_bad_block_length(block_length: float) -> None:
    with pytest.raises(LinkError, match="block"):
        BlockFadingSnr(0.0, Rayleigh(), block_length)  # type: ignore[arg-type]


@pytest.mark.parametrize("std_db", [-1.0, math.nan, math.inf])
def test_bad_deviation(std_db: float) -> None:
    with pytest.raises(LinkError, match="deviation"):
        GaussMarkovSnr(0.0, std_db, 0.5)


@pytest.mark.parametrize("correlation", [-0.1, 1.1, math.nan])
def test_bad_correlation(correlation: float) -> None:
    with pytest.raises(LinkError, match="correlation"):
        GaussMarkovSnr(0.0, 1.0, correlation)


@pytest.mark.parametrize("args", [(-1.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, 0.0)])
def test_bad_shadowing(args: tuple[float, float, float]) -> None:
    with pytest.raises(LinkError, match="decorrelation"):
        shadowing_correlation(*args)


@pytest.mark.parametrize("args", [(-1.0, 1e9), (1.0, 0.0), (math.nan, 1e9)])
def test_bad_coherence(args: tuple[float, float]) -> None:
    with pytest.raises(LinkError, match="carrier"):
        coherence_time_s(*args)


def test_state_refuses_a_broken_checkpoint() -> None:
    arrays = StaticSnr(1.0).start(np.random.default_rng(0), 2).to_arrays()
    with pytest.raises(CheckpointError, match="lacks age"):
        SnrState.from_arrays({"snr_db": arrays["snr_db"]})
    with pytest.raises(CheckpointError, match="one length"):
        SnrState.from_arrays({**arrays, "age": np.zeros(3)})
