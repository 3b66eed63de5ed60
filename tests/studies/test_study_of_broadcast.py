"""The study of one file for many devices: its slots by hand, and its rows made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rankcast.band.broadcast import Audience, BroadcastPlan
from rankcast.band.cell import Cell
from rankcast.band.ladder import Ladder
from studies.broadcast.slots import (
    Transmission,
    _exceeded_by_any,
    seconds_to_everybody,
    worth_of_broadcast,
)
from studies.broadcast.study import (
    AIRTIMES_S,
    COVERAGE_DB,
    METHODS,
    N_DEVICES,
    SPREADS_DB,
    STUDY,
    break_even_db,
    draw_snr_db,
    jobs,
    run,
)
from studies.harness.spec import Job, Presentation, Result, Row, RunContext

CELL = Cell(bandwidth_hz=1e3, slot_s=0.1, n_slots=1)
FULL_BPS = 5550.0
"""Of a device near the base station: the largest rate, under any fading."""


def seconds(file_bits: float, heard: int, n_devices: int, share: float = 0.0) -> float:
    """Return the airtime of devices that fading does not touch."""
    how = Transmission(*(np.array([x]) for x in (heard, FULL_BPS, FULL_BPS / 1.11, share)))
    snr_db = np.full((1, n_devices), 100.0)
    return float(seconds_to_everybody(CELL, snr_db, file_bits, how, np.random.default_rng(1))[0])


def test_airtime_by_hand_where_fading_does_not_matter() -> None:
    # A slot carries 555 bits to one device, and 500 useful ones of a broadcast.
    assert seconds(1387.5, 0, 3) == pytest.approx(3 * 0.25)  # 2.5 slots each, none of it lost
    assert seconds(1387.5, 3, 3) == pytest.approx(0.3)  # whole slots, for all three at once
    assert seconds(1387.5, 2, 3) == pytest.approx(0.3 + 0.25)
    assert seconds(1387.5, 2, 3, share=0.5) == pytest.approx(0.3 + 0.25)  # whoever comes first


def test_a_broadcast_takes_as_long_as_its_weakest_listener() -> None:
    # 0 dB and a rate that half of the slots carry; the other device decodes every slot.
    rate_bps = float(CELL.rate_bps(np.array(10 * np.log10(np.log(2.0)))))
    how = Transmission(*(np.array([x]) for x in (2, rate_bps, rate_bps, 0.0)))
    n_slots = 400
    bits = n_slots * rate_bps * CELL.slot_s
    taken = seconds_to_everybody(
        CELL, np.array([[60.0, 0.0]]), bits, how, np.random.default_rng(2)
    )[0]
    # Slots until 400 successes of probability 1/2: 800 ± 28.
    assert taken / CELL.slot_s == pytest.approx(2 * n_slots, abs=4 * 28)


def test_a_good_gain_is_as_frequent_as_was_asked() -> None:
    gain = np.random.default_rng(3).standard_exponential((40_000, 3)).max(axis=1)
    good = _exceeded_by_any(np.array([3, 3, 3, 0]), np.array([0.3, 0.0, 1.0, 0.0]))
    assert (gain > good[0]).mean() == pytest.approx(0.3, abs=0.01)
    assert good[1:].tolist() == [np.inf, 0.0, np.inf]


def worth(
    plan: BroadcastPlan, rates_bps: list[list[float]], overhead: float, airtime_s: float
) -> float:
    """Return what is delivered of a ladder of three chunks to devices planned at 4 and 2 bit/s."""
    ladder = Ladder(np.array([0.0, 10.0, 20.0, 30.0]), np.array([0.0, 1.0, 4.0, 5.0]))
    audience = Audience(*(np.array([4.0, 2.0]),) * 3)
    rates = np.array(rates_bps)
    return worth_of_broadcast(audience, plan, ladder, rates, overhead=overhead, airtime_s=airtime_s)


def test_a_device_has_a_chunk_that_it_decodes_with_all_before_it() -> None:
    plan = BroadcastPlan(np.array([2, 1, 0]), np.array([10.0, 5.0, 0.0]), 0.0)
    # Chunk 1 goes at 2 bit/s for 10 s: half of the slots are enough. Chunk 2 at 4 bit/s for 5 s:
    # half as well. Chunk 3 is not sent. Four devices, and what they have: chunks 1 and 2; the
    # first; both; both, by one of two slots.
    rates_bps = [[4.0, 2.0, 9.0, 1.0], [1.0, 1.0, 9.0, 9.0]]
    assert worth(plan, rates_bps, 0.0, 15.0) == 4 + 1 + 4 + 4
    # With an overhead of 10 % half of the slots are too few: only the third has any.
    assert worth(plan, rates_bps, 0.1, 15.0) == 4
    # What the plan leaves of 16.5 s makes good for it.
    assert worth(plan, rates_bps, 0.1, 16.5) == 4 + 1 + 4 + 4
    nothing = BroadcastPlan(np.zeros(3, dtype=np.int64), np.zeros(3), 0.0)
    assert worth(nothing, rates_bps, 0.0, 15.0) == 0.0


def test_a_chunk_without_the_one_before_it_is_worth_nothing() -> None:
    plan = BroadcastPlan(np.array([1, 1, 0]), np.array([1.0, 5.0, 0.0]), 0.0)
    assert worth(plan, [[4.0]], 0.0, 6.0) == 0.0  # 4 of the 10 bits of the first, all of the second


def row(job: Job, saved: float, more: float) -> Row:
    logs = {"unicast": 2.0, "broadcast": 2.0 - saved, "mixed": 1.0}
    worth = {"unicast": 0.5, "broadcast": 0.5 + more, "predicted": 0.7}
    values = {
        "log_seconds": logs,
        "log_predicted": logs,
        "rule_right": 0.5,
        "heard": 1.0,
        "worth": {f"{x:g}": worth for x in AIRTIMES_S},
    }
    return Row(job, values, 0.0, 0.0, "cpu", {})


def presented(rows: list[Row]) -> Presentation:
    return STUDY.present(Result("broadcast", "default", "", tuple(rows)), {})


def covered(n_devices: int, seed: int) -> list[Job]:
    """Return the jobs of a seed with coverage, one for each spread."""
    settings = {"n_devices": n_devices, "least_db": COVERAGE_DB}
    return [j for j in jobs("default") if j.seed == seed and settings.items() <= j.settings.items()]


def test_weak_devices_are_drawn_again() -> None:
    snr_db = draw_snr_db((50, 20), 12.0, -10.0, np.random.default_rng(4))
    assert (np.diff(snr_db, axis=1) <= 0).all()
    assert -10.0 <= snr_db.min() < -9.0
    # A Gaussian cut off at 1.5 below its mean: 8 dB + 12 dB · φ(1.5)/Φ(1.5), ± 10.5 dB/√1000.
    assert snr_db.mean() == pytest.approx(8.0 + 12.0 * 0.1295 / 0.9332, abs=4 * 0.34)


def test_break_even_lies_between_two_spreads() -> None:
    assert break_even_db([1.0, 0.5, -1.0, -2.0, -3.0]) == pytest.approx(3.0 + 3.0 * 0.5 / 1.5)
    assert break_even_db([-0.1, -1.0, -2.0, -3.0, -4.0]) == 0.0
    assert break_even_db([1.0] * len(SPREADS_DB)) == SPREADS_DB[-1]


def test_claims_and_tables_by_hand() -> None:
    # Seed 1 breaks even at 6 dB, seed 2 at 9 dB.
    rows = [
        row(job, one, more)
        for n_devices in N_DEVICES
        for seed, ones, more in (
            (4001, (1.0, 0.5, 0.0, -0.5, -1.0), 0.2),
            (4002, (1.0, 0.5, 0.5, 0.0, -1.0), 0.1),
        )
        for job, one in zip(covered(n_devices, seed), ones, strict=True)
    ]
    time, _, worth, *_ = presented(rows[::-1]).tables  # in any order
    assert [cells[0] for cells in time.rows] == ["0", "3", "6", "9", "12"]
    assert time.rows[0][1:4] == ("2.72 ± 0.00", "2.72", "50")  # e^1
    assert worth.rows[0][2:5] == ("50.0 ± 0.0", "65.0 ± 63.5", "70.0")
    spread, more = presented(rows).claims
    assert (spread.ours, spread.verdict, spread.seeds) == ("7.5 dB", "measured", (4001, 4002))
    assert (more.ours, more.verdict) == ("+15.0 points", "not distinguishable")


def test_incomplete_rows_make_no_claim_of_a_spread() -> None:
    some = covered(N_DEVICES[0], 4001)[0]
    assert presented([row(some, 1.0, 0.1)]).claims == ()
    assert presented([]).tables == ()


def test_a_small_run_is_the_same_each_time(tmp_path: Path) -> None:
    context = RunContext(tmp_path, "quick", {}, {}, None)
    job = jobs("quick")[-1]
    values = run(job, context)
    assert values == run(job, context)
    assert set(values["log_seconds"]) == set(METHODS)
    for worth in values["worth"].values():
        assert 0.0 < worth["unicast"] <= 1.0 + 1e-9
        assert 0.0 < worth["broadcast"] <= 1.0 + 1e-9
    names = [job.name for job in jobs("default")]
    # Five seeds; each of the two numbers of devices at five spreads, and at three with a long tail.
    assert len(names) == len(set(names)) == 5 * 2 * (5 + 3)
