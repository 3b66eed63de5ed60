"""The whole pipeline in one job, for a second task and for a second architecture.

A job trains one nested adapter, probes it, calibrates a learner on the probes, trains AirLLM and a
solver's utility on that, trains PEFT's AdaLoRA to AirLLM's number of parameters on one link, and
judges all of them on the real model.

Shapes: K judged links, `N` projections.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rankcast.allocation.baselines import KnapsackAllocator
from rankcast.allocation.scored import EqualBitsUniform
from rankcast.allocation.utility import UtilityConfig
from rankcast.experiment.live import PlanJudge, fewer, judgement, trained
from rankcast.experiment.policies import TRAINING, WORLD, judged_plans, plan_values
from rankcast.experiment.rival_plans import TEACHER_EPISODES, plans_of
from rankcast.experiment.training import train_policy, train_teacher
from rankcast.experiment.world import World, WorldConfig, make_world
from rankcast.files import replace_file
from rankcast.finetune.adalora import AdaLoraFinetuner, AdaLoraSchedule, ranks_for_bits
from rankcast.finetune.calibrated import CalibratedLearner
from rankcast.finetune.calibration import Calibration
from rankcast.finetune.config import FinetuneConfig
from rankcast.finetune.probing import probe, random_plans
from rankcast.finetune.texts import DatasetSplits
from rankcast.finetune.transformer import TransformerLearner
from rankcast.policy.training import TrainingConfig
from rankcast.records import IntArray
from rankcast.run.folder import load_state, save_state
from rankcast.run.schema import build

JUDGED_DB = (-5.0, 5.0, 15.0)
ADALORA_DB = 5.0
ADALORA_LR, ADALORA_ALPHA = 3e-3, 32.0
SAVE_EVERY = 50
BITS_PER_PARAM = 32


@dataclass(frozen=True, slots=True)
class SecondSettings:
    """How much of everything a job does.

    Attributes:
        model: as `FinetuneConfig.model`, or `built` for the study's own.
        steps: of the nested training, and of AdaLoRA's.
        probes: plans on which the trained model is probed.
        texts_per_plan: texts drawn for each of them; None for all.
        episodes: of AirLLM's training.
        teacher_episodes: of the solver's Thompson sampling.
        total_gain: loss that full rank is expected to remove before anything is known [nats].
        judge_db: links whose plans are judged on the real model [dB].
        most_texts: judge and probe at most so many texts; None for all.
    """

    model: str
    steps: int
    probes: int = 120
    texts_per_plan: int | None = None
    episodes: int = 150
    teacher_episodes: int = TEACHER_EPISODES
    total_gain: float = 0.69
    judge_db: tuple[float, ...] = JUDGED_DB
    most_texts: int | None = None


def run_pipeline(
    config: FinetuneConfig, splits: DatasetSplits, settings: SecondSettings, scratch: Path
) -> dict[str, Any]:
    """Train, probe, calibrate, allocate and judge; every stage is kept in the scratch folder."""
    splits = fewer(splits, settings.most_texts)
    learner = TransformerLearner(config, splits)
    full = np.full(learner.layout.n_projections, learner.layout.r_max)
    trained(learner, full, scratch / "checkpoint.pt")
    calibrated = _once(scratch / "calibration.json", lambda: _calibrate(learner, settings, scratch))
    calibration = Calibration.from_plain(calibrated["calibration"])
    world = make_world(
        CalibratedLearner(calibration, 1, config.seed),
        calibration,
        build(WorldConfig, dict(WORLD)),
        seed=config.seed,
    )
    found = _once(scratch / "plans.json", lambda: _allocate(world, settings, config.seed))
    plans = {name: np.array(ranks) for name, ranks in found.items()}
    judge = PlanJudge(learner, scratch / "judged")
    return {
        **calibrated,
        "full_rank_bits": float(world.problem.link_costs.payload_bits(full[None])[0]),
        "oracle": world.oracle,
        "best_uniform": world.uniform,
        "methods": {
            name: {
                "objective": float(world.objective(ranks, world.link).mean()),
                "plans": plan_values(world, ranks),
                "live": judged_plans(judge, _by_link(world, ranks), settings.judge_db),
            }
            for name, ranks in plans.items()
        },
        "adalora": _adalora(config, splits, world, plans["airllm"], scratch),
    }


def _once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the JSON values in a file; make them if it is not there."""
    if not path.is_file():
        text = json.dumps(make())
        replace_file(path, lambda partial: partial.write_text(text, "utf-8"))
    return json.loads(path.read_text("utf-8"))


def _calibrate(
    learner: TransformerLearner, settings: SecondSettings, scratch: Path
) -> dict[str, Any]:
    """Probe the trained model and fit a utility to what it loses."""
    layout, seed = learner.layout, learner.config.seed
    plans = random_plans(np.random.default_rng([seed, 1]), settings.probes, layout)
    probes = probe(
        learner,
        "validation",
        plans,
        scratch / "probes.npz",
        texts_per_plan=settings.texts_per_plan,
        seed=seed,
    )
    calibration = Calibration.of_probes(
        probes, layout, np.random.default_rng(seed), batch_size=learner.config.batch_size
    )
    return {
        "calibration": calibration.to_plain(),
        "full_rank_loss": float(probes.reference_losses.mean()),
        "rank_0_loss": float(probes.mean_losses()[0]),
    }


def _allocate(world: World, settings: SecondSettings, seed: int) -> dict[str, Any]:
    """Return (K, N) plans of each allocator, as lists."""
    belief = {**TRAINING["utility"], "total_gain": settings.total_gain}
    airllm = train_policy(
        world,
        None,
        build(TrainingConfig, {**TRAINING, "utility": belief}),
        episodes=settings.episodes,
        seed=seed,
        evaluate_every=settings.episodes + 1,  # only what it ends with counts
    )
    utility, _ = train_teacher(
        world,
        episodes=settings.teacher_episodes,
        seed=seed,
        evaluate_every=settings.teacher_episodes + 1,
        utility_config=UtilityConfig(**belief),
    )
    ours = plans_of(airllm.policy, world, seed)
    plans = {
        "airllm": ours,
        "uniform": equal_bits_uniform(world, ours),
        "knapsack": plans_of(KnapsackAllocator(world.problem, utility), world, seed),
    }
    return {name: ranks.tolist() for name, ranks in plans.items()}


def equal_bits_uniform(world: World, plans: IntArray) -> IntArray:
    """Return on each link as equal ranks as fill the bits that the (K, N) plans take there."""
    bits = world.problem.link_costs.payload_bits(plans)
    found = [
        plans_of(EqualBitsUniform(world.problem, float(some)), world, 0)[k]
        if some > 0
        else plans[k]
        for k, some in enumerate(bits)
    ]
    return np.array(found)


def _by_link(world: World, plans: IntArray) -> dict[float, IntArray]:
    return dict(zip(world.link.snr_db.tolist(), plans, strict=True))


def _adalora(
    config: FinetuneConfig, splits: DatasetSplits, world: World, plans: IntArray, scratch: Path
) -> dict[str, Any]:
    """Train PEFT's AdaLoRA to the number of parameters of AirLLM's plan, and judge it."""
    layout = world.problem.layout
    bits = world.problem.link_costs.payload_bits(_by_link(world, plans)[ADALORA_DB][None])[0]
    total = ranks_for_bits(layout, float(bits) / BITS_PER_PARAM)
    schedule = AdaLoraSchedule.derive(config.total_steps, total, layout.n_projections)
    tuner = AdaLoraFinetuner(replace(config, lr=ADALORA_LR, alpha=ADALORA_ALPHA), splits, schedule)
    checkpoint = scratch / f"adalora-{total}.pt"
    if checkpoint.is_file():
        tuner.load_state_dict(load_state(checkpoint)["tuner"])

    def on_step(step: int, loss: float) -> None:
        del loss
        if step % SAVE_EVERY == 0 or step == schedule.total_steps:
            save_state(checkpoint, {"tuner": tuner.state_dict()})

    tuner.train(on_step)
    loss, correct = tuner.judge_texts("test")
    return {
        "snr_db": ADALORA_DB,
        **judgement(correct, float(loss.mean())),
        "ranks": tuner.ranks.tolist(),
        "sent_params": tuner.sent_params,
        "total_ranks": total,
    }
