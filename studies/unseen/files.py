"""Files of an adapter at a size, each planned from something else that is known of it.

Weighted files lose as little as can be of Σ w·‖ΔW - ΔW'‖², where today's lose least of the sum
without weights. An adapter whose factors are all multiplied by w^¼ has the weighted error as its
plain error, and equal steps of it are reverse water-filling of the weighted one. So the planner of
today plans that adapter, and what it sends is coded with the true factors and the steps they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rankcast.allocation.knapsack import knapsack
from rankcast.allocation.level_problem import LevelProblem
from rankcast.codec.container import Container, pack_at_exponent
from rankcast.codec.levels import Levels, file_of
from rankcast.codec.packing import WIDEST_OFFSET, Source
from rankcast.codec.quantiser import PER_RADIX, RADIX, step_of
from rankcast.codec.target import pack_into
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.errors import InfeasibleSizeError
from rankcast.link.capacity import Awgn
from rankcast.records import AdapterLayout, FloatArray, LinkState

STEP_POWER = 0.5
"""How far steps follow the weights: 1 is optimal where steps are fine, 0 leaves them equal. At
coarse steps most numbers are zero whatever their step, as `offsets_of_sensitivity` has it."""
_TRIES = 8


def weighted_file(
    source: Source, log_weights: FloatArray, target_bytes: int, step_power: float = STEP_POWER
) -> Container:
    """Return the file of at most so many bytes that loses least of the weighted error.

    Args:
        source: the adapter, without tensors beside its projections.
        log_weights: (N,) natural logarithms of the weights; only their differences count.
        target_bytes: of the whole file.
        step_power: how far steps follow the weights.

    Raises:
        InfeasibleSizeError: no file that keeps anything is so small.
    """
    log_weights = np.asarray(log_weights) - np.mean(log_weights)
    wanted = PER_RADIX * log_weights / (4 * np.log(RADIX))
    shifts = np.clip(np.rint(wanted), -WIDEST_OFFSET, WIDEST_OFFSET).astype(int)
    offsets = -np.rint(step_power * shifts).astype(int)
    stretched = replace(
        source,
        tensors=_stretched(source.tensors, shifts.tolist()),
        offsets=tuple((offsets + shifts).tolist()),
    )
    room, n_bits = target_bytes, 0
    for _ in range(_TRIES):
        file = _true_file(source, pack_into(stretched, room), shifts, offsets)
        if file.n_bits <= 8 * target_bytes:
            return file
        n_bits = file.n_bits
        room -= max(n_bits // 8 - target_bytes, 1)
    raise InfeasibleSizeError(n_bits // 8, target_bytes, trainable=True)


def _stretched(tensors: AdapterTensors, shifts: Sequence[int]) -> AdapterTensors:
    """Return an adapter whose factors are multiplied by 3^(shift / 6), one for each projection."""
    factors = []
    for f, shift in zip(tensors.factors, shifts, strict=True):
        by = np.float64(RADIX) ** (shift / PER_RADIX)
        left, right = (np.asarray(x * by, np.float32) for x in (f.left, f.right))
        factors.append(Factors(left, right))
    return replace(tensors, factors=tuple(factors))


def _true_file(
    source: Source, planned: Container, shifts: Sequence[int], offsets: Sequence[int]
) -> Container:
    """Return the file of the true factors that says what one of stretched factors says.

    Projections to which the planner gave a finer step than their offset are found by their numbers.
    """
    plans, _ = planned.ranks()
    exponent = plans[-1].exponent
    tensors = _stretched(planned.tensors(), [-s for s in shifts])
    steps = []
    for f, offset in zip(tensors.factors, offsets, strict=True):
        step = float(step_of(exponent + int(offset)))
        numbers = np.concatenate([f.left.ravel(), f.right.ravel()]) / step
        finer = np.abs(numbers - np.rint(numbers)).max(initial=0.0) > 1e-2
        steps.append(int(offset) - int(finer))
    full = replace(tensors, projections=source.tensors.projections)
    return pack_at_exponent(replace(source, tensors=full, offsets=tuple(steps)), exponent, 1, 1)


def solved_file(source: Source, levels: Levels, losses: FloatArray, target_bytes: int) -> Container:
    """Return the file whose levels lose least by what was measured of each alone.

    Args:
        source: the adapter.
        levels: of it.
        losses: (N, K) at nothing and at each level but the finest, which loses nothing.
        target_bytes: of the whole file.

    Raises:
        InfeasibleSizeError: not even a file of nothing is so small.
    """
    losses = np.concatenate([np.asarray(losses), np.zeros((len(losses), 1))], axis=1)
    problem = LevelProblem.of(
        replace(levels, overhead_bits=0.0),
        AdapterLayout(source.tensors.projections, levels.n_levels),
        Awgn(),
        link_weight=0.0,
    )
    best, low, high, n_bits = None, 0.0, 8.0 * target_bytes, 0
    for attempt in range(_TRIES):
        room = high if attempt == 0 else (low + high) / 2
        link = LinkState(np.zeros(1), np.array([room]), np.ones(1))  # a bit a second at 0 dB
        plan = knapsack(losses[:, :1] - losses, problem, link)[0]
        file = file_of(source, levels, plan)
        if file.n_bits <= 8 * target_bytes:
            best, low = file, room
        else:
            high, n_bits = room, file.n_bits
        if low == high:
            break
    if best is None:
        raise InfeasibleSizeError(n_bits // 8, target_bytes, trainable=True)
    return best
