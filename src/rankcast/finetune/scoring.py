"""Run the adapted model on batches, without training it, over any number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankcast.adapters.svd import ElasticAdapter
from rankcast.errors import DataError
from rankcast.finetune.batching import Batch, TokenisedDataset
from rankcast.finetune.config import FinetuneConfig
from rankcast.finetune.distillation import Teacher
from rankcast.finetune.objectives import Judged, Objective
from rankcast.records import FloatArray, IntArray


class Scorer:
    """Losses and right answers of the adapted model.

    Args:
        adapter: the adapted model.
        objective: what it is asked to do.
        config: batch size and seed of evaluations.
        accelerator: the processes and the precision.
    """

    def __init__(
        self,
        adapter: ElasticAdapter,
        objective: Objective,
        config: FinetuneConfig,
        accelerator: Any,
    ) -> None:
        self._adapter = adapter
        self._objective = objective
        self._config = config
        self._accelerator = accelerator

    def judge(self, batch: Batch) -> Judged:
        """Run the model on a batch in the precision of this run."""
        with self._accelerator.autocast():
            output = self._adapter.model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask
            )
        return self._objective.judge(output.logits, batch)

    def divergence(self, batch: Batch, teacher: Teacher) -> Tensor:
        """Return (B,) how far the model's answers are from a teacher's, summed [nats]."""
        with self._accelerator.autocast():
            wanted = teacher.logits(batch)
            output = self._adapter.model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask
            )
        return self._objective.divergence(output.logits, wanted, batch)

    def n_predictions(self, parts: Sequence[Batch]) -> float:
        """Return how many predictions a batch asks for, over all processes."""
        return self.total(sum(self._objective.count(part) for part in parts))

    @torch.no_grad()
    def mean_loss(self, parts: Sequence[Batch], ranks: IntArray) -> float:
        """Return the mean loss of a batch under (N,) ranks, without dropout."""
        self._adapter.model.eval()
        with self._adapter.at_ranks(ranks):
            summed = torch.stack([self.judge(part).loss.sum() for part in parts]).sum()
        return self.total(summed) / self.n_predictions(parts)

    @torch.no_grad()
    def judge_texts(
        self,
        tokens: TokenisedDataset,
        ranks: IntArray,
        max_examples: int | None,
        indices: IntArray | None = None,
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return (n,) loss, right answers and predictions of each text, over all processes.

        Args:
            tokens: the texts.
            ranks: (N,) ranks to judge.
            max_examples: judge so many, drawn from the seed alone; None for all.
            indices: (n,) positions of the texts to judge, in the order of the result; None for
                all, in their order.

        Raises:
            DataError: positions that are none of these texts, or both ways of choosing at once.
        """
        indices = self._chosen(len(tokens), max_examples, indices)
        device = self._accelerator.device
        table = torch.zeros(3, len(tokens), device=device)
        self._adapter.model.eval()
        with self._adapter.at_ranks(ranks):
            for number, chosen in enumerate(tokens.in_order(self._config.eval_batch_size, indices)):
                if number % self._accelerator.num_processes == self._accelerator.process_index:
                    judged = self.judge(tokens.collate(chosen).to(device))
                    rows = torch.stack([judged.loss, judged.correct, judged.count])
                    table[:, torch.from_numpy(chosen).to(device)] = rows
        table = self._accelerator.reduce(table, reduction="sum")
        loss, correct, count = table.cpu().double().numpy()[:, indices]
        return loss, correct, count

    def _chosen(self, n_texts: int, max_examples: int | None, indices: IntArray | None) -> IntArray:
        """Return (n,) positions of the texts to judge."""
        everything = np.arange(n_texts)
        if indices is not None:
            chosen = np.asarray(indices)
            whole = chosen.ndim == 1 and chosen.size > 0 and chosen.dtype.kind in "iu"
            if max_examples is not None or not whole or not np.isin(chosen, everything).all():
                raise DataError(
                    f"Name the texts to judge by positions in 0..{n_texts - 1}, at least one, or "
                    f"by how many (max_examples), not both."
                )
            return chosen.astype(np.int64)
        if max_examples is None or max_examples >= n_texts:
            return everything
        rng = np.random.default_rng(self._config.seed)
        return np.sort(rng.choice(everything, size=max_examples, replace=False))

    def total(self, value: Tensor | int) -> float:
        """Return the sum of a number over all processes."""
        tensor = torch.as_tensor(value, device=self._accelerator.device)
        return float(self._accelerator.reduce(tensor, reduction="sum"))
