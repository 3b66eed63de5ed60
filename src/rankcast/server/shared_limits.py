"""Limits that hold over all servers of a database, at no cost for devices that ask seldom.

A bucket of each name lies in the database. A server does not ask it for every call: it lets a name
have a few calls by itself, and beyond these takes several tokens of the bucket at once, which it
then spends from memory. A name that was refused is refused from memory until its time has come. So
a device that syncs every few seconds never costs a transaction, and a flood costs few.

Over P servers a name gets at most `rate` + P · `own.per_s` in the long run, and `burst` +
P · (`own.burst` + one lease) at once.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

from rankcast.rate_limit import MOST_BUCKETS, Rate, TokenBucket
from rankcast.server.registry import Registry

_OWN_RATE, _OWN_BURST = 0.02, 0.1
"""Of a limit, that each server gives by itself: 0.2 calls a second and 5 at once of 10 and 50."""
_LEASE = 0.1
"""Of the burst, that a server takes at once; one token at least."""
_METADATA = sa.MetaData()
LIMITS = sa.Table(
    "rankcast_limits",
    _METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("tokens", sa.Float, nullable=False),
    sa.Column("at_s", sa.Float, nullable=False, index=True),
)


@dataclass(slots=True)
class _Local:
    """What a server knows of a name.

    Attributes:
        own: what the server gives by itself.
        leased: tokens that were taken and not yet spent.
        refused_until_s: by the clock of the server [s].
    """

    own: TokenBucket | None
    leased: int = 0
    refused_until_s: float = 0.0


class SharedBuckets:
    """A bucket for each name, in a database. Threads may share it; processes open their own.

    Args:
        rate: of each bucket.
        registry: of the database.
        clock: gives seconds that never run backwards.
        now_s: gives seconds since 1970; where servers' clocks differ, the latest counts.

    Raises:
        DeliveryError: the database does not answer.
    """

    def __init__(
        self,
        rate: Rate,
        registry: Registry,
        clock: Callable[[], float] = time.monotonic,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._rate, self._registry, self._clock, self._now_s = rate, registry, clock, now_s
        self._lease = max(1, int(_LEASE * rate.burst))
        burst = _OWN_BURST * rate.burst
        self._own = Rate(_OWN_RATE * rate.per_s, burst) if burst >= 1.0 else None
        self._lock = threading.Lock()
        self._locals: OrderedDict[str, _Local] = OrderedDict()
        with registry.writing() as connection:
            _METADATA.create_all(connection)

    def take(self, name: str) -> float:
        """Take one token; return 0, or how long to wait for it [s].

        Raises:
            DeliveryError: the database does not answer.
        """
        with self._lock:
            here = self._local(name)
            if here.leased > 0:
                here.leased -= 1
                return 0.0
            if here.own is not None and here.own.take() == 0.0:
                return 0.0
            wait_s = here.refused_until_s - self._clock()
        if wait_s > 0.0:
            return wait_s
        granted, wait_s = self._take_lease(name)
        with self._lock:
            here = self._local(name)
            if granted:
                here.leased += granted - 1
                return 0.0
            here.refused_until_s = self._clock() + wait_s
            return wait_s

    def delete_full(self) -> int:
        """Forget buckets that are full again and return how many."""
        full_s = self._rate.burst / self._rate.per_s
        old = sa.delete(LIMITS).where(LIMITS.c.at_s < self._now_s() - full_s)
        with self._registry.writing() as connection:
            return int(connection.execute(old).rowcount)

    def _local(self, name: str) -> _Local:
        """Return what is known of a name; what was used longest ago is dropped."""
        here = self._locals.pop(name, None)
        if here is None:
            here = _Local(None if self._own is None else TokenBucket(self._own, self._clock))
        self._locals[name] = here
        if len(self._locals) > MOST_BUCKETS:
            self._locals.popitem(last=False)
        return here

    def _take_lease(self, name: str) -> tuple[int, float]:
        """Take some tokens of the shared bucket; return how many, and how long to wait if none."""
        per_s, burst = self._rate.per_s, float(self._rate.burst)
        here = LIMITS.c.name == name
        with self._registry.writing() as connection:
            row = connection.execute(sa.select(LIMITS).where(here)).one_or_none()
            now_s = self._now_s() if row is None else max(self._now_s(), row.at_s)
            tokens = burst if row is None else min(burst, row.tokens + (now_s - row.at_s) * per_s)
            granted = min(self._lease, int(tokens))
            if not granted:
                return 0, (1.0 - tokens) / per_s
            values = {"tokens": tokens - granted, "at_s": now_s}
            if row is None:
                connection.execute(sa.insert(LIMITS).values(name=name, **values))
            else:
                connection.execute(sa.update(LIMITS).where(here).values(**values))
        return granted, 0.0
