"""The rules of rollouts, without a database: see docs/rollouts.md."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankcast.errors import ConfigError
from rankcast.server.rollouts.decide import (
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
from rankcast.server.rollouts.rollout import (
    Limit,
    Limits,
    Member,
    Order,
    Rollout,
    Stage,
    Target,
    position,
    share_of,
)
from rankcast.server.rollouts.windows import Window

NOW_S = 1_900_000_000.0
STAGES = (Stage(0.1, 3600.0), Stage(0.5, 3600.0), Stage(1.0, 3600.0))
ORDER = Order("demo", 2, 1, stages=STAGES)
RUNNING = Rollout(1, ORDER, "running", stage_began_s=NOW_S)


def counted(**states: int) -> StageCount:
    n_silent = states.pop("silent", 0)
    return StageCount({k.replace("_", "-"): n for k, n in states.items()}, n_silent)  # pyright: ignore[reportArgumentType]


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("span", "days", "zone", "time", "is_open"),
    [
        ("01:00-05:00", (), "UTC", "2030-01-07T00:59", False),
        ("01:00-05:00", (), "UTC", "2030-01-07T01:00", True),
        ("01:00-05:00", (), "UTC", "2030-01-07T05:00", False),
        ("22:00-02:00", (), "UTC", "2030-01-07T23:00", True),
        ("22:00-02:00", (), "UTC", "2030-01-07T01:59", True),
        ("22:00-02:00", (), "UTC", "2030-01-07T12:00", False),
        ("22:00-02:00", ("mon",), "UTC", "2030-01-07T22:30", True),  # a Monday
        ("22:00-02:00", ("mon",), "UTC", "2030-01-08T01:00", True),  # the rest of its night
        ("22:00-02:00", ("mon",), "UTC", "2030-01-07T01:00", False),  # that was Sunday's
        ("01:00-05:00", (), "Asia/Tokyo", "2030-01-06T17:00", True),  # 02:00 there
        ("01:00-05:00", (), "America/New_York", "2030-01-07T02:00", False),  # 21:00 there
    ],
)
def test_windows_open_by_the_clock_of_the_device(
    span: str, days: tuple[str, ...], zone: str, time: str, *, is_open: bool
) -> None:
    assert Window.parse(span, days).is_open(at(time), zone) is is_open


def test_a_window_is_the_same_hours_in_summer_and_winter() -> None:
    window = Window.parse("01:00-05:00")
    for day in ("2030-01-07", "2030-07-08"):
        assert window.is_open(at(f"{day}T01:30", "Europe/Berlin"), "Europe/Berlin")
        assert not window.is_open(at(f"{day}T00:30", "Europe/Berlin"), "Europe/Berlin")


@pytest.mark.parametrize(
    ("span", "days", "words"),
    [
        ("03:00-03:00", (), "never opens"),
        ("3-5", (), "a span such as"),
        ("24:00-05:00", (), "a span such as"),
        ("01:00-05:00", ("someday",), "one of mon, tue"),
    ],
)
def test_windows_that_never_open_are_refused(span: str, days: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Window.parse(span, days)


def test_a_window_without_days_is_refused() -> None:
    with pytest.raises(ConfigError, match="without a day never opens"):
        Window(60, 300, ())


@given(st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=60))
def test_stages_share_out_every_device_and_none_is_empty_properties(names: set[str]) -> None:
    stages, stage_of = ranked_stages(STAGES, ORDER.salt, names)
    sizes = [sum(k == n for k in stage_of.values()) for n in range(3)]
    assert set(stage_of) == names
    assert sizes[0] == max(1, -(-len(names) // 10))  # a tenth, rounded up
    assert all(sizes[k] for k in range(min(3, len(names))))
    order = replace(ORDER, stages=stages)
    assert {name: order.stage_of(name) for name in names} == stage_of  # so would latecomers


def test_the_order_of_devices_is_anothers_for_another_version() -> None:
    names = [f"pi-{n}" for n in range(50)]
    by_version = [sorted(names, key=lambda x: position(f"demo:{v}", x)) for v in (1, 2)]
    assert by_version[0] != by_version[1]
    # the first 53 bits of what `printf a:b | sha256sum` prints, so that every server agrees
    assert position("a", "b") == (0x6783A31EABF68CCC >> 11) / 2**53


def test_a_target_is_groups_and_names_and_a_share_of_them() -> None:
    assert Target().matches("x", (), "demo")
    target = Target(groups=("eu",), devices=("pi-1",))
    assert target.matches("pi-1", (), "demo")
    assert target.matches("pi-2", ("eu", "old"), "demo")
    assert not target.matches("pi-2", ("us",), "demo")
    half = Target(share=0.5)
    n = sum(half.matches(f"pi-{k}", (), "demo") for k in range(1000))
    assert 450 < n < 550  # binomial: 500 with a standard deviation of 16


@pytest.mark.parametrize(
    ("text", "limit"), [("3", Limit(count=3)), ("5%", Limit(share=0.05)), ("0", Limit(count=0))]
)
def test_limits_are_counts_or_shares(text: str, limit: Limit) -> None:
    assert Limit.parse(text) == limit


@pytest.mark.parametrize("text", ["", "x", "-1", "101%", "nan%", "1.5"])
def test_other_limits_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"A (limit|share) is"):
        Limit.parse(text)


def test_a_share_that_is_met_exactly_is_not_exceeded() -> None:
    assert not Limit(share=0.07).is_exceeded(7, 100)  # 0.07 · 100 is 7.000000000000001
    assert not Limit(share=0.29).is_exceeded(29, 100)  # 0.29 · 100 is 28.999999999999996
    assert Limit(share=0.29).is_exceeded(30, 100)
    assert Limit(count=0).is_exceeded(1, 100)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": ()}, "rising shares"),
        ({"stages": (Stage(0.5), Stage(0.1), Stage(1.0))}, "rising shares"),
        ({"stages": (Stage(0.5),)}, "the last is 100%"),
        ({"stages": (Stage(1.0, -1.0),)}, "at least 0 s"),
        ({"version": 1}, "from one version to another"),
        ({"least_share": 1.5}, "least share"),
        ({"silent_after_s": 0.0}, "longer than 0 s"),
    ],
)
def test_orders_that_make_no_sense_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(ORDER, **changes)


def test_an_order_survives_json() -> None:
    order = replace(
        ORDER, target=Target(("eu",), ("pi-1",), 0.5), window=Window.parse("22:00-05:00", ("sat",)),
        limits=Limits(failed=None, silent=Limit(count=2)),
    )  # fmt: skip
    assert Order.from_plain(json.loads(json.dumps(order.to_plain()))) == order


def test_versions_that_cannot_be_had_are_refused() -> None:
    published = Published(3, frozenset({2}))
    check_order(replace(ORDER, version=3, before=2), published)
    check_order(replace(ORDER, version=4, before=2), published)  # not yet published
    with pytest.raises(ConfigError, match="next release of demo will be version 4"):
        check_order(replace(ORDER, version=5, before=2), published)
    with pytest.raises(ConfigError, match=r"kept on version 1 of demo: .* names 2, 3"):
        check_order(replace(ORDER, version=3), published)
    with pytest.raises(ConfigError, match="does not name version 1"):
        check_order(replace(ORDER, version=1, before=2), published)


def test_a_rollout_waits_until_its_version_is_published() -> None:
    waiting = replace(RUNNING, state="waiting", stage_began_s=0.0)
    assert decide(waiting, (), NOW_S, is_published=False) is None
    begun = decide(waiting, (), NOW_S, is_published=True)
    assert begun is not None
    assert (begun.state, begun.stage, begun.stage_began_s) == ("running", 0, NOW_S)


def test_the_next_stage_begins_after_its_time_and_with_enough_devices() -> None:
    rest = (counted(waiting=40), counted(waiting=50))
    ready = (counted(activated=8, offered=2), *rest)
    assert decide(RUNNING, ready, NOW_S + 3599.0, is_published=True) is None
    few = (counted(activated=7, offered=3), *rest)
    assert decide(RUNNING, few, NOW_S + 1e6, is_published=True) is None
    after = decide(RUNNING, ready, NOW_S + 3600.0, is_published=True)
    assert after is not None
    assert (after.state, after.stage, after.stage_began_s) == ("running", 1, NOW_S + 3600.0)
    by_hand = replace(RUNNING, order=replace(ORDER, stages=(Stage(0.1), Stage(0.5), Stage(1.0))))
    assert decide(by_hand, ready, NOW_S + 1e6, is_published=True) is None
    last = replace(RUNNING, stage=2)
    whole = (counted(activated=10), counted(activated=40), counted(activated=45, offered=5))
    done = decide(last, whole, NOW_S + 3600.0, is_published=True)
    assert done is not None
    assert done.state == "done"


def test_a_clock_that_was_set_back_makes_a_stage_last_longer_and_nothing_else() -> None:
    ready = (counted(activated=10), counted(waiting=40), counted(waiting=50))
    assert decide(RUNNING, ready, NOW_S - 1e6, is_published=True) is None
    failing = (counted(rolled_back=10), counted(waiting=40), counted(waiting=50))
    halted = decide(RUNNING, failing, NOW_S - 1e6, is_published=True)
    assert halted is not None
    assert halted.state == "halted"


@pytest.mark.parametrize("kind", ["rolled_back", "refused", "unhealthy", "silent"])
def test_each_kind_of_failure_halts_by_its_own_limit_and_by_that_of_all(kind: str) -> None:
    three = counted(activated=7, **{"offered" if kind == "silent" else kind: 3})
    count = replace(three, n_silent=3 if kind == "silent" else 0)
    counts = (count, counted(waiting=40), counted(waiting=50))
    for limits, is_halted in (
        (Limits(failed=None), False),
        (Limits(failed=None, **{kind: Limit(count=3)}), False),
        (Limits(failed=None, **{kind: Limit(count=2)}), True),
        (Limits(failed=Limit(share=0.2)), True),
        (Limits(failed=Limit(share=0.3)), False),
    ):
        rollout = replace(RUNNING, order=replace(ORDER, limits=limits))
        after = decide(rollout, counts, NOW_S, is_published=True)
        assert (after is not None) is is_halted
        if after is not None:
            assert (after.state, after.halted_stage) == ("halted", 0)
            assert "3 of 10 devices" in after.reason


def test_an_earlier_stage_that_falls_ill_later_halts_it_even_when_paused() -> None:
    counts = (counted(activated=7, unhealthy=3), counted(activated=40), counted(waiting=50))
    for state in ("running", "paused"):
        after = decide(replace(RUNNING, state=state, stage=1), counts, NOW_S, is_published=True)
        assert after is not None
        assert (after.state, after.halted_stage) == ("halted", 0)
        assert [after.reaches(stage) for stage in range(3)] == [False, False, False]


def test_stages_before_the_halted_one_keep_the_version() -> None:
    counts = (counted(activated=10), counted(activated=30, rolled_back=10), counted(waiting=50))
    after = decide(replace(RUNNING, stage=1), counts, NOW_S, is_published=True)
    assert after is not None
    assert [after.reaches(stage) for stage in range(3)] == [True, False, False]
    aborted = changed_by_hand(after, "abort", NOW_S)
    assert not any(aborted.reaches(stage) for stage in range(3))


@pytest.mark.parametrize("state", ["halted", "aborted", "done"])
def test_what_has_ended_does_not_go_on(state: str) -> None:
    rollout = replace(RUNNING, state=state, halted_stage=0)
    failing = (counted(rolled_back=10),) * 3
    assert decide(rollout, failing, NOW_S + 1e9, is_published=True) is None
    for action in ("pause", "resume", "advance"):
        with pytest.raises(ConfigError, match=f"Rollout 1 is {state}: only a"):
            changed_by_hand(rollout, action, NOW_S)


def told(rollout: Rollout, member: Member, active: int | None = 1, zone: str = "UTC") -> int:
    return version_told(rollout, member, at("2030-01-07T12:00"), active=active, time_zone=zone)


def test_a_device_is_told_the_version_of_its_stage() -> None:
    assert told(RUNNING, Member("x", 0, 1)) == 2
    assert told(RUNNING, Member("x", 1, 1)) == 1
    assert told(replace(RUNNING, state="waiting"), Member("x", 0, 1)) == 1
    for state in ("rolled-back", "refused", "unhealthy"):
        assert told(RUNNING, Member("x", 0, 1, state)) == 1
    assert told(replace(RUNNING, state="halted", halted_stage=0), Member("x", 0, 1), 2) == 1


def test_neither_a_pause_nor_a_closed_window_takes_a_version_away() -> None:
    night = replace(RUNNING, order=replace(ORDER, window=Window.parse("01:00-05:00")))
    paused = replace(RUNNING, state="paused")
    for rollout in (night, paused):
        assert told(rollout, Member("x", 0, 1)) == 1
        assert told(rollout, Member("x", 0, 1, "offered"), active=2) == 2
        assert told(rollout, Member("x", 0, 1, "activated"), active=None) == 2
    assert told(paused, Member("x", 0, 1, "offered")) == 2  # it may be half way
    assert told(night, Member("x", 0, 1), zone="America/Los_Angeles") == 2  # 04:00 there
    halted = replace(night, state="halted", halted_stage=0)
    assert told(halted, Member("x", 0, 1, "activated"), active=2) == 1  # going back needs none


def test_what_a_device_says_when_it_asks_makes_up_for_lost_reports() -> None:
    offered = Member("x", 0, 1, "offered")
    halted = replace(RUNNING, state="halted", halted_stage=0)
    assert asked(RUNNING, offered, active=1) == offered
    assert asked(RUNNING, offered, active=2).state == "activated"
    assert asked(RUNNING, offered, active=1, rejected={2}).state == "rolled-back"
    active = Member("x", 0, 1, "activated")
    assert asked(RUNNING, active, active=None) == active
    gone_back = asked(RUNNING, active, active=1)
    assert (gone_back.state, gone_back.message) == (
        "rolled-back", "It went back to version 1 by itself.",
    )  # fmt: skip
    assert asked(halted, active, active=1).state == "returned"
    assert asked(halted, offered, active=1).state == "returned"


def test_reports_count_where_their_version_is_the_rollouts() -> None:
    offered = Member("x", 0, 1, "offered")
    assert reported(RUNNING, offered, 2, "activated", "").state == "activated"
    for event in ("rolled-back", "refused", "unhealthy"):
        failed = reported(RUNNING, offered, 2, event, "why")
        assert (failed.state, failed.message) == (event, "why")
    for event in ("failed", "fetched"):
        assert reported(RUNNING, offered, 2, event, "") == offered
    assert reported(RUNNING, offered, 1, "rolled-back", "") == offered
    active, halted = Member("x", 0, 1, "activated"), replace(RUNNING, state="aborted")
    assert reported(halted, active, 1, "activated", "").state == "returned"


def test_a_device_that_comes_later_gets_what_its_stage_has() -> None:
    done = replace(RUNNING, state="done", stage=2)
    assert settled_version([(done, None)], "new", (), 1) == 2
    assert settled_version([(done, Member("x", 2, 1, "rolled-back"))], "x", (), 7) == 1
    halted = replace(RUNNING, state="halted", halted_stage=0)
    assert joining(halted, "new", (), 1) is None
    assert settled_version([(halted, None), (done, None)], "new", (), 1) == 2
    assert settled_version([(halted, None)], "new", (), 1) == 1
    european = replace(done, order=replace(ORDER, target=Target(groups=("eu",))))
    assert settled_version([(european, None)], "new", ("us",), 1) == 1
    assert share_of("2.5%") == 0.025
    assert datetime.fromtimestamp(NOW_S, UTC).year == 2030
