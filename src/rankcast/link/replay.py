"""Replay a measured trace, of SNR or of throughput.

A measured throughput has no SNR. It travels through the system as the *equivalent* SNR: that at
which an ideal AWGN link of the same bandwidth W carries exactly the measured C,
10·log10(2^(C/W) − 1) dB. It says nothing about the radio's own SNR. Read with
`rankcast.link.capacity.Awgn` and the same bandwidth it is the measured throughput again; with any
other rate model or bandwidth it is nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from rankcast.config.link import TraceKind
from rankcast.errors import LinkError
from rankcast.link.capacity import LARGEST_SNR_DB
from rankcast.link.processes import SnrState, check_finite, checked_size
from rankcast.link.traces import Trace
from rankcast.records import FloatArray, IntArray

LOWEST_EQUIVALENT_DB = -60.0
"""Stands for no throughput: 1.44e-6 bit/s/Hz, 29 bit/s in 20 MHz."""


@dataclass(frozen=True, eq=False)
class ReplayedSnr:
    """A trace played in a circle; each sequence starts at a random place of it.

    One step a decision, and from the last value on to the first. All that is random is the place,
    so that every step has the distribution of the trace.

    Attributes:
        values_db: (T,) the trace, one value for each decision [dB].

    Raises:
        LinkError: no value, or one that is not finite.
    """

    values_db: FloatArray

    def __post_init__(self) -> None:
        """Refuse an empty trace and values that are no numbers; keep them from being changed."""
        values_db = np.array(self.values_db, dtype=np.float64)
        if values_db.ndim != 1 or not len(values_db):
            raise LinkError(f"A replay needs a row of values in dB, got shape {values_db.shape}.")
        check_finite("Every value of a trace", float(values_db.min()), float(values_db.max()))
        values_db.flags.writeable = False
        object.__setattr__(self, "values_db", values_db)

    @classmethod
    def of_snr(cls, trace: Trace, step_s: float, max_gap_s: float | None = None) -> Self:
        """Replay measured SNR.

        Args:
            trace: of kind `snr`.
            step_s: time between decisions [s].
            max_gap_s: longer gaps are cut out [s]; see `Trace.sampled`.

        Raises:
            LinkError: a trace of throughput, or one that cannot be sampled so.
        """
        _check_kind(trace, "snr")
        return cls(trace.sampled(step_s, max_gap_s))

    @classmethod
    def of_throughput(
        cls, trace: Trace, step_s: float, bandwidth_hz: float, max_gap_s: float | None = None
    ) -> Self:
        """Replay measured throughput as its equivalent SNR; to be read with `Awgn` alone.

        Args:
            trace: of kind `throughput`.
            step_s: time between decisions, over which throughput is averaged [s]; the deadline, if
                a transfer is to meet the bits that were measured in its time.
            bandwidth_hz: W of the link that reads it [Hz].
            max_gap_s: longer gaps are cut out [s]; see `Trace.sampled`.

        Raises:
            LinkError: a trace of SNR, one that cannot be sampled so, or a throughput too large
                for the bandwidth.
        """
        _check_kind(trace, "throughput")
        return cls(equivalent_snr_db(trace.sampled(step_s, max_gap_s), bandwidth_hz))

    def start(self, rng: np.random.Generator, size: int) -> SnrState:
        """Draw `size` places of the trace."""
        place = rng.integers(len(self.values_db), size=checked_size(size))
        return self._state(place, np.zeros(size, dtype=np.int64))

    def advance(self, state: SnrState, rng: np.random.Generator) -> SnrState:
        """Go on by one value; nothing is drawn."""
        del rng
        place = (state.hidden[:, 0].astype(np.int64) + 1) % len(self.values_db)
        return self._state(place, state.age + 1)

    def _state(self, place: IntArray, age: IntArray) -> SnrState:
        return SnrState(self.values_db[place], age, place[:, None].astype(np.float64))


def equivalent_snr_db(throughput_bps: ArrayLike, bandwidth_hz: float) -> FloatArray:
    """Return the SNR at which an ideal AWGN link carries a throughput, 10·log10(2^(C/W) − 1) [dB].

    The inverse of `rankcast.link.capacity.Awgn`, down to `LOWEST_EQUIVALENT_DB`, which stands for
    everything below it. No measure of the radio's SNR: see the top of this module.

    Args:
        throughput_bps: C, any shape [bit/s].
        bandwidth_hz: W [Hz].

    Raises:
        LinkError: a throughput that is negative or not finite, or so large for the bandwidth that
            no SNR carries it; a bandwidth that is not positive and finite.
    """
    throughput_bps = np.asarray(throughput_bps, dtype=np.float64)
    if not 0 < bandwidth_hz < math.inf:
        raise LinkError(f"The bandwidth must be a positive number of Hz, got {bandwidth_hz}.")
    if not (np.isfinite(throughput_bps) & (throughput_bps >= 0)).all():
        raise LinkError("A throughput must be a finite number of bit/s and at least 0.")
    with np.errstate(over="ignore"):  # what overflows is refused below
        nats = np.maximum(throughput_bps / bandwidth_hz * math.log(2.0), 1e-300)
    # ln(e^x − 1) = x + ln(1 − e^−x): neither end over- or underflows.
    snr_db = 10.0 / math.log(10.0) * (nats + np.log(-np.expm1(-nats)))
    if (snr_db > LARGEST_SNR_DB).any():
        raise LinkError(
            f"No link of {bandwidth_hz:g} Hz carries {throughput_bps.max():g} bit/s; give the "
            f"bandwidth that it was measured in, and mind the unit of the trace."
        )
    return np.maximum(snr_db, LOWEST_EQUIVALENT_DB)


def _check_kind(trace: Trace, wanted: TraceKind) -> None:
    if trace.kind != wanted:
        raise LinkError(
            f"{trace.name} holds {trace.kind}, not {wanted}; neither follows from the other."
        )
