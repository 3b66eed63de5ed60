"""How well a fit foretells plans that it has not seen.

Shapes: `P` probed plans.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from rankcast.errors import DataError
from rankcast.finetune.monotone import significant
from rankcast.records import FloatArray

RESAMPLES = 2000

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class FitQuality:
    """How well plans are foretold that took no part in the fit.

    Attributes:
        r2: share of the variance of the loss between plans that is explained. The losses are
            measured on a sample of texts, and nothing foretells the errors of that.
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
        predicted: (P,) foretold.
        share_predicted: (P,) foretold by the rule that knows only the share.
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
