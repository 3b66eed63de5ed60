"""Measured traces: read from files, and sampled once for each decision.

SNR and throughput are different things: neither is ever computed from the other. How a trace
becomes a process is in `rankcast.link.replay`.

| file | a line | example |
|---|---|---|
| CSV (`read_csv`) | time stamp and value under a header | `2020.01.16_10.43.34,…,9.0,…,17027` |
| rows (`read_throughput_rows`) | throughput and its unit, one line a second | `0.27,Mbits/sec` |
| Mahimahi (`read_mahimahi`) | millisecond at which a 1,500-byte packet may leave | `119996` |

Every line that cannot be read is refused by file and line.
"""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from rankcast.config.link import TraceKind
from rankcast.errors import LinkError
from rankcast.plain_text import column_place, read_text
from rankcast.records import FloatArray, IntArray

LARGEST_MEASURED_DB = 100.0
"""No receiver reports more; what does is another column or another unit."""
LONGEST_GAP_S = 5.0
"""Where values are further apart, and twice as far as usual, something is missing."""
LONGEST_USUAL_S = 60.0
"""Where they usually are further apart, the stamps may be in another unit: one has to say so."""
MOST_SAMPLES = 2**27
"""Of a trace, for its decisions: 1 GiB."""
PACKET_BITS = 12_000
"""Of a Mahimahi packet: 1,500 bytes."""
UNITS_BPS = {"bits/sec": 1.0, "kbits/sec": 1e3, "mbits/sec": 1e6, "gbits/sec": 1e9}
"""Units of throughput rows, in lower case; a file may change between them from row to row."""
_MISSING = ("", "-", "nan", "-nan", "na", "n/a", "#n/a", "null", "none")  # in lower case
_SINCE_1970 = ((1e17, "nano", "1e9"), (1e14, "micro", "1e6"), (1e11, "milli", "1000"))
_LOG = logging.getLogger("rankcast.link")
_ROUNDING = 1e-9  # of a step: times that are equal but for rounding count as equal


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Measured values at their times.

    A value holds from its time until the next one, the last until `duration_s`; a throughput is
    the mean over that time.

    Attributes:
        time_s: (T,) from 0, strictly increasing [s].
        values: (T,) SNR [dB] or throughput [bit/s].
        kind: which of the two.
        duration_s: when the last value ends [s]; 0 lets it last as long as the median of the
            others.
        name: where it is from, for messages.
        skipped: rows of the file that held no value.

    Raises:
        LinkError: no value, or shapes that differ; times that do not start at 0 and increase, or
            that end before the last value; a value that is not finite, a negative throughput, an
            SNR beyond `LARGEST_MEASURED_DB`.
    """

    time_s: FloatArray
    values: FloatArray
    kind: TraceKind
    duration_s: float = 0.0
    name: str = "trace"
    skipped: int = 0

    def __post_init__(self) -> None:
        """Check times and values; keep both from being changed."""
        time_s = np.array(self.time_s, dtype=np.float64)
        values = np.array(self.values, dtype=np.float64)
        if time_s.ndim != 1 or time_s.shape != values.shape or not len(time_s):
            raise LinkError(
                f"{self.name}: a trace needs as many times as values and at least one, "
                f"got {time_s.shape} and {values.shape}."
            )
        if not np.isfinite(time_s).all() or time_s[0] != 0.0 or not (np.diff(time_s) > 0).all():
            raise LinkError(
                f"{self.name}: times must start at 0 s and increase from value to value."
            )
        for place, value in enumerate(values):
            _check_value(self.kind, float(value), f"{self.name}, value {place + 1}")
        if len(time_s) == 1 and not self.duration_s:
            raise LinkError(f"{self.name}: give the duration of a trace of a single value.")
        end_s = self.duration_s or float(time_s[-1] + np.median(np.diff(time_s)))
        if not time_s[-1] < end_s < math.inf:
            raise LinkError(
                f"{self.name}: the trace ends after {end_s} s, which must be after its last value "
                f"({time_s[-1]} s)."
            )
        time_s.flags.writeable = values.flags.writeable = False
        object.__setattr__(self, "time_s", time_s)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "duration_s", end_s)

    @property
    def interval_s(self) -> float:
        """The usual time between two values: the median [s]."""
        gaps_s = np.diff(self.time_s)
        return float(np.median(gaps_s)) if len(gaps_s) else self.duration_s

    def held_s(self, max_gap_s: float | None = None) -> FloatArray:
        """Return for how long each value holds [s], (T,).

        Until the next value, but where that is later than `max_gap_s`, something is missing: the
        value then holds for the usual interval, and the rest is cut out.

        Args:
            max_gap_s: longest time between two values of one stretch [s]; None for
                `LONGEST_GAP_S`, or twice the usual interval where that is longer.

        Raises:
            LinkError: max_gap_s is shorter than the usual interval, or None where that is longer
                than `LONGEST_USUAL_S`.
        """
        usual_s, held = self.interval_s, np.diff(self.time_s, append=self.duration_s)
        if len(held) == 1:
            return held
        if max_gap_s is None and usual_s > LONGEST_USUAL_S:
            raise LinkError(
                f"{self.name}: values are {usual_s:g} s apart. If the stamps are in milliseconds, "
                f"divide them by 1000; else say how long a gap may be: --trace-gap-s, or the "
                f"setting link.trace.max_gap_s."
            )
        if max_gap_s is None:
            max_gap_s = max(LONGEST_GAP_S, 2 * usual_s)
        if not max_gap_s >= usual_s * (1 - _ROUNDING):
            raise LinkError(
                f"{self.name}: values are {usual_s:g} s apart, so that a longest gap of "
                f"{max_gap_s} s would leave nothing; allow a longer one."
            )
        return np.where(held > max_gap_s * (1 + _ROUNDING), usual_s, held)

    def sampled(self, step_s: float, max_gap_s: float | None = None) -> FloatArray:
        """Return one value for each decision.

        Longer gaps are cut out (see `held_s`): nothing is invented there, and the steps begin
        anew after each. Of SNR, the last value before the decision. Of throughput, the mean over
        the step that begins with the decision, so that no bit of a whole step is lost or added;
        what is left at the end of a stretch, less than a step, is dropped.

        Args:
            step_s: time between decisions [s].
            max_gap_s: longest time between two values of one stretch [s]; see `held_s`.

        Raises:
            LinkError: a step that is not positive and finite, or so short that there are more than
                `MOST_SAMPLES`; no stretch of throughput as long as a step; values too far apart for
                max_gap_s.
        """
        if not 0 < step_s < math.inf:
            raise LinkError(f"The step must be a positive number of seconds, got {step_s}.")
        held = self.held_s(max_gap_s)
        if not held.sum() / step_s < MOST_SAMPLES:
            raise LinkError(
                f"{self.name}: {held.sum():g} s in steps of {step_s:g} s are too many; take a part "
                f"of the trace, longer steps, or a shorter longest gap."
            )
        ends_s = self.time_s + held
        cuts = 1 + np.flatnonzero(self.time_s[1:] - ends_s[:-1] > _ROUNDING * held[:-1])
        sample = self._last_values if self.kind == "snr" else self._step_means
        stretches = np.split(np.arange(len(self.time_s)), cuts)
        values = np.concatenate([sample(at, float(ends_s[at[-1]]), step_s) for at in stretches])
        if not len(values):
            raise LinkError(
                f"{self.name}: no stretch without a gap is as long as a step of {step_s:g} s; "
                f"take shorter steps or allow longer gaps."
            )
        return values

    def _last_values(self, at: IntArray, end_s: float, step_s: float) -> FloatArray:
        """Return the last value before every step of a stretch."""
        edges_s = np.append(self.time_s[at], end_s) - self.time_s[at[0]]
        first = np.ceil(edges_s / step_s - _ROUNDING).astype(np.int64)
        first[-1] = max(first[-1], 1)
        return np.repeat(self.values[at], np.diff(first))

    def _step_means(self, at: IntArray, end_s: float, step_s: float) -> FloatArray:
        """Return the mean over every whole step of a stretch."""
        edges_s = np.append(self.time_s[at], end_s)
        bits = np.concatenate([[0.0], np.cumsum(self.values[at] * np.diff(edges_s))])
        n_steps = math.floor((end_s - edges_s[0]) / step_s + _ROUNDING)
        carried = np.interp(edges_s[0] + step_s * np.arange(n_steps + 1), edges_s, bits)
        return np.maximum(np.diff(carried), 0.0) / step_s


def _check_value(kind: TraceKind, value: float, where: str) -> None:
    """Refuse what cannot have been measured; `where` names file and line."""
    if not math.isfinite(value):
        raise LinkError(f"{where}: a {kind} must be a finite number, got {value}.")
    if kind == "throughput" and value < 0:
        raise LinkError(f"{where}: a throughput must be at least 0 bit/s, got {value:g}.")
    if kind == "snr" and abs(value) > LARGEST_MEASURED_DB:
        raise LinkError(
            f"{where}: {value:g} dB is no SNR (at most {LARGEST_MEASURED_DB:g} dB either way); "
            f"is it another column, or another unit?"
        )


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
    Rows whose value or stamp is missing (empty, `-`, `nan`, `NA`, …) are skipped; a warning says
    how many. Stamps that skip leave gaps,
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
    stamps_s: list[float] = []
    values: list[float] = []
    skipped, last_s = 0, -math.inf
    for where, stamp, cell in _cells(path, time_column, value_column):
        if stamp.lower() not in _MISSING:
            now_s = _seconds(stamp, time_format, where)
            if now_s < last_s:
                raise LinkError(f"{where}: {stamp} is before the row above; sort the rows by time.")
            last_s = now_s
        if stamp.lower() in _MISSING or cell.lower() in _MISSING:
            skipped += 1
            continue
        stamps_s.append(last_s)
        values.append(_value(kind, cell, scale, where))
    if time_format is None:
        _check_seconds(path, stamps_s)
    return _averaged(path, kind, stamps_s, values, skipped)


def read_throughput_rows(path: Path) -> Trace:
    """Read rows of `number,unit`, one a second; each row names its own unit.

    Rows without a number (empty, `-`, `nan`, `NA`, …) are skipped, and their time passes; a
    warning says how many.

    Args:
        path: the file, UTF-8.

    Raises:
        LinkError: no such file, or none of text; a row that is no number with a unit of
            `UNITS_BPS`; no row.
    """
    lines = [line.strip() for line in _text(path).rstrip().split("\n")]
    at, values = [], []
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        cell, comma, unit = (part.strip() for part in line.partition(","))
        if cell.lower() in _MISSING and line:
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
    duration_s = float(at[-1] - at[0] + 1)
    skipped = len(lines) - len(values)
    time_s = np.array(at, dtype=np.float64) - at[0]
    _warn_of_skipped(path, skipped)
    return Trace(time_s, np.array(values), "throughput", duration_s, str(path), skipped)


def read_mahimahi(path: Path) -> Trace:
    """Read a packet schedule: each line a millisecond at which 1,500 bytes may leave.

    The schedule starts again at its last stamp, which is therefore the trace's duration. The trace
    has one value for each millisecond; packets of the last stamp count in the last one.

    Args:
        path: the file.

    Raises:
        LinkError: no such file, or none of text; a line that is no whole number of milliseconds or
            lies before the one above it; a schedule without duration.
    """
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
    end_ms = stamps_ms[-1]
    packets = np.bincount(np.minimum(stamps_ms, end_ms - 1), minlength=end_ms)
    starts_s = np.arange(end_ms) / 1e3
    rate_bps = packets * PACKET_BITS / np.diff(starts_s, append=end_ms / 1e3)
    return Trace(starts_s, rate_bps, "throughput", end_ms / 1e3, str(path))


def _text(path: Path) -> str:
    return read_text(path, LinkError).replace("\r\n", "\n").replace("\r", "\n")


def _cells(path: Path, time_column: str, value_column: str) -> Iterator[tuple[str, str, str]]:
    """Yield where each row stands and its cells of two columns."""
    rows = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    at: list[int] = []
    header: list[str] = []
    try:
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if len(row) < 2 and not "".join(row).strip():
                continue
            if not at:
                header = [name.strip() for name in row]
                at = [
                    column_place(where, header, n, LinkError) for n in (time_column, value_column)
                ]
                continue
            if len(row) != len(header):
                raise LinkError(
                    f"{where}: {len(row)} cells under {len(header)} columns. Look for commas "
                    f"in decimals, or at the end."
                )
            yield where, row[at[0]].strip(), row[at[1]].strip()
    except csv.Error as error:
        raise LinkError(
            f"{path}, line {rows.line_num}: this is no CSV ({error}). Commas separate its columns."
        ) from error


def _seconds(stamp: str, time_format: str | None, where: str) -> float:
    try:
        if time_format is None:
            now_s = _number(stamp)
        else:
            moment = datetime.strptime(stamp, time_format)  # noqa: DTZ007 - differences matter
            now_s = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except ValueError as error:
        wanted = f"of the form {time_format}."
        if time_format is None:
            wanted = f"a number of seconds{_comma_hint(stamp) or '; of dates, give the format.'}"
        raise LinkError(f"{where}: the time stamp {stamp[:40]!r} is not {wanted}") from error
    if not math.isfinite(now_s):
        raise LinkError(f"{where}: the time stamp {stamp[:40]!r} is no finite number.")
    return now_s


def _check_seconds(path: Path, stamps_s: list[float]) -> None:
    """Refuse stamps that would be seconds of a year above 5000."""
    largest = max(map(abs, stamps_s), default=0.0)
    for above, unit, factor in _SINCE_1970:
        if largest >= above:
            gaps = np.diff(np.unique(stamps_s)) if len(set(stamps_s)) > 1 else np.zeros(1)
            raise LinkError(
                f"{path}: time stamps such as {largest:.0f}, {np.median(gaps):g} apart, look like "
                f"{unit}seconds since 1970. Divide them by {factor} to get seconds."
            )


def _number(cell: str) -> float:
    """Return a number as files hold them, without the underscores of Python."""
    if "_" in cell:
        raise ValueError(cell)
    return float(cell)


def _comma_hint(cell: str) -> str:
    return "; write decimals with a point, not a comma." if "," in cell else ""


def _value(kind: TraceKind, cell: str, scale: float, where: str) -> float:
    try:
        value = scale * _number(cell)
    except ValueError as error:
        hint = _comma_hint(cell) or "."
        raise LinkError(f"{where}: {cell[:40]!r} is no number{hint}") from error
    _check_value(kind, value, where)
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
    _warn_of_skipped(path, skipped)
    means = np.bincount(which, weights=values) / counts
    return Trace(time_s - time_s[0], means, kind, name=str(path), skipped=skipped)


def _warn_of_skipped(path: Path, skipped: int) -> None:
    if skipped:
        _LOG.warning("%s: rows without a value were skipped: %d.", path, skipped)
