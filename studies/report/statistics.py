"""Intervals for every difference that is reported: over seeds, over texts, over both.

Shapes: S seeds, `n` texts, `G` groups of texts, `C` points of a curve. All intervals are of 95 %.
A bootstrap draws 10,000 resamples and takes the percentiles of their means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import trapezoid
from scipy.stats import t as student

from rankcast.errors import ConfigError
from rankcast.records import FloatArray, IntArray
from rankcast.statistics import RESAMPLES, TAILS, as_vector, check_same_shape
from studies.harness.spec import Verdict

_WHOLE = 2.0**24
"""Below it float32 adds whole numbers exactly."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval.

    `f"{estimate:.3f}"` is `0.241 ± 0.048` if the interval is symmetrical, `0.241 (0.200 to 0.290)`
    if it is not, and `0.241` if there is none.

    Attributes:
        value: the number.
        low: lower end; NaN where there is no interval.
        high: upper end.
    """

    value: float
    low: float
    high: float

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends, or None if there is no interval."""
        return (self.low, self.high) if np.isfinite((self.low, self.high)).all() else None

    @property
    def half_width(self) -> float:
        """Half of the interval's length."""
        return (self.high - self.low) / 2.0

    def scaled(self, factor: float) -> Estimate:
        """Return the same in another unit, such as percent."""
        low, high = sorted((self.low * factor, self.high * factor))
        return Estimate(self.value * factor, low, high)

    def __format__(self, spec: str) -> str:
        """Write number and interval, each by the same format."""
        number = format(self.value, spec)
        if self.interval is None:
            return number
        middle = (self.low + self.high) / 2.0
        if math.isclose(middle, self.value, rel_tol=1e-9, abs_tol=1e-9 * self.half_width):
            return f"{number} ± {format(self.half_width, spec.replace('+', ''))}"
        return f"{number} ({format(self.low, spec)} to {format(self.high, spec)})"


def t_interval(values: ArrayLike) -> Estimate:
    """Return the mean of (S,) values with Student's t interval; a single value has none.

    Raises:
        ConfigError: no value.
    """
    x = as_vector(values)
    mean = float(x.mean())
    if len(x) == 1:
        return Estimate(mean, math.nan, math.nan)
    half = float(student.ppf(TAILS[1], len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return Estimate(mean, mean - half, mean + half)


def paired_t(ours: ArrayLike, theirs: ArrayLike) -> Estimate:
    """Return the mean of ours - theirs, (S,) each, seed by seed, with its t interval.

    Raises:
        ConfigError: different lengths, or no value.
    """
    a, b = as_vector(ours), as_vector(theirs)
    check_same_shape(a, b)
    return t_interval(a - b)


def pooled_bootstrap(
    differences_by_seed: ArrayLike,
    rng: np.random.Generator | int,
    resamples: int = RESAMPLES,
    *,
    groups: ArrayLike | None = None,
) -> Estimate:
    """Return the mean of (S, n) differences, resampling seeds, then texts.

    The texts are the same for all seeds, so a resample takes the same texts for each. Drawing
    S - 1 of S seeds makes the spread over seeds unbiased (Rao and Wu, 1988), but percentiles of
    three or four seeds still cover too little: state the seeds beside the interval. With one seed
    only texts are resampled.

    Texts that depend on one another, such as phrases of one sentence, are no independent draws:
    with `groups` whole groups are drawn, and a resample is the mean over all texts in them.

    Args:
        differences_by_seed: (S, n), of each seed and text.
        rng: source of the resamples, or its seed.
        resamples: how many.
        groups: (n,) what is equal for texts of one group; None where each text is its own.

    Raises:
        ConfigError: another shape, or nothing in it.
    """
    d = np.asarray(differences_by_seed, dtype=np.float64)
    if d.ndim != 2 or not d.size:
        raise ConfigError(f"Give differences as (seeds, texts), not empty; got shape {d.shape}.")
    generator = np.random.default_rng(rng)
    grouped = _grouped(d, np.arange(d.shape[1]) if groups is None else groups)
    means = _resampled(grouped, generator, resamples)
    low, high = np.quantile(means, TAILS).round(12)  # other orders of summing round alike
    return Estimate(float(d.mean()), float(low), float(high))


def _grouped(d: FloatArray, groups: ArrayLike) -> FloatArray:
    """Return (S + 1, G) sums over the texts of each group, below them the sizes of the groups."""
    labels = np.asarray(groups)
    if labels.shape != d.shape[1:]:
        raise ConfigError(f"{d.shape[1]} texts need as many groups, got shape {labels.shape}.")
    _, group = np.unique(labels, return_inverse=True)
    return np.array([*(np.bincount(group, row) for row in d), np.bincount(group)], np.float64)


def _resampled(grouped: FloatArray, generator: np.random.Generator, resamples: int) -> FloatArray:
    """Return the means of resamples of groups; (S + 1, G) are their sums and sizes."""
    sums, sizes = grouped[:-1], grouped[-1]
    drawing = sums.shape[1], int(generator.integers(2**32)), resamples
    seeds = _drawn_seeds(len(sums), generator, resamples)
    some = np.flatnonzero(sums.any(axis=0))  # two adapters answer most texts alike
    times = _times_drawn(*drawing)
    times = times if len(some) == len(times) else times[some]
    totals = _exact_product(sums[:, some], times)
    drawn = _sizes_drawn(sizes.tobytes(), *drawing)
    return (seeds * totals.T).sum(axis=1) / (seeds[0].sum() * drawn)


def _exact_product(sums: FloatArray, times: NDArray[np.float32]) -> FloatArray:
    """Return (S, resamples) totals of (S, G) sums that are drawn (G, resamples) times each."""
    most = sums.shape[1] * np.abs(sums).max(initial=0)
    if most < _WHOLE and (sums == np.rint(sums)).all():  # as of right and wrong answers
        return (sums.astype(np.float32) @ times).astype(np.float64)
    n_parts = max(times.size // 2**22, 1)
    parts = zip(np.array_split(sums, n_parts, 1), np.array_split(times, n_parts), strict=True)
    return np.sum([own @ part.astype(np.float64) for own, part in parts], axis=0)


def _drawn_seeds(n_seeds: int, generator: np.random.Generator, resamples: int) -> IntArray:
    """Return (resamples, S) how often each seed is drawn: S - 1 of them, or the only one."""
    share = np.full(n_seeds, 1 / n_seeds)
    return generator.multinomial(max(n_seeds - 1, 1), share, size=resamples)


@lru_cache(maxsize=1)
def _times_drawn(n_groups: int, seed: int, resamples: int) -> NDArray[np.float32]:
    """Return (G, resamples) how often each group is drawn; kept for the next estimate."""
    generator = np.random.default_rng(seed)
    drawn = np.empty((n_groups, resamples), dtype=np.float32)
    for block in np.array_split(np.arange(resamples), max(resamples // 64, 1)):
        rows = [generator.integers(n_groups, size=n_groups) for _ in block]
        times = np.array([np.bincount(row, minlength=n_groups) for row in rows], np.float32)
        drawn[:, block[0] : block[-1] + 1] = times.T  # 64 at a time stay in the cache
    return drawn


@lru_cache(maxsize=4)
def _sizes_drawn(sizes: bytes, n_groups: int, seed: int, resamples: int) -> FloatArray:
    """Return (resamples,) texts in each draw, of (G,) sizes of groups."""
    each = np.frombuffer(sizes, dtype=np.float64)
    return _exact_product(each[None], _times_drawn(n_groups, seed, resamples))[0]


def area_under_curve(bits: ArrayLike, accuracy: ArrayLike, low: float, high: float) -> FloatArray:
    """Return the mean accuracy between two budgets, the normalised area under (..., C) curves.

    Budgets count by their logarithm, so that each doubling counts alike; between measured budgets
    the accuracy is linear, and beyond the largest its accuracy holds. Points of equal bits count as
    their mean.

    Args:
        bits: (C,) budgets that were measured [bit], in any order.
        accuracy: (..., C) what was reached.
        low: lower budget [bit]; at least the smallest measured one.
        high: upper budget [bit].

    Returns:
        (...) areas, in the unit of the accuracy.

    Raises:
        ConfigError: budgets out of order, below what was measured, or not positive.
    """
    x, y = as_vector(bits), np.asarray(accuracy, dtype=np.float64)
    if y.ndim == 0 or y.shape[-1] != len(x):
        raise ConfigError(f"{len(x)} budgets need as many accuracies, got shape {y.shape}.")
    if not (0 < low < high) or low < x.min():
        raise ConfigError(
            f"The budgets must be positive, in order, and not below the smallest measured one, "
            f"{x.min():g} bits; got {low:g} to {high:g}."
        )
    return y @ _area_weights(np.log2(x), math.log2(low), math.log2(high))


def auc_interval(
    bits: ArrayLike, answers: ArrayLike, low: float, high: float, rng: np.random.Generator | int
) -> Estimate:
    """Return the area under the mean rate-accuracy curve, bootstrapping the curves behind it.

    The area is linear in the accuracies, so each seed and text has one of its own and the mean of
    these is resampled. For two allocators subtract the areas of single texts and use
    `pooled_bootstrap`.

    Args:
        bits: (C,) or (S, C) budgets [bit].
        answers: (S, C, n) share of right answers of each text, or (S, C) accuracies.
        low: lower budget [bit].
        high: upper budget [bit].
        rng: source of the resamples, or its seed.

    Raises:
        ConfigError: see `area_under_curve`; another shape.
    """
    y = np.asarray(answers, dtype=np.float64)
    if y.ndim == 2:
        y = y[..., None]
    if y.ndim != 3:
        raise ConfigError(f"Give answers as (seeds, budgets, texts), got shape {y.shape}.")
    x = np.broadcast_to(np.asarray(bits, dtype=np.float64), y.shape[:2])
    areas = [area_under_curve(b, a.T, low, high) for b, a in zip(x, y, strict=True)]
    return pooled_bootstrap(areas, rng)


def not_worse(interval: tuple[float, float] | None, margin: float = 0.0) -> bool:
    """Return whether the interval of ours - theirs excludes being worse by more than a margin.

    Raises:
        ConfigError: a negative margin.
    """
    return interval is not None and interval[0] >= -_checked_margin(margin)


def equivalent(interval: tuple[float, float] | None, margin: float) -> bool:
    """Return whether the interval of a difference lies within ± a margin.

    Raises:
        ConfigError: a negative margin.
    """
    return not_worse(interval, margin) and interval is not None and interval[1] <= margin


def _area_weights(x: FloatArray, low: float, high: float) -> FloatArray:
    """Return (C,) weights of the points of a curve in its mean between two abscissae."""
    knots, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    inner = knots[(knots > low) & (knots < high)]
    grid = np.concatenate([[low], inner, [high]])
    hats = np.array([np.interp(grid, knots, hat) for hat in np.eye(len(knots))])
    return (trapezoid(hats, grid, axis=1) / counts)[inverse] / (high - low)


def _checked_margin(margin: float) -> float:
    if not margin >= 0:
        raise ConfigError(f"A margin is at least 0, got {margin}.")
    return margin


def verdict(difference: Estimate, claimed: float = math.inf) -> Verdict:
    """Return what our difference, positive where the paper claims so, says of the paper's.

    `opposite sign`: our interval lies below 0. `smaller than claimed`: it lies below the paper's
    size. `reproduced`: it lies above 0, and reaches that size. `not distinguishable`: it holds
    both 0 and that size, or there is no interval.

    Args:
        difference: ours.
        claimed: the paper's size; infinite where it only says which is better, and then no
            size can be too small.
    """
    if difference.interval is None:
        return "not distinguishable"
    if difference.high < 0:
        return "opposite sign"
    if math.isfinite(claimed) and difference.high < claimed:
        return "smaller than claimed"
    return "reproduced" if difference.low > 0 else "not distinguishable"


def verdict_not_worse(difference: Estimate, margin: float) -> Verdict:
    """Return what our difference says of "no worse by more than a margin".

    `opposite sign` is what is distinguishably worse, however little.
    """
    if difference.interval is not None and difference.high < 0:
        return "opposite sign"
    return "reproduced" if not_worse(difference.interval, margin) else "not distinguishable"


def verdict_equivalent(difference: Estimate, margin: float) -> Verdict:
    """Return what our difference says of "the same within a margin"."""
    if difference.interval is None:
        return "not distinguishable"
    if difference.high < -margin or difference.low > margin:
        return "not met"
    return "reproduced" if equivalent(difference.interval, margin) else "not distinguishable"
