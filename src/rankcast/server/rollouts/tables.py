"""The tables of rollouts, of the devices in them and of pins, and what their rows mean."""

from __future__ import annotations

import json
from functools import cache, lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from rankcast.server.rollouts.rollout import Member, Order, Rollout

_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")

METADATA = sa.MetaData()
ROLLOUTS = sa.Table(
    "rankcast_rollouts",
    METADATA,
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
    METADATA,
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
    METADATA,
    sa.Column("device", sa.String(64), primary_key=True),
    sa.Column("adapter", sa.String(64), primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
)
STATE_FIELDS = (
    "state", "stage", "stage_began_s", "halted_stage", "reason", "created_s", "changed_s",
    "revision",
)  # fmt: skip
_MEMBER_FIELDS = ("device", "stage", "before", "state", "offered_s", "seen_s", "message")


def put_member(connection: sa.Connection, number: int, member: Member) -> None:
    """Keep a device in a rollout, instead of what was kept of it before."""
    connection.execute(_upsert(connection.dialect.name), member_row(number, member))


@cache
def _upsert(dialect: str) -> Any:
    new = (postgresql if dialect == "postgresql" else sqlite).insert(MEMBERS)
    columns = {name: new.excluded[name] for name in _MEMBER_FIELDS if name != "device"}
    return new.on_conflict_do_update(index_elements=["rollout", "device"], set_=columns)


def member_row(number: int, member: Member) -> dict[str, Any]:
    """Return the row of a device in a rollout."""
    return {"rollout": number, **{name: getattr(member, name) for name in _MEMBER_FIELDS}}


def as_member(row: Any) -> Member:
    """Return the device in a rollout that a row describes."""
    return Member(**{name: getattr(row, name) for name in _MEMBER_FIELDS})


def as_rollout(row: Any) -> Rollout:
    """Return the rollout that a row describes."""
    number, _, plan, *state = row  # columns of `ROLLOUTS` and fields stand in one order
    return Rollout(number, _order_of(plan), *state)


@lru_cache(256)
def _order_of(plan: str) -> Order:
    """Return the order of a row; nobody changes one, and every question reads it."""
    return Order.from_plain(json.loads(plan))
