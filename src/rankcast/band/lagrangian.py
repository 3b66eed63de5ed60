"""A scheduler by Lagrangian relaxation: a price of airtime, and each device solved by itself.

Devices of a cell are coupled by airtime alone. Given its price they do not depend on one another:
each wants the prefix whose gain exceeds the price of its airtime by the most. As the price falls,
the answer moves along the upper hull of the device's gain over airtime. So the steps of all hulls,
in order of gain per second, are the solutions for every price. The sweep takes each step that still
fits before every deadline that it touches; the price is that of the first that does not.

Airtime before a deadline is nested: devices due by then must fit into it together. Steps without
gaps would make the sweep exact (a polymatroid). Whole chunks make it a heuristic.

Shapes: `C` cells, `D` devices of a cell, `K` chunks, `S` steps of a cell in order of gain.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rankcast.band.delivery import BoolArray, Frame, fill_by_priority, wanted_share
from rankcast.band.schedulers import steepest
from rankcast.records import FloatArray, IntArray

_MOST_STEPS = 8
"""Steps of a device that one plan looks ahead; the next slot plans again."""
_FIRST = 1e6
"""Added to the priority of devices whose plan has room, above any gain per second."""


@dataclass(frozen=True, eq=False)
class Steps:
    """The hull of each device's gain over airtime, as steps; see `hull_steps`.

    Attributes:
        gain_per_s: (C, D, J) falling along J; 0 where a hull has no more steps [1/s].
        airtime_s: (C, D, J) airtime of the step [s].
        prefix: (C, D, J) where the step ends.
    """

    gain_per_s: FloatArray
    airtime_s: FloatArray
    prefix: IntArray


@dataclass(frozen=True, eq=False)
class AirtimePlan:
    """What each device of a cell is to receive, if nobody else arrives.

    Attributes:
        target: (C, D) prefixes; 0 where a device is to receive nothing.
        price: (C,) of airtime: the highest gain per second that has no room [1/s]; 0 where all has.
    """

    target: IntArray
    price: FloatArray

    @cached_property
    def planned(self) -> BoolArray:
        """(C, D) who is to receive something."""
        return self.target > 0


@dataclass(frozen=True)
class Lagrangian:
    """Plans all airtime up to the last deadline anew in each slot, and serves who is in the plan.

    Among those it serves the highest (rate / mean rate)² / time left: a device that can wait is
    served where its own fading is good, one that cannot wait soon. On cells that no reported result
    rests on, the exponent 2 did better than 1, and 3 about as well.

    Attributes:
        reserve: airtime of a step as a multiple of bits over mean rate. More than 1 keeps room for
            who will arrive; less counts on serving each device where its fading is good.
    """

    reserve: float = 1.0
    name: str = "Lagrangian"

    def shares(self, frame: Frame) -> FloatArray:
        """Return (C, D) shares; see `Scheduler`."""
        plan = airtime_plan(frame, self.reserve)
        spare, gain_per_bit = steepest(frame)
        mean_bps = frame.rate_quantiles_bps.mean(axis=-1)
        index = np.square(frame.rate_bps / mean_bps) / np.maximum(frame.slots_left, 1)
        priority = np.where(plan.planned, _FIRST + index, gain_per_bit * frame.rate_bps)
        target = np.where(plan.planned, plan.target, spare)
        return fill_by_priority(priority, wanted_share(frame, target))


def airtime_plan(frame: Frame, reserve: float = 1.0) -> AirtimePlan:
    """Plan the airtime from this slot to the last deadline of those that are active.

    Args:
        frame: this slot.
        reserve: see `Lagrangian`.
    """
    mean_bps = frame.rate_quantiles_bps.mean(axis=-1)
    airtime_s = reserve * frame.bits_to / mean_bps[..., None]
    steps = hull_steps(airtime_s, np.where(frame.reachable, frame.gain_of, 0.0))
    left_s = np.where(frame.active, frame.slots_left * frame.slot_s, np.inf)
    return sweep(steps, left_s)


def hull_steps(airtime_s: FloatArray, gain: FloatArray) -> Steps:
    """Return the steps along the upper hull of gain over airtime, from nothing.

    Args:
        airtime_s: (C, D, K + 1) that each prefix takes [s].
        gain: (C, D, K + 1) of each prefix; 0 where it is out of reach.
    """
    at = np.zeros((*gain.shape[:2], 1), dtype=np.int64)
    spent_s, gained = np.zeros(at.shape), np.zeros(at.shape)
    rows: list[tuple[FloatArray, FloatArray, IntArray]] = []
    for _ in range(min(gain.shape[-1] - 1, _MOST_STEPS)):
        more = np.maximum(gain - gained, 0.0)
        slope = more / np.maximum(airtime_s - spent_s, 1e-9)
        best = slope.argmax(axis=-1)[..., None]
        steepest_now = np.take_along_axis(slope, best, axis=-1)
        at = np.where(steepest_now > 0, best, at)
        next_s = np.where(steepest_now > 0, np.take_along_axis(airtime_s, at, axis=-1), spent_s)
        rows.append((steepest_now, next_s - spent_s, at))
        gained = np.where(steepest_now > 0, np.take_along_axis(gain, at, axis=-1), gained)
        spent_s = next_s
    slopes, airtimes, ends = (np.concatenate(x, axis=-1) for x in zip(*rows, strict=True))
    return Steps(slopes, airtimes, ends)


def sweep(steps: Steps, left_s: FloatArray, free_s: FloatArray | None = None) -> AirtimePlan:
    """Take steps in order of gain per second, as long as they fit before every deadline.

    A device whose step does not fit gets none of its later ones.

    Args:
        steps: of each device.
        left_s: (C, D) time until each deadline [s]; infinite for devices without steps.
        free_s: (C, D) airtime until then that nobody has yet [s]; all of it if left out.
    """
    n_cells, n_devices, _ = steps.gain_per_s.shape
    slope, airtime_s, prefix = (
        x.transpose(0, 2, 1).reshape(n_cells, -1)  # step j of all devices before step j + 1 of any
        for x in (steps.gain_per_s, steps.airtime_s, steps.prefix)
    )
    order = np.argsort(-slope, axis=1, kind="stable")
    longest = int((slope > 0).sum(axis=1).max(initial=0))
    room_s, cells = (left_s if free_s is None else free_s).copy(), np.arange(n_cells)
    target = np.zeros(left_s.shape, dtype=np.int64)
    closed, price = np.zeros(left_s.shape, dtype=bool), np.zeros(n_cells)
    for place in range(longest):
        at = order[:, place]
        device = at % n_devices
        exists = (slope[cells, at] > 0) & ~closed[cells, device]
        due = left_s >= left_s[cells, device][:, None]  # deadlines that the step counts against
        fits = np.where(due, room_s, np.inf).min(axis=1) >= airtime_s[cells, at] - 1e-9
        taken, refused = exists & fits, exists & ~fits
        room_s = room_s - np.where(due & taken[:, None], airtime_s[cells, at][:, None], 0.0)
        target[cells[taken], device[taken]] = prefix[cells, at][taken]
        closed[cells[refused], device[refused]] = True
        price = np.where(refused, np.maximum(price, slope[cells, at]), price)
    return AirtimePlan(target, price)
