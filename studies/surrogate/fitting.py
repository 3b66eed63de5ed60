"""Fit a monotone utility to probes, and measure how well it predicts plans that it has not seen.

How strongly the prior binds, and whether the loss saturates, is chosen by cross-validation within
the training part of every outer fold; what is reported comes from the outer folds.

Where the standard errors of the losses are known, a plan counts by 1/(f² + se²), so that the loss
of full rank, which is nearly exact, counts for more than that of an empty plan. f is what the model
itself misses: the part of the squared error of the cross-validation that se² does not explain.

Shapes: `P` probed plans, `N` projections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from rankcast.errors import ConfigError, DataError, nearest
from rankcast.records import AdapterLayout, FloatArray, IntArray
from studies.harness.spec import Interval
from studies.surrogate.monotone import LossLink, MonotoneUtility, PenalisedGains, significant

STRENGTHS = (10.0, 1.0, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Weights of the prior to choose from, strongest first: noise to signal, over spread squared."""

FOLDS = 5

RESAMPLES = 2000


@dataclass(frozen=True)
class Fit:
    """A utility fitted to all probes, and what fits like it predict of unseen ones.

    Attributes:
        utility: from all probes whose loss is known.
        strength: weight of the prior that was chosen.
        quality: from the outer folds.
        predicted: (P,) out-of-fold predictions.
        share_predicted: (P,) likewise of the rule that knows only the share transmitted.
    """

    utility: MonotoneUtility
    strength: float
    quality: FitQuality
    predicted: FloatArray
    share_predicted: FloatArray


def fit(
    ranks: IntArray,
    losses: FloatArray,
    layout: AdapterLayout,
    rng: np.random.Generator,
    link: LossLink | Literal["auto"] = "auto",
    *,
    decreasing: bool = False,
    strengths: Sequence[float] = STRENGTHS,
    std_errors: FloatArray | None = None,
) -> Fit:
    """Fit a monotone utility to the losses of (P, N) plans.

    Args:
        ranks: (P, N) plans.
        losses: (P,) their losses.
        layout: the projections and r_max.
        rng: deals the plans to folds and resamples them.
        link: see `MonotoneUtility`; `auto` lets cross-validation choose.
        decreasing: whether the gains of a projection decrease along the rank.
        strengths: weights of the prior to choose from, the strongest first.
        std_errors: (P,) of the losses [nats]; an infinite one marks a plan whose loss is not known
            and does not count. None counts all plans alike.

    Raises:
        ConfigError: an unknown link.
        DataError: too few plans, other shapes, or losses that do not differ.
    """
    links = get_args(LossLink)
    if link != "auto" and link not in links:
        raise ConfigError(f"There is no loss link {link!r}{nearest(link, ['auto', *links])}.")
    known, error = _known(losses, std_errors)
    ranks, losses = _checked(ranks, losses, layout, known)
    fitter = _Fitter(layout, links if link == "auto" else (link,), decreasing, tuple(strengths))
    predicted, by_share = np.empty_like(losses), np.empty_like(losses)
    share = transmitted_share(ranks, layout)
    for some, test in _folds(rng, len(losses)):
        train = some[known[some]]
        utility, _ = fitter.choose_and_fit(ranks[train], losses[train], error[train], rng)
        predicted[test] = utility.loss(ranks[test])
        weights = _weights(error[train], _typical(error[train]))
        by_share[test] = _share_rule(share[train], losses[train], weights, share[test])
    utility, strength = fitter.choose_and_fit(ranks[known], losses[known], error[known], rng)
    quality = quality_of(losses[known], predicted[known], by_share[known], rng, error[known])
    return Fit(utility, strength, quality, predicted, by_share)


def transmitted_share(ranks: IntArray, layout: AdapterLayout) -> FloatArray:
    """Return (P,) parameters of each plan, as a share of those at full rank."""
    params = layout.params_per_rank
    return (np.asarray(ranks) @ params) / float(params.sum() * layout.r_max)


class _Fitter:
    """Chooses link and strength by cross-validation, and fits."""

    def __init__(
        self,
        layout: AdapterLayout,
        links: tuple[LossLink, ...],
        decreasing: bool,
        strengths: tuple[float, ...],
    ) -> None:
        self._layout, self._links = layout, links
        self._decreasing, self._strengths = decreasing, strengths

    def choose_and_fit(
        self,
        ranks: IntArray,
        losses: FloatArray,
        std_errors: FloatArray,
        rng: np.random.Generator,
    ) -> tuple[MonotoneUtility, float]:
        """Return the utility and the strength that cross-validation prefers."""
        folds = _folds(rng, len(losses))
        weights = _weights(std_errors, _typical(std_errors))
        squares = np.zeros((len(self._links), len(self._strengths), len(losses)))
        for row, link in zip(squares, self._links, strict=True):
            for train, test in folds:
                path = self._path(ranks[train], losses[train], weights[train], link, len(row))
                row[:, test] = [(u.loss(ranks[test]) - losses[test]) ** 2 for u in path]
        total = squares @ weights
        which, strength = np.unravel_index(total.argmin(), total.shape)
        weights = _weights(std_errors, _missed(squares[which, strength], std_errors, weights))
        path = self._path(ranks, losses, weights, self._links[which], int(strength) + 1)
        return path[-1], self._strengths[strength]

    def _path(
        self,
        ranks: IntArray,
        losses: FloatArray,
        weights: FloatArray,
        link: LossLink,
        length: int,
    ) -> list[MonotoneUtility]:
        """Return the fits from the strongest prior on, each starting from the one before."""
        problem = PenalisedGains(
            ranks, losses, self._layout, link, self._decreasing, weights=weights
        )
        x, path = problem.start, []
        for strength in self._strengths[:length]:
            x = problem.solve(x, strength)
            path.append(problem.utility(x))
        return path


def _known(
    losses: FloatArray, std_errors: FloatArray | None
) -> tuple[NDArray[np.bool_], FloatArray]:
    """Return (P,) which losses are known and their standard errors, or raise `DataError`."""
    if std_errors is None:
        return np.ones(len(losses), dtype=bool), np.zeros(len(losses))
    error = np.asarray(std_errors, dtype=np.float64)
    if error.shape != np.shape(losses) or not (error >= 0).all():
        raise DataError(
            f"{len(losses)} losses need as many standard errors, none of them negative or NaN; got "
            f"shape {error.shape}."
        )
    return np.isfinite(error), error


def _typical(std_errors: FloatArray) -> float:
    """Return the root mean square of some standard errors."""
    return float(np.sqrt(np.mean(std_errors**2)))


def _missed(squares: FloatArray, std_errors: FloatArray, weights: FloatArray) -> float:
    """Return f, of which at least a tenth of the typical standard error is assumed."""
    excess = np.average(squares - std_errors**2, weights=weights)
    return max(float(np.sqrt(max(excess, 0.0))), 0.1 * _typical(std_errors))


def _weights(std_errors: FloatArray, floor: float) -> FloatArray:
    """Return (P,) weights of plans, of mean 1."""
    if not std_errors.any():
        return np.ones_like(std_errors)
    weights = 1.0 / (floor**2 + std_errors**2)
    return weights / weights.mean()


def _checked(
    ranks: IntArray, losses: FloatArray, layout: AdapterLayout, known: NDArray[np.bool_]
) -> tuple[IntArray, FloatArray]:
    """Return plans and losses as arrays that can be fitted, or raise `DataError`."""
    ranks, losses = np.asarray(ranks), np.asarray(losses, dtype=np.float64)
    if ranks.shape != (len(losses), layout.n_projections) or losses.ndim != 1:
        raise DataError(
            f"{layout.n_projections} projections need ranks of shape (P, {layout.n_projections}) "
            f"and P losses, got {ranks.shape} and {losses.shape}."
        )
    if known.sum() < 4 * FOLDS:
        raise DataError(
            f"{known.sum()} probes of known loss are too few to fit: take at least {4 * FOLDS}."
        )
    if not np.isfinite(losses[known]).all() or losses[known].std() == 0:
        raise DataError("The probed losses are not finite, or the same for every plan.")
    return ranks, losses


def _folds(rng: np.random.Generator, n: int) -> list[tuple[IntArray, IntArray]]:
    """Deal n plans to folds; return what is fitted and what is held out, for each."""
    parts = np.array_split(rng.permutation(n), FOLDS)
    return [(np.setdiff1d(np.arange(n), part), part) for part in parts]


def _share_rule(
    share: FloatArray, losses: FloatArray, weights: FloatArray, asked: FloatArray
) -> FloatArray:
    """Predict losses from the transmitted share alone, by isotonic regression."""
    knots, inverse = np.unique(share, return_inverse=True)
    total = np.bincount(inverse, weights)
    means = np.bincount(inverse, weights * losses) / total
    level = isotonic_regression(means, weights=total, increasing=False).x
    return np.interp(asked, knots, level)


@dataclass(frozen=True, slots=True)
class FitQuality:
    """How well the losses of plans are predicted that took no part in the fit.

    Attributes:
        r2: share of the variance of the loss between plans that is explained. The losses are
            measured on a sample of texts, whose errors nothing predicts.
        r2_interval: its 95 % bootstrap interval over the plans.
        r2_share_only: likewise of a rule that knows only how many parameters are sent.
        added: share of what that rule leaves unexplained which knowing *where* explains.
        added_interval: its 95 % bootstrap interval.
        residual_std: root mean squared error, sampling errors included [nats].
        n_probes: P.
        r2_explainable: share of the variance of the loss itself that is explained: mean squared
            error and variance, each without the mean squared sampling error; at most 1, and 0
            where the losses vary no more than that. None where it was not measured.
        r2_explainable_interval: its 95 % bootstrap interval.
        sampling_std: root mean squared standard error of the losses [nats].
    """

    r2: float
    r2_interval: Interval
    r2_share_only: float
    added: float
    added_interval: Interval
    residual_std: float
    n_probes: int
    r2_explainable: float | None = None
    r2_explainable_interval: Interval | None = None
    sampling_std: float = 0.0

    def to_plain(self) -> dict[str, Any]:
        """Return JSON values, rounded to 6 significant digits."""
        return {
            name: [significant(x) for x in value]
            if isinstance(value, tuple)
            else significant(value)
            if isinstance(value, float)
            else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Return what `to_plain` described; what older files lack has its default."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in plain.items()
        }
        return cls(**values)


def quality_of(
    losses: FloatArray,
    predicted: FloatArray,
    share_predicted: FloatArray,
    rng: np.random.Generator,
    std_errors: FloatArray | None = None,
) -> FitQuality:
    """Judge (P,) out-of-fold predictions against those that know only the share transmitted.

    Args:
        losses: (P,) measured.
        predicted: (P,) predicted.
        share_predicted: (P,) predicted by the rule that knows only the share.
        rng: of the bootstrap.
        std_errors: (P,) of the measured losses; None for none.

    Raises:
        DataError: a standard error that is not finite.
    """
    noise = np.zeros_like(losses) if std_errors is None else std_errors**2
    if not np.isfinite(noise).all():
        raise DataError("Plans of unknown loss cannot be judged: leave them out.")
    errors = (losses - predicted) ** 2
    simple = (losses - share_predicted) ** 2
    chosen = rng.integers(0, len(losses), (RESAMPLES, len(losses)))
    spread = losses[chosen].var(axis=1) * len(losses)
    wrong, unsure = errors[chosen].sum(axis=1), noise[chosen].sum(axis=1)
    r2 = 1.0 - wrong / np.maximum(spread, 1e-300)
    added = 1.0 - wrong / np.maximum(simple[chosen].sum(axis=1), 1e-300)
    total = losses.var() * len(losses)
    return FitQuality(
        r2=float(1.0 - errors.sum() / total),
        r2_interval=_interval(r2),
        r2_share_only=float(1.0 - simple.sum() / total),
        added=float(1.0 - errors.sum() / max(simple.sum(), 1e-300)),
        added_interval=_interval(added),
        residual_std=float(np.sqrt(errors.mean())),
        n_probes=len(losses),
        r2_explainable=float(_explainable(errors.sum(), total, noise.sum())),
        r2_explainable_interval=_interval(_explainable(wrong, spread, unsure)),
        sampling_std=float(np.sqrt(noise.mean())),
    )


def _explainable(wrong: FloatArray, spread: FloatArray, noise: FloatArray) -> FloatArray:
    """Return the share explained once noise is taken out of both sums of squares."""
    signal = np.asarray(spread - noise)
    share = 1.0 - np.divide(wrong - noise, signal, out=np.ones_like(signal), where=signal > 0)
    return np.minimum(share, 1.0)


def _interval(values: FloatArray) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
