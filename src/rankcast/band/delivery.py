"""The slots of C cells, one after another: who has which share of the airtime, and what arrives.

Shapes: `C` cells, `D` devices of a cell, `K` chunks, `T` slots, `Q` quantiles of the fading.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np

from rankcast.band.cell import Cell, Demands
from rankcast.errors import ConfigError
from rankcast.records import FloatArray, IntArray

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
_WHOLE_BITS = 1e-6
"""So many bits may be missing from a prefix that counts as complete: rounding of sums."""


@dataclass(frozen=True, eq=False)
class Frame:
    """What the cell knows at the start of a slot. No rate of a later slot is in it.

    Attributes:
        slot: t.
        slot_s: time of a slot [s].
        demands: of the devices. A scheduler must not look at those that have not arrived.
        received_bits: (C, D) so far.
        rate_bps: (C, D) of this slot, with the whole band [bit/s].
        rate_quantiles_bps: (C, D, Q) of any slot, by the statistics of the fading, rising [bit/s].
    """

    slot: int
    slot_s: float
    demands: Demands
    received_bits: FloatArray
    rate_bps: FloatArray
    rate_quantiles_bps: FloatArray

    @cached_property
    def slots_left(self) -> IntArray:
        """(C, D) slots until the deadline, this one included; 0 when it is over."""
        return np.maximum(self.demands.deadline - self.slot, 0)

    @cached_property
    def active(self) -> BoolArray:
        """(C, D) who has arrived, has time left, and has not got the whole file."""
        arrived = (self.demands.arrival <= self.slot) & (self.slots_left > 0)
        return arrived & (self.received_bits < self.demands.file_bits - _WHOLE_BITS)

    @cached_property
    def worth_now(self) -> FloatArray:
        """(C, D) what the complete chunks received are worth."""
        return worth_of(self.demands, self.received_bits)

    @cached_property
    def bits_to(self) -> FloatArray:
        """(C, D, K + 1) bits still missing from each prefix; 0 where it is complete."""
        missing = self.demands.prefix_bits - self.received_bits[..., None]
        return np.where(missing > _WHOLE_BITS, missing, 0.0)

    @cached_property
    def gain_of(self) -> FloatArray:
        """(C, D, K + 1) what each prefix would add to what the device has; never negative."""
        return np.maximum(self.demands.worth - self.worth_now[..., None], 0.0)

    @cached_property
    def reachable(self) -> BoolArray:
        """(C, D, K + 1) prefixes that add worth and would arrive if the device had all airtime.

        Predicted from this slot's rate and the mean rate of those that follow.
        """
        mean_bps = self.rate_quantiles_bps.mean(axis=-1)
        later = np.maximum(self.slots_left - 1, 0) * mean_bps
        most_bits = self.slot_s * (self.rate_bps + later)
        useful = (self.gain_of > 0) & self.active[..., None]
        return useful & (self.bits_to <= most_bits[..., None])


@runtime_checkable
class Scheduler(Protocol):
    """Divides the airtime of each slot. It has no state: a frame says all that it needs."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    def shares(self, frame: Frame) -> FloatArray:
        """Return (C, D) shares of the airtime of this slot, at least 0, at most 1 in sum per cell.

        Devices that are not active get 0.
        """
        ...


@dataclass(frozen=True, eq=False)
class SlotOutcome:
    """What one slot brought.

    Attributes:
        gain: (C, D) worth of the chunks that became complete.
        airtime_s: (C, D) airtime used [s].
        over: whether it was the last slot.
    """

    gain: FloatArray
    airtime_s: FloatArray
    over: bool


class Delivery:
    """One episode of C cells.

    Args:
        cell: the band.
        demands: of the devices.
        rates_bps: (T, C, D) see `Cell.rates_of`.

    Raises:
        ConfigError: rates of another shape.
    """

    def __init__(self, cell: Cell, demands: Demands, rates_bps: FloatArray) -> None:
        if rates_bps.shape != (cell.n_slots, *demands.shape):
            raise ConfigError(
                f"Rates must have the shape (T, C, D) = {(cell.n_slots, *demands.shape)}, "
                f"got {rates_bps.shape}."
            )
        self.cell, self.demands, self.rates_bps = cell, demands, rates_bps
        snr_db = demands.mean_snr_db[..., None] + cell.fading_quantiles_db()
        self._quantiles_bps = cell.rate_bps(snr_db)
        self.slot = 0
        self.received_bits = np.zeros(demands.shape)

    def frame(self) -> Frame:
        """Return what is known at the start of this slot.

        Raises:
            ConfigError: the episode is over.
        """
        if self.slot >= self.cell.n_slots:
            raise ConfigError("The episode is over; make another Delivery.")
        return Frame(
            self.slot, self.cell.slot_s, self.demands, self.received_bits.copy(),
            self.rates_bps[self.slot], self._quantiles_bps,
        )  # fmt: skip

    def step(self, shares: FloatArray) -> SlotOutcome:
        """Give each device its share of this slot.

        Raises:
            ConfigError: negative shares, more than 1 in a cell, or for a device that is not active.
        """
        frame = self.frame()
        checked_shares(shares, frame)
        room = self.demands.file_bits - self.received_bits
        bits = np.minimum(
            shares * frame.rate_bps * self.cell.slot_s, np.where(frame.active, room, 0)
        )
        self.received_bits = self.received_bits + bits
        gain = worth_of(self.demands, self.received_bits) - frame.worth_now
        self.slot += 1
        return SlotOutcome(gain, shares * self.cell.slot_s, self.slot == self.cell.n_slots)

    def run(self, scheduler: Scheduler) -> FloatArray:
        """Return the (C, D) worth that arrived in time under a scheduler, from here to the end."""
        while self.slot < self.cell.n_slots:
            self.step(scheduler.shares(self.frame()))
        return worth_of(self.demands, self.received_bits)


def worth_of(demands: Demands, received_bits: FloatArray) -> FloatArray:
    """Return the (C, D) worth of what has arrived; a chunk counts when it is whole."""
    whole = demands.prefix_bits <= received_bits[..., None] + _WHOLE_BITS
    return np.where(whole, demands.worth, 0.0).max(axis=-1)


def checked_shares(shares: FloatArray, frame: Frame) -> None:
    """Refuse shares that no slot has.

    Raises:
        ConfigError: another shape, NaN, negative, more than 1 in a cell, or for inactive devices.
    """
    if shares.shape != frame.active.shape or not (shares >= 0).all():
        raise ConfigError(f"Shares are at least 0, one for each of {frame.active.shape} devices.")
    if (shares.sum(axis=1) > 1 + 1e-9).any():
        raise ConfigError(f"A slot has airtime 1, not {shares.sum(axis=1).max():.6g}.")
    if (shares[~frame.active] > 0).any():
        raise ConfigError("Airtime was given to a device that is not active.")


def fill_by_priority(priority: FloatArray, wanted: FloatArray) -> FloatArray:
    """Return (C, D) shares: the highest priority gets what it wants, the next what is left.

    Args:
        priority: (C, D) any numbers but NaN; among equals the first device comes first.
        wanted: (C, D) share of the slot that each can use, in [0, 1].
    """
    order = np.argsort(-priority, axis=1, kind="stable")
    sorted_wanted = np.take_along_axis(wanted, order, axis=1)
    before = np.cumsum(sorted_wanted, axis=1) - sorted_wanted
    given = np.clip(1.0 - before, 0.0, sorted_wanted)
    shares = np.empty_like(given)
    np.put_along_axis(shares, order, given, axis=1)
    return shares


def wanted_share(frame: Frame, target: IntArray) -> FloatArray:
    """Return the (C, D) share of this slot that brings each device to its target prefix, at most 1.

    Args:
        frame: this slot.
        target: (C, D) numbers of prefixes; 0 wants nothing.
    """
    bits = np.take_along_axis(frame.bits_to, target[..., None], axis=-1)[..., 0]
    slot_bits = np.maximum(frame.rate_bps * frame.slot_s, 1e-12)
    return np.where(frame.active & (target > 0), np.minimum(bits / slot_bits, 1.0), 0.0)
