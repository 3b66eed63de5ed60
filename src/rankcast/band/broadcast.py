"""One file for many devices: send a chunk once for all that can hear it, or to each by itself?

Unicast has feedback: the rate of each slot is what the device's fading allows, so that a device
gets its mean rate u = E[r]. A broadcast has none. It is sent at one rate R, a device loses the
slots in which its fading does not carry R, and an erasure code over the slots makes good for them
at the price of an overhead δ. So a device gets

    g = max over R of R·P(r ≥ R) / (1 + δ)

useful bits per second: capacity with outage, at its best outage (A. Goldsmith, Wireless
Communications, 2005, section 4.2.3). RaptorQ (RFC 6330) is an erasure code of little overhead.
By Markov's inequality R·P(r ≥ R) ≤ E[r], so g ≤ u for every single device.

A bit for a set of devices takes 1/g_w [s] by broadcast, w the weakest of them, and the sum of
1/u_d by unicast. So broadcast is worth it if and only if

    sum over d of u_w/u_d ≥ u_w/g_w

The right is what is lost without feedback. Without fading and overhead it is 1, and broadcast is
always worth it, as the weakest alone is 1 on the left. In Rayleigh fading at low SNR it is
e·(1 + δ), so that three devices like the weakest are enough.

Who decodes a rate decodes every lower one, so the receivers of a chunk are the best m devices. A
chunk is useless without those before it, so m never rises from one chunk to the next.

Shapes: `D` devices, the best first; `Q` equally likely values of the fading; `K` chunks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from rankcast.band.ladder import Ladder
from rankcast.errors import ConfigError, LinkError, check_choice
from rankcast.link.capacity import scipy
from rankcast.records import FloatArray, IntArray

Method = Literal["broadcast", "unicast", "mixed"]
"""All at once; each by itself; or the better devices at once and the weaker ones by themselves."""


@dataclass(frozen=True, eq=False)
class Audience:
    """The devices that want one file, the best first.

    Attributes:
        unicast_bps: (D,) u, what each gets that has the band to itself; positive, never rises.
        broadcast_bps: (D,) g, useful bits per second if the rate is chosen for it; likewise.
        sent_bps: (D,) R, the rate that is chosen for each.

    Raises:
        LinkError: no device, or rates that are not positive and finite, or rise.
    """

    unicast_bps: FloatArray
    broadcast_bps: FloatArray
    sent_bps: FloatArray

    def __post_init__(self) -> None:
        """Refuse devices that are not in order, or get nothing."""
        for name, x in (("unicast", self.unicast_bps), ("broadcast", self.broadcast_bps)):
            if x.ndim != 1 or not x.size or not ((x > 0) & np.isfinite(x)).all():
                raise LinkError(f"Every device needs a positive {name} rate, got {x}.")
            if (np.diff(x) > 1e-9 * x[:-1]).any():
                raise LinkError(f"Devices go from the best to the weakest, got {name} rates {x}.")

    @property
    def pays(self) -> bool:
        """Whether one broadcast to all takes at most the airtime of unicast to each."""
        return self.listeners >= self.needed

    @property
    def listeners(self) -> float:
        """Sum of u_w/u_d: how many devices like the weakest would take as much unicast."""
        return float((self.unicast_bps[-1] / self.unicast_bps).sum())

    @property
    def needed(self) -> float:
        """u_w/g_w: how many devices like the weakest make a broadcast worth it."""
        return float(self.unicast_bps[-1] / self.broadcast_bps[-1])

    def seconds_per_bit(self, method: Method) -> FloatArray:
        """Return the (D + 1,) airtime that takes a bit to the best m devices, m from 0 [s/bit].

        Raises:
            ConfigError: an unknown method.
        """
        check_choice("method", method, get_args(Method))
        alone = np.concatenate([[0.0], np.cumsum(1.0 / self.unicast_bps)])
        at_once = np.concatenate([[0.0], 1.0 / self.broadcast_bps])
        if method == "mixed":
            return alone + np.minimum.accumulate(at_once - alone)
        return alone if method == "unicast" else at_once

    def heard_by(self, method: Method) -> IntArray:
        """Return (D + 1,) how many of the best m devices are served by broadcast, m from 0."""
        everyone = np.arange(len(self.unicast_bps) + 1)
        if method != "mixed":
            return everyone * (method == "broadcast")
        more = self.seconds_per_bit("broadcast") - self.seconds_per_bit("unicast")
        least = np.concatenate([[np.inf], np.minimum.accumulate(more)[:-1]])
        return np.maximum.accumulate(np.where(more < least, everyone, 0))


def audience_of(
    rates_bps: FloatArray,
    overhead: float = 0.02,
    choices: int = 1,
    n_slots: int | None = None,
    confidence: float = 0.9,
) -> Audience:
    """Return what devices get from a transmission to one of them and from one to all.

    Args:
        rates_bps: (D, Q) with the whole band, the best device first, rising along Q [bit/s].
        overhead: δ, what the erasure code needs beyond the bits of a chunk, as a share.
        choices: unicast serves a device in the best of so many slots: about as many as there are
            devices to choose from in each. 1 waits for no peaks.
        n_slots: of independent fading over which a chunk is spread; None is many, so that the mean
            arrives. The rate counts on the slots that come through with `confidence` (binomial).
        confidence: probability that the weakest device that counts gets the chunk.

    Raises:
        LinkError: see `Audience`.
        ConfigError: a negative overhead, no slot, or a confidence outside (0, 1).
    """
    ranges = 0 <= overhead < math.inf and 0 < confidence < 1
    if not ranges or choices < 1 or (n_slots is not None and n_slots < 1):
        raise ConfigError(
            f"Overhead is at least 0, choices and slots are at least 1, confidence lies in (0, 1); "
            f"got {overhead}, {choices}, {n_slots} and {confidence}."
        )
    n_values = rates_bps.shape[-1]
    best_of = np.diff((np.arange(n_values + 1) / n_values) ** choices)  # P(each value is the best)
    decoded = (n_values - np.arange(n_values)) / n_values  # P(r ≥ R) at each value as R
    if n_slots is not None:
        decoded = scipy("stats").binom.ppf(1.0 - confidence, n_slots, decoded) / n_slots
    useful = rates_bps * decoded / (1.0 + overhead)
    best = useful.argmax(axis=-1)[:, None]
    at_best = (np.take_along_axis(x, best, axis=-1)[:, 0] for x in (useful, rates_bps))
    return Audience(rates_bps @ best_of, *at_best)


@dataclass(frozen=True, eq=False)
class BroadcastPlan:
    """Who is to get which chunk.

    Attributes:
        receivers: (K,) of each chunk: the best so many devices; never rises.
        airtime_s: (K,) that each chunk takes [s].
        worth: of what they get, summed over devices.
    """

    receivers: IntArray
    airtime_s: FloatArray
    worth: float


def best_plan(ladder: Ladder, seconds_per_bit: FloatArray, airtime_s: float) -> BroadcastPlan:
    """Return the plan that is worth most within an airtime: exact, by dynamic programming.

    Chunk by chunk, it keeps for each number of receivers every pair of airtime and worth that no
    other one beats in both.

    Args:
        ladder: of the file, the same for all devices.
        seconds_per_bit: (D + 1,) see `Audience.seconds_per_bit`.
        airtime_s: for the file [s].

    Raises:
        ConfigError: an airtime that is no number of seconds.
    """
    if not 0 <= airtime_s < math.inf:
        raise ConfigError(f"The airtime must be a number of seconds, got {airtime_s}.")
    n_devices, limit_s = len(seconds_per_bit) - 1, airtime_s * (1 + 1e-12)
    chunk_s = np.diff(ladder.prefix_bits)[:, None] * seconds_per_bit
    # Columns: airtime, worth, and the receivers of each chunk so far.
    fronts = [np.zeros((0, 2))] * n_devices + [np.zeros((1, 2))]
    for k, gain in enumerate(np.diff(ladder.worth)):
        at_least, reached = np.zeros((0, k + 2)), fronts.copy()
        for m in range(n_devices, -1, -1):
            at_least = _unbeaten(np.concatenate([at_least, fronts[m]]))
            rows = np.column_stack([at_least, np.full(len(at_least), m)])
            rows[:, :2] += (chunk_s[k, m], gain * m)
            reached[m] = rows[rows[:, 0] <= limit_s]
        fronts = reached
    found = _unbeaten(np.concatenate(fronts))[-1]
    receivers = found[2:].astype(np.int64)
    return BroadcastPlan(receivers, chunk_s[np.arange(len(receivers)), receivers], float(found[1]))


def _unbeaten(rows: FloatArray) -> FloatArray:
    """Return the rows whose worth no row of as little airtime reaches, both rising."""
    rows = rows[np.lexsort((-rows[:, 1], rows[:, 0]))]
    before = np.concatenate([[-np.inf], np.maximum.accumulate(rows[:, 1])[:-1]])
    return rows[rows[:, 1] > before]
