"""A device asks which version it is to have: what the database knows of it, and the answer."""

from __future__ import annotations

import json
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from rankcast.server.registry import DEVICES
from rankcast.server.rollouts.decide import (
    Published,
    asked,
    joining,
    settled_version,
    version_told,
)
from rankcast.server.rollouts.rollout import Member, Rollout
from rankcast.server.rollouts.tables import MEMBERS, PINS, ROLLOUTS, as_rollout

_SEEN_SHARE = 0.1
"""Of the time after which a device counts as silent: how exactly it is known when it was seen."""

THIS_PIN = (PINS.c.device == sa.bindparam("device")) & (PINS.c.adapter == sa.bindparam("adapter"))
_ITSELF = sa.select(sa.bindparam("device", type_=sa.String(64)).label("name")).subquery()
_THIS_MEMBER = (MEMBERS.c.rollout == ROLLOUTS.c.number) & (MEMBERS.c.device == _ITSELF.c.name)
_KNOWN = sa.select(PINS.c.version, DEVICES.c.groups, DEVICES.c.time_zone)
_KNOWN = _KNOWN.add_columns(*ROLLOUTS.c, *MEMBERS.c).select_from(
    _ITSELF.outerjoin(PINS, THIS_PIN)
    .outerjoin(DEVICES, DEVICES.c.name == _ITSELF.c.name)
    .outerjoin(ROLLOUTS, ROLLOUTS.c.adapter == sa.bindparam("adapter"))
    .outerjoin(MEMBERS, _THIS_MEMBER)
)
_KNOWN = _KNOWN.order_by(ROLLOUTS.c.number.desc())
"""All that a question needs: one row at least, and one for each rollout, the newest first."""
_ROLLOUT_AT, _MEMBER_AT = 3, 3 + len(ROLLOUTS.c)
"""Where the columns of a rollout begin, and those of a device in it."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a device is told.

    Attributes:
        version: that it is to have; None for the newest.
        holds: whether it keeps what it has, since `version` cannot be had.
        reason: for people.
        rollout: number of the rollout that decides; None for none.
    """

    version: int | None = None
    holds: bool = False
    reason: str = ""
    rollout: int | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """What the database says of a device and an adapter.

    Attributes:
        groups: of the device.
        time_zone: likewise.
        pin: version that it is kept on; None for none.
        rollouts: of the adapter, the newest first, as far back as one that every device has gone
            through; each with the device in it, if there is a row.
        baseline: the version before the first of all rollouts; 0 without any.
    """

    groups: tuple[str, ...]
    time_zone: str
    pin: int | None
    rollouts: tuple[tuple[Rollout, Member | None], ...]
    baseline: int


def known(connection: sa.Connection, device: str, adapter: str) -> Known:
    """Read it, in one query: devices ask all the time."""
    rows: Any = connection.execute(_KNOWN, {"device": device, "adapter": adapter}).all()
    pin, groups, zone = rows[0][:_ROLLOUT_AT]
    found: list[tuple[Rollout, Member | None]] = []
    for row in rows:
        if row[_ROLLOUT_AT] is None:
            break
        member = None if row[_MEMBER_AT] is None else Member(*row[_MEMBER_AT + 1 :])
        found.append((as_rollout(row[_ROLLOUT_AT:_MEMBER_AT]), member))
        if found[-1][0].is_everywhere:
            break
    baseline = as_rollout(rows[-1][_ROLLOUT_AT:_MEMBER_AT]).order.before if found else 0
    groups = tuple(json.loads(groups or "[]"))
    return Known(groups, zone or "UTC", pin, tuple(found), baseline)


@dataclass(frozen=True, slots=True)
class Question:
    """A device's question; see `Rollouts.assign`."""

    device: str
    now_s: float
    published: Published
    active: int | None
    rejected: AbstractSet[int]

    def answered(self, found: Known) -> tuple[Assignment, Member | None]:
        """Return the answer, and what to keep of the device; None if nothing is new."""
        if found.pin is not None:
            words = f"{self.device} is pinned to version {found.pin}."
            return _held_to(self.published, found.pin, words), None
        if not found.rollouts:
            return Assignment(), None
        newest, kept = found.rollouts[0]
        settled = settled_version(found.rollouts[1:], self.device, found.groups, found.baseline)
        member = kept or joining(newest, self.device, found.groups, settled)
        if member is None:
            return _held_to(self.published, settled, "No rollout is for this device."), None
        new = asked(newest, member, active=self.active, rejected=self.rejected)
        told = version_told(newest, new, self.now_s, active=self.active, time_zone=found.time_zone)
        is_told = told == newest.order.version and told in self.published.versions
        if not is_told and told == newest.order.version:
            told = new.before
        if is_told and new.state in ("waiting", "returned"):
            offered_s = self.now_s if new.offered_s is None else new.offered_s
            new = replace(new, state="offered", offered_s=offered_s)
        if new.offered_s is not None and (new != kept or self._was_long_ago(newest, new)):
            new = replace(new, seen_s=self.now_s)
        words = f"Rollout {newest.number} to version {newest.order.version} is {newest.state}."
        answer = replace(_held_to(self.published, told, words), rollout=newest.number)
        return answer, None if new == kept else new

    def _was_long_ago(self, rollout: Rollout, member: Member) -> bool:
        passed_s = abs(self.now_s - (member.seen_s or 0.0))
        return member.state == "offered" and passed_s > _SEEN_SHARE * rollout.order.silent_after_s


def _held_to(published: Published, version: int, reason: str) -> Assignment:
    """Return the answer for a version, or that a device keeps what it has if it cannot be had."""
    if version in published.versions:
        return Assignment(version, reason=reason)
    words = f"{reason} The signed release names no version {version}, only {published.words}."
    return Assignment(None, holds=True, reason=words)
