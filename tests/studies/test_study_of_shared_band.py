"""The study of many devices on one band, on rows made by hand and on one small run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from studies.harness.spec import Job, Presentation, Result, Row, RunContext
from studies.report.statistics import Estimate
from studies.shared_band.study import (
    BOUND,
    OURS,
    REFERENCE,
    SCHEDULERS,
    STUDY,
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


def test_without_rows_nothing_is_shown() -> None:
    shown = presented([])
    assert (shown.claims, shown.tables, shown.charts) == ((), (), ())


def test_names_of_jobs_are_unique() -> None:
    names = [job.name for job in jobs("default")]
    assert len(names) == len(set(names)) == 1 + 5 * 2 * 4


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
