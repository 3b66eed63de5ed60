"""Policies trained on calibrated learners: the job that most experiments consist of.

A policy of seed s trains against the calibrated learner of run s mod 3 (as many runs as were
calibrated), so that seeds vary both. Its plans can be judged on the real model of that run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rankcast.errors import ConfigError, DataError
from rankcast.experiment.live import PlanJudge, judgement
from rankcast.experiment.spec import Job, Result, Row, RunContext, Scale
from rankcast.experiment.tasks import FULL_RANK_AT_DB, TASKS
from rankcast.experiment.worker import owned_by
from rankcast.experiment.world import World, WorldConfig, make_world
from rankcast.records import FloatArray, IntArray

EPISODES = 100
EVALUATE_EVERY = 10
SEEDS = (0, 1, 2, 3, 4)
CALIBRATION = "calibration"

TRAINING: Mapping[str, Any] = {
    "utility": {
        "total_gain": 0.69,
        "noise_std": 0.15,
        "paired_noise_std": 0.03,
        "form": "saturating",
    }
}
"""As in the preset `sst2-minilm` but for the form, which the probes chose; a guess loses ln 2."""

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
    return 10 if scale == "quick" else episodes


def calibrated_row(calibrations: Result, task: str, seed: int) -> Row:
    """Return the calibrated run that a seed uses.

    Raises:
        ConfigError: there is none.
    """
    rows = calibrations.select(task=task)
    if not rows:
        raise ConfigError(
            f"No run of {task} has been calibrated; run `rankcast experiment run "
            f"{calibrations.experiment}` first."
        )
    return rows[seed % len(rows)]


def calibrated_world(row: Row, seed: int, settings: Mapping[str, Any], n_envs: int = 1) -> World:
    """Return the world of a calibrated run."""
    from rankcast.finetune.calibrated import CalibratedLearner  # noqa: PLC0415
    from rankcast.finetune.calibration import Calibration  # noqa: PLC0415
    from rankcast.run.schema import build  # noqa: PLC0415

    calibration = Calibration.from_plain(row.values["calibration"])
    learner = CalibratedLearner(calibration, n_envs, seed)
    return make_world(learner, calibration, build(WorldConfig, dict(settings)), seed=seed)


def run_policy_job(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Train a variant, and judge its plans on the real model where that is at hand."""
    import torch  # noqa: PLC0415

    from rankcast.experiment.training import train_policy  # noqa: PLC0415
    from rankcast.policy.airllm import PolicyConfig  # noqa: PLC0415
    from rankcast.policy.training import TrainingConfig  # noqa: PLC0415
    from rankcast.run.schema import build  # noqa: PLC0415

    torch.set_num_threads(1)
    s = job.settings
    row = calibrated_row(context.inputs[CALIBRATION], s["calibration"], job.seed)
    n_envs, episodes = s["n_envs"], s["episodes"]
    world = calibrated_world(row, job.seed, s["world"], n_envs)
    trained = train_policy(
        world,
        build(PolicyConfig, default_policy(s["policy"])),
        build(TrainingConfig, dict(s["training"])),
        episodes=episodes // n_envs,
        seed=job.seed,
        evaluate_every=max(1, min(s["evaluate_every"], episodes) // n_envs),
    )
    plans = trained.policy.allocate(world.observe(1), np.random.default_rng(job.seed))
    by_link, judge_db = dict(zip(world.link.snr_db, plans, strict=True)), s["judge_db"]
    return {
        "calibrated_run": row.job.name,
        "curve": [p.to_plain() | {"episode": p.episode * n_envs} for p in trained.curve],
        "rewards": np.round(trained.rewards, 5).tolist(),
        "oracle": world.oracle,
        "best_uniform": world.uniform,
        "best_uniform_per_link": world.uniform_per_link,
        "plans": plan_values(world, plans),
        "mean_ranks": mean_plans(world, trained.policy).tolist(),
        "live": judge_live(context, row, by_link, judge_db),
    }


def default_policy(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return policy settings over the product's defaults, whose diffusion is nested."""
    from rankcast.policy.airllm import PolicyConfig  # noqa: PLC0415
    from rankcast.run.schema import to_plain  # noqa: PLC0415

    whole = to_plain(PolicyConfig())
    for name, value in overrides.items():
        whole[name] = {**whole[name], **value} if isinstance(value, Mapping) else value
    return whole


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


def mean_plans(world: World, policy: Any, repeats: int = 20) -> FloatArray:
    """Return (K, N) mean ranks of a policy's plans, rounded to 0.01, for heat maps."""
    observation = world.observe(repeats)
    plans = policy.allocate(observation, np.random.default_rng(0))
    by_link = plans.reshape(repeats, world.link.size, -1)
    return np.round(by_link.mean(axis=0), 2)


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
            f"run `rankcast experiment run {CALIBRATION}` here first, with the data sets (--data)."
        )
    return judge


def judged_plans(
    judge: PlanJudge, plans: Mapping[float, IntArray], judge_db: Sequence[float]
) -> list[dict[str, Any]]:
    """Return accuracy and answers of the plans for some links [dB]."""
    found = []
    for snr_db in judge_db:
        seen = judge(plans[snr_db])
        found.append({"snr_db": snr_db, **judgement(seen.correct, seen.loss)})
    return found


def judge_of(context: RunContext, row: Row) -> PlanJudge | None:
    """Return the judge of a calibrated run's real model, or None where its checkpoint is not."""
    from rankcast.finetune.transformer import TransformerLearner  # noqa: PLC0415
    from rankcast.run.folder import load_state  # noqa: PLC0415

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
