"""Links by bytes and an injected clock, links and releases of a rehearsal, and what is counted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankcast.codec.packing import unpack
from rankcast.delivery.edge.records import Release
from rankcast.delivery.manifest import Ladder, Manifest
from rankcast.delivery.rehearsal.device import DeviceLog, Failure, Step
from rankcast.delivery.rehearsal.releases import made_adapter, next_adapter
from rankcast.delivery.rehearsal.results import Publication, Rehearsed, device_result
from rankcast.delivery.rehearsal.shaping import SEGMENT_BYTES, Losses, RateSchedule, Shaper
from rankcast.errors import ConfigError, LinkError
from rankcast.run.rehearsal_tables import sparkline
from rankcast.run.rehearse_options import Rehearse
from rankcast.run.rehearsing import links_of, releases_of, status_of

RATES = st.lists(st.floats(0.0, 1e7), min_size=1, max_size=6).filter(lambda x: max(x) > 1.0)


def test_bytes_pass_as_fast_as_the_rate_of_each_step() -> None:
    shaper = Shaper(RateSchedule(np.array([8000.0, 0.0, 16000.0]), step_s=2.0))
    assert shaper.send(1000, 0.0) == pytest.approx(1.0)
    assert shaper.send(1000, 0.0) == pytest.approx(2.0)
    assert shaper.send(1000, 2.0) == pytest.approx(4.5)  # nothing passes from 2 to 4
    assert shaper.send(3000, 4.5) == pytest.approx(6.0)
    assert shaper.send(1000, 4.5) == pytest.approx(7.0)  # the first step again
    assert shaper.n_bytes == 7000


def test_an_idle_link_saves_nothing_up_but_a_late_caller_loses_nothing() -> None:
    shaper = Shaper(RateSchedule.constant(8000.0))
    assert shaper.send(1000, 100.0) == pytest.approx(101.0 - 0.05)
    assert shaper.send(1000, 101.0) == pytest.approx(102.0 - 0.05)
    assert 128 <= shaper.quantum_bytes(0.0) <= 8000 // 8


@given(rates=RATES, start_s=st.floats(0.0, 50.0), bits=st.floats(1.0, 1e8))
def test_the_time_of_bits_is_the_inverse_of_the_bits_in_a_time(
    rates: list[float], start_s: float, bits: float
) -> None:
    schedule = RateSchedule(np.array(rates), step_s=0.5)
    until_s = schedule.passed_at_s(start_s, bits)
    carried = float(schedule.carried_bits(until_s) - schedule.carried_bits(start_s))
    assert until_s >= start_s
    assert carried == pytest.approx(bits, rel=1e-6, abs=1e-3 + 1e-9 * max(rates) * until_s)


def test_lost_segments_take_the_link_again_and_stall_it() -> None:
    n = 4000
    losses = Losses(0.05, 0.2, np.random.default_rng(0))
    shaper = Shaper(RateSchedule.constant(1e6), losses)
    end_s = 0.0
    for _ in range(n):
        end_s = shaper.send(SEGMENT_BYTES, 0.0)
    assert 0.8 < shaper.n_lost / (n * 0.05 / 0.95) < 1.2
    bits = 8.0 * SEGMENT_BYTES * (n + shaper.n_lost)
    assert end_s == pytest.approx(bits / 1e6 + 0.2 * shaper.n_lost)


@pytest.mark.parametrize("rates", [[], [0.0], [-1.0], [np.inf], [[1.0]]])
def test_links_that_carry_nothing_are_refused(rates: list[float]) -> None:
    with pytest.raises(LinkError):
        RateSchedule(np.array(rates))
    with pytest.raises(LinkError):
        Losses(1.0, 0.0, np.random.default_rng(0))


def test_the_next_adapter_is_another_one_of_the_same_shape() -> None:
    first = made_adapter(0)
    second = next_adapter(first, 1)
    assert len(second.chunks) == len(first.chunks)
    assert [e.loss for e in second.header.chunks] == [e.loss for e in first.header.chunks]
    assert not {e.sha256 for e in first.header.chunks} & {e.sha256 for e in second.header.chunks}
    for a, b in zip(unpack(first).factors, unpack(second).factors, strict=True):
        change = np.linalg.norm(a.delta_weight() - b.delta_weight())
        assert 0 < change < 0.1 * np.linalg.norm(a.delta_weight())
    assert first.header.chunks[-1].loss < first.header.chunks[0].loss


def test_links_follow_the_options_and_the_seed(tmp_path: Path) -> None:
    command = Rehearse(devices=5, minutes=0.5, step_s=2.0, snr_range_db=(0.0, 20.0), std_db=0.5)
    links, bandwidth_hz = links_of(command, 20_000)
    assert links.rates_bps.shape == (15, 5)
    assert np.all(np.diff(links.snr_db.mean(axis=0)) > 0)
    median = np.median(links.rates_bps.mean(axis=0))
    assert median * command.deadline_s == pytest.approx(8 * (20_000 + 8192), rel=0.05)
    again, _ = links_of(command, 20_000)
    assert np.array_equal(again.rates_bps, links.rates_bps)
    given, w = links_of(dataclasses.replace(command, bandwidth_hz=5e5, radio=True), 20_000)
    assert np.allclose(given.rates_bps, links.rates_bps * 5e5 / bandwidth_hz)
    assert given.radio is not None
    assert (w, given.radio(3.0).bandwidth_hz) == (5e5, 5e5)
    with pytest.raises(ConfigError, match="--bandwidth-hz"):
        links_of(dataclasses.replace(command, rate_model="nr_64qam"), 20_000)
    trace = tmp_path / "trace.csv"
    trace.write_text("time_s,kbps\n" + "".join(f"{t},{10 * t + 5}\n" for t in range(20)))
    played = dataclasses.replace(
        command, trace=trace, trace_kind="throughput", value_column="kbps", value_scale=1e3,
        step_s=1.0,
    )  # fmt: skip
    links, _ = links_of(played, 20_000)
    assert links.snr_db is None
    assert set(np.round(links.rates_bps.ravel(), 3)) <= {1e3 * (10 * t + 5) for t in range(20)}


def test_a_second_file_is_what_follows(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.rcast" for n in range(2)]
    for seed, path in enumerate(paths):
        path.write_bytes(made_adapter(seed).to_bytes())
    name, (first, second) = releases_of(Rehearse(adapter=paths[0], next=paths[1]))
    assert name == "rehearsal"
    assert [c.to_bytes() for c in (first[0], second[0])] == [p.read_bytes() for p in paths]


def result(log: DeviceLog, rate_bps: float = 1e6) -> tuple[Rehearsed, Manifest]:
    container = made_adapter(0)
    manifest = Manifest("a", 1, container.header.base, (Ladder.of(container),), {})
    newer = dataclasses.replace(manifest, version=2)
    releases = (Publication(0.0, manifest), Publication(30.0, newer))
    found = device_result(
        0, log, RateSchedule.constant(rate_bps), releases, now_s=60.0, deadline_s=10.0,
        link_bits=0, n_resets=0, mean_snr_db=3.0,
    )  # fmt: skip
    return Rehearsed(60.0, releases, [found]), manifest


def test_what_is_counted() -> None:
    log = DeviceLog(began_s=1.0, failures=[Failure(2.0, "DeliveryError", "no")], n_failures=1)
    nothing, manifest = result(log)
    assert nothing.unexcused == (0,)
    assert status_of(nothing) == 1
    assert status_of(result(log, rate_bps=100.0)[0]) == 0  # its link is its excuse
    newer = dataclasses.replace(manifest, version=2)
    log.steps += [
        Step(4.0, Release.of(manifest, 0, 2)),
        Step(8.0, Release.of(manifest, 0, 8)),
        Step(41.0, Release.of(newer, 0, 3)),
    ]
    found, _ = result(log)
    device = found.devices[0]
    assert (device.first_usable_s, device.best_s, device.updated_s) == (3.0, 7.0, 11.0)
    assert (device.version, device.n_rungs, device.of, device.in_time) == (2, 3, 8, True)
    summary = found.summary()
    assert (summary["newest_version"], summary["whole"]) == (1, 0)
    assert summary["failures"] == {"DeliveryError": 1}
    assert status_of(found) == 0


def test_a_sparkline_has_a_bar_for_each_stretch() -> None:
    assert sparkline(np.array([0.0, 1.0, 4.0, 16.0]), 16.0) == " ▂▄█"
    assert len(sparkline(np.ones(1000), 1.0)) == 6
