"""How often a device may ask: a token bucket for each, in memory, for each process."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from rankcast.errors import ConfigError

MOST_BUCKETS = 100_000
"""The one used longest ago is dropped, which makes it full again."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A bucket's size and how fast it fills.

    Attributes:
        per_s: requests a second in the long run.
        burst: requests at once.

    Raises:
        ConfigError: a rate not positive, or a burst below 1.
    """

    per_s: float
    burst: int

    def __post_init__(self) -> None:
        """Refuse what lets nobody in."""
        if not self.per_s > 0 or self.burst < 1:
            raise ConfigError(f"A rate is positive and its burst at least 1, got {self}.")


class Buckets:
    """A bucket for each name. Threads may share it."""

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> float:
        """Take one; return 0, or how long to wait for the next where none is left [s]."""
        with self._lock:
            now = self._clock()
            left, then = self._left.pop(name, (float(self._rate.burst), now))
            left = min(float(self._rate.burst), left + (now - then) * self._rate.per_s)
            wait_s = 0.0 if left >= 1 else (1 - left) / self._rate.per_s
            self._left[name] = (left if wait_s else left - 1, now)
            if len(self._left) > MOST_BUCKETS:
                self._left.popitem(last=False)
            return wait_s
