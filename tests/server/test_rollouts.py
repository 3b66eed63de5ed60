"""Rollouts in the database: several servers, bad input, devices that come and go."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")

from helpers.servers import database
from helpers.waiting import at_once
from rankcast.errors import ConfigError
from rankcast.server.registry import Registry
from rankcast.server.rollouts.database import (
    RolloutConflictError,
    Rollouts,
    UnknownRolloutError,
    compare_and_set,
)
from rankcast.server.rollouts.decide import Published
from rankcast.server.rollouts.questions import Assignment
from rankcast.server.rollouts.rollout import Limit, Limits, Order, Rollout, Stage, Target
from rankcast.server.rollouts.windows import Window

NOW_S = 1_900_000_000.0
HOUR_S = 3600.0
PUBLISHED = Published(2, frozenset({1}))
ORDER = Order("demo", 2, 1, stages=(Stage(0.1, HOUR_S), Stage(0.5, HOUR_S), Stage(1.0, HOUR_S)))
NAMES = tuple(f"pi-{n:02d}" for n in range(20))


@pytest.fixture(params=["sqlite", "postgresql"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    if request.param == "sqlite":
        registry = Registry(f"sqlite:///{tmp_path}/devices.db")
        yield fill(registry)
        registry.close()
        return
    with database(request.getfixturevalue("postgres")) as url:
        registry = Registry(url)
        yield fill(registry)
        registry.close()


def fill(registry: Registry) -> Registry:
    for n, name in enumerate(NAMES):
        registry.add(name, groups=["eu"] if n % 2 else ["us", "old"])
    registry.add("desk", "operator")
    return registry


@pytest.fixture
def rollouts(registry: Registry) -> Rollouts:
    return Rollouts(registry)


def told(rollouts: Rollouts, name: str, now_s: float = NOW_S, **said: object) -> Assignment:
    return rollouts.assign(name, "demo", now_s, PUBLISHED, **said)  # pyright: ignore[reportArgumentType]


def offered(rollouts: Rollouts, now_s: float = NOW_S) -> list[str]:
    """Let every device ask, and return who is told version 2."""
    return [name for name in NAMES if told(rollouts, name, now_s).version == 2]


def state_of(rollouts: Rollouts, rollout: Rollout, now_s: float = NOW_S) -> Rollout:
    return rollouts.progress(rollout.number, now_s, PUBLISHED).rollout


def report(
    rollouts: Rollouts, name: str, event: str, now_s: float = NOW_S, version: int = 2
) -> None:
    number = rollouts.report(name, "demo", now_s, version=version, event=event, message="why")
    if number is not None:
        rollouts.look(number, now_s, PUBLISHED)


def test_without_a_rollout_the_newest_is_meant(rollouts: Rollouts) -> None:
    assert told(rollouts, "pi-01") == Assignment()
    assert rollouts.report("pi-01", "demo", NOW_S, version=2, event="rolled-back") is None


def test_a_stage_is_offered_and_the_rest_keep_the_version_before(rollouts: Rollouts) -> None:
    rollout = rollouts.create(ORDER, NOW_S, PUBLISHED)
    first = offered(rollouts)
    assert len(first) == 2  # a tenth of 20
    assert {told(rollouts, name).version for name in NAMES} == {1, 2}
    for name in first:
        report(rollouts, name, "activated")
    assert state_of(rollouts, rollout, NOW_S + HOUR_S).stage == 1
    assert len(offered(rollouts, NOW_S + HOUR_S)) == 10
    counts = rollouts.progress(rollout.number, NOW_S, PUBLISHED).counts
    assert [count.n_devices for count in counts] == [2, 8, 10]  # no operators


def test_a_halt_puts_the_stage_back_and_names_its_failures(rollouts: Rollouts) -> None:
    rollout = rollouts.create(ORDER, NOW_S, PUBLISHED)
    first, second = offered(rollouts)
    report(rollouts, first, "activated")
    report(rollouts, second, "rolled-back")
    progress = rollouts.progress(rollout.number, NOW_S, PUBLISHED)
    assert (progress.rollout.state, progress.rollout.halted_stage) == ("halted", 0)
    assert "1 of 2 devices failed (1 rolled-back), more than 5%" in progress.rollout.reason
    assert [(m.device, m.state, m.message) for m in progress.failed] == [
        (second, "rolled-back", "why")
    ]
    groups = {"eu": 1} if NAMES.index(second) % 2 else {"us": 1, "old": 1}
    assert progress.by_group == groups
    assert told(rollouts, first, active=2).version == 1
    told(rollouts, first, active=1)
    counts = rollouts.progress(rollout.number, NOW_S, PUBLISHED).counts
    assert counts[0].states == {"returned": 1, "rolled-back": 1}
    assert offered(rollouts, NOW_S + 100 * HOUR_S) == []
    again = rollouts.create(replace(ORDER, target=Target(devices=("pi-03",))), NOW_S, PUBLISHED)
    assert again.number > rollout.number  # a halted one does not stand in the way
    assert told(rollouts, "pi-03").version == 2


def test_overlapping_rollouts_are_refused(rollouts: Rollouts) -> None:
    rollout = rollouts.create(ORDER, NOW_S, PUBLISHED)
    with pytest.raises(RolloutConflictError, match=rf"Rollout {rollout.number} of demo .* overlap"):
        rollouts.create(replace(ORDER, target=Target(groups=("eu",))), NOW_S, PUBLISHED)
    other = rollouts.create(replace(ORDER, adapter="other"), NOW_S, PUBLISHED)
    assert [r.number for r in rollouts.all()] == [other.number, rollout.number]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Target(groups=("erope",)), "No device is in a group 'erope'"),
        (Target(devices=("pi-99",)), "No device 'pi-99' has a token"),
        (Target(devices=("pi-01",), share=1e-9), "are no device at all"),
    ],
)
def test_unknown_targets_are_refused(rollouts: Rollouts, target: Target, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        rollouts.create(replace(ORDER, target=target), NOW_S, PUBLISHED)
    assert rollouts.all() == ()
    with pytest.raises(UnknownRolloutError, match="There is no rollout 7"):
        rollouts.get(7)


def test_a_target_of_groups_leaves_the_others_alone(rollouts: Rollouts) -> None:
    order = replace(ORDER, target=Target(groups=("eu",)), stages=(Stage(1.0),))
    rollouts.create(order, NOW_S, PUBLISHED)
    assert offered(rollouts) == [name for n, name in enumerate(NAMES) if n % 2]
    assert told(rollouts, "pi-00").version == 1


def test_operators_pause_advance_and_abort(rollouts: Rollouts) -> None:
    rollout = rollouts.create(ORDER, NOW_S, PUBLISHED)
    rollouts.change(rollout.number, "pause", NOW_S, PUBLISHED, "lunch")
    assert offered(rollouts) == []
    assert state_of(rollouts, rollout).reason == "lunch"
    with pytest.raises(RolloutConflictError, match="is paused: only a running one"):
        rollouts.change(rollout.number, "advance", NOW_S, PUBLISHED)
    rollouts.change(rollout.number, "resume", NOW_S, PUBLISHED)
    rollouts.change(rollout.number, "advance", NOW_S, PUBLISHED)
    assert len(offered(rollouts)) == 10
    rollouts.change(rollout.number, "abort", NOW_S, PUBLISHED, "no")
    assert offered(rollouts) == []
    rollouts.create(ORDER, NOW_S, PUBLISHED)
    with pytest.raises(RolloutConflictError, match="was followed by rollout"):
        rollouts.change(rollout.number, "abort", NOW_S, PUBLISHED)


def test_servers_that_change_one_rollout_together_do_it_once(registry: Registry) -> None:
    """Each sees stage 1 due; it is not advanced twice, to a stage that nobody has watched."""
    one = Rollouts(registry)
    order = replace(ORDER, least_share=0.0, stages=tuple(Stage(s / 10, 0.0) for s in range(1, 11)))
    rollout = one.create(order, NOW_S, PUBLISHED)
    before = one.get(rollout.number)
    at_once(*[lambda: Rollouts(registry).look(rollout.number, NOW_S, PUBLISHED)] * 4)
    after = one.get(rollout.number)
    assert after.revision - before.revision == after.stage - before.stage
    assert 1 <= after.stage <= 4  # each look decided on what the one before it had left
    stale = replace(before, reason="stale")
    with registry.writing() as connection, pytest.raises(RolloutConflictError, match="another"):
        compare_and_set(connection, before, stale)
    assert one.get(rollout.number) == after


def test_a_server_that_starts_anew_goes_on(registry: Registry) -> None:
    rollout = Rollouts(registry).create(ORDER, NOW_S, PUBLISHED)
    first = offered(Rollouts(registry))
    for name in first:
        report(Rollouts(registry), name, "activated")
    assert len(offered(Rollouts(registry), NOW_S + HOUR_S)) == 10
    assert Rollouts(registry).get(rollout.number).stage == 1


def test_silent_devices_halt_it_and_revoked_ones_do_not(
    rollouts: Rollouts, registry: Registry
) -> None:
    limits = Limits(failed=None, silent=Limit(count=0))
    rollout = rollouts.create(replace(ORDER, limits=limits), NOW_S, PUBLISHED)
    first, second = offered(rollouts)
    report(rollouts, second, "activated")
    late_s = NOW_S + 25 * HOUR_S
    registry.revoke(first)  # in the middle of its stage
    progress = rollouts.progress(rollout.number, late_s, PUBLISHED)
    assert (progress.rollout.state, progress.rollout.stage) == ("running", 1)  # 1 of 1 has it
    assert progress.counts[0].states == {"activated": 1}
    bold = next(name for name in NAMES if told(rollouts, name, late_s).version == 2
                and name not in (first, second))  # fmt: skip
    assert told(rollouts, bold, late_s + 23 * HOUR_S).version == 2  # it still asks
    assert state_of(rollouts, rollout, late_s + 30 * HOUR_S).state == "running"
    halted = state_of(rollouts, rollout, late_s + 60 * HOUR_S)
    assert halted.state == "halted"
    assert "silent" in halted.reason


def test_counts_leave_out_revoked_devices_in_any_state(
    rollouts: Rollouts, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 20 devices in two stages of 10: each state once with a device that is revoked later."""
    monkeypatch.setattr("rankcast.server.rollouts.progress._AT_ONCE", 1)
    order = replace(ORDER, stages=(Stage(0.5), Stage(1.0)), limits=Limits(failed=None))
    rollout = rollouts.create(order, NOW_S, PUBLISHED)
    one, two, three, four, five, _, *others = offered(rollouts)
    waiting = [name for name in NAMES if told(rollouts, name).version == 1]
    assert (len(others), len(waiting)) == (4, 10)
    for name, event in ((one, "activated"), (two, "activated"), (three, "unhealthy"),
                        (four, "unhealthy")):  # fmt: skip
        report(rollouts, name, event)
    late_s = NOW_S + 25 * HOUR_S
    told(rollouts, others[0], late_s)  # still asks; two that were named and three others are silent
    for name in (one, three, five, waiting[0]):
        registry.revoke(name)
    first, second = rollouts.progress(rollout.number, late_s, PUBLISHED).counts
    assert first.states == {"activated": 1, "unhealthy": 1, "offered": 5}
    assert (first.n_devices, first.n_silent) == (7, 4)
    assert (second.states, second.n_silent) == ({"waiting": 9}, 0)
    for name in waiting[1:]:
        registry.revoke(name)
    assert rollouts.progress(rollout.number, late_s, PUBLISHED).counts[1].states == {}


def test_an_index_that_an_older_database_lacks_is_made(tmp_path: Path) -> None:
    url, named = f"sqlite:///{tmp_path}/devices.db", "SELECT name FROM sqlite_master"
    for _ in range(2):
        registry = Registry(url)
        Rollouts(registry)
        registry.close()
        with sqlite3.connect(tmp_path / "devices.db") as file:
            assert ("rankcast_rollout_counts",) in file.execute(named).fetchall()
            file.execute("DROP INDEX rankcast_rollout_counts")
        file.close()


def test_the_nearest_of_very_many_names_is_not_searched(
    rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"no device 'pi-1'; did you mean 'pi-1"):
        rollouts.unpin("pi-1", "demo")
    monkeypatch.setattr("rankcast.server.rollouts.database._MOST_COMPARED", 3)
    with pytest.raises(ConfigError, match="no device 'pi-1'; see rankcast devices list"):
        rollouts.unpin("pi-1", "demo")


def test_a_clock_that_jumps_back_changes_nothing(rollouts: Rollouts) -> None:
    rollout = rollouts.create(ORDER, NOW_S, PUBLISHED)
    first = offered(rollouts)
    for name in first:
        report(rollouts, name, "activated")
    assert offered(rollouts, NOW_S - 1e8) == first
    assert state_of(rollouts, rollout, NOW_S - 1e8).stage == 0
    assert state_of(rollouts, rollout, NOW_S + HOUR_S).stage == 1


def test_windows_open_in_the_time_zone_of_the_device(
    rollouts: Rollouts, registry: Registry
) -> None:
    registry.add("kyoto", time_zone="Asia/Tokyo")
    target = Target(devices=("kyoto", "pi-01"))
    night = Window.parse("01:00-05:00")
    order = replace(ORDER, stages=(Stage(1.0),), target=target, window=night)
    rollouts.create(order, NOW_S, PUBLISHED)
    evening_s = NOW_S - NOW_S % 86400.0 + 17 * HOUR_S  # 17:00 UTC is 02:00 in Kyoto
    assert told(rollouts, "kyoto", evening_s).version == 2
    assert told(rollouts, "pi-01", evening_s).version == 1
    assert told(rollouts, "pi-01", evening_s + 9 * HOUR_S).version == 2


def test_a_device_that_is_pinned_stays(rollouts: Rollouts) -> None:
    rollouts.create(replace(ORDER, stages=(Stage(1.0),)), NOW_S, PUBLISHED)
    rollouts.pin("pi-01", "demo", 1, PUBLISHED)
    answer = told(rollouts, "pi-01")
    assert (answer.version, answer.reason) == (1, "pi-01 is pinned to version 1.")
    withdrawn = rollouts.assign("pi-01", "demo", NOW_S, Published(2))
    assert (withdrawn.version, withdrawn.holds) == (None, True)
    assert rollouts.unpin("pi-01", "demo") == 1
    assert told(rollouts, "pi-01").version == 2
    with pytest.raises(ConfigError, match="names versions 1, 2, not 5"):
        rollouts.pin("pi-01", "demo", 5, PUBLISHED)
    with pytest.raises(ConfigError, match="no device 'nobody'"):
        rollouts.pin("nobody", "demo", 1, PUBLISHED)


def test_a_device_that_comes_later_joins(rollouts: Rollouts, registry: Registry) -> None:
    rollout = rollouts.create(replace(ORDER, stages=(Stage(1.0, 0.0),)), NOW_S, PUBLISHED)
    for name in offered(rollouts):
        report(rollouts, name, "activated")
    assert state_of(rollouts, rollout).state == "done"
    registry.add("new")
    assert told(rollouts, "new", active=None).version == 2
    third = Published(3, frozenset({1, 2}))  # is published, and nobody has ordered it
    answer = rollouts.assign("new", "demo", NOW_S, third, active=2)
    assert (answer.version, answer.holds) == (2, False)
    assert rollouts.default_before("demo", 3, third) == 2


def test_nobody_gets_the_version_that_was_halted_as_the_one_before(
    rollouts: Rollouts, registry: Registry
) -> None:
    """Version 2 fails on its first device; version 3 is next, with a device that came between."""
    halted = rollouts.create(ORDER, NOW_S, PUBLISHED)
    report(rollouts, offered(rollouts)[0], "rolled-back")
    assert state_of(rollouts, halted).state == "halted"
    registry.add("between")
    third = Published(3, frozenset({1, 2}))
    before = rollouts.default_before("demo", 3, third)
    assert before == 1
    rollouts.create(replace(ORDER, version=3, before=before), NOW_S, third)
    told = {rollouts.assign(n, "demo", NOW_S, third).version for n in (*NAMES, "between")}
    assert told == {1, 3}


def test_devices_outside_a_rollout_keep_their_version_through_the_next(
    rollouts: Rollouts,
) -> None:
    """Group eu gets version 2; while all wait for version 3, the others still have version 1."""
    target = Target(groups=("eu",))
    first = rollouts.create(replace(ORDER, target=target, stages=(Stage(1.0),)), NOW_S, PUBLISHED)
    rollouts.change(first.number, "advance", NOW_S, PUBLISHED)
    order = replace(ORDER, version=3, before=2)
    rollouts.create(order, NOW_S, PUBLISHED)
    versions = {n: rollouts.assign(n, "demo", NOW_S, PUBLISHED).version for n in NAMES}
    assert [versions[name] for name in NAMES[:4]] == [1, 2, 1, 2]


def test_a_first_release_needs_no_rollout(rollouts: Rollouts) -> None:
    with pytest.raises(ConfigError, match="A first release needs no rollout"):
        rollouts.default_before("demo", 1, Published(1))


def test_databases_of_earlier_versions_go_on(tmp_path: Path) -> None:
    path = tmp_path / "devices.db"
    with sqlite3.connect(path) as old:
        old.execute(
            "CREATE TABLE rankcast_devices (name VARCHAR(64) PRIMARY KEY, role VARCHAR(16) NOT "
            "NULL, token_sha256 VARCHAR(64) NOT NULL UNIQUE, created_s FLOAT NOT NULL, revoked_s "
            "FLOAT)"
        )
        old.execute("INSERT INTO rankcast_devices VALUES ('old', 'device', 'ab', 1.0, NULL)")
    old.close()
    for _ in range(2):  # once to add what lacks, once to find it there
        registry = Registry(f"sqlite:///{path}")
        (device,) = registry.devices()
        assert (device.name, device.groups, device.time_zone) == ("old", (), "UTC")
        registry.close()
    registry = Registry(f"sqlite:///{path}")
    registry.add("new", groups=["eu"], time_zone="Europe/Berlin")
    assert [(d.name, d.groups, d.time_zone) for d in registry.devices()] == [
        ("new", ("eu",), "Europe/Berlin"), ("old", (), "UTC"),
    ]  # fmt: skip
    assert offered_one(Rollouts(registry), "old") == 2
    registry.close()


def offered_one(rollouts: Rollouts, name: str) -> int | None:
    rollouts.create(replace(ORDER, stages=(Stage(1.0),)), NOW_S, PUBLISHED)
    return told(rollouts, name).version
