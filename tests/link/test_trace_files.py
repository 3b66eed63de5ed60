"""Trace files as drive-test tools, pandas, NumPy and spreadsheets write them."""

from __future__ import annotations

import csv
import io
import logging
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankcast.config.link import LinkConfig, TraceConfig
from rankcast.errors import LinkError
from rankcast.link.build import snr_process
from rankcast.link.replay import ReplayedSnr
from rankcast.link.traces import Trace, read_csv, read_mahimahi, read_throughput_rows

HEADER = "time_s,snr_db"
MISSING = ("", "-", "nan", "NaN", "NAN", "-nan", "NA", "N/A", "#N/A", "null", "None", " nan ")
ENDS = ("\n", "\r\n", "\r")


def snr_of(content: str | bytes, time_format: str | None = None) -> Trace:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_csv(path, "snr", "time_s", "snr_db", time_format=time_format)


@settings(max_examples=80)
@given(
    st.lists(st.floats(-40, 40).map(lambda x: round(x, 3)), min_size=2, max_size=8),
    st.sampled_from(ENDS),
    st.sampled_from(["utf-8", "utf-8-sig"]),
    st.tuples(
        st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
        st.sampled_from(["", "cell", "cell é", 'a "cell", and more']),
    ),
    st.lists(st.sampled_from(MISSING), max_size=3),
)
def test_every_dialect_gives_the_same_trace(
    values: list[float], end: str, encoding: str, quoted: tuple[Any, str], missing: list[str]
) -> None:
    quoting, more = quoted
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator=end, quoting=quoting)
    writer.writerow(["id", "snr_db", "remark", "time_s"])
    rows = [[7, value, more, 0.5 * k] for k, value in enumerate(values)]
    writer.writerows([*rows, *([7, cell, more, 1e3] for cell in missing)])
    trace = snr_of(file.getvalue().encode(encoding))
    assert trace.values.tolist() == values
    assert trace.time_s.tolist() == [0.5 * k for k in range(len(values))]
    assert trace.skipped == len(missing)


@pytest.mark.parametrize("cell", MISSING)
def test_missing_values_and_stamps_are_skipped_and_counted_once(
    cell: str, caplog: pytest.LogCaptureFixture
) -> None:
    trace = snr_of(f"{HEADER}\n0,5\n1,{cell}\n{cell},9\n2,{cell}\n3,7\n")
    assert (trace.time_s.tolist(), trace.values.tolist(), trace.skipped) == ([0, 3], [5, 7], 3)
    (record,) = caplog.records
    assert record.getMessage().endswith("trace.csv: rows without a value were skipped: 3.")
    assert (record.name, record.levelno) == ("rankcast.link", logging.WARNING)


def test_nothing_is_said_where_nothing_is_missing(caplog: pytest.LogCaptureFixture) -> None:
    assert snr_of(f"{HEADER}\n0,5\n\n1,6\n").skipped == 0  # an empty line is no row
    assert not caplog.records


def test_rows_at_a_fixed_pace_may_lack_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbf1,Mbits/sec\rnan,Mbits/sec\rNA,\r2,Mbits/sec\r")
    trace = read_throughput_rows(path)
    assert (trace.time_s.tolist(), trace.values.tolist()) == ([0, 3], [1e6, 2e6])
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: rows without a value were skipped: 2."
    ]


@pytest.mark.parametrize("end", ENDS)
def test_schedules_have_any_line_ends(tmp_path: Path, end: str) -> None:
    path = tmp_path / "schedule"
    path.write_bytes(end.join(["1", "2", "2", ""]).encode())
    assert read_mahimahi(path).duration_s == 0.002


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0,inf\n1,5\n", "line 2: a snr must be a finite number, got inf"),
        ("0,5\n1,-Infinity\n", "line 3: a snr must be a finite number"),
        ("0,1e999\n1,5\n", "line 2: a snr must be a finite number"),
        ("0,5\n1e999,5\n", "line 3: the time stamp '1e999' is no finite number"),
        ('0,"12,5"\n1,5\n', "line 2: '12,5' is no number; write decimals with a point, not a co"),
        ('"0,5",5\n1,5\n', "'0,5' is not a number of seconds; write decimals with a point"),
        ("0,12,5\n1,13,5\n", "line 2: 3 cells under 2 columns. Look for commas in decimals"),
        ("0,5,\n1,6,\n", "line 2: 3 cells under 2 columns. Look for commas"),
        ("0,1_2\n1,5\n", "line 2: '1_2' is no number."),
        ("0,5 dB\n1,5\n", "line 2: '5 dB' is no number."),
        ("2024-03-31T01:59:50,5\n", "is not a number of seconds; of dates, give the format"),
        ("0,5\n1,\0\n", "line 3: there is a NUL byte"),
    ],
)
def test_cells_that_are_no_numbers_are_named(rows: str, message: str) -> None:
    with pytest.raises(LinkError) as caught:
        snr_of(f"{HEADER}\n{rows}")
    assert message in str(caught.value)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_are_named(separator: str) -> None:
    rows = [HEADER.replace(",", separator), f"0,5{separator}8,25", f"1,0{separator}9,5"]
    with pytest.raises(LinkError) as caught:
        snr_of("\n".join(rows))
    assert f"line 1 has no column 'time_s': the columns seem to be separated by {separator!r}" in (
        str(caught.value)
    )
    assert "commas between columns, and points in decimals" in str(caught.value)


def test_lines_of_nothing_but_spaces_are_no_rows() -> None:
    trace = snr_of(f"\n \n{HEADER}\n\n0,5\n\t\n1,6\n   \n")
    assert (trace.values.tolist(), trace.skipped) == ([5.0, 6.0], 0)
    with pytest.raises(LinkError, match=r"no CSV .*Commas separate its columns"):
        snr_of('"time_s";"snr_db"\n0;5\n1;6\n')


def test_a_column_that_is_there_twice_is_refused() -> None:
    with pytest.raises(LinkError, match=r"line 1: 2 columns are called 'snr_db'\. Rename all but"):
        snr_of("time_s,snr_db,snr_db\n0,1,2\n1,1,2\n")


@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252"]
)
def test_other_encodings_are_named_with_the_remedy(encoding: str) -> None:
    content = f"{HEADER},where\n0,5,Köln\n1,6,Köln\n".encode(encoding)
    with pytest.raises(LinkError, match=r"not UTF-8\..* iconv -f \S+ -t UTF-8"):
        snr_of(content)


@pytest.mark.parametrize(
    ("factor", "unit", "divisor"),
    [(1e3, "milli", "1000"), (1e6, "micro", "1e6"), (1e9, "nano", "1e9")],
)
@pytest.mark.parametrize("n_rows", [1, 3])
def test_stamps_since_1970_in_smaller_units_are_named(
    factor: float, unit: str, divisor: str, n_rows: int
) -> None:
    stamps = [int((1_700_000_000 + k) * factor) for k in range(n_rows)]
    apart = f"{factor:g}" if n_rows > 1 else "0"
    with pytest.raises(LinkError) as caught:
        snr_of("\n".join([HEADER, *(f"{stamp},5" for stamp in stamps)]))
    assert f"such as {stamps[-1]}, {apart} apart, look like {unit}seconds since 1970. Divide " in (
        str(caught.value)
    )
    assert f"by {divisor} to get seconds" in str(caught.value)
    # Seconds since 1970 are seconds, and stamps with a format of their own are what they say.
    assert snr_of(f"{HEADER}\n1700000000,5\n1700000001.5,6\n").time_s.tolist() == [0.0, 1.5]
    days = snr_of(f"{HEADER}\n20240331,5\n20240401,6\n", time_format="%Y%m%d")
    assert days.time_s.tolist() == [0.0, 86400.0]


@settings(max_examples=60)
@given(st.floats(0.01, 60.0), st.integers(2, 30))
def test_rows_at_any_usual_pace_are_one_stretch(interval_s: float, n_rows: int) -> None:
    times = interval_s * np.arange(n_rows, dtype=np.float64)
    trace = Trace(times, np.arange(n_rows, dtype=float), "snr")
    np.testing.assert_allclose(trace.held_s(), interval_s)
    assert trace.sampled(interval_s).tolist() == list(range(n_rows))


def test_the_longest_gap_follows_the_usual_one_unless_it_is_given() -> None:
    # A row every 10 s; one is missing (20 s), then three are (40 s).
    times = [0.0, 10.0, 20.0, 40.0, 50.0, 90.0, 100.0]
    trace = Trace(np.array(times), np.arange(7.0), "snr")
    assert trace.held_s().tolist() == [10, 10, 20, 10, 10, 10, 10]
    assert trace.held_s(10.0).tolist() == [10, 10, 10, 10, 10, 10, 10]
    assert trace.held_s(40.0).tolist() == [10, 10, 20, 10, 40, 10, 10]
    assert trace.sampled(10.0).tolist() == [0, 1, 2, 2, 3, 4, 5, 6]
    with pytest.raises(LinkError, match=r"10 s apart, so that a longest gap of 9\.0 s would leave"):
        trace.sampled(1.0, 9.0)
    # Below 2.5 s it stays at 5 s.
    assert Trace(np.array([0.0, 1, 2, 7, 8, 13.1]), np.arange(6.0), "snr").held_s().tolist() == (
        [1, 1, 5, 1, 1, 1]
    )


def test_rows_that_are_too_far_apart_need_a_word() -> None:
    trace = Trace(np.array([0.0, 500.0, 1000.0]), np.arange(3.0), "snr")
    with pytest.raises(LinkError, match=r"500 s apart. If .* milliseconds.* --trace-gap-s, or the"):
        trace.held_s()
    assert trace.held_s(500.0).tolist() == [500.0] * 3
    assert trace.held_s(math.inf).tolist() == [500.0] * 3
    assert Trace(np.zeros(1), np.ones(1), "snr", 1e4).held_s().tolist() == [1e4]  # has no gap


def test_a_run_can_set_the_longest_gap(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(f"{HEADER}\n0,1\n90,2\n180,3\n360,4\n", "utf-8")

    def replayed(max_gap_s: float | None) -> list[float]:
        trace = TraceConfig(str(path), step_s=90.0, max_gap_s=max_gap_s)
        process = snr_process(LinkConfig(process="trace", trace=trace))
        assert isinstance(process, ReplayedSnr)
        return process.values_db.tolist()

    assert replayed(90.0) == [1, 2, 3, 4]
    assert replayed(180.0) == [1, 2, 3, 3, 4]
    with pytest.raises(LinkError, match="90 s apart"):
        replayed(None)
