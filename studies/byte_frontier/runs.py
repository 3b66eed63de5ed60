"""What the jobs share: the texts of a task, an adapter that is trained once, and tuning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

from rankcast.config.learner import FinetuneConfig
from rankcast.files import only_one, put_file
from rankcast.learner.base_models import BaseModel
from rankcast.learner.batching import TokenisedDataset
from studies.byte_frontier.adapters import Origin, Trained, read_trained
from studies.byte_frontier.codes import Training
from studies.byte_frontier.judging import Judge, Weights
from studies.byte_frontier.methods import Settings
from studies.byte_frontier.training import AdapterTrainer, TaskTexts, base_model
from studies.byte_frontier.tuning import (
    Candidate,
    best_of,
    keep_candidates,
    known_candidates,
    steps_of,
    tune,
    tuning_job,
)
from studies.harness.spec import Job, RunContext
from studies.shared.scratch import common_folder
from studies.shared.tasks import QUICK_TEXTS, TASKS

CHECKPOINT = "training.pt"
COMPEFT_TEXTS = 500
"""Texts on which ComPEFT's α is chosen."""


@lru_cache(maxsize=2)
def task_texts(task: str, data: Path | None, few: bool) -> TaskTexts:
    """Return the texts of a task, read and tokenised once for all jobs of a worker.

    Args:
        task: its name.
        data: folder of the data sets.
        few: so few texts that it takes no time.
    """
    config = TASKS[task].finetune
    texts = TaskTexts.of(TASKS[task].splits(data), config.model, config.max_length)
    if not few:
        return texts
    fewer = [first_texts(part, QUICK_TEXTS) for part in (texts.tuning, texts.judged)]
    return replace(texts, tuning=fewer[0], judged=fewer[1])


def first_texts(tokens: TokenisedDataset, n: int) -> TokenisedDataset:
    """Return the first n texts."""
    labels = None if tokens.labels is None else tokens.labels[:n]
    return replace(tokens, tokens=tokens.tokens[:n], labels=labels)


@dataclass(frozen=True)
class Setup:
    """A task, a method at one of its sizes, and a seed: what an adapter is trained from.

    Attributes:
        task: name of the task.
        method: name of the method.
        size: name of its size.
        config: budget of the training, with the seed.
        texts: of the task.
    """

    task: str
    method: str
    size: str
    config: FinetuneConfig
    texts: TaskTexts

    @classmethod
    def of(cls, job: Job, context: RunContext) -> Setup:
        """Return what a job's settings describe."""
        s = job.settings
        config = TASKS[s["task"]].finetune
        config = replace(config, seed=job.seed, total_steps=s["steps"])
        texts = task_texts(s["task"], context.data, context.scale == "quick")
        return cls(s["task"], s.get("method", ""), s.get("size", ""), config, texts)

    @cached_property
    def judge(self) -> Judge:
        """The judge of this task; its classifier is replaced by every adapter's."""
        return Judge(base_model(self.config.model, self.texts.n_labels, 0).model)

    def trained(self, settings: Settings, folder: Path) -> Trained:
        """Return an adapter, trained if it is not yet in `folder`, resumed where it stopped.

        Whoever needs an adapter that another process is training waits for it.
        """
        with only_one(folder.with_name(f"{folder.name}.lock"), f"training {folder}", wait=True):
            if not folder.is_dir():
                checkpoint = folder.with_name(f"{folder.name}-{CHECKPOINT}")
                trainer = self.trainer(settings)
                trainer.train(checkpoint)
                trainer.save(folder)
                checkpoint.unlink(missing_ok=True)
        return self.read(settings, folder)

    def fresh(self) -> BaseModel:
        """Return the base model before training, for nobody else to use."""
        return base_model(self.config.model, self.texts.n_labels, self.config.seed)

    def trainer(self, settings: Settings) -> AdapterTrainer:
        """Return a trainer at its first step."""
        made = self.fresh(), self.method, self.size, settings
        return AdapterTrainer(*made, config=self.config, texts=self.texts.train)

    def compeft_training(
        self, settings: Settings, folder: Path, densities: Sequence[float]
    ) -> Training:
        """Return what ComPEFT knows beside the adapter in a folder."""
        tokens = first_texts(self.texts.tuning, COMPEFT_TEXTS)
        labels = torch.from_numpy(tokens.labels)

        def loss(weights: Weights) -> float:
            return float(F.cross_entropy(self.judge.logits(tokens, weights, again=0.0), labels))

        before = self.trainer(settings).save(folder.with_name("before"))
        return Training(before, folder, settings["scale"], densities, loss)

    def read(self, settings: Settings, folder: Path) -> Trained:
        """Return the adapter in a folder."""
        origin = Origin(self.method, self.size, settings, self.config.seed, self.fresh)
        return read_trained(folder, self.judge.base, origin)


def run_tuning(job: Job, context: RunContext) -> list[Candidate]:
    """Return every candidate of a job of tuning, measured on the texts for tuning.

    Each is kept when it has been measured, so that an interrupted search goes on. Whoever needs a
    search that another process is doing waits for it.
    """
    scratch = common_folder("tuned", job.name, job.settings, context)
    with only_one(scratch / "lock", f"doing {job.name}", wait=True):
        known = known_candidates(job, context)
        if known is None:
            known = _search(job, context, scratch)
            keep_candidates(job, context, known)
    return known


def _search(job: Job, context: RunContext, scratch: Path) -> list[Candidate]:
    """Measure the candidates of a job of tuning; what was measured before is read."""
    setup = Setup.of(job, context)

    def measure(settings: Settings) -> Mapping[str, float]:
        name = "-".join(f"{key}{value:g}" for key, value in settings.items())
        kept = scratch / f"{name}.json"
        if kept.is_file():
            return json.loads(kept.read_text("utf-8"))
        folder = scratch / name
        adapter = setup.trained(settings, folder)
        found = tuning_score(setup, adapter.weights(adapter.strips, adapter.head))
        put_file(kept, json.dumps(found).encode())
        shutil.rmtree(folder)
        return found

    before = job.settings["after"]
    start = None
    if before is not None:
        task, size = before
        method = job.settings["method"]
        earlier = tuning_job(task, method, size, steps_of(task, method))
        start = best_of(run_tuning(earlier, context))
    return tune(job, start, measure)


def tuning_score(setup: Setup, weights: Weights) -> dict[str, float]:
    """Return loss [nats] and accuracy on the texts for tuning, answered in bfloat16."""
    tokens = setup.texts.tuning
    logits = setup.judge.logits(tokens, weights, again=0.0)
    labels = torch.from_numpy(tokens.labels)
    right = (logits.argmax(1) == labels).double().mean()
    return {"loss": float(F.cross_entropy(logits, labels)), "accuracy": float(right)}


def chosen_settings(tuning: Job, context: RunContext) -> Settings:
    """Return the settings that won in a job of tuning, which is done now if nobody has."""
    best = best_of(run_tuning(tuning, context))
    return {name: value for name, value in best.items() if name in ("lr", "scale")}
