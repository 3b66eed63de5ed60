"""What every `SnrProcess` must do, whichever it is."""

import io
import math

import numpy as np
import pytest

from rankcast.errors import LinkError
from rankcast.link.capacity import Nakagami, Rayleigh, Rician
from rankcast.link.jakes import JakesSnr
from rankcast.link.path import PathSnr
from rankcast.link.processes import (
    BlockFadingSnr,
    GaussMarkovSnr,
    IidSnr,
    SnrProcess,
    SnrState,
    StaticSnr,
    SummedSnr,
)
from rankcast.link.replay import ReplayedSnr
from rankcast.link.traces import Trace

_TIMES_S = np.arange(200.0)
_MEASURED_DB = 5.0 + 8.0 * np.sin(0.17 * _TIMES_S) + 2.0 * np.cos(1.9 * _TIMES_S)
_MEASURED_BPS = 1e6 * np.maximum(_MEASURED_DB, 0.0)
PROCESSES: list[SnrProcess] = [
    StaticSnr(5.0),
    IidSnr(),
    BlockFadingSnr(5.0, Rayleigh(), 3),
    BlockFadingSnr(5.0, Rician(4.0), 1),
    BlockFadingSnr(5.0, Nakagami(0.5), 7),
    GaussMarkovSnr(5.0, 6.0, 0.9),
    JakesSnr(5.0, 1.5, 3.5e9, 5e-3),
    JakesSnr(5.0, 1.5, 3.5e9, 5e-3, k_factor=3.0, n_paths=5),
    SummedSnr((GaussMarkovSnr(5.0, 6.0, 0.9), JakesSnr(0.0, 1.5, 3.5e9, 5e-3))),
    PathSnr(((50.0, 0.0), (300.0, 100.0), (400.0, -50.0)), 15.0, 0.5, 12.0),
    ReplayedSnr.of_snr(Trace(_TIMES_S, _MEASURED_DB, "snr"), 1.0),
    ReplayedSnr.of_throughput(Trace(_TIMES_S, _MEASURED_BPS, "throughput"), 0.5, 20e6),
]
every_process = pytest.mark.parametrize("process", PROCESSES, ids=str)
every_drawing_process = pytest.mark.parametrize("process", PROCESSES[1:], ids=str)
"""A static one draws nothing."""


def advance(
    process: SnrProcess, state: SnrState, rng: np.random.Generator, steps: int
) -> tuple[SnrState, np.ndarray]:
    rows = []
    for _ in range(steps):
        state = process.advance(state, rng)
        rows.append(state.snr_db)
    return state, np.stack(rows)


@every_process
def test_satisfies_the_protocol(process: SnrProcess) -> None:
    assert isinstance(process, SnrProcess)


@every_process
@pytest.mark.parametrize("size", [1, 4])
def test_shapes_and_finite_values(process: SnrProcess, size: int) -> None:
    rng = np.random.default_rng(0)
    state = process.start(rng, size)
    for _ in range(20):
        assert state.snr_db.shape == (size,)
        assert state.snr_db.dtype == np.float64
        assert state.age.shape == (size,)
        assert np.isfinite(state.snr_db).all()
        assert (state.age >= 0).all()
        state = process.advance(state, rng)


@every_process
@pytest.mark.parametrize("size", [0, -1])
def test_refuses_an_empty_batch(process: SnrProcess, size: int) -> None:
    with pytest.raises(LinkError, match="size"):
        process.start(np.random.default_rng(0), size)


@every_process
def test_same_seed_same_path(process: SnrProcess) -> None:
    paths = []
    for _ in range(2):
        rng = np.random.default_rng(42)
        start = process.start(rng, 3)
        paths.append(np.vstack([start.snr_db, advance(process, start, rng, 25)[1]]))
    assert np.array_equal(*paths)


@every_drawing_process
def test_other_seed_other_path(process: SnrProcess) -> None:
    first, second = (
        advance(process, process.start(rng, 3), rng, 25)[1]
        for rng in (np.random.default_rng(1), np.random.default_rng(2))
    )
    assert not np.array_equal(first, second)


@every_process
def test_resumes_from_a_file(process: SnrProcess) -> None:
    rng = np.random.default_rng(3)
    # Ten steps stop inside a block of three and of seven.
    state, _ = advance(process, process.start(rng, 3), rng, 10)
    file = io.BytesIO()
    np.savez(file, **state.to_arrays())
    generator_state = rng.bit_generator.state
    _, expected = advance(process, state, rng, 15)

    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        restored = SnrState.from_arrays(arrays)
    resumed = np.random.default_rng(0)
    resumed.bit_generator.state = generator_state
    assert np.array_equal(advance(process, restored, resumed, 15)[1], expected)


@every_process
def test_advance_leaves_the_given_state_alone(process: SnrProcess) -> None:
    rng = np.random.default_rng(4)
    state = process.start(rng, 3)
    before = state.to_arrays()
    advance(process, state, rng, 10)
    for name, array in before.items():
        assert np.array_equal(getattr(state, name), array)


@every_drawing_process
def test_batch_entries_are_independent(process: SnrProcess) -> None:
    rng = np.random.default_rng(5)
    # Entry i against its neighbour over many pairs: the standard error is 1/√pairs.
    pairs = 10_000
    state, _ = advance(process, process.start(rng, 2 * pairs), rng, 8)
    correlation = np.corrcoef(state.snr_db[:pairs], state.snr_db[pairs:])[0, 1]
    assert abs(correlation) < 5.0 / math.sqrt(pairs)
    assert abs(np.corrcoef(state.snr_db[0::2], state.snr_db[1::2])[0, 1]) < 5.0 / math.sqrt(pairs)


@every_process
def test_distribution_does_not_drift(process: SnrProcess) -> None:
    rng = np.random.default_rng(6)
    n = 10_000
    first = process.start(rng, n)
    last, _ = advance(process, first, rng, 15)
    # Means of n values each; entries may be correlated in time, which only shrinks the difference.
    error = math.hypot(first.snr_db.std(), last.snr_db.std()) / math.sqrt(n)
    assert abs(first.snr_db.mean() - last.snr_db.mean()) <= 5.0 * error


@every_process
def test_global_random_state_is_not_touched(process: SnrProcess) -> None:
    np.random.seed(7)  # noqa: NPY002 - the legacy global state is what is being watched
    before = np.random.get_state()  # noqa: NPY002
    rng = np.random.default_rng(8)
    advance(process, process.start(rng, 3), rng, 10)
    after = np.random.get_state()  # noqa: NPY002
    assert before[0] == after[0]
    assert np.array_equal(before[1], after[1])
    assert before[2:] == after[2:]
