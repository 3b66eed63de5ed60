"""A loss that falls with every rank, and how it is fitted to probes.

Shapes: `P` probed plans, `N` projections, `R` = r_max.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self, get_args

import numpy as np

from rankcast.errors import ConfigError, nearest
from rankcast.records import FloatArray, IntArray

LossLink = Literal["identity", "exp"]
"""How the sum of gains becomes a loss: `identity` subtracts it, `exp` lets it saturate."""

_DIGITS = 6


@dataclass(frozen=True)
class MonotoneUtility:
    """U(r) = offset + amplitude·h(s), s = Σ_m Σ_{i ≤ r_m} gains[m, i].

    Attributes:
        link: `identity`: h(s) = -s, an additive utility whose offset is the loss at rank 0;
            `exp`: h(s) = exp(-s), where the offset is the loss that no rank removes.
        offset: [nats].
        amplitude: not negative [nats]; 1 for `identity` by convention.
        gains: (N, R), not negative.

    Raises:
        ConfigError: an unknown link, or values that would not make a falling loss.
    """

    link: LossLink
    offset: float
    amplitude: float
    gains: FloatArray

    def __post_init__(self) -> None:
        """Refuse what does not fall with the ranks."""
        known = get_args(LossLink)
        if self.link not in known:
            raise ConfigError(f"There is no loss link {self.link!r}{nearest(self.link, known)}.")
        gains = np.asarray(self.gains, dtype=np.float64)
        finite = np.isfinite(gains).all() and np.isfinite([self.offset, self.amplitude]).all()
        if gains.ndim != 2 or not finite or (gains < 0).any() or self.amplitude < 0:
            raise ConfigError(
                f"A monotone utility needs (N, R) gains and an amplitude that are finite and not "
                f"negative; got gains of shape {gains.shape} and amplitude {self.amplitude}."
            )
        object.__setattr__(self, "gains", gains)

    @cached_property
    def removed(self) -> FloatArray:
        """(N, R + 1) sum of the gains of each projection at each rank."""
        return np.concatenate([np.zeros((len(self.gains), 1)), self.gains.cumsum(axis=1)], axis=1)

    def loss(self, ranks: IntArray) -> FloatArray:
        """Return (B,) task loss of (B, N) ranks."""
        n, choices = self.removed.shape
        total = self.removed.ravel().take(np.asarray(ranks) + np.arange(n) * choices).sum(axis=1)
        bent = np.exp(-total) if self.link == "exp" else -total
        return self.offset + self.amplitude * bent

    def to_plain(self) -> dict[str, Any]:
        """Return JSON values, rounded to 6 significant digits."""
        return {
            "link": self.link,
            "offset": significant(self.offset),
            "amplitude": significant(self.amplitude),
            "gains": [[significant(gain) for gain in row] for row in self.gains.tolist()],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Return what `to_plain` described."""
        gains = np.array(plain["gains"], dtype=np.float64)
        return cls(plain["link"], float(plain["offset"]), float(plain["amplitude"]), gains)


def significant(value: float) -> float:
    """Return a number rounded to 6 significant digits."""
    return float(f"{value:.{_DIGITS}g}")
