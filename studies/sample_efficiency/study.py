"""Episodes until PPO's final reward, both methods tuned alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studies.harness.spec import (
    Claim,
    Job,
    LineChart,
    Presentation,
    Result,
    RunContext,
    Scale,
    Study,
    Table,
)
from studies.report.statistics import t_interval
from studies.shared.policies import CALIBRATION, episodes_of, policy_job, run_policy_job, seeds_of
from studies.shared.rewards import Race, race, regret, reward, reward_series
from studies.tuning.study import best

LABELS = {"airllm": "AirLLM, tuned", "ppo": "PPO, tuned"}
EPISODES = {"ppo": 1000, "airllm": 100}
EVALUATE_EVERY = {"ppo": 40, "airllm": 2}
GOAL = 0.30


def jobs(scale: Scale) -> Sequence[Job]:
    """Return both methods with every seed; the settings are looked up when a job runs."""
    return [
        policy_job(
            method,
            seed,
            episodes=episodes_of(scale, EPISODES[method]),
            evaluate_every=EVALUATE_EVERY[method],
        )
        for method in LABELS
        for seed in seeds_of(scale)
    ]


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Train with the best of the settings that were tried for the method."""
    s = job.settings
    settings = best(context.inputs["tuning"], s["variant"])
    tuned = policy_job(
        s["variant"],
        job.seed,
        **{**settings, "episodes": s["episodes"], "evaluate_every": s["evaluate_every"]},
    )
    return {**run_policy_job(tuned, context), "tuned": dict(settings)}


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Compare learning curves, and episodes until PPO's final reward."""
    del inputs
    rows = {label: result.select(variant=method) for method, label in LABELS.items()}
    if not all(rows.values()):
        return Presentation()
    raced = race(rows[LABELS["airllm"]], rows[LABELS["ppo"]])
    lines = tuple(
        (label, f"{t_interval([reward(r) for r in own]):.4f}",
         f"{t_interval([regret(r) for r in own]):.3f}", str(own[0].job.settings["episodes"]),
         str(len(own)))
        for label, own in rows.items()
    )  # fmt: skip
    table = Table("Final rewards", ("method", "final reward", "regret", "episodes", "seeds"), lines)
    chart = LineChart(
        "Reward against episodes",
        "episodes",
        "reward of the deployed policy",
        tuple(reward_series(label, own) for label, own in rows.items()),
        log_x=True,
        note="Calibrated learner, noise-free; bands: 95 % over seeds.",
    )
    claims = () if raced is None else (_claim(raced),)
    return Presentation(claims, (table,), (chart,))


def _claim(raced: Race) -> Claim:
    """Return the claim that AirLLM needs few of PPO's episodes."""
    missed = f"; {raced.missed} of {len(raced.seeds)} seeds never reached it" * bool(raced.missed)
    return Claim(
        "AirLLM reaches PPO's final reward in at most 30 % of PPO's episodes, both tuned alike.",
        "70 to 80 %",
        f"{'at least ' if raced.missed else ''}{raced.share.value:.1%}",
        raced.share.scaled(100).interval,
        raced.verdict(GOAL),
        raced.seeds,
        "Interval in percent. Share of the episodes in which PPO itself first reaches its final "
        f"reward; of all {EPISODES['ppo']:,} that it was trained for: {raced.of_all:.1%}{missed}. "
        f"AirLLM is judged every {EVALUATE_EVERY['airllm']} episodes, PPO every "
        f"{EVALUATE_EVERY['ppo']}. Eight settings each were tried with two other seeds on the same "
        "calibrated runs, PPO's for longer." + raced.note_on_idle("PPO"),
    )


STUDY = Study(
    name="sample_efficiency",
    title="Sample efficiency",
    question="How many episodes does AirLLM need for what PPO reaches in the end?",
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
    needs=(CALIBRATION, "tuning"),
)
