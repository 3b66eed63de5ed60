"""An upper bound for every scheduler: the best that one could do who knew all arrivals and fading.

The linear program of one cell. With x the share of slot t that device d has, and z the bits of
segment j of the upper hull of its worth over bits:

    maximise    Σ_dj slope_dj·z_dj
    subject to  Σ_j z_dj ≤ Σ_t rate_dt·slot_s·x_dt   for every device
                Σ_d x_dt ≤ 1                          for every slot
                0 ≤ z_dj ≤ length_dj,  0 ≤ x_dt ≤ 1, and x_dt = 0 outside the window of d

Whatever a scheduler does is a feasible x, and its z, the bits that arrived, are worth no less on
the hull than in whole chunks. So the optimum is at least the worth that any scheduler reaches.

Its dual says what foresight would pay for another bit of a device and for a slot:
`shadow_prices`.

Shapes: `C` cells, `D` devices of a cell, `T` slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rankcast.band.cell import Cell, Demands
from rankcast.band.delivery import Frame
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
    return np.array([-float(_of_cell(demands, bits[:, c], c).fun) for c in range(len(bits[0]))])


@dataclass(frozen=True, eq=False)
class ShadowPrices:
    """What foresight would pay in C cells, from some slot on.

    Attributes:
        bit: (C, D) worth of another bit for each device [1/bit].
        bid: (T, C, D) worth that each device gets out of a whole slot; 0 outside its window.
    """

    bit: FloatArray
    bid: FloatArray

    @property
    def slot(self) -> FloatArray:
        """(T, C) price of a whole slot: the highest bid."""
        return self.bid.max(axis=2)


def shadow_prices(frame: Frame, rates_bps: FloatArray) -> ShadowPrices:
    """Return the dual of the program for what is still missing, from the slot of a frame on.

    Args:
        frame: the state of the cells.
        rates_bps: (T, C, D) of that slot and all later ones [bit/s].

    Raises:
        ConfigError: SciPy is not installed, or a program without a solution.
    """
    demands, bits = _still_missing(frame), rates_bps * frame.slot_s
    bit = np.zeros(demands.shape)
    for c in range(len(bit)):
        if demands.worth[c].any():
            solved = _of_cell(demands, bits[:, c], c)
            bit[c] = -solved.ineqlin.marginals[: bit.shape[1]] / _KBIT
    slots = np.arange(len(bits))[:, None, None]
    there = (slots >= demands.arrival) & (slots < demands.deadline)
    return ShadowPrices(bit, np.where(there, bit * bits, 0.0))


def _still_missing(frame: Frame) -> Demands:
    """Return what devices want from a slot on, counted from it; nothing once their time is over."""
    demands, over = frame.demands, frame.slots_left == 0
    arrival = np.where(over, 0, np.maximum(demands.arrival - frame.slot, 0))
    deadline = np.where(over, 1, demands.deadline - frame.slot)
    gain = np.where(over[..., None], 0.0, frame.gain_of)
    return Demands(frame.bits_to, gain, arrival, deadline, demands.mean_snr_db)


def _of_cell(demands: Demands, slot_bits: FloatArray, c: int) -> Any:
    """Solve the program of cell c, whose devices can get (T, D) bits in a slot, with SciPy."""
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
    return solved


def _segments(demands: Demands, c: int) -> tuple[IntArray, FloatArray, FloatArray]:
    """Return device, length [kbit] and slope [1/kbit] of every segment of the hulls of a cell."""
    owner, length, slope = [], [], []
    for d in range(demands.shape[1]):
        bits, worth = upper_hull(demands.prefix_bits[c, d], demands.worth[c, d])
        owner += [d] * (len(bits) - 1)
        length += list(np.diff(bits) / _KBIT)
        slope += list(np.diff(worth) / (np.diff(bits) / _KBIT))
    return np.array(owner, dtype=np.int64), np.array(length), np.array(slope)
