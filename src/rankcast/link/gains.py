"""Distributions of the power gain |h|² of a fading channel, all with unit mean.

After M. K. Simon and M.-S. Alouini, Digital Communication over Fading Channels, 2nd ed.,
table 2.2, with the mean SNR divided out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rankcast.errors import LinkError
from rankcast.link.late import scipy
from rankcast.records import FloatArray


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
