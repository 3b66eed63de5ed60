"""AdaLoRA as PEFT trains it (Zhang et al. 2023, arXiv 2303.10512): the paper's baseline.

PEFT leaves the schedule to the user, and a wrong one silently never prunes. Here it is derived
from the number of steps and the wanted mean rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankcast.errors import ConfigError
from rankcast.finetune.config import FinetuneConfig
from rankcast.finetune.peft_finetuner import ADAPTER, PeftFinetuner
from rankcast.finetune.texts import DatasetSplits
from rankcast.records import AdapterLayout, IntArray


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

    def train(self, on_step: Callable[[int, float], None] | None = None) -> None:
        """Train to the end of the schedule; `on_step` sees each step's number and loss."""
        while self.n_steps < self.schedule.total_steps:
            loss = self.step()
            if on_step is not None:
                on_step(self.n_steps, loss)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue bit-exactly."""
        allocator = self.model.base_model.rankallocator
        importance = {name: dict(getattr(allocator, name)) for name in _IMPORTANCE}
        return super().state_dict() | {
            "importance": importance,
            "rank_pattern": self.model.peft_config[ADAPTER].rank_pattern,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            CheckpointError: the state is of another model or schedule.
        """
        super().load_state_dict(state)
        for name in _IMPORTANCE:
            setattr(self.model.base_model.rankallocator, name, dict(state["importance"][name]))
        self.model.peft_config[ADAPTER].rank_pattern = state["rank_pattern"]

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


def _check_budget(schedule: AdaLoraSchedule, layout: AdapterLayout) -> None:
    """Refuse a budget that does not fall, which PEFT finds out in the middle of training."""
    most = schedule.init_r * layout.n_projections
    if schedule.total_ranks >= most:
        raise ConfigError(
            f"AdaLoRA only prunes: {schedule.total_ranks} ranks cannot remain of {most}: rank "
            f"{schedule.init_r} of {layout.n_projections} projections. Raise init_r, or derive the "
            f"schedule with AdaLoraSchedule.derive."
        )


_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def ranks_for_bits(layout: AdapterLayout, params: float) -> int:
    """Return how many ranks in all cost about `params` numbers, at the mean cost of a rank."""
    return max(1, round(params / float(layout.params_per_rank.mean())))
