from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")

from postgres_data import cluster, database
from rankcast.delivery.database import DatabaseError
from rankcast.delivery.registry import Registry
from rankcast.errors import ConfigError, DeliveryError


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    with cluster() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/devices.db"
        return
    with database(request.getfixturevalue("postgres")) as found:
        yield found


@pytest.fixture
def registry(url: str) -> Iterator[Registry]:
    found = Registry(url)
    yield found
    found.close()


def test_a_token_lets_in_its_device_until_it_is_revoked(registry: Registry) -> None:
    token = registry.add("pi-1")
    other = registry.add("desk", "operator")
    found = registry.device_of(token)
    assert found is not None
    assert (found.name, found.role) == ("pi-1", "device")
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
    with pytest.raises(DeliveryError, match="tokens revoke pi-1 first"):
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
    assert registry.active_devices(60) == 2
    assert registry.forget(60) == 0
    assert registry.forget(-1) == 6
    assert registry.active_devices(60) == 0
    assert registry.record("pi-0", "report", {}) > numbers[-1]  # never a number again


def test_readers_miss_nothing_that_writers_of_several_servers_write(
    registry: Registry, url: str
) -> None:
    def write(name: str) -> None:
        mine = Registry(url)
        for i in range(20):
            mine.record(name, "report", {"i": i})
        mine.close()

    threads = [threading.Thread(target=write, args=(f"pi-{n}",)) for n in range(3)]
    seen, last = [], 0
    for thread in threads:
        thread.start()
    while len(seen) < 60 and (any(t.is_alive() for t in threads) or last < 60):
        for event in registry.events_after(last):
            last = event.sequence
            seen.append(event)
    assert len(seen) == 60
    for name in ("pi-0", "pi-1", "pi-2"):
        assert [e.body["i"] for e in seen if e.device == name] == list(range(20))


@pytest.mark.parametrize(
    ("url", "message"),
    [("mysql://x/y", "SQLite or PostgreSQL|takes sqlite"), ("nonsense", "takes sqlite:///FILE")],
)
def test_other_databases_are_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
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
    found = Registry(f"sqlite:///{tmp_path}/shared.db")
    assert found.devices() == ()
    found.close()


def test_servers_that_start_together_make_the_tables_once(url: str) -> None:
    failures: list[Exception] = []

    def start() -> None:
        try:
            Registry(url).close()
        except Exception as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
