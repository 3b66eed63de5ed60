"""The database that servers share: its tables, connections, and failures in words.

Writers take turns: in SQLite a transaction is exclusive from its beginning, in PostgreSQL it takes
a lock of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rankcast.errors import ConfigError, DeliveryError

try:
    import sqlalchemy as sa
    from sqlalchemy import event as sa_event
    from sqlalchemy import exc as sa_exc
except ImportError as error:  # pragma: no cover - every environment of the tests has it
    raise ConfigError(
        "The registry of devices needs SQLAlchemy: pip install 'rankcast[serve]'."
    ) from error

_LOCK = 0x72636173  # "rcas", in PostgreSQL
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
)
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


class Database:
    """Connections to a database. Threads may share it; processes open their own."""

    def __init__(self, url: str) -> None:
        """Connect, and make the tables if there are none.

        Raises:
            ConfigError: no such kind of database, or its driver is missing.
            DatabaseError: it does not answer.
        """
        self._engine = _engine(url)
        with self.writing() as connection:
            _METADATA.create_all(connection)

    def close(self) -> None:
        """End all connections."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Yield a connection.

        Raises:
            DatabaseError: there is none, or it fails.
        """
        with _failures_in_words(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Yield a transaction that no other writer's overlaps.

        Raises:
            DatabaseError: there is none, or it fails.
        """
        with _failures_in_words(), self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            else:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection


@contextmanager
def _failures_in_words() -> Iterator[None]:
    try:
        yield
    except sa_exc.SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise DatabaseError(f"The database does not answer: {cause}. Check --database.") from error


def _engine(url: str) -> sa.Engine:
    scheme, colon, rest = url.partition("://")
    try:
        parsed = sa.make_url(_DRIVERS.get(scheme, scheme) + colon + rest)
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise ConfigError(f"The database is SQLite or PostgreSQL, not {scheme}.")
        is_remote = parsed.get_backend_name() == "postgresql"  # its connections may have ended
        engine = sa.create_engine(parsed, pool_pre_ping=is_remote, pool_timeout=5)
    except (sa_exc.ArgumentError, sa_exc.NoSuchModuleError, ValueError) as error:
        raise ConfigError(
            "--database takes sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME."
        ) from error
    except ImportError as error:
        raise ConfigError(
            "PostgreSQL needs its driver: pip install 'rankcast[postgres]'."
        ) from error
    if engine.dialect.name == "sqlite":
        sa_event.listen(engine, "connect", _set_up_sqlite)
    return engine


def _set_up_sqlite(connection: Any, record: object) -> None:
    """Let readers read beside a writer, and writers wait for each other."""
    del record
    for setting in ("busy_timeout=5000", "journal_mode=WAL", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {setting}")
