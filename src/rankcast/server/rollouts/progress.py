"""How far a rollout is: what became of its devices, and whether it goes on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from rankcast.server.registry import DEVICES
from rankcast.server.rollouts.decide import Published, StageCount, decide
from rankcast.server.rollouts.rollout import FAILURES, OPEN, Member, Rollout
from rankcast.server.rollouts.tables import MEMBERS, as_member

_HERE = MEMBERS.c.rollout == sa.bindparam("rollout")
_FELL_SILENT = (MEMBERS.c.state == "offered") & (MEMBERS.c.seen_s < sa.bindparam("silent_s"))
_BY_STATE = sa.select(MEMBERS.c.stage, MEMBERS.c.state, sa.func.count()).where(_HERE)
_BY_STATE = _BY_STATE.group_by(MEMBERS.c.state, MEMBERS.c.stage)
_SILENT = sa.select(MEMBERS.c.stage, sa.func.count()).where(_HERE, _FELL_SILENT)
_SILENT = _SILENT.group_by(MEMBERS.c.stage)
_ANY_FAILED = sa.select(1).where(_HERE, MEMBERS.c.state.in_((*FAILURES, "offered"))).limit(1)
_ANY_FAILED = _ANY_FAILED.where((MEMBERS.c.state != "offered") | _FELL_SILENT)  # by the index
_REVOKED = sa.select(DEVICES.c.name).where(DEVICES.c.revoked_s.is_not(None))
"""Few devices are: all are counted in the index of members, and then those are taken off."""
_AT_ONCE = 500
"""Devices of one statement."""
_OF_DEVICES = sa.select(MEMBERS).where(
    _HERE, MEMBERS.c.device.in_(sa.bindparam("devices", expanding=True))
)


@dataclass(frozen=True, slots=True)
class Progress:
    """A rollout and what became of its devices.

    Attributes:
        rollout: as it is.
        counts: of each stage, without devices whose token was revoked.
        by_group: failures by group; those of devices without a group under the empty name.
        failed: the first devices that failed.
    """

    rollout: Rollout
    counts: tuple[StageCount, ...]
    by_group: Mapping[str, int]
    failed: tuple[Member, ...]


def read_progress(connection: sa.Connection, rollout: Rollout, now_s: float, most: int) -> Progress:
    """Return how far a rollout is.

    Args:
        connection: to the database.
        rollout: as it is.
        now_s: the time [s since 1970].
        most: failed devices to name.
    """
    groups = DEVICES.c.groups.label("groups")
    failing = sa.select(MEMBERS, groups).outerjoin(DEVICES, DEVICES.c.name == MEMBERS.c.device)
    failing = failing.where(MEMBERS.c.rollout == rollout.number, MEMBERS.c.state.in_(FAILURES))
    rows = connection.execute(failing.order_by(MEMBERS.c.device)).all()
    by_group = Counter(group for row in rows for group in (json.loads(row.groups or "[]") or [""]))
    failed = tuple(as_member(row) for row in rows[:most])
    counts = _counts(connection, rollout, now_s)
    return Progress(rollout, counts, dict(sorted(by_group.items())), failed)


def decided(
    connection: sa.Connection, rollout: Rollout, now_s: float, published: Published
) -> Rollout | None:
    """Return a rollout as it is to be now by its rules; None if it stays as it is.

    Args:
        connection: to the database.
        rollout: as it is.
        now_s: the time [s since 1970].
        published: versions of its adapter.
    """
    if rollout.state not in OPEN:
        return None
    after_s = rollout.order.stages[rollout.stage].after_s
    is_due = after_s is not None and now_s - rollout.stage_began_s >= after_s
    here = {"rollout": rollout.number, "silent_s": now_s - rollout.order.silent_after_s}
    if rollout.stage_began_s and not is_due and not connection.execute(_ANY_FAILED, here).first():
        return None  # nothing to count for
    counts = _counts(connection, rollout, now_s)
    return decide(rollout, counts, now_s, is_published=rollout.order.version in published.versions)


def _counts(connection: sa.Connection, rollout: Rollout, now_s: float) -> tuple[StageCount, ...]:
    """Return what became of the devices of each stage whose token holds."""
    here = {"rollout": rollout.number, "silent_s": now_s - rollout.order.silent_after_s}
    states = [Counter[Any]() for _ in rollout.order.stages]
    silent = Counter[int]()
    for stage, state, n in connection.execute(_BY_STATE, here):
        states[stage][state] += n
    revoked = connection.execute(_REVOKED).scalars().all()
    for start in range(0, len(revoked), _AT_ONCE):
        some = here | {"devices": revoked[start : start + _AT_ONCE]}
        for member in connection.execute(_OF_DEVICES, some):
            states[member.stage][member.state] -= 1
            was_silent = member.seen_s is not None and member.seen_s < here["silent_s"]
            silent[member.stage] -= member.state == "offered" and was_silent
    for stage, n in connection.execute(_SILENT, here):
        silent[stage] += n
    return tuple(StageCount(dict(+count), silent[k]) for k, count in enumerate(states))
