"""The world of domains, whose optimum is known, and the study's tables on rows made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankcast.allocation.waterfilling import waterfill
from rankcast.config.plain import from_plain
from rankcast.config.policy import PolicyConfig, TrainingConfig
from rankcast.learner.synthetic import transformer_layout
from studies.domains.study import AIRLLM, FULL, HIDDEN, PLAIN, SOLVER, STUDY, jobs
from studies.domains.world import (
    ENTROPIES,
    OOV_RATES,
    TOTAL_GAIN,
    DomainWorld,
    domain_gains,
    domain_world,
)
from studies.harness.spec import Job, LineChart, Result, Row, RunContext


@pytest.fixture(scope="module")
def world() -> DomainWorld:
    return domain_world(0, 0.3, n_envs=2, layers=1)


def test_gains_have_the_correlation_that_was_asked_for() -> None:
    layout = transformer_layout(n_layers=400)
    for correlation in (0.3, 0.7):
        gains = domain_gains(np.random.default_rng(0), layout, correlation)
        assert gains.sum(axis=(1, 2)) == pytest.approx(np.full(3, TOTAL_GAIN))
        assert (np.diff(gains, axis=2) < 0).all()
        # log gain_i is log A - i/τ, so that log A is twice the first less the second.
        log_amplitude = 2 * np.log(gains[..., 0]) - np.log(gains[..., 1])
        measured = np.corrcoef(log_amplitude)[np.triu_indices(3, 1)]
        assert measured == pytest.approx(np.full(3, correlation), abs=0.06)
    same = domain_gains(np.random.default_rng(0), layout, 1.0)
    assert np.array_equal(same[0], same[1])
    assert np.array_equal(same[0], same[2])


def test_the_oracle_knows_the_domain_and_the_blind_one_their_mean(world: DomainWorld) -> None:
    groups, at = world.groups, np.arange(15) // 5
    plans = np.concatenate(
        [
            waterfill(group.utility.gains, world.problem, world.link.select(at == d))
            for d, group in enumerate(groups)
        ]
    )
    assert world.regret(plans, world.link) == pytest.approx(0.0, abs=1e-9)
    mean = np.mean([g.utility.gains for g in groups], axis=0)
    blind = waterfill(mean, world.problem, world.link)
    assert world.objective(blind, world.link).mean() == pytest.approx(world.blind)
    # Nothing that ignores the text does better: each plan changed by one rank does worse.
    for m in range(blind.shape[1]):
        for step in (-1, 1):
            other = blind.copy()
            other[:, m] = np.clip(other[:, m] + step, 0, 8)
            assert world.objective(other, world.link).mean() >= world.blind - 1e-12
    assert world.text_worth > 0.0
    assert world.regret(blind, world.link) > 0.0


def test_each_judged_case_has_a_text_of_its_domain(world: DomainWorld) -> None:
    seen = world.observe(20)
    domain = np.arange(seen.link.size) // 5 % 3
    for d in range(3):
        own = seen.text.select(domain == d)
        assert own.lexical_entropy.mean() == pytest.approx(ENTROPIES[d], abs=0.06)
        assert own.oov_rate.mean() == pytest.approx(OOV_RATES[d], abs=0.006)
    again = world.observe(20)
    assert np.array_equal(seen.text.oov_rate, again.text.oov_rate)


def test_what_linear_gains_are_worth_lies_between_nothing_and_everything(
    world: DomainWorld,
) -> None:
    both = world.linear_worth()
    assert 0.0 < both < world.text_worth
    assert world.linear_worth(("entropy",)) < both
    assert world.linear_worth(("oov",)) < both
    assert world.linear_worth(("entropy", "oov")) == pytest.approx(0.0, abs=2e-4)
    assert domain_world(0, 1.0, layers=1).text_worth == pytest.approx(0.0, abs=1e-9)


def row(name: str, final: float, worth: float = 0.01) -> Row:
    job = next(job for job in jobs("default") if job.name == name)
    curve = [{"episode": 25, "deployed": 0.9}, {"episode": 300, "deployed": final}]
    values: dict[str, Any] = {
        "curve": curve, "oracle": 0.3, "best_uniform": 0.4,
        "text_worth": worth, "linear_worth": worth / 2,
    }  # fmt: skip
    return Row(job, values, 0.0, 0.0, "cpu", {})


def test_differences_are_rewards_paired_by_seed() -> None:
    rows = (
        row("solver-full-0.3-0", 0.1, 0.02),
        row("solver-full-0.3-1", 0.2, 0.04),
        row("solver-plain-0.3-0", 0.3),
        row("airllm-full-0.7-2", 0.2),
        row("airllm-hidden-0.7-2", 0.1),
    )
    shown = STUDY.present(Result("domains", "default", "", rows), {})
    worth, solver, airllm = shown.claims
    assert (worth.ours, worth.seeds) == ("+0.0300", (0, 1))
    assert (solver.ours, solver.seeds) == ("+0.0200", (0,))  # 0.2 of a regret unit of 0.1
    assert (airllm.ours, airllm.seeds) == ("-0.0100", (2,))  # bad news is shown as well
    assert "0.0300 nats of reward at most" in shown.text  # of seed 0 and 1
    assert shown.text.endswith("earns +0.0200 over one utility for all texts.")
    regrets, limits = shown.tables
    assert regrets.rows[0][2].startswith("0.150")
    charts = [chart for chart in shown.charts if isinstance(chart, LineChart)]
    assert [len(chart.series) for chart in charts] == [2, 2]
    assert [cells[-1] for cells in regrets.rows] == ["2/0/0", "1/0/0", "0/1/0", "0/1/0"]
    assert limits.rows[0][1].startswith("0.0300")
    assert limits.rows[0][-1].startswith("0.300")  # regret of the blind plans: 0.03 / 0.1


def test_without_rows_nothing_is_shown() -> None:
    shown = STUDY.present(Result("domains", "default", "", ()), {})
    assert (shown.claims, shown.tables, shown.charts) == ((), (), ())


def test_jobs_hide_what_they_say() -> None:
    plan = jobs("default")
    assert len({job.name for job in plan}) == len(plan)
    for job in (job for job in plan if "who" in job.settings):
        policy = from_plain(PolicyConfig, job.settings["policy"])
        amplitude = from_plain(TrainingConfig, job.settings["training"]).utility.text_amplitude
        assert (job.settings["variant"] == HIDDEN) == (len(policy.blind) == 2)
        assert (job.settings["variant"] == PLAIN) == (amplitude == 0.0)
    assert {job.settings.get("who") for job in jobs("quick")} == {SOLVER, AIRLLM, None}


def test_the_solver_learns_and_its_row_holds_the_limits(tmp_path: Path) -> None:
    context = RunContext(tmp_path, "quick", {}, {}, None)
    job = next(job for job in jobs("quick") if job.name == f"{SOLVER}-{FULL}-0.3-0")
    assert isinstance(job, Job)
    values = STUDY.run(job, context)
    assert [point["episode"] for point in values["curve"]] == [10]
    assert values["oracle"] < values["best_uniform"]
    assert 0 < values["linear_worth"] < values["text_worth"]
