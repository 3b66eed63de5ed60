"""Frozen linear maps in bfloat16: kept in nothing else, or rounded once instead of in every pass.

Many language models come in bfloat16. Their weights lose nothing in it and take half the memory;
float32 is made of one map at a time, while it multiplies. Of other weights a second, rounded copy
serves passes in bfloat16: autocast remembers the cast of a weight that trains, but not of one that
is frozen. Results are the same to the last bit.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn


def lower_frozen(model: nn.Module, *, also_rounded: bool) -> int:
    """Let frozen linear maps multiply in bfloat16 where a pass on a CPU does.

    The output layer stays as it is: it shares its weights with the embedding, or multiplies in
    slices. Weights must not change from now on, as they would by merging an adapter, and one thread
    at a time may run the model.

    Args:
        model: with its adapters.
        also_rounded: keep a rounded copy of weights that are not bfloat16 already, too.

    Returns:
        How many linear maps there are.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]
    output = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    maps = [
        module
        for module in model.modules()
        if type(module) is nn.Linear and module is not output
        if not any(p.requires_grad for p in module.parameters())
    ]
    wide = torch.empty(max((m.weight.numel() for m in maps), default=0))
    with torch.no_grad():
        count = sum(_lower(module, wide, also_rounded) for module in maps)
    with suppress(OSError, AttributeError, TypeError):  # not every system has it
        ctypes.CDLL(None).malloc_trim(0)  # what was freed lies between what stays
    return count


def _lower(module: Any, wide: Tensor, also_rounded: bool) -> bool:
    """Lower a linear map if that loses nothing, or if a copy is wanted; return whether."""
    weight, bias = module.weight, module.bias
    low = weight.to(torch.bfloat16)
    if torch.equal(low.to(weight.dtype), weight):
        module.weight, module.wide = nn.Parameter(low, requires_grad=False), wide
        module.forward = MethodType(_widened_forward, module)
        return True
    if also_rounded:
        module.rounded_once = (low, None if bias is None else bias.to(torch.bfloat16))
        module.forward = MethodType(_rounded_forward, module)
    return also_rounded


def _is_low() -> bool:
    """Return whether this pass multiplies in bfloat16."""
    enabled = torch.is_autocast_enabled("cpu")
    return enabled and torch.get_autocast_dtype("cpu") is torch.bfloat16


def _rounded_forward(self: Any, x: Tensor) -> Tensor:
    """Return W x + b with the weights in the format of the pass."""
    weight, bias = self.rounded_once if _is_low() else (self.weight, self.bias)
    return F.linear(x, weight, bias)


def _widened_forward(self: Any, x: Tensor) -> Tensor:
    """Return W x + b, of weights in bfloat16."""
    if _is_low():
        return F.linear(x, self.weight, self.bias)
    return _Widened.apply(x, self.weight, self.bias, self.wide)  # pyright: ignore[reportReturnType]


class _Widened(torch.autograd.Function):
    """W x + b in float32, without gradients of W and b.

    All maps are widened into the same memory, which would lie between all others otherwise.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, wide: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.wide = wide
        return F.linear(x, wide[: weight.numel()].view_as(weight).copy_(weight), bias)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        wide = ctx.wide[: weight.numel()].view_as(weight).copy_(weight)
        return upstream[0] @ wide, None, None, None
