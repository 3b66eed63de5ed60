"""What the jobs share: base model and texts, an adapter that is trained once, its learning rate."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rankcast.codec.formats.peft import read_peft
from rankcast.codec.header import BaseModel
from rankcast.codec.tensors import AdapterTensors
from rankcast.config.learner import FinetuneConfig
from rankcast.files import only_one, put_file
from studies.harness.spec import Job, RunContext
from studies.harness.store import fingerprint, read_result
from studies.llm.base import GEMMA, NAME, TINY, Base, base_of, load_base
from studies.llm.docstrings import PACKAGES
from studies.llm.jobs import (
    PLAN,
    QUICK,
    RATIO,
    Plan,
    adapter_job,
    before_of,
    tuning_jobs,
)
from studies.llm.judging import AnswerJudge
from studies.llm.ours import Ours
from studies.llm.texts import Sizes, TaskTexts, docstrings_of, texts_of
from studies.llm.training import LoraTrainer, trained_once
from studies.llm.training import before_of as _before_folder
from studies.shared.scratch import common_folder

Candidate = Mapping[str, float]


@dataclass(frozen=True)
class Setup:
    """A task, a rank and a seed on a base model: what an adapter is trained from.

    Attributes:
        job: whose settings they are.
        context: of the job.
        base: the model on disk.
        texts: of the task.
    """

    job: Job
    context: RunContext
    base: Base
    texts: TaskTexts

    @classmethod
    def of(cls, job: Job, context: RunContext) -> Setup:
        """Return what a job's settings describe.

        Raises:
            ConfigError: there is no base model.
            DataError: there are no texts.
        """
        s = job.settings
        sizes, kept = Sizes.of_plain(s["sizes"]), context.scratch.parent.parent / "docstrings"
        words: list[str] = []
        if s["model"] == TINY:
            found = docstrings_of(sizes.packages or PACKAGES, kept)
            words = [text for one in found for text in (one.prompt, one.answer)]
        base = base_of(s["model"], context, words)
        return cls(job, context, base, texts_of(s["task"], sizes, base.folder, kept, context.data))

    def config(self, lr: float) -> FinetuneConfig:
        """Return how adapters of the job's rank train: in bfloat16 where that is fast."""
        s = self.job.settings
        return FinetuneConfig(
            model=str(self.base.folder), objective="causal", r_max=s["rank"],
            alpha=s["scale"] * s["rank"], lr=lr, weight_decay=0.0, warmup_steps=s["warmup"],
            total_steps=s["steps"], batch_size=s["batch"], eval_batch_size=s["batch"],
            pass_tokens=s["pass_tokens"], max_length=s["sizes"]["most_tokens"],
            orthogonality_weight=0.0, measure_reference=False, seed=self.job.seed,
        )  # fmt: skip

    @property
    def header(self) -> BaseModel:
        """What our files say of the base model."""
        name = NAME if self.job.settings["model"] == GEMMA else TINY
        return BaseModel(name, self.base.digest)

    def ours(self, lr: float) -> Ours:
        """Return what our files are made from."""
        return Ours(self.config(lr), self.texts.splits, self.header)

    def trainer(self, lr: float) -> LoraTrainer:
        """Return a trainer at its first step."""
        model, tokenizer = load_base(self.base.folder, self.job.seed)
        config = self.config(lr)
        texts = self.texts.tokens("train", tokenizer, config.max_length)
        return LoraTrainer(model, config, texts)

    def judge(self, part: str = "test", first: int | None = None) -> AnswerJudge:
        """Return a judge of a part's texts; of the first so many."""
        model, tokenizer = load_base(self.base.folder)
        most = self.job.settings["sizes"]["most_tokens"]
        texts = self.texts if first is None else self.texts.first(part, first)
        return AnswerJudge(model, texts.tokens(part, tokenizer, most))

    @cached_property
    def adapter_folder(self) -> Path:
        """Where PEFT's folder of the job's rank and seed is, trained now if nobody has."""
        s, plan = self.job.settings, plan_of(self.context)
        made_by = adapter_job(plan, s["task"], s["rank"], self.job.seed, s.get("times", 1))
        folder = common_folder("trained", made_by.name, made_by.settings, self.context) / "adapter"
        found = trained_once(lambda: self.trainer(self.lr), folder)
        gc.collect()  # of the trainer's model, before a judge loads its own
        return found

    @property
    def before_folder(self) -> Path:
        """Where the adapter is as it was before training."""
        return _before_folder(self.adapter_folder)

    @property
    def adapter(self) -> AdapterTensors:
        """The adapter of the job's rank and seed."""
        return read_peft(self.adapter_folder)[0]

    @cached_property
    def lr(self) -> float:
        """The learning rate that won for the job's task and rank."""
        s = self.job.settings
        return chosen_lr(s["task"], s["rank"], self.context)


def plan_of(context: RunContext) -> Plan:
    """Return how much the scale of a job trains and judges."""
    return QUICK if context.scale == "quick" else PLAN


def candidates_of(task: str, rank: int, context: RunContext) -> list[Candidate]:
    """Return every candidate of a search, measured now where nobody has."""
    searched = tuning_jobs(plan_of(context), task, rank)
    return [c for job in searched for c in run_tuning(job, context)]


def chosen_lr(task: str, rank: int, context: RunContext) -> float:
    """Return the learning rate of the least loss on texts for tuning."""
    best = min(candidates_of(task, rank, context), key=lambda c: c["loss"])
    return best["lr"]


def run_tuning(job: Job, context: RunContext) -> list[Candidate]:
    """Return the candidate of a job of tuning; none where none is needed beyond the first ones.

    Whoever needs a candidate that another process is measuring waits for it.
    """
    known = _committed(job, context)
    if known is not None:
        return known
    folder = common_folder("tuned", job.name, job.settings, context)
    file = folder / "candidate.json"
    if file.is_file():  # without a lock, as a search asks for all of them
        return json.loads(file.read_text("utf-8"))
    lr = _lr_of(job, context)
    with only_one(folder / "lock", f"doing {job.name}", wait=True):
        if not file.is_file():
            found = [] if lr is None else [_measured(job, context, lr, folder)]
            put_file(file, json.dumps(found).encode())
    return json.loads(file.read_text("utf-8"))


def _lr_of(job: Job, context: RunContext) -> float | None:
    """Return the learning rate that a job of tuning tries; None for none."""
    s = job.settings
    if "beyond" in s:
        firsts = tuning_jobs(plan_of(context), s["task"], s["rank"])[:-1]
        tried = [c for first in firsts for c in run_tuning(first, context)]
        best = min(tried, key=lambda c: c["loss"])["lr"]
        lrs = sorted(c["lr"] for c in tried)
        if best == lrs[0]:
            return best / RATIO
        return best * RATIO if best == lrs[-1] else None
    before = before_of(s["task"], s["rank"])
    if before is None:
        return plan_of(context).lrs[s["place"]]
    return chosen_lr(*before, context) * RATIO ** s["place"]


def _measured(job: Job, context: RunContext, lr: float, folder: Path) -> Candidate:
    """Train with a learning rate and measure on texts for tuning."""
    setup = Setup.of(job, context)
    adapter = read_peft(trained_once(lambda: setup.trainer(lr), folder / "adapter"))[0]
    gc.collect()
    found = setup.judge("validation").judge(adapter).to_plain()
    return {"lr": lr, "loss": found["loss"], "exact_match": found["exact_match"]}


def _committed(job: Job, context: RunContext) -> list[Candidate] | None:
    """Return what the committed result has of a job of tuning; None if nothing."""
    file = Path(__file__).with_name("result.json")
    if context.scale != "default" or not file.is_file():
        return None
    for row in read_result(file).rows:
        same = fingerprint(row.job.settings) == fingerprint(job.settings)
        if row.job.name == job.name and same:
            return row.values["candidates"]
    return None
