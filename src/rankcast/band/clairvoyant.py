"""An upper bound for every scheduler: the best that one could do who knew all arrivals and fading.

The linear program of one cell. With x the share of slot t that device d has, and z the bits of
segment j of the upper hull of its worth over bits:

    maximise    Σ_dj slope_dj·z_dj
    subject to  Σ_j z_dj ≤ Σ_t rate_dt·slot_s·x_dt   for every device
                Σ_d x_dt ≤ 1                          for every slot
                0 ≤ z_dj ≤ length_dj,  0 ≤ x_dt ≤ 1, and x_dt = 0 outside the window of d

Whatever a scheduler does is a feasible x, and its z, the bits that arrived, are worth no less on
the hull than in whole chunks. So the optimum is at least the worth that any scheduler reaches.

Shapes: `C` cells, `D` devices of a cell, `T` slots.
"""

from __future__ import annotations

import numpy as np

from rankcast.band.cell import Cell, Demands
from rankcast.band.ladder import upper_hull
from rankcast.errors import ConfigError
from rankcast.link.capacity import scipy
from rankcast.records import FloatArray, IntArray

_KBIT = 1e3
"""Bits are counted in thousands, so that the program's numbers are near 1."""


def clairvoyant_bound(cell: Cell, demands: Demands, rates_bps: FloatArray) -> FloatArray:
    """Return the (C,) most worth that any scheduler can deliver.

    Args:
        cell: the band.
        demands: of the devices.
        rates_bps: (T, C, D) of every slot [bit/s].

    Raises:
        ConfigError: SciPy is not installed, rates of another shape, or a program without a
            solution.
    """
    if rates_bps.shape != (cell.n_slots, *demands.shape):
        raise ConfigError(
            f"Rates must have the shape {(cell.n_slots, *demands.shape)}, got {rates_bps.shape}."
        )
    bits = rates_bps * cell.slot_s
    return np.array([_of_cell(demands, bits[:, c], c) for c in range(demands.shape[0])])


def _of_cell(demands: Demands, slot_bits: FloatArray, c: int) -> float:
    """Solve the program of cell c, whose devices can get (T, D) bits in a slot."""
    n_slots, n_devices = slot_bits.shape
    slots = np.arange(n_slots)[:, None]
    slot, device = np.nonzero((slots >= demands.arrival[c]) & (slots < demands.deadline[c]))
    owner, length, slope = _segments(demands, c)
    n, m = len(slot), len(owner)
    rows = np.concatenate([device, owner, n_devices + slot])
    columns = np.concatenate([np.arange(n), n + np.arange(m), np.arange(n)])
    values = np.concatenate([-slot_bits[slot, device] / _KBIT, np.ones(m), np.ones(n)])
    shape = (n_devices + n_slots, n + m)
    matrix = scipy("sparse").coo_matrix((values, (rows, columns)), shape=shape).tocsr()
    solved = scipy("optimize").linprog(
        np.concatenate([np.zeros(n), -slope]),
        A_ub=matrix,
        b_ub=np.concatenate([np.zeros(n_devices), np.ones(n_slots)]),
        bounds=np.column_stack([np.zeros(n + m), np.concatenate([np.ones(n), length])]),
        method="highs",
    )
    if solved.status != 0:
        raise ConfigError(f"The bound of cell {c} was not found: {solved.message}")
    return -float(solved.fun)


def _segments(demands: Demands, c: int) -> tuple[IntArray, FloatArray, FloatArray]:
    """Return device, length [kbit] and slope [1/kbit] of every segment of the hulls of a cell."""
    owner, length, slope = [], [], []
    for d in range(demands.shape[1]):
        bits, worth = upper_hull(demands.prefix_bits[c, d], demands.worth[c, d])
        owner += [d] * (len(bits) - 1)
        length += list(np.diff(bits) / _KBIT)
        slope += list(np.diff(worth) / (np.diff(bits) / _KBIT))
    return np.array(owner, dtype=np.int64), np.array(length), np.array(slope)
