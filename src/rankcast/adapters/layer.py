"""The forward pass of one projection, W·x + s·P Λ Q·x, with only its first r components (Eq. 2)."""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


@dataclass(eq=False, slots=True)
class ElasticState:
    """What an adapted layer shares with the others.

    Attributes:
        ranks: rank of every projection in force; one list, shared by all layers.
        index: this layer's place in it.
        scale: s, the factor on P Λ Q.
        adapter: name of the adapter in PEFT.
        step: if set, P and Q are rounded to multiples of it and s·Λ is taken as 1.
    """

    ranks: list[int]
    index: int
    scale: float
    adapter: str
    step: float | None = None


def make_elastic(layer: Any, state: ElasticState) -> None:
    """Let a PEFT AdaLoRA layer compute only the components in force.

    P is stored with its columns contiguous, so that a prefix of components is one block of memory
    in P and in Q alike.
    """
    left: nn.Parameter = layer.lora_B[state.adapter]
    left.data = left.data.t().contiguous().t()
    layer.elastic = state
    layer.forward = MethodType(_forward, layer)
    layer.get_delta_weight = MethodType(_delta_weight, layer)


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return base(x) + s·P[:, :r] Λ[:r] Q[:r] x, exactly base(x) at rank 0."""
    state: ElasticState = self.elastic
    rank = state.ranks[state.index]
    if self.disable_adapters:
        if self.merged:
            self.unmerge()
        return self.base_layer(x, *args, **kwargs)
    result: Tensor = self.base_layer(x, *args, **kwargs)
    if rank == 0 or self.merged:
        return result
    name = state.adapter
    Q, lam, P = self.lora_A[name], self.lora_E[name], self.lora_B[name]
    if rank < Q.shape[0]:
        Q, lam, P = Q[:rank], lam[:rank], P[:, :rank]
    x = self.lora_dropout[name](self._cast_input_dtype(x, Q.dtype))
    if state.step is not None:
        update = linear(linear(x, rounded(Q, state.step)), rounded(P, state.step))
        return result + update.to(result.dtype)
    weights = lam.view(-1) if state.scale == 1.0 else lam.view(-1) * state.scale
    update = linear(linear(x, Q) * weights, P)
    return result + update.to(result.dtype)


def rounded(weights: Tensor, step: float) -> Tensor:
    """Return weights rounded to multiples of a step, with the gradient of the unrounded ones.

    The straight-through estimator (Bengio et al. 2013, arXiv 1308.3432).
    """
    return weights + (torch.round(weights / step) * step - weights).detach()


def _delta_weight(self: Any, adapter: str) -> Tensor:
    """Return s·P Λ Q of the components in force, laid out as the base weight (for merging)."""
    state: ElasticState = self.elastic
    rank = state.ranks[state.index]
    delta = _product(self, adapter, rank) * state.scale
    return delta.t() if self.fan_in_fan_out else delta


def _product(layer: Any, adapter: str, rank: int) -> Tensor:
    """Return P[:, :r] Λ[:r] Q[:r], (d_out, d_in)."""
    Q, lam, P = layer.lora_A[adapter], layer.lora_E[adapter], layer.lora_B[adapter]
    return P[:, :rank] @ (lam[:rank] * Q[:rank])


def initialise(
    Q: Tensor, lam: Tensor, P: Tensor, *, std: float | None, generator: torch.Generator
) -> None:
    """Set P to zero and Λ to one and draw Q, so that the update starts at zero and can grow.

    Differs from the paper: AdaLoRA draws P and Q and starts with Λ = 0, after which only Λ has a
    gradient and a step moves the weights along random directions. Starting with P = 0 learns
    several times faster at the same learning rate, because P points where the loss falls at once.
    `std` None draws Q with orthonormal rows, as Eq. 3 asks, else from N(0, std²).
    """
    r, d_in = Q.shape
    rows = torch.randn(r, d_in, generator=generator)
    if std is not None:
        rows = rows * std
    elif r <= d_in:
        rows = torch.linalg.qr(rows.mT).Q.mT
    else:
        rows = torch.nn.functional.normalize(rows)
    with torch.no_grad():
        Q.copy_(rows)
        lam.fill_(1.0)
        P.zero_()
