"""Devices, their tokens, and their plans and reports, in a database that several servers may share.

SQLite serves one machine, PostgreSQL many. A token is 256 random bits, so its SHA-256 is kept, not
a slow password hash: who steals the database learns no token. Plans and reports are events with a
sequence number; writers take turns, so that a reader who has seen number n never misses a
smaller one that was committed later: in SQLite a transaction is exclusive from its beginning, in
PostgreSQL it takes a lock of ours.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import sqlalchemy as sa
from sqlalchemy import event as sa_event
from sqlalchemy import exc as sa_exc

from rankcast.errors import ConfigError, DeliveryError

MOST_RECENT = 20_000
"""Events that a summary looks at, so that it takes no longer as they gather."""
T = TypeVar("T")
Role = Literal["device", "operator"]
Kind = Literal["plan", "report"]
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_GROUP = re.compile(r"(cell=)?[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
CELL_LABEL = "cell="
"""Begins the group that names a device's cell, see `rankcast.server.cells`."""
_LOCK = 0x72636173  # "rcas", in PostgreSQL
_IN_MEMORY = (None, "", ":memory:")
_DRIVERS = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}

_METADATA = sa.MetaData()
DEVICES = sa.Table(
    "rankcast_devices",
    _METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("token_sha256", sa.String(64), nullable=False, unique=True),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("revoked_s", sa.Float),
    sa.Column("groups", sa.Text),
    sa.Column("time_zone", sa.String(64)),
)
_ADDED = ("groups", "time_zone")
"""Columns that databases of earlier versions lack; NULL in the rows that such a version writes."""
EVENTS = sa.Table(
    "rankcast_events",
    _METADATA,
    sa.Column(
        "sequence",
        sa.BigInteger().with_variant(sa.Integer, "sqlite"),
        primary_key=True,
        autoincrement=True,
    ),
    sa.Column("at_s", sa.Float, nullable=False, index=True),
    sa.Column("device", sa.String(64), nullable=False, index=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sqlite_autoincrement=True,  # numbers of deleted events are not given again
)


class DatabaseError(DeliveryError):
    """The database does not answer, or refuses."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device or a person with a token.

    Attributes:
        name: of the device or person.
        role: an operator sees the events of all devices, a device its own.
        created_s: when its token was made [s since 1970].
        revoked_s: when its token was revoked [s since 1970]; None while it holds.
        groups: that rollouts may be for.
        time_zone: of its maintenance windows, such as Europe/Berlin.
    """

    name: str
    role: Role
    created_s: float
    revoked_s: float | None
    groups: tuple[str, ...] = ()
    time_zone: str = "UTC"


@dataclass(frozen=True, slots=True)
class Event:
    """A plan that was given, or a report that came.

    Attributes:
        sequence: grows with every event.
        at_s: when [s since 1970].
        device: whose.
        kind: which of the two.
        body: its own fields.
    """

    sequence: int
    at_s: float
    device: str
    kind: Kind
    body: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        """Return what readers get: number, time, device and the fields of the body."""
        return {"sequence": self.sequence, "at_s": self.at_s, "device": self.device, **self.body}


@dataclass(frozen=True, slots=True)
class Activity:
    """A device's latest report.

    Attributes:
        device: its name.
        plan: the last that it was given; None for none lately.
        report: the last of its reports; None likewise.
        n_rolled_back: how many roll-backs it reported lately.
    """

    device: str
    plan: Event | None
    report: Event | None
    n_rolled_back: int


class Registry:
    """Devices and events in a database. Threads may share it; processes open their own."""

    def __init__(self, url: str) -> None:
        """Connect, and make the tables if there are none.

        Args:
            url: `sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST/NAME`.

        Raises:
            ConfigError: no such kind of database, or its driver is missing.
            DeliveryError: it does not answer.
        """
        self._engine = _engine(url)
        with self.writing() as connection:
            _METADATA.create_all(connection)
            _add_columns(connection)
        self._turn = threading.Lock()
        self._waiting = deque[tuple[Callable[[sa.Connection], Any], Future[Any]]]()

    def close(self) -> None:
        """End all connections."""
        self._engine.dispose()

    def check(self) -> None:
        """Check that the database answers.

        Raises:
            DeliveryError: it does not.
        """
        with self.reading() as connection:
            connection.execute(sa.select(1))

    def add(
        self,
        name: str,
        role: Role = "device",
        groups: Sequence[str] = (),
        time_zone: str = "UTC",
    ) -> str:
        """Give a device a token and return it; it is kept nowhere.

        Raises:
            DeliveryError: a name with other characters, or of a device that has a token.
            ConfigError: a group or a time zone that cannot be one.
        """
        token, row = new_token(name, role, groups, time_zone)
        with self.writing() as connection:
            before = _device(connection, DEVICES.c.name == name)
            if before is not None and before.revoked_s is None:
                raise DeliveryError(f"{name} has a token; rankcast devices revoke {name} first.")
            connection.execute(sa.delete(DEVICES).where(DEVICES.c.name == name))
            connection.execute(sa.insert(DEVICES).values(**row))
        return token

    def revoke(self, name: str) -> None:
        """End the token of a device; servers may remember it for some seconds, for files alone.

        Raises:
            DeliveryError: no device of this name has a token.
        """
        holding = (DEVICES.c.name == name) & DEVICES.c.revoked_s.is_(None)
        with self.writing() as connection:
            change = sa.update(DEVICES).where(holding).values(revoked_s=time.time())
            if connection.execute(change).rowcount == 0:
                raise DeliveryError(f"No device {name!r} has a token; see rankcast devices list.")

    def devices(self) -> tuple[Device, ...]:
        """Return all devices by name, revoked ones included."""
        with self.reading() as connection:
            rows = connection.execute(sa.select(DEVICES).order_by(DEVICES.c.name)).all()
        return tuple(as_device(row) for row in rows)

    def device_of(self, token: str) -> Device | None:
        """Return whose token this is; None if nobody's, or revoked."""
        with self.reading() as connection:
            device = _device(connection, DEVICES.c.token_sha256 == _sha256(token))
        return None if device is None or device.revoked_s is not None else device

    def record(self, device: str, kind: Kind, body: Mapping[str, Any]) -> int:
        """Keep an event and return its sequence number."""
        row = {"at_s": time.time(), "device": device, "kind": kind, "body": _json(body)}
        return self.in_turn(lambda connection: _insert(connection, row))

    def in_turn(self, write: Callable[[sa.Connection], T]) -> T:
        """Write something that cannot fail by itself, and return what came out once it is kept.

        Threads that come while another writes wait for it, and the next of them writes for all: one
        transaction for many, each of which is kept when its call returns.
        """
        kept: Future[T] = Future()
        self._waiting.append((write, kept))
        with self._turn:
            if not kept.done():
                self._write_waiting()
        return kept.result()

    def _write_waiting(self) -> None:
        batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
        try:
            with self.writing() as connection:
                results = [write(connection) for write, _ in batch]
        except BaseException as error:  # each of them is told
            for _, kept in batch:
                kept.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        for (_, kept), result in zip(batch, results, strict=True):
            kept.set_result(result)

    def events_after(
        self, sequence: int, limit: int = 500, device: str | None = None
    ) -> tuple[Event, ...]:
        """Return what happened since, the oldest first.

        Args:
            sequence: of the last event that is known.
            limit: at most so many.
            device: only its events; None for all.
        """
        wanted = EVENTS.c.sequence > sequence
        if device is not None:
            wanted &= EVENTS.c.device == device
        query = sa.select(EVENTS).where(wanted).order_by(EVENTS.c.sequence).limit(limit)
        with self.reading() as connection:
            rows = connection.execute(query).all()
        return tuple(_as_event(row) for row in rows)

    def before_last(self, n: int, device: str | None = None) -> int:
        """Return the number after which the newest `n` events come; 0 if there are no more.

        Args:
            n: how many, of `device` if one is named.
            device: only its events count; None for all.
        """
        query = sa.select(EVENTS.c.sequence).order_by(EVENTS.c.sequence.desc()).offset(n).limit(1)
        if device is not None:
            query = query.where(EVENTS.c.device == device)
        with self.reading() as connection:
            return int(connection.execute(query).scalar() or 0)

    def activity(self, device: str | None = None) -> tuple[Activity, ...]:
        """Return what every device did, by name, among the newest `MOST_RECENT` events.

        Args:
            device: only this one; None for all.
        """
        recent = EVENTS.c.sequence > self.last_sequence() - MOST_RECENT
        if device is not None:
            recent &= EVENTS.c.device == device
        newest = sa.select(sa.func.max(EVENTS.c.sequence)).where(recent)
        newest = newest.group_by(EVENTS.c.device, EVENTS.c.kind)
        rolled_back = recent & EVENTS.c.body.contains('"event": "rolled-back"', autoescape=True)
        counts = sa.select(EVENTS.c.device, sa.func.count()).where(rolled_back)
        with self.reading() as connection:
            rows = connection.execute(sa.select(EVENTS).where(EVENTS.c.sequence.in_(newest))).all()
            counted = connection.execute(counts.group_by(EVENTS.c.device)).all()
        n_rolled_back = {name: n for name, n in counted}  # noqa: C416 rows are no pairs to a type checker
        last = {(row.device, row.kind): _as_event(row) for row in rows}
        return tuple(
            Activity(x, last.get((x, "plan")), last.get((x, "report")), n_rolled_back.get(x, 0))
            for x in sorted({name for name, _ in last})
        )

    def last_sequence(self) -> int:
        """Return the number of the newest event; 0 if there is none."""
        with self.reading() as connection:
            return int(connection.execute(sa.select(sa.func.max(EVENTS.c.sequence))).scalar() or 0)

    def delete_events(self, older_than_s: float) -> int:
        """Delete events of more than so many seconds ago and return how many they were."""
        old = sa.delete(EVENTS).where(EVENTS.c.at_s < time.time() - older_than_s)
        with self.writing() as connection:
            return int(connection.execute(old).rowcount)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Yield a connection that writes nothing."""
        with _database_errors(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Yield a transaction that no other writer's overlaps."""
        with _database_errors(), self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            else:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection


def new_token(
    name: str, role: Role = "device", groups: Sequence[str] = (), time_zone: str = "UTC"
) -> tuple[str, dict[str, Any]]:
    """Return a new token of a device, and the row of `DEVICES` that does not give it away.

    Raises:
        DeliveryError: a name with other characters.
        ConfigError: a group or a time zone that cannot be one.
    """
    checked_device(name)
    token = f"rc_{secrets.token_urlsafe(32)}"
    row = {
        "name": name, "role": role, "token_sha256": _sha256(token), "created_s": time.time(),
        "revoked_s": None, "groups": json.dumps(list(checked_groups(groups))),
        "time_zone": checked_time_zone(time_zone),
    }  # fmt: skip
    return token, row


def checked_device(name: str) -> str:
    """Return the name of a device.

    Raises:
        DeliveryError: it has other characters.
    """
    if not _DEVICE.fullmatch(name):
        raise DeliveryError(
            f"A device's name has letters, digits, dots, colons, dashes and underscores, at "
            f"most 64, got {name!r}."
        )
    return name


def checked_groups(groups: Sequence[str]) -> tuple[str, ...]:
    """Return the names of groups, each once.

    Raises:
        ConfigError: a name that no group can have, or several cells.
    """
    for group in groups:
        if not _GROUP.fullmatch(group):
            raise ConfigError(
                f"A group's name has letters, digits, dots, dashes and underscores, at most 64, or "
                f"is {CELL_LABEL}NAME, got {group!r}."
            )
    cells = sorted({group for group in groups if group.startswith(CELL_LABEL)})
    if len(cells) > 1:
        raise ConfigError(f"A device is in one cell at most, got {' and '.join(cells)}.")
    return tuple(sorted(set(groups)))


@lru_cache(1024)
def checked_time_zone(name: str) -> str:
    """Return the name of a time zone.

    Raises:
        ConfigError: nobody knows such a one.
    """
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f"There is no time zone {name!r}; name one such as Europe/Berlin or UTC."
        ) from error
    return name


def _add_columns(connection: sa.Connection) -> None:
    """Add what a database of an earlier version lacks; its rows stay as they are."""
    there = {column["name"] for column in sa.inspect(connection).get_columns(DEVICES.name)}
    preparer = connection.dialect.identifier_preparer
    for name in _ADDED:
        if name not in there:
            kind = DEVICES.c[name].type.compile(connection.dialect)
            column = preparer.quote(name)
            connection.exec_driver_sql(f"ALTER TABLE {DEVICES.name} ADD COLUMN {column} {kind}")


def _insert(connection: sa.Connection, row: Mapping[str, Any]) -> int:
    done = connection.execute(sa.insert(EVENTS).values(**row))
    assert done.inserted_primary_key is not None
    return int(done.inserted_primary_key[0])


def _device(connection: sa.Connection, wanted: sa.ColumnElement[bool]) -> Device | None:
    row = connection.execute(sa.select(DEVICES).where(wanted)).one_or_none()
    return None if row is None else as_device(row)


def as_device(row: Any) -> Device:
    """Return the device of a row."""
    groups = tuple(json.loads(row.groups or "[]"))
    return Device(row.name, row.role, row.created_s, row.revoked_s, groups, row.time_zone or "UTC")


def _as_event(row: Any) -> Event:
    return Event(row.sequence, row.at_s, row.device, row.kind, json.loads(row.body))


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _json(body: Mapping[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, allow_nan=False)


@contextmanager
def _database_errors() -> Iterator[None]:
    try:
        yield
    except sa_exc.SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise DatabaseError(f"The database does not answer: {cause}. Check --database.") from error


def _engine(url: str) -> sa.Engine:
    refusal = ConfigError(
        "--database takes sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME."
    )
    scheme, colon, rest = url.partition("://")
    try:
        parsed = sa.make_url(_DRIVERS.get(scheme, scheme) + colon + rest)
    except (sa_exc.ArgumentError, ValueError) as error:
        raise refusal from error
    is_remote = parsed.get_backend_name() == "postgresql"  # its connections may have ended
    is_file = parsed.get_backend_name() == "sqlite" and parsed.database not in _IN_MEMORY
    if not is_remote and not is_file:
        raise refusal
    try:
        engine = sa.create_engine(parsed, pool_pre_ping=is_remote, pool_timeout=5)
    except sa_exc.NoSuchModuleError as error:
        raise refusal from error
    except ImportError as error:
        raise ConfigError(
            "PostgreSQL needs its driver: pip install 'rankcast[postgres]'."
        ) from error
    if is_file:
        sa_event.listen(engine, "connect", _set_up_sqlite)
    return engine


def _set_up_sqlite(connection: Any, record: object) -> None:
    """Let readers read beside a writer, and writers wait for each other."""
    del record
    connection.execute("PRAGMA busy_timeout=5000")
    with suppress(sqlite3.OperationalError):  # at once if somebody writes: a later connection does
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
