"""Fit a monotone utility to probes, and say how well it foretells plans that it has not seen.

How strongly the prior of `rankcast.finetune.gain_prior` binds, and whether the loss saturates, is
chosen by cross-validation within the training part of every outer fold; what is reported comes
from the outer folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.optimize import isotonic_regression

from rankcast.errors import ConfigError, DataError, nearest
from rankcast.finetune.gain_prior import PenalisedGains
from rankcast.finetune.monotone import LossLink, MonotoneUtility
from rankcast.records import AdapterLayout, FloatArray, IntArray

STRENGTHS = (10.0, 1.0, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Weights of the prior to choose from, strongest first: noise to signal, over spread squared."""

FOLDS = 5
RESAMPLES = 2000

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class FitQuality:
    """How well plans are foretold that took no part in the fit.

    Attributes:
        r2: share of the variance of the loss between plans that is explained.
        r2_interval: its 95 % bootstrap interval over the plans.
        r2_share_only: likewise of a rule that knows only how many parameters are sent.
        added: share of what that rule leaves unexplained which knowing *where* explains.
        added_interval: its 95 % bootstrap interval.
        residual_std: root mean squared error [nats].
        n_probes: P.
    """

    r2: float
    r2_interval: Interval
    r2_share_only: float
    added: float
    added_interval: Interval
    residual_std: float
    n_probes: int


@dataclass(frozen=True)
class Fit:
    """A utility fitted to all probes, and what its kind foretells of unseen ones.

    Attributes:
        utility: from all probes.
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

    Raises:
        ConfigError: an unknown link.
        DataError: too few plans, other shapes, or losses that do not differ.
    """
    known = get_args(LossLink)
    if link != "auto" and link not in known:
        raise ConfigError(f"There is no loss link {link!r}{nearest(link, ['auto', *known])}.")
    ranks, losses = _checked(ranks, losses, layout)
    fitter = _Fitter(layout, known if link == "auto" else (link,), decreasing, tuple(strengths))
    predicted, by_share = np.empty_like(losses), np.empty_like(losses)
    share = transmitted_share(ranks, layout)
    for train, test in _folds(rng, len(losses)):
        utility, _ = fitter.choose_and_fit(ranks[train], losses[train], rng)
        predicted[test] = utility.loss(ranks[test])
        by_share[test] = _share_rule(share[train], losses[train], share[test])
    utility, strength = fitter.choose_and_fit(ranks, losses, rng)
    quality = quality_of(losses, predicted, by_share, rng)
    return Fit(utility, strength, quality, predicted, by_share)


def quality_of(
    losses: FloatArray,
    predicted: FloatArray,
    share_predicted: FloatArray,
    rng: np.random.Generator,
) -> FitQuality:
    """Judge (P,) out-of-fold predictions against those that know only the share transmitted."""
    errors = (losses - predicted) ** 2
    simple = (losses - share_predicted) ** 2
    chosen = rng.integers(0, len(losses), (RESAMPLES, len(losses)))
    spread = losses[chosen].var(axis=1) * len(losses)
    r2 = 1.0 - errors[chosen].sum(axis=1) / np.maximum(spread, 1e-300)
    added = 1.0 - errors[chosen].sum(axis=1) / np.maximum(simple[chosen].sum(axis=1), 1e-300)
    total = losses.var() * len(losses)
    return FitQuality(
        r2=float(1.0 - errors.sum() / total),
        r2_interval=_interval(r2),
        r2_share_only=float(1.0 - simple.sum() / total),
        added=float(1.0 - errors.sum() / max(simple.sum(), 1e-300)),
        added_interval=_interval(added),
        residual_std=float(np.sqrt(errors.mean())),
        n_probes=len(losses),
    )


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
        self, ranks: IntArray, losses: FloatArray, rng: np.random.Generator
    ) -> tuple[MonotoneUtility, float]:
        """Return the utility and the strength that cross-validation prefers."""
        folds = _folds(rng, len(losses))
        error = np.zeros((len(self._links), len(self._strengths)))
        for row, link in zip(error, self._links, strict=True):
            for train, test in folds:
                path = self._path(ranks[train], losses[train], link, len(row))
                row += [((u.loss(ranks[test]) - losses[test]) ** 2).sum() for u in path]
        which, strength = np.unravel_index(error.argmin(), error.shape)
        path = self._path(ranks, losses, self._links[which], int(strength) + 1)
        return path[-1], self._strengths[strength]

    def _path(
        self, ranks: IntArray, losses: FloatArray, link: LossLink, length: int
    ) -> list[MonotoneUtility]:
        """Return the fits from the strongest prior on, each starting from the one before."""
        problem = PenalisedGains(ranks, losses, self._layout, link, self._decreasing)
        x, path = problem.start, []
        for strength in self._strengths[:length]:
            x = problem.solve(x, strength)
            path.append(problem.utility(x))
        return path


def _checked(
    ranks: IntArray, losses: FloatArray, layout: AdapterLayout
) -> tuple[IntArray, FloatArray]:
    """Return plans and losses as arrays that can be fitted, or raise `DataError`."""
    ranks, losses = np.asarray(ranks), np.asarray(losses, dtype=np.float64)
    if ranks.shape != (len(losses), layout.n_projections) or losses.ndim != 1:
        raise DataError(
            f"{layout.n_projections} projections need ranks of shape (P, {layout.n_projections}) "
            f"and P losses, got {ranks.shape} and {losses.shape}."
        )
    if len(losses) < 4 * FOLDS:
        raise DataError(f"{len(losses)} probes are too few to fit: take at least {4 * FOLDS}.")
    if not np.isfinite(losses).all() or losses.std() == 0:
        raise DataError("The probed losses are not finite, or the same for every plan.")
    return ranks, losses


def _folds(rng: np.random.Generator, n: int) -> list[tuple[IntArray, IntArray]]:
    """Deal n plans to folds; return what is fitted and what is held out, for each."""
    parts = np.array_split(rng.permutation(n), FOLDS)
    return [(np.setdiff1d(np.arange(n), part), part) for part in parts]


def _share_rule(share: FloatArray, losses: FloatArray, asked: FloatArray) -> FloatArray:
    """Foretell losses from the transmitted share alone, by isotonic regression."""
    knots, inverse = np.unique(share, return_inverse=True)
    weights = np.bincount(inverse).astype(np.float64)
    means = np.bincount(inverse, losses) / weights
    level = isotonic_regression(means, weights=weights, increasing=False).x
    return np.interp(asked, knots, level)


def _interval(values: FloatArray) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
