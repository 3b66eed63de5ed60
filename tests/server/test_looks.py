"""A look that changes nothing moves a time; everything else is an event."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from helpers.stores import FINGERPRINT, store_with
from rankcast.server.app import create_app
from rankcast.server.looks import Looks
from rankcast.server.registry import DatabaseError, Registry
from rankcast.server.settings import ServerSettings

DAY_S = 86400.0


@dataclass
class Clock:
    """A clock that is set by hand."""

    at_s: float = 1.9e9

    def __call__(self) -> float:
        return self.at_s


@dataclass
class Server:
    """A server's view of a database."""

    registry: Registry
    clock: Clock
    looks: Looks = field(init=False)

    def __post_init__(self) -> None:
        self.looks = Looks(self.registry, DAY_S, self.clock)

    @property
    def n_events(self) -> int:
        return len(self.registry.events_after(0))


@pytest.fixture
def servers(url: str) -> Iterator[tuple[Server, Server]]:
    """Return two servers of one database and one clock."""
    one, two, clock = Registry(url), Registry(url), Clock()
    yield Server(one, clock), Server(two, clock)
    one.close()
    two.close()


def plan(n_blobs: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "adapter": "sst2", "version": 1, "ladder": 0, "n_rungs": 4, "n_held_rungs": 4,
        "planner": "solver", "n_blobs": n_blobs, **changes,
    }  # fmt: skip


def report(event: str = "activated") -> dict[str, Any]:
    return {"adapter": "sst2", "event": event}


def test_a_look_that_changes_nothing_is_no_event(servers: tuple[Server, Server]) -> None:
    one, two = servers
    assert one.looks.plan("pi-1", plan(4, n_held_rungs=0))
    one.looks.report("pi-1", report())
    assert one.looks.plan("pi-1", plan())  # the first that finds nothing to fetch
    for _ in range(5):
        one.clock.at_s += 60.0
        assert not one.looks.plan("pi-1", plan())
    one.looks.write()
    one.clock.at_s += 60.0
    assert not two.looks.plan("pi-1", plan())  # another server knows it
    assert one.n_events == 3
    assert two.looks.last_seen_s() == {"pi-1": one.clock.at_s}
    assert (one.looks.active_devices(1.0), one.looks.active_devices(0.0)) == (1, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"ladder": 1},
        {"n_rungs": 5},
        {"n_held_rungs": 3},
        {"planner": "policy"},
        {"n_blobs": 1},
        {"adapter": "mnli"},
    ],
)
def test_whatever_differs_is_an_event(
    changes: dict[str, Any], servers: tuple[Server, Server]
) -> None:
    one, _ = servers
    one.looks.plan("pi-1", plan())
    assert one.looks.plan("pi-1", plan(**changes))
    assert one.looks.plan("pi-2", plan())
    assert one.n_events == 3


def test_the_plan_after_a_report_is_an_event(servers: tuple[Server, Server]) -> None:
    one, two = servers
    one.looks.plan("pi-1", plan())
    one.looks.write()
    one.clock.at_s += 1.0
    two.looks.report("pi-1", report("failed"))
    assert two.looks.plan("pi-1", plan())
    assert not two.looks.plan("pi-1", plan())


def test_plans_that_leave_something_to_fetch_are_all_events(
    servers: tuple[Server, Server],
) -> None:
    one, _ = servers
    assert [one.looks.plan("pi-1", plan(2)) for _ in range(3)] == [True] * 3
    assert one.n_events == 3


def test_a_quiet_device_has_an_event_a_day(servers: tuple[Server, Server]) -> None:
    """Otherwise its plan would be deleted with the events of a month ago."""
    one, _ = servers
    kept = []
    for _ in range(5):
        kept.append(one.looks.plan("pi-1", plan()))
        one.clock.at_s += DAY_S / 2
    assert kept == [True, False, True, False, True]
    one.clock.at_s -= 30 * DAY_S  # a clock that is set back
    assert one.looks.plan("pi-1", plan())


def test_servers_that_write_late_do_not_take_a_device_back(
    servers: tuple[Server, Server],
) -> None:
    one, two = servers
    one.looks.plan("pi-1", plan())
    one.clock.at_s += 10.0
    two.looks.plan("pi-1", plan(version=2))
    two.looks.write()
    one.looks.write()
    assert one.looks.last_seen_s("pi-1") == {"pi-1": one.clock.at_s}
    assert not one.looks.plan("pi-1", plan(version=2))
    assert one.looks.plan("pi-1", plan())


def test_a_database_that_is_away_loses_no_time(
    servers: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = servers
    one.looks.plan("pi-1", plan())

    def away(*args: object) -> object:
        raise DatabaseError("away")

    with monkeypatch.context() as patch:
        patch.setattr(one.registry, "writing", away)
        with pytest.raises(DatabaseError):
            one.looks.write()
        with pytest.raises(DatabaseError):  # an event that cannot be kept is no news either
            one.looks.plan("pi-1", plan(version=2))
    assert one.looks.plan("pi-1", plan(version=2))
    one.looks.write()
    assert not two.looks.plan("pi-1", plan(version=2))


def test_devices_that_were_not_seen_for_long_are_forgotten(
    servers: tuple[Server, Server],
) -> None:
    one, _ = servers
    one.looks.plan("pi-1", plan())
    one.looks.write()
    one.clock.at_s += 31 * DAY_S
    one.looks.plan("pi-2", plan())
    one.looks.write()
    assert one.looks.delete(30 * DAY_S) == 1
    assert set(one.looks.last_seen_s()) == {"pi-2"}


def test_events_of_servers_of_an_earlier_version_count(url: str) -> None:
    """Such a server knows no looks; both share a database while one after another is renewed."""
    registry = Registry(url)
    registry.record("old", "plan", {})
    looks = Looks(registry)
    looks.plan("pi-1", plan())
    assert looks.active_devices(3600.0) == 2
    assert set(looks.last_seen_s()) == {"pi-1"}
    registry.close()


@given(st.lists(st.tuples(st.sampled_from("plr"), st.integers(1, 2), st.booleans()), max_size=20))
def test_events_tell_the_last_plan_and_the_last_report_properties(
    acts: list[tuple[str, int, bool]],
) -> None:
    """Whatever two servers are asked: the newest events say what the device was last told."""
    with tempfile.TemporaryDirectory() as folder:
        url, clock = f"sqlite:///{folder}/devices.db", Clock()
        both = Server(Registry(url), clock), Server(Registry(url), clock)
        told: dict[str, Any] = {}
        for kind, version, is_second in acts:
            clock.at_s += 1.0
            server = both[is_second]
            if kind == "r":
                server.looks.report("pi-1", report())
                told["report"] = report()
            else:
                told["plan"] = plan(2 if kind == "l" else 0, version=version)
                server.looks.plan("pi-1", told["plan"])
            server.looks.write()
        known = {event.kind: dict(event.body) for event in both[0].registry.events_after(0)}
        assert known == told
        for each in both:
            each.registry.close()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    settings = ServerSettings(database=f"sqlite:///{tmp_path}/devices.db", needs_token=False)
    with TestClient(create_app(store_with(tmp_path / "store"), settings)) as client:
        yield client


def test_what_the_server_shows_of_looks(client: TestClient) -> None:
    question = {
        "adapter": "sst2", "base_fingerprint": FINGERPRINT, "link": {"throughput_bps": 1.0},
        "deadline_s": 1e6, "held": [],
    }  # fmt: skip
    first = client.post("/v1/plan", json=question).json()
    held = {**question, "held": [blob["sha256"] for blob in first["blobs"]]}
    answers = [client.post("/v1/plan", json=held).json() for _ in range(4)]
    assert all(answer["blobs"] == [] for answer in answers)
    shown = client.get("/v1/devices").json()
    (device,) = shown["devices"]
    assert (shown["sequence"], device["plan"]["sequence"]) == (2, 2)
    assert device["last_s"] > device["plan"]["at_s"]
    text = client.get("/metrics").text
    assert "rankcast_looks_total 3.0" in text
    assert "rankcast_active_devices 1.0" in text
    assert "rankcast_plan_seconds_count 5.0" in text


def test_looks_are_written_when_a_server_ends(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/devices.db"
    settings = ServerSettings(database=url, needs_token=False, write_looks_s=1e6)
    app = create_app(store_with(tmp_path / "store"), settings)
    with TestClient(app):
        app.state.server.looks.plan("pi-1", plan())
    registry = Registry(url)
    assert set(Looks(registry).last_seen_s()) == {"pi-1"}
    registry.close()
