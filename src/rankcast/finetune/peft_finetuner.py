"""Classifiers fine-tuned the way PEFT's documentation says, with PEFT's own adapters."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rankcast.adapters.projections import find_projections
from rankcast.errors import CheckpointError, RankcastError
from rankcast.finetune.base_models import load_model
from rankcast.finetune.batching import BucketedBatches, TokenisedDataset, tokenise
from rankcast.finetune.config import FinetuneConfig
from rankcast.finetune.objectives import Objective, SequenceClassification
from rankcast.finetune.texts import DatasetSplits
from rankcast.records import FloatArray

ADAPTER = "default"


class PeftFinetuner(ABC):
    """One classifier with one of PEFT's adapters on every projection.

    Args:
        config: model, learning rate, batches and seed; what concerns nested ranks is not used.
        data: what it learns from.
        rank: of every projection at the start.
    """

    def __init__(self, config: FinetuneConfig, data: DatasetSplits, rank: int) -> None:
        self.config, self.data = config, data
        self._objective: Objective = SequenceClassification(data.train.n_labels)
        base = load_model(config.model, self._objective, config.seed, train_texts=data.train.texts)
        self.layout = find_projections(base.model, config.kinds, rank)
        self.model = self._wrap(base.model, base.head)
        self._tokenizer = base.tokenizer
        self._max_length = min(config.max_length, base.max_length)
        self._splits: dict[str, TokenisedDataset] = {}
        self._batches = BucketedBatches(
            self._tokenised("train").lengths, config.batch_size, config.seed
        )
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=config.lr, weight_decay=config.weight_decay
        )
        self.n_steps = 0

    def train(self, on_step: Callable[[int, float], None] | None = None) -> None:
        """Train to the end of the schedule; `on_step` sees each step's number and loss."""
        while self.n_steps < self.config.total_steps:
            loss = self.step()
            if on_step is not None:
                on_step(self.n_steps, loss)

    def step(self) -> float:
        """Train one batch; return its loss without the adapter's regulariser.

        Raises:
            RankcastError: the loss is not finite.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.lr_at(self.n_steps)
        batch = self._tokenised("train").collate(self._batches.peek())
        self.model.train()
        output = self.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
        )
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, self.config.max_grad_norm)
        self._optimizer.step()
        self.n_steps += 1
        self._after_step()
        self._optimizer.zero_grad(set_to_none=True)
        self._batches.advance()
        loss = float(self._objective.judge(output.logits.detach(), batch).loss.mean())
        if not math.isfinite(loss):
            raise RankcastError(
                f"The loss is {loss} at step {self.n_steps}: the training has diverged. Lower the "
                f"learning rate (now {self.config.lr})."
            )
        return loss

    @torch.no_grad()
    def judge_texts(self, split: str) -> tuple[FloatArray, FloatArray]:
        """Return (n,) loss and whether each text of a split was answered rightly."""
        tokens = self._tokenised(split)
        loss, correct = torch.zeros(len(tokens)), torch.zeros(len(tokens))
        self.model.eval()
        for chosen in tokens.in_order(self.config.eval_batch_size):
            batch = tokens.collate(chosen)
            output = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            judged = self._objective.judge(output.logits, batch)
            loss[chosen], correct[chosen] = judged.loss, judged.correct.float()
        return loss.double().numpy(), correct.double().numpy()

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue bit-exactly."""
        return {
            "n_steps": self.n_steps,
            "trained": [p.detach().clone() for p in self._trained],
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
            "batches": self._batches.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            CheckpointError: the state is of another model or rank.
        """
        saved: list[Tensor] = state["trained"]
        if [p.shape for p in saved] != [p.shape for p in self._trained]:
            raise CheckpointError("The checkpoint is of another model or initial rank.")
        for parameter, value in zip(self._trained, saved, strict=True):
            parameter.copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])
        self._batches.load_state_dict(state["batches"])
        self.n_steps = int(state["n_steps"])

    @abstractmethod
    def _config(self, head: tuple[str, ...]) -> Any:
        """Return PEFT's configuration of the adapter; `head` trains in full beside it."""

    def _after_step(self) -> None:  # noqa: B027 plain LoRA wants nothing
        """Do what the adapter wants between the optimiser's step and clearing the gradients."""

    def _wrap(self, model: Any, head: tuple[str, ...]) -> Any:
        """Return PEFT's model, drawn from the seed."""
        from peft import get_peft_model  # noqa: PLC0415 takes seconds

        with torch.random.fork_rng(devices=[]):  # PEFT draws from the global generator
            torch.default_generator.manual_seed(self.config.seed)
            return get_peft_model(model, self._config(head), adapter_name=ADAPTER)

    def _tokenised(self, split: str) -> TokenisedDataset:
        """Tokenise a split the first time it is asked for."""
        if split not in self._splits:
            self._splits[split] = tokenise(self.data[split], self._tokenizer, self._max_length)
        return self._splits[split]


class LoraFinetuner(PeftFinetuner):
    """One classifier fine-tuned with PEFT's plain LoRA at rank `r_max` everywhere."""

    def __init__(self, config: FinetuneConfig, data: DatasetSplits) -> None:
        super().__init__(config, data, config.r_max)

    def _config(self, head: tuple[str, ...]) -> Any:
        from peft import LoraConfig  # noqa: PLC0415 takes seconds

        alpha = self.config.r_max if self.config.alpha is None else self.config.alpha
        return LoraConfig(
            task_type=self._objective.task_type,  # pyright: ignore[reportArgumentType]
            r=self.config.r_max,
            lora_alpha=alpha,  # pyright: ignore[reportArgumentType]
            lora_dropout=self.config.dropout,
            target_modules=[p.name for p in self.layout.projections],
            modules_to_save=list(head) or None,
        )
