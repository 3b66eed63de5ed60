"""How well a model with an adapter answers a split, text by text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from rankcast.adapters.elastic import ElasticAdapter
from rankcast.errors import DataError
from rankcast.learner.answer_memory import AnswerMemory
from rankcast.learner.batching import Batch
from rankcast.learner.objectives import AdapterSnapshot, CausalLM, Objective
from rankcast.learner.passes import ModelPasses
from rankcast.learner.protocol import Evaluation
from rankcast.learner.tokenised_splits import TokenisedSplits
from rankcast.records import FloatArray, IntArray


class Judge:
    """Judges an adapter on splits; processes share the texts.

    Args:
        adapter: on the model.
        passes: run it.
        objective: what it is for.
        splits: texts.
        accelerator: whose processes share them.
        seed: of the choice where not all texts are judged.
    """

    def __init__(
        self,
        adapter: ElasticAdapter,
        passes: ModelPasses,
        objective: Objective,
        splits: TokenisedSplits,
        accelerator: Any,
        *,
        seed: int,
    ) -> None:
        self._adapter, self._passes, self._objective = adapter, passes, objective
        self._splits, self._accelerator, self._seed = splits, accelerator, seed

    @torch.no_grad()
    def texts(
        self,
        split: str,
        ranks: IntArray | None,
        max_examples: int | None = None,
        indices: IntArray | None = None,
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return (n,) summed loss, right answers and predictions of each text of a split.

        Args:
            split: `train`, `validation` or `test`.
            ranks: (N,) ranks to judge; None for the active ones.
            max_examples: judge so many texts, always the same ones; None for all.
            indices: (n,) positions of the texts to judge, in the order of the result.

        Raises:
            DataError: no such split, or positions that are none of its texts.
        """
        n_texts = len(self._splits[split])
        indices = _chosen_texts(n_texts, max_examples, indices, self._seed)
        table = torch.zeros(3, n_texts, device=self._accelerator.device)
        self._adapter.model.eval()
        own = self._adapter.at_ranks(self._adapter.ranks if ranks is None else ranks)
        with own, self._passes.as_judged(), self._splits.memory_told():
            for chosen, batch in self._own_batches(split, indices):
                judged = self._passes.judge(batch)
                rows = torch.stack([judged.loss, judged.correct, judged.count])
                table[:, torch.from_numpy(chosen).to(table.device)] = rows
        table = self._accelerator.reduce(table, reduction="sum")
        loss, correct, count = table.cpu().double().numpy()[:, indices]
        return loss, correct, count

    @torch.no_grad()
    def divergence_from(
        self,
        reference: AdapterSnapshot,
        split: str,
        indices: IntArray | None = None,
        memory: AnswerMemory | None = None,
    ) -> float:
        """Return KL(reference ‖ adapter as it is) of the tokens of a split [nats per token].

        Args:
            reference: of this adapter.
            split: `train`, `validation` or `test`.
            indices: (n,) positions of the texts; None for all.
            memory: of what the reference answers to these texts, for a classifier.

        Raises:
            DataError: no such split.
        """
        self._adapter.model.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self._accelerator.device)
        with self._passes.as_judged(), self._splits.memory_told():
            for _, batch in self._own_batches(split, indices):
                found = self._passes.towards([reference], 1.0, batch, memory)
                total += torch.stack([found.sum(), found.new_tensor(self._objective.count(batch))])
        divergence, count = self._accelerator.reduce(total, reduction="sum").tolist()
        return divergence / max(count, 1)

    def together(self, loss: FloatArray, correct: FloatArray, count: FloatArray) -> Evaluation:
        """Return what texts come to together; see `texts`."""
        total = max(count.sum(), 1)
        exact = None
        if isinstance(self._objective, CausalLM):
            exact = float((correct == count)[count > 0].mean()) if count.any() else 0.0
        return Evaluation(
            float(loss.sum() / total), float(correct.sum() / total), len(count), exact
        )

    def _own_batches(
        self, split: str, indices: IntArray | None
    ) -> Iterator[tuple[IntArray, Batch]]:
        """Yield the positions and the batch of each pass that is this process's."""
        tokens, device = self._splits[split], self._accelerator.device
        for number, chosen in enumerate(self._splits.to_judge(split, indices)):
            if number % self._accelerator.num_processes == self._accelerator.process_index:
                yield chosen, tokens.collate(chosen).to(device)


def _chosen_texts(
    n_texts: int, max_examples: int | None, indices: IntArray | None, seed: int
) -> IntArray:
    """Return (n,) positions of the texts to judge.

    Raises:
        DataError: positions that are none of these texts, or both ways of choosing at once.
    """
    everything = np.arange(n_texts)
    if indices is not None:
        chosen = np.asarray(indices)
        whole = chosen.ndim == 1 and chosen.size > 0 and chosen.dtype.kind in "iu"
        if max_examples is not None or not whole or not np.isin(chosen, everything).all():
            raise DataError(
                f"Name the texts to judge by positions in 0..{n_texts - 1}, at least one, or by "
                f"how many (max_examples), not both."
            )
        return chosen.astype(np.int64)
    if max_examples is None or max_examples >= n_texts:
        return everything
    return np.sort(np.random.default_rng(seed).choice(everything, size=max_examples, replace=False))
