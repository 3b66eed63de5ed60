"""Slot by slot: a broadcast to some devices, unicast to the others, and chunks at their own rates.

Fading is Rayleigh, constant in a slot and independent from slot to slot and from device to device.

Shapes: `C` cells, `D` devices of a cell, the best first; `T` slots; `K` chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankcast.band.broadcast import Audience, BroadcastPlan
from rankcast.band.cell import Cell
from rankcast.band.delivery import fill_by_priority
from rankcast.band.ladder import Ladder
from rankcast.records import FloatArray, IntArray

_SMALLEST_GAIN = 1e-12
_WHOLE_BITS = 1e-6


@dataclass(frozen=True, eq=False)
class Transmission:
    """How the file goes to the devices of each cell.

    Attributes:
        heard: (C,) so many of the best devices listen to a broadcast; the others have unicast.
        sent_bps: (C,) rate of the broadcast [bit/s]; any where nobody listens.
        useful_bps: (C,) what it brings, without what the erasure code adds [bit/s].
        unicast_share: (C,) of the airtime that unicast is to take.
    """

    heard: IntArray
    sent_bps: FloatArray
    useful_bps: FloatArray
    unicast_share: FloatArray


def seconds_to_everybody(
    cell: Cell,
    mean_snr_db: FloatArray,
    file_bits: float,
    how: Transmission,
    rng: np.random.Generator,
) -> FloatArray:
    """Return the (C,) airtime until every device has the whole file [s].

    A broadcast ends when the last of its listeners reports that it has enough. The other devices
    are served one by one: in each slot whose (time left) · (rate / mean rate)² is highest. As long
    as both are to do, unicast gets the slots in which one of its devices fades so well that these
    are its share of the airtime.

    Args:
        cell: the band; its own fading is not used.
        mean_snr_db: (C, D) [dB].
        file_bits: of the file.
        how: it is sent.
        rng: of the fading.
    """
    n_cells, n_devices = mean_snr_db.shape
    listens = np.arange(n_devices) < how.heard[:, None]
    mean_bps = cell.rate_bps(mean_snr_db)
    good_gain = _exceeded_by_any(n_devices - how.heard, how.unicast_share)
    left, airtime_s = np.full((n_cells, n_devices), float(file_bits)), np.zeros(n_cells)
    live = np.arange(n_cells)
    while live.size:
        gain = rng.standard_exponential((live.size, n_devices)) + _SMALLEST_GAIN
        rate_bps = cell.rate_bps(mean_snr_db[live] + 10.0 * np.log10(gain))
        waiting = left[live] > _WHOLE_BITS
        to_all, to_one = waiting & listens[live], waiting & ~listens[live]
        peak = np.where(to_one, gain, 0.0).max(axis=1)
        sends = to_all.any(axis=1) & (~to_one.any(axis=1) | (peak < good_gain[live]))
        decodes = to_all & sends[:, None] & (rate_bps >= how.sent_bps[live, None])
        bits = np.where(decodes, how.useful_bps[live, None] * cell.slot_s, 0.0)
        slot_bits = rate_bps * cell.slot_s
        wanted = np.where(to_one & ~sends[:, None], np.minimum(left[live] / slot_bits, 1.0), 0.0)
        index = left[live] * np.square(rate_bps) / mean_bps[live] ** 3
        shares = fill_by_priority(np.where(to_one, index, -1.0), wanted)
        left[live] = np.maximum(left[live] - bits - shares * slot_bits, 0.0)
        airtime_s[live] += cell.slot_s * np.where(sends, 1.0, shares.sum(axis=1))
        live = live[(left[live] > _WHOLE_BITS).any(axis=1)]
    return airtime_s


def _exceeded_by_any(n_devices: IntArray, probability: FloatArray) -> FloatArray:
    """Return the gain that the best of n Rayleigh gains exceeds with a probability."""
    all_below = np.clip(1.0 - probability, 0.0, 1.0)
    one_below = all_below ** (1.0 / np.maximum(n_devices, 1))
    with np.errstate(divide="ignore"):  # with probability 0: infinite
        return -np.log1p(-one_below)


def worth_of_broadcast(
    audience: Audience,
    plan: BroadcastPlan,
    ladder: Ladder,
    rates_bps: FloatArray,
    *,
    overhead: float,
    airtime_s: float,
) -> float:
    """Return the summed worth that a broadcast without any feedback delivers to one cell.

    Every slot is divided among the chunks as the plan divides the airtime, so that each chunk meets
    the fading of all slots; what the plan leaves of the airtime goes to its chunks in proportion.
    Each is sent at the rate that was chosen for the weakest of its receivers. A device has a chunk
    if it decodes enough of it, whether it counts among the receivers or not.

    Args:
        audience: that the plan was made for.
        plan: of broadcast alone.
        ladder: of the file.
        rates_bps: (T, D) that the fading allows [bit/s].
        overhead: see `rankcast.band.broadcast.audience_of`.
        airtime_s: of all slots, at least what the plan takes [s].
    """
    if not plan.receivers.any():
        return 0.0
    sent_bps = audience.sent_bps[np.maximum(plan.receivers - 1, 0)]
    chunk_s = plan.airtime_s * (airtime_s / plan.airtime_s.sum())
    decoded = (rates_bps[None] >= sent_bps[:, None, None]).mean(axis=1)  # (K, D)
    got_bits = decoded * (sent_bps * chunk_s)[:, None]
    enough = got_bits >= np.diff(ladder.prefix_bits)[:, None] * (1.0 + overhead) - _WHOLE_BITS
    sent = (plan.receivers > 0)[:, None]
    whole = np.logical_and.accumulate(enough & sent, axis=0).sum(axis=0)
    return float(ladder.worth[whole].sum())
