"""Train any of PEFT's adapters: the same texts, batches, steps and schedule for every method."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from safetensors.torch import save_file
from torch import Tensor, nn

from rankcast.config.learner import FinetuneConfig
from rankcast.errors import CheckpointError, RankcastError
from rankcast.learner.base_models import BaseModel, load_model
from rankcast.learner.batching import BucketedBatches, TokenisedDataset, tokenise
from rankcast.learner.objectives import SequenceClassification
from rankcast.learner.texts import DatasetSplits
from rankcast.training.folder import load_state, save_state
from studies.baselines.adalora import allocation_state, load_allocation_state, orthogonality
from studies.baselines.lora_xs import cores
from studies.byte_frontier.judging import fast_type
from studies.byte_frontier.methods import ADAPTER, HEAD_LR, METHODS, Settings, Target

CHECKPOINT_EVERY = 200
CORES = "cores.safetensors"
"""The trained numbers of LoRA-XS, beside the LoRA that they stand for."""


@dataclass(frozen=True)
class TaskTexts:
    """The texts of a task as tokens.

    Attributes:
        train: to learn from.
        tuning: on which settings are chosen; nobody is judged on them.
        judged: on which every file is judged.
        n_labels: classes.
    """

    train: TokenisedDataset
    tuning: TokenisedDataset
    judged: TokenisedDataset
    n_labels: int

    @classmethod
    def of(cls, splits: DatasetSplits, model: str, max_length: int) -> TaskTexts:
        """Tokenise the splits of a task, whose `validation` is what it is tuned on."""
        n_labels = splits.train.n_labels
        base = base_model(model, n_labels, 0, splits)
        train, tuning, judged = (
            tokenise(part, base.tokenizer, max_length)
            for part in (splits.train, splits.validation, splits.test)
        )
        return cls(train, tuning, judged, n_labels)


def base_model(
    model: str, n_labels: int, seed: int, splits: DatasetSplits | None = None
) -> BaseModel:
    """Return the frozen model with a classifier drawn from a seed, without any dropout.

    Attention is computed step by step: for texts of a few tokens that takes two thirds of the time
    of a training step with the fused kernel.
    """
    texts = splits.train.texts if splits else ()
    base = load_model(model, SequenceClassification(n_labels), seed, train_texts=texts)
    base.model.set_attn_implementation("eager")
    return base


class AdapterTrainer:
    """Trains one adapter and the classifier.

    The forward pass runs in bfloat16 (`torch.autocast`) where the processor computes in it, else in
    float32 on the same frozen weights; weights and optimiser are float32.

    Args:
        base: a model that nothing else uses; its frozen linear maps are rounded to bfloat16, as
            the forward pass rounds them anyway.
        method: name in `METHODS`.
        size: name of one of its sizes.
        settings: what tuning has chosen, or what it tries.
        config: steps, batches, schedule and seed; its learning rate is not used.
        texts: to learn from.
    """

    def __init__(
        self,
        base: BaseModel,
        method: str,
        size: str,
        settings: Settings,
        *,
        config: FinetuneConfig,
        texts: TokenisedDataset,
    ) -> None:
        self.config, self._texts = config, texts
        chosen = METHODS[method]
        self._adaptive = chosen.adaptive
        target = Target(base.model, base.head, config.seed, config.total_steps)
        self.model = chosen.wrap(target, size, settings)
        _round_frozen(self.model)
        self._batches = BucketedBatches(texts.lengths, config.batch_size, config.seed)
        self._trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        groups: dict[float, list[Tensor]] = {}
        for name, parameter in self._trained.items():
            lr = settings["lr"] * math.prod(x for part, x in chosen.faster.items() if part in name)
            lr = HEAD_LR if ".modules_to_save." in name else lr
            groups.setdefault(lr, []).append(parameter)
        self._optimizer = torch.optim.AdamW(
            [{"params": ps, "lr": lr, "peak": lr} for lr, ps in groups.items()],
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.n_steps = 0

    def train(self, checkpoint: Path | None = None) -> None:
        """Train to the end of the schedule; continue from a checkpoint if it is there.

        Raises:
            RankcastError: the loss is not finite.
        """
        if checkpoint is not None and checkpoint.is_file():
            self.load_state_dict(load_state(checkpoint))
        while self.n_steps < self.config.total_steps:
            self.step()
            if checkpoint is not None and self.n_steps % CHECKPOINT_EVERY == 0:
                save_state(checkpoint, self.state_dict())

    def step(self) -> float:
        """Train one batch and return its loss.

        Raises:
            RankcastError: the loss is not finite.
        """
        share = self.config.lr_at(self.n_steps) / self.config.lr
        for group in self._optimizer.param_groups:
            group["lr"] = share * group["peak"]
        batch = self._texts.collate(self._batches.peek())
        self.model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_type() is torch.bfloat16):
            output = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        loss = F.cross_entropy(output.logits.float(), batch.labels)  # pyright: ignore[reportArgumentType]
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RankcastError(f"The loss is {value} at step {self.n_steps}: training diverged.")
        if self._adaptive:
            loss = loss + orthogonality(self.model)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._trained.values(), self.config.max_grad_norm)
        self._optimizer.step()
        self._batches.advance()
        self.n_steps += 1
        if self._adaptive:
            self.model.base_model.update_and_allocate(self.n_steps)
        return value

    def save(self, folder: Path) -> Path:
        """Write the adapter as PEFT's folder, whole or not at all, and return it."""
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if trained := cores(self.model, ADAPTER):
            save_file(dict(trained), partial / CORES)
        self.model.save_pretrained(partial, save_embedding_layers=False)
        shutil.rmtree(folder, ignore_errors=True)
        return partial.rename(folder)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue bit-exactly."""
        return {
            "n_steps": self.n_steps,
            "trained": {name: p.detach().clone() for name, p in self._trained.items()},
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
            "batches": self._batches.state_dict(),
            **(allocation_state(self.model) if self._adaptive else {}),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            CheckpointError: the state is of another method or size.
        """
        saved: Mapping[str, Tensor] = state["trained"]
        mine = {name: p.shape for name, p in self._trained.items()}
        if {name: p.shape for name, p in saved.items()} != mine:
            raise CheckpointError("The checkpoint is of another method, size or base model.")
        for name, value in saved.items():
            self._trained[name].copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])
        self._batches.load_state_dict(state["batches"])
        if self._adaptive:
            load_allocation_state(self.model, state)
        self.n_steps = int(state["n_steps"])


def _round_frozen(model: nn.Module) -> None:
    """Round frozen linear maps to bfloat16 once, instead of in every forward pass.

    They are on every machine, so that a method trains on the same model everywhere.
    """
    for name, module in model.named_modules():
        frozen = not any(p.requires_grad for p in module.parameters())
        if isinstance(module, nn.Linear) and frozen and ".lora_" not in name:
            module.to(torch.bfloat16).to(fast_type())
