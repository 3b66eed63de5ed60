from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")

from helpers.waiting import at_once
from rankcast.errors import ConfigError, DeliveryError
from rankcast.server.registry import DatabaseError, Event, Registry, _set_up_sqlite


@pytest.fixture
def registry(url: str) -> Iterator[Registry]:
    registry = Registry(url)
    yield registry
    registry.close()


def test_a_token_lets_in_its_device_until_it_is_revoked(registry: Registry) -> None:
    token = registry.add("pi-1")
    other = registry.add("desk", "operator")
    device = registry.device_of(token)
    assert device is not None
    assert (device.name, device.role) == ("pi-1", "device")
    assert registry.device_of(token + "x") is None
    registry.revoke("pi-1")
    assert registry.device_of(token) is None
    assert registry.device_of(other) is not None
    again = registry.add("pi-1")
    assert again != token
    assert registry.device_of(token) is None
    assert [(d.name, d.revoked_s) for d in registry.devices()] == [("desk", None), ("pi-1", None)]


def test_the_database_holds_no_token(tmp_path: Path) -> None:
    registry = Registry(f"sqlite:///{tmp_path}/devices.db")
    token = registry.add("pi-1")
    registry.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"pi-1" in stored
    assert token.encode() not in stored
    assert token[3:].encode() not in stored


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 65, "a\n", "ü"])
def test_names_are_plain(registry: Registry, name: str) -> None:
    with pytest.raises(DeliveryError, match="A device's name has"):
        registry.add(name)


def test_a_second_token_and_a_second_end_are_refused(registry: Registry) -> None:
    registry.add("pi-1")
    with pytest.raises(DeliveryError, match="devices revoke pi-1 first"):
        registry.add("pi-1")
    registry.revoke("pi-1")
    with pytest.raises(DeliveryError, match="No device 'pi-1' has a token"):
        registry.revoke("pi-1")


def test_events_come_in_order_and_by_device(registry: Registry) -> None:
    numbers = [registry.record(f"pi-{i % 2}", "plan", {"i": i}) for i in range(6)]
    assert numbers == sorted(set(numbers))
    assert [e.body["i"] for e in registry.events_after(numbers[1])] == [2, 3, 4, 5]
    assert [e.body["i"] for e in registry.events_after(0, device="pi-1")] == [1, 3, 5]
    assert [e.body["i"] for e in registry.events_after(0, limit=2)] == [0, 1]
    assert registry.last_sequence() == numbers[-1]
    assert registry.delete_events(3600) == 0
    assert registry.delete_events(-1) == 6
    assert registry.record("pi-0", "report", {}) > numbers[-1]  # never a number again


def test_readers_miss_nothing_that_writers_of_several_servers_write(
    registry: Registry, url: str
) -> None:
    def write(name: str) -> None:
        mine = Registry(url)
        for i in range(20):
            mine.record(name, "report", {"i": i})
        mine.close()

    seen: list[Event] = []

    def read() -> None:
        seen.extend(registry.events_after(seen[-1].sequence if seen else 0))

    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write, f"pi-{n}") for n in range(3)]
        while not all(writer.done() for writer in writers):
            read()
    for writer in writers:
        writer.result()
    read()
    assert len(seen) == 60
    for name in ("pi-0", "pi-1", "pi-2"):
        assert [e.body["i"] for e in seen if e.device == name] == list(range(20))


@pytest.mark.parametrize(
    "url", ["mysql://x/y", "nonsense", "sqlite+nothing:///x", "sqlite://", "sqlite:///:memory:"]
)
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="takes sqlite:///FILE"):
        Registry(url)


def test_a_database_that_is_none_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(DatabaseError, match=r"does not answer.*Check --database"):
        Registry(f"sqlite:///{tmp_path}/x.db")
    with pytest.raises(DatabaseError, match="does not answer"):
        Registry(f"sqlite:///{tmp_path}/nowhere/x.db")


def test_postgresql_without_its_driver_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'rankcast\[postgres"):
        Registry("postgresql://localhost/rankcast")


def test_tables_lie_beside_those_of_others(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "shared.db").execute("CREATE TABLE devices (x)")
    registry = Registry(f"sqlite:///{tmp_path}/shared.db")
    assert registry.devices() == ()
    registry.close()


def test_a_connection_opens_while_somebody_writes_to_a_new_file(tmp_path: Path) -> None:
    """SQLite does not wait to change how it writes, and a registry would not have opened."""
    writer, other, later = (
        sqlite3.connect(tmp_path / "new.db", isolation_level=None) for _ in "abc"
    )
    writer.execute("BEGIN IMMEDIATE")
    _set_up_sqlite(other, None)
    assert other.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    writer.execute("COMMIT")
    _set_up_sqlite(later, None)
    assert later.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    for connection in (writer, other, later):
        connection.close()


def test_servers_that_start_together_make_the_tables_once(url: str) -> None:
    at_once(*[lambda: Registry(url).close()] * 4)
    registry = Registry(url)
    assert (registry.devices(), registry.last_sequence()) == ((), 0)
    registry.close()
