"""Readers of measured traces: tables with time stamps, rows at a fixed pace, packet schedules.

| format | a line | example |
|---|---|---|
| CSV (`read_csv`) | time stamp and value under a header | `2020.01.16_10.43.34,…,9.0,…,17027` |
| rows (`read_throughput_rows`) | throughput and its unit, one line a second | `0.27,Mbits/sec` |
| Mahimahi (`read_mahimahi`) | millisecond at which a 1,500-byte packet may leave | `119996` |

Every line that cannot be read is refused by file and line.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from rankcast.errors import LinkError, nearest
from rankcast.link.traces import Trace, TraceKind, check_value
from rankcast.records import IntArray

PACKET_BITS = 12_000
"""Of a Mahimahi packet: 1,500 bytes."""
UNITS_BPS = {"bits/sec": 1.0, "kbits/sec": 1e3, "mbits/sec": 1e6, "gbits/sec": 1e9}
"""Units of throughput rows, in lower case; a file may change between them from row to row."""
_MISSING = ("", "-")


def read_csv(
    path: Path,
    kind: TraceKind,
    time_column: str,
    value_column: str,
    *,
    scale: float = 1.0,
    time_format: str | None = None,
) -> Trace:
    """Read a table with a header and a time stamp in every row.

    Rows with the same stamp become one with the mean of their values (of SNR, the mean in dB).
    Rows whose value or stamp is empty or `-` are skipped and counted. Stamps that skip leave gaps,
    for which see `Trace.sampled`.

    Args:
        path: the file, UTF-8.
        kind: what the column holds.
        time_column: name of the column of time stamps.
        value_column: name of the column of SNR [dB] or throughput.
        scale: what a value is multiplied with to give dB or bit/s, such as 1e3 for kbit/s.
        time_format: of the stamps, for `datetime.strptime`; None for seconds.

    Raises:
        LinkError: no such file, or none of text; a column that is not there; a stamp or value that
            cannot be read or lies before the one above it; fewer than two different stamps.
    """
    clock, cells = _clock(time_format), _cells(path, time_column, value_column)
    stamps_s: list[float] = []
    values: list[float] = []
    skipped, last_s = 0, -math.inf
    for where, stamp, cell in cells:
        if stamp not in _MISSING:
            now_s = clock(stamp, where)
            if now_s < last_s:
                raise LinkError(f"{where}: {stamp} is before the row above; sort the rows by time.")
            last_s = now_s
        if stamp in _MISSING or cell in _MISSING:
            skipped += 1
            continue
        stamps_s.append(last_s)
        values.append(_value(kind, cell, scale, where))
    return _averaged(path, kind, stamps_s, values, skipped)


def read_throughput_rows(path: Path, interval_s: float = 1.0) -> Trace:
    """Read rows of `number,unit`, one at every interval; each row names its own unit.

    Rows without a number (empty or `-`) are skipped and counted, and their time passes.

    Args:
        path: the file, UTF-8.
        interval_s: time from row to row [s].

    Raises:
        LinkError: no such file, or none of text; a row that is no number with a unit of
            `UNITS_BPS`; no row; an interval that is not positive.
    """
    if not 0 < interval_s < math.inf:
        raise LinkError(f"Rows must be a positive number of seconds apart, got {interval_s}.")
    lines = [line.strip() for line in _text(path).rstrip().split("\n")]
    at, values = [], []
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        cell, comma, unit = (part.strip() for part in line.partition(","))
        if cell in _MISSING and line:
            continue
        if not comma or unit.lower() not in UNITS_BPS:
            raise LinkError(
                f"{where}: {line[:40]!r} is no throughput with one of the units "
                f"{', '.join(UNITS_BPS)}."
            )
        at.append(number - 1)
        values.append(_value("throughput", cell, UNITS_BPS[unit.lower()], where))
    if not values:
        raise LinkError(f"{path} holds no throughput at all.")
    time_s = interval_s * (np.array(at) - at[0])
    duration_s = interval_s * (at[-1] - at[0] + 1)
    skipped = len(lines) - len(values)
    return Trace(time_s, np.array(values), "throughput", duration_s, str(path), skipped)


def read_mahimahi(path: Path, bin_s: float = 1e-3) -> Trace:
    """Read a packet schedule: each line a millisecond at which 1,500 bytes may leave.

    The schedule starts again at its last stamp, which is therefore the trace's duration. A stamp
    counts in the bin that it falls into, those of the end in the last bin; the last bin is shorter
    where the duration is no multiple of the others.

    Args:
        path: the file.
        bin_s: width of a bin, whole milliseconds [s].

    Raises:
        LinkError: no such file, or none of text; a line that is no whole number of milliseconds or
            lies before the one above it; a schedule without duration; an impossible bin.
    """
    bin_ms = round(bin_s * 1e3) if math.isfinite(bin_s) else 0
    if bin_ms < 1 or abs(bin_s * 1e3 - bin_ms) > 1e-6:
        raise LinkError(f"A bin must be whole milliseconds and at least one, got {bin_s} s.")
    stamps_ms = _schedule_ms(path)
    end_ms = int(stamps_ms[-1])
    n_bins = -(-end_ms // bin_ms)
    packets = np.bincount(np.minimum(stamps_ms // bin_ms, n_bins - 1), minlength=n_bins)
    starts_s = np.arange(n_bins) * bin_ms / 1e3
    rate_bps = packets * PACKET_BITS / np.diff(starts_s, append=end_ms / 1e3)
    return Trace(starts_s, rate_bps, "throughput", end_ms / 1e3, str(path))


def _schedule_ms(path: Path) -> IntArray:
    stamps_ms: list[int] = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        text, where = line.strip(), f"{path}, line {number}"
        if not text:
            continue
        if not (text.isascii() and text.isdigit() and len(text) < 16):
            raise LinkError(f"{where}: {text[:40]!r} is no whole number of milliseconds.")
        if stamps_ms and int(text) < stamps_ms[-1]:
            raise LinkError(f"{where}: {text} ms is before the line above.")
        stamps_ms.append(int(text))
    if not stamps_ms or not stamps_ms[-1]:
        raise LinkError(f"{path}: the last stamp of a packet schedule must be above 0 ms.")
    return np.array(stamps_ms, dtype=np.int64)


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise LinkError(f"The trace {path} cannot be read: {error.strerror}.") from error
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise LinkError(f"{path}, line {line}: this is no text in UTF-8.") from error


def _cells(path: Path, time_column: str, value_column: str) -> Iterator[tuple[str, str, str]]:
    """Yield where each row stands and its cells of two columns."""
    rows = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    at: list[int] = []
    header: list[str] = []
    try:
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if not at:
                header = [name.strip() for name in row]
                at = [_column(where, header, name) for name in (time_column, value_column)]
            elif row:
                if len(row) != len(header):
                    raise LinkError(f"{where}: {len(row)} cells under {len(header)} columns.")
                yield where, row[at[0]].strip(), row[at[1]].strip()
    except csv.Error as error:
        raise LinkError(f"{path}, line {rows.line_num}: this is no CSV ({error}).") from error


def _column(where: str, header: list[str], name: str) -> int:
    if name not in header:
        found = ", ".join(header)[:200] or "nothing"
        raise LinkError(
            f"{where}: there is no column {name!r}{nearest(name, header)}; the header has {found}."
        )
    return header.index(name)


def _clock(time_format: str | None) -> Callable[[str, str], float]:
    """Return what turns a stamp, and where it stands, into seconds."""

    def seconds(stamp: str, where: str) -> float:
        try:
            if time_format is None:
                now_s = float(stamp)
            else:
                moment = datetime.strptime(stamp, time_format)  # noqa: DTZ007 - differences matter
                now_s = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except ValueError as error:
            wanted = "a number of seconds" if time_format is None else f"of the form {time_format}"
            raise LinkError(f"{where}: the time stamp {stamp[:40]!r} is not {wanted}.") from error
        if not math.isfinite(now_s):
            raise LinkError(f"{where}: the time stamp {stamp[:40]!r} is no finite number.")
        return now_s

    return seconds


def _value(kind: TraceKind, cell: str, scale: float, where: str) -> float:
    try:
        value = scale * float(cell)
    except ValueError as error:
        raise LinkError(f"{where}: {cell[:40]!r} is no number.") from error
    check_value(kind, value, where)
    return value


def _averaged(
    path: Path, kind: TraceKind, stamps_s: list[float], values: list[float], skipped: int
) -> Trace:
    """Return the trace with one value, the mean, for each time stamp."""
    time_s, which, counts = np.unique(
        np.array(stamps_s, dtype=np.float64), return_inverse=True, return_counts=True
    )
    if len(time_s) < 2:
        raise LinkError(
            f"{path}: a trace needs values at two different times at least, got {len(values)} "
            f"values at {len(time_s)} ({skipped} rows without one)."
        )
    means = np.bincount(which, weights=values) / counts
    return Trace(time_s - time_s[0], means, kind, name=str(path), skipped=skipped)
