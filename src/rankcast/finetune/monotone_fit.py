"""Fit a monotone utility to probes, and say how well it foretells plans that it has not seen.

How strongly the prior of `rankcast.finetune.gain_prior` binds, and whether the loss saturates, is
chosen by cross-validation within the training part of every outer fold; what is reported comes
from the outer folds (`rankcast.finetune.fit_quality`).

Where the standard errors of the losses are known, a plan counts by 1/(f² + se²), so that the loss
of full rank, which is nearly exact, counts for more than that of an empty plan. f is what the model
itself misses: the part of the squared error of the cross-validation that se² does not explain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from rankcast.errors import ConfigError, DataError, nearest
from rankcast.finetune.fit_quality import FitQuality, quality_of
from rankcast.finetune.gain_prior import PenalisedGains
from rankcast.finetune.monotone import LossLink, MonotoneUtility
from rankcast.records import AdapterLayout, FloatArray, IntArray

STRENGTHS = (10.0, 1.0, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Weights of the prior to choose from, strongest first: noise to signal, over spread squared."""

FOLDS = 5


@dataclass(frozen=True)
class Fit:
    """A utility fitted to all probes, and what its kind foretells of unseen ones.

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
    """Foretell losses from the transmitted share alone, by isotonic regression."""
    knots, inverse = np.unique(share, return_inverse=True)
    total = np.bincount(inverse, weights)
    means = np.bincount(inverse, weights * losses) / total
    level = isotonic_regression(means, weights=total, increasing=False).x
    return np.interp(asked, knots, level)
