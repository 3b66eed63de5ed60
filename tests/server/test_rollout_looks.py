"""What a device's question costs the database, and what happens before its row is written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")

import sqlalchemy as sa
from sqlalchemy import event as sa_event

from helpers.waiting import DEADLOCK_S, at_once, wait_until
from rankcast.server.registry import Registry
from rankcast.server.rollouts.database import Rollouts
from rankcast.server.rollouts.decide import Published
from rankcast.server.rollouts.questions import Assignment
from rankcast.server.rollouts.rollout import Order, Stage
from rankcast.server.rollouts.tables import MEMBERS

NOW_S = 1_900_000_000.0
PUBLISHED = Published(2, frozenset({1}))
ORDER = Order("demo", 2, 1, stages=(Stage(0.5, None), Stage(1.0, None)))
NAMES = tuple(f"pi-{n}" for n in range(8))


@pytest.fixture
def registry(url: str) -> Iterator[Registry]:
    registry = Registry(url)
    for name in NAMES:
        registry.add(name)
    yield registry
    registry.close()


def ask(rollouts: Rollouts, name: str, now_s: float = NOW_S, active: int = 1) -> Assignment:
    return rollouts.assign(name, "demo", now_s, PUBLISHED, active=active)


def begun(registry: Registry) -> tuple[Rollouts, str, str]:
    """Begin a rollout; return a device of its first stage and one of its second."""
    rollouts = Rollouts(registry)
    rollout = rollouts.create(ORDER, NOW_S, PUBLISHED)
    rollouts.look(rollout.number, NOW_S, PUBLISHED)  # the next look is due in 5 s
    with registry.reading() as connection:
        stages = dict(connection.execute(sa.select(MEMBERS.c.device, MEMBERS.c.stage)).all())  # pyright: ignore[reportArgumentType]
    return rollouts, min(stages, key=stages.__getitem__), max(stages, key=stages.__getitem__)


def rows(registry: Registry) -> dict[str, Any]:
    with registry.reading() as connection:
        return {row.device: row for row in connection.execute(sa.select(MEMBERS))}


@contextmanager
def statements(registry: Registry) -> Iterator[list[str]]:
    """Yield the first word of each statement, as it is sent, and each transaction that is kept."""
    said: list[str] = []

    def hear(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        said.append(statement.split(maxsplit=1)[0])

    def kept(connection: Any) -> None:
        said.append("COMMIT")

    for name, listener in (("before_cursor_execute", hear), ("commit", kept)):
        sa_event.listen(registry._engine, name, listener)
    try:
        yield said
    finally:
        for name, listener in (("before_cursor_execute", hear), ("commit", kept)):
            sa_event.remove(registry._engine, name, listener)


def test_a_look_that_changes_nothing_is_one_query(registry: Registry) -> None:
    rollouts, early, late = begun(registry)
    ask(rollouts, early)
    with statements(registry) as said:
        assert ask(rollouts, late).version == 1  # its first, and the stage is not its own
        assert ask(rollouts, early).version == 2  # offered before
        rollouts.pin(late, "other", 1, PUBLISHED)
    assert said[:2] == ["SELECT", "SELECT"]
    with statements(registry) as said:
        assert Rollouts(registry).assign(late, "none", NOW_S, PUBLISHED) == Assignment()
        assert rollouts.assign(late, "other", NOW_S, PUBLISHED).version == 1  # the pin
    assert said[-2:] == ["SELECT", "SELECT"]


def test_a_first_offer_is_one_row_in_one_transaction(registry: Registry) -> None:
    rollouts, early, _ = begun(registry)
    with statements(registry) as said:
        assert ask(rollouts, early).version == 2
    turn = "SELECT" if registry._engine.dialect.name == "postgresql" else "BEGIN"
    assert said == ["SELECT", turn, "SELECT", "INSERT", "COMMIT"]
    row = rows(registry)[early]
    assert (row.state, row.offered_s, row.seen_s) == ("offered", NOW_S, NOW_S)


def test_devices_that_ask_together_share_a_transaction(registry: Registry) -> None:
    """A writer holds its turn until all eight wait; then one of them writes for all."""
    rollouts, *_ = begun(registry)
    rollouts.change(1, "advance", NOW_S, PUBLISHED)
    began, ends = threading.Event(), threading.Event()

    def hold(connection: sa.Connection) -> None:
        del connection
        began.set()
        assert ends.wait(DEADLOCK_S)

    with statements(registry) as said, ThreadPoolExecutor(1 + len(NAMES)) as pool:
        holder = pool.submit(registry.in_turn, hold)
        assert began.wait(DEADLOCK_S)
        asked = [pool.submit(ask, rollouts, name) for name in NAMES]
        wait_until(lambda: len(registry._waiting) == len(NAMES))
        ends.set()
        assert [x.result().version for x in asked] == [2] * len(NAMES)
        holder.result()
    assert said.count("COMMIT") == 2
    assert said.count("INSERT") == len(NAMES)
    assert {row.state for row in rows(registry).values()} == {"offered"}


def test_servers_that_are_asked_together_write_one_row(registry: Registry, url: str) -> None:
    rollouts, early, _ = begun(registry)
    others = [Registry(url) for _ in range(3)]
    versions: list[int | None] = []
    at_once(*(
        lambda server=server: versions.append(ask(server, early).version)
        for server in (rollouts, *map(Rollouts, others))
    ))  # fmt: skip
    assert versions == [2] * 4
    assert len(rows(registry)) == len(NAMES)
    assert rows(registry)[early].offered_s == NOW_S
    for other in others:
        other.close()


Meanwhile = Callable[[Rollouts, str], object]


@pytest.mark.parametrize(
    "meanwhile",
    [
        lambda rollouts, name: rollouts.change(1, "abort", NOW_S, PUBLISHED),
        lambda rollouts, name: rollouts.change(1, "pause", NOW_S, PUBLISHED),
        lambda rollouts, name: rollouts.pin(name, "demo", 1, PUBLISHED),
    ],
    ids=["abort", "pause", "pin"],
)
def test_what_changes_before_its_turn_counts(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, meanwhile: Meanwhile
) -> None:
    """The question was read while the stage was under way, and is written after that ended."""
    rollouts, early, _ = begun(registry)
    original = registry.in_turn

    def later(write: Any) -> Any:
        meanwhile(rollouts, early)
        return original(write)

    monkeypatch.setattr(registry, "in_turn", later)
    assert ask(rollouts, early).version == 1
    assert rows(registry)[early].state == "waiting"


def test_a_write_that_fails_is_told_to_all_and_changes_nothing(registry: Registry) -> None:
    rollouts, early, _ = begun(registry)

    def fail(connection: sa.Connection) -> None:
        connection.execute(sa.update(MEMBERS).values(state="activated"))
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        registry.in_turn(fail)
    assert {row.state for row in rows(registry).values()} == {"waiting"}
    assert ask(rollouts, early).version == 2  # the turn was given back


def test_the_versions_before_come_from_rollouts_that_ended(registry: Registry) -> None:
    """Everyone went through the second; of the one before it nothing counts but the baseline."""
    rollouts = Rollouts(registry)
    third = Published(4, frozenset({1, 2, 3}))
    whole = replace(ORDER, stages=(Stage(1.0),))
    for order in (whole, replace(whole, version=3, before=2), replace(whole, version=4, before=3)):
        rollout = rollouts.create(order, NOW_S, third)
        if order.version < 4:
            rollouts.change(rollout.number, "advance", NOW_S, third)
    rollouts.change(rollout.number, "pause", NOW_S, third)
    registry.add("new")
    assert rollouts.assign("new", "demo", NOW_S, third).version == 3
