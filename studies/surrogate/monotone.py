"""A loss that falls with every rank, and its gains from probes and a prior.

A few hundred losses stand against N·R unknowns, so gains share strength: their logarithms are
Gaussian around an exponential decay along the rank, which is itself fitted; deviations are
correlated along the ranks of a projection, and between projections of one layer or one kind.
Log-normal, because a few projections matter much more than the rest, and because it keeps every
gain positive without a constraint.

Shapes: `P` probed plans, `N` projections, `R` = r_max.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self, get_args

import numpy as np
from scipy.optimize import least_squares, minimize

from rankcast.errors import ConfigError, nearest
from rankcast.records import AdapterLayout, FloatArray, IntArray

LossLink = Literal["identity", "exp"]
"""How the sum of gains becomes a loss: `identity` subtracts it, `exp` lets it saturate."""

RANK_CORRELATION = 0.9
SHARED = 0.25
"""Share of a log gain's variance that its layer explains beforehand; likewise its kind."""
LARGEST_LOG = 12.0
"""How far a log gain may leave the decay, so that no exponential overflows."""

_DIGITS = 6


@dataclass(frozen=True)
class MonotoneUtility:
    """U(r) = offset + amplitude·h(s), s = Σ_m Σ_{i ≤ r_m} gains[m, i].

    Attributes:
        link: `identity`: h(s) = -s, an additive utility whose offset is the loss at rank 0;
            `exp`: h(s) = exp(-s), where the offset is the loss that no rank removes.
        offset: [nats].
        amplitude: not negative [nats]; 1 for `identity` by convention.
        gains: (N, R), not negative.

    Raises:
        ConfigError: an unknown link, or values that would not make a falling loss.
    """

    link: LossLink
    offset: float
    amplitude: float
    gains: FloatArray

    def __post_init__(self) -> None:
        """Refuse what does not fall with the ranks."""
        known = get_args(LossLink)
        if self.link not in known:
            raise ConfigError(f"There is no loss link {self.link!r}{nearest(self.link, known)}.")
        gains = np.asarray(self.gains, dtype=np.float64)
        finite = np.isfinite(gains).all() and np.isfinite([self.offset, self.amplitude]).all()
        if gains.ndim != 2 or not finite or (gains < 0).any() or self.amplitude < 0:
            raise ConfigError(
                f"A monotone utility needs (N, R) gains and an amplitude that are finite and not "
                f"negative; got gains of shape {gains.shape} and amplitude {self.amplitude}."
            )
        object.__setattr__(self, "gains", gains)

    @cached_property
    def removed(self) -> FloatArray:
        """(N, R + 1) sum of the gains of each projection at each rank."""
        return np.concatenate([np.zeros((len(self.gains), 1)), self.gains.cumsum(axis=1)], axis=1)

    def loss(self, ranks: IntArray) -> FloatArray:
        """Return (B,) task loss of (B, N) ranks."""
        n, choices = self.removed.shape
        total = self.removed.ravel().take(np.asarray(ranks) + np.arange(n) * choices).sum(axis=1)
        bent = np.exp(-total) if self.link == "exp" else -total
        return self.offset + self.amplitude * bent

    def to_plain(self) -> dict[str, Any]:
        """Return JSON values, rounded to 6 significant digits."""
        return {
            "link": self.link,
            "offset": significant(self.offset),
            "amplitude": significant(self.amplitude),
            "gains": [[significant(gain) for gain in row] for row in self.gains.tolist()],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Return what `to_plain` described."""
        gains = np.array(plain["gains"], dtype=np.float64)
        return cls(plain["link"], float(plain["offset"]), float(plain["amplitude"]), gains)


def significant(value: float) -> float:
    """Return a number rounded to 6 significant digits."""
    return float(f"{value:.{_DIGITS}g}")


class PenalisedGains:
    """Least squares in the log gains under the prior, for one link.

    The unknowns are the offset, the log amplitude (idle for `identity`) and whitened deviations
    Z (N, R) of the log gains from their decay: log b = log μ + A_N·Z·A_Rᵀ. The losses are
    standardised. With `decreasing`, b are the drops between gains, else the gains.

    Args:
        ranks: (P, N) plans.
        losses: (P,) their losses.
        layout: the projections and r_max.
        link: see `MonotoneUtility`.
        decreasing: whether the gains of a projection decrease along the rank.
        weights: (P,) of the squared errors, of which their mean is taken out; None for equal ones.

    Attributes:
        start: the unknowns at the prior, where every search begins.
    """

    def __init__(
        self,
        ranks: IntArray,
        losses: FloatArray,
        layout: AdapterLayout,
        link: LossLink,
        decreasing: bool,
        *,
        weights: FloatArray | None = None,
    ) -> None:
        self._link, self._decreasing = link, decreasing
        self._shape = (layout.n_projections, layout.r_max)
        self._mean, self._std = float(losses.mean()), float(losses.std())
        self._target = (losses - self._mean) / self._std
        weights = np.ones_like(losses) if weights is None else weights
        self._weights = weights / weights.mean()
        i = np.arange(1, layout.r_max + 1)
        active = (i <= ranks[..., None]).astype(np.float64)
        self._active = active.reshape(len(ranks), -1)
        self._across, self._along = _prior_factors(layout)
        offset, log_amplitude, profile = self._decay(active.sum(axis=1))
        following = np.append(profile[1:], 0.0)
        self._log_center = np.log(profile - following if decreasing else profile)
        self.start = np.concatenate([[offset, log_amplitude], np.zeros(self._active.shape[1])])

    def solve(self, start: FloatArray, strength: float) -> FloatArray:
        """Return the unknowns of least penalised squared error."""
        bounds = [(self._lowest_offset, None), (-5.0, 5.0)] + [(None, None)] * (len(start) - 2)
        solution = minimize(
            self._objective, start, (strength,), "L-BFGS-B", jac=True, bounds=bounds,
            options={"maxiter": 100, "ftol": 1e-6, "maxcor": 20},
        )  # fmt: skip
        return solution.x

    def utility(self, x: FloatArray) -> MonotoneUtility:
        """Return the utility of some unknowns, in the units of the losses."""
        gains = self._gains(self._parts(x))
        offset = self._mean + self._std * float(x[0])
        if self._link == "identity":
            return MonotoneUtility("identity", offset, 1.0, self._std * gains)
        return MonotoneUtility("exp", offset, self._std * float(np.exp(x[1])), gains)

    @property
    def _lowest_offset(self) -> float:
        # Under `exp` the offset is the loss of an unlimited rank, and a loss is not negative.
        return -np.inf if self._link == "identity" else -self._mean / self._std

    def _parts(self, x: FloatArray) -> FloatArray:
        """Return b (N, R)."""
        deviation = self._across @ x[2:].reshape(self._shape) @ self._along.T
        return np.exp(self._log_center + np.clip(deviation, -LARGEST_LOG, LARGEST_LOG))

    def _gains(self, parts: FloatArray) -> FloatArray:
        return parts[:, ::-1].cumsum(axis=1)[:, ::-1] if self._decreasing else parts

    def _objective(self, x: FloatArray, strength: float) -> tuple[float, FloatArray]:
        """Return the penalised squared error and its gradient."""
        parts = self._parts(x)
        total = self._active @ self._gains(parts).ravel()
        falling = np.exp(x[1] - total) if self._link == "exp" else -total
        slope = -falling if self._link == "exp" else -np.ones_like(total)
        error = x[0] + falling - self._target
        weighted = self._weights * error
        by_gain = (self._active.T @ (2.0 * weighted * slope)).reshape(self._shape)
        by_part = by_gain.cumsum(axis=1) if self._decreasing else by_gain
        by_z = self._across.T @ (by_part * parts) @ self._along
        by_amplitude = 2.0 * float(weighted @ falling) if self._link == "exp" else 0.0
        gradient = np.concatenate([[2.0 * weighted.sum(), by_amplitude], by_z.ravel()])
        gradient[2:] += 2.0 * strength * x[2:]
        return float(error @ weighted + strength * (x[2:] @ x[2:])), gradient

    def _decay(self, counts: FloatArray) -> tuple[float, float, FloatArray]:
        """Fit one decay a·exp(-i/τ) for all; return offset, log amplitude and the (R,) decay."""
        i = np.arange(1, counts.shape[1] + 1)
        exponential = self._link == "exp"

        def profile(log_gain: float, log_tau: float) -> FloatArray:
            return np.exp(log_gain - i / np.exp(log_tau))

        def error(x: FloatArray) -> FloatArray:
            total = counts @ profile(x[2], x[3])
            bent = np.exp(x[1] - total) if exponential else -total
            return np.sqrt(self._weights) * (x[0] + bent - self._target)

        lowest = max(self._lowest_offset, -1e3)
        first = max(float(self._target.min()) - 0.5, lowest + 1e-3)
        span = float(np.ptp(self._target))
        offset = first if exponential else float(self._target.max())
        scale = (3.0 if exponential else span) / counts.sum(axis=1).max()
        x0 = [offset, np.log(span), np.log(scale), np.log(len(i) / 2)]
        low = [lowest, -5.0, -20.0, np.log(0.3)]
        high = [1e3, 5.0, 10.0, np.log(4.0 * len(i))]
        x = least_squares(error, np.clip(x0, low, high), bounds=(low, high)).x
        return float(x[0]), float(x[1]), profile(x[2], x[3])


def _prior_factors(layout: AdapterLayout) -> tuple[FloatArray, FloatArray]:
    """Return the Cholesky factors of the prior correlations across projections and along ranks."""
    layers = np.array([p.layer for p in layout.projections])
    kinds = np.array([p.kind for p in layout.projections])
    across = (1.0 - 2.0 * SHARED) * np.eye(layout.n_projections)
    across += SHARED * (np.equal.outer(layers, layers).astype(float) + np.equal.outer(kinds, kinds))
    i = np.arange(layout.r_max)
    along = RANK_CORRELATION ** np.abs(np.subtract.outer(i, i))
    return _root(across), _root(along)


def _root(correlation: FloatArray) -> FloatArray:
    return np.asarray(np.linalg.cholesky(correlation), dtype=np.float64)
