"""A `transformers.Trainer` of a tiny classifier whose ranks a RankcastCallback draws at random."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from helpers.models import tiny_batch, tiny_model
from rankcast.adapters.elastic import ElasticAdapter
from rankcast.adapters.optimizer import PrefixAdamW
from rankcast.allocation.baselines import RandomAllocator
from rankcast.allocation.problem import AllocationProblem
from rankcast.link.capacity import Awgn
from rankcast.link.costs import LinkCostModel
from rankcast.link.processes import GaussMarkovSnr
from rankcast.training.callback import RankcastCallback

R_MAX = 4


class Rows(torch.utils.data.Dataset[Any]):
    """Sixteen rows whose label is whether they begin with one of two words."""

    def __init__(self) -> None:
        batch = tiny_batch(batch=16, length=6)
        batch["labels"] = torch.arange(16) % 2
        batch["input_ids"][:, 0] = 5 + batch["labels"]
        self.batch = batch

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: tensor[index] for name, tensor in self.batch.items()}


def adapted() -> ElasticAdapter:
    return ElasticAdapter.attach(tiny_model("bert"), r_max=R_MAX, alpha=8.0)


def costs_of(adapter: ElasticAdapter) -> LinkCostModel:
    return LinkCostModel.for_layout(adapter.layout, Awgn())


def full_bits(adapter: ElasticAdapter) -> float:
    return float(costs_of(adapter).payload_bits(np.full(adapter.layout.n_projections, R_MAX)))


def random_callback(adapter: ElasticAdapter, kind: Any = RankcastCallback, **settings: Any) -> Any:
    problem = AllocationProblem(adapter.layout, costs_of(adapter))
    defaults = {"every_n_steps": 2, "bandwidth_hz": full_bits(adapter) / 2, "seed": 3}
    return kind(
        adapter, RandomAllocator(problem), GaussMarkovSnr(0.0, 4.0, 0.5), costs_of(adapter),
        **(defaults | settings),
    )  # fmt: skip


def trainer_of(
    callback: Any,
    folder: Path,
    *,
    attach: bool = True,
    others: Sequence[Any] = (),
    compute_metrics: Any = None,
    **arguments: Any,
) -> Any:
    """Return a Trainer of eight steps at the callback's adapter; nothing is reported or saved."""
    from transformers import Trainer, TrainingArguments

    given = {
        "max_steps": 8, "logging_steps": 1, "save_steps": 100, "save_strategy": "steps",
        "per_device_train_batch_size": 8, "learning_rate": 2e-2, "report_to": "none",
        "use_cpu": True, "disable_tqdm": True, "seed": 0,
    }  # fmt: skip
    trainer = Trainer(
        callback.adapter.model,
        TrainingArguments(str(folder), **(given | arguments)),
        train_dataset=Rows(),
        eval_dataset=Rows(),
        optimizers=(PrefixAdamW(callback.adapter, lr=2e-2), None),
        callbacks=[*others, *([] if attach else [callback])],
        compute_metrics=compute_metrics,
    )
    if attach:
        callback.attach(trainer)
    return trainer
