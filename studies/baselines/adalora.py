"""PEFT's LoRA and AdaLoRA (Zhang et al. 2023, arXiv 2303.10512): the paper's baseline.

Classifiers are fine-tuned the way PEFT's documentation says, with PEFT's own adapters. PEFT leaves
AdaLoRA's schedule to the user, and a wrong one silently never prunes; here it is derived from the
number of steps and the wanted mean rank.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankcast.adapters.projections import find_projections
from rankcast.config.learner import FinetuneConfig
from rankcast.errors import CheckpointError, ConfigError, RankcastError
from rankcast.learner.base_models import load_model
from rankcast.learner.batching import BucketedBatches, TokenisedDataset, tokenise
from rankcast.learner.objectives import Objective, SequenceClassification
from rankcast.learner.texts import DatasetSplits
from rankcast.records import AdapterLayout, FloatArray, IntArray
from rankcast.training.folder import load_state, save_state

ADAPTER = "default"
CHECKPOINT_EVERY = 100
_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")


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

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.config.total_steps

    def train(
        self,
        on_step: Callable[[int, float], None] | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Train to the end of the schedule.

        Args:
            on_step: called with each step's number and loss.
            checkpoint: continued from if it is there, and written every so many steps.
        """
        if checkpoint is not None and checkpoint.is_file():
            self.load_state_dict(load_state(checkpoint)["tuner"])
        while self.n_steps < self.total_steps:
            loss = self.step()
            if on_step is not None:
                on_step(self.n_steps, loss)
            at_end = self.n_steps == self.total_steps
            if checkpoint is not None and (at_end or self.n_steps % CHECKPOINT_EVERY == 0):
                save_state(checkpoint, {"tuner": self.state_dict()})

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
        """Return (n,) loss and whether each text of a split was answered correctly."""
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


@dataclass(frozen=True, slots=True)
class AdaLoraSchedule:
    """How AdaLoRA's budget falls.

    Attributes:
        total_steps: training steps.
        total_ranks: ranks that remain over all projections.
        init_r: rank of every projection at the start.
        t_init: steps before pruning begins.
        t_final: steps at the end in which the ranks are fixed.
        delta_t: steps between two prunings.
        orthogonality_weight: factor on AdaLoRA's own regulariser.

    Raises:
        ConfigError: a schedule in which nothing would be pruned, or without any rank.
    """

    total_steps: int
    total_ranks: int
    init_r: int
    t_init: int
    t_final: int
    delta_t: int = 10
    orthogonality_weight: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what PEFT would run without ever pruning."""
        if not 0 <= self.t_init < self.total_steps - self.t_final or self.delta_t < 1:
            raise ConfigError(
                f"AdaLoRA prunes between step {self.t_init} and {self.total_steps - self.t_final}, "
                f"every {self.delta_t} steps: there is no such step. Train for longer, or derive "
                f"the schedule with AdaLoraSchedule.derive."
            )
        if self.total_ranks < 1 or self.init_r < 1:
            raise ConfigError(
                f"AdaLoRA needs at least one rank, got {self.total_ranks} in all from an initial "
                f"rank of {self.init_r}."
            )

    @classmethod
    def derive(
        cls, total_steps: int, total_ranks: int, n_projections: int, **settings: Any
    ) -> AdaLoraSchedule:
        """Return the schedule for a number of steps and a final total of ranks.

        As in AdaLoRA's paper the initial budget is 1.5 times the final one, rounded up to whole
        ranks of at least 2. Pruning takes place between 10 % and 70 % of the steps.
        """
        return cls(
            total_steps,
            total_ranks,
            max(2, math.ceil(1.5 * total_ranks / n_projections)),
            t_init=total_steps // 10,
            t_final=3 * total_steps // 10,
            **settings,
        )


class AdaLoraFinetuner(PeftFinetuner):
    """One classifier fine-tuned with PEFT's AdaLoRA to one budget.

    Args:
        config: model, learning rate, batches and seed; `r_max`, `nested_prob` and the weight of
            orthogonality are not used, because AdaLoRA has its own, nor is `total_steps` for the
            length of the training, which the schedule has.
        data: what it learns from.
        schedule: how the budget falls.

    Raises:
        ConfigError: a final budget that is not below the initial one.
    """

    def __init__(
        self, config: FinetuneConfig, data: DatasetSplits, schedule: AdaLoraSchedule
    ) -> None:
        self.schedule = schedule
        super().__init__(config, data, schedule.init_r)

    @property
    def total_steps(self) -> int:
        """Steps of the schedule."""
        return self.schedule.total_steps

    @property
    def ranks(self) -> IntArray:
        """(N,) ranks that remain, in the order of the layout."""
        pattern = self.model.peft_config[ADAPTER].rank_pattern
        if not pattern:
            return np.full(self.layout.n_projections, self.schedule.init_r, dtype=np.int64)
        kept = {
            name.split(".lora_E")[0]: sum(np.ravel(mask).tolist()) for name, mask in pattern.items()
        }
        return np.array([kept[p.name] for p in self.layout.projections], dtype=np.int64)

    @property
    def sent_params(self) -> int:
        """Numbers that have to be sent for the adapters: whole components."""
        return int(self.ranks @ self.layout.params_per_rank)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue bit-exactly."""
        return super().state_dict() | allocation_state(self.model)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            CheckpointError: the state is of another model or schedule.
        """
        super().load_state_dict(state)
        load_allocation_state(self.model, state)

    def _after_step(self) -> None:
        self.model.base_model.update_and_allocate(self.n_steps)

    def _config(self, head: tuple[str, ...]) -> Any:
        from peft import AdaLoraConfig  # noqa: PLC0415 takes seconds

        s, alpha = self.schedule, self.config.alpha
        return AdaLoraConfig(
            task_type=self._objective.task_type,  # pyright: ignore[reportArgumentType]
            init_r=s.init_r,
            target_r=max(1, s.total_ranks // self.layout.n_projections),
            lora_alpha=s.init_r if alpha is None else alpha,  # pyright: ignore[reportArgumentType]
            lora_dropout=self.config.dropout,
            target_modules=[p.name for p in self.layout.projections],
            modules_to_save=list(head) or None,
            orth_reg_weight=s.orthogonality_weight,
            tinit=s.t_init,
            tfinal=s.t_final,
            deltaT=s.delta_t,
            total_step=s.total_steps,
        )

    def _wrap(self, model: Any, head: tuple[str, ...]) -> Any:
        """Return PEFT's model; its budget is set in ranks, which `target_r` can only say whole."""
        _check_budget(self.schedule, self.layout)
        wrapped = super()._wrap(model, head)
        wrapped.base_model.rankallocator.target_bgt = self.schedule.total_ranks
        return wrapped


def allocation_state(model: Any) -> dict[str, Any]:
    """Return what PEFT's AdaLoRA has learned of importance and decided so far."""
    allocator = model.base_model.rankallocator
    return {
        "importance": {name: dict(getattr(allocator, name)) for name in _IMPORTANCE},
        "rank_pattern": model.peft_config[ADAPTER].rank_pattern,
    }


def load_allocation_state(model: Any, state: Mapping[str, Any]) -> None:
    """Continue from `allocation_state`."""
    for name in _IMPORTANCE:
        setattr(model.base_model.rankallocator, name, dict(state["importance"][name]))
    model.peft_config[ADAPTER].rank_pattern = state["rank_pattern"]


def orthogonality(model: Any) -> Tensor:
    """Return AdaLoRA's regulariser, as PEFT adds it where it computes the loss itself."""
    norms = []
    for name, p in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = p @ p.T if "lora_A" in name else p.T @ p
            norms.append(torch.norm(gram - torch.eye(len(gram)), p="fro"))
    return model.peft_config[ADAPTER].orth_reg_weight * torch.stack(norms).mean()


def _check_budget(schedule: AdaLoraSchedule, layout: AdapterLayout) -> None:
    """Refuse a budget that does not fall, which PEFT finds out in the middle of training."""
    most = schedule.init_r * layout.n_projections
    if schedule.total_ranks >= most:
        raise ConfigError(
            f"AdaLoRA only prunes: {schedule.total_ranks} ranks cannot remain of {most}: rank "
            f"{schedule.init_r} of {layout.n_projections} projections. Raise init_r, or derive the "
            f"schedule with AdaLoraSchedule.derive."
        )


def ranks_for_params(layout: AdapterLayout, params: float) -> int:
    """Return how many ranks in all cost about `params` numbers, at the mean cost of a rank."""
    return max(1, round(params / float(layout.params_per_rank.mean())))
