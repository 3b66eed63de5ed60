"""Policies trained on calibrated learners: the job that most studies consist of.

A policy of seed s trains on the calibrated learner of run s mod 3 (as many runs as were
calibrated), so that seeds vary both. Its plans can be judged on the real model of that run.

Shapes: K judged links, `N` projections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from rankcast.allocation.problem import Allocator
from rankcast.config.plain import from_plain
from rankcast.config.policy import PolicyConfig, TrainingConfig
from rankcast.errors import ConfigError, DataError
from rankcast.learner.transformer import TransformerLearner
from rankcast.policy.airllm import AirLLM
from rankcast.records import FloatArray, IntArray
from rankcast.training.folder import load_state
from studies.harness.spec import Job, Result, Row, RunContext, Scale
from studies.harness.store import command_for
from studies.harness.worker import owned_by
from studies.shared.judging import PlanJudge, judged_plans
from studies.shared.tasks import FULL_RANK_AT_DB, TASKS
from studies.surrogate.calibrated import CalibratedLearner
from studies.surrogate.calibration import Calibration
from studies.surrogate.training import train_policy
from studies.surrogate.world import World, WorldConfig, make_world

EPISODES = 100
EVALUATE_EVERY = 10
SEEDS = (0, 1, 2, 3, 4)
CALIBRATION = "calibration"
JUDGED_DB = 5.0
"""The link whose plans are judged on the real model [dB]."""
LIVE_SEEDS = 3
"""How many seeds have their plans judged there; as many as there are real models."""

TRAINING: Mapping[str, Any] = {
    "utility": {
        "total_gain": 0.69,
        "noise_std": 0.15,
        "paired_noise_std": 0.03,
        "form": "saturating",
    }
}
"""As in the preset `sst2-minilm` but for the form, which the probes chose; a guess loses ln 2."""

POLICY_ACTS: Mapping[str, Any] = {"teacher_share": 0.0}
"""Who acts while these policies learn, unless a job says otherwise: as in the paper, the policy."""

WORLD: Mapping[str, Any] = {"full_rank_at_db": FULL_RANK_AT_DB, "deadline": "enforce"}


def policy_job(
    variant: str,
    seed: int,
    *,
    policy: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    world: Mapping[str, Any] | None = None,
    episodes: int = EPISODES,
    judge_db: Sequence[float] = (),
    calibration: str = "sst2",
    n_envs: int = 1,
    evaluate_every: int = EVALUATE_EVERY,
) -> Job:
    """Return the job that trains one variant with one seed.

    Args:
        variant: its name in tables.
        seed: of policy, exploration and calibrated run.
        policy: settings of `PolicyConfig` that differ from the defaults, nested.
        training: likewise of `TrainingConfig`, over `TRAINING`.
        world: likewise of `WorldConfig`, over `WORLD`.
        episodes: to train for.
        judge_db: links whose plans are judged on the real model, where it is at hand [dB].
        calibration: task whose runs are used.
        n_envs: episodes that are rolled out side by side, each of which counts.
        evaluate_every: episodes between two evaluations.
    """
    return Job(
        f"{variant}-{seed}",
        seed,
        {
            "variant": variant,
            "policy": dict(policy or {}),
            "training": {**TRAINING, **(training or {})},
            "world": {**WORLD, **(world or {})},
            "episodes": episodes,
            "judge_db": list(judge_db),
            "calibration": calibration,
            "n_envs": n_envs,
            "evaluate_every": evaluate_every,
        },
    )


def seeds_of(scale: Scale, seeds: Sequence[int] = SEEDS) -> Sequence[int]:
    """Return the seeds of a scale."""
    return seeds[:1] if scale == "quick" else seeds


def episodes_of(scale: Scale, episodes: int = EPISODES) -> int:
    """Return the episodes of a scale."""
    return 3 if scale == "quick" else episodes


def judged_links(scale: Scale, seed: int) -> Sequence[float]:
    """Return the links whose plans a job of this seed judges on the real model [dB]."""
    return (JUDGED_DB,) if scale == "default" and seed < LIVE_SEEDS else ()


def calibrated_row(calibrations: Result, task: str, seed: int) -> Row:
    """Return the calibrated run that a seed uses.

    Raises:
        ConfigError: there is none.
    """
    rows = calibrations.select(task=task)
    if not rows:
        raise ConfigError(
            f"No run of {task} has been calibrated; first run "
            f"`{command_for(calibrations.study, 'default')}`."
        )
    return rows[seed % len(rows)]


def calibrated_world(row: Row, seed: int, settings: Mapping[str, Any], n_envs: int = 1) -> World:
    """Return the world of a calibrated run."""
    calibration = Calibration.from_plain(row.values["calibration"])
    learner = CalibratedLearner(calibration, n_envs, seed)
    return make_world(learner, calibration, from_plain(WorldConfig, settings), seed=seed)


def run_policy_job(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Train a variant, and judge its plans on the real model where that is at hand."""
    torch.set_num_threads(1)
    s = job.settings
    row = calibrated_row(context.inputs[CALIBRATION], s["calibration"], job.seed)
    n_envs, episodes = s["n_envs"], s["episodes"]
    world = calibrated_world(row, job.seed, s["world"], n_envs)
    trained = train_policy(
        world,
        from_plain(PolicyConfig, s["policy"]),
        from_plain(TrainingConfig, {**POLICY_ACTS, **s["training"]}),
        episodes=max(1, episodes // n_envs),
        seed=job.seed,
        evaluate_every=max(1, min(s["evaluate_every"], episodes) // n_envs),
    )
    plans = plans_of(trained.policy, world, job.seed)
    return {
        "calibrated_run": row.job.name,
        "curve": [p.to_plain() | {"episode": p.episode * n_envs} for p in trained.curve],
        "rewards": np.round(trained.rewards, 5).tolist(),
        "oracle": world.oracle,
        "best_uniform": world.uniform,
        "best_uniform_per_link": world.uniform_per_link,
        "plans": plan_values(world, plans),
        "mean_ranks": mean_plans(world, trained.policy).tolist(),
        "live": judge_live(context, row, by_link(world, plans), s["judge_db"]),
    }


def plans_of(allocator: Allocator, world: World, seed: int) -> IntArray:
    """Return an allocator's (K, N) plans for the judged links."""
    return allocator.allocate(world.observe(1), np.random.default_rng(seed))


def by_link(world: World, plans: IntArray) -> dict[float, IntArray]:
    """Return (K, N) plans by the SNR of their link [dB]."""
    return dict(zip(world.link.snr_db.tolist(), plans, strict=True))


def plan_values(world: World, plans: IntArray) -> list[dict[str, Any]]:
    """Return one plan for each judged link, with what it costs and loses."""
    link = world.link
    loss, cost = world.loss(plans), world.problem.link_costs.link_cost(plans, link)
    bits = world.problem.link_costs.payload_bits(plans)
    return [
        {
            "snr_db": float(link.snr_db[k]),
            "ranks": plans[k].tolist(),
            "payload_bits": float(bits[k]),
            "link_cost": float(cost[k]),
            "task_loss": float(loss[k]),
        }
        for k in range(link.size)
    ]


def mean_plans(world: World, policy: AirLLM, repeats: int = 20) -> FloatArray:
    """Return (K, N) mean ranks of a policy's plans, rounded to 0.01, for heat maps."""
    observation = world.observe(repeats)
    plans = policy.allocate(observation, np.random.default_rng(0))
    return np.round(plans.reshape(repeats, world.link.size, -1).mean(axis=0), 2)


def judge_live(
    context: RunContext, row: Row, plans: Mapping[float, IntArray], judge_db: Sequence[float]
) -> list[dict[str, Any]]:
    """Return accuracy on the real model of the plans for some links [dB]; empty for none.

    Raises:
        DataError: the real model is not on this machine.
    """
    return judged_plans(required_judge(context, row), plans, judge_db) if judge_db else []


def required_judge(context: RunContext, row: Row) -> PlanJudge:
    """Return the judge of a calibrated run's real model.

    Raises:
        DataError: its checkpoint, or the data, is not on this machine.
    """
    judge = judge_of(context, row)
    if judge is None:
        raise DataError(
            f"Plans are judged on the real model of {row.job.name}, which is not on this machine: "
            f"first run `{command_for(CALIBRATION, 'default')}` here, with the data sets (--data)."
        )
    return judge


def judge_of(context: RunContext, row: Row) -> PlanJudge | None:
    """Return the judge of a calibrated run's real model, or None where its checkpoint is not."""
    if context.data is None or CALIBRATION not in context.input_scratch:
        return None
    folder = context.input_scratch[CALIBRATION] / row.job.name
    if not ((folder / "checkpoint.pt").is_file() and owned_by(folder, row.job)):
        return None
    task = TASKS[row.job.settings["task"]]
    config = replace(task.finetune, seed=row.job.seed, total_steps=row.job.settings["steps"])
    learner = TransformerLearner(config, task.splits_for(context))
    learner.load_state_dict(load_state(folder / "checkpoint.pt")["learner"])
    return PlanJudge(learner, folder / "judged")
