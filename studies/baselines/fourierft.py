"""FourierFT (Gao et al. 2024, arXiv 2405.03003) without a Fourier transform in every step.

PEFT fills a spectrum with the n trained coefficients of a projection and transforms it back into
ΔW in every forward pass. With few coefficients the sum of their waves is cheaper: each is a sum of
two products of a wave over the rows and one over the columns, so ΔW · x takes 2n products of either
side. It is the same function of the coefficients.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn


class _Waves(nn.Module):
    """Adds FourierFT's ΔW · x to the output of a projection.

    Args:
        layer: PEFT's layer, whose coefficients are trained; it stays the owner.
        adapter: its name.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, layer: Any, adapter: str) -> None:
        super().__init__()
        d_out, d_in = layer.out_features, layer.in_features
        u, v = layer.indices[adapter].double()
        row = 2 * math.pi * torch.outer(torch.arange(d_out, dtype=torch.float64), u / d_out)
        column = 2 * math.pi * torch.outer(v / d_in, torch.arange(d_in, dtype=torch.float64))
        scale = layer.fourierft_scaling[adapter] / (d_out * d_in)
        # cos(a + b) = cos a cos b - sin a sin b
        self.register_buffer("rows", (scale * torch.cat([row.cos(), -row.sin()], 1)).float())
        self.register_buffer("columns", torch.cat([column.cos(), column.sin()]).float())

    def forward(self, x: Tensor, coefficients: Tensor) -> Tensor:
        """Return ΔW · x."""
        return F.linear(F.linear(x, self.columns) * coefficients.repeat(2), self.rows)


def sum_waves(model: Any, adapter: str) -> None:
    """Make a PEFT model compute the FourierFT of this name as a sum of waves, in place."""
    for module in model.modules():
        if adapter in getattr(module, "fourierft_spectrum", {}):
            _replace_forward(module, adapter)


def _replace_forward(layer: Any, adapter: str) -> None:
    """Replace the forward pass of one layer; nothing else of it is touched."""
    waves = _Waves(layer, adapter)

    def forward(x: Tensor) -> Tensor:
        added = waves(x, layer.fourierft_spectrum[adapter])
        result = layer.base_layer(x)
        return result + added.to(result.dtype)

    layer.forward = forward
