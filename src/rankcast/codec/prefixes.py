"""Files of an adapter that was trained for prefixes: the largest that fits, and more behind it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rankcast.codec.container import Container, pack_as_trained
from rankcast.codec.packing import Source


def prefixes_within(source: Source, budget_bits: float) -> Container | None:
    """Return the most prefixes that fit, and behind them what else fits of the next.

    None if not even the first fits, or the adapter was not trained for prefixes.
    """
    prefixes = () if source.coding is None else source.coding.prefix_ranks
    for n in range(len(prefixes), 0, -1):
        file = _file(source, prefixes[:n])
        if file.n_bits <= budget_bits:
            return file if n == len(prefixes) else _with_more(source, prefixes, n, budget_bits)
    return None


def _with_more(
    source: Source, prefixes: Sequence[tuple[int, ...]], n: int, budget_bits: float
) -> Container:
    """Return the first `n` prefixes, and as one more chunk what fits of the next.

    Those projections go first whose components have the most energy for each weight other than
    zero. They take no bytes from the prefixes, which were trained as a whole.
    """
    kept, most = np.array(prefixes[n - 1]), np.minimum(prefixes[n], source.tensors.ranks)
    factors = source.tensors.factors

    def worth(i: int) -> float:
        left, right = factors[i].left[:, kept[i] : most[i]], factors[i].right[kept[i] : most[i]]
        energy = np.square(left).sum(axis=0) @ np.square(right).sum(axis=1)
        return float(energy) / max(np.count_nonzero(left) + np.count_nonzero(right), 1)

    best = sorted(np.flatnonzero(most > kept).tolist(), key=worth, reverse=True)

    def with_best(count: int) -> Container:
        ranks = kept.copy()
        ranks[best[:count]] = most[best[:count]]
        return _file(source, (*prefixes[:n], *([tuple(ranks.tolist())] if count else [])))

    more = range(1, len(best) + 1)
    return with_best(bisect_left(more, True, key=lambda k: with_best(k).n_bits > budget_bits))


def _file(source: Source, prefixes: Sequence[tuple[int, ...]]) -> Container:
    """Return the components of the last prefix, in the chunks of all."""
    assert source.coding is not None
    ranks = np.minimum(prefixes[-1], source.tensors.ranks)
    offsets = source.coding.component_offsets  # empty where they are those of projections
    each = tuple(own[:rank] for own, rank in zip(offsets, ranks, strict=False))
    coding = replace(source.coding, prefix_ranks=tuple(prefixes), component_offsets=each)
    return pack_as_trained(replace(source, tensors=source.tensors.truncated(ranks)), coding)
