"""Token buckets: how often, or how fast, something may happen."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from rankcast.errors import ConfigError

MOST_BUCKETS = 100_000
"""The bucket that was used longest ago is dropped, which makes it full again."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a bucket fills, and how much it holds.

    Attributes:
        per_s: tokens a second in the long run: requests, or bits.
        burst: tokens that may be taken at once.

    Raises:
        ConfigError: one of them is not positive.
    """

    per_s: float
    burst: float

    def __post_init__(self) -> None:
        """Refuse what would never let anything pass."""
        if not self.per_s > 0 or not self.burst > 0:
            raise ConfigError(f"A rate and its burst are positive, got {self}.")


class TokenBucket:
    """A bucket that is full at first. Not for several threads at once.

    Args:
        rate: how it fills.
        clock: gives seconds that never run backwards.
    """

    __slots__ = ("_at_s", "_clock", "_rate", "_tokens")

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._tokens, self._at_s = float(rate.burst), clock()

    def take(self, n: float = 1.0) -> float:
        """Take tokens if there are enough; return 0, or how long to wait until there will be [s].

        For requests that can be refused.
        """
        self._fill()
        if self._tokens < n:
            return (n - self._tokens) / self._rate.per_s
        self._tokens -= n
        return 0.0

    def spend(self, n: float) -> float:
        """Take tokens even if there are too few; return how long to wait until none is owed [s].

        For bytes that have come already.
        """
        self._fill()
        self._tokens -= n
        return max(0.0, -self._tokens / self._rate.per_s)

    def _fill(self) -> None:
        now_s = self._clock()
        filled = self._tokens + (now_s - self._at_s) * self._rate.per_s
        self._tokens, self._at_s = min(float(self._rate.burst), filled), now_s


class Buckets:
    """A bucket for each name. Threads may share them.

    Args:
        rate: of each bucket.
        clock: gives seconds that never run backwards.
    """

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, name: str) -> float:
        """Take one token; return 0, or how long to wait for it [s]."""
        with self._lock:
            bucket = self._buckets.pop(name, None) or TokenBucket(self._rate, self._clock)
            self._buckets[name] = bucket
            if len(self._buckets) > MOST_BUCKETS:
                self._buckets.popitem(last=False)
            return bucket.take()
