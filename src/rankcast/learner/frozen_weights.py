"""Frozen linear maps whose weights are rounded to bfloat16 once, instead of in every pass.

Autocast remembers the cast of a weight that trains, but not of one that is frozen: of a model with
an adapter it casts nearly all weights in every forward pass. Results are the same to the last bit.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn


def cast_frozen_once(model: nn.Module, dtype: torch.dtype) -> int:
    """Let frozen linear maps keep their weights in a second format, for passes on a CPU in it.

    The float32 weights stay, for judging and for fingerprints: a linear map takes half as much
    memory again. They must not change from now on, as they would by merging an adapter.

    Args:
        model: with its adapters.
        dtype: in which it trains.

    Returns:
        How many linear maps there are.
    """
    count = 0
    for module in model.modules():
        if type(module) is nn.Linear and not any(p.requires_grad for p in module.parameters()):
            with torch.no_grad():
                bias = None if module.bias is None else module.bias.to(dtype)
                low: Any = module
                low.rounded_once = (module.weight.to(dtype), bias)
            module.forward = MethodType(_forward, module)
            count += 1
    return count


def _forward(self: Any, x: Tensor) -> Tensor:
    """Return W x + b with the weights in the format of the pass."""
    weight, bias = self.rounded_once
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is weight.dtype:
        return F.linear(x, weight, bias)
    return F.linear(x, self.weight, self.bias)
