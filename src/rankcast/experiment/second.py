"""Studies of a second task and of a second architecture: which jobs they consist of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rankcast.experiment.live import LiveTask
from rankcast.experiment.second_pipeline import ADALORA_DB, SecondSettings, run_pipeline
from rankcast.experiment.spec import Job, RunContext, Scale
from rankcast.run.schema import build, to_plain

SEEDS = (0, 1, 2)
BUILT = "built"
"""The model of a study that makes its own."""


@dataclass(frozen=True)
class Second:
    """One study: a task, a model, and how much of everything.

    Attributes:
        task: texts and training.
        settings: of the default scale.
        paper_model: hub id, at the scale of the paper.
        build_model: makes the model `built` and returns its folder.
    """

    task: LiveTask
    settings: SecondSettings
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
        import torch  # noqa: PLC0415

        torch.set_num_threads(1)
        own = {name: value for name, value in job.settings.items() if name != "setup"}
        settings = build(SecondSettings, own)
        splits = self.task.splits(context.data)
        model = settings.model
        if model == BUILT and self.build_model is not None:
            model = str(self.build_model(context))
        config = replace(self.task.finetune, model=model, seed=job.seed, total_steps=settings.steps)
        return run_pipeline(config, splits, settings, context.scratch)


def quickened(settings: SecondSettings) -> SecondSettings:
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
