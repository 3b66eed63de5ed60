"""The answers of an adapter as it was, for one in training to keep to (Hinton et al. 2015)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from rankcast.adapters.svd import ElasticAdapter
from rankcast.finetune.batching import Batch


class Teacher:
    """An adapter's weights as they were, beside the same frozen base model.

    Args:
        adapter: whose weights and ranks are remembered; what is trained afterwards leaves them be.
    """

    def __init__(self, adapter: ElasticAdapter) -> None:
        self._adapter = adapter
        self._ranks = adapter.ranks
        self._now = [p for factors in adapter.factors() for p in factors]
        self._now += adapter.other_parameters()
        self._kept = [p.detach().clone() for p in self._now]

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """Return what the model answered, in eval mode and without rounding."""
        model = self._adapter.model
        training = model.training
        model.eval()
        try:
            with (
                self._in_force(),
                self._adapter.at_ranks(self._ranks),
                self._adapter.at_steps(None),
            ):
                return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        finally:
            model.train(training)

    @contextmanager
    def _in_force(self) -> Iterator[None]:
        """Exchange the weights for those remembered, without copying, inside a `with` block."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for i, parameter in enumerate(self._now):
            parameter.data, self._kept[i] = self._kept[i], parameter.data
