"""How fast a device may ask: a bandwidth cap, and how long it waits after a failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rankcast.errors import ConfigError

BURST_S = 0.05
"""Seconds of the cap that may come at once."""


class TokenBucket:
    """Keeps the mean rate below a cap: bits are taken as they come, debts are waited for.

    Args:
        max_bps: the cap [bit/s]; None for none.
        clock: gives seconds that never run backwards.

    Raises:
        ConfigError: a cap that is not positive.
    """

    def __init__(self, max_bps: float | None, clock: Callable[[], float]) -> None:
        if max_bps is not None and not max_bps > 0:
            raise ConfigError(f"A bandwidth cap is positive [bit/s], got {max_bps}.")
        self._max_bps, self._clock = max_bps, clock
        self._tokens = 0.0 if max_bps is None else BURST_S * max_bps
        self._at = clock()

    def take(self, bits: float) -> float:
        """Count bits that came and return how long to wait before the next ones [s]."""
        if self._max_bps is None:
            return 0.0
        now = self._clock()
        filled = self._tokens + (now - self._at) * self._max_bps
        self._tokens = min(filled, BURST_S * self._max_bps) - bits
        self._at = now
        return max(0.0, -self._tokens / self._max_bps)


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait after the n-th failure in a row: first · 2ⁿ⁻¹, bounded and jittered.

    The jitter is between half and the whole of it, so that devices which lost the same server do
    not come back together.

    Attributes:
        n_tries: failures in a row, without a byte in between, after which to give up.
        first_s: before the second try [s].
        longest_s: between any two [s].
    """

    n_tries: int = 6
    first_s: float = 0.5
    longest_s: float = 30.0

    def wait_s(self, n_failures: int, rng: np.random.Generator, asked_s: float = 0.0) -> float:
        """Return the pause [s]; `asked_s` is what a server asked for with Retry-After."""
        bound = min(self.longest_s, self.first_s * 2.0 ** min(n_failures - 1, 60))
        return max(bound * rng.uniform(0.5, 1.0), min(asked_s, self.longest_s))
