"""When does knowing the text pay, if the belief can make use of it? On a world of domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rankcast.config.plain import from_plain
from rankcast.config.policy import PolicyConfig, StateName, TrainingConfig
from studies.domains.measured import MEASURED, measured_job, run_measured
from studies.domains.measured_presentation import (
    measured_answer,
    measured_claims,
    measured_rows,
    measured_tables,
)
from studies.domains.world import domain_world
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
from studies.report.statistics import Estimate, paired_t, t_interval
from studies.shared.rewards import deployed_regret, in_pairs, regret, reward
from studies.surrogate.training import CurvePoint, train_policy, train_teacher
from studies.surrogate.world import regret_unit

CORRELATIONS = (0.3, 0.7, 1.0)
"""Between domains, of the logarithms of the gains' amplitudes."""
SEEDS = (0, 1, 2)
EPISODES, N_ENVS, EVALUATE_EVERY = 300, 5, 25
TEXT_AMPLITUDE = 0.5
"""Chosen beforehand, and the same for every correlation."""

SOLVER, AIRLLM = "solver", "airllm"
FULL, NO_ENTROPY, NO_OOV, HIDDEN, PLAIN = "full", "no-entropy", "no-oov", "hidden", "plain"
HIDES: Mapping[str, tuple[StateName, ...]] = {
    FULL: (), NO_ENTROPY: ("entropy",), NO_OOV: ("oov",), HIDDEN: ("entropy", "oov"), PLAIN: (),
}  # fmt: skip
WORDS = {
    FULL: "text shown, gains linear in it",
    NO_ENTROPY: "without the lexical entropy",
    NO_OOV: "without the OOV rate",
    HIDDEN: "without both",
    PLAIN: "text shown, one utility for all texts",
}
WHO = {SOLVER: "solver (Thompson sampling)", AIRLLM: "AirLLM"}
TRAINED_FOR: Mapping[str, tuple[str, ...]] = {
    SOLVER: (FULL, NO_ENTROPY, NO_OOV, PLAIN),
    AIRLLM: (FULL, HIDDEN, PLAIN),
}
"""Whose belief learns what. A solver from whom both are hidden is the one with the plain belief."""


def jobs(scale: Scale) -> Sequence[Job]:
    """Return what is to be run, the most important first."""
    if scale == "quick":
        return [*(_job(who, FULL, 0.3, 0, 10) for who in WHO), measured_job(0, quick=True)]
    plan = [
        _job(SOLVER, variant, correlation, seed)
        for correlation in CORRELATIONS
        for seed in SEEDS
        for variant in TRAINED_FOR[SOLVER]
    ]
    plan += [
        _job(AIRLLM, variant, correlation, seed)
        for correlation in CORRELATIONS[:2]
        for seed in SEEDS
        for variant in TRAINED_FOR[AIRLLM]
    ]
    return plan + [measured_job(seed) for seed in SEEDS]


def _job(who: str, variant: str, correlation: float, seed: int, episodes: int = EPISODES) -> Job:
    settings = {
        "who": who,
        "variant": variant,
        "correlation": correlation,
        "episodes": episodes,
        "n_envs": N_ENVS,
        "policy": {"blind": list(HIDES[variant])},
        "training": {"utility": {"text_amplitude": 0.0 if variant == PLAIN else TEXT_AMPLITUDE}},
    }
    return Job(f"{who}-{variant}-{correlation:g}-{seed}", seed, settings)


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Let one learner learn in one world, and solve for what the text is worth there.

    Or measure the same on a real model: see `run_measured`.
    """
    if job.settings.get("kind") == MEASURED:
        return run_measured(job, context)
    torch.set_num_threads(1)
    s, n_envs = job.settings, job.settings["n_envs"]
    world = domain_world(job.seed, s["correlation"], n_envs)
    policy = from_plain(PolicyConfig, s["policy"])
    training = from_plain(TrainingConfig, s["training"])
    rollouts, every = s["episodes"] // n_envs, max(1, min(EVALUATE_EVERY, s["episodes"]) // n_envs)
    curve: Sequence[CurvePoint]
    if s["who"] == SOLVER:
        _, curve = train_teacher(
            world, episodes=rollouts, seed=job.seed, evaluate_every=every,
            utility_config=training.utility, hidden=policy.blind,
        )  # fmt: skip
    else:
        curve = train_policy(
            world, policy, training, episodes=rollouts, seed=job.seed, evaluate_every=every
        ).curve
    return {
        "curve": [p.to_plain() | {"episode": p.episode * n_envs} for p in curve],
        "oracle": world.oracle,
        "best_uniform": world.uniform,
        "text_worth": world.text_worth,
        "linear_worth": world.linear_worth(policy.blind),
    }


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Return regrets, what the text is worth, and what of it each learner earns."""
    del inputs
    measured = measured_rows(result)
    tables = (_regret_table(result), _worth_table(result), *measured_tables(measured))
    charts = [_chart(result, correlation) for correlation in CORRELATIONS]
    return Presentation(
        (*_claims(result), *measured_claims(measured)),
        tuple(table for table in tables if table.rows),
        tuple(chart for chart in charts if chart.series),
        " ".join(filter(None, (_answer(result), measured_answer(measured)))),
    )


def _rows(result: Result, who: str, variant: str, correlation: float) -> Sequence[Row]:
    return result.select(who=who, variant=variant, correlation=correlation)


def _regret_table(result: Result) -> Table:
    """Return final regrets of each learner by correlation."""
    lines = []
    for who, variants in TRAINED_FOR.items():
        for variant in variants:
            rows = [_rows(result, who, variant, c) for c in CORRELATIONS]
            if any(rows):
                cells = [_cell([regret(row) for row in own]) for own in rows]
                counts = "/".join(str(len(own)) for own in rows)
                lines.append((WHO[who], WORDS[variant], *cells, counts))
    return Table(
        "Regret after 300 episodes",
        ("learner", "belief and state", *(f"correlation {c:g}" for c in CORRELATIONS), "seeds"),
        tuple(lines),
        "0: the best plans for each domain, 1: the best single rank for all. Mean ± half-width of "
        "the 95 % t interval over seeds. A solver from whom both parts are hidden is the one with "
        "one utility for all texts.",
    )


def _worth_table(result: Result) -> Table:
    """Return what knowing the text is worth where the gains are known, in reward and in regret."""
    lines = []
    for correlation in CORRELATIONS:
        known = [_rows(result, SOLVER, v, correlation) for v in (FULL, NO_ENTROPY, NO_OOV)]
        if not known[0]:
            continue
        most = [row.values["text_worth"] for row in known[0]]
        linear = [_cell([row.values["linear_worth"] for row in own], "z.4f") for own in known]
        regrets = [_blind_regret(row) for row in known[0]]
        lines.append((f"{correlation:g}", _cell(most, "z.4f"), *linear, _cell(regrets)))
    return Table(
        "What knowing the text is worth where the gains are known",
        (
            "correlation", "domain known: reward", "linear in both", "in the OOV rate alone",
            "in the lexical entropy alone", "regret without the text",
        ),
        tuple(lines),
        "Reward over the best plans for the mean of the domains, whose regret is the last column. "
        "Linear gains are fitted to the true ones by least squares over texts.",
    )  # fmt: skip


def _chart(result: Result, correlation: float) -> LineChart:
    """Return regret against episodes, with the t interval over seeds."""
    series = []
    for who, variants in TRAINED_FOR.items():
        for variant in variants:
            rows = _rows(result, who, variant, correlation)
            if rows:
                series.append(deployed_regret(f"{WHO[who]}, {WORDS[variant]}", rows))
    return LineChart(
        f"Regret where gains of domains correlate by {correlation:g}", "episodes",
        "regret (0 = best plans for each domain)", tuple(series),
        note="The policy as deployed, noise-free; bands: 95 % t interval over seeds.",
    )  # fmt: skip


def _blind_regret(row: Row) -> float:
    """Return the regret of the best plans that are the same for all texts."""
    v = row.values
    return float(v["text_worth"] / regret_unit(v["oracle"], v["best_uniform"]))


QUESTIONS = (
    (
        SOLVER,
        PLAIN,
        "A solver whose gains depend on the text earns more than one with one utility for all",
    ),
    (AIRLLM, PLAIN, "AirLLM earns more if gains depend on the text than with one utility for all"),
    (AIRLLM, HIDDEN, "Being shown the text raises AirLLM's final reward"),
)
"""Whose full-sighted variant is compared with which other, in words."""


def _claims(result: Result) -> list[Claim]:
    """Return what the text is worth at most, and what it buys in final reward."""
    claims = []
    for correlation in CORRELATIONS:
        where = f"where gains of domains correlate by {correlation:g}"
        full = _rows(result, SOLVER, FULL, correlation)
        if full:
            worth = t_interval([row.values["text_worth"] for row in full])
            words = f"Knowing the domain is worth reward {where}."
            claims.append(_claim(words, worth, full, "Gains known: the most that can be earned."))
        for who, other, words in QUESTIONS:
            gained, own = _gained(result, who, other, correlation)
            if gained is not None:
                claims.append(_claim(f"{words} {where}.", gained, own, "Noise-free final reward."))
    return claims


def _gained(
    result: Result, who: str, other: str, correlation: float
) -> tuple[Estimate | None, Sequence[Row]]:
    """Return what the full-sighted variant earns over another, seed by seed, and its rows."""
    own, theirs = (_rows(result, who, v, correlation) for v in (FULL, other))
    both = in_pairs(own, theirs)
    if not both:
        return None, ()
    ours = [row for row, _ in both]
    return paired_t([reward(row) for row in ours], [reward(row) for _, row in both]), ours


def _answer(result: Result) -> str:
    """Return a sentence for each correlation: what the text is worth, and what of it is earned."""
    words = []
    for correlation in CORRELATIONS:
        full = _rows(result, SOLVER, FULL, correlation)
        solver, _ = _gained(result, SOLVER, PLAIN, correlation)
        if not full or solver is None:
            continue
        worth = np.mean([row.values["text_worth"] for row in full])
        airllm, _ = _gained(result, AIRLLM, PLAIN, correlation)
        last = "" if airllm is None else f", and AirLLM {airllm.value:+z.4f}"
        words.append(
            f"Where the gains of domains correlate by {correlation:g}, knowing the domain is worth "
            f"{max(worth, 0.0):.4f} nats of reward at most. Of that the solver whose gains depend "
            f"on the text earns {solver.value:+z.4f} over one utility for all texts{last}."
        )
    return " ".join(words)


def _claim(words: str, gained: Estimate, rows: Sequence[Row], note: str) -> Claim:
    seeds = tuple(row.job.seed for row in rows)
    return Claim(words, "", f"{gained.value:+z.4f}", gained.interval, "measured", seeds, note)


def _cell(values: Sequence[float], spec: str = ".3f") -> str:
    return f"{t_interval(values):{spec}}" if values else "–"


STUDY = Study(
    name="domains",
    title="Texts of several domains",
    question="When does knowing the text pay, if gains may depend on it, and how much?",
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
)
