"""Bits that an adapter in training will take once it is coded, differentiably."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from rankcast.adapters.elastic import ElasticAdapter

_WIDEST = 2.5
"""Spreads up to here are summed cell by cell; the entropy of wider ones is that of the density."""
_CELLS = 14
_NARROWEST = 0.05
_TINY = 1e-24
"""Added under the root, whose slope is infinite for a strip of zeros."""


def coded_bits(adapter: ElasticAdapter, steps: Sequence[float]) -> Tensor:
    """Return the bits of the active components, differentiably.

    The coder models every column of P and row of Q as rounded Gaussian numbers; this is the entropy
    of that model at the strips' own spreads. Side information and what other modules take is left
    out. The adapter has to be balanced (as `arrays.load_tensors` leaves it).

    Args:
        adapter: whose components are counted.
        steps: of the quantiser, one for each projection.
    """
    groups: defaultdict[tuple[int, torch.device], list[Tensor]] = defaultdict(list)
    for (Q, _, P), r, step in zip(adapter.factors(), adapter.rank_list, steps, strict=True):
        if r:
            for strips in (Q[:r], P.t()[:r]):
                spread = (strips.float().square().mean(dim=1) + _TINY).sqrt()
                groups[strips.shape[1], spread.device].append(spread / step)
    total = adapter.factors()[0][0].new_zeros(())
    for (width, _), spreads in groups.items():
        entropy = rounded_gaussian_entropy(torch.cat(spreads))
        total = total + width * entropy.sum().to(total.device)
    return total


def rounded_gaussian_entropy(spread: Tensor) -> Tensor:
    """Return the entropy [bit] of a Gaussian number of a spread, rounded to integers."""
    s = spread.clamp(_NARROWEST, _WIDEST)[:, None]
    edges = torch.arange(-_CELLS, _CELLS + 2, device=spread.device, dtype=s.dtype) - 0.5
    below = torch.special.ndtr(edges / s)
    share = (below[:, 1:] - below[:, :-1]).clamp_min(1e-12)
    cells = -(share * share.log2()).sum(dim=1)
    wide = 0.5 * math.log2(2 * math.pi * math.e) + spread.clamp_min(_NARROWEST).log2()
    return torch.where(spread > _WIDEST, wide, cells)
