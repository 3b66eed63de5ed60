"""How fast bytes pass a link whose rate changes over time.

Time is virtual here: a shaper says when bytes will have passed, and whoever calls it waits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from rankcast.errors import LinkError
from rankcast.records import FloatArray

_SLACK_S = 0.05
_QUANTUM_S = 0.05
_LEAST_BYTES, _MOST_BYTES = 128, 2**15


@dataclass(frozen=True, eq=False)
class RateSchedule:
    """The rate of a link over time, step by step; after the last step the first comes again.

    Attributes:
        rates_bps: (T,) rate in each step [bit/s].
        step_s: length of a step [s].

    Raises:
        LinkError: no step, a rate that is negative or not finite, or a link that never carries
            anything.
    """

    rates_bps: FloatArray
    step_s: float = 1.0
    _edges_bits: FloatArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the rates and add them up."""
        rates = np.array(self.rates_bps, dtype=np.float64)
        if rates.ndim != 1 or not np.isfinite(rates).all() or (rates < 0).any():
            raise LinkError("The rates of a link are finite numbers of bit/s, at least 0.")
        if not 0 < self.step_s < math.inf or not rates.sum() > 0:
            raise LinkError(
                "A link has steps of positive length and carries something in one of them."
            )
        edges = np.concatenate([[0.0], np.cumsum(rates * self.step_s)])
        object.__setattr__(self, "rates_bps", rates)
        object.__setattr__(self, "_edges_bits", edges)

    @property
    def period_s(self) -> float:
        """Time after which the rates repeat [s]."""
        return len(self.rates_bps) * self.step_s

    def rate_bps(self, at_s: float) -> float:
        """Return the rate at a moment [bit/s]."""
        return float(self.rates_bps[int(at_s % self.period_s / self.step_s) % len(self.rates_bps)])

    def carried_bits(self, until_s: ArrayLike) -> FloatArray:
        """Return how many bits pass from 0 until some moments [s]."""
        rounds, rest_s = np.divmod(np.asarray(until_s, dtype=np.float64), self.period_s)
        times_s = self.step_s * np.arange(len(self._edges_bits))
        return rounds * self._edges_bits[-1] + np.interp(rest_s, times_s, self._edges_bits)

    def passed_at_s(self, start_s: float, bits: float) -> float:
        """Return when bits that start at a moment have passed [s]."""
        total = float(self._edges_bits[-1])
        rounds, rest = divmod(float(self.carried_bits(start_s)) + bits, total)
        step = int(np.searchsorted(self._edges_bits, rest, side="left"))
        if step == 0:  # the last bit of a round passes at the end of its last step that carries
            rounds, step, rest = rounds - 1, int(np.argmax(self._edges_bits >= total)), total
        over = rest - self._edges_bits[step - 1]
        inside_s = over / self.rates_bps[step - 1]
        return max(start_s, rounds * self.period_s + (step - 1) * self.step_s + float(inside_s))


class Shaper:
    """One direction of a link: bytes leave in the order in which they come.

    Args:
        schedule: the rate.
    """

    def __init__(self, schedule: RateSchedule) -> None:
        self.schedule = schedule
        self.n_bytes = 0
        self._free_s = 0.0

    def send(self, n_bytes: int, now_s: float) -> float:
        """Take bytes and return when the last of them has passed [s].

        A caller that comes late by less than 50 ms to a busy link loses nothing of it.
        """
        start_s = max(self._free_s, now_s - _SLACK_S, 0.0)
        self._free_s = self.schedule.passed_at_s(start_s, 8.0 * n_bytes)
        self.n_bytes += n_bytes
        return self._free_s

    def quantum_bytes(self, now_s: float) -> int:
        """Return how many bytes to pass on at once: what takes about 50 ms."""
        rate = self.schedule.rate_bps(max(now_s, self._free_s))
        return int(min(max(rate * _QUANTUM_S / 8, _LEAST_BYTES), _MOST_BYTES))
