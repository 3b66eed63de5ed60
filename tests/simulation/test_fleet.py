"""Many devices in simulated time: the arithmetic of links, the rules of a device, and the sums."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.commands import Call
from rankcast.cli.simulate import Simulate
from rankcast.codec.header import BaseModel
from rankcast.errors import ConfigError, InfeasibleDeadlineError, LinkError
from rankcast.release.manifest import Blob, Chunk, File, Manifest, Update
from rankcast.release.plan import next_better, plan_fetch
from rankcast.simulation import fleet as fleet_module
from rankcast.simulation.fleet import (
    LOOK_BYTES,
    NEWS_BYTES,
    REQUEST_BYTES,
    DeviceArrays,
    Fleet,
    FleetResult,
    Ladder,
    LinkBlocks,
)
from rankcast.simulation.links import Links
from rankcast.simulation.report import FLEET_COLUMNS, rows_of_fleet
from rankcast.simulation.rows import RateRows
from rankcast.simulation.settings import SimulationSettings
from rankcast.simulation.shaping import RateSchedule

RATES = st.lists(st.floats(0.0, 1e6), min_size=3, max_size=3).filter(lambda x: max(x) > 1.0)
HEADER, CHUNK = 1000, 3000
LOSSES = (0.9, 0.5, 0.45, 0.44)


def manifest(version: int, losses: tuple[float | None, ...] = LOSSES) -> Manifest:
    """Return a release of a header of 1000 bytes and chunks of 3000."""

    def blob(number: int, n_bytes: int) -> Blob:
        return Blob(f"{version:032x}{number:032x}", n_bytes)

    chunks = tuple(Chunk(blob(n, CHUNK), loss, None) for n, loss in enumerate(losses, 1))
    file = File(blob(0, HEADER), chunks)
    return Manifest("demo", version, BaseModel("tiny", "0" * 64), (file,), {})


def same_rates(*rates_bps: float) -> LinkBlocks:
    """Return links that all have these rates, second by second."""
    return lambda block, rng: Links(np.tile(np.array(rates_bps)[:, None], len(block)), 1.0, 1e3)


def run(
    links: LinkBlocks,
    n: int = 1,
    stopping: Callable[[], bool] = lambda: False,
    *,
    block: int = 4096,
    **settings: float,
) -> FleetResult:
    chosen = {"duration_s": 100.0, "deadline_s": 50.0, "every_s": 10.0, "assumed_bps": 8000.0}
    of = SimulationSettings(**chosen | settings)  # pyright: ignore[reportArgumentType]
    return Fleet(of, n, links, (manifest(1), manifest(2)), block).run(stopping=stopping)


@given(st.lists(RATES, min_size=1, max_size=4), st.floats(0.0, 50.0), st.floats(1.0, 1e8))
def test_rows_pass_bits_as_single_links_do_properties(
    rates: list[list[float]], start_s: float, bits: float
) -> None:
    rows, every = RateRows(np.array(rates), 0.5), np.arange(len(rates))
    at_s = np.full(len(rates), start_s)
    passed = rows.passed_at_s(every, at_s, np.full(len(rates), bits))
    carried = rows.carried_bits(every, at_s)
    for row, one in enumerate(rates):
        schedule = RateSchedule(np.array(one), 0.5)
        assert carried[row] == pytest.approx(float(schedule.carried_bits(start_s)), rel=1e-9)
        expected_s = schedule.passed_at_s(start_s, bits)
        moved = schedule.carried_bits(passed[row]) - schedule.carried_bits(expected_s)
        assert abs(float(moved)) <= 1e-6 * bits + 1e-3 + 1e-9 * max(one) * expected_s
        assert rows.rate_bps(np.array([row]), np.array([start_s]))[0] == schedule.rate_bps(start_s)


@pytest.mark.parametrize("rates", [[[0.0, 0.0]], [[1.0, -1.0]], [[np.inf, 1.0]], [[np.nan, 1.0]]])
def test_links_that_cannot_be(rates: list[list[float]]) -> None:
    with pytest.raises(LinkError):
        RateRows(np.array(rates))


def test_a_ladder() -> None:
    ladder = Ladder.of(manifest(1))
    assert ladder.bits.tolist() == [0, 32_000, 56_000, 80_000, 104_000]
    heads = 8 * REQUEST_BYTES * np.array([0, 2, 3, 4, 5])
    assert (ladder.link_bits - ladder.bits).tolist() == heads.tolist()
    assert ladder.early.tolist() == [0, 1, 2, 2, 2]  # 0.44 + a quarter of 0.46 is enough
    assert Ladder.of(manifest(1, (0.9, 0.5, 0.6, 0.4))).best.tolist() == [0, 1, 2, 2, 4]
    assert Ladder.of(manifest(1, (None,) * 4)).best.tolist() == [0, 1, 2, 3, 4]
    several = manifest(1)
    several = Manifest("demo", 1, several.base, several.files * 2, {})
    with pytest.raises(ConfigError, match="one file"):
        Ladder.of(several)


def test_one_device_over_a_steady_link() -> None:
    """16 kbit/s: 2.048 s for the news, then 116.8 kbit of blobs, of which 63.68 kbit to begin."""
    result = run(same_rates(16_000.0))
    d, link_bits = result.devices, Ladder.of(manifest(1)).link_bits
    look_s = 8 * NEWS_BYTES / 16_000
    assert d.first_s[0] == pytest.approx(look_s + link_bits[2] / 16_000)
    assert d.best_s[0] == pytest.approx(look_s + link_bits[4] / 16_000)
    assert (d.version[0], d.n_chunks[0], result.in_time[0]) == (2, 4, True)
    assert d.received_bits[0] == pytest.approx(2 * 104_000)
    n_quiet = d.n_syncs[0] - 2
    assert d.link_bits[0] == pytest.approx(
        2 * link_bits[4] + 8 * (2 * NEWS_BYTES + n_quiet * LOOK_BYTES)
    )
    assert d.throughput_bps[0] == pytest.approx(16_000)
    assert result.summary()["whole"] == 1


def test_what_did_not_arrive_in_time_is_fetched_on() -> None:
    """1 kbit/s and 20 s: 20 of the 37.12 kbit of a first chunk, which comes with the second."""
    result = run(
        same_rates(1000.0), deadline_s=20.0, every_s=0.1, duration_s=400.0, assumed_bps=1e3
    )
    d = result.devices
    assert d.n_late[0] == 2  # one for each version
    least_s = (8 * NEWS_BYTES + 8 * LOOK_BYTES + 32_000 + 16 * REQUEST_BYTES) / 1000
    assert least_s < d.first_s[0] < least_s + 0.2  # and the pause
    assert not result.in_time[0]
    assert d.version[0] == 2
    summary = result.summary()
    assert summary["failures"] == {"InfeasibleDeadlineError": 2}
    assert (summary["in_time"], summary["last_sync_failed"]) == (0, 0)


def test_a_device_takes_the_difference_to_the_release_that_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 500 bytes in the place of 13,000; over a link that stops, it waits for the rest."""
    second = manifest(2)
    update = Update("0" * 16, Blob("e" * 64, 500))
    second = replace(second, files=(replace(second.files[0], updates=(update,)),))
    settings = SimulationSettings(
        duration_s=100.0, deadline_s=20.0, every_s=10.0, assumed_bps=16_000.0
    )

    def of(*rates_bps: float) -> DeviceArrays:
        return Fleet(settings, 1, same_rates(*rates_bps), (manifest(1), second)).run().devices

    d = of(16_000.0)
    update_bits = 8 * (500 + REQUEST_BYTES)
    assert (d.version[0], d.n_chunks[0], d.n_late[0]) == (2, 4, 0)
    assert d.updated_s[0] <= 10.0 + (8 * NEWS_BYTES + update_bits) / 16_000
    share = Ladder.of(second).payload_share
    assert d.received_bits[0] == pytest.approx(104_000 + share * update_bits)
    for name in ("NEWS_BYTES", "LOOK_BYTES"):
        monkeypatch.setattr(fleet_module, name, 1)
    late = of(*(16_000.0,) * 50, *(300.0,) * 50)  # 6.64 kbit take 22.1 s
    assert (late.version[0], late.n_chunks[0], late.n_late[0]) == (2, 4, 1)
    assert late.received_bits[0] == pytest.approx(d.received_bits[0])


def test_a_modem_that_sees_no_link_saves_the_bytes() -> None:
    def links(block: range, rng: np.random.Generator) -> Links:
        del rng
        rates = np.full((1, len(block)), 1000.0)
        return Links(rates, 1.0, 1e3, snr_db=rates, radio=lambda db: db)  # pyright: ignore[reportArgumentType]

    d = run(links, deadline_s=20.0).devices
    assert (d.received_bits[0], d.version[0]) == (0.0, 0)
    assert d.n_late[0] == d.n_syncs[0] > 1
    assert d.is_late[0]


@given(
    st.integers(0, 4), st.floats(10.0, 1e5),
    st.lists(st.none() | st.floats(0.1, 1.0), min_size=4, max_size=4, unique=True),
)  # fmt: skip
def test_plans_are_those_of_a_device_parity(
    n_held: int, bps: float, losses: list[float | None]
) -> None:
    losses = [loss for loss in losses if loss is not None] if None in losses else losses
    release = manifest(1, tuple(sorted(filter(None, losses), reverse=True)) or (None,) * 4)
    n_chunks = len(release.files[0].chunks)
    n_held = min(n_held, n_chunks)
    held = {blob.sha256 for blob in release.files[0].blobs(n_held)} if n_held else set[str]()
    try:
        expected = plan_fetch(release, bps * 50.0, held)
    except InfeasibleDeadlineError as error:
        expected = plan_fetch(release, error.payload_bits, held)
    if not expected.missing:
        expected = next_better(release, expected, held) or expected
    ladder = Ladder.of(release)
    settings = SimulationSettings(deadline_s=50.0, assumed_bps=bps)
    links = same_rates(1e3)(range(1), np.random.default_rng(0))
    rows = RateRows(links.rates_bps.T)
    block = fleet_module._Block(
        settings,
        (ladder, ladder),
        links,
        rows,
        fleet_module._Demand(1),
        np.random.default_rng(0),
    )
    d = fleet_module.DeviceArrays(1, np.zeros(1))
    d.held_bits[0] = ladder.link_bits[n_held]
    shift = abs(bps * 50.0 + ladder.bits[n_held] - ladder.bits).min()
    wanted = block._plan(d, np.array([0]), ladder, np.zeros(1))[0]
    if shift > 1e3:  # heads of HTTP blur the edge
        assert wanted == expected.n_chunks


def test_a_device_does_not_depend_on_the_number_of_others() -> None:
    def links(block: range, rng: np.random.Generator) -> Links:
        return Links(rng.uniform(500.0, 9000.0, (30, len(block))), 1.0, 1e3)

    few, many = run(links, 8, block=8).devices, run(links, 21, block=8).devices
    for name, values in vars(few).items():
        if name != "n":
            np.testing.assert_array_equal(values, getattr(many, name)[:8])
    assert len(set(many.first_s.tolist())) == 21


def test_sums_of_the_server_are_those_of_the_devices() -> None:
    result = run(same_rates(4000.0, 9000.0, 0.0), 50, duration_s=300.0)
    summary, d = result.summary(), result.devices
    assert result.looks.sum() == d.n_syncs.sum() == summary["syncs"]
    assert result.sent_bps.sum() == pytest.approx(d.link_bits.sum(), rel=0.02)  # the last syncs
    assert (result.sent_bps >= 0).all()
    assert summary["plans_per_s"]["peak"] == result.looks.max() <= 50


def test_stopping_keeps_what_is_done() -> None:
    assert run(same_rates(4000.0), 12, lambda: True, block=4).devices.n == 4


def test_rows_of_devices_as_csv() -> None:
    text = rows_of_fleet(run(same_rates(50.0), 3), 7)
    rows = list(csv.DictReader(io.StringIO(text), FLEET_COLUMNS))
    assert [row["device"] for row in rows] == ["7", "8", "9"]
    assert {(row["first_usable_s"], row["in_time"], row["version"]) for row in rows} == {
        ("", "False", "0")
    }


def test_the_command(tmp_path: Path, call: Call) -> None:
    files = tmp_path / "fleet.json", tmp_path / "fleet.csv"
    out = call.ok("simulate", "--virtual", "--devices", "300", "--minutes", "1", "--json",
                  "--output", str(files[0]), "--csv", str(files[1]))  # fmt: skip
    summary = json.loads(out)["summary"]
    assert summary == json.loads(files[0].read_text())["summary"]
    assert summary["devices"] == summary["with_adapter"] == 300
    assert len(files[1].read_text().splitlines()) == 301
    assert "busiest second" in call.ok(
        "simulate", "--virtual", "--devices", "10", "--minutes", "0.2"
    )
    for option in (("--resets", "0.1"), ("--restart-server",), ("--work", "here")):
        assert "--virtual has no" in call.refused("simulate", "--virtual", *option)


@pytest.mark.parametrize("process", ["static", "iid", "block", "jakes", "path"])
def test_links_of_every_process(process: str) -> None:
    command = Simulate(devices=40, minutes=0.2, process=process)  # pyright: ignore[reportArgumentType]
    links, fleet = command.fleet(command.manifests())
    result = fleet.run()
    assert links.n_devices == result.devices.n == 40
    assert (result.devices.link_bits > 0).all()
