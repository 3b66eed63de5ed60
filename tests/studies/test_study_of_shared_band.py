"""The study of many devices on one band, on rows made by hand and on one small run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankcast.band.bids import TunedIndex
from rankcast.band.clairvoyant import clairvoyant_bound
from rankcast.band.delivery import Delivery
from studies.harness.spec import Job, Presentation, Result, Row, RunContext
from studies.report.statistics import Estimate
from studies.shared_band.study import (
    AIRLLM,
    BOUND,
    LEARNED,
    OURS,
    REFERENCE,
    SCHEDULERS,
    STUDY,
    _ahead,
    _episode,
    _goal,
    jobs,
    measured_ladders,
    run,
)


def row(job: Job, ours: float, reference: float) -> Row:
    values: dict[str, Any] = {s.name: 1.0 for s in SCHEDULERS}
    values |= {OURS: ours, REFERENCE: reference, BOUND: 3.0, "all": 4.0, "load": 2.0}
    return Row(job, values, 0.0, 0.0, "cpu", {})


def presented(rows: list[Row]) -> Presentation:
    return STUDY.present(Result("shared_band", "default", "", tuple(rows)), {})


def test_shares_are_paired_by_seed_and_averaged() -> None:
    crowded = [job for job in jobs("default") if job.name.startswith("50-800-")][:2]
    shown = presented([row(crowded[0], 2.4, 2.0), row(crowded[1], 2.5, 2.0)])
    [table] = shown.tables
    cells = {cells[0]: cells[1:] for cells in table.rows}
    # +20 % and +25 %; 0.4 and 0.5 of a way of 1. Two seeds: t = 12.7 of a standard error of 2.5 %.
    assert cells[OURS][0] == "40"
    assert cells[OURS][2].startswith("+22.5 ± 31.8")
    assert cells[OURS][3].startswith("45.0 ± 63.5")
    assert cells[REFERENCE][1:] == ("50.0 ± 0.0", "–", "–")
    assert cells[BOUND][1].startswith("75.0")
    more, way = shown.claims
    assert (more.ours, more.verdict) == ("+22.5 %", "not distinguishable")
    assert (way.ours, way.verdict, way.seeds) == ("45.0 %", "not distinguishable", (3001, 3002))


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.2, 0.3, "reproduced"),
        (0.19, 0.3, "not distinguishable"),
        (0.1, 0.19, "not met"),
        (np.nan, np.nan, "not distinguishable"),
    ],
)
def test_a_goal_is_met_by_the_whole_interval(low: float, high: float, words: str) -> None:
    assert _goal(Estimate(0.2, low, high), 0.2) == words


def test_learned_schedulers_have_rows_of_their_own_and_are_paired_by_seed() -> None:
    named = {job.name: job for job in jobs("default")}
    rows = [row(named["10-800-3001"], 2.0, 1.0), row(named["10-800-3002"], 2.5, 1.0)]
    for seed, worth in (
        (3001, 2.2),
        (3002, 2.5),
        (3003, 9.0),
    ):  # the last has no other to pair with
        values = {name: dict.fromkeys(("800", "1800", "3600"), worth) for name in LEARNED}
        rows.append(Row(named[f"10-airllm-{seed}"], values, 0.0, 0.0, "cpu", {}))
    shown = presented(rows)
    # 2.2 and 2.5 of 4 in all; 1.2 and 1.5 of a way of 2; +10 % and nothing over the Lagrangian.
    [airllm] = [cells for cells in shown.tables[0].rows if cells[0] == AIRLLM]
    assert airllm[2].startswith("58.8")
    assert airllm[4].startswith("67.5")
    found = [claim for claim in shown.claims if "AirLLM delivers" in claim.claim]
    ahead, *beside_the_index = found  # which has the same numbers here, on every band
    assert (ahead.ours, ahead.verdict) == ("+5.00 %", "not distinguishable")
    assert [claim.ours for claim in beside_the_index] == ["+0.00 %"] * 3


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.1, "reproduced"),
        (-0.01, 0.1, "not distinguishable"),
        (-0.1, -0.01, "opposite sign"),
        (np.nan, np.nan, "not distinguishable"),
    ],
)
def test_who_is_ahead_is_ahead_with_the_whole_interval(low: float, high: float, words: str) -> None:
    assert _ahead(Estimate(0.0, low, high)) == words


def test_bits_that_are_divided_are_as_good_as_a_wider_band() -> None:
    job = next(job for job in jobs("quick") if job.settings["kind"] == "learned")
    values = run(job, RunContext(Path(), "quick", {}, {}, None))
    assert set(values) == set(LEARNED)
    cell, demands, rates_bps = _episode(job, 1800.0)
    alone = Delivery(cell, demands, rates_bps).run(TunedIndex()).sum(axis=1).mean()
    assert values[TunedIndex().name]["1800"] == pytest.approx(alone)
    bound = clairvoyant_bound(cell, demands, rates_bps).mean()
    assert all(0.5 * bound < values[name]["1800"] <= bound + 1e-6 for name in LEARNED)


def test_without_rows_nothing_is_shown() -> None:
    shown = presented([])
    assert (shown.claims, shown.tables, shown.charts) == ((), (), ())


def test_names_of_jobs_are_unique() -> None:
    names = [job.name for job in jobs("default")]
    assert len(names) == len(set(names)) == 1 + 5 * 2 * 5


def test_the_ladders_are_those_of_the_committed_results() -> None:
    ladders = measured_ladders()
    assert sorted(ladders) == ["sst2-0", "sst2-1", "sst2-2"]
    # The first prefix of run 0 has 44,648 bits; its loss of 0.3914 is what is left of 0.6485.
    first = ladders["sst2-0"]
    assert first.prefix_bits[1] == 44_648
    assert first.worth[1] == pytest.approx(0.6485 - 0.3914, abs=1e-4)


def test_a_small_run_delivers_no_more_than_the_bound(tmp_path: Path) -> None:
    known = next(job for job in jobs("quick") if job.settings["kind"] == "known")
    context = RunContext(tmp_path, "quick", {}, {}, None)
    values = run(known, context)
    assert values == run(known, context)
    for scheduler in SCHEDULERS:
        assert 0.0 < values[scheduler.name] <= values[BOUND] + 1e-6
    assert values[BOUND] < values["all"]  # the band is crowded
    assert values[OURS] > 0.9 * values[BOUND]  # nothing to foresee: a plan can be near the bound
