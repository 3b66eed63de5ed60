"""Cells: their file, whose they are, and how their devices share them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from hypothesis import given
from hypothesis import strategies as st

from helpers.cells import SharedLink, Syncing
from helpers.fleet import DirectApp, SimulatedClock
from helpers.stores import FINGERPRINT, lay_out, put_release
from rankcast.cli.serve import _about_cells
from rankcast.edge.advice import MeasuredLink
from rankcast.errors import ConfigError
from rankcast.rate_limit import Rate
from rankcast.release.manifest import Manifest
from rankcast.release.plan import gains
from rankcast.release.store import Store
from rankcast.server.app import create_app
from rankcast.server.cell_shares import CellShares, Step, Sync, place_of, steps_of
from rankcast.server.cells import Cell, cell_of, read_cells
from rankcast.server.registry import Device, Registry, checked_groups
from rankcast.server.settings import ServerSettings

OFTEN = Rate(1e9, 1e9)
NORTH = Cell("north", max_bps=10_000.0)


# -- What a cell is


def test_a_file_names_cells(tmp_path: Path) -> None:
    path = tmp_path / "cells.toml"
    path.write_text("[north]\nairtime_share = 0.25\n[depot]\nmax_bps = 2e6\nairtime_share = 1\n")
    assert read_cells(path) == (Cell("north", 0.25), Cell("depot", 1, 2e6))


@pytest.mark.parametrize(
    "text",
    ["north = 3", "[north]", "[north]\nmax_bps = -1", "[north]\nmax_bps = nan",
     "[north]\nairtime_share = 1.5", "[north]\nmax_bps = 'fast'", "[north]\nspeed = 1.0",
     "['no rth']\nmax_bps = 1", "[north", "[north]\nmax_bps = inf"],
)  # fmt: skip
def test_a_file_with_anything_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cells.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"airtime_share|letters"):
        read_cells(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_cells(tmp_path / "none.toml")


def test_a_bit_takes_the_longer_of_its_two_times() -> None:
    """At 1 Mbit/s alone, a quarter of the airtime carries 250 kbit/s."""
    assert Cell("a", 0.25).seconds_of_bit(1e6) == pytest.approx(4e-6)
    assert Cell("a", max_bps=1e5).seconds_of_bit(1e6) == pytest.approx(1e-5)
    assert Cell("a", 0.25, 1e5).seconds_of_bit(1e6) == pytest.approx(1e-5)
    assert Cell("a", 0.25, 1e5).seconds_of_bit(1e4) == pytest.approx(4e-4)
    assert Cell("a", 0.0).seconds_of_bit(1e6) == Cell("a", 1.0, 0).seconds_of_bit(1e6) == math.inf


def test_a_group_names_the_cell_of_a_device() -> None:
    assert cell_of(checked_groups(["eu", "cell=north"])) == "north"
    assert cell_of(["eu"]) is None
    for wrong in (["cell=north", "cell=south"], ["cell="], ["=north"], ["cell=a=b"]):
        with pytest.raises(ConfigError):
            checked_groups(wrong)


def test_a_server_says_which_cells_fit_no_device() -> None:
    devices = [Device("a", "device", 0.0, None, ("cell=nroth",)), Device("b", "device", 0.0, None)]
    said = " ".join(_about_cells([NORTH], devices))
    assert "these cells: north." in said
    assert "as if alone: nroth." in said
    devices = [Device("a", "device", 0.0, None, ("cell=north",))]
    assert _about_cells([NORTH], devices) == []


# -- What has room


def test_steps_lie_on_the_hull() -> None:
    """Of 1,000, 2,000 and 3,000 bits worth 1, 1.1 and 3 the second is no step; 4,000 is too far."""
    points = [(1000, 1.0), (2000, 1.1), (3000, 3.0), (4000, 9.0)]
    assert steps_of(points, 1e-3, 3500.0) == [Step(1.0, 3.0, 3000)]
    points = [(1000, 2.0), (3000, 3.0), (5000, 2.5)]
    assert steps_of(points, 1e-3, 9e9) == [Step(2.0, 1.0, 1000), Step(0.5, 2.0, 3000)]
    assert steps_of(points, math.inf, 9e9) == steps_of([(0, 1.0), (10, 0.0)], 1.0, 9.0) == []


def test_a_step_that_gains_more_comes_first() -> None:
    """10 s: 4 s are promised, and 5 s go to a step that gains more; so 1 s is left, not 2."""
    steps = [Step(0.5, 1.0, 1), Step(0.2, 1.0, 2)]
    other = Sync(10.0, 4.0, [Step(0.9, 5.0)])
    assert place_of(Sync(10.0, 0.0, steps), [other]) == (1, 9.0)
    cheap = Sync(10.0, 4.0, [Step(0.1, 5.0)])
    assert place_of(Sync(10.0, 0.0, steps), [cheap]) == (2, 4.0)
    later = Sync(20.0, 4.0, [Step(0.9, 5.0)])  # what is due later can wait
    assert place_of(Sync(10.0, 0.0, steps), [later]) == (2, 9.0)


SYNCS = st.builds(
    lambda left_s, promised_s, pairs: Sync(
        left_s, promised_s, [Step(g, s, n) for n, (g, s) in enumerate(sorted(pairs)[::-1], 1)]
    ),
    st.floats(1.0, 100.0), st.floats(0.0, 50.0),
    st.lists(st.tuples(st.floats(1e-3, 10.0), st.floats(1e-2, 30.0)), max_size=4),
)  # fmt: skip


@given(SYNCS, st.lists(SYNCS, max_size=5))
def test_what_has_room_fits_before_every_deadline(asker: Sync, others: list[Sync]) -> None:
    n_fit, ahead_s = place_of(asker, others)
    alone, _ = place_of(asker, [])
    assert n_fit <= alone
    taken_s = sum(step.airtime_s for step in asker.steps[:n_fit])
    for deadline_s in {asker.left_s, *(sync.left_s for sync in others)}:
        due = [s for s in [asker, *others] if s.left_s <= deadline_s]
        promised_s = sum(min(s.promised_s, s.left_s) for s in due)
        if n_fit and deadline_s >= asker.left_s:
            assert promised_s + taken_s <= deadline_s + 1e-6
    assert ahead_s >= 0.0


# -- What the database remembers


class Servers:
    """Two servers of a database, and steps of one second each."""

    def __init__(self, url: str) -> None:
        self.registries = [Registry(url), Registry(url)]
        self.shares = [CellShares(registry, [NORTH]) for registry in self.registries]
        self.turn, self.now_s = 0, 1.9e9

    def ask(
        self,
        name: str,
        n_steps: int,
        left_s: float = 10.0,
        *,
        again: bool = False,
        gain: float = 1.0,
    ) -> tuple[int, float, bool]:
        """Ask the next server; return steps given, the wait, and whether to ask again."""
        self.turn += 1
        steps = [Step(gain - 0.01 * n, 1.0, 200_000 * n) for n in range(1, n_steps + 1)]
        bits, wait_s, told = self.shares[self.turn % 2].share(
            "north", (name, "demo"), steps, left_s, self.now_s, comes_again=again
        )
        return bits // 200_000, wait_s, told.asks_again


@pytest.fixture
def servers(url: str) -> Iterator[Servers]:
    servers = Servers(url)
    yield servers
    for registry in servers.registries:
        registry.close()


def test_what_one_server_promised_another_does_not_promise_again(servers: Servers) -> None:
    assert servers.ask("pi-1", 6)[0] == 6
    assert servers.ask("pi-2", 6)[0] == 4
    assert servers.ask("pi-3", 6)[0] == 0
    assert servers.shares[0].loads(servers.now_s) == {"north": (2, 1.0)}
    servers.shares[1].release("pi-1", "demo")
    assert servers.ask("pi-3", 6)[0] == 6
    assert servers.ask("pi-3", 6)[0] == 6  # what it asks for takes the place of what it asked


def test_a_device_that_never_reports_is_forgotten_at_its_deadline(servers: Servers) -> None:
    servers.ask("pi-1", 10)
    servers.now_s += 9.9
    assert servers.ask("pi-2", 3, left_s=3.0)[0] == 2  # 0.1 s of 10 are still to come, in 3 s
    servers.shares[0].release("pi-2", "demo")
    servers.now_s += 0.2
    assert servers.ask("pi-3", 3, left_s=3.0)[0] == 3
    assert servers.shares[0].loads(servers.now_s)["north"][0] == 1


@pytest.mark.parametrize("back_s", [5.0, 86400.0])
def test_a_clock_that_is_set_back_holds_nothing_for_longer_than_a_deadline(
    servers: Servers, back_s: float
) -> None:
    servers.ask("pi-1", 10)
    servers.now_s -= back_s
    assert servers.ask("pi-2", 1)[0] == 0
    servers.now_s += 10.1
    assert servers.ask("pi-2", 5)[0] == 5


def test_steps_go_to_whoever_gains_more(servers: Servers) -> None:
    """Both ask again. The first begins with a step; the second gains more, and is next."""
    assert servers.ask("poor", 10, again=True, gain=0.5) == (1, 1.0, True)
    assert servers.ask("rich", 8, again=True) == (1, 1.0, True)
    given_s, wait_s, _ = servers.ask("poor", 9, again=True, gain=0.4)
    assert (given_s, wait_s) == (0, 8.0)  # a step of the other is under way, and 7 are to come
    servers.now_s += 1.0
    assert servers.ask("rich", 7, left_s=9.0, again=True)[0] == 1


def test_a_device_that_does_not_come_back_for_its_turn_is_not_waited_for(servers: Servers) -> None:
    servers.ask("busy", 8, left_s=30.0)
    assert servers.ask("gone", 30, left_s=60.0, again=True)[:2] == (0, 8.0)
    servers.now_s += 8.0
    servers.shares[0].release("busy", "demo")
    assert servers.ask("other", 5, gain=0.1, left_s=60.0, again=True)[0] == 0
    servers.now_s += 10.1
    assert servers.ask("other", 5, gain=0.1, left_s=50.0, again=True)[0] == 1


def test_who_can_receive_nothing_in_time_is_not_told_to_wait(servers: Servers) -> None:
    servers.ask("pi-1", 10)
    assert servers.ask("pi-2", 3, left_s=1.5, again=True) == (0, 1.5, True)
    assert servers.ask("pi-2", 0, left_s=10.0, again=True) == (0, 10.0, False)
    assert servers.shares[0].loads(servers.now_s)["north"][0] == 1


# -- What is gained by what


def test_gains_are_the_loss_removed(tmp_path: Path) -> None:
    """Losses 0.6, 0.4, 0.3: having nothing counts as 0.9, as far above 0.6 as that above 0.3."""
    store = Store(tmp_path)
    manifest = put_release(store, sizes=((10, 20, 30, 40),), losses=[[0.6, 0.4, 0.3]])
    assert gains(manifest, frozenset()) == [
        (240, pytest.approx(0.3)), (480, pytest.approx(0.5)), (800, pytest.approx(0.6)),
    ]  # fmt: skip
    held = frozenset(blob.sha256 for blob in manifest.files[0].blobs(1))
    assert gains(manifest, held) == [(240, pytest.approx(0.2)), (560, pytest.approx(0.3))]
    one = put_release(store, sizes=((10, 20),), losses=[[0.5]])
    assert gains(one, frozenset()) == [(240, pytest.approx(0.1))]


def test_where_nothing_was_measured_each_chunk_counts_the_same(tmp_path: Path) -> None:
    nothing: Any = [[None, None], [None]]
    manifest = put_release(Store(tmp_path), sizes=((10, 20, 30), (5, 5)), losses=nothing)
    assert gains(manifest, frozenset()) == [(240, 0.5), (480, 1.0)]


# -- What devices are told


class Town:
    """Two adapters, five devices in a cell and one elsewhere."""

    def __init__(self, root: Path, cells: tuple[Cell, ...]) -> None:
        store, url = Store(root / "store"), f"sqlite:///{root}/devices.db"
        self.small = put_release(store, "small", sizes=((50,) + (1000,) * 4,), losses=[CURVE])
        self.large = put_release(store, "large", sizes=((50,) + (8000,) * 4,), losses=[CURVE])
        lay_out(store, [self.small, self.large])
        with closing(Registry(url)) as registry:
            groups = [["cell=north"]] * 5 + [["cell=nowhere"], []]
            self.tokens = [registry.add(f"pi-{n}", groups=g) for n, g in enumerate(groups)]
        self.clock = SimulatedClock()
        settings = ServerSettings(
            database=url, calls=OFTEN, files=OFTEN, now_s=self.clock, write_looks_s=1e9, cells=cells
        )
        self.app = DirectApp(create_app(store, settings))

    def plan(self, n: int, manifest: Manifest, prefer: str | None = None, **changes: Any) -> Any:
        body = {"adapter": manifest.name, "base_fingerprint": FINGERPRINT, "deadline_s": 10.0,
                "link": {"throughput_bps": 1e6}, **changes}  # fmt: skip
        headers = {
            "authorization": f"Bearer {self.tokens[n]}", "content-type": "application/json",
            **({} if prefer is None else {"prefer": prefer}),
        }  # fmt: skip
        status, answered, data = self.app.ask(
            "POST", "/v1/plan", headers, json.dumps(body).encode()
        )
        return status, answered, json.loads(data)


CURVE = [0.6, 0.45, 0.35, 0.3]


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Callable[..., Town]]:
    made: list[Town] = []

    def make(*cells: Cell) -> Town:
        made.append(Town(tmp_path / str(len(made)), cells))
        return made[-1]

    yield make
    for each in made:
        each.app.close()


def test_a_plan_says_what_it_has_of_the_cell(town: Callable[..., Town]) -> None:
    """10 s of 10 kbit/s are 100,000 bits; the large file's first chunk takes 64,400 of them."""
    here = town(NORTH)
    status, _, body = here.plan(0, here.large)
    assert (status, body["n_rungs"]) == (200, 1)
    assert body["cell"] == {
        "name": "north", "airtime_share": pytest.approx(0.644), "asks_again": False,
        "reason": "64% of the budget of cell north (1 syncing).",
    }  # fmt: skip
    assert here.plan(1, here.small)[2]["n_rungs"] == 4
    text = here.app.ask("GET", "/metrics")[2].decode()
    assert 'rankcast_cell_syncs{cell="north"} 2.0' in text
    assert 'rankcast_cell_promised_ratio{cell="north"} 0.968' in text


def test_who_is_in_no_cell_is_planned_as_if_alone(town: Callable[..., Town]) -> None:
    here = town(NORTH)
    for n in (5, 6):
        status, _, body = here.plan(n, here.large, "steps")
        assert (status, body["n_rungs"], body["cell"]) == (200, 4, None)


def test_a_cell_without_room_says_when_to_ask_again(town: Callable[..., Town]) -> None:
    here = town(NORTH)
    here.plan(0, here.large)
    status, headers, body = here.plan(1, here.large, "steps")
    assert (status, headers["rankcast-cell"]) == (429, "north")
    assert headers["retry-after"] == "10"  # nothing could arrive after a wait
    here.plan(2, here.small, held=[])
    held = [blob.sha256 for blob in here.large.files[0].blobs(1)]
    status, _, body = here.plan(3, here.large, held=held)
    assert (status, body["n_rungs"], body["blobs"]) == (200, 1, [])  # asks once, and keeps it
    assert here.plan(3, here.large, "steps", held=held)[0] == 429
    assert 'refusals_total{cell="north"} 2.0' in here.app.ask("GET", "/metrics")[2].decode()


def test_a_budget_of_zero_closes_a_cell(town: Callable[..., Town]) -> None:
    here = town(Cell("north", max_bps=0.0))
    status, headers, body = here.plan(0, here.small, "steps")
    assert (status, headers["retry-after"]) == (429, "10")
    assert "closed" in body["error"]["message"]
    whole = [blob.sha256 for blob in here.small.blobs]
    assert here.plan(0, here.small, "steps", held=whole)[2]["cell"] is None


def test_a_report_makes_room(town: Callable[..., Town]) -> None:
    here = town(NORTH)
    assert here.plan(0, here.large)[2]["n_rungs"] == 1
    assert here.plan(1, here.large)[0] == 429
    report = {"adapter": "large", "version": 1, "ladder": 0, "n_rungs": 1, "event": "activated"}
    headers = {"authorization": f"Bearer {here.tokens[0]}", "content-type": "application/json"}
    here.app.ask("POST", "/v1/report", headers, json.dumps(report).encode())
    assert here.plan(1, here.large)[0] == 200


@pytest.mark.parametrize("crowded", [True, False])
def test_five_devices_gain_at_least_what_they_do_without_cells(
    town: Callable[..., Town], *, crowded: bool
) -> None:
    """Three begin a large file, and two small ones come later with little time.

    Each for itself, all five have equal shares of the link. At 10 kbit/s the small files are late,
    and some of the large chunks, too. Where the link carries all, a cell loses nothing.
    """
    rate_bps = 10_000.0 if crowded else 200_000.0
    found = []
    for cells in ((), (Cell("north", max_bps=rate_bps),)):
        here = town(*cells)
        link, own = SharedLink(lambda here=here: here.app, here.clock, rate_bps), MeasuredLink(1e6)
        devices = [Syncing(here.tokens[n], here.large, own, 0.1 * n, 40.0) for n in range(3)]
        devices += [Syncing(here.tokens[n], here.small, own, 5.0, 12.0) for n in (3, 4)]
        found.append((link.deliver(devices), [device.gain for device in devices]))
    (alone, _), (shared, by_device) = found
    if crowded:
        assert shared > alone + 0.1
        assert min(by_device[3:]) > 0.0
    else:
        assert shared == pytest.approx(alone) == pytest.approx(5 * 0.6)
