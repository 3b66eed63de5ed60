"""Shaped bytes, links and releases of a simulation, and what is counted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.lossy_links import SEGMENT_BYTES, LossyShaper
from rankcast.cli.simulate import Simulate
from rankcast.edge.state import ReleasePrefix
from rankcast.errors import ConfigError, LinkError
from rankcast.release.manifest import File, Manifest
from rankcast.simulation.device import Activated, DeviceLog, Failure
from rankcast.simulation.releases import made_up_adapter, next_adapter
from rankcast.simulation.report import sparkline
from rankcast.simulation.results import Publication, SimulationResult, device_result
from rankcast.simulation.shaping import RateSchedule, Shaper

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
    shaper = Shaper(RateSchedule(np.array([8000.0])))
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
    shaper = LossyShaper(RateSchedule(np.array([1e6])), 0.05, 0.2, np.random.default_rng(0))
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


def test_the_next_adapter_is_another_one_of_the_same_shape() -> None:
    first = made_up_adapter(0)
    second = next_adapter(first, 1)
    assert len(second.chunks) == len(first.chunks)
    assert [e.loss for e in second.header.chunks] == [e.loss for e in first.header.chunks]
    assert not {e.check for e in first.header.chunks} & {e.check for e in second.header.chunks}
    for a, b in zip(first.tensors().factors, second.tensors().factors, strict=True):
        change = np.linalg.norm(a.delta_weight() - b.delta_weight())
        assert 0 < change < 0.1 * np.linalg.norm(a.delta_weight())
    assert first.header.chunks[-1].loss < first.header.chunks[0].loss


def test_links_follow_the_options_and_the_seed(tmp_path: Path) -> None:
    command = Simulate(devices=5, minutes=0.5, step_s=2.0, snr_range_db=(0.0, 20.0), std_db=0.5)
    links = command.links(20_000)
    assert links.rates_bps.shape == (15, 5)
    assert np.all(np.diff(links.snr_db.mean(axis=0)) > 0)
    median = np.median(links.rates_bps.mean(axis=0))
    assert median * command.deadline_s == pytest.approx(8 * (20_000 + 8192), rel=0.05)
    assert np.array_equal(command.links(20_000).rates_bps, links.rates_bps)
    given = dataclasses.replace(command, bandwidth_hz=5e5, radio=True).links(20_000)
    assert np.allclose(given.rates_bps, links.rates_bps * 5e5 / links.bandwidth_hz)
    assert given.radio is not None
    assert (given.bandwidth_hz, given.radio(3.0).bandwidth_hz) == (5e5, 5e5)
    with pytest.raises(ConfigError, match="--bandwidth-hz"):
        dataclasses.replace(command, rate_model="nr_64qam").links(20_000)
    trace = tmp_path / "trace.csv"
    trace.write_text("time_s,kbps\n" + "".join(f"{t},{10 * t + 5}\n" for t in range(20)))
    played = dataclasses.replace(
        command, trace=trace, trace_kind="throughput", value_column="kbps", value_scale=1e3,
        step_s=1.0,
    )  # fmt: skip
    links = played.links(20_000)
    assert links.snr_db is None
    assert set(np.round(links.rates_bps.ravel(), 3)) <= {1e3 * (10 * t + 5) for t in range(20)}
    trace.write_text("time_s,kbps\n0,5\n90,6\n180,7\n", "utf-8")
    with pytest.raises(LinkError, match="--trace-gap-s"):
        played.links(20_000)
    links = dataclasses.replace(played, trace_gap_s=90.0).links(20_000)
    assert set(np.round(links.rates_bps.ravel(), 3)) <= {5e3, 6e3, 7e3}


def test_a_second_file_is_what_follows(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.rcast" for n in range(2)]
    for seed, path in enumerate(paths):
        path.write_bytes(made_up_adapter(seed).to_bytes())
    name, (first, second) = Simulate(adapter=paths[0], next=paths[1]).releases()
    assert name == "simulation"
    assert [c.to_bytes() for c in (first[0], second[0])] == [p.read_bytes() for p in paths]


def result(log: DeviceLog, rate_bps: float = 1e6) -> tuple[SimulationResult, Manifest]:
    container = made_up_adapter(0)
    manifest = Manifest("a", 1, container.header.base, (File.of(container),), {})
    newer = dataclasses.replace(manifest, version=2)
    releases = (Publication(0.0, manifest), Publication(30.0, newer))
    device = device_result(
        0, log, RateSchedule(np.array([rate_bps])), releases, now_s=60.0, deadline_s=10.0,
        link_bits=0, n_resets=0, mean_snr_db=3.0,
    )  # fmt: skip
    return SimulationResult(60.0, releases, [device]), manifest


def test_what_is_counted() -> None:
    log = DeviceLog(began_s=1.0, failures=[Failure(2.0, "DeliveryError", "no")])
    nothing, manifest = result(log)
    assert nothing.unexcused == (0,)
    assert not nothing.succeeded
    assert result(log, rate_bps=100.0)[0].succeeded  # its link is its excuse
    newer = dataclasses.replace(manifest, version=2)
    log.activations += [
        Activated(4.0, ReleasePrefix.of(manifest, 0, 2)),
        Activated(8.0, ReleasePrefix.of(manifest, 0, 8)),
        Activated(41.0, ReleasePrefix.of(newer, 0, 3)),
    ]
    complete, _ = result(log)
    device = complete.devices[0]
    assert (device.first_usable_s, device.best_s, device.updated_s) == (3.0, 7.0, 11.0)
    assert (device.version, device.n_chunks, device.n_file_chunks) == (2, 3, 8)
    assert device.in_time
    summary = complete.summary()
    assert (summary["newest_version"], summary["whole"]) == (1, 0)
    assert summary["failures"] == {"DeliveryError": 1}
    assert complete.succeeded
    plain = complete.to_plain()["devices"][0]
    assert (plain["n_rungs"], plain["of"]) == (3, 8)


def test_a_sparkline_has_a_bar_for_each_stretch() -> None:
    assert sparkline(np.array([0.0, 1.0, 4.0, 16.0]), 16.0) == " ▂▄█"
    assert len(sparkline(np.ones(1000), 1.0)) == 6
