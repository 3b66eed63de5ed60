"""Train a LoRA in float32 on answers: the same texts, steps and schedule at every rank."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankcast.config.learner import FinetuneConfig
from rankcast.errors import CheckpointError, RankcastError
from rankcast.files import only_one
from rankcast.learner.answer_head import answering_for
from rankcast.learner.batching import BucketedBatches, TokenisedDataset
from rankcast.learner.objectives import CausalLM
from rankcast.training.folder import load_state, save_state
from studies.llm.base import lowered, round_frozen

CHECKPOINT_EVERY = 25


class LoraTrainer:
    """Trains PEFT's LoRA on all linear maps of a decoder.

    The forward pass runs in bfloat16 where the processor computes in it; the adapter and its
    optimiser are float32.

    Args:
        model: a base model in float32 that nothing else uses.
        config: rank, alpha, schedule, batches and seed.
        texts: to learn from.
    """

    def __init__(self, model: Any, config: FinetuneConfig, texts: TokenisedDataset) -> None:
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415 takes seconds

        self.config, self._texts, self._objective = config, texts, CausalLM()
        lora = LoraConfig(
            r=config.r_max, lora_alpha=round(config.alpha or config.r_max), lora_dropout=0.0,
            target_modules="all-linear", task_type="CAUSAL_LM",
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):  # PEFT draws from the global generator
            torch.default_generator.manual_seed(config.seed)
            self.model: Any = get_peft_model(model, lora)
        self._answering = answering_for(self._objective, self.model, lowered, is_causal=True)
        round_frozen(self.model)
        self._trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self._trained.values(), lr=config.lr, weight_decay=config.weight_decay
        )
        self._batches = BucketedBatches(texts.lengths, config.batch_size, config.seed)
        self.n_steps = 0

    def train(self, checkpoint: Path | None = None) -> None:
        """Train to the end of the schedule; continue from a checkpoint if it is there.

        Args:
            checkpoint: where it is kept.

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
        """Train one batch and return its loss [nats per token of an answer].

        Raises:
            RankcastError: the loss is not finite.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.lr_at(self.n_steps)
        pieces = self._texts.parts(self._batches.peek(), self.config.pass_tokens)
        batches = [self._texts.collate(piece) for piece in pieces]
        total = max(sum(self._objective.count(batch) for batch in batches), 1)
        self.model.train()
        self._optimizer.zero_grad(set_to_none=True)
        mean = 0.0
        for batch in batches:
            tokens = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
            with lowered():
                states = self._answering.states(partial(self.model, **tokens), batch)
            loss = self._answering.judge(states, batch).loss.sum() / total
            mean += float(loss.detach())
            loss.backward()
        if not math.isfinite(mean):
            raise RankcastError(f"The loss is {mean} at step {self.n_steps}: training diverged.")
        nn.utils.clip_grad_norm_(self._trained.values(), self.config.max_grad_norm)
        self._optimizer.step()
        self._batches.advance()
        self.n_steps += 1
        return mean

    def save(self, folder: Path) -> Path:
        """Write the adapter as PEFT's folder, whole or not at all, and return it."""
        partial_folder = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial_folder, ignore_errors=True)
        partial_folder.mkdir(parents=True)
        self.model.save_pretrained(partial_folder, save_embedding_layers=False)
        shutil.rmtree(folder, ignore_errors=True)
        return partial_folder.rename(folder)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue bit-exactly."""
        return {
            "n_steps": self.n_steps,
            "trained": {name: p.detach().clone() for name, p in self._trained.items()},
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
            "batches": self._batches.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            CheckpointError: the state is of another rank or base model.
        """
        saved: Mapping[str, Tensor] = state["trained"]
        mine = {name: p.shape for name, p in self._trained.items()}
        if {name: p.shape for name, p in saved.items()} != mine:
            raise CheckpointError("The checkpoint is of another rank or base model.")
        for name, value in saved.items():
            self._trained[name].copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])
        self._batches.load_state_dict(state["batches"])
        self.n_steps = int(state["n_steps"])


def trained_once(make: Callable[[], LoraTrainer], folder: Path) -> Path:
    """Return the folder of an adapter, trained if it is not there, resumed where it stopped.

    The adapter before its first step is beside it (`before`), because some codes send what
    training has changed. Whoever needs an adapter that another process is training waits for it.

    Args:
        make: returns a trainer at its first step.
        folder: of the adapter.
    """
    with only_one(folder.with_name(f"{folder.name}.lock"), f"training {folder}", wait=True):
        if not folder.is_dir():
            checkpoint = folder.with_name(f"{folder.name}-training.pt")
            trainer = make()
            trainer.save(before_of(folder))
            trainer.train(checkpoint)
            trainer.save(folder)
            checkpoint.unlink(missing_ok=True)
    return folder


def before_of(folder: Path) -> Path:
    """Return where the adapter is as it was before training."""
    return folder.with_name("before")
