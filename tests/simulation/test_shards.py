"""A simulated fleet in shards: the same sums and rows, however divided and wherever computed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.commands import Call
from rankcast.codec.header import BaseModel
from rankcast.errors import ConfigError, LinkError
from rankcast.release.manifest import Blob, Chunk, File, Manifest
from rankcast.simulation.fleet import Fleet
from rankcast.simulation.links import Links
from rankcast.simulation.report import rows_of_fleet
from rankcast.simulation.settings import SimulationSettings
from rankcast.simulation.shards import RayWorkers, Shard, Sharding, shards_here
from rankcast.simulation.sums import FleetSums, Times

N, BLOCK = 77, 8
"""Ten blocks, of which the last has five devices."""


def manifest(version: int) -> Manifest:
    """Return a release of a header of 1000 bytes and three chunks of 3000."""
    blobs = [Blob(f"{version:032x}{k:032x}", 3000 if k else 1000) for k in range(4)]
    chunks = tuple(Chunk(blob, 1.0 / k, None) for k, blob in enumerate(blobs[1:], 1))
    return Manifest("demo", version, BaseModel("tiny", "0" * 64), (File(blobs[0], chunks),), {})


@dataclass(frozen=True)
class RandomLinks:
    """Links of random rates up to some limit; of none, links that cannot be.

    A Ray worker gets it by value, for it has no tests to import.
    """

    most_bps: float = 60_000.0

    def __call__(self, block: range, rng: np.random.Generator) -> Links:
        size = (30, len(block))
        low, high = self.most_bps * np.array([0.02, 1.0])
        return Links(rng.uniform(low, high * rng.uniform(0.03, 1.0, len(block)), size), 1.0, 1e3)


def fleet(links: RandomLinks = RandomLinks()) -> Fleet:
    settings = SimulationSettings(
        duration_s=60.0, deadline_s=10.0, every_s=8.0, assumed_bps=2e4, seed=3
    )
    return Fleet(settings, N, links, (manifest(1), manifest(2)), BLOCK)


def plain(sums: FleetSums) -> dict[str, Any]:
    """Return everything that it holds, to the last bit."""
    times = {k: (x.ms.tolist(), x.counts.tolist()) for k, x in sums.times.items()}
    return {**sums.counts, **times, "looks": sums.looks.tolist(), "sent": sums.sent_bps.tolist()}


def added(shards: list[Shard]) -> FleetSums:
    total = shards[0].sums
    for shard in shards[1:]:
        total += shard.sums
    return total


def never() -> bool:
    return False


WHOLE = fleet().run()


def test_the_fleet_of_these_tests_does_everything() -> None:
    """Nothing below compares zeros."""
    counts = WHOLE.sums.counts
    assert 0 < counts["whole"] < counts["newest_version"] <= counts["with_adapter"]
    assert counts["late"] > 0
    assert 0 < counts["in_time"] < N
    assert len(WHOLE.sums.times["first_usable_s"].ms) > N / 2


@given(st.integers(1, 12), st.randoms())
def test_shards_add_up_to_one_run_properties(n_blocks: int, random: Any) -> None:
    shards = list(shards_here(Sharding(fleet(), with_rows=True, n_blocks=n_blocks), never))
    assert len(shards) == -(-10 // n_blocks)
    assert "".join(shard.rows for shard in shards) == rows_of_fleet(WHOLE)
    random.shuffle(shards)
    assert plain(added(shards)) == plain(WHOLE.sums)
    assert added(shards).summary() == WHOLE.summary()


SECONDS = st.lists(st.floats(0.0, 500.0) | st.just(np.nan), max_size=40)


@given(SECONDS, SECONDS)
def test_times_add_up_and_keep_their_quantiles_properties(
    few: list[float], more: list[float]
) -> None:
    one, other = (Times.of(np.array(x, dtype=float)) for x in (few, more))
    both, whole = one + other, Times.of(np.array(few + more, dtype=float))
    assert (both.ms.tolist(), both.counts.tolist()) == (whole.ms.tolist(), whole.counts.tolist())
    known = [x for x in few + more if not np.isnan(x)]
    found = both.quantiles()
    if not known:
        assert found == {"p50": None, "p95": None}
        return
    for name, expected in zip(("p50", "p95"), np.quantile(known, [0.5, 0.95]), strict=True):
        assert found[name] == pytest.approx(expected, abs=1.1e-3)  # half a ms, and as shown


def stopping_after(n: int) -> Callable[[], bool]:
    """Return a question that is answered with yes from the n-th time on."""
    asked: list[int] = []

    def stopping() -> bool:
        asked.append(1)
        return len(asked) >= n

    return stopping


def test_stopping_keeps_the_blocks_that_are_done() -> None:
    shards = list(shards_here(Sharding(fleet(), n_blocks=4), stopping_after(6)))
    assert [shard.sums.counts["devices"] for shard in shards] == [32, 8]
    assert plain(added(shards)) == plain(fleet().run(range(5)).sums)


@contextmanager
def at_once_stopped(words: str) -> Iterator[Callable[[], bool]]:
    del words
    yield lambda: True


def test_an_interrupted_command_writes_what_there_is(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankcast.cli.simulate.stop_on_signal", at_once_stopped)
    table = tmp_path / "new" / "fleet.csv"
    status, out, _ = call("simulate", "--virtual", "--devices", "9000", "--minutes", "0.1",
                          "--json", "--csv", str(table))  # fmt: skip
    assert (status, json.loads(out)["summary"]["devices"]) == (130, 4096)
    assert len(table.read_text().splitlines()) == 4097


def test_two_ray_workers_compute_the_same(tmp_path: Path, call: Call, local_ray: None) -> None:
    import ray
    from ray import cloudpickle

    command = ["simulate", "--virtual", "--devices", "50", "--minutes", "0.5", "--json"]
    expected = call.ok(*command, "--csv", str(tmp_path / "here.csv"))
    sharding = Sharding(fleet(), with_rows=True, n_blocks=1)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with RayWorkers("local", 2) as workers:
        assert ray.cluster_resources()["CPU"] == 2
        shards = list(workers.shards(sharding, never))
        assert plain(added(shards)) == plain(WHOLE.sums)
        assert "".join(shard.rows for shard in shards) == rows_of_fleet(WHOLE)
        some = list(workers.shards(sharding, stopping_after(3)))  # three were begun by then
        assert plain(added(some)) == plain(fleet().run(range(3)).sums)
        with pytest.raises(LinkError, match="carries something"):
            list(workers.shards(Sharding(fleet(RandomLinks(0.0))), never))
        out = call.ok(*command, "--ray", "local", "--csv", str(tmp_path / "ray.csv"))
        assert ray.is_initialized()  # the command leaves a cluster that it did not make
    assert not ray.is_initialized()
    assert out == expected
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()


def fake_ray(**functions: Any) -> SimpleNamespace:
    errors = SimpleNamespace(RayError=OSError)
    given = {"is_initialized": lambda: True, "put": lambda x: x, "exceptions": errors,
             "cluster_resources": lambda: {"CPU": 1.0}}  # fmt: skip
    return SimpleNamespace(**given | functions)


def test_without_ray_or_its_cluster_the_error_names_a_remedy(
    monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    command = ("simulate", "--devices", "1", "--ray", "10.0.0.1:6379")
    assert "--ray computes the devices of --virtual" in call.refused(*command)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'rankcast[ray]'" in call.refused(*command, "--virtual")

    def init(*args: object, **options: object) -> None:
        raise ConnectionError("nobody answers")

    monkeypatch.setitem(sys.modules, "ray", fake_ray(is_initialized=lambda: False, init=init))
    said = call.refused(*command, "--virtual")
    assert "no Ray cluster at 10.0.0.1:6379: nobody answers" in said
    assert "ray start --head" in said


def test_a_shard_that_ray_loses_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(reference: object) -> None:
        raise OSError("out of memory")

    remote = SimpleNamespace(remote=lambda *args: None)
    lost = fake_ray(get=get, remote=lambda **options: lambda function: remote)
    monkeypatch.setitem(sys.modules, "ray", lost)
    with pytest.raises(ConfigError, match=r"could not compute some devices.*out of memory"):
        list(RayWorkers("auto").shards(Sharding(fleet()), never))
