"""How bits pass the links of many devices at once: `RateSchedule` for rows of rates."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rankcast.errors import LinkError
from rankcast.records import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class RateRows:
    """The rates of n links over time; after the last step the first comes again.

    Attributes:
        rates_bps: (n, T) rate of each link in each step [bit/s].
        step_s: length of a step [s].

    Raises:
        LinkError: a rate that is negative or not finite, or a link that never carries anything.
    """

    rates_bps: FloatArray
    step_s: float = 1.0
    _edges_bits: FloatArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the rates and add them up."""
        rates = self.rates_bps
        if not np.isfinite(rates).all() or (rates < 0).any() or not (rates.sum(axis=1) > 0).all():
            raise LinkError("A link has finite rates of at least 0 and carries something.")
        edges = np.zeros((rates.shape[0], rates.shape[1] + 1))
        np.cumsum(rates * self.step_s, axis=1, out=edges[:, 1:])
        object.__setattr__(self, "_edges_bits", edges)

    @property
    def period_s(self) -> float:
        """Time after which the rates repeat [s]."""
        return self.rates_bps.shape[1] * self.step_s

    def rate_bps(self, rows: IntArray, at_s: FloatArray) -> FloatArray:
        """Return the rates of some links, each at a moment of its own [bit/s]."""
        return self.rates_bps[rows, self._step(at_s % self.period_s)]

    def carried_bits(self, rows: IntArray, until_s: FloatArray) -> FloatArray:
        """Return how many bits pass some links from 0 until a moment of its own each."""
        rounds, rest_s = np.divmod(until_s, self.period_s)
        step = self._step(rest_s)
        inside = (rest_s - step * self.step_s) * self.rates_bps[rows, step]
        return rounds * self._edges_bits[rows, -1] + self._edges_bits[rows, step] + inside

    def passed_at_s(self, rows: IntArray, start_s: FloatArray, bits: FloatArray) -> FloatArray:
        """Return when bits that start at a moment have passed [s]; each link has its own."""
        total = self._edges_bits[rows, -1]
        rounds, rest = np.divmod(self.carried_bits(rows, start_s) + bits, total)
        at_end = rest <= 0.0  # the last bit of a round passes within that round
        rounds, rest = np.where(at_end, rounds - 1.0, rounds), np.where(at_end, total, rest)
        step = self._step_of_bits(rows, rest)
        inside_s = (rest - self._edges_bits[rows, step]) / self.rates_bps[rows, step]
        return np.maximum(start_s, rounds * self.period_s + step * self.step_s + inside_s)

    def _step(self, rest_s: FloatArray) -> IntArray:
        last = self.rates_bps.shape[1] - 1
        return np.minimum((rest_s / self.step_s).astype(np.intp), last)

    def _step_of_bits(self, rows: IntArray, bits: FloatArray) -> IntArray:
        """Return the first step by whose end so many bits of a round have passed, by bisection."""
        low = np.zeros(len(rows), np.intp)
        high = np.full(len(rows), self.rates_bps.shape[1] - 1, np.intp)
        for _ in range(int(self.rates_bps.shape[1]).bit_length()):
            middle = (low + high) // 2
            is_enough = self._edges_bits[rows, middle + 1] >= bits
            high = np.where(is_enough, middle, high)
            low = np.where(is_enough, low, np.minimum(middle + 1, high))
        return high
