"""The whole pipeline in one job, for another task and for another model.

A job trains one nested adapter, probes it, calibrates a learner on the probes, trains AirLLM and a
solver's utility on that, trains PEFT's AdaLoRA to AirLLM's number of parameters on one link, and
judges all of them on the real model.

Shapes: K judged links, `N` projections.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankcast.allocation.knapsack import KnapsackAllocator
from rankcast.config.learner import FinetuneConfig
from rankcast.config.plain import from_plain, to_plain
from rankcast.config.policy import TrainingConfig, UtilityConfig
from rankcast.files import replace_file
from rankcast.learner.texts import DatasetSplits
from rankcast.learner.transformer import TransformerLearner
from rankcast.records import IntArray
from studies.baselines.adalora import AdaLoraFinetuner, AdaLoraSchedule, ranks_for_params
from studies.baselines.scored import EqualBitsUniform
from studies.harness.spec import Job, RunContext, Scale
from studies.shared.judging import PlanJudge, judged_plans, judgement
from studies.shared.policies import POLICY_ACTS, TRAINING, WORLD, by_link, plan_values, plans_of
from studies.shared.tasks import BITS_PER_PARAM, LiveTask, fewer, full_ranks, train_to_end
from studies.surrogate.calibrated import CalibratedLearner
from studies.surrogate.calibration import Calibration, calibrate
from studies.surrogate.training import TEACHER_EPISODES, train_policy, train_teacher
from studies.surrogate.world import World, WorldConfig, make_world

SEEDS = (0, 1, 2)
BUILT = "built"
"""The model of a study that makes its own."""

JUDGED_DB = (-5.0, 5.0, 15.0)
ADALORA_DB = 5.0
ADALORA_LR, ADALORA_ALPHA = 3e-3, 32.0


@dataclass(frozen=True, slots=True)
class PipelineSettings:
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

    model: str = "minilm"
    steps: int = 400
    probes: int = 120
    texts_per_plan: int | None = None
    episodes: int = 150
    teacher_episodes: int = TEACHER_EPISODES
    total_gain: float = 0.69
    judge_db: tuple[float, ...] = JUDGED_DB
    most_texts: int | None = None


@dataclass(frozen=True)
class Pipeline:
    """The jobs of a study: a task, a model, and how much of everything.

    Attributes:
        task: texts and training.
        settings: of the default scale.
        paper_model: hub id, at the scale of the paper.
        build_model: makes the model `built` and returns its folder.
    """

    task: LiveTask
    settings: PipelineSettings
    paper_model: str
    build_model: Callable[[RunContext], Path] | None = None

    def jobs(self, scale: Scale) -> Sequence[Job]:
        """Return one job for each seed."""
        settings, seeds = self.settings, SEEDS
        if scale == "quick":
            settings, seeds = quickened(settings), SEEDS[:1]
        elif scale == "paper":
            settings = replace(settings, model=self.paper_model)
        plain = {**to_plain(settings), "setup": self.task.to_plain()}
        return [Job(f"{self.task.name}-{seed}", seed, plain) for seed in seeds]

    def run(self, job: Job, context: RunContext) -> Mapping[str, Any]:
        """Run the pipeline with one seed.

        Raises:
            DataError: the data set is not there.
        """
        torch.set_num_threads(1)
        own = {name: value for name, value in job.settings.items() if name != "setup"}
        settings = from_plain(PipelineSettings, own)
        splits = self.task.splits(context.data)
        model = settings.model
        if model == BUILT and self.build_model is not None:
            model = str(self.build_model(context))
        config = replace(self.task.finetune, model=model, seed=job.seed, total_steps=settings.steps)
        return run_pipeline(config, splits, settings, context.scratch)


def quickened(settings: PipelineSettings) -> PipelineSettings:
    """Return settings that take seconds: to see that it runs."""
    return replace(
        settings,
        steps=10,
        probes=20,
        episodes=4,
        teacher_episodes=4,
        judge_db=(ADALORA_DB,),
        most_texts=32,
    )


def run_pipeline(
    config: FinetuneConfig, splits: DatasetSplits, settings: PipelineSettings, scratch: Path
) -> dict[str, Any]:
    """Train, probe, calibrate, allocate and judge; every stage is kept in the scratch folder."""
    splits = fewer(splits, settings.most_texts)
    learner = TransformerLearner(config, splits)
    full = full_ranks(learner)
    train_to_end(learner, full, scratch / "checkpoint.pt")
    calibrated = _once(scratch / "calibration.json", lambda: _calibrate(learner, settings, scratch))
    calibration = Calibration.from_plain(calibrated["calibration"])
    world = make_world(
        CalibratedLearner(calibration, 1, config.seed),
        calibration,
        from_plain(WorldConfig, dict(WORLD)),
        seed=config.seed,
    )
    kept = _once(scratch / "plans.json", lambda: _allocate(world, settings, config.seed))
    plans = {name: np.array(ranks) for name, ranks in kept.items()}
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
                "live": judged_plans(judge, by_link(world, ranks), settings.judge_db),
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
    learner: TransformerLearner, settings: PipelineSettings, scratch: Path
) -> dict[str, Any]:
    """Probe the trained model and fit a utility to what it loses."""
    calibration, probes = calibrate(
        learner, settings.probes, settings.texts_per_plan, scratch / "probes.npz"
    )
    return {
        "calibration": calibration.to_plain(),
        "full_rank_loss": float(probes.reference_losses.mean()),
        "rank_0_loss": float(probes.mean_losses()[0]),
    }


def _allocate(world: World, settings: PipelineSettings, seed: int) -> dict[str, Any]:
    """Return (K, N) plans of each allocator, as lists."""
    belief = {**TRAINING["utility"], "total_gain": settings.total_gain}
    airllm = train_policy(
        world,
        None,
        from_plain(TrainingConfig, {**POLICY_ACTS, **TRAINING, "utility": belief}),
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
    uniform = [
        plans_of(EqualBitsUniform(world.problem, float(some)), world, 0)[k]
        if some > 0
        else plans[k]
        for k, some in enumerate(bits)
    ]
    return np.array(uniform)


def _adalora(
    config: FinetuneConfig, splits: DatasetSplits, world: World, plans: IntArray, scratch: Path
) -> dict[str, Any]:
    """Train PEFT's AdaLoRA to the number of parameters of AirLLM's plan, and judge it."""
    layout = world.problem.layout
    bits = world.problem.link_costs.payload_bits(by_link(world, plans)[ADALORA_DB][None])[0]
    total = ranks_for_params(layout, float(bits) / BITS_PER_PARAM)
    schedule = AdaLoraSchedule.derive(config.total_steps, total, layout.n_projections)
    tuner = AdaLoraFinetuner(replace(config, lr=ADALORA_LR, alpha=ADALORA_ALPHA), splits, schedule)
    tuner.train(checkpoint=scratch / f"adalora-{total}.pt")
    loss, correct = tuner.judge_texts("test")
    return {
        "snr_db": ADALORA_DB,
        **judgement(correct, float(loss.mean())),
        "ranks": tuner.ranks.tolist(),
        "sent_params": tuner.sent_params,
        "total_ranks": total,
    }
