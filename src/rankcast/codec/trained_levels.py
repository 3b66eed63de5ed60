"""Levels of an adapter that was trained for prefixes of given sizes.

Training for a size makes weights sparse, and what one prefix adds to another has steps of its own.
So the levels of a projection are the components of each prefix, and their bits are measured with
the coder. Between the sizes that were trained a plan takes a prefix here and a smaller one there.

Shapes: `N` projections, `K` prefixes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rankcast.codec.container import Container, pack_as_trained
from rankcast.codec.levels import Levels
from rankcast.codec.packing import Coding, Source
from rankcast.errors import CodecError, InfeasibleDeadlineError
from rankcast.records import FloatArray, IntArray


def trained_levels(source: Source) -> Levels:
    """Return the levels of an adapter that was trained for prefixes.

    A prefix that adds nothing to a projection is no level of it: the last level stands again
    behind those that there are. Exponents are those of the components that a level adds. Gains are
    the energy of the update; measure what they are worth before choosing by them.

    Raises:
        CodecError: it was not trained for prefixes.
    """
    coding = _coding_of(source)
    ranks = _ranks_of_levels(coding, source)
    nothing = np.zeros(len(ranks), dtype=np.int64)
    overhead_bits = _bits(source, nothing)
    alone = np.zeros(ranks.shape)
    for n, own in enumerate(ranks):
        for k in np.flatnonzero(np.diff(own)) + 1:
            plan = nothing.copy()
            plan[n] = own[k]
            alone[n, k] = max(_bits(source, plan) - overhead_bits, alone[n, k - 1] + 1)
        alone[n] = np.maximum.accumulate(alone[n])
    # The coder adapts: blocks together take less than the sum of what each takes by itself.
    together = np.array([_bits(source, column) for column in ranks.T[1:]])
    apart = np.diff(alone, axis=1)
    share = np.diff(together, prepend=overhead_bits) / np.maximum(apart.sum(axis=0), 1.0)
    more = np.rint(apart * share)
    more[~more.any(axis=1), 0] = 1.0  # a projection without components: a level of nothing
    bits = np.concatenate([np.zeros((len(ranks), 1)), more.cumsum(axis=1)], axis=1)
    return Levels(
        ranks, _exponents(coding, ranks), bits.astype(np.int64), _energy(source, ranks),
        overhead_bits,
    )  # fmt: skip


def trained_prefixes(source: Source, levels: Levels) -> IntArray:
    """Return (P, N) the plan of levels that each prefix is.

    Raises:
        CodecError: it was not trained for prefixes.
    """
    prefixes = np.minimum(np.array(_coding_of(source).prefix_ranks), source.tensors.ranks)
    within = levels.ranks[None, :, 1:] <= prefixes[..., None]
    more = np.diff(levels.ranks, axis=1) > 0  # where it is 0 the last level stands again
    return (within & more).sum(axis=-1)


def file_of_ranks(source: Source, ranks: IntArray) -> Container:
    """Return the first (N,) components of an adapter at their trained steps, as one chunk.

    Args:
        source: trained for prefixes.
        ranks: of each projection, as `Levels.chosen` returns them.

    Raises:
        CodecError: it was not trained for prefixes, or has NaN or infinite weights.
    """
    wanted = tuple(ranks.tolist())
    return _first_components(source, wanted, (wanted,))


def file_within(
    source: Source, levels: Levels, plan: IntArray, worth: FloatArray, budget_bits: float
) -> Container:
    """Return the file of a plan, without its least worthy levels where they are too much.

    Predicted bits are a few per cent off. What they promised may not fit by a few bytes.

    Args:
        source: trained for prefixes.
        levels: of it.
        plan: (N,) levels.
        worth: (N, K) of each level beyond the one before, by bit.
        budget_bits: that the file may have.

    Raises:
        InfeasibleDeadlineError: not even the file without any component fits.
    """
    chosen = plan.astype(np.int64)
    while (file := file_of_ranks(source, levels.chosen(chosen)[0])).n_bits > budget_bits:
        sent = np.flatnonzero(chosen)
        if not sent.size:
            raise InfeasibleDeadlineError(file.n_bits, budget_bits)
        least = sent[np.argmin(worth[sent, chosen[sent] - 1])]
        chosen[least] -= 1
    return file


def file_beyond_prefix(source: Source, n_prefixes: int, budget_bits: float) -> Container:
    """Return the first prefixes, and behind them what else fits of the next, as one more chunk.

    Of the next prefix those components go first that have the most energy for their bits. They
    take no bytes from the prefixes, which were trained as a whole.

    Args:
        source: trained for prefixes.
        n_prefixes: that fit, at least one.
        budget_bits: that the file may have.
    """
    coding, levels = _coding_of(source), trained_levels(source)
    kept = trained_prefixes(source, levels)[n_prefixes - 1]
    first = coding.prefix_ranks[:n_prefixes]
    more = np.diff(levels.bits, axis=1)
    worth = np.diff(levels.gains, axis=1) / np.maximum(more, 1)
    k = np.arange(levels.n_levels)
    worth = np.minimum.accumulate(np.where(k < kept[:, None], np.inf, worth), axis=1)

    def with_best(count: int) -> Container:
        best = np.argsort(-worth.ravel(), kind="stable")[: int(kept.sum()) + count]
        plan = np.bincount(best // levels.n_levels, minlength=len(worth))
        ranks = tuple(levels.chosen(plan)[0].tolist())
        return _first_components(source, ranks, (*first, ranks) if count else first)

    fits = range(int((more[k >= kept[:, None]] > 0).sum()) + 1)
    count = bisect_left(fits, True, key=lambda n: with_best(n).n_bits > budget_bits) - 1
    return with_best(max(count, 0))


def _first_components(
    source: Source, ranks: Sequence[int], prefixes: tuple[tuple[int, ...], ...]
) -> Container:
    """Return the first (N,) components of an adapter, in the chunks of some prefixes."""
    coding = _coding_of(source)
    each = tuple(o[:r] for o, r in zip(coding.component_offsets, ranks, strict=True))
    own = replace(coding, prefix_ranks=prefixes, component_offsets=each)
    cut = source.tensors.truncated(np.array(ranks, dtype=np.int64))
    return pack_as_trained(replace(source, tensors=cut), own)


def _coding_of(source: Source) -> Coding:
    if source.coding is None or not source.coding.component_offsets:
        raise CodecError(
            "This adapter was not trained for prefixes: train it with codec.target_bytes and "
            "codec.prefix_bytes."
        )
    return source.coding


def _ranks_of_levels(coding: Coding, source: Source) -> IntArray:
    """Return (N, K + 1) components at each level."""
    prefixes = np.array(coding.prefix_ranks, dtype=np.int64).T
    most = source.tensors.ranks[:, None]
    found = []
    for own in np.minimum(prefixes, most):
        growing = [0, *(int(r) for r in np.unique(own) if r > 0)]
        found.append(growing + growing[-1:] * (prefixes.shape[1] + 1 - len(growing)))
    return np.array(found, dtype=np.int64)


def _exponents(coding: Coding, ranks: IntArray) -> IntArray:
    """Return (N, K + 1) step exponents of the components that each level adds."""
    found = np.full(ranks.shape, coding.exponent, dtype=np.int64)
    for n, offsets in enumerate(coding.component_offsets):
        for k, rank in enumerate(ranks[n]):
            if rank:
                found[n, k] += offsets[rank - 1]
    return found


def _energy(source: Source, ranks: IntArray) -> FloatArray:
    """Return (N, K + 1) squared norms of the components of each level."""
    norms = [
        (np.square(f.left).sum(axis=0) * np.square(f.right).sum(axis=1)).cumsum()
        for f in source.tensors.factors
    ]
    sums = [np.concatenate([[0.0], own]) for own in norms]
    return np.array([own[r] for own, r in zip(sums, ranks, strict=True)], dtype=np.float64)


def _bits(source: Source, ranks: IntArray) -> float:
    return float(file_of_ranks(source, ranks).n_bits)
