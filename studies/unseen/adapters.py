"""Many small adapters: which there are, and how each is trained."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rankcast.codec.formats.peft import read_peft
from rankcast.codec.tensors import AdapterTensors
from rankcast.config.learner import DatasetConfig, FinetuneConfig
from rankcast.errors import DataError
from rankcast.files import only_one
from rankcast.learner.datasets import load_dataset
from rankcast.learner.texts import DatasetSplits
from studies.harness.spec import RunContext, Scale
from studies.shared.scratch import common_folder

TASKS = ("sst2", "agnews", "docstrings")
DOCSTRINGS = TASKS[2]
BASES = {"minilm-3": 3}
"""Base models and their layers: the first three of MiniLM, which are quick to train and run."""
TRAINING_TEXTS, PROBE_TEXTS, JUDGED_TEXTS = 2000, 48, 96


@dataclass(frozen=True)
class AdapterSpec:
    """One adapter.

    Attributes:
        base: name in `BASES`.
        task: `sst2`, `agnews` or `docstrings`.
        rank: of the LoRA on every projection.
        scale: alpha / rank.
        lr: learning rate at its peak.
        steps: of training.
        seed: of weights and batches.
        batch_size: texts of a step.
        max_length: tokens at which texts are cut.
    """

    base: str
    task: str
    rank: int
    scale: float
    lr: float
    steps: int
    seed: int
    batch_size: int = 16
    max_length: int = 16

    @property
    def name(self) -> str:
        """A name that no other adapter has."""
        return f"{self.base}-{self.task}-r{self.rank}-{self.seed}"

    def to_plain(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @property
    def config(self) -> FinetuneConfig:
        """How it trains."""
        return FinetuneConfig(
            model=self.base,
            r_max=self.rank,
            lr=self.lr,
            warmup_steps=min(20, self.steps),
            total_steps=self.steps,
            batch_size=self.batch_size,
            weight_decay=0.0,
            max_length=self.max_length,
            measure_reference=False,
            mixed_precision="no",
            seed=self.seed,
        )


_RECIPES = (
    {"rank": 2, "scale": 4.0, "lr": 2e-3, "steps": 150},
    {"rank": 4, "scale": 2.0, "lr": 2e-3, "steps": 150},
    {"rank": 8, "scale": 1.0, "lr": 3e-3, "steps": 150},
)
"""One for each seed, so that no two seeds train alike."""


def specs(scale: Scale) -> tuple[AdapterSpec, ...]:
    """Return the adapters of a scale; no two have base, task and seed in common."""
    if scale == "quick":
        small: dict[str, Any] = {
            "scale": 4.0, "lr": 5e-3, "steps": 5, "batch_size": 4, "max_length": 16
        }  # fmt: skip
        ranks = enumerate((1, 2, 1))
        return tuple(AdapterSpec("tiny", DOCSTRINGS, r, seed=s, **small) for s, r in ranks)
    return tuple(
        AdapterSpec(base, task, seed=seed, **recipe)
        for seed, recipe in enumerate(_RECIPES)
        for base in BASES
        for task in TASKS
        if task != DOCSTRINGS or seed > 0
    )


def splits_of(spec: AdapterSpec, context: RunContext) -> DatasetSplits:
    """Return texts to train on, to measure on (`validation`) and to judge on (`test`).

    Raises:
        DataError: the data folder is not known or does not hold the task.
    """
    few = context.scale == "quick"
    train, probe, judged = (200, 16, 16) if few else (TRAINING_TEXTS, PROBE_TEXTS, JUDGED_TEXTS)
    most = DatasetConfig(max_train=train, max_validation=probe, max_test=judged)
    if spec.task == DOCSTRINGS:
        return load_dataset(replace(most, source=DOCSTRINGS))
    if context.data is None or not (context.data / spec.task).is_dir():
        raise DataError(
            f"This study trains on {spec.task}, which is not in {context.data}. Name the folder "
            f"that holds {spec.task}/train.tsv with --data, or set RANKCAST_DATA."
        )
    folder = str(context.data / spec.task)
    return load_dataset(replace(most, source=folder, text_column="sentence"))


def folder_of(spec: AdapterSpec, context: RunContext) -> Path:
    """Return the folder that keeps what is known of an adapter, whichever job makes it."""
    return common_folder("adapters", spec.name, spec.to_plain(), context)


def config_of(spec: AdapterSpec, context: RunContext) -> FinetuneConfig:
    """Return how an adapter trains, with the base model where it lies."""
    if spec.base in ("minilm", "tiny"):
        return spec.config
    return replace(spec.config, model=str(_cut_base(spec.base, context)))


def trained(spec: AdapterSpec, splits: DatasetSplits, context: RunContext) -> AdapterTensors:
    """Return an adapter, trained unless it was, with the classifier beside it."""
    from rankcast.learner.batching import tokenise  # noqa: PLC0415 torch
    from studies.byte_frontier.training import AdapterTrainer, base_model  # noqa: PLC0415 torch

    folder = folder_of(spec, context)
    if not (folder / "lora").is_dir():
        config = config_of(spec, context)
        base = base_model(config.model, splits.train.n_labels, spec.seed, splits)
        texts = tokenise(splits.train, base.tokenizer, spec.max_length)
        settings = {"lr": spec.lr, "scale": spec.scale}
        tuner = AdapterTrainer(base, "lora", str(spec.rank), settings, config=config, texts=texts)
        tuner.train()
        tuner.save(folder / "lora")
    return read_peft(folder / "lora")[0]


def _cut_base(base: str, context: RunContext) -> Path:
    """Return the folder of MiniLM with its first layers only, written unless it is there."""
    from rankcast.learner.base_models import load_model  # noqa: PLC0415 torch
    from rankcast.learner.objectives import SequenceClassification  # noqa: PLC0415 torch

    settings: Mapping[str, Any] = {"layers": BASES[base]}
    folder = common_folder("bases", base, settings, context)
    with only_one(folder.with_suffix(".lock"), "writing the base model", wait=True):
        if not folder.is_dir():
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            whole = load_model("minilm", SequenceClassification(2), 0)
            model = whole.model.base_model
            model.encoder.layer = model.encoder.layer[: BASES[base]]
            model.config.num_hidden_layers = BASES[base]
            model.save_pretrained(partial)
            whole.tokenizer.save_pretrained(partial)
            partial.rename(folder)
    return folder
