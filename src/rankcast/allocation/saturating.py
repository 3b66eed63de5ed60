"""The worth of a plan where gains saturate: a belief over a loss that decays exponentially.

U(r | H, ρ) = b·(1, H, ρ) + A·exp(-s(r)), s(r) = Σ_m Σ_{i ≤ r_m} g_{m,i}, g = exp(u) > 0, with a
Gaussian belief over b, log A and u by Laplace's approximation. On a fine-tuned model the first
components remove most of the loss and later ones little: probes of a real model choose this form by
cross-validation (`studies/calibration`), and an additive belief spreads a gain that belongs to
rank 1 over all ranks.

The prior learns from all projections at once how gains fall along the rank: u is the sum of a level
and a slope in log2 of the rank, both common to all, a level of each projection, and a rest. Where
asked for, u is linear in the text (`text_gains`).

Shapes: `M` remembered losses, `N` projections, `R` = r_max, `K` = N·bins, `J` parts of the text
that gains depend on, `D` = 4 + (1 + J)·K.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from rankcast.allocation.beliefs import (
    N_BASELINE,
    BayesianUtility,
    LearnedUtility,
    RankBins,
    baseline_features,
    drawn,
    for_each,
)
from rankcast.allocation.problem import AllocationProblem
from rankcast.allocation.text_gains import TextGains
from rankcast.config.policy import StateName, UtilityConfig
from rankcast.errors import CheckpointError
from rankcast.records import AdapterLayout, FloatArray, IntArray, LinkState, TextStats

MEMORY = 3000
"""Losses that are remembered; older ones are forgotten whole."""

FULL_EXPONENT = 2.0
"""s at full rank that the prior expects."""

SLOPE, SLOPE_STD = 2.0, 1.5
LEVEL_STD, PROJECTION_STD, REST_STD = 1.0, 0.8, 0.5
AMPLITUDE_STD = 0.5
LARGEST_LOG_GAIN = 1.5
STEPS, HALVINGS = 40, 20
ENOUGH = 0.01
"""Misfit [nats] below which a step ends the fit: the belief is wider than what is left to gain."""

_HEAD = N_BASELINE + 1
_TINY, _MARGIN = 1e-300, 1e-9
_LEAST_FACTOR = 1e-100  # without a price everything is worth sending, however little is left


def make_utility(
    layout: AdapterLayout,
    config: UtilityConfig,
    weights: FloatArray | None = None,
    hidden: Sequence[StateName] = (),
    expected: FloatArray | None = None,
) -> LearnedUtility:
    """Return the belief that a configuration asks for.

    Args:
        layout: the projections and r_max.
        config: form, prior and noise.
        weights: (N, R) size of each component; see `RankBins`.
        hidden: parts of the state that the policy is not shown; see `TextGains`.
        expected: (N, R) gains in proportion to those that are expected; see `BayesianUtility`. A
            saturating utility begins without.
    """
    if config.form == "saturating":
        return SaturatingUtility(layout, config, weights, hidden)
    return BayesianUtility(layout, config, weights, hidden, expected)


class SaturatingUtility:
    """A belief over a saturating utility, fitted anew when it is asked after new losses.

    A fit costs O(M·D²) for each Gauss–Newton step, of which it takes two or three where it goes on
    from the last mode, and a draw O(D³).

    Args:
        layout: the projections and r_max.
        config: total gain, noise and forgetting; the spread of gains has constants of its own.
        weights: (N, R) size of each component; see `RankBins`.
        hidden: parts of the state that gains must not depend on; see `TextGains`.
    """

    def __init__(
        self,
        layout: AdapterLayout,
        config: UtilityConfig | None = None,
        weights: FloatArray | None = None,
        hidden: Sequence[StateName] = (),
    ) -> None:
        self.layout, self.config = layout, config or UtilityConfig(form="saturating")
        self._text_gains = TextGains(self.config.text_amplitude, hidden)
        self._bins = RankBins(layout, weights)
        self._prior_mean, self._prior_precision = self._prior()
        self._theta = self._prior_mean.copy()
        size = self._bins.size
        self._counts = np.zeros((0, size))
        self._text = np.zeros((0, N_BASELINE))
        self._target = np.zeros(0)
        self._paired = np.zeros(0, dtype=bool)
        self._factor: FloatArray | None = None

    def update(
        self,
        ranks: IntArray,
        task_loss: FloatArray,
        text: TextStats,
        reference_loss: FloatArray | None = None,
    ) -> None:
        """Remember the losses of (B, N) plans, for the next fit."""
        losses = np.asarray(task_loss, dtype=np.float64)
        paired = reference_loss is not None
        target = losses - reference_loss if paired else losses
        self._counts = _append(self._counts, self._bins.counts(ranks))
        self._text = _append(self._text, baseline_features(text))
        self._target = _append(self._target, target)
        self._paired = _append(self._paired, np.full(len(losses), paired))
        self._factor = None

    def mean_gains(self, text: TextStats | None = None) -> FloatArray:
        """Return (N, R) gains that sum to what full rank removes; their order is what matters.

        With B texts, the (B, N, R) gains of each.
        """
        self._fit()
        g = self._to_gains(self._theta[None], text)
        total = np.array([each.sum() for each in g])[:, None, None]
        removed = g * np.exp(self._theta[N_BASELINE]) * -np.expm1(-total) / total
        return removed[0] if text is None else for_each(removed, len(text.oov_rate))

    def gains_at(
        self,
        problem: AllocationProblem,
        link: LinkState,
        rng: np.random.Generator | None = None,
        width: float = 1.0,
        *,
        text: TextStats | None = None,
    ) -> FloatArray:
        """Return (B, N, R) marginal gains at the best plan of each link."""
        if rng is None:
            self._fit()
            theta = self._theta[None]
        else:
            theta = self._draw(rng, link.size, width)
        gains, amplitude = self._to_gains(theta, text), np.exp(theta[:, N_BASELINE])
        if rng is None:  # one belief for every link
            gains, amplitude = (for_each(x, link.size) for x in (gains, amplitude))
        return marginal_gains(gains, amplitude, problem, link)

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to continue."""
        return {
            "theta": self._theta.copy(),
            "counts": self._counts.copy(),
            "text": self._text.copy(),
            "target": self._target.copy(),
            "paired": self._paired.astype(np.float64),
            "fitted": np.array([self._factor is not None], dtype=np.float64),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            CheckpointError: the state belongs to another layout or form of utility.
        """
        if "theta" not in state or np.shape(state["theta"]) != self._theta.shape:
            raise CheckpointError(
                "The saved utility is of another layout or form; load it with the model, r_max, "
                "utility.form, utility.text_amplitude and hidden text that it was trained with."
            )
        self._theta = np.array(state["theta"], dtype=np.float64)
        self._counts = np.array(state["counts"], dtype=np.float64).reshape(-1, self._bins.size)
        self._text = np.array(state["text"], dtype=np.float64).reshape(-1, N_BASELINE)
        self._target = np.array(state["target"], dtype=np.float64)
        self._paired = np.array(state["paired"]).astype(bool)
        fitted = bool(np.asarray(state.get("fitted", 0.0)).any())  # older states do not say
        self._factor = self._factor_at(self._theta) if fitted else None

    def _prior(self) -> tuple[FloatArray, FloatArray]:
        """Return mean (D,) and precision (D, D)."""
        bins, n = self._bins, self.layout.n_projections
        at = np.log2(bins.middles)  # 0 for rank 1
        shape = np.exp(-SLOPE * at)
        level = np.log(FULL_EXPONENT / (bins.widths @ shape).sum())
        per_bin = len(at)
        common = LEVEL_STD**2 + SLOPE_STD**2 * np.outer(at, at)
        own = PROJECTION_STD**2 + REST_STD**2 * np.eye(per_bin)
        covariance = np.tile(common, (n, n)) + np.kron(np.eye(n), own)
        inverse = np.linalg.inv(covariance)
        total_gain = self.config.total_gain
        before = np.array([total_gain, 0.0, 0.0, np.log(total_gain)])
        head = before, np.diag([0.25, 25.0, 25.0, AMPLITUDE_STD**-2])
        own = np.tile(level - SLOPE * at, n), (inverse + inverse.T) / 2
        return self._text_gains.prior(head, own)

    def _fit(self) -> None:
        """Climb to the mode by damped Gauss–Newton steps, from the last one."""
        if self._factor is not None:
            return
        weights = self._weights()
        value, gradient, precision = self._linearised(self._theta, weights)
        for _ in range(STEPS):
            step = cho_solve(cho_factor(precision, lower=True), gradient)
            theta, reached = self._damped(step, weights, value)
            if not reached < value:
                break
            gained = value - reached
            self._theta = theta
            value, gradient, precision = self._linearised(theta, weights)
            if gained < ENOUGH:
                break
        self._factor = np.asarray(cho_factor(precision, lower=True)[0])

    def _factor_at(self, theta: FloatArray) -> FloatArray:
        """Return the Cholesky factor of the precision at a mode that was found before."""
        _, _, precision = self._linearised(theta, self._weights())
        return np.asarray(cho_factor(precision, lower=True)[0])

    def _damped(
        self, step: FloatArray, weights: FloatArray, value: float
    ) -> tuple[FloatArray, float]:
        """Return where the longest halving of a step leads that lowers the misfit, and the misfit.

        If none does, what is returned is no better than `value`.
        """
        theta, reached = self._theta, value
        for _ in range(HALVINGS):
            theta = self._theta + step
            theta[_HEAD:] = np.minimum(theta[_HEAD:], LARGEST_LOG_GAIN)
            reached = self._misfit(theta, weights)
            if reached < value:
                break
            step = step / 2
        return theta, reached

    def _weights(self) -> FloatArray:
        """Return (M,) precision of each loss, less for older ones."""
        c = self.config
        noise = np.where(self._paired, c.paired_noise_std, c.noise_std)
        age = np.arange(len(self._target))[::-1]
        return c.forgetting**age / noise**2

    def _residual(self, theta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Return (M,) residuals, (M,) A·exp(-s) of the plans and of full rank, and the gains.

        Gains are (M, K), or (K,) where they are the same for all texts.
        """
        if self._text_gains.size:
            gains = np.exp(self._text_gains.of_texts(theta[None, _HEAD:], self._texts()))
            reached, whole = (self._counts * gains).sum(axis=1), gains @ self._bins.full
        else:
            gains = np.exp(theta[_HEAD:])
            reached, whole = self._counts @ gains, self._bins.full @ gains
        left = np.exp(theta[N_BASELINE] - reached)
        full = np.broadcast_to(np.exp(theta[N_BASELINE] - whole), left.shape)
        expected = np.where(self._paired, left - full, self._text @ theta[:N_BASELINE] + left)
        return self._target - expected, left, full, gains

    def _texts(self) -> TextStats:
        """Return the M texts of what is remembered."""
        return TextStats(self._text[:, 1], self._text[:, 2])

    def _misfit(self, theta: FloatArray, weights: FloatArray) -> float:
        """Return minus the log posterior, up to a constant."""
        away = theta - self._prior_mean
        with np.errstate(over="ignore", invalid="ignore"):  # a step far too long ends in inf or NaN
            residual = self._residual(theta)[0]
            return float(weights @ residual**2 + away @ self._prior_precision @ away) / 2

    def _linearised(
        self, theta: FloatArray, weights: FloatArray
    ) -> tuple[float, FloatArray, FloatArray]:
        """Return misfit, direction of ascent (D,) and Gauss–Newton precision (D, D)."""
        residual, left, full, gains = self._residual(theta)
        alone = ~self._paired
        slope = -left[:, None] * self._counts
        slope[self._paired] += full[self._paired, None] * self._bins.full
        by_gain = self._text_gains.spread(slope * gains, self._text_gains.normalised(self._texts()))
        jacobian = np.concatenate(
            [self._text * alone[:, None], (left - np.where(alone, 0.0, full))[:, None], by_gain],
            axis=1,
        )
        away = theta - self._prior_mean
        prior = self._prior_precision @ away
        weighted = jacobian.T * weights
        precision = weighted @ jacobian + self._prior_precision
        value = float(weights @ residual**2 + away @ prior) / 2
        return value, weighted @ residual - prior, precision

    def _draw(self, rng: np.random.Generator, size: int, width: float) -> FloatArray:
        """Return (size, D) draws; `width` scales their distance from the mode."""
        self._fit()
        assert self._factor is not None
        theta = drawn(self._theta, self._factor, rng, size, width)
        theta[:, _HEAD:] = np.minimum(theta[:, _HEAD:], LARGEST_LOG_GAIN)
        return theta

    def _to_gains(self, theta: FloatArray, text: TextStats | None = None) -> FloatArray:
        """Return (B, N, R) gains of (B, D) beliefs for B texts; either may be one for all."""
        logs = self._text_gains.of_texts(theta[:, _HEAD:], text)
        return self._bins.to_ranks(np.exp(np.minimum(logs, LARGEST_LOG_GAIN)))


def marginal_gains(
    gains: FloatArray, amplitude: FloatArray, problem: AllocationProblem, link: LinkState
) -> FloatArray:
    """Return gains that make an additive problem of a saturating one, with the same best plan.

    Components enter in order of gain per bit, after those of the minimum rank. The best plan is the
    prefix k of that order with the least A·exp(-s) + λη. The factor that is returned on g lies
    between the prices per gain of the components k and k + 1, so that water-filling stops there;
    where many are equal, as within a bin, those sent are lifted above their price and the others
    held below it.

    Args:
        gains: (B, N, R) g, decreasing along R.
        amplitude: (B,) A.
        problem: λ, minimum rank and link costs.
        link: B links.

    Returns:
        (B, N, R) m·g with one m for each link, but for components of equal price per gain.
    """
    prices = problem.link_weight * problem.component_costs(link)
    priority = gains / np.maximum(prices, _TINY)
    priority[:, :, : problem.min_rank] = np.inf
    prices, flat = (x.reshape(len(gains), -1) for x in (prices, gains))
    order = np.argsort(-priority.reshape(flat.shape), axis=1, kind="stable")
    g = np.take_along_axis(flat, order, axis=1)
    c = np.take_along_axis(prices, order, axis=1)
    left, k = _best_prefix(g, c, amplitude, gains.shape[1] * problem.min_rank)
    ratio = c / np.maximum(g, _TINY)  # m above it: the component is sent
    position = np.arange(g.shape[1])
    last, following = (position == at[:, None] for at in (k - 1, k))
    free = position >= gains.shape[1] * problem.min_rank
    below = np.where(last & free, ratio, 0.0).max(axis=1)
    above = np.where(following & (c > 0), ratio, np.inf).min(axis=1)
    factor = np.clip(left, below * (1 + _MARGIN), above * (1 - _MARGIN))
    worth = np.maximum(factor, _LEAST_FACTOR)[:, None] * flat
    sent = np.zeros(flat.shape, dtype=bool)
    np.put_along_axis(sent, order, position < k[:, None], axis=1)
    lifted = np.maximum(worth, prices * (1 + _MARGIN))
    held = np.where(prices > 0, np.minimum(worth, prices * (1 - _MARGIN)), worth)
    return np.where(sent, lifted, held).reshape(gains.shape)


def _best_prefix(
    g: FloatArray, c: FloatArray, amplitude: FloatArray, least: int
) -> tuple[FloatArray, IntArray]:
    """Return (B,) A·exp(-s) at the best prefix of (B, N·R) components in order, and its length."""
    none = np.zeros((len(g), 1))
    total = np.concatenate([none, g.cumsum(axis=1)], axis=1)
    left = amplitude[:, None] * np.exp(-total)
    spent = np.concatenate([none, c.cumsum(axis=1)], axis=1)
    k = (left + spent)[:, least:].argmin(axis=1) + least
    return left[np.arange(len(g)), k], k


def _append(kept: Any, new: Any) -> Any:
    """Return an array with new rows at its end, at most `MEMORY` of them."""
    return np.concatenate([kept, new])[-MEMORY:]
