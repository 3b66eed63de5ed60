"""Rollouts in the database that all servers share: what was ordered, and each device in it.

Writers take turns (see `rankcast.server.registry`), and every change of a rollout names the
revision that it was decided on, so that two servers can neither advance one twice nor advance what
the other has halted. Nothing is kept in memory but when a rollout was looked at last.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from rankcast.errors import ConfigError, nearest
from rankcast.server.registry import DEVICES, Device, Registry, as_device
from rankcast.server.rollouts.decide import (
    Action,
    Published,
    StageCount,
    asked,
    changed_by_hand,
    check_order,
    decide,
    joining,
    ranked_stages,
    reported,
    settled_version,
    version_told,
)
from rankcast.server.rollouts.rollout import FAILURES, OPEN, Member, Order, Rollout

LOOK_EVERY_S = 5.0
"""A server looks at most so often whether a rollout goes on, but at once after a failure [s]."""
_SEEN_SHARE = 0.1
"""Of the time after which a device counts as silent: how exactly it is known when it was seen."""
_LONGEST_MESSAGE = 500
_MOST_NAMED, _MOST_COMPARED = 5, 10_000
_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")

_METADATA = sa.MetaData()
ROLLOUTS = sa.Table(
    "rankcast_rollouts",
    _METADATA,
    sa.Column("number", _NUMBER, primary_key=True, autoincrement=True),
    sa.Column("adapter", sa.String(64), nullable=False, index=True),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("stage", sa.Integer, nullable=False),
    sa.Column("stage_began_s", sa.Float, nullable=False),
    sa.Column("halted_stage", sa.Integer),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("changed_s", sa.Float, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sqlite_autoincrement=True,
)
MEMBERS = sa.Table(
    "rankcast_rollout_devices",
    _METADATA,
    sa.Column("rollout", _NUMBER, primary_key=True, autoincrement=False),
    sa.Column("device", sa.String(64), primary_key=True),
    sa.Column("stage", sa.Integer, nullable=False),
    sa.Column("before", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("offered_s", sa.Float),
    sa.Column("seen_s", sa.Float),
    sa.Column("message", sa.Text, nullable=False),
    sa.Index("rankcast_rollout_counts", "rollout", "state", "stage"),
)
PINS = sa.Table(
    "rankcast_pins",
    _METADATA,
    sa.Column("device", sa.String(64), primary_key=True),
    sa.Column("adapter", sa.String(64), primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
)
_STATE_FIELDS = (
    "state", "stage", "stage_began_s", "halted_stage", "reason", "created_s", "changed_s",
    "revision",
)  # fmt: skip
_MEMBER_FIELDS = ("device", "stage", "before", "state", "offered_s", "seen_s", "message")


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
_ALL = sa.select(ROLLOUTS).order_by(ROLLOUTS.c.number.desc())
_OF_ADAPTER = _ALL.where(ROLLOUTS.c.adapter == sa.bindparam("adapter"))
_THIS_PIN = (PINS.c.device == sa.bindparam("device")) & (PINS.c.adapter == sa.bindparam("adapter"))
_PIN = sa.select(PINS.c.version).where(_THIS_PIN)
_ITSELF = sa.select(sa.bindparam("device", type_=sa.String(64)).label("name")).subquery()
_THIS_MEMBER = (MEMBERS.c.rollout == ROLLOUTS.c.number) & (MEMBERS.c.device == _ITSELF.c.name)
_KNOWN = sa.select(PINS.c.version, DEVICES.c.groups, DEVICES.c.time_zone)
_KNOWN = _KNOWN.add_columns(*ROLLOUTS.c, *MEMBERS.c).select_from(
    _ITSELF.outerjoin(PINS, _THIS_PIN)
    .outerjoin(DEVICES, DEVICES.c.name == _ITSELF.c.name)
    .outerjoin(ROLLOUTS, ROLLOUTS.c.adapter == sa.bindparam("adapter"))
    .outerjoin(MEMBERS, _THIS_MEMBER)
)
_KNOWN = _KNOWN.order_by(ROLLOUTS.c.number.desc())
"""All that a question needs: one row at least, and one for each rollout, the newest first."""
_ROLLOUT_AT, _MEMBER_AT = 3, 3 + len(ROLLOUTS.c)
"""Where the columns of a rollout begin, and those of a device in it."""


class UnknownRolloutError(ConfigError):
    """No rollout has this number."""


class RolloutConflictError(ConfigError):
    """Another rollout, or another server, came first; or this one is not in a state for that."""


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


class Rollouts:
    """The rollouts of a database. Threads may share it; processes open their own."""

    def __init__(self, registry: Registry) -> None:
        """Make the tables if there are none.

        Raises:
            DeliveryError: the database does not answer.
        """
        self._registry = registry
        self._looked_s: dict[int, float] = {}
        with registry.writing() as connection:
            _METADATA.create_all(connection)
            for index in MEMBERS.indexes:  # those that an older database lacks
                index.create(connection, checkfirst=True)

    def create(self, order: Order, now_s: float, published: Published) -> Rollout:
        """Begin a rollout, or let it wait until its version is published.

        Args:
            order: what is asked for; the cutoffs of its stages are filled in.
            now_s: the time [s since 1970].
            published: versions of the adapter.

        Raises:
            ConfigError: versions that cannot be had, an unknown group or device, or none at all.
            RolloutConflictError: another rollout of the adapter is still open.
        """
        check_order(order, published)
        with self._registry.writing() as connection:
            earlier = _rollouts(connection, order.adapter)
            if earlier and earlier[0].is_open:
                raise RolloutConflictError(
                    f"Rollout {earlier[0].number} of {order.adapter} to version "
                    f"{earlier[0].order.version} is {earlier[0].state}; two of one adapter would "
                    f"overlap. Wait until it is done, or rankcast rollout abort "
                    f"{earlier[0].number} first."
                )
            meant = _meant(connection, order)
            stages, stage_of = ranked_stages(order.stages, order.salt, meant)
            order = replace(order, stages=stages)
            rollout = Rollout(0, order, created_s=now_s, changed_s=now_s)
            rollout = decide(rollout, (), now_s, is_published=_has(published, order)) or rollout
            row = {name: getattr(rollout, name) for name in _STATE_FIELDS}
            plan = json.dumps(order.to_plain(), sort_keys=True)
            done = connection.execute(
                sa.insert(ROLLOUTS).values(adapter=order.adapter, plan=plan, **row)
            )
            assert done.inserted_primary_key is not None
            rollout = replace(rollout, number=int(done.inserted_primary_key[0]))
            known = [(r, _members(connection, r.number)) for r in _still_valid(earlier)]
            baseline = earlier[-1].order.before if earlier else order.before
            if baseline not in published.versions:
                baseline = order.before
            rows = []
            for name, groups in meant.items():
                ended = [(r, members.get(name)) for r, members in known]
                before = settled_version(ended, name, groups, baseline)
                member = Member(name, stage_of[name], before)
                rows.append(_member_row(rollout.number, member))
            if rows:
                connection.execute(sa.insert(MEMBERS), rows)
        return rollout

    def all(self, adapter: str | None = None) -> tuple[Rollout, ...]:
        """Return rollouts, the newest first.

        Args:
            adapter: of which; None for all.
        """
        with self._registry.reading() as connection:
            return tuple(_rollouts(connection, adapter))

    def get(self, number: int) -> Rollout:
        """Return a rollout.

        Raises:
            UnknownRolloutError: there is no such rollout.
        """
        with self._registry.reading() as connection:
            return _rollout(connection, number)

    def default_before(self, adapter: str, version: int, published: Published) -> int:
        """Return the version that devices have now, which they keep until they get another.

        That is what the rollout before left them with: its version if it is done, else the one
        before it. Without a rollout it is the newest older version.

        Args:
            adapter: of which.
            version: that is to be rolled out.
            published: versions of the adapter.

        Raises:
            ConfigError: there is no other version.
        """
        rollouts = self.all(adapter)
        kept = [r.order.version if r.state == "done" else r.order.before for r in rollouts[:1]]
        failed = {r.order.version for r in rollouts if r.state in ("halted", "aborted")}
        older = sorted((v for v in published.versions - failed if v < version), reverse=True)
        possible = [v for v in (*kept, *older) if v in published.versions and v != version]
        if not possible:
            raise ConfigError(
                f"There is no version of {adapter} before {version} to keep devices on: the signed "
                f"release names {published.words}. A first release needs no rollout."
            )
        return possible[0]

    def progress(self, number: int, now_s: float, published: Published, most: int = 20) -> Progress:
        """Return how far a rollout is, after a look whether it goes on.

        Args:
            number: of the rollout.
            now_s: the time [s since 1970].
            published: versions of its adapter.
            most: failed devices to name.

        Raises:
            UnknownRolloutError: there is no such rollout.
        """
        self.look(number, now_s, published)
        with self._registry.reading() as connection:
            rollout = _rollout(connection, number)
            counts = _counts(connection, rollout, now_s)
            groups = DEVICES.c.groups.label("groups")
            failing = sa.select(MEMBERS, groups).outerjoin(
                DEVICES, DEVICES.c.name == MEMBERS.c.device
            )
            failing = failing.where(MEMBERS.c.rollout == number, MEMBERS.c.state.in_(FAILURES))
            rows = connection.execute(failing.order_by(MEMBERS.c.device)).all()
        by_group = Counter(
            group for row in rows for group in (json.loads(row.groups or "[]") or [""])
        )
        failed = tuple(_as_member(row) for row in rows[:most])
        return Progress(rollout, counts, dict(sorted(by_group.items())), failed)

    def change(
        self, number: int, action: Action, now_s: float, published: Published, reason: str = ""
    ) -> Rollout:
        """Do what an operator asks for.

        Args:
            number: of the rollout.
            action: what to do.
            now_s: the time [s since 1970].
            published: versions of its adapter.
            reason: for people.

        Raises:
            UnknownRolloutError: there is no such rollout.
            RolloutConflictError: it is not in a state for that, or not the adapter's newest.
        """
        with self._registry.writing() as connection:
            before = _rollout(connection, number)
            newest = _rollouts(connection, before.order.adapter)[0].number
            if newest != number:
                raise RolloutConflictError(
                    f"Rollout {number} was followed by rollout {newest} of {before.order.adapter}; "
                    f"change that one."
                )
            is_published = _has(published, before.order)
            try:
                after = changed_by_hand(
                    before, action, now_s, reason=reason, is_published=is_published
                )
            except ConfigError as error:
                raise RolloutConflictError(str(error)) from error
            return compare_and_set(connection, before, after)

    def look(self, number: int, now_s: float, published: Published) -> None:
        """Let a rollout go on, or halt it, by its rules.

        Raises:
            UnknownRolloutError: there is no such rollout.
        """
        self._looked_s[number] = now_s
        with self._registry.reading() as connection:
            rollout = _rollout(connection, number)
            if _decided(connection, rollout, now_s, published) is None:
                return
        with self._registry.writing() as connection:
            rollout = _rollout(connection, number)
            after = _decided(connection, rollout, now_s, published)
            if after is not None:
                compare_and_set(connection, rollout, after)

    def assign(
        self,
        device: str,
        adapter: str,
        now_s: float,
        published: Published,
        *,
        active: int | None = None,
        rejected: AbstractSet[int] = frozenset(),
    ) -> Assignment:
        """Return which version a device is to have, and keep what its question says of it.

        Args:
            device: its name.
            adapter: of which adapter.
            now_s: the time [s since 1970].
            published: versions of the adapter.
            active: the version that it has; None if it has none, or does not say.
            rejected: versions that failed their proof on it.
        """
        question = _Question(device, now_s, published, active, rejected)

        def known() -> _Known:
            with self._registry.reading() as connection:
                return _known(connection, device, adapter)

        def keep(connection: sa.Connection) -> tuple[Assignment, Member | None]:
            now = _known(connection, device, adapter)
            answer, member = question.answered(now)
            if member is not None:
                _put_member(connection, now.rollouts[0][0].number, member)
            return answer, member

        before = known()
        if self._is_due(before, now_s):
            self.look(before.rollouts[0][0].number, now_s, published)
            before = known()
        answer, member = question.answered(before)
        if member is None:
            return answer
        answer, member = self._registry.in_turn(keep)  # as things are now that it is our turn
        if member is not None and member.state in FAILURES:
            self.look(before.rollouts[0][0].number, now_s, published)
            answer, _ = question.answered(known())
        return answer

    def report(
        self,
        device: str,
        adapter: str,
        now_s: float,
        *,
        version: int,
        event: str,
        message: str = "",
    ) -> int | None:
        """Keep what a report says of a rollout; return its number if it has to be looked at.

        Args:
            device: whose.
            adapter: of which adapter.
            now_s: the time [s since 1970].
            version: of the release that it is about.
            event: of the report.
            message: of the report.
        """
        with self._registry.reading() as connection:
            if not _known(connection, device, adapter).rollouts:
                return None

        def keep(connection: sa.Connection) -> int | None:
            rollout, member = _known(connection, device, adapter).rollouts[0]
            if member is None:
                return None
            seen = replace(member, seen_s=now_s) if member.offered_s is not None else member
            after = reported(rollout, seen, version, event, message[:_LONGEST_MESSAGE])
            if after != member:
                _put_member(connection, rollout.number, after)
            return rollout.number if after.state in FAILURES and rollout.is_open else None

        return self._registry.in_turn(keep)

    def pin(self, device: str, adapter: str, version: int, published: Published) -> None:
        """Keep a device on a version whatever is rolled out.

        Raises:
            ConfigError: an unknown device, or a version that cannot be had.
        """
        if version not in published.versions:
            raise ConfigError(
                f"The signed release of {adapter} names versions {published.words}, not {version}."
            )
        row = {"device": device, "adapter": adapter, "version": version}
        with self._registry.writing() as connection:
            _check_device(connection, device)
            connection.execute(sa.delete(PINS).where(_THIS_PIN), row)
            connection.execute(sa.insert(PINS).values(**row))

    def unpin(self, device: str, adapter: str) -> int | None:
        """Let a device go, and return the version that it was kept on; None for none.

        Raises:
            ConfigError: an unknown device without such a pin.
        """
        with self._registry.writing() as connection:
            version = _pin(connection, device, adapter)
            if version is None:
                _check_device(connection, device)
            here = {"device": device, "adapter": adapter}
            connection.execute(sa.delete(PINS).where(_THIS_PIN), here)
        return version

    def _is_due(self, known: _Known, now_s: float) -> bool:
        """Return whether it is time for a look; at once where the clock was set back."""
        if known.pin is not None or not known.rollouts or not known.rollouts[0][0].is_open:
            return False
        passed_s = now_s - self._looked_s.get(known.rollouts[0][0].number, -LOOK_EVERY_S)
        return not 0.0 <= passed_s < LOOK_EVERY_S


@dataclass(frozen=True, slots=True)
class _Known:
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


def _known(connection: sa.Connection, device: str, adapter: str) -> _Known:
    """Read it, in one query: devices ask all the time."""
    rows: Any = connection.execute(_KNOWN, {"device": device, "adapter": adapter}).all()
    pin, groups, zone = rows[0][:_ROLLOUT_AT]
    found: list[tuple[Rollout, Member | None]] = []
    for row in rows:
        if row[_ROLLOUT_AT] is None:
            break
        member = None if row[_MEMBER_AT] is None else Member(*row[_MEMBER_AT + 1 :])
        found.append((_as_rollout(row[_ROLLOUT_AT:_MEMBER_AT]), member))
        if _is_everywhere(found[-1][0]):
            break
    baseline = _as_rollout(rows[-1][_ROLLOUT_AT:_MEMBER_AT]).order.before if found else 0
    groups = tuple(json.loads(groups or "[]"))
    return _Known(groups, zone or "UTC", pin, tuple(found), baseline)


@dataclass(frozen=True, slots=True)
class _Question:
    """A device's question; see `Rollouts.assign`."""

    device: str
    now_s: float
    published: Published
    active: int | None
    rejected: AbstractSet[int]

    def answered(self, known: _Known) -> tuple[Assignment, Member | None]:
        """Return the answer, and what to keep of the device; None if nothing is new."""
        if known.pin is not None:
            words = f"{self.device} is pinned to version {known.pin}."
            return _held_to(self.published, known.pin, words), None
        if not known.rollouts:
            return Assignment(), None
        newest, kept = known.rollouts[0]
        settled = settled_version(known.rollouts[1:], self.device, known.groups, known.baseline)
        member = kept or joining(newest, self.device, known.groups, settled)
        if member is None:
            return _held_to(self.published, settled, "No rollout is for this device."), None
        new = asked(newest, member, active=self.active, rejected=self.rejected)
        told = version_told(newest, new, self.now_s, active=self.active, time_zone=known.time_zone)
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


def _has(published: Published, order: Order) -> bool:
    return order.version in published.versions


def _is_everywhere(rollout: Rollout) -> bool:
    """Return whether every device has gone through it, so that none before it counts."""
    target = rollout.order.target
    is_all = not target.groups and not target.devices and target.share == 1.0
    return rollout.state == "done" and is_all


def _still_valid(rollouts: Sequence[Rollout]) -> Sequence[Rollout]:
    """Return rollouts, the newest first, as far back as one that every device has gone through."""
    ends = [k for k, rollout in enumerate(rollouts, 1) if _is_everywhere(rollout)]
    return rollouts[: ends[0]] if ends else rollouts


def _meant(connection: sa.Connection, order: Order) -> dict[str, tuple[str, ...]]:
    """Return the devices of a target with their groups.

    Raises:
        ConfigError: an unknown group or device, or none at all.
    """
    holding = DEVICES.c.revoked_s.is_(None) & (DEVICES.c.role == "device")
    rows = connection.execute(sa.select(DEVICES.c.name, DEVICES.c.groups).where(holding)).all()
    groups_of = {row.name: tuple(json.loads(row.groups or "[]")) for row in rows}
    groups = {group for names in groups_of.values() for group in names}
    target = order.target
    for group in target.groups:
        if group not in groups:
            known = f"; groups are {', '.join(sorted(groups)) or 'none'}."
            raise ConfigError(f"No device is in a group {group!r}{nearest(group, groups) or known}")
    for name in target.devices:
        if name not in groups_of:
            raise ConfigError(f"No device {name!r} has a token{_alike(name, groups_of)}")
    meant = {name: of for name, of in groups_of.items() if target.matches(name, of, order.adapter)}
    if groups_of and not meant:
        raise ConfigError(f"{target.words} are no device at all; name a larger target.")
    return meant


def _devices(connection: sa.Connection, names: Sequence[str]) -> dict[str, Device]:
    rows = connection.execute(sa.select(DEVICES).where(DEVICES.c.name.in_(names))).all()
    return {row.name: as_device(row) for row in rows}


def _rollout(connection: sa.Connection, number: int) -> Rollout:
    row = connection.execute(sa.select(ROLLOUTS).where(ROLLOUTS.c.number == number)).one_or_none()
    if row is None:
        words = known_words(_rollouts(connection, None))
        raise UnknownRolloutError(f"There is no rollout {number}. {words}")
    return _as_rollout(row)


def known_words(rollouts: Sequence[Rollout]) -> str:
    """Return which rollouts there are, the newest first, for whoever named another."""
    if not rollouts:
        return "There are none yet; rankcast rollout create begins one."
    shown = [f"{r.number} ({r.order.adapter} {r.order.version}, {r.state})" for r in rollouts]
    more = ", …" if len(shown) > _MOST_NAMED else ""
    return f"There are {', '.join(shown[:_MOST_NAMED])}{more}; see rankcast rollout status."


def _rollouts(connection: sa.Connection, adapter: str | None) -> list[Rollout]:
    query = connection.execute(_ALL if adapter is None else _OF_ADAPTER, {"adapter": adapter})
    return [_as_rollout(row) for row in query]


def _members(connection: sa.Connection, number: int) -> dict[str, Member]:
    rows = connection.execute(sa.select(MEMBERS).where(MEMBERS.c.rollout == number)).all()
    return {row.device: _as_member(row) for row in rows}


def _pin(connection: sa.Connection, device: str, adapter: str) -> int | None:
    return connection.execute(_PIN, {"device": device, "adapter": adapter}).scalar()


def _check_device(connection: sa.Connection, device: str) -> None:
    if device not in _devices(connection, [device]):
        names = connection.execute(sa.select(DEVICES.c.name)).scalars().all()
        raise ConfigError(f"There is no device {device!r}{_alike(device, names)}")


def _alike(device: str, names: Collection[str]) -> str:
    """Return the nearest name; a comparison with very many would take seconds."""
    near = nearest(device, names) if len(names) <= _MOST_COMPARED else ""
    return near or "; see rankcast devices list."


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


def _decided(
    connection: sa.Connection, rollout: Rollout, now_s: float, published: Published
) -> Rollout | None:
    if rollout.state not in OPEN:
        return None
    after_s = rollout.order.stages[rollout.stage].after_s
    is_due = after_s is not None and now_s - rollout.stage_began_s >= after_s
    here = {"rollout": rollout.number, "silent_s": now_s - rollout.order.silent_after_s}
    if rollout.stage_began_s and not is_due and not connection.execute(_ANY_FAILED, here).first():
        return None  # nothing to count for
    counts = _counts(connection, rollout, now_s)
    return decide(rollout, counts, now_s, is_published=_has(published, rollout.order))


def compare_and_set(connection: sa.Connection, before: Rollout, after: Rollout) -> Rollout:
    """Keep a rollout's new state if it is still what was decided on.

    Raises:
        RolloutConflictError: another server changed it in the meantime.
    """
    after = replace(after, revision=before.revision + 1)
    here = (ROLLOUTS.c.number == before.number) & (ROLLOUTS.c.revision == before.revision)
    row = {name: getattr(after, name) for name in _STATE_FIELDS}
    if connection.execute(sa.update(ROLLOUTS).where(here).values(**row)).rowcount != 1:
        raise RolloutConflictError(
            f"Rollout {before.number} was changed by another server at the same time; look at its "
            f"status and try again."
        )
    return after


def _put_member(connection: sa.Connection, number: int, member: Member) -> None:
    connection.execute(_upsert(connection.dialect.name), _member_row(number, member))


@cache
def _upsert(dialect: str) -> Any:
    new = (postgresql if dialect == "postgresql" else sqlite).insert(MEMBERS)
    columns = {name: new.excluded[name] for name in _MEMBER_FIELDS if name != "device"}
    return new.on_conflict_do_update(index_elements=["rollout", "device"], set_=columns)


def _member_row(number: int, member: Member) -> dict[str, Any]:
    return {"rollout": number, **{name: getattr(member, name) for name in _MEMBER_FIELDS}}


def _as_member(row: Any) -> Member:
    return Member(**{name: getattr(row, name) for name in _MEMBER_FIELDS})


def _as_rollout(row: Any) -> Rollout:
    number, _, plan, *state = row  # columns of `ROLLOUTS` and fields stand in one order
    return Rollout(number, _order_of(plan), *state)


@lru_cache(256)
def _order_of(plan: str) -> Order:
    """Return the order of a row; nobody changes one, and every question reads it."""
    return Order.from_plain(json.loads(plan))
