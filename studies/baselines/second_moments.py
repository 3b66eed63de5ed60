"""Second moments of what goes into each projection, to weigh errors by the inputs that occur."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from rankcast.adapters.elastic import ElasticAdapter
from rankcast.errors import DataError


def collect_second_moments(
    adapter: ElasticAdapter, batches: Iterable[Any], *, full: bool = False
) -> list[Tensor]:
    """Return E[x xᵀ] of the input of each projection under the active ranks.

    Args:
        adapter: run in eval mode and without gradients.
        batches: what the model takes, mappings of keyword arguments or single tensors. Positions
            that an `attention_mask` switches off do not count.
        full: whole matrices (d_in, d_in) instead of diagonals (d_in,).

    Raises:
        DataError: no batch.
    """
    sums = [
        torch.zeros((p.d_in, p.d_in) if full else (p.d_in,), dtype=torch.float64)
        for p in adapter.layout.projections
    ]
    seen = [0] * len(sums)
    mask: list[Tensor | None] = [None]
    hooks = [
        layer.register_forward_pre_hook(_recorder(i, sums, seen, mask, full=full))
        for i, layer in enumerate(adapter.layers)
    ]
    training = adapter.model.training
    adapter.model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                keywords = isinstance(batch, Mapping)
                mask[0] = batch.get("attention_mask") if keywords else None
                _ = adapter.model(**batch) if keywords else adapter.model(batch)
    finally:
        for hook in hooks:
            hook.remove()
        adapter.model.train(training)
    if not all(seen):
        raise DataError("Second moments need at least one batch that passes every projection.")
    return [total / count for total, count in zip(sums, seen, strict=True)]


def _recorder(
    index: int, sums: list[Tensor], seen: list[int], mask: list[Tensor | None], *, full: bool
) -> Callable[[Any, tuple[Tensor, ...]], None]:
    """Return a hook that adds the inputs of one projection to its sum."""

    def record(_: Any, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()
        attended = mask[0]
        if attended is not None and attended.shape == x.shape[:-1]:
            x = x[attended.bool()]
        x = x.reshape(-1, x.shape[-1]).float()
        moment = x.mT @ x if full else x.square().sum(0)
        sums[index] += moment.to("cpu", torch.float64)
        seen[index] += len(x)

    return record
