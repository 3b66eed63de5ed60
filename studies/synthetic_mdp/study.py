"""How close does each policy come to the optimum, and how soon? On the synthetic MDP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from rankcast.config.policy import PolicyConfig, PpoConfig, TrainingConfig
from studies.harness.spec import (
    Claim,
    Job,
    LineChart,
    Presentation,
    Result,
    Row,
    RunContext,
    Scale,
    Study,
    Table,
)
from studies.report.statistics import Estimate, t_interval
from studies.shared.rewards import deployed_regret
from studies.surrogate.training import CurvePoint, train_policy, train_teacher
from studies.surrogate.world import World, synthetic_world

EVALUATE_EVERY = 25
CHECKPOINTS = (100, 300, 1000)
HEADS = tuple(f"after {episode:,}" for episode in CHECKPOINTS)
LEARNERS = ("airllm", "ddim", "teacher")
COUPLED = 0.2  # interactions' share of the variance

AIRLLM = PolicyConfig()
PPO_FASTER = PpoConfig(learning_rate=1e-3, epochs=10)
POLICY_ACTS = TrainingConfig(teacher_share=0.0)  # as in the paper; `exploration` compares
POLICIES: dict[str, tuple[PolicyConfig, TrainingConfig]] = {
    "airllm": (AIRLLM, POLICY_ACTS),
    "ddim": (replace(AIRLLM, proposal="none"), POLICY_ACTS),
    "airllm-no-imitation": (AIRLLM, replace(POLICY_ACTS, teacher_weight=0.0)),
    "reward-weighted": (
        replace(AIRLLM, initial_log_std=-0.5),
        replace(POLICY_ACTS, reward_term="reward-weighted"),
    ),
    "ppo": (replace(AIRLLM, refinement="none"), POLICY_ACTS),
    "ppo-faster": (replace(AIRLLM, refinement="none", ppo=PPO_FASTER), POLICY_ACTS),
}
LABELS = {
    "airllm": "AirLLM (PPO + DDIM)",
    "ddim": "DDIM alone",
    "teacher": "teacher (Thompson sampling, exact solver)",
    "ppo": "PPO alone, Table II",
    "ppo-faster": "PPO alone, learning rate 1e-3, 10 epochs",
    "reward-weighted": "PPO + DDIM, reward-weighted",
    "random": "random ranks",
    "airllm-no-imitation": "AirLLM, actor without the teacher",
}


def jobs(scale: Scale) -> Sequence[Job]:
    """Return what is to be run, the most important first."""
    if scale == "quick":
        return [
            _job(variant, 0.0, 0, EVALUATE_EVERY) for variant in ("airllm", "teacher", "random")
        ]
    first = ("random", "teacher", "airllm", "ddim", "ppo", "ppo-faster")
    coupled = ("random", "teacher", "airllm", "ddim")
    plan = [_job(v, 0.0, seed, 1000) for v in first for seed in range(5)]
    plan += [_job(v, COUPLED, seed, 300) for v in coupled for seed in range(5)]
    plan += [_job("reward-weighted", 0.0, seed, 300) for seed in range(5)]
    return plan + [_job("airllm-no-imitation", 0.0, seed, 300) for seed in range(5)]


def _job(variant: str, share: float, seed: int, episodes: int) -> Job:
    settings = {"variant": variant, "interaction_share": share, "episodes": episodes}
    return Job(f"{variant}-{share:g}-{seed}-{episodes}", seed, settings)


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Train one variant on one draw of the MDP."""
    del context
    torch.set_num_threads(1)
    variant, episodes = job.settings["variant"], job.settings["episodes"]
    world = synthetic_world(job.seed, job.settings["interaction_share"])
    if variant == "random":
        curve = _random_curve(world, job.seed, episodes)
    elif variant == "teacher":
        _, curve = train_teacher(
            world, episodes=episodes, seed=job.seed, evaluate_every=EVALUATE_EVERY
        )
    else:
        curve = train_policy(
            world,
            *POLICIES[variant],
            episodes=episodes,
            seed=job.seed,
            evaluate_every=EVALUATE_EVERY,
        ).curve
    return {
        "oracle": world.oracle,
        "best_uniform": world.uniform,
        "best_uniform_per_snr": world.uniform_per_link,
        "curve": [point.to_plain() for point in curve],
    }


def _random_curve(world: World, seed: int, episodes: int) -> tuple[CurvePoint, ...]:
    """Random ranks never learn; one long evaluation stands for all."""
    layout, link = world.problem.layout, world.observe(400).link
    shape = (link.size, layout.n_projections)
    ranks = np.random.default_rng(seed).integers(0, layout.r_max + 1, shape)
    regret = world.regret(ranks, link)
    steps = range(EVALUATE_EVERY, episodes + 1, EVALUATE_EVERY)
    return tuple(CurvePoint(episode, regret, regret) for episode in steps)


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Return regrets, paired differences and curves."""
    del inputs
    tables = [
        _table(result, 0.0, "Regret, additive utility"),
        _paired_table(result, 0.0, "Paired differences, additive utility"),
        _table(result, COUPLED, "Regret, with pairwise interactions (20 % of the variance)"),
        _paired_table(result, COUPLED, "Paired differences, with pairwise interactions"),
    ]
    charts = (
        _chart(result, 0.0, "Regret of those that learn, additive utility", LEARNERS),
        _chart(result, 0.0, "Regret while learning, additive utility"),
        _chart(result, COUPLED, "Regret while learning, with pairwise interactions"),
    )
    return Presentation(
        _claims(result),
        tuple(table for table in tables if table.rows),
        tuple(chart for chart in charts if chart.series),
        _stricter(result),
    )


def _claims(result: Result) -> tuple[Claim, ...]:
    """Return one line for each question that the rows answer."""
    regret = "regret, 0 = optimum, 1 = best uniform rank"
    questions = [
        (f"AirLLM after 1,000 episodes: {regret}", "airllm", None, 1000),
        ("AirLLM minus the exact solver under Thompson sampling", "airllm", "teacher", 1000),
        ("AirLLM minus DDIM alone: what PPO's proposal adds", "airllm", "ddim", 1000),
        ("AirLLM minus PPO alone (Table II's settings)", "airllm", "ppo", 1000),
        (f"Eq. 19's reward term read literally, after 300 episodes: {regret}", "reward-weighted",
         None, 300),
    ]  # fmt: skip
    claims = []
    for text, variant, other, episode in questions:
        pairs = _regrets(result, variant, 0.0, episode)
        if other is not None:
            theirs = _regrets(result, other, 0.0, episode)
            pairs = {seed: pairs[seed] - theirs[seed] for seed in pairs if seed in theirs}
        if not pairs:
            continue
        estimate = t_interval(list(pairs.values()))
        sign = "" if other is None else "+"
        claims.append(
            Claim(
                text, "", f"{estimate.value:{sign}.3f}", estimate.interval, "measured",
                tuple(sorted(pairs)), "t interval over draws of the utility, additive utility",
            )
        )  # fmt: skip
    return tuple(claims)


def _table(result: Result, share: float, title: str) -> Table:
    """Return regrets for one share of interactions."""
    rows = []
    for variant, label in LABELS.items():
        own = result.select(variant=variant, interaction_share=share)
        if own:
            cells = [_cell(_regrets(result, variant, share, at)) for at in CHECKPOINTS]
            last = f"{t_interval([_last_hundred(row) for row in own]):.3f}"
            cpu_s = f"{np.median([row.cpu_s for row in own]):.0f}"
            rows.append((label, *cells, last, str(len(own)), cpu_s))
    return Table(
        title,
        ("policy", *HEADS, "exploring, last 100", "seeds", "CPU s"),
        tuple(rows),
        "Mean ± half-width of the 95 % t interval over seeds; CPU time is the median of a run.",
    )


def _paired_table(result: Result, share: float, title: str) -> Table:
    """Return differences AirLLM - other, seed by seed."""
    ours = {at: _regrets(result, "airllm", share, at) for at in CHECKPOINTS}
    rows = []
    for variant, label in LABELS.items():
        if variant == "airllm" or not result.select(variant=variant, interaction_share=share):
            continue
        cells = []
        for at in CHECKPOINTS:
            theirs = _regrets(result, variant, share, at)
            common = {seed: ours[at][seed] - theirs[seed] for seed in ours[at] if seed in theirs}
            cells.append(_cell(common, "+.3f"))
        rows.append((label, *cells))
    note = "Regret of AirLLM minus that of another on the same utility; negative: AirLLM is better."
    return Table(title, ("AirLLM minus", *HEADS), tuple(rows), note)


def _chart(
    result: Result, share: float, title: str, variants: Sequence[str] = tuple(LABELS)
) -> LineChart:
    """Return regret against episodes, with the t interval over seeds."""
    series = []
    for variant in variants:
        own = result.select(variant=variant, interaction_share=share)
        if own:
            series.append(deployed_regret(LABELS[variant], own))
    return LineChart(
        title, "episodes of 15 steps", "regret (0 = optimum, 1 = best uniform rank)",
        tuple(series), note="Bands: 95 % t interval over seeds. The policy as deployed.",
    )  # fmt: skip


def _stricter(result: Result) -> str:
    """Return one sentence: the same regrets against the best uniform rank of each SNR."""
    words = []
    for episode in CHECKPOINTS:
        scaled = []
        for row in result.select(variant="airllm", interaction_share=0.0):
            regret, values = _regret_at(row, episode), row.values
            if regret is not None:
                reference = values["best_uniform_per_snr"] - values["oracle"]
                scaled.append(regret * (values["best_uniform"] - values["oracle"]) / reference)
        if scaled:
            words.append(f"{t_interval(scaled):.3f} after {episode:,}")
    if not words:
        return ""
    return (
        "Measured against the best uniform rank *of each SNR* instead, AirLLM's regret is "
        f"{', '.join(words)}."
    )


def _regrets(result: Result, variant: str, share: float, episode: int) -> dict[int, float]:
    """Return the deployed regret of each seed that got that far."""
    rows = result.select(variant=variant, interaction_share=share)
    regrets = {row.job.seed: _regret_at(row, episode) for row in rows}
    return {seed: regret for seed, regret in regrets.items() if regret is not None}


def _regret_at(row: Row, episode: int) -> float | None:
    return next((p["deployed"] for p in row.values["curve"] if p["episode"] == episode), None)


def _last_hundred(row: Row) -> float:
    """Return the exploring policy's mean regret over the evaluations of the last 100 episodes."""
    since = row.job.settings["episodes"] - 100
    return float(np.mean([p["exploring"] for p in row.values["curve"] if p["episode"] > since]))


def _cell(regrets: Mapping[int, float], spec: str = ".3f") -> str:
    if not regrets:
        return "–"
    estimate: Estimate = t_interval(list(regrets.values()))
    return f"{estimate:{spec}}"


STUDY = Study(
    name="synthetic_mdp",
    title="Learning where the optimum is known",
    question="How close does each policy come to the optimum of a synthetic MDP, and how soon?",
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
)
