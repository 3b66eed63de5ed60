"""How an adapter is packed: the steps of its weights, and the chunks that it is cut into.

One step for all components is reverse water-filling: whatever lies below the step vanishes, so the
ranks of a prefix follow from its precision. The chunks go from a coarse step to a fine one, one
ternary digit at a time, and within a step from the strongest components of the adapter to the
weakest that survive it. This costs nothing against coding the finest step at once, because no
weight is sent twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from rankcast.codec.blocks import LARGEST_OFFSET
from rankcast.codec.chunks import ChunkPlan
from rankcast.codec.header import BaseModel
from rankcast.codec.quantiser import (
    EXPONENTS,
    LARGEST_INDEX,
    PER_RADIX,
    RADIX,
    exponent_near,
    step_of,
)
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.errors import CodecError
from rankcast.records import FloatArray, IntArray

Quality = Literal["fine", "good", "small"]
RELATIVE_STEPS: Mapping[Quality, float] = {"fine": 0.5, "good": 1.0, "small": 2.0}
"""Step of the last chunk as a multiple of the weights' root mean square."""
MODULE_OFFSET = -2 * PER_RADIX
"""Tensors beside the projections get steps nine times finer: they are few and matter much."""
OF_A_BIAS, OF_A_HEAD = 1 / 3, 1 / 6
"""Nor are they coarser than these multiples of their own spread: of vectors, of matrices."""
OF_A_VECTOR, OF_A_MATRIX = 1 / 256, 1 / 32
"""Steps of the adapter's own tensors as multiples of their spread: vectors are few numbers with a
large effect."""
_LARGEST_STEPS = LARGEST_INDEX / 4
"""Of a tensor's largest number: float32 has hardly more."""
_TENSOR_EXPONENTS = (EXPONENTS[0] + 40, EXPONENTS[1] - 40)
WIDEST_OFFSET = 2 * PER_RADIX
"""Steps of projections are at most nine times finer or coarser than the common one."""
COARSEST = 6.6
"""Steps of more root mean squares than this leave hardly a weight other than zero."""


@dataclass(frozen=True)
class Coding:
    """The steps to which an adapter was trained to be rounded.

    Attributes:
        exponent: of the common step.
        offsets: (N,) added to it for each projection; empty for nothing.
        tensor_offsets: added to it for tensors beside the projections, by name; those that are not
            named get steps that suit their size.
        prefix_ranks: (N,) components with which each prefix was trained, coarse to fine; empty if
            it was trained as a whole, for chunks as they suit.
        component_offsets: (N,) of the components of each projection, where they differ; empty where
            they are all `offsets`.
    """

    exponent: int
    offsets: tuple[int, ...] = ()
    tensor_offsets: Mapping[str, int] = field(default_factory=dict)
    prefix_ranks: tuple[tuple[int, ...], ...] = ()
    component_offsets: tuple[tuple[int, ...], ...] = ()


def coding_of(
    *,
    exponent: Any,
    offsets: Any,
    tensor_offsets: Any = None,
    prefix_ranks: Any = (),
    component_offsets: Any = (),
) -> Coding:
    """Return a coding of its fields as they are read; earlier versions wrote the first two."""
    of_tensors = {str(name): int(offset) for name, offset in (tensor_offsets or {}).items()}
    ranks, each = (
        tuple(tuple(map(int, row)) for row in rows) for rows in (prefix_ranks, component_offsets)
    )
    return Coding(int(exponent), tuple(map(int, offsets)), of_tensors, ranks, each)


@dataclass(frozen=True, eq=False)
class Source:
    """An adapter that can be packed.

    Attributes:
        tensors: its weights.
        base: the model that it adapts, as far as the folder says.
        task: what exporters need to know: `task_type`.
        offsets: what is added to the step exponent of each projection; empty for nothing. See
            `offsets_of_sensitivity`.
        exponent: of the step to which it was trained to be rounded; None if it was not.
        gains: (N, R) loss that each component removes, as learned in training; None if unknown.
        tensor_offsets: as `offsets`, of tensors by name; see `Coding`.
        coding: the steps to which it was trained to be rounded; None if it was not.
    """

    tensors: AdapterTensors
    base: BaseModel
    task: Mapping[str, Any]
    offsets: tuple[int, ...] = ()
    exponent: int | None = None
    gains: FloatArray | None = None
    tensor_offsets: Mapping[str, int] = field(default_factory=dict)
    coding: Coding | None = None

    def at(self, coding: Coding | None) -> Source:
        """Return the same adapter, trained to be rounded to some steps; as it is for None."""
        if coding is None:
            return self
        return replace(
            self,
            offsets=coding.offsets,
            exponent=coding.exponent,
            tensor_offsets=coding.tensor_offsets,
            coding=coding,
        )

    def scaled(self, gain: float) -> Source:
        """Return an adapter whose updates are `gain` times as large, at the same offsets."""
        return replace(self, tensors=self.tensors.scaled(gain))


def offsets_of_sensitivity(sensitivity: FloatArray, power: float = 0.5) -> tuple[int, ...]:
    """Return step offsets of projections whose weights matter more or less than others'.

    Where the loss rises by F·Δ² / 24 for each weight (F its curvature) and every step costs the
    same bits, the best steps are as F^(-1/2), power 1. At a step of several root mean squares most
    weights are rounded to zero whatever their step, and half of that is better.

    Args:
        sensitivity: (N,) curvature of the loss along a weight, such as the mean of squared
            gradients, in any unit; zero where it is not known.
        power: 0 for equal steps.

    Raises:
        CodecError: negative or not finite.
    """
    values = np.asarray(sensitivity, dtype=np.float64)
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise CodecError("The sensitivity of a projection must be at least 0 and finite.")
    known = values[values > 0]
    if not known.size:
        return (0,) * len(values)
    relative = np.where(values > 0, values, 1.0) / np.exp(np.log(known).mean())
    exponents = -0.5 * power * PER_RADIX * np.log(relative) / np.log(RADIX)
    limited = np.clip(np.rint(np.where(values > 0, exponents, 0.0)), -WIDEST_OFFSET, WIDEST_OFFSET)
    return tuple(limited.astype(int).tolist())


def exponent_of_quality(tensors: AdapterTensors, quality: float) -> int:
    """Return the exponent whose step is `quality` times the weights' root mean square.

    The weights are those of the factors. Without any, the exponent says nothing by itself: steps
    of tensors follow from it and from their own size (`block_offsets`).

    Raises:
        CodecError: quality not positive, or a low-rank adapter of zeros.
    """
    total = sum(square for sizes in tensors.component_sizes for square in sizes.squares)
    count = sum(sizes.count for sizes in tensors.component_sizes)
    wanted = _wanted_exponents(tensors)
    something = total > 0 or wanted or tensors.is_general or _beside(tensors)
    if not (quality > 0 and np.isfinite(total) and something):
        raise CodecError(
            f"A relative step must be positive, of an adapter with finite weights other than zero; "
            f"got {quality}."
        )
    low, high = EXPONENTS
    if total > 0:
        return int(np.clip(exponent_near(quality * np.sqrt(total / count)), low, high))
    middle = (min(wanted.values(), default=0) + max(wanted.values(), default=0)) // 2
    return int(np.clip(middle + exponent_near(quality), low, high))


def _wanted_exponents(tensors: AdapterTensors) -> dict[str, int]:
    """Return the step exponent that suits each tensor at the quality `good`, zeros left out.

    Raises:
        CodecError: NaN or infinite numbers.
    """
    wanted = {}
    for name, sizes in tensors.module_sizes.items():
        if not np.isfinite(sizes.spread):
            raise CodecError(f"{name} holds NaN or infinite weights; its training has diverged.")
        spread, share = sizes.spread, OF_A_VECTOR if sizes.is_vector else OF_A_MATRIX
        if tensors.carriage[name] != "own":  # these have no centre
            spread = spread or abs(sizes.centre)
            share = OF_A_BIAS if sizes.is_vector else OF_A_HEAD
        if spread > 0:
            wanted[name] = int(np.clip(exponent_near(share * spread), *_TENSOR_EXPONENTS))
    return wanted


def _beside(tensors: AdapterTensors) -> bool:
    """Whether an adapter has whole numbers, or tensors of its own of one number again and again."""
    centres = any(sizes.centre for sizes in tensors.module_sizes.values())
    return centres or len(tensors.module_sizes) < len(tensors.modules)


def block_offsets(
    tensors: AdapterTensors,
    offsets: Sequence[int] = (),
    finest: int | None = None,
    tensor_offsets: Mapping[str, int] | None = None,
) -> list[IntArray]:
    """Return the offsets of every block: those of its projection, or what suits a tensor.

    Args:
        tensors: what is coded.
        offsets: one for each projection; empty for none.
        finest: exponent of the last chunk, to keep indices within what can be coded; None if it is
            known to be coarse.
        tensor_offsets: those of tensors by name, where they are known.

    Raises:
        CodecError: offsets of another number of projections, or NaN or infinite numbers.
    """
    known = tensor_offsets or {}
    each = _each_projection(tensors, offsets)
    found = [np.full(r, o, dtype=np.int64) for r, o in zip(tensors.ranks, each, strict=True)]
    wanted = _wanted_exponents(tensors)
    common = exponent_of_quality(tensors, 1.0) if wanted else 0
    for name in tensors.shapes:
        carriage = tensors.carriage[name]
        offset = 0 if carriage == "own" else MODULE_OFFSET
        if name in known:
            offset = known[name]
        elif name in wanted:
            offset = min(offset or LARGEST_OFFSET, wanted[name] - common)
        if name in wanted and finest is not None:
            sizes = tensors.module_sizes[name]
            largest = sizes.peak + (0.0 if carriage == "own" else abs(sizes.centre))
            offset = max(offset, exponent_near(largest / _LARGEST_STEPS) - finest)
        found.append(np.array([int(np.clip(offset, -LARGEST_OFFSET, LARGEST_OFFSET))]))
    return found


def chunk_plans(
    tensors: AdapterTensors,
    finest: int,
    n_steps: int | None = None,
    n_parts: int = 3,
    *,
    offsets: Sequence[int] = (),
) -> list[ChunkPlan]:
    """Return the chunks that lead to a step exponent, coarse to fine and strong to weak.

    Args:
        tensors: balanced, components in order of importance.
        finest: exponent of the last chunk.
        n_steps: precisions, each a digit finer than the one before; None begins at the coarsest
            step that leaves weights other than zero (`COARSEST` root mean squares).
        n_parts: chunks of each precision, as far as there are components to share out.
        offsets: what is added to the exponent of each projection; empty for nothing.

    Raises:
        CodecError: fewer than one step or part, or offsets of another number of projections.
    """
    if n_steps is None:
        n_steps = _useful_steps(tensors, finest)
    if n_steps < 1 or n_parts < 1:
        raise CodecError(
            f"An adapter is cut into at least one step and part, got {n_steps} and {n_parts}."
        )
    weights = [sizes.norms for sizes in tensors.component_sizes]
    each = _each_projection(tensors, offsets)
    plans: list[ChunkPlan] = []
    for digits in range(n_steps - 1, -1, -1):
        exponent = finest + PER_RADIX * digits
        alive = surviving(tensors, exponent + each)
        for counts in _parts(alive, weights, n_parts):
            plan = ChunkPlan(exponent, (*counts, *(1 for _ in tensors.modules)))
            if not plans or plans[-1] != plan:
                plans.append(plan)
    return plans


def without_zeros(tensors: AdapterTensors, coding: Coding) -> tuple[AdapterTensors, Coding]:
    """Return an adapter without components of zeros, and its steps.

    Where components have no steps of their own, only last ones are left out.
    """
    kept = [sizes.peaks > 0 for sizes in tensors.component_sizes]
    if not coding.component_offsets:
        kept = [np.arange(len(own)) <= np.max(np.nonzero(own)[0], initial=-1) for own in kept]
    prefixes = tuple(
        tuple(int(own[:r].sum()) for own, r in zip(kept, prefix, strict=True))
        for prefix in coding.prefix_ranks
    )
    each = tuple(
        tuple(o for o, k in zip(offsets, own.tolist(), strict=False) if k)
        for offsets, own in zip(coding.component_offsets, kept, strict=False)
    )
    factors = tuple(
        Factors(f.left[:, own], f.right[own]) for f, own in zip(tensors.factors, kept, strict=True)
    )
    cut = replace(tensors, factors=factors)
    return cut, replace(coding, prefix_ranks=prefixes, component_offsets=each)


def prefix_plans(tensors: AdapterTensors, coding: Coding) -> list[ChunkPlan]:
    """Return the chunks whose prefixes were trained; those that bring nothing are left out."""
    plans: list[ChunkPlan] = []
    beside = tuple(1 for _ in tensors.modules)
    for ranks in coding.prefix_ranks:
        plan = ChunkPlan(coding.exponent, (*ranks, *beside))
        if not plans or plans[-1] != plan:
            plans.append(plan)
    return plans


def trained_offsets(tensors: AdapterTensors, coding: Coding) -> list[IntArray]:
    """Return the offsets of every block, as it was trained."""
    found = block_offsets(tensors, coding.offsets, coding.exponent, coding.tensor_offsets)
    for i, offsets in enumerate(coding.component_offsets):
        found[i] = np.clip(np.array(offsets, np.int64), -LARGEST_OFFSET, LARGEST_OFFSET)
    return found


def _useful_steps(tensors: AdapterTensors, finest: int) -> int:
    """Return how many precisions lead from a step of at most `COARSEST` to the finest one."""
    coarsest = COARSEST
    if not tensors.ranks.any():
        if not tensors.module_sizes:
            return 1
        coarsest /= RADIX * OF_A_MATRIX  # a digit finer: a tensor must not vanish as a whole
    return max((exponent_of_quality(tensors, coarsest) - finest) // PER_RADIX + 1, 1)


def _each_projection(tensors: AdapterTensors, offsets: Sequence[int]) -> IntArray:
    """Return (N,) offsets."""
    n = len(tensors.projections)
    if len(offsets) not in (0, n):
        raise CodecError(f"There are {len(offsets)} step offsets for {n} projections.")
    return np.array(offsets if len(offsets) else [0] * n, dtype=np.int64)


def surviving(tensors: AdapterTensors, exponents: IntArray) -> list[int]:
    """Return how many components of each projection survive its step, up to the last one."""
    counts = []
    for sizes, exponent in zip(tensors.component_sizes, exponents.tolist(), strict=True):
        (alive,) = np.nonzero(sizes.peaks >= float(step_of(exponent)) / 2)
        counts.append(int(np.max(alive, initial=-1)) + 1)
    return counts


def _parts(counts: list[int], weights: Sequence[FloatArray], n_parts: int) -> list[list[int]]:
    """Return growing counts that share the surviving components out by importance."""
    surviving = [w[:n] for n, w in zip(counts, weights, strict=True)]
    strongest_first = np.sort(np.concatenate([np.zeros(0), *surviving]))[::-1]
    parts = []
    for part in range(1, n_parts):
        if not len(strongest_first):
            break
        floor = strongest_first[max(len(strongest_first) * part // n_parts - 1, 0)]
        parts.append([int((w >= floor).sum()) for w in surviving])
    return [*parts, counts]
