"""Fast fading of a moving device: Jakes' spectrum as a sum of sinusoids."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rankcast.errors import LinkError
from rankcast.link.processes import (
    SMALLEST_GAIN,
    SnrState,
    check_finite,
    checked_size,
    coherence_time_s,
    doppler_hz,
)
from rankcast.records import FloatArray, IntArray

COHERENCE_TIMES_TO_AVERAGE = 10.0
"""So many of them in one transfer, and |h|² counts as averaged out."""

RateReading = Literal["ergodic", "instantaneous"]
"""The rate averaged over the fading (`Ergodic`), or that of h as it is now (`Awgn`)."""


@dataclass(frozen=True)
class JakesSnr:
    """Rayleigh or Rician fading with Clarke's autocorrelation J₀(2π·f_d·τ), sampled at decisions.

    The statistical sum-of-sinusoids simulator of C. Xiao, Y. R. Zheng and N. C. Beaulieu, Novel
    sum-of-sinusoids simulation models for Rayleigh and Rician fading channels, IEEE Trans.
    Wireless Commun. 5(12), 2006: every sequence has its own angles and phases, so that the ensemble
    has the autocorrelation exactly for any number of paths. Small-scale fading: add it to a
    shadowing with `SummedSnr`, and use a rate model of constant h (`Awgn`).

    Attributes:
        mean_snr_db: SNR at the mean power gain [dB].
        speed_m_s: speed of the device [m/s].
        carrier_hz: carrier frequency [Hz].
        step_s: time between decisions [s].
        k_factor: power of the direct path over that of the others, linear; 0 is Rayleigh.
        n_paths: sinusoids of each quadrature.

    Raises:
        LinkError: a mean that is not finite, or speed, carrier, step, K or number of paths out of
            range.
    """

    mean_snr_db: float
    speed_m_s: float
    carrier_hz: float
    step_s: float
    k_factor: float = 0.0
    n_paths: int = 16

    def __post_init__(self) -> None:
        """Check every range."""
        check_finite("Mean SNR", self.mean_snr_db)
        doppler_hz(self.speed_m_s, self.carrier_hz)
        ranges = 0 <= self.step_s < math.inf and 0 <= self.k_factor < math.inf
        if not ranges or self.n_paths < 1:
            raise LinkError(
                f"Step and K-factor must be at least 0 and there must be a path, got "
                f"{self.step_s} s, {self.k_factor} and {self.n_paths}."
            )

    def start(self, rng: np.random.Generator, size: int) -> SnrState:
        """Draw angles and phases of `size` sequences."""
        shape = (checked_size(size), 2 * self.n_paths + 3)
        hidden = rng.uniform(-math.pi, math.pi, shape)
        age = np.zeros(size, dtype=np.int64)
        return SnrState(self._snr_db(hidden, age), age, hidden)

    def advance(self, state: SnrState, rng: np.random.Generator) -> SnrState:
        """Return the fading one step later; nothing is drawn."""
        del rng
        age = state.age + 1
        return SnrState(self._snr_db(state.hidden, age), age, state.hidden)

    def gain(self, hidden: FloatArray, age: IntArray) -> NDArray[np.complex128]:
        """Return (B,) h at a number of steps, of unit mean power."""
        m = self.n_paths
        turned = 2 * math.pi * doppler_hz(self.speed_m_s, self.carrier_hz) * self.step_s * age
        theta, direct_angle, direct_phase = hidden[:, :3].T
        phases = hidden[:, 3:].reshape(len(hidden), 2, m)
        arrival = (2 * math.pi * np.arange(1, m + 1) - math.pi + theta[:, None]) / (4 * m)
        along = turned[:, None, None] * np.stack([np.cos(arrival), np.sin(arrival)], axis=1)
        parts = np.cos(along + phases).sum(axis=2) / math.sqrt(m)
        scattered = parts[:, 0] + 1j * parts[:, 1]
        direct = np.exp(1j * (turned * np.cos(direct_angle) + direct_phase))
        k = self.k_factor
        return (scattered + math.sqrt(k) * direct) / math.sqrt(1 + k)

    def _snr_db(self, hidden: FloatArray, age: IntArray) -> FloatArray:
        power = np.maximum(np.square(np.abs(self.gain(hidden, age))), SMALLEST_GAIN)
        return self.mean_snr_db + 10.0 * np.log10(power)


def fitting_rate_reading(speed_m_s: float, carrier_hz: float, deadline_s: float) -> RateReading:
    """Return which reading of Eq. 5 fits a device, by coherence time against deadline.

    `ergodic`, with a process of the slow part alone (`GaussMarkovSnr`, `PathSnr`), where the
    deadline spans at least `COHERENCE_TIMES_TO_AVERAGE`; else `instantaneous`, with a process that
    holds the fading (`JakesSnr`, `BlockFadingSnr`) if h is known when a plan is made. Where h is
    constant and unknown, `rankcast.link.capacity.Outage` fits instead. It is a rule of thumb: the
    fewer coherence times, the wider the rate of one transfer spreads around the ergodic one.

    Args:
        speed_m_s: speed of the device or of what surrounds it [m/s]; 0 is instantaneous.
        carrier_hz: carrier frequency [Hz].
        deadline_s: T_max, the time of a transfer [s].

    Raises:
        LinkError: a negative speed, or a carrier or deadline that is not positive and finite.
    """
    if not 0 < deadline_s < math.inf:
        raise LinkError(f"The deadline must be a positive number of seconds, got {deadline_s}.")
    spanned = deadline_s / coherence_time_s(speed_m_s, carrier_hz)
    return "ergodic" if spanned >= COHERENCE_TIMES_TO_AVERAGE else "instantaneous"
