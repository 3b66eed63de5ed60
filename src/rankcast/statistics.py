"""Intervals and tests for every difference that is reported: over seeds, over texts, over both.

Shapes: S seeds, `n` texts, `C` points of a curve. All intervals are of 95 %. A bootstrap draws
10,000 resamples and takes the percentiles of their means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import trapezoid
from scipy.stats import binomtest
from scipy.stats import t as student

from rankcast.errors import ConfigError, nearest
from rankcast.records import FloatArray

RESAMPLES = 10_000
_TAILS = (0.025, 0.975)

Interpolation = Literal["linear", "step"]
"""Between two measured budgets: a straight line, or what the smaller of them reaches."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval.

    `f"{estimate:.3f}"` is `0.241 ± 0.048` if the interval is symmetrical, `0.241 (0.200 to 0.290)`
    if it is not, and `0.241` if there is none.

    Attributes:
        value: the number.
        low: lower end; NaN where there was nothing to tell it from.
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
    x = _vector(values)
    mean = float(x.mean())
    if len(x) == 1:
        return Estimate(mean, math.nan, math.nan)
    half = float(student.ppf(_TAILS[1], len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return Estimate(mean, mean - half, mean + half)


def paired_t(ours: ArrayLike, theirs: ArrayLike) -> Estimate:
    """Return the mean of ours - theirs, (S,) each, seed by seed, with its t interval.

    Raises:
        ConfigError: different lengths, or no value.
    """
    a, b = _vector(ours), _vector(theirs)
    _same_shape(a, b)
    return t_interval(a - b)


def bootstrap_interval(
    difference: FloatArray, rng: np.random.Generator | int
) -> tuple[float, float]:
    """Return the interval of the mean of (n,) differences, resampling texts.

    Equal differences are counted, not listed: resampling n texts is drawing from a multinomial.

    Args:
        difference: of each text.
        rng: source of the resamples, or its seed.

    Raises:
        ConfigError: no text.
    """
    values, counts = np.unique(_vector(difference), return_counts=True)
    n = int(counts.sum())
    drawn = np.random.default_rng(rng).multinomial(n, counts / n, size=RESAMPLES)
    low, high = np.quantile(drawn @ values / n, _TAILS)
    return float(low), float(high)


def pooled_bootstrap(
    differences_by_seed: ArrayLike, rng: np.random.Generator | int, resamples: int = RESAMPLES
) -> Estimate:
    """Return the mean of (S, n) differences, resampling seeds, then texts.

    The texts are the same for all seeds, so a resample takes the same texts for each. Drawing
    S - 1 of S seeds makes the spread over seeds unbiased (Rao and Wu, 1988), but percentiles of
    three or four seeds still cover too little: state the seeds beside the interval. With one seed
    only texts are resampled.

    Args:
        differences_by_seed: (S, n), of each seed and text.
        rng: source of the resamples, or its seed.
        resamples: how many.

    Raises:
        ConfigError: another shape, or nothing in it.
    """
    d = np.asarray(differences_by_seed, dtype=np.float64)
    if d.ndim != 2 or not d.size:
        raise ConfigError(f"Give differences as (seeds, texts), not empty; got shape {d.shape}.")
    n_seeds, n = d.shape
    columns, counts = np.unique(d, axis=1, return_counts=True)
    generator = np.random.default_rng(rng)
    n_drawn = max(n_seeds - 1, 1)
    seeds = generator.multinomial(n_drawn, np.full(n_seeds, 1 / n_seeds), size=resamples) / n_drawn
    means = np.empty(resamples)
    for part in np.array_split(np.arange(resamples), max(resamples * len(counts) // 2**22, 1)):
        texts = generator.multinomial(n, counts / n, size=len(part)) / n
        means[part] = ((seeds[part] @ columns) * texts).sum(axis=1)
    low, high = np.quantile(means, _TAILS)
    return Estimate(float(d.mean()), float(low), float(high))


def mcnemar(ours: ArrayLike, theirs: ArrayLike) -> float:
    """Return the exact two-sided p-value of McNemar's test on pooled answers of equal shape.

    Raises:
        ConfigError: different shapes.
    """
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    _same_shape(a, b)
    better, worse = int((a > b).sum()), int((a < b).sum())
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def area_under_curve(
    bits: ArrayLike,
    accuracy: ArrayLike,
    low: float,
    high: float,
    *,
    log_bits: bool = True,
    interpolation: Interpolation = "linear",
) -> FloatArray:
    """Return the mean accuracy between two budgets, the normalised area under (..., C) curves.

    Beyond the largest measured budget its accuracy holds. Points of equal bits count as their mean.

    Args:
        bits: (C,) budgets that were measured [bit], in any order.
        accuracy: (..., C) what was reached.
        low: lower budget [bit]; at least the smallest measured one.
        high: upper budget [bit].
        log_bits: weigh budgets by their logarithm, so that each doubling counts alike.
        interpolation: what is assumed between measured budgets.

    Returns:
        (...) areas, in the unit of the accuracy.

    Raises:
        ConfigError: budgets out of order, below what was measured, or not positive.
    """
    x, y = _vector(bits), np.asarray(accuracy, dtype=np.float64)
    if y.ndim == 0 or y.shape[-1] != len(x):
        raise ConfigError(f"{len(x)} budgets need as many accuracies, got shape {y.shape}.")
    if interpolation not in get_args(Interpolation):
        hint = nearest(interpolation, get_args(Interpolation))
        raise ConfigError(f"There is no interpolation {interpolation!r}{hint}.")
    if not (0 < low < high) or low < x.min():
        raise ConfigError(
            f"The budgets must be positive, in order, and not below the smallest measured one, "
            f"{x.min():g} bits; got {low:g} to {high:g}."
        )
    if log_bits:
        x, low, high = np.log2(x), math.log2(low), math.log2(high)
    return y @ _area_weights(x, low, high, interpolation)


def auc_interval(
    bits: ArrayLike,
    answers: ArrayLike,
    low: float,
    high: float,
    rng: np.random.Generator | int,
    *,
    log_bits: bool = True,
    interpolation: Interpolation = "linear",
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
        log_bits: see `area_under_curve`.
        interpolation: see `area_under_curve`.

    Raises:
        ConfigError: see `area_under_curve`; another shape.
    """
    y = np.asarray(answers, dtype=np.float64)
    if y.ndim == 2:
        y = y[..., None]
    if y.ndim != 3:
        raise ConfigError(f"Give answers as (seeds, budgets, texts), got shape {y.shape}.")
    x = np.broadcast_to(np.asarray(bits, dtype=np.float64), y.shape[:2])
    areas = [
        area_under_curve(b, a.T, low, high, log_bits=log_bits, interpolation=interpolation)
        for b, a in zip(x, y, strict=True)
    ]
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


def _area_weights(
    x: FloatArray, low: float, high: float, interpolation: Interpolation
) -> FloatArray:
    """Return (C,) weights of the points of a curve in its mean between two abscissae."""
    knots, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    if interpolation == "step":
        ends = np.append(knots[1:], np.inf)
        lengths = np.clip(ends, low, high) - np.clip(knots, low, high)
    else:
        inner = knots[(knots > low) & (knots < high)]
        grid = np.concatenate([[low], inner, [high]])
        hats = np.array([np.interp(grid, knots, hat) for hat in np.eye(len(knots))])
        lengths = trapezoid(hats, grid, axis=1)
    return (lengths / counts)[inverse] / (high - low)


def _vector(values: ArrayLike) -> FloatArray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not x.size:
        raise ConfigError(f"Give at least one value in a vector; got shape {x.shape}.")
    return x


def _same_shape(ours: FloatArray, theirs: FloatArray) -> None:
    if ours.shape != theirs.shape:
        raise ConfigError(
            f"Paired values must have one shape, got {ours.shape} and {theirs.shape}."
        )


def _checked_margin(margin: float) -> float:
    if not margin >= 0:
        raise ConfigError(f"A margin is at least 0, got {margin}.")
    return margin
