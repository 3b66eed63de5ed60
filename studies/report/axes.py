"""Scales of a chart: where a value lies, and which values are written beside the axis."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rankcast.errors import ConfigError
from rankcast.records import FloatArray


@dataclass(frozen=True, slots=True)
class Scale:
    """One axis.

    Attributes:
        low: value at its beginning.
        high: value at its end.
        log: whether equal factors are equally long.
    """

    low: float
    high: float
    log: bool = False

    @classmethod
    def of(cls, values: Iterable[float], *, log: bool = False, room: float = 0.0) -> Scale:
        """Return the scale that spans values, with some room as a share of its length.

        Raises:
            ConfigError: no finite value, or one that is not positive on a logarithmic scale.
        """
        found = np.array([v for v in values if math.isfinite(v)], dtype=np.float64)
        if not found.size:
            raise ConfigError("An axis needs a finite number.")
        if log and found.min() <= 0:
            raise ConfigError(f"A logarithmic axis needs positive numbers, got {found.min()}.")
        low, high = (math.log10(v) if log else float(v) for v in (found.min(), found.max()))
        more = room * (high - low) if high > low else max(abs(high), 1.0) * 0.05
        low, high = low - more, high + more
        return cls(10.0**low, 10.0**high, log) if log else cls(low, high)

    def place(self, values: ArrayLike) -> FloatArray:
        """Return where values lie, from 0 at the beginning to 1 at the end."""
        x = np.asarray(values, dtype=np.float64)
        low, high = self.low, self.high
        if self.log:
            x, low, high = np.log10(np.maximum(x, 1e-300)), math.log10(low), math.log10(high)
        return np.clip((x - low) / (high - low), 0.0, 1.0)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Return at most about so many round values with their words."""
        values = self._log_ticks(most) if self.log else self._even_ticks(most)
        if self.log:
            return [(v, f"{v:,.10g}" if v >= 1e-4 else f"{v:.0e}") for v in values]
        step = values[1] - values[0] if len(values) > 1 else 1.0
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return [(v, f"{v + 0.0:,.{decimals}f}".replace("-", "−")) for v in values]

    def _even_ticks(self, most: int) -> list[float]:
        rough = (self.high - self.low) / max(most, 1)
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(m * size for m in (1, 2, 5, 10) if m * size >= rough * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(number * step, 12) for number in range(first, last + 1)]

    def _log_ticks(self, most: int) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 5), (1, 3), (1,)):
            values = [f * 10.0**d for d in decades for f in factors]
            values = [float(f"{v:.6g}") for v in values if self.low <= v <= self.high]
            if len(values) <= most:
                return values
        return values[:: -(-len(values) // most)]
