"""What a device sees of itself and of its cell, what it bids without a policy, and who is served.

A bid is the logarithm of an index, in decades. The index that it starts from is the Lagrangian's,
(rate / mean rate)² / time left with a bonus for a place in the plan, and some terms more: what is
worth much in a second, takes much of the time left, or has begun should go on. Their weights were
tuned by cross-entropy search on cells that no reported result rests on.

Shapes: `C` cells, `D` devices of a cell, `F` features, `B` devices that are active.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankcast.band.delivery import Frame, fill_by_priority, wanted_share
from rankcast.band.lagrangian import airtime_plan
from rankcast.band.schedulers import largest_reachable, steepest
from rankcast.records import FloatArray, IntArray

SIGHT = (
    "log10 rate over mean rate",
    "log10 left_s",
    "log10 gain per second of the target",
    "target is in the plan",
    "log10 gain per second over the price",
    "log10 airtime_s of the target",
    "airtime of the target over time left",
    "share of the file received",
    "gain of all in reach",
    "airtime of all in reach over time left",
    "log10 gain per second of the next step",
    "share of devices active",
    "share of devices still to come",
    "log10 price per second",
)
"""What a device sees. The last three are of its cell, the same for all."""
WEIGHTS = np.array([2.2, -1.0, 0.45, 2.4, 0.0, 0.2, 0.7, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
"""Of each number in the index [decades]."""
_SMALLEST, _MOST = 1e-3, 4.0


@dataclass(frozen=True, eq=False)
class Sight:
    """What the devices of C cells see, and where their bids start.

    Attributes:
        features: (C, D, F) `SIGHT`; 0 where a device is not active.
        target: (C, D) the prefix that each wants: the plan's, or the next step if it has none.
        index: (C, D) bid before a policy corrects it [decades].
    """

    features: FloatArray
    target: IntArray
    index: FloatArray


def look(frame: Frame) -> Sight:
    """Return what each device sees in a slot."""
    plan, (spare, per_bit) = airtime_plan(frame), steepest(frame)
    mean_bps = frame.rate_quantiles_bps.mean(axis=-1)
    target, all_of_it = np.where(plan.planned, plan.target, spare), largest_reachable(frame)
    left_s = np.maximum(frame.slots_left, 1) * frame.slot_s
    fading = _log10(frame.rate_bps / mean_bps)
    need_s, need_all_s = (_at(frame.bits_to, k) / mean_bps for k in (target, all_of_it))
    value = _log10(_at(frame.gain_of, target) / np.maximum(need_s, _SMALLEST))
    price = np.broadcast_to(_log10(plan.price)[:, None], value.shape)
    to_come = (frame.demands.arrival > frame.slot).mean(axis=1, keepdims=True)
    active = frame.active
    columns = (
        fading, _log10(left_s), value, plan.planned, value - price, _log10(need_s),
        need_s / left_s, frame.received_bits / frame.demands.file_bits,
        _at(frame.gain_of, all_of_it), need_all_s / left_s, _log10(per_bit * mean_bps),
        np.broadcast_to(active.mean(axis=1, keepdims=True), value.shape),
        np.broadcast_to(to_come, value.shape), price,
    )  # fmt: skip
    seen = np.clip(np.stack(columns, axis=-1), -_MOST, _MOST)
    seen = np.where(active[..., None], seen, 0.0)
    return Sight(seen, target, seen @ WEIGHTS)


@dataclass(frozen=True)
class TunedIndex:
    """Serves the highest index; what is learned starts from it. See `Scheduler`."""

    name: str = "tuned index"

    def shares(self, frame: Frame) -> FloatArray:
        """Return (C, D) shares; see `Scheduler`."""
        return serve(frame, look(frame), 0.0)


def serve(frame: Frame, sight: Sight, correction: FloatArray | float) -> FloatArray:
    """Return (C, D) shares: the highest bids first, each until its target has what it lacks.

    Args:
        frame: this slot.
        sight: of this slot.
        correction: (B,) of the devices that are active [decades].
    """
    bid = np.full(frame.active.shape, -np.inf)
    bid[frame.active] = sight.index[frame.active] + correction
    return fill_by_priority(bid, wanted_share(frame, sight.target))


def _at(values: FloatArray, prefix: IntArray) -> FloatArray:
    return np.take_along_axis(values, prefix[..., None], axis=-1)[..., 0]


def _log10(x: FloatArray) -> FloatArray:
    return np.log10(np.maximum(x, _SMALLEST))
