"""What adds up over the devices of a simulated fleet: exactly, in any order, in little memory.

All of it is counts of whole things, so that the sum of several shards is the sum of one run to the
last bit. Times are counted in milliseconds, and take no more memory than there are milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankcast.records import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Times:
    """How many devices took how long.

    Attributes:
        ms: times that occurred, in order [ms].
        counts: of each.
    """

    ms: IntArray
    counts: IntArray

    @classmethod
    def of(cls, seconds: FloatArray) -> Times:
        """Count times [s]; NaN is none."""
        known = np.rint(1e3 * seconds[~np.isnan(seconds)]).astype(np.int64)
        return cls(*np.unique(known, return_counts=True))

    def __add__(self, other: Times) -> Times:
        """Return the counts of both."""
        ms, where = np.unique(np.concatenate([self.ms, other.ms]), return_inverse=True)
        counts = np.zeros(len(ms), np.int64)
        np.add.at(counts, where, np.concatenate([self.counts, other.counts]))
        return Times(ms, counts)

    def quantiles(self) -> dict[str, float | None]:
        """Return the median and the 95th percentile, between two devices by the straight line."""
        if not self.ms.size:
            return {"p50": None, "p95": None}
        ends = np.cumsum(self.counts)
        places = np.array([0.5, 0.95]) * (ends[-1] - 1)
        low, high = (
            self.ms[np.searchsorted(ends, place, side="right")]
            for place in (np.floor(places), np.ceil(places))
        )
        p50, p95 = (low + (places % 1.0) * (high - low)) / 1e3
        return {"p50": round(float(p50), 3), "p95": round(float(p95), 3)}


@dataclass(frozen=True, eq=False)
class FleetSums:
    """Sums over devices.

    Attributes:
        counts: of devices, syncs and bits, by name.
        times: from a beginning to what each device waits for, by name.
        looks: (seconds,) plans asked for in each second.
        sent_bps: (seconds,) bits that the server sent in each second.
    """

    counts: Mapping[str, int]
    times: Mapping[str, Times]
    looks: IntArray
    sent_bps: IntArray

    def __add__(self, other: FleetSums) -> FleetSums:
        """Return the sums over the devices of both."""
        return FleetSums(
            {name: n + other.counts[name] for name, n in self.counts.items()},
            {name: x + other.times[name] for name, x in self.times.items()},
            self.looks + other.looks,
            self.sent_bps + other.sent_bps,
        )

    def summary(self) -> dict[str, Any]:
        """Return counts and quantiles, by the names of a simulation with sockets."""
        counts = dict(self.counts)
        late, bits = counts.pop("late"), ("received_bits", "link_bits")
        sums = {name: counts.pop(name) for name in (*bits, "syncs")}
        return {
            **counts,
            **{name: times.quantiles() for name, times in self.times.items()},
            **{name: sums[name] for name in bits},
            "failures": {"InfeasibleDeadlineError": late} if late else {},
            "syncs": sums["syncs"],
            "plans_per_s": _mean_and_peak(self.looks),
            "sent_bps": _mean_and_peak(self.sent_bps),
        }


def _mean_and_peak(values: IntArray) -> dict[str, float]:
    return {"mean": round(float(values.mean()), 1), "peak": round(float(values.max()), 1)}
