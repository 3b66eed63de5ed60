"""Measured traces: values at times, and one value for each decision.

SNR and throughput are different things: neither is ever computed from the other. How a trace
becomes a process is in `rankcast.link.replay`, how files become traces in
`rankcast.link.trace_files`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rankcast.errors import LinkError
from rankcast.records import FloatArray, IntArray

TraceKind = Literal["snr", "throughput"]
"""What was measured: SNR [dB], or throughput [bit/s]."""
LARGEST_MEASURED_DB = 100.0
"""No receiver reports more; what does is another column or another unit."""
LONGEST_GAP_S = 5.0
"""Where values are further apart, something is missing, unless one says otherwise."""
_ROUNDING = 1e-9  # of a step: times that are equal but for rounding count as equal


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What was measured, and when.

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
        _check_times(self.name, time_s)
        for place, value in enumerate(values):
            check_value(self.kind, float(value), f"{self.name}, value {place + 1}")
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

    def held_s(self, max_gap_s: float = LONGEST_GAP_S) -> FloatArray:
        """Return for how long each value holds [s], (T,).

        Until the next value, but where that is later than `max_gap_s`, something is missing: the
        value then holds for the usual interval, and the rest is cut out.

        Args:
            max_gap_s: longest time between two values of one stretch [s].

        Raises:
            LinkError: max_gap_s is shorter than the usual interval.
        """
        usual_s = self.interval_s
        if not max_gap_s >= usual_s * (1 - _ROUNDING):
            raise LinkError(
                f"{self.name}: values are {usual_s:g} s apart, so that a longest gap of "
                f"{max_gap_s} s would leave nothing; allow a longer one."
            )
        held = np.diff(self.time_s, append=self.duration_s)
        return np.where(held > max_gap_s * (1 + _ROUNDING), usual_s, held)

    def sampled(self, step_s: float, max_gap_s: float = LONGEST_GAP_S) -> FloatArray:
        """Return one value for each decision.

        Gaps longer than `max_gap_s` are cut out: nothing is invented there, and the steps begin
        anew after each. Of SNR, the last value before the decision. Of throughput, the mean over
        the step that begins with the decision, so that no bit of a whole step is lost or added;
        what is left at the end of a stretch, less than a step, is dropped.

        Args:
            step_s: time between decisions [s].
            max_gap_s: longest time between two values of one stretch [s].

        Raises:
            LinkError: a step that is not positive and finite; no stretch of throughput as long as
                a step; max_gap_s shorter than the usual interval.
        """
        if not 0 < step_s < math.inf:
            raise LinkError(f"The step must be a positive number of seconds, got {step_s}.")
        held = self.held_s(max_gap_s)
        ends_s = self.time_s + held
        cuts = 1 + np.flatnonzero(self.time_s[1:] - ends_s[:-1] > _ROUNDING * held[:-1])
        sample = self._last_values if self.kind == "snr" else self._step_means
        stretches = np.split(np.arange(len(self.time_s)), cuts)
        values = np.concatenate([sample(at, float(ends_s[at[-1]]), step_s) for at in stretches])
        if not len(values):
            raise LinkError(
                f"{self.name}: no stretch without a gap is as long as a step of {step_s:g} s; "
                f"take shorter steps or allow longer gaps than {max_gap_s:g} s."
            )
        return values

    def _last_values(self, at: IntArray, end_s: float, step_s: float) -> FloatArray:
        """Return the value in force at every step of a stretch."""
        time_s = self.time_s[at]
        n_steps = max(math.ceil((end_s - time_s[0]) / step_s - _ROUNDING), 1)
        moments = time_s[0] + step_s * (np.arange(n_steps) + _ROUNDING)
        return self.values[at][np.searchsorted(time_s, moments, side="right") - 1]

    def _step_means(self, at: IntArray, end_s: float, step_s: float) -> FloatArray:
        """Return the mean over every whole step of a stretch."""
        edges_s = np.append(self.time_s[at], end_s)
        bits = np.concatenate([[0.0], np.cumsum(self.values[at] * np.diff(edges_s))])
        n_steps = math.floor((end_s - edges_s[0]) / step_s + _ROUNDING)
        carried = np.interp(edges_s[0] + step_s * np.arange(n_steps + 1), edges_s, bits)
        return np.maximum(np.diff(carried), 0.0) / step_s


def check_value(kind: TraceKind, value: float, where: str) -> None:
    """Refuse what cannot have been measured.

    Args:
        kind: what the value is.
        value: SNR [dB] or throughput [bit/s].
        where: file and line, for the message.

    Raises:
        LinkError: not a finite number, a negative throughput, or an SNR beyond 100 dB.
    """
    if not math.isfinite(value):
        raise LinkError(f"{where}: a {kind} must be a finite number, got {value}.")
    if kind == "throughput" and value < 0:
        raise LinkError(f"{where}: a throughput must be at least 0 bit/s, got {value:g}.")
    if kind == "snr" and abs(value) > LARGEST_MEASURED_DB:
        raise LinkError(
            f"{where}: {value:g} dB is no SNR (at most {LARGEST_MEASURED_DB:g} dB either way); "
            f"is it another column, or another unit?"
        )


def _check_times(name: str, time_s: FloatArray) -> None:
    if not np.isfinite(time_s).all() or time_s[0] != 0.0 or not (np.diff(time_s) > 0).all():
        raise LinkError(f"{name}: times must start at 0 s and increase from value to value.")
