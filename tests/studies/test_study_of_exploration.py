"""The study of who acts while the policy learns, on rows made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from studies.exploration.study import STUDY, jobs, spreads
from studies.harness.spec import Job, Presentation, Result, Row, RunContext
from studies.surrogate.training import train_policy
from studies.surrogate.world import synthetic_world

SPREAD = {"rank_sampled": 1.0, "rank_drawn": 2.0, "sum_sampled": 3.0, "sum_drawn": 8.0}


def row(job: Job, regrets: dict[int, float]) -> Row:
    curve = [
        {"episode": at, "deployed": r, "exploring": 1.0, "solver_on_its_belief": r - 0.01}
        for at, r in regrets.items()
    ]
    spread = {} if job.settings["variant"] == "teacher" else SPREAD
    return Row(job, {"curve": curve, "spread": spread}, 0.0, 0.0, "cpu", {})


def presented(rows: list[Row]) -> Presentation:
    return STUDY.present(Result("exploration", "default", "", tuple(rows)), {})


def named(start: str) -> Job:
    return next(job for job in jobs("default") if job.name.startswith(start))


def test_differences_are_paired_by_seed_and_the_longest_row_of_a_seed_counts() -> None:
    rows = [
        row(named("teacher-1-0-2001"), {100: 0.2, 300: 0.1, 1000: 0.05}),
        row(named("teacher-1-0-2004"), {100: 0.4, 300: 0.3}),
        row(named("airllm-0.9-0-2001-300"), {100: 0.25, 300: 0.12}),
        row(named("airllm-0.9-0-2001-1000"), {100: 0.25, 300: 0.12, 1000: 0.06}),
        row(named("airllm-0.9-0-2002-300"), {100: 0.9, 300: 0.9}),  # no teacher of this seed
    ]
    shown = presented(rows)
    regrets, differences, copying = shown.tables
    ours = next(cells for cells in regrets.rows if cells[0].startswith("AirLLM"))
    assert ours[-2:] == ("2", "1")
    assert differences.rows == (("AirLLM, teacher acts in 90 %", "+0.050", "+0.020", "+0.010"),)
    assert copying.rows[0][1].startswith("+0.010")
    assert copying.rows[0][-2:] == ("1.00 / 2.00", "3.00 / 8.00")
    to_teacher, to_solver = shown.claims
    assert (to_teacher.ours, to_teacher.seeds) == ("+0.020", (2001,))
    assert (to_solver.ours, to_solver.seeds) == ("+0.010", (2001, 2002))


def test_levels_have_tables_of_their_own() -> None:
    rows = [
        row(named("teacher-1-0-2004"), {100: 0.4, 300: 0.3}),
        row(named("levels-teacher-1-0-2004"), {100: 0.2, 300: 0.1}),
        row(named("levels-teacher-1-0.4-2004"), {100: 0.6, 300: 0.5}),
    ]
    rows[1].values["by_energy"] = 0.25  # type: ignore[index]
    shown = presented(rows)
    assert shown.tables[1].rows[1] == (
        "plans by energy, nothing learned", "0.250", "0.250", "0.250", "1", "0",
    )  # fmt: skip
    assert [(table.title, table.rows[0][2]) for table in shown.tables] == [
        ("Regret, additive utility", "0.300"),
        ("Regret, levels, additive utility", "0.100"),
        ("Regret, levels, pairwise interactions", "0.500"),
    ]


def test_without_rows_nothing_is_shown() -> None:
    shown = presented([])
    assert (shown.claims, shown.tables, shown.charts) == ((), (), ())


def test_names_of_jobs_are_unique_and_seeds_fresh() -> None:
    plan = jobs("default")
    assert len({job.name for job in plan}) == len(plan)
    assert all(job.seed > 2000 for job in plan)


def test_the_spread_of_draws_is_that_of_the_prior_before_anything_is_learned() -> None:
    world = synthetic_world(5)
    trained = train_policy(world, episodes=0, seed=0)
    found = spreads(world, trained, 0)
    # An untrained denoiser knows no link; the prior is so wide that draws differ by several ranks.
    assert found["rank_drawn"] > 1.0
    assert all(np.isfinite(value) and value >= 0 for value in found.values())


@pytest.mark.parametrize(
    ("name", "levels"),
    [("teacher", False), ("airllm", False), ("teacher", True), ("alike", True), ("airllm", True)],
)
def test_a_job_leaves_a_curve(name: str, levels: bool, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "variant": name, "teacher_share": 1.0, "interaction_share": 0.0, "episodes": 2,
        "levels": levels,
    }  # fmt: skip
    context = RunContext(tmp_path, "quick", inputs={}, input_scratch={}, data=None)
    values = STUDY.run(Job(name, 3, settings), context)
    assert values["curve"] == []  # the first evaluation is after 25 episodes
    assert set(values["spread"]) == (set(SPREAD) if name == "airllm" else set())
    assert ("by_energy" in values) == levels
