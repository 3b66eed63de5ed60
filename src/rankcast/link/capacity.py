"""The rate of a link: spectral efficiency [bit/s/Hz] against mean SNR [dB] (Eq. 5).

Eq. 5 is C = E_h[W·log2(1 + |h|²·P/σ²)]. Three readings of it, each a `RateModel`:

| model | holds when | SNR given to it |
|---|---|---|
| `Awgn` | h is known and constant over the transfer | instantaneous, |h|² included |
| `Ergodic` | the transfer spans many coherence times, so that |h|² averages out | mean |
| `Outage` | |h|² is constant over the transfer and unknown to the sender | mean |

Differs from the paper: it writes the expectation (ergodic) but calls the fading slow, and its
experiments are plain AWGN. `rankcast.link.processes.coherence_time_s` tells which one applies.

The distributions of |h|², all of unit mean, are those of M. K. Simon and M.-S. Alouini, Digital
Communication over Fading Channels, 2nd ed., table 2.2, with the mean SNR divided out. The ergodic
closed forms are those of M.-S. Alouini and A. J. Goldsmith, Capacity of Rayleigh fading channels
under different adaptive transmission and diversity-combining techniques, IEEE Trans. Veh. Technol.
48(4), 1999 (receiver side information; m-branch combining has the same gain distribution as
Nakagami m).
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np

from rankcast.errors import ConfigError, LinkError
from rankcast.records import FloatArray, LinkState

_LN2 = math.log(2.0)
LARGEST_SNR_DB = 300.0
"""Beyond it 10^(x/10) says nothing about radio and soon overflows [dB]."""
_TAIL = 1e-15  # probability left out at either end of the quadrature
_NODES = 400  # error below 1e-12 for m = 0.5 to 1,000 and K = 0 to 10,000
_LARGEST_CLOSED_FORM = 64  # terms of the Nakagami sum; quadrature is cheaper above


@cache
def scipy(part: str) -> Any:
    """Return a module of SciPy, such as `special`; loaded late, as a plain link does without it.

    Raises:
        ConfigError: SciPy is not installed.
    """
    try:
        return importlib.import_module(f"scipy.{part}")
    except ImportError as error:
        raise ConfigError("This needs SciPy: pip install 'rankcast[link]'.") from error


class Fading(Protocol):
    """Distribution of the power gain |h|² with unit mean."""

    def pdf(self, gain: FloatArray) -> FloatArray:
        """Return the density at positive gains, same shape."""
        ...

    def ppf(self, probability: FloatArray) -> FloatArray:
        """Return F⁻¹: the gain that is undershot with this probability, same shape."""
        ...

    def sample(self, rng: np.random.Generator, size: int) -> FloatArray:
        """Draw (size,) independent gains."""
        ...


@dataclass(frozen=True)
class Rayleigh:
    """No line of sight: |h|² is exponential."""

    def pdf(self, gain: FloatArray) -> FloatArray:
        """Return e^{-x}."""
        return np.exp(-np.asarray(gain, dtype=np.float64))

    def ppf(self, probability: FloatArray) -> FloatArray:
        """Return -ln(1 - p)."""
        return -np.log1p(-np.asarray(probability, dtype=np.float64))

    def sample(self, rng: np.random.Generator, size: int) -> FloatArray:
        """Draw (size,) independent gains."""
        return rng.standard_exponential(size)


@dataclass(frozen=True)
class Rician:
    """A line of sight among scatterers: 2(1 + K)|h|² is noncentral χ² with 2 degrees of freedom.

    Attributes:
        k_factor: K ≥ 0, power of the direct path over that of the scattered ones, linear (not dB).
            0 is Rayleigh.

    Raises:
        LinkError: K is negative or not finite.
    """

    k_factor: float

    def __post_init__(self) -> None:
        """Refuse a K-factor that no channel has."""
        if not (math.isfinite(self.k_factor) and self.k_factor >= 0):
            raise LinkError(
                f"The Rician K-factor is a linear power ratio of at least 0, got {self.k_factor}; "
                f"convert from dB with 10 ** (K_db / 10)."
            )

    def pdf(self, gain: FloatArray) -> FloatArray:
        """Return (1 + K)·e^{-K - (1 + K)x}·I0(2·√(K(1 + K)x))."""
        k = self.k_factor
        amplitude = np.sqrt((1.0 + k) * np.asarray(gain, dtype=np.float64))
        # I0 is scaled by e^{-2·√K·amplitude}, which completes the square and cannot overflow.
        bessel = scipy("special").i0e(2.0 * math.sqrt(k) * amplitude)
        return (1.0 + k) * np.exp(-((amplitude - math.sqrt(k)) ** 2)) * bessel

    def ppf(self, probability: FloatArray) -> FloatArray:
        """Return the noncentral χ² quantile over 2(1 + K)."""
        k = self.k_factor
        return np.asarray(scipy("stats").ncx2.ppf(probability, 2, 2.0 * k)) / (2.0 * (1.0 + k))

    def sample(self, rng: np.random.Generator, size: int) -> FloatArray:
        """Draw (size,) independent gains."""
        k = self.k_factor
        scattered = rng.standard_normal((2, size)) / math.sqrt(2.0)
        return ((math.sqrt(k) + scattered[0]) ** 2 + scattered[1] ** 2) / (1.0 + k)


@dataclass(frozen=True)
class Nakagami:
    """Measured fading of any depth: |h|² is Gamma with shape m and scale 1/m.

    Attributes:
        m: shape, at least 0.5 (the deepest fading); 1 is Rayleigh.

    Raises:
        LinkError: m is below 0.5 or not finite.
    """

    m: float

    def __post_init__(self) -> None:
        """Refuse a shape outside the distribution's definition."""
        if not (math.isfinite(self.m) and self.m >= 0.5):
            raise LinkError(f"The Nakagami shape m must be at least 0.5, got {self.m}.")

    def pdf(self, gain: FloatArray) -> FloatArray:
        """Return m^m·x^{m-1}·e^{-mx} / Γ(m)."""
        gain = np.asarray(gain, dtype=np.float64)
        log_scale = self.m * math.log(self.m) - math.lgamma(self.m)
        return np.exp(log_scale + scipy("special").xlogy(self.m - 1.0, gain) - self.m * gain)

    def ppf(self, probability: FloatArray) -> FloatArray:
        """Return the Gamma quantile over m."""
        return np.asarray(scipy("special").gammaincinv(self.m, probability)) / self.m

    def sample(self, rng: np.random.Generator, size: int) -> FloatArray:
        """Draw (size,) independent gains."""
        return rng.gamma(self.m, 1.0 / self.m, size)


@runtime_checkable
class RateModel(Protocol):
    """Turns SNR into rate (Eq. 5)."""

    def spectral_efficiency(self, snr_db: FloatArray) -> FloatArray:
        """Return C/W [bit/s/Hz] at each SNR [dB], same shape.

        Raises:
            LinkError: NaN, infinite or absurdly large SNR.
        """
        ...


@dataclass(frozen=True)
class Awgn:
    """log2(1 + SNR): Eq. 5 with h fixed, the channel of the paper's experiments (Sec. V)."""

    def spectral_efficiency(self, snr_db: FloatArray) -> FloatArray:
        """Return C/W [bit/s/Hz] at each instantaneous SNR [dB], same shape."""
        return np.logaddexp(0.0, _log_snr(snr_db)) / _LN2


@dataclass(frozen=True)
class Ergodic:
    """E[log2(1 + SNR·|h|²)]: Eq. 5 as written, the rate averaged over the fading.

    Closed forms with g = SNR: Rayleigh e^{1/g}·E₁(1/g)/ln 2, Nakagami of integer m
    e^{m/g}·Σ_{k=1..m} E_k(m/g)/ln 2. Everything else is integrated numerically.

    Attributes:
        fading: distribution of |h|².
    """

    fading: Fading

    def spectral_efficiency(self, snr_db: FloatArray) -> FloatArray:
        """Return C/W [bit/s/Hz] at each mean SNR [dB], same shape."""
        log_snr = _log_snr(snr_db)
        order = _integer_order(self.fading)
        if order is not None:
            z = order * np.exp(-log_snr)
            terms = (_scaled_expn(k, z) for k in range(1, order + 1))
            return sum(terms, start=np.zeros_like(z)) / _LN2
        log_gain, weight = self._quadrature
        # Not a matrix product: its rounding would depend on how many links are asked about at once.
        rates = np.logaddexp(0.0, log_snr[..., None] + log_gain)
        return (rates * weight).sum(axis=-1) / _LN2

    @cached_property
    def _quadrature(self) -> tuple[FloatArray, FloatArray]:
        """Nodes ln|h|² and weights of the trapezoidal rule, which converges exponentially here.

        On the scale of ln|h|² the integrand is analytic in a strip and vanishes at both ends.
        """
        ends = np.log(self.fading.ppf(np.array([_TAIL, 1.0 - _TAIL])))
        log_gain = np.linspace(ends[0], ends[1], _NODES)
        gain = np.exp(log_gain)
        weight = self.fading.pdf(gain) * gain
        return log_gain, weight / weight.sum()


@dataclass(frozen=True)
class Outage:
    """log2(1 + SNR·F⁻¹(ε)): the rate that the fading supports with probability 1 - ε.

    Attributes:
        fading: distribution of |h|².
        epsilon: ε in (0, 1), the share of transfers that may fail.

    Raises:
        LinkError: ε is outside (0, 1).
    """

    fading: Fading
    epsilon: float

    def __post_init__(self) -> None:
        """Refuse a probability of 0 or 1, or beyond."""
        if not 0.0 < self.epsilon < 1.0:
            raise LinkError(f"The outage probability must lie in (0, 1), got {self.epsilon}.")

    def spectral_efficiency(self, snr_db: FloatArray) -> FloatArray:
        """Return C/W [bit/s/Hz] at each mean SNR [dB], same shape."""
        return np.logaddexp(0.0, _log_snr(snr_db) + self._log_gain) / _LN2

    @cached_property
    def _log_gain(self) -> float:
        return float(np.log(self.fading.ppf(np.array(self.epsilon))))


@dataclass(frozen=True)
class TruncatedShannon:
    """min(efficiency·log2(1 + SNR/gap), largest): Shannon with what a real system leaves of it.

    With the defaults, a fit to the best of 5G NR's schemes with an ideal receiver, per resource
    element that carries data, so overhead not counted: within 10 % over -5 to 15 dB. 3GPP TR
    36.942, annex A.2, has 0.6, 0 dB, 4.4 and nothing below -10 dB.

    Attributes:
        efficiency: share of the capacity that is used, overhead included.
        gap_db: SNR that coding loses [dB].
        largest: rate of the highest modulation and coding [bit/s/Hz].

    Raises:
        ConfigError: a value that is not positive, or an efficiency above 1.
    """

    efficiency: float = 0.867
    gap_db: float = 1.0
    largest: float = 5.55

    def __post_init__(self) -> None:
        """Refuse more than Shannon's."""
        if not (0 < self.efficiency <= 1 and 0 <= self.gap_db < math.inf and self.largest > 0):
            raise ConfigError(
                f"A truncated Shannon rate needs an efficiency in (0, 1], a gap of at least 0 dB "
                f"and a largest rate, got {self.efficiency}, {self.gap_db} and {self.largest}."
            )

    def spectral_efficiency(self, snr_db: FloatArray) -> FloatArray:
        """Return the rate [bit/s/Hz] at each instantaneous SNR [dB], same shape."""
        rate = np.logaddexp(0.0, _log_snr(np.asarray(snr_db) - self.gap_db)) / _LN2
        return np.minimum(self.efficiency * rate, self.largest)


def rate_bps(model: RateModel, link: LinkState) -> FloatArray:
    """Return (B,) C_t [bit/s] (Eq. 5)."""
    return link.bandwidth_hz * model.spectral_efficiency(link.snr_db)


def checked_snr_db(snr_db: FloatArray) -> FloatArray:
    """Return SNRs [dB] as an array of floats.

    Raises:
        LinkError: NaN, infinite or absurdly large SNR.
    """
    snr_db = np.asarray(snr_db, dtype=np.float64)
    if not (np.abs(snr_db) <= LARGEST_SNR_DB).all():
        raise LinkError(
            f"SNR must be a number of dB within ±{LARGEST_SNR_DB:g}, got {snr_db.tolist()}; "
            f"convert a linear ratio with 10 * log10(snr)."
        )
    return snr_db


def _log_snr(snr_db: FloatArray) -> FloatArray:
    """Return ln SNR, or raise `LinkError`."""
    return checked_snr_db(snr_db) * (math.log(10.0) / 10.0)


def _integer_order(fading: Fading) -> int | None:
    """Return m where the Nakagami sum applies and is short, else None."""
    match fading:
        case Rayleigh():
            return 1
        case Nakagami(m=m) if m == int(m) and m <= _LARGEST_CLOSED_FORM:
            return int(m)
        case _:
            return None


def _scaled_expn(order: int, z: FloatArray) -> FloatArray:
    """Return e^z·E_order(z), finite for every z > 0.

    Above 20, where the factors would over- and underflow, by the continued fraction of
    Abramowitz and Stegun 5.1.22 in its contracted form, 20 levels deep.
    """
    small = np.minimum(z, 20.0)
    large = np.maximum(z, 20.0)
    tail = np.zeros_like(large)
    for level in range(20, 0, -1):
        tail = level * (order + level - 1) / (large + order + 2 * level - tail)
    near = np.exp(small) * scipy("special").expn(order, small)
    return np.where(z <= 20.0, near, 1.0 / (large + order - tail))
