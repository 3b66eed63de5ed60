"""A LoRA as strips: numbers of one kind that share a scale when they are rounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rankcast.codec.quantiser import Float32Array
from rankcast.codec.tensors import AdapterTensors, Factors

Strips = Sequence[Float32Array]


def strips_of(tensors: AdapterTensors) -> list[Float32Array]:
    """Return each column of the left and each row of the right factors, in one dimension."""
    return [np.ascontiguousarray(s) for f in tensors.factors for s in (*f.left.T, *f.right)]


def with_strips(tensors: AdapterTensors, strips: Strips) -> AdapterTensors:
    """Return a LoRA with other numbers, in the order of `strips_of`.

    AdaLoRA leaves projections without any.
    """
    rest, factors = list(strips), []
    for own, rank in zip(tensors.factors, tensors.ranks.tolist(), strict=True):
        mine, rest = rest[: 2 * rank], rest[2 * rank :]
        pair = (np.stack(mine[:rank], axis=1), np.stack(mine[rank:])) if rank else None
        factors.append(own if pair is None else Factors(*pair))
    return replace(tensors, factors=tuple(factors))


def rms(strips: Strips) -> float:
    """Return the root mean square of all numbers."""
    everything = np.concatenate(list(strips))
    return float(np.sqrt(np.square(everything, dtype=np.float64).mean()))
