"""Who should act while the policy learns: the policy itself, or exact Thompson sampling?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rankcast.allocation.baselines import BeliefAllocator
from rankcast.config.plain import from_plain
from rankcast.config.policy import PolicyConfig, TrainingConfig
from rankcast.records import IntArray
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
from studies.report.statistics import t_interval
from studies.shared.rewards import series_over_seeds
from studies.surrogate.training import TEACHER_WIDTH, Trained, train_policy, train_teacher
from studies.surrogate.world import World, synthetic_world

EVALUATE_EVERY = 25
CHECKPOINTS = (100, 300, 1000)
HEADS = tuple(f"after {episode:,}" for episode in CHECKPOINTS)
SEEDS = (2001, 2002, 2003, 2004, 2005)
"""Draws of the utility on which nothing was tuned."""
INTERACTIONS = 0.4  # their share of the variance
SPREAD_REPEATS = 60  # plans for each judged link whose spread is compared

TEACHER = "teacher"
PROPOSALS = {"airllm": "ppo", "ddim": "none"}
LABELS = {
    (TEACHER, 1.0): "teacher (Thompson sampling, exact solver)",
    ("airllm", 0.9): "AirLLM, teacher acts in 90 %",
    ("ddim", 0.9): "DDIM alone, teacher acts in 90 %",
    ("airllm", 0.0): "AirLLM, policy acts",
    ("ddim", 0.0): "DDIM alone, policy acts",
}
Learner = tuple[str, float]
"""Variant and share of the episodes in which the teacher acts."""
LONG_LEARNERS: tuple[Learner, ...] = (("airllm", 0.9), ("ddim", 0.9))
LONG_SEEDS = SEEDS[:3]
"""Those on which these and the teacher learn an additive utility for 1,000 episodes."""


def jobs(scale: Scale) -> Sequence[Job]:
    """Return what is to be run, the most important first."""
    if scale == "quick":
        return [_job(learner, 0.0, SEEDS[0], 50) for learner in ((TEACHER, 1.0), ("airllm", 0.9))]
    plan: list[Job] = []
    for learner in LABELS:
        long = LONG_SEEDS if learner[0] == TEACHER else ()  # it learns without networks: cheaply
        plan += [_job(learner, 0.0, seed, 1000 if seed in long else 300) for seed in SEEDS]
        plan += [_job(learner, INTERACTIONS, seed, 300) for seed in SEEDS]
    for learner in LONG_LEARNERS:
        plan += [_job(learner, 0.0, seed, 1000) for seed in LONG_SEEDS]
    return plan


def _job(learner: Learner, interaction_share: float, seed: int, episodes: int) -> Job:
    variant, teacher_share = learner
    settings = {
        "variant": variant,
        "teacher_share": teacher_share,
        "interaction_share": interaction_share,
        "episodes": episodes,
    }
    name = f"{variant}-{teacher_share:g}-{interaction_share:g}-{seed}-{episodes}"
    return Job(name, seed, settings)


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Train one learner on one draw of the MDP."""
    del context
    torch.set_num_threads(1)
    s, episodes = job.settings, job.settings["episodes"]
    world = synthetic_world(job.seed, s["interaction_share"])
    spread: dict[str, float] = {}
    if s["variant"] == TEACHER:
        _, curve = train_teacher(
            world, episodes=episodes, seed=job.seed, evaluate_every=EVALUATE_EVERY
        )
    else:
        trained = train_policy(
            world,
            from_plain(PolicyConfig, {"proposal": PROPOSALS[s["variant"]]}),
            from_plain(TrainingConfig, {"teacher_share": s["teacher_share"]}),
            episodes=episodes,
            seed=job.seed,
            evaluate_every=EVALUATE_EVERY,
        )
        curve, spread = trained.curve, spreads(world, trained, job.seed)
    return {
        "oracle": world.oracle,
        "best_uniform": world.uniform,
        "curve": [point.to_plain() for point in curve],
        "spread": spread,
    }


def spreads(world: World, trained: Trained, seed: int) -> dict[str, float]:
    """Compare the exploring policy's plans with exact draws from the belief that it was taught on.

    Returns:
        Standard deviations over plans for the same link, averaged over links: of the rank of a
        projection (averaged over projections), and of the sum of all ranks.
    """
    observation = world.observe(SPREAD_REPEATS)
    generator = torch.Generator().manual_seed(seed)
    sampled = trained.policy.act(observation, generator, explore=True).ranks
    explorer = BeliefAllocator(world.problem, trained.utility, TEACHER_WIDTH)
    drawn = explorer.allocate(observation, np.random.default_rng(seed))

    def of(ranks: IntArray) -> tuple[float, float]:
        each = ranks.reshape(SPREAD_REPEATS, world.link.size, -1)
        return float(each.std(axis=0).mean()), float(each.sum(axis=2).std(axis=0).mean())

    names = ("rank_sampled", "sum_sampled", "rank_drawn", "sum_drawn")
    return dict(zip(names, (*of(sampled), *of(drawn)), strict=True))


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Return regrets, differences to the teacher, and spreads."""
    del inputs
    tables: list[Table] = []
    for share, words in ((0.0, "additive utility"), (INTERACTIONS, "with pairwise interactions")):
        tables += [
            _regret_table(result, share, f"Regret, {words}"),
            _difference_table(result, share, f"Regret minus the teacher's, {words}"),
            _copying_table(result, share, f"How well the teacher is copied, {words}"),
        ]
    charts = (
        _chart(result, 0.0, "Regret of the deployed policy, additive utility"),
        _chart(result, INTERACTIONS, "Regret of the deployed policy, with pairwise interactions"),
    )
    return Presentation(
        _claims(result),
        tuple(table for table in tables if table.rows),
        tuple(chart for chart in charts if chart.series),
    )


def _claims(result: Result) -> tuple[Claim, ...]:
    """Return AirLLM's distance to its teacher after 300 episodes, by who acts."""
    claims = []
    for share, words in ((0.0, "additive utility"), (INTERACTIONS, "pairwise interactions")):
        for learner in (("airllm", 0.9), ("airllm", 0.0)):
            pairs = _differences(result, learner, share, 300)
            if not pairs:
                continue
            estimate = t_interval(list(pairs.values()))
            text = f"Regret after 300 episodes: {LABELS[learner]}, minus the teacher's; {words}"
            claims.append(
                Claim(
                    text, "", f"{estimate.value:+.3f}", estimate.interval, "measured",
                    tuple(sorted(pairs)), "t interval over draws of the utility",
                )
            )  # fmt: skip
    return tuple(claims)


def _regret_table(result: Result, share: float, title: str) -> Table:
    rows = []
    for learner, label in LABELS.items():
        own = _rows(result, learner, share)
        if own:
            cells = [_cell(_regrets(result, learner, share, at)) for at in CHECKPOINTS]
            rows.append((label, *cells, *_seeds(result, learner, share)))
    note = "Mean ± half-width of the 95 % t interval over seeds, whose number stands at the end."
    return Table(title, ("while learning", *HEADS, "seeds", "at 1,000"), tuple(rows), note)


def _difference_table(result: Result, share: float, title: str) -> Table:
    rows = []
    for learner, label in LABELS.items():
        cells = [_cell(_differences(result, learner, share, at), "+.3f") for at in CHECKPOINTS]
        if learner[0] != TEACHER and any(cell != "–" for cell in cells):
            rows.append((label, *cells))
    note = "Paired by seed: the same utility, other draws and other noise."
    return Table(title, ("while learning", *HEADS), tuple(rows), note)


def _copying_table(result: Result, share: float, title: str) -> Table:
    """Return what the network adds to the regret of its own belief, and how it spreads."""
    rows = []
    for learner, label in LABELS.items():
        own = [row for row in _rows(result, learner, share) if row.values["spread"]]
        if not own:
            continue
        cells = [_cell(_copying(result, learner, share, at), "+.3f") for at in CHECKPOINTS]
        ratios = [
            f"{np.mean([r.values['spread'][f'{x}_sampled'] for r in own]):.2f} / "
            f"{np.mean([r.values['spread'][f'{x}_drawn'] for r in own]):.2f}"
            for x in ("rank", "sum")
        ]
        rows.append((label, *cells, *ratios))
    note = (
        "Regret of the deployed policy minus that of the exact solver on the policy's own belief; "
        "standard deviation at the end of training of a projection's rank and of the sum of ranks, "
        "of plans that the policy samples / of plans solved from draws of the belief."
    )
    return Table(title, ("while learning", *HEADS, "rank", "sum of ranks"), tuple(rows), note)


def _chart(result: Result, share: float, title: str) -> LineChart:
    series = []
    for learner, label in LABELS.items():
        own = _rows(result, learner, share)
        if not own:
            continue
        length = min(len(row.values["curve"]) for row in own)
        curves = [row.values["curve"][:length] for row in own]
        episodes = [point["episode"] for point in curves[0]]
        regrets = [[point["deployed"] for point in curve] for curve in curves]
        series.append(series_over_seeds(label, episodes, regrets))
    return LineChart(
        title, "episodes of 15 steps", "regret (0 = optimum, 1 = best uniform rank)",
        tuple(series), note="Bands: 95 % t interval over seeds.",
    )  # fmt: skip


def _rows(result: Result, learner: Learner, share: float) -> tuple[Row, ...]:
    """Return the longest row of each seed; a longer one begins as a shorter one does."""
    variant, teacher_share = learner
    rows = result.select(variant=variant, teacher_share=teacher_share, interaction_share=share)
    ordered = sorted(rows, key=lambda row: row.job.settings["episodes"])
    return tuple({row.job.seed: row for row in ordered}.values())


def _regrets(result: Result, learner: Learner, share: float, at: int) -> dict[int, float]:
    """Return the deployed regret of each seed that got that far."""
    points = {row.job.seed: _point(row, at) for row in _rows(result, learner, share)}
    return {seed: point["deployed"] for seed, point in points.items() if point}


def _seeds(result: Result, learner: Learner, share: float) -> tuple[str, str]:
    """Return how many seeds there are after 300 and after 1,000 episodes."""
    few, many = (len(_regrets(result, learner, share, at)) for at in CHECKPOINTS[1:])
    return str(few), str(many)


def _differences(result: Result, learner: Learner, share: float, at: int) -> dict[int, float]:
    """Return the regret of each seed minus the teacher's."""
    theirs = _regrets(result, (TEACHER, 1.0), share, at)
    ours = _regrets(result, learner, share, at)
    return {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}


def _copying(result: Result, learner: Learner, share: float, at: int) -> dict[int, float]:
    """Return the regret of each seed minus that of the exact solver on the same belief."""
    points = {row.job.seed: _point(row, at) for row in _rows(result, learner, share)}
    return {s: p["deployed"] - p["solver_on_its_belief"] for s, p in points.items() if p}


def _point(row: Row, episode: int) -> Mapping[str, float] | None:
    return next((p for p in row.values["curve"] if p["episode"] == episode), None)


def _cell(values: Mapping[int, float], spec: str = ".3f") -> str:
    return f"{t_interval(list(values.values())):{spec}}" if values else "–"


STUDY = Study(
    name="exploration",
    title="Who acts while the policy learns",
    question="Is the policy as good as its teacher if the teacher acts while it learns?",
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
)
