"""The worth of a plan, learned from noisy losses: a Bayesian linear utility.

U(r | H, ρ) = b·(1, H, ρ) - Σ_m Σ_{i ≤ r_m} g_{m,i} with a Gaussian belief over b and g. Gains are
correlated along the rank of a projection and decrease along it; the latter is imposed by isotonic
projection on the mean and on every draw. A draw from the belief, solved exactly, is a plan of
Thompson sampling. Where asked for, gains are linear in the text (`text_gains`).

The paper has no such model: it observes R_t and differentiates nothing (docs/paper-map.md, Eq. 19).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from scipy.linalg import block_diag, cho_factor, cho_solve, solve_triangular

from rankcast.allocation.problem import AllocationProblem
from rankcast.allocation.text_gains import TextGains
from rankcast.config.policy import StateName, UtilityConfig
from rankcast.errors import CheckpointError, ConfigError
from rankcast.records import AdapterLayout, FloatArray, IntArray, LinkState, TextStats

N_BASELINE = 3  # intercept, lexical entropy, OOV rate
_LEAST_WEIGHT = 1e-6
_LEAST_EXPECTED = 0.01
"""Of the mean gain of a unit of size, what any unit is expected to be worth at least."""


class LearnedUtility(Protocol):
    """A belief over what each component is worth, that learns from observed losses."""

    def update(
        self,
        ranks: IntArray,
        task_loss: FloatArray,
        text: TextStats,
        reference_loss: FloatArray | None = None,
    ) -> None:
        """Learn from the losses of (B, N) plans.

        Args:
            ranks: (B, N) plans.
            task_loss: (B,) observed U(r).
            text: (B,) statistics of the batches.
            reference_loss: (B,) loss of the same batches under full rank. If given, the pair is
                used: its difference holds less noise and no baseline.
        """
        ...

    def mean_gains(self, text: TextStats | None = None) -> FloatArray:
        """Return (N, R) expected gains, decreasing along R and not negative.

        Args:
            text: B texts, for the (B, N, R) gains of each; None for a nominal one.
        """
        ...

    def gains_at(
        self,
        problem: AllocationProblem,
        link: LinkState,
        rng: np.random.Generator | None = None,
        width: float = 1.0,
        *,
        text: TextStats | None = None,
    ) -> FloatArray:
        """Return (B, N, R) gains for which water-filling finds the best plan of each link.

        Args:
            problem: λ and link costs; an additive utility does not use them.
            link: B links.
            rng: for a draw of each link's own (Thompson sampling); None for the expected gains.
            width: scales the draws' distance from the mean.
            text: the B texts that come next, or one for all; None for a nominal one.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to continue."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        ...


class BayesianUtility:
    """A Gaussian belief over the gains of all components, updated with every observed loss.

    Ranks above 8 share gains within doubling bins (9–16, 17–32, …), so that the belief grows with
    log r_max. An update costs O(D²) per observation and a draw O(D³), D = 3 + (1 + J)·N·bins with
    J parts of the text that gains depend on.

    Args:
        layout: the projections and r_max.
        config: prior and noise.
        weights: (N, R) size of each component; see `RankBins`.
        hidden: parts of the state that gains must not depend on; see `TextGains`.
        expected: (N, R) gains in proportion to those that are expected, at least 0; None: the same
            for all projections, falling along the rank.
    """

    def __init__(
        self,
        layout: AdapterLayout,
        config: UtilityConfig | None = None,
        weights: FloatArray | None = None,
        hidden: Sequence[StateName] = (),
        expected: FloatArray | None = None,
    ) -> None:
        self.layout, self.config = layout, config or UtilityConfig()
        self._text_gains = TextGains(self.config.text_amplitude, hidden)
        self._bins = RankBins(layout, weights)
        mean, precision = self._prior(expected)
        self._prior_precision = precision
        self._prior_information = precision @ mean
        self._precision = precision.copy()
        self._information = self._prior_information.copy()
        self._factor: FloatArray | None = None

    def update(
        self,
        ranks: IntArray,
        task_loss: FloatArray,
        text: TextStats,
        reference_loss: FloatArray | None = None,
    ) -> None:
        """Learn from the losses of (B, N) plans."""
        active = self._bins.counts(ranks)
        if reference_loss is None:
            baseline, gained = baseline_features(text), -active
            target, noise = np.asarray(task_loss), self.config.noise_std
        else:
            baseline, gained = np.zeros((len(ranks), N_BASELINE)), self._bins.full - active
            target, noise = np.asarray(task_loss) - reference_loss, self.config.paired_noise_std
        spread = self._text_gains.spread(gained, self._text_gains.normalised(text))
        features = np.concatenate([baseline, spread], axis=1)
        keep = self.config.forgetting ** len(ranks)
        if keep < 1.0:
            self._precision += (1.0 - keep) * (self._prior_precision - self._precision)
            self._information += (1.0 - keep) * (self._prior_information - self._information)
        self._precision += features.T @ features / noise**2
        self._information += features.T @ target / noise**2
        self._factor = None

    def mean_gains(self, text: TextStats | None = None) -> FloatArray:
        """Return (N, R) expected gains, decreasing along R and not negative; (B, N, R) by text."""
        gains = self._to_gains(self._mean()[None], text)
        return gains[0] if text is None else for_each(gains, len(text.oov_rate))

    def gains_at(
        self,
        problem: AllocationProblem,
        link: LinkState,
        rng: np.random.Generator | None = None,
        width: float = 1.0,
        *,
        text: TextStats | None = None,
    ) -> FloatArray:
        """Return (B, N, R) gains for each link: the expected ones, or a draw."""
        del problem
        if rng is None:
            return for_each(self._to_gains(self._mean()[None], text), link.size)
        return self._to_gains(drawn(self._mean(), self._cholesky(), rng, link.size, width), text)

    def state_dict(self) -> dict[str, FloatArray]:
        """Return what is needed to continue."""
        return {"precision": self._precision.copy(), "information": self._information.copy()}

    def load_state_dict(self, state: dict[str, FloatArray]) -> None:
        """Continue from `state_dict()`.

        Raises:
            CheckpointError: the state belongs to another layout or form of utility.
        """
        if "precision" not in state:
            raise CheckpointError(
                "The saved utility is of another form; load it with the utility.form that it was "
                "trained with."
            )
        if np.shape(state["precision"]) != self._precision.shape:
            raise CheckpointError(
                f"The saved utility has {len(state['information'])} unknowns, this layout has "
                f"{len(self._information)}; load it with the model, r_max, utility.text_amplitude "
                f"and hidden text that it was trained with."
            )
        self._precision = np.array(state["precision"], dtype=np.float64)
        self._information = np.array(state["information"], dtype=np.float64)
        self._factor = None

    def _prior(self, expected: FloatArray | None) -> tuple[FloatArray, FloatArray]:
        """Return mean (D,) and precision (D, D)."""
        c, middle = self.config, self._bins.middles - 1
        if expected is None:
            shape = np.exp(-middle / (c.rank_decay or self.layout.r_max / 2))
            shape = np.tile(shape, (self.layout.n_projections, 1))
        else:
            shape = self._bins.of_unit(expected)
        mean = c.total_gain / (self._bins.widths * shape).sum() * shape
        alike = c.rank_correlation ** np.abs(np.subtract.outer(middle, middle))
        covariance = c.relative_std**2 * (mean[:, :, None] * mean[:, None, :]) * alike
        inverse = np.linalg.inv(covariance)
        baseline = np.zeros(N_BASELINE)
        baseline[0] = 2 * c.total_gain
        # A wide prior on the baseline, in nats per nat of entropy and per unit of OOV rate.
        head = baseline, np.diag([0.25, 25.0, 25.0])
        blocks = np.asarray(block_diag(*(inverse + inverse.transpose(0, 2, 1)) / 2))
        return self._text_gains.prior(head, (mean.reshape(-1), blocks))

    def _mean(self) -> FloatArray:
        return cho_solve((self._cholesky(), True), self._information)

    def _cholesky(self) -> FloatArray:
        """Return the lower factor L of the precision, L·Lᵀ."""
        if self._factor is None:
            self._factor = np.asarray(cho_factor(self._precision, lower=True)[0])
        return self._factor

    def _to_gains(self, beliefs: FloatArray, text: TextStats | None = None) -> FloatArray:
        """Return (B, N, R) gains of (B, D) beliefs for B texts; either may be one for all."""
        return self._bins.to_ranks(self._text_gains.of_texts(beliefs[:, N_BASELINE:], text))


def drawn(
    mean: FloatArray, factor: FloatArray, rng: np.random.Generator, size: int, width: float
) -> FloatArray:
    """Return (size, D) draws from a Gaussian.

    Args:
        mean: (D,).
        factor: (D, D) lower Cholesky factor of the precision.
        rng: of the draws.
        size: how many.
        width: scales their distance from the mean.
    """
    normal = rng.standard_normal((len(mean), size))
    return mean + width * solve_triangular(factor, normal, lower=True, trans=1).T


def for_each(gains: FloatArray, size: int) -> FloatArray:
    """Return (size, ...) gains, from those of each link or from one for all."""
    return np.broadcast_to(gains, (size, *gains.shape[1:])).copy()


def baseline_features(text: TextStats) -> FloatArray:
    """Return (B, 3): a constant, lexical entropy and OOV rate."""
    return np.column_stack([np.ones_like(text.oov_rate), text.lexical_entropy, text.oov_rate])


class RankBins:
    """Ranks 1..8 each for themselves, then doubling bins (9–16, 17–32, …) that share a gain.

    Where components differ in size, as levels in coded bits do, it is the gain of a unit of size
    that a bin has and that decreases along the rank.

    Args:
        layout: the projections and r_max.
        weights: (N, R) size of each component, at least 0; None: all are 1.
    """

    def __init__(self, layout: AdapterLayout, weights: FloatArray | None = None) -> None:
        self._n = layout.n_projections
        edges = np.array(_bin_edges(layout.r_max))
        self._starts = edges[:-1]
        self.middles = self._starts + (np.diff(edges) - 1) / 2 + 1
        """Rank in the middle of each bin, from 1."""
        sizes = np.ones((self._n, layout.r_max)) if weights is None else np.asarray(weights)
        if sizes.shape != (self._n, layout.r_max) or not (np.isfinite(sizes) & (sizes >= 0)).all():
            raise ConfigError(
                f"weights must be finite and at least 0, one row for each projection and one "
                f"column for each component: ({self._n}, {layout.r_max}), got {sizes.shape}."
            )
        self._sizes, self._bin_of = sizes, np.repeat(np.arange(len(edges) - 1), np.diff(edges))
        self._total = np.pad(sizes.cumsum(axis=1), ((0, 0), (1, 0)))
        self.widths = np.diff(self._total[:, edges], axis=1)
        """(N, bins) sizes of all components of each bin."""

    @property
    def size(self) -> int:
        """N·bins."""
        return self.widths.size

    @property
    def full(self) -> FloatArray:
        """(N·bins,) what each bin holds at full rank."""
        return self.widths.reshape(-1)

    def counts(self, ranks: IntArray) -> FloatArray:
        """Return (B, N·bins): how much of each bin is active in (B, N) ranks."""
        ranks = np.asarray(ranks)
        each = np.arange(self._n)[:, None]
        reached = self._total[each, ranks[..., None]] - self._total[each, self._starts]
        return np.clip(reached, 0.0, self.widths).reshape(len(ranks), self.size)

    def of_unit(self, gains: FloatArray) -> FloatArray:
        """Return (N, bins) gains of a unit of size, from (N, R) of components.

        Nothing is expected to be worth less than a hundredth of the mean.

        Raises:
            ConfigError: gains of another shape, or none above 0.
        """
        given = np.asarray(gains, dtype=np.float64)
        if given.shape != self._sizes.shape or not (np.isfinite(given) & (given >= 0)).all():
            raise ConfigError(
                f"Expected gains must be finite and at least 0, of shape {self._sizes.shape}, got "
                f"{given.shape}."
            )
        if not given.any():
            raise ConfigError("No component is expected to be worth anything.")
        total = np.pad(given.cumsum(axis=1), ((0, 0), (1, 0)))
        edges = np.append(self._starts, self._sizes.shape[1])
        unit = np.diff(total[:, edges], axis=1) / np.maximum(self.widths, _LEAST_WEIGHT)
        return np.maximum(unit, _LEAST_EXPECTED * given.sum() / self.widths.sum())

    def to_ranks(self, gains: FloatArray) -> FloatArray:
        """Return (B, N, R) gains of components, from (B, N·bins) of a unit of size.

        Those of a unit of size decrease along the rank.
        """
        binned = gains.reshape(len(gains), self._n, -1)
        decreasing = np.maximum(isotonic_decreasing(binned, self.widths), 0.0)
        return decreasing[..., self._bin_of] * self._sizes


def isotonic_decreasing(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the weighted least-squares decreasing fit along the last axis.

    By the min-max formula, fit_i = min_{a ≤ i} max_{b ≥ i} mean(values[a..b]): for the few bins
    of a projection it is faster than pool-adjacent-violators called once per row.

    Args:
        values: (..., K).
        weights: (K,) or (..., K), at least 0.
    """
    weights = np.maximum(weights, _LEAST_WEIGHT)
    k = weights.shape[-1]
    zero = np.zeros((*values.shape[:-1], 1))
    sums = np.concatenate([zero, np.cumsum(values * weights, axis=-1)], axis=-1)
    mass = np.concatenate([np.zeros((*weights.shape[:-1], 1)), weights.cumsum(axis=-1)], axis=-1)
    fit = np.full(values.shape, np.inf)
    for a in range(k):
        width = mass[..., a + 1 :] - mass[..., a : a + 1]
        means = (sums[..., a + 1 :] - sums[..., a : a + 1]) / width
        best = np.maximum.accumulate(means[..., ::-1], axis=-1)[..., ::-1]
        fit[..., a:] = np.minimum(fit[..., a:], best)
    return fit


def _bin_edges(r_max: int) -> list[int]:
    """Return 0, 1, …, 8, 16, 32, … up to r_max."""
    edges = list(range(min(r_max, 8) + 1))
    while edges[-1] < r_max:
        edges.append(min(2 * edges[-1], r_max))
    return edges
