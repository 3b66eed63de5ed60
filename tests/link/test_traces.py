"""Traces by hand: sampling, gaps, the readers' own small files, and what they refuse."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from rankcast.config.link import TraceKind
from rankcast.errors import LinkError
from rankcast.link.traces import Trace, read_csv, read_mahimahi, read_throughput_rows

STAMPS = "%Y.%m.%d_%H.%M.%S"
ORDINARY = "time_s,snr_db\n0,1\n1,2\n2,3\n"


def trace(
    times: list[float], values: list[float], kind: TraceKind = "snr", duration_s: float = 0.0
) -> Trace:
    return Trace(np.array(times), np.array(values), kind, duration_s)


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "trace.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_snr(path: Path) -> Trace:
    return read_csv(path, "snr", "time_s", "snr_db")


def test_snr_is_the_last_value_before_each_decision() -> None:
    measured = trace([0.0, 1.0, 2.5, 3.0], [5.0, 6.0, 7.0, 8.0])
    assert measured.duration_s == 4.0  # the last value lasts as long as the median, 1 s
    assert measured.sampled(1.0).tolist() == [5.0, 6.0, 6.0, 8.0]
    assert measured.sampled(0.5).tolist() == [5, 5, 6, 6, 6, 7, 8, 8]
    assert measured.sampled(3.0).tolist() == [5.0, 8.0]


def test_times_that_are_equal_but_for_rounding_are_equal() -> None:
    values = list(range(40))
    measured = trace([0.1 * k for k in range(40)], [float(v) for v in values])
    assert measured.sampled(0.1).tolist() == values


def test_a_quarter_in_slots_of_a_millisecond_fits_and_a_year_is_refused() -> None:
    quarter = Trace(np.array([0.0, 600.0]), np.array([3.0, 4.0]), "snr", 900.0)
    values = quarter.sampled(1e-3, max_gap_s=1e9)
    assert (len(values), np.count_nonzero(values == 3.0)) == (900_000, 600_000)
    year = Trace(np.array([0.0, 1.0, 31_536_000.0]), np.zeros(3), "snr", 31_536_001.0)
    with pytest.raises(LinkError, match="too many; take a part of the trace"):
        year.sampled(1e-3, max_gap_s=math.inf)


def test_throughput_is_the_mean_over_each_step() -> None:
    measured = trace([0.0, 1.0, 2.5, 3.0], [4e6, 2e6, 6e6, 0.0], "throughput", duration_s=4.5)
    np.testing.assert_allclose(measured.sampled(1.0), [4e6, 2e6, 4e6, 0.0])
    np.testing.assert_allclose(measured.sampled(2.0), [3e6, 2e6])
    np.testing.assert_allclose(measured.sampled(0.25)[8:12], [2e6, 2e6, 6e6, 6e6])


def test_long_gaps_are_cut_out() -> None:
    times = [0.0, 1.0, 2.0, 30.0, 31.0, 33.0]
    snr = trace(times, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert snr.sampled(1.0).tolist() == [1, 2, 3, 4, 5, 5, 6]
    assert snr.held_s().tolist() == [1, 1, 1, 1, 2, 1]
    assert len(snr.sampled(1.0, max_gap_s=math.inf)) == 34
    # A step of two seconds does not reach from one side of a gap to the other.
    throughput = trace(times, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "throughput")
    np.testing.assert_allclose(throughput.sampled(2.0), [1.5, 4.5, 5.5])


def test_steps_longer_than_every_stretch_are_refused() -> None:
    times, values = [0.0, 1.0, 30.0, 31.0, 60.0, 61.0], [1.0] * 6
    with pytest.raises(LinkError, match="no stretch without a gap"):
        trace(times, values, "throughput").sampled(3.0)
    assert trace(times, values).sampled(3.0).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("step_s", [0.0, -1.0, math.nan, math.inf])
def test_impossible_steps_are_refused(step_s: float) -> None:
    with pytest.raises(LinkError, match="step"):
        trace([0.0, 1.0], [1.0, 2.0]).sampled(step_s)


@pytest.mark.parametrize("max_gap_s", [0.0, 0.5, math.nan])
def test_a_longest_gap_below_the_usual_interval_is_refused(max_gap_s: float) -> None:
    with pytest.raises(LinkError, match="allow a longer one"):
        trace([0.0, 1.0, 2.0], [1.0, 2.0, 3.0]).sampled(1.0, max_gap_s)


@pytest.mark.parametrize(
    ("times", "values", "kind", "message"),
    [
        ([], [], "snr", "as many times as values"),
        ([0.0, 1.0], [1.0], "snr", "as many times as values"),
        ([0.0, 1.0, 1.0], [1.0, 2.0, 3.0], "snr", "increase"),
        ([1.0, 2.0], [1.0, 2.0], "snr", "start at 0 s"),
        ([0.0, math.nan], [1.0, 2.0], "snr", "increase"),
        ([0.0, 1.0], [1.0, math.nan], "snr", "value 2: a snr must be a finite number"),
        ([0.0, 1.0], [1.0, -1.0], "throughput", "at least 0 bit/s"),
        ([0.0, 1.0], [1.0, 456_818.0], "snr", "is no SNR"),
        ([0.0], [1.0], "snr", "duration"),
    ],
)
def test_impossible_traces_are_refused(
    times: list[float], values: list[float], kind: TraceKind, message: str
) -> None:
    with pytest.raises(LinkError, match=message):
        trace(times, values, kind)


def test_a_trace_does_not_end_before_its_last_value() -> None:
    with pytest.raises(LinkError, match="after its last value"):
        trace([0.0, 1.0], [1.0, 2.0], duration_s=0.5)
    assert trace([0.0], [7.0], duration_s=2.0).sampled(1.0).tolist() == [7.0, 7.0]


def test_a_trace_cannot_be_changed() -> None:
    times = np.array([0.0, 1.0])
    measured = Trace(times, np.array([1.0, 2.0]), "snr")
    times[1] = 9.0
    assert measured.time_s.tolist() == [0.0, 1.0]
    with pytest.raises(ValueError, match="read-only"):
        measured.values[0] = 3.0


def test_csv_with_stamps_that_repeat_and_skip_and_cells_that_are_missing(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "Timestamp,Speed,SNR,DL_bitrate\r\n"
        "2020.01.16_10.59.58,0,9.0,100\r\n"
        "2020.01.16_10.59.59,0,-,200\r\n"
        "2020.01.16_10.59.59,0,4.0,0\r\n"
        "2020.01.16_10.59.59,0,7.0,400\r\n"
        "-,0,3.0,400\r\n"
        "2020.01.16_11.00.02,0,,300\r\n"
        "2020.01.16_11.00.03,0,-2.0,100\r\n\r\n",
    )
    snr = read_csv(path, "snr", "Timestamp", "SNR", time_format=STAMPS)
    assert (snr.time_s.tolist(), snr.values.tolist()) == ([0.0, 1.0, 5.0], [9.0, 5.5, -2.0])
    assert (snr.skipped, snr.kind, snr.name) == (3, "snr", str(path))
    bits = read_csv(path, "throughput", "Timestamp", "DL_bitrate", scale=1e3, time_format=STAMPS)
    assert bits.time_s.tolist() == [0.0, 1.0, 4.0, 5.0]
    np.testing.assert_allclose(bits.values, [1e5, 2e5, 3e5, 1e5])
    assert bits.skipped == 1


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("", "", "two different times|no column"),
        ("time_s;snr_db\n0;1\n", "line 1", "no column 'time_s'"),
        ("0,1\n1,2\n", "line 1", "no column"),
        ("time_s,snr\n0,1\n1,2\n", "line 1", "no column 'snr_db'; did you mean 'snr'?"),
        ("time_s,snr_db\n", "", "two different times"),
        ("time_s,snr_db\n0,1\n", "", "two different times"),
        ("time_s,snr_db\n3,1\n3,2\n", "", "two different times"),
        ("time_s,snr_db\n0,-\n1,\n2,5\n", "", "(2 rows without one)"),
        ("time_s,snr_db\n0,1\n1,nan\n", "", "(1 rows without one)"),
        ("time_s,snr_db\n0,1\n1,inf\n", "line 3", "finite number"),
        ("time_s,snr_db\n0,1\n1,good\n", "line 3", "'good' is no number"),
        ("time_s,snr_db\n0,1\n1,450\n", "line 3", "is no SNR"),
        ("time_s,snr_db\n0,1\ninf,2\n", "line 3", "no finite number"),
        ("time_s,snr_db\n0,1\nnoon,2\n", "line 3", "not a number of seconds"),
        ("time_s,snr_db\n0,1\n\n2,2\n1,3\n", "line 5", "before the row above"),
        ("time_s,snr_db\n0,1\n2,-\n1,3\n", "line 4", "before the row above"),
        ("time_s,snr_db\n0,1\n1\n", "line 3", "1 cells under 2 columns"),
        ("time_s,snr_db\n0,1,5\n", "line 2", "3 cells under 2 columns"),
        ('time_s,snr_db\n0,"1\n1,2\n', "line", "this is no CSV"),
        (b"time_s,snr_db\n0,1\n1,\xff\xfe\n", "line 3", "0xff is not UTF-8"),
        (b"\x00\x01\x02\x03", "line 1", "NUL byte"),
        (b"time_s,snr_db\n0,1\n1,\x00\n", "line 3", "NUL byte"),
    ],
)
def test_malformed_csv_is_refused_by_line(
    tmp_path: Path, content: str | bytes, line: str, message: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(LinkError) as caught:
        read_snr(path)
    assert str(path) in str(caught.value)
    assert line in str(caught.value)
    assert any(re.search(re.escape(part), str(caught.value)) for part in message.split("|"))


def test_stamps_of_another_form_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, ORDINARY)
    with pytest.raises(LinkError, match="line 2: the time stamp '0' is not of the form"):
        read_csv(path, "snr", "time_s", "snr_db", time_format=STAMPS)


@pytest.mark.parametrize("read", [read_snr, read_throughput_rows, read_mahimahi])
def test_files_that_are_not_there_or_no_files_are_refused(tmp_path: Path, read: object) -> None:
    assert callable(read)
    for path in (tmp_path / "gone.csv", tmp_path):
        with pytest.raises(LinkError, match=re.escape(f"{path} cannot be read")):
            read(path)


def test_a_byte_order_mark_and_spaces_do_no_harm(tmp_path: Path) -> None:
    path = written(tmp_path, b"\xef\xbb\xbftime_s, snr_db\n0, 1\n1, 2\n")
    assert read_snr(path).values.tolist() == [1.0, 2.0]


def test_rows_change_their_unit_from_row_to_row(tmp_path: Path) -> None:
    path = written(tmp_path, "0.5,Mbits/sec\r\n997,Kbits/sec\r\n-,\r\n0.0,bits/sec\r\n")
    measured = read_throughput_rows(path)
    assert measured.time_s.tolist() == [0.0, 1.0, 3.0]
    np.testing.assert_allclose(measured.values, [5e5, 997e3, 0.0])
    assert (measured.kind, measured.duration_s, measured.skipped) == ("throughput", 4.0, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1"),
        ("-,\n-,\n", "holds no throughput"),
        ("0.5\n", "line 1: '0.5' is no throughput"),
        ("0.5,Mbits/sec\n0.5,furlongs\n", "line 2"),
        ("0.5,Mbits/sec\n\n0.5,Mbits/sec\n", "line 2"),
        ("nan,Mbits/sec\n", "holds no throughput"),
        ("inf,Mbits/sec\n", "line 1"),
        ("0.5,Mbits/sec\n-3,Mbits/sec\n", "line 2"),
        ("x,Mbits/sec\n", "line 1"),
        (b"0.5,Mbits/sec\n\xff\xd8\xff\n", "line 2"),
        (b"\x00\x01", "line 1"),
    ],
)
def test_malformed_rows_are_refused_by_line(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(LinkError, match=re.escape(message)):
        read_throughput_rows(written(tmp_path, content))


def test_a_packet_schedule_becomes_a_rate_of_each_millisecond(tmp_path: Path) -> None:
    path = written(tmp_path, "0\n0\n1\n4\n4\n4\n5\n")
    measured = read_mahimahi(path)
    assert measured.duration_s == 0.005
    # The stamp at the end, 5 ms, counts in the last one.
    np.testing.assert_allclose(measured.values, np.array([2, 1, 0, 0, 4]) * 12e6)
    np.testing.assert_allclose(measured.time_s, [0.0, 1e-3, 2e-3, 3e-3, 4e-3])


def test_a_silent_stretch_of_a_schedule_is_no_gap(tmp_path: Path) -> None:
    measured = read_mahimahi(written(tmp_path, "0\n20000\n"))
    assert len(measured.sampled(1.0)) == 20
    assert (measured.sampled(1.0)[1:-1] == 0).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "above 0 ms"),
        ("0\n0\n", "above 0 ms"),
        ("3\n2\n", "line 2: 2 ms is before the line above"),
        ("3\n4.5\n", "line 2"),
        ("3\n-4\n", "line 2"),
        ("nan\n", "line 1"),
        ("1\n" + 30 * "9", "line 2"),
        (b"1\n2\n\x00\xff", "line 3"),
    ],
)
def test_malformed_schedules_are_refused_by_line(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(LinkError, match=re.escape(message)):
        read_mahimahi(written(tmp_path, content))
