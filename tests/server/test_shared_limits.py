"""Limits over several servers of one database."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self

import pytest

pytest.importorskip("sqlalchemy")

from hypothesis import given
from hypothesis import strategies as st

from rankcast.rate_limit import Rate
from rankcast.server import shared_limits
from rankcast.server.registry import DatabaseError, Registry
from rankcast.server.shared_limits import SharedBuckets

CALLS = Rate(10.0, 50)
"""Each server gives 5 calls at once and 0.2 a second by itself, and takes 5 from the database."""


@dataclass
class Cluster:
    """Servers of one database, with one clock."""

    url: str
    n: int = 2
    rate: Rate = CALLS
    at_s: float = 1.9e9
    registries: list[Registry] = field(default_factory=list)
    servers: list[SharedBuckets] = field(default_factory=list)

    def __enter__(self) -> Self:
        for _ in range(self.n):
            self.registries.append(Registry(self.url))
            buckets = SharedBuckets(self.rate, self.registries[-1], self.now, self.now)
            self.servers.append(buckets)
        return self

    def __exit__(self, *error: object) -> None:
        for registry in self.registries:
            registry.close()

    def now(self) -> float:
        return self.at_s

    def let_in(self, tries: int, server: int, name: str = "pi-1") -> int:
        return sum(self.servers[server].take(name) == 0.0 for _ in range(tries))


def test_a_burst_holds_over_two_servers(url: str) -> None:
    with Cluster(url) as both:
        assert both.let_in(40, 0) == 40  # 5 by itself, and 7 leases of 5
        assert both.let_in(40, 1) == 5 + 15  # by itself, and what is left
        assert both.let_in(40, 0) == 0
        assert both.let_in(40, 0, "pi-2") == 40


def test_the_rate_holds_over_two_servers(url: str) -> None:
    with Cluster(url) as both:
        both.let_in(100, 0)
        both.let_in(100, 1)
        passed = 0
        for _ in range(100):  # 10 s
            both.at_s += 0.1
            passed += both.let_in(3, 0) + both.let_in(3, 1)
        assert 100 <= passed <= 100 + 2 * 0.2 * 10 + 1


def test_a_device_that_asks_seldom_costs_the_database_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Cluster(url) as both:

        def untouched(*args: object) -> object:
            raise DatabaseError("was asked")

        with monkeypatch.context() as patch:
            for registry in both.registries:
                patch.setattr(registry, "writing", untouched)
            for _ in range(100):
                both.at_s += 10.0
                assert both.let_in(2, 0) == 2
            assert both.let_in(3, 0) == 3
            with pytest.raises(DatabaseError):
                both.servers[0].take("pi-1")
        assert both.let_in(1, 0) == 1


def test_who_was_refused_is_refused_from_memory(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cluster(url, rate=Rate(1e-6, 3)) as both:
        assert [both.servers[0].take("pi-1") for _ in range(3)] == [0.0] * 3  # 0.3 is no call
        first_s = both.servers[0].take("pi-1")
        assert first_s == pytest.approx(1e6, rel=1e-3)
        both.at_s += 1000.0

        def untouched(*args: object) -> object:
            raise DatabaseError("was asked")

        with monkeypatch.context() as patch:
            patch.setattr(both.registries[0], "writing", untouched)
            assert both.servers[0].take("pi-1") == pytest.approx(first_s - 1000.0)
        assert both.servers[1].take("pi-1") > 0.0
        both.at_s += 1e6
        assert both.servers[0].take("pi-1") == 0.0


def test_a_server_whose_clock_is_late_gives_nothing_twice(url: str) -> None:
    with Cluster(url) as both:
        early, now_s = SharedBuckets(CALLS, both.registries[0], both.now, both.now), both.at_s
        assert sum(early.take("pi-1") == 0.0 for _ in range(55)) == 55
        both.at_s = now_s - 3600.0
        assert both.let_in(10, 1) == 5  # by itself
        both.at_s = now_s + 5.0
        assert both.let_in(100, 1) == 55  # 5 by itself, and 5 s of 10


def test_full_buckets_are_forgotten(url: str) -> None:
    with Cluster(url) as both:
        both.let_in(10, 0)
        assert both.servers[1].delete_full() == 0
        both.at_s += 5.1
        assert both.servers[1].delete_full() == 1


def test_the_names_that_were_used_longest_ago_are_dropped(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_limits, "MOST_BUCKETS", 2)
    with Cluster(url) as both:
        for name in ("a", "b", "c"):
            both.let_in(1, 0, name)
        assert list(both.servers[0]._locals) == ["b", "c"]


def test_threads_together_take_no_more_than_there_is(url: str) -> None:
    with Cluster(url) as both, ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(lambda n: both.servers[n % 2].take("pi-1"), range(200)))
    assert 50 <= taken.count(0.0) <= 50 + 2 * 5


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 30), st.floats(0.0, 5.0)), max_size=30))
def test_no_more_than_the_bound_properties(asks: list[tuple[int, int, float]]) -> None:
    with tempfile.TemporaryDirectory() as folder, Cluster(f"sqlite:///{folder}/x.db", n=3) as three:
        passed, began_s = 0, three.at_s
        for server, tries, pause_s in asks:
            three.at_s += pause_s
            passed += three.let_in(tries, server)
            elapsed_s = three.at_s - began_s
            assert passed <= 50 + 10 * elapsed_s + 3 * (5 + 0.2 * elapsed_s) + 1e-6
