"""Passes of a model with an adapter: what it answers to a batch, and what that loses.

Training and judging may run in other number formats. What teachers answer is run the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from rankcast.adapters.elastic import ElasticAdapter
from rankcast.learner.answer_head import answering_for
from rankcast.learner.answer_memory import AnswerMemory
from rankcast.learner.batching import Batch
from rankcast.learner.frozen_weights import lower_frozen
from rankcast.learner.objectives import AdapterSnapshot, Judged, Objective, mean_logits
from rankcast.learner.precision import Precision


class ModelPasses:
    """Runs a model and its adapter on batches, as a whole or with other weights.

    Args:
        adapter: on the model, which is where it is going to run.
        objective: what the model is for.
        precision: number formats in training and judging.
        is_causal: whether it predicts tokens.
    """

    def __init__(
        self,
        adapter: ElasticAdapter,
        objective: Objective,
        precision: Precision,
        *,
        is_causal: bool,
    ) -> None:
        self._adapter, self._precision = adapter, precision
        self._judging = False
        self._weights: Mapping[str, Tensor] = {}
        if precision.device_type == "cpu":
            rounds = precision.training is torch.bfloat16 and not is_causal
            lower_frozen(adapter.model, also_rounded=rounds)
        self._answering = answering_for(
            objective, adapter.model, self._autocast, is_causal=is_causal
        )

    def judge(self, batch: Batch) -> Judged:
        """Return loss and right answers of each text."""
        return self._answering.judge(self._states(batch), batch)

    def towards(
        self,
        teachers: Sequence[AdapterSnapshot],
        weight: float,
        batch: Batch,
        memory: AnswerMemory | None = None,
    ) -> Tensor:
        """Return (B,) divergences from the mean answers of adapters.

        Args:
            teachers: snapshots of this adapter.
            weight: of the divergence; the rest is that of the loss.
            batch: texts.
            memory: of what they answer to training texts, which are asked for once then.
        """
        if memory is None:
            wanted = self._asked(teachers, batch)
        else:
            ask = lambda new: mean_logits(self._asked(teachers, new))  # noqa: E731
            wanted = [memory.answers(batch, ask)]
        return self._answering.towards(self._states(batch), wanted, weight, batch)

    @contextmanager
    def as_judged(self) -> Iterator[None]:
        """Run in the precision in which texts are judged."""
        before, self._judging = self._judging, True
        try:
            yield
        finally:
            self._judging = before

    @contextmanager
    def with_weights(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Let other tensors stand in for parameters of the model, by their names."""
        self._weights = weights
        try:
            yield
        finally:
            self._weights = {}

    def _asked(self, teachers: Sequence[AdapterSnapshot], batch: Batch) -> list[Tensor]:
        """Return what each of some adapters answers, as the way of answering keeps it."""
        found = []
        for teacher in teachers:
            with teacher.answering(), self._autocast():
                run = partial(self._adapter.model, **_tokens_of(batch))
                found.append(self._answering.states(run, batch))
        return found

    def _states(self, batch: Batch) -> Tensor:
        """Run the model on a batch in the precision of this run."""
        run = partial(self._adapter.model, **_tokens_of(batch))
        if self._weights:
            run = partial(
                functional_call, self._adapter.model, dict(self._weights), (), _tokens_of(batch)
            )
        with self._autocast():
            return self._answering.states(run, batch)

    def _autocast(self) -> Any:
        """Return the context in which the model runs."""
        return self._precision.autocast(training=not self._judging)


def _tokens_of(batch: Batch) -> dict[str, torch.Tensor]:
    """Return what the model takes of a batch."""
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
