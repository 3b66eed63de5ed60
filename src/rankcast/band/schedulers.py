"""Schedulers that look at one device at a time: proportional fair, earliest deadline, greedy.

None of them spends airtime on a chunk that could not arrive in time even if its device had all of
it, nor on bits beyond the last prefix that could.

Shapes: `C` cells, `D` devices of a cell, `K` chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankcast.band.delivery import Frame, fill_by_priority, wanted_share
from rankcast.records import FloatArray, IntArray


@dataclass(frozen=True)
class ProportionalFair:
    """Serves who has the highest rate now as a multiple of its throughput since it arrived.

    That maximises the sum of the logarithms of the throughputs (A. Jalali, R. Padovani and R.
    Pankaj, Data throughput of CDMA-HDR, VTC 2000).
    """

    name: str = "proportional fair"

    def shares(self, frame: Frame) -> FloatArray:
        """Return (C, D) shares; see `Scheduler`."""
        # Throughput as if a slot at the mean rate had come before: who has nothing yet comes before
        # who has, and is still served where its own fading is good.
        age_s = (np.maximum(frame.slot - frame.demands.arrival, 0) + 1) * frame.slot_s
        mean_bps = frame.rate_quantiles_bps.mean(axis=-1)
        throughput_bps = (frame.received_bits + mean_bps * frame.slot_s) / age_s
        target = largest_reachable(frame)
        return fill_by_priority(frame.rate_bps / throughput_bps, wanted_share(frame, target))


@dataclass(frozen=True)
class EarliestDeadlineFirst:
    """Serves who has the least time left (C. L. Liu and J. W. Layland, J. ACM 20(1), 1973)."""

    name: str = "earliest deadline first"

    def shares(self, frame: Frame) -> FloatArray:
        """Return (C, D) shares; see `Scheduler`."""
        target = largest_reachable(frame)
        return fill_by_priority(-frame.slots_left.astype(float), wanted_share(frame, target))


@dataclass(frozen=True)
class GreedyGain:
    """Serves who gains most per second at the rate of this slot, over all prefixes in reach."""

    name: str = "greedy by gain per second"

    def shares(self, frame: Frame) -> FloatArray:
        """Return (C, D) shares; see `Scheduler`."""
        target, gain_per_bit = steepest(frame)
        return fill_by_priority(gain_per_bit * frame.rate_bps, wanted_share(frame, target))


def largest_reachable(frame: Frame) -> IntArray:
    """Return the (C, D) longest prefix in reach that adds worth; 0 where there is none.

    Of prefixes that are worth the same the shortest counts.
    """
    gain = np.where(frame.reachable, frame.gain_of, 0.0)
    return gain.argmax(axis=-1)


def steepest(frame: Frame) -> tuple[IntArray, FloatArray]:
    """Return the (C, D) prefix in reach with the most gain per missing bit, and that ratio."""
    bits = np.maximum(frame.bits_to, 1e-12)
    ratio = np.where(frame.reachable, frame.gain_of / bits, 0.0)
    return ratio.argmax(axis=-1), ratio.max(axis=-1)
