"""What holds for every trace: no bit is lost, no value is invented, equal stamps are averaged."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rankcast.config.link import TraceKind
from rankcast.errors import LinkError
from rankcast.link.capacity import Awgn
from rankcast.link.replay import LOWEST_EQUIVALENT_DB, ReplayedSnr, equivalent_snr_db
from rankcast.link.traces import Trace, read_csv, read_mahimahi, read_throughput_rows

EIGHTY = settings(max_examples=80)
steps_s = st.floats(0.05, 20.0)


@st.composite
def traces(draw: st.DrawFn, kind: TraceKind) -> Trace:
    n = draw(st.integers(1, 30))
    gaps = draw(st.lists(st.sampled_from([0.1, 0.3, 1.0, 2.0, 40.0]), min_size=n, max_size=n))
    values = st.floats(0.0, 1e9) if kind == "throughput" else st.floats(-40.0, 40.0)
    measured = draw(st.lists(values, min_size=n, max_size=n))
    ends = np.cumsum(gaps)
    return Trace(np.append(0.0, ends[:-1]), np.array(measured), kind, float(ends[-1]))


def bits_until(trace: Trace, moment_s: float) -> float:
    ends = np.append(trace.time_s[1:], trace.duration_s)
    return sum(
        value * max(min(end, moment_s) - begin, 0.0)
        for begin, end, value in zip(trace.time_s, ends, trace.values, strict=True)
    )


@EIGHTY
@given(traces("throughput"), steps_s)
def test_no_bit_is_lost_or_added(trace: Trace, step_s: float) -> None:
    try:
        means = trace.sampled(step_s, max_gap_s=1e9)
    except LinkError:
        assert trace.duration_s < step_s
        return
    assert (means >= 0).all()
    assert trace.duration_s - step_s < len(means) * step_s * (1 + 1e-6)
    for n in range(1, len(means) + 1):
        wanted = bits_until(trace, n * step_s)
        assert abs(means[:n].sum() * step_s - wanted) <= 1e-9 * wanted + 1e-3


@EIGHTY
@given(traces("throughput"), steps_s, st.floats(40.0, 100.0))
def test_means_lie_between_what_was_measured(trace: Trace, step_s: float, max_gap_s: float) -> None:
    try:
        means = trace.sampled(step_s, max_gap_s)
    except LinkError:
        return
    largest = trace.values.max()
    assert means.max() <= largest * (1 + 1e-6) + 1e-3
    assert means.min() >= trace.values.min() * (1 - 1e-6) - 1e-3 - 1e-9 * largest


@EIGHTY
@given(traces("snr"), steps_s, st.floats(0.1, 100.0))
def test_held_values_come_from_the_trace_in_its_order(
    trace: Trace, step_s: float, max_gap_s: float
) -> None:
    max_gap_s = max(max_gap_s, trace.interval_s)
    seen = trace.sampled(step_s, max_gap_s)
    assert set(seen) <= set(trace.values)
    assert seen[0] == trace.values[0]
    remaining = iter(trace.values)
    assert all(any(value == held for held in remaining) for value in seen[_changes(seen)])
    # No more of them than there is measured time, and one at the start of each stretch.
    stretches = 1 + int((np.diff(trace.time_s) > max_gap_s).sum())
    assert len(seen) <= trace.held_s(max_gap_s).sum() / step_s + stretches + 1e-6


def _changes(values: np.ndarray) -> np.ndarray:
    return np.append(True, values[1:] != values[:-1])


@EIGHTY
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.one_of(st.none(), st.integers(-30, 30))),
        min_size=2,
        max_size=30,
    )
)
def test_equal_stamps_are_averaged_and_missing_cells_counted(
    rows: list[tuple[int, int | None]],
) -> None:
    stamps = np.cumsum([gap for gap, _ in rows])
    cells = [value for _, value in rows]
    at: dict[int, list[int]] = {}
    for stamp, value in zip(stamps.tolist(), cells, strict=True):
        if value is not None:
            at.setdefault(stamp, []).append(value)
    lines = [
        f"{s},{'-' if value is None else value}" for s, value in zip(stamps, cells, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.csv"
        path.write_text("\n".join(["t,v", *lines]))
        try:
            trace = read_csv(path, "snr", "t", "v")
        except LinkError:
            assert len(at) < 2
            return
    assert (trace.time_s + min(at)).tolist() == list(at)
    np.testing.assert_allclose(trace.values, [np.mean(values) for values in at.values()])
    assert trace.skipped == cells.count(None)


@EIGHTY
@given(st.lists(st.integers(0, 500), min_size=1, max_size=60))
def test_every_packet_of_a_schedule_is_carried(stamps: list[int]) -> None:
    stamps = [*sorted(stamps), 501]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "schedule"
        path.write_text("\n".join(map(str, stamps)))
        trace = read_mahimahi(path)
    assert trace.duration_s == 0.501
    bits = bits_until(trace, 1.0)
    assert abs(bits - 12_000 * len(stamps)) < 1e-6 * bits


@EIGHTY
@given(st.binary(max_size=200))
def test_garbage_is_refused_and_nothing_else_happens(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "garbage"
        path.write_bytes(content)
        for read in (
            lambda: read_csv(path, "snr", "t", "v"),
            lambda: read_throughput_rows(path),
            lambda: read_mahimahi(path),
        ):
            try:
                read()
            except LinkError as error:
                assert str(path) in str(error)  # noqa: PT017 - all else is an error of its own


@EIGHTY
@given(
    st.lists(st.floats(0.0, 95.0), min_size=1, max_size=20),
    st.floats(1.0, 1e10),
)
def test_equivalent_snr_is_the_inverse_of_awgn(per_hz: list[float], bandwidth_hz: float) -> None:
    measured = np.array(per_hz) * bandwidth_hz
    snr_db = equivalent_snr_db(measured, bandwidth_hz)
    back = bandwidth_hz * Awgn().spectral_efficiency(snr_db)
    low = snr_db == LOWEST_EQUIVALENT_DB
    np.testing.assert_allclose(back[~low], measured[~low], rtol=1e-9)
    assert (measured[low] <= back[low] * (1 + 1e-9)).all()


@EIGHTY
@given(traces("snr"), st.integers(1, 5))
def test_a_whole_round_visits_every_value_once(trace: Trace, size: int) -> None:
    process = ReplayedSnr(trace.values)
    rng = np.random.default_rng(0)
    state = process.start(rng, size)
    rows = []
    for _ in range(len(trace.values)):
        rows.append(state.snr_db)
        state = process.advance(state, rng)
    for sequence in np.stack(rows).T:
        assert sorted(sequence) == sorted(trace.values)
