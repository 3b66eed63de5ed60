"""Which chunks an adapter is cut into: rank and precision chosen together.

One step for all components is reverse water-filling: whatever lies below the step vanishes, so the
ranks of a plan follow from its precision. A ladder goes from a coarse step to a fine one, three
times finer a rung (one digit), and within a rung from the strongest components of the adapter to
the weakest that are still seen. It costs nothing against coding the finest step at once, because a
digit says nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rankcast.codec.chunks import ChunkPlan
from rankcast.codec.quantise import EXPONENTS, PER_RADIX, exponent_near, step_of
from rankcast.codec.tensors import AdapterTensors
from rankcast.errors import CodecError, InfeasibleDeadlineError
from rankcast.records import FloatArray, IntArray

MODULE_OFFSET = -2 * PER_RADIX
"""Tensors beside the projections get steps nine times finer: they are few and matter much."""


COARSEST = 6.6
"""Steps of more root mean squares than this leave hardly a weight other than zero."""


def default_offsets(tensors: AdapterTensors) -> list[IntArray]:
    """Return the offsets of every block: none for components, `MODULE_OFFSET` for tensors."""
    components = [np.zeros(r, dtype=np.int64) for r in tensors.ranks]
    return components + [np.array([MODULE_OFFSET])] * len(tensors.modules)


def ladder_to(
    tensors: AdapterTensors,
    finest: int,
    n_rungs: int | None = None,
    n_parts: int = 3,
    importance: Sequence[FloatArray] | None = None,
) -> list[ChunkPlan]:
    """Return the chunks that lead to a step exponent, coarse to fine and strong to weak.

    Args:
        tensors: balanced, components in order of importance.
        finest: exponent of the last rung.
        n_rungs: precisions, each a digit finer than the one before; None begins at the step below
            which an adapter begins to say something (`COARSEST` root mean squares).
        n_parts: chunks of each rung, as far as there are components to share out.
        importance: (r,) for each projection, falling; None takes the norm of the components.

    Raises:
        CodecError: fewer than one rung or part.
    """
    if n_rungs is None:
        n_rungs = _useful_rungs(tensors, finest)
    if n_rungs < 1 or n_parts < 1:
        raise CodecError(f"A ladder has at least one rung and part, got {n_rungs} and {n_parts}.")
    weights = _norms(tensors) if importance is None else importance
    plans: list[ChunkPlan] = []
    for rung in range(n_rungs - 1, -1, -1):
        exponent = finest + PER_RADIX * rung
        seen = _seen(tensors, exponent)
        for counts in _parts(seen, weights, n_parts):
            plan = ChunkPlan(exponent, (*counts, *(1 for _ in tensors.modules)))
            if not plans or plans[-1] != plan:
                plans.append(plan)
    return plans


def finest_within(
    budget_bits: float, size_of: Callable[[int], int], low: int | None = None, high: int = 40
) -> int:
    """Return the lowest exponent, the finest step, whose adapter fits a budget.

    Args:
        budget_bits: bits that may be sent.
        size_of: bits that an exponent needs; falls as the exponent grows.
        low: lowest exponent to consider; None for 3^-8.
        high: highest one.

    Raises:
        InfeasibleDeadlineError: not even the coarsest step fits.
    """
    low = -8 * PER_RADIX if low is None else low
    smallest = size_of(high)
    if smallest > budget_bits:
        raise InfeasibleDeadlineError(smallest, budget_bits)
    while low < high:
        middle = (low + high) // 2
        if size_of(middle) <= budget_bits:
            high = middle
        else:
            low = middle + 1
    return high


def exponent_of_quality(tensors: AdapterTensors, quality: float) -> int:
    """Return the exponent whose step is `quality` times the weights' root mean square.

    Raises:
        CodecError: quality not positive, or an adapter of zeros.
    """
    total = sum(float(np.square(x).sum()) for f in tensors.factors for x in (f.left, f.right))
    count = sum(f.left.size + f.right.size for f in tensors.factors)
    if not (quality > 0 and total > 0 and np.isfinite(total)):
        raise CodecError(
            f"A relative step must be positive, of an adapter with finite weights other than zero; "
            f"got {quality}."
        )
    low, high = EXPONENTS
    return int(np.clip(exponent_near(quality * np.sqrt(total / count)), low, high))


def _useful_rungs(tensors: AdapterTensors, finest: int) -> int:
    """Return how many rungs lead from a step of at most `COARSEST` to the finest one."""
    coarsest = exponent_of_quality(tensors, COARSEST)
    return max((coarsest - finest) // PER_RADIX + 1, 1)


def _norms(tensors: AdapterTensors) -> list[FloatArray]:
    """Return ‖left column‖·‖right row‖ of each component."""
    return [
        np.linalg.norm(f.left.astype(np.float64), axis=0)
        * np.linalg.norm(f.right.astype(np.float64), axis=1)
        for f in tensors.factors
    ]


def _seen(tensors: AdapterTensors, exponent: int) -> list[int]:
    """Return how many components of each projection survive a step, up to the last one."""
    half = float(step_of(exponent)) / 2
    counts = []
    for f in tensors.factors:
        alive = (np.abs(f.left).max(axis=0, initial=0) >= half) & (
            np.abs(f.right).max(axis=1, initial=0) >= half
        )
        counts.append(int(np.max(np.nonzero(alive)[0], initial=-1)) + 1)
    return counts


def _parts(seen: list[int], weights: Sequence[FloatArray], n_parts: int) -> list[list[int]]:
    """Return growing counts that share the surviving components out by importance."""
    alive = np.sort(np.concatenate([w[:n] for n, w in zip(seen, weights, strict=True)]))[::-1]
    parts = []
    for part in range(1, n_parts):
        if not len(alive):
            break
        floor = alive[max(len(alive) * part // n_parts - 1, 0)]
        parts.append([int((w[:n] >= floor).sum()) for n, w in zip(seen, weights, strict=True)])
    return [*parts, seen]
