"""Rollouts in the database that all servers share: what was ordered, and each device in it.

Writers take turns (see `rankcast.server.registry`), and every change of a rollout names the
revision that it was decided on, so that two servers can neither advance one twice nor advance what
the other has halted. Nothing is kept in memory but when a rollout was looked at last.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

import sqlalchemy as sa

from rankcast.errors import ConfigError, nearest
from rankcast.server.registry import DEVICES, Device, Registry, as_device
from rankcast.server.rollouts.decide import (
    Action,
    Published,
    changed_by_hand,
    check_order,
    decide,
    ranked_stages,
    reported,
    settled_version,
)
from rankcast.server.rollouts.progress import Progress, decided, read_progress
from rankcast.server.rollouts.questions import THIS_PIN, Assignment, Known, Question, known
from rankcast.server.rollouts.rollout import FAILURES, Member, Order, Rollout
from rankcast.server.rollouts.tables import (
    MEMBERS,
    METADATA,
    PINS,
    ROLLOUTS,
    STATE_FIELDS,
    as_member,
    as_rollout,
    member_row,
    put_member,
)

LOOK_EVERY_S = 5.0
"""A server looks at most so often whether a rollout goes on, but at once after a failure [s]."""
_LONGEST_MESSAGE = 500
_MOST_NAMED, _MOST_COMPARED = 5, 10_000
_ALL = sa.select(ROLLOUTS).order_by(ROLLOUTS.c.number.desc())
_OF_ADAPTER = _ALL.where(ROLLOUTS.c.adapter == sa.bindparam("adapter"))
_PIN = sa.select(PINS.c.version).where(THIS_PIN)


class UnknownRolloutError(ConfigError):
    """No rollout has this number."""


class RolloutConflictError(ConfigError):
    """Another rollout, or another server, came first; or this one is not in a state for that."""


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
            METADATA.create_all(connection)
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
            rollout = (
                decide(rollout, (), now_s, is_published=order.version in published.versions)
                or rollout
            )
            row = {name: getattr(rollout, name) for name in STATE_FIELDS}
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
                rows.append(member_row(rollout.number, member))
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
            return read_progress(connection, _rollout(connection, number), now_s, most)

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
            is_published = before.order.version in published.versions
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
            if decided(connection, rollout, now_s, published) is None:
                return
        with self._registry.writing() as connection:
            rollout = _rollout(connection, number)
            after = decided(connection, rollout, now_s, published)
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
        question = Question(device, now_s, published, active, rejected)

        def look_up() -> Known:
            with self._registry.reading() as connection:
                return known(connection, device, adapter)

        def keep(connection: sa.Connection) -> tuple[Assignment, Member | None]:
            now = known(connection, device, adapter)
            answer, member = question.answered(now)
            if member is not None:
                put_member(connection, now.rollouts[0][0].number, member)
            return answer, member

        before = look_up()
        if self._is_due(before, now_s):
            self.look(before.rollouts[0][0].number, now_s, published)
            before = look_up()
        answer, member = question.answered(before)
        if member is None:
            return answer
        answer, member = self._registry.in_turn(keep)  # as things are now that it is our turn
        if member is not None and member.state in FAILURES:
            self.look(before.rollouts[0][0].number, now_s, published)
            answer, _ = question.answered(look_up())
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
            if not known(connection, device, adapter).rollouts:
                return None

        def keep(connection: sa.Connection) -> int | None:
            rollout, member = known(connection, device, adapter).rollouts[0]
            if member is None:
                return None
            seen = replace(member, seen_s=now_s) if member.offered_s is not None else member
            after = reported(rollout, seen, version, event, message[:_LONGEST_MESSAGE])
            if after != member:
                put_member(connection, rollout.number, after)
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
            connection.execute(sa.delete(PINS).where(THIS_PIN), row)
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
            connection.execute(sa.delete(PINS).where(THIS_PIN), here)
        return version

    def _is_due(self, now: Known, now_s: float) -> bool:
        """Return whether it is time for a look; at once where the clock was set back."""
        if now.pin is not None or not now.rollouts or not now.rollouts[0][0].is_open:
            return False
        passed_s = now_s - self._looked_s.get(now.rollouts[0][0].number, -LOOK_EVERY_S)
        return not 0.0 <= passed_s < LOOK_EVERY_S


def _still_valid(rollouts: Sequence[Rollout]) -> Sequence[Rollout]:
    """Return rollouts, the newest first, as far back as one that every device has gone through."""
    ends = [k for k, rollout in enumerate(rollouts, 1) if rollout.is_everywhere]
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
    return as_rollout(row)


def known_words(rollouts: Sequence[Rollout]) -> str:
    """Return which rollouts there are, the newest first, for whoever named another."""
    if not rollouts:
        return "There are none yet; rankcast rollout create begins one."
    shown = [f"{r.number} ({r.order.adapter} {r.order.version}, {r.state})" for r in rollouts]
    more = ", …" if len(shown) > _MOST_NAMED else ""
    return f"There are {', '.join(shown[:_MOST_NAMED])}{more}; see rankcast rollout status."


def _rollouts(connection: sa.Connection, adapter: str | None) -> list[Rollout]:
    query = connection.execute(_ALL if adapter is None else _OF_ADAPTER, {"adapter": adapter})
    return [as_rollout(row) for row in query]


def _members(connection: sa.Connection, number: int) -> dict[str, Member]:
    rows = connection.execute(sa.select(MEMBERS).where(MEMBERS.c.rollout == number)).all()
    return {row.device: as_member(row) for row in rows}


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


def compare_and_set(connection: sa.Connection, before: Rollout, after: Rollout) -> Rollout:
    """Keep a rollout's new state if it is still what was decided on.

    Raises:
        RolloutConflictError: another server changed it in the meantime.
    """
    after = replace(after, revision=before.revision + 1)
    here = (ROLLOUTS.c.number == before.number) & (ROLLOUTS.c.revision == before.revision)
    row = {name: getattr(after, name) for name in STATE_FIELDS}
    if connection.execute(sa.update(ROLLOUTS).where(here).values(**row)).rowcount != 1:
        raise RolloutConflictError(
            f"Rollout {before.number} was changed by another server at the same time; look at its "
            f"status and try again."
        )
    return after
