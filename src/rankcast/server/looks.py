"""When each device was last seen, without a row of events for a look that changes nothing.

A device that has what it can have asks for a plan again and again, and nearly always gets the same
answer: nothing to fetch. Such a look moves a time in `rankcast_seen`, a row for each device and
adapter, and is counted; what changes something is an event, see `registry`. Times are gathered in
memory and written together every few seconds, so that a look writes nothing by itself. A server
that is killed loses the times of these seconds, and the next look is an event: never the other way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from rankcast.server.registry import EVENTS, Registry

_AT_ONCE = 500
"""Rows of one statement."""
_METADATA = sa.MetaData()
SEEN = sa.Table(
    "rankcast_seen",
    _METADATA,
    sa.Column("device", sa.String(64), primary_key=True),
    sa.Column("adapter", sa.String(64), primary_key=True),
    sa.Column("at_s", sa.Float, nullable=False, index=True),
    sa.Column("plan", sa.String(64), nullable=False),
    sa.Column("plan_s", sa.Float, nullable=False),
)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is known of a device and an adapter.

    Attributes:
        at_s: when it was last seen [s since 1970].
        plan: its last plan in short, if that left nothing to fetch; empty otherwise.
        plan_s: when that was an event [s since 1970].
    """

    at_s: float
    plan: str
    plan_s: float


class Looks:
    """Keeps plans and reports, and of a look that changes nothing its time alone.

    Threads may share it; processes open their own.
    """

    def __init__(
        self,
        registry: Registry,
        again_s: float = 86400.0,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        """Make the table if there is none.

        Args:
            registry: of events.
            again_s: after which a look is an event although it changes nothing [s].
            now_s: the clock [s since 1970].

        Raises:
            DeliveryError: the database does not answer.
        """
        self._registry, self._again_s, self._now_s = registry, again_s, now_s
        self._lock = threading.Lock()
        self._pending: dict[tuple[str, str], _Seen] = {}
        with registry.writing() as connection:
            _METADATA.create_all(connection)

    def plan(self, device: str, body: Mapping[str, Any]) -> bool:
        """Keep a plan, as an event if it changes anything, and return whether it is one.

        Args:
            device: whose.
            body: the fields of the event.
        """
        now_s, key = self._now_s(), (device, str(body["adapter"]))
        short = _short(body)
        last = self._last(key) if short else None
        if last is not None and last.plan == short and 0.0 <= now_s - last.plan_s < self._again_s:
            self._note(key, _Seen(now_s, last.plan, last.plan_s))
            return False
        self._registry.record(device, "plan", body)
        self._note(key, _Seen(now_s, short, now_s))
        return True

    def report(self, device: str, body: Mapping[str, Any]) -> None:
        """Keep a report as an event; the next plan is one, too."""
        now_s = self._now_s()
        self._registry.record(device, "report", body)
        self._note((device, str(body["adapter"])), _Seen(now_s, "", now_s))

    def last_seen_s(self, device: str | None = None) -> dict[str, float]:
        """Return when devices were last seen, by name [s since 1970].

        Args:
            device: only this one; None for all.
        """
        self.write()
        query = sa.select(SEEN.c.device, sa.func.max(SEEN.c.at_s)).group_by(SEEN.c.device)
        if device is not None:
            query = query.where(SEEN.c.device == device)
        with self._registry.reading() as connection:
            return {name: float(at_s) for name, at_s in connection.execute(query)}

    def active_devices(self, within_s: float) -> int:
        """Return how many devices asked for a plan or reported in the last `within_s` seconds."""
        self.write()
        since_s = self._now_s() - within_s
        devices = sa.union(
            sa.select(SEEN.c.device).where(SEEN.c.at_s > since_s),
            sa.select(EVENTS.c.device).where(EVENTS.c.at_s > since_s),  # of earlier versions
        ).subquery()
        with self._registry.reading() as connection:
            return int(
                connection.execute(sa.select(sa.func.count()).select_from(devices)).scalar_one()
            )

    def write(self) -> None:
        """Write what was gathered; it stays gathered if the database refuses."""
        with self._lock:
            pending, self._pending = self._pending, {}
        rows = [
            {
                "device": device,
                "adapter": adapter,
                "at_s": x.at_s,
                "plan": x.plan,
                "plan_s": x.plan_s,
            }
            for (device, adapter), x in sorted(pending.items())
        ]
        if not rows:
            return
        try:
            with self._registry.writing() as connection:
                for start in range(0, len(rows), _AT_ONCE):
                    connection.execute(_upsert(connection), rows[start : start + _AT_ONCE])
        except BaseException:
            with self._lock:
                self._pending = {**pending, **self._pending}
            raise

    def delete(self, older_than_s: float) -> int:
        """Forget devices that were last seen before so many seconds and return how many rows."""
        old = sa.delete(SEEN).where(SEEN.c.at_s < self._now_s() - older_than_s)
        with self._registry.writing() as connection:
            return int(connection.execute(old).rowcount)

    def _note(self, key: tuple[str, str], seen: _Seen) -> None:
        with self._lock:
            self._pending[key] = seen

    def _last(self, key: tuple[str, str]) -> _Seen | None:
        """Return what is known, as any server wrote it."""
        query = sa.select(SEEN.c.at_s, SEEN.c.plan, SEEN.c.plan_s)
        query = query.where(SEEN.c.device == key[0], SEEN.c.adapter == key[1])
        with self._registry.reading() as connection:
            row = connection.execute(query).one_or_none()
        with self._lock:
            here = self._pending.get(key)
        there = None if row is None else _Seen(row.at_s, row.plan, row.plan_s)
        known = [x for x in (there, here) if x is not None]
        return max(known, key=lambda x: x.plan_s, default=None)


def _short(body: Mapping[str, Any]) -> str:
    """Return a plan that leaves nothing to fetch in short; empty for one that leaves some."""
    if body["n_blobs"]:
        return ""
    return "/".join(
        str(body[x]) for x in ("version", "ladder", "n_rungs", "n_held_rungs", "planner")
    )


def _upsert(connection: sa.Connection) -> Any:
    """Return the statement that moves times forward, whichever server writes first."""
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    new = dialect.insert(SEEN)
    is_later, has_later_plan = new.excluded.at_s > SEEN.c.at_s, new.excluded.plan_s > SEEN.c.plan_s
    return new.on_conflict_do_update(
        index_elements=["device", "adapter"],
        set_={
            "at_s": sa.case((is_later, new.excluded.at_s), else_=SEEN.c.at_s),
            "plan": sa.case((has_later_plan, new.excluded.plan), else_=SEEN.c.plan),
            "plan_s": sa.case((has_later_plan, new.excluded.plan_s), else_=SEEN.c.plan_s),
        },
    )
