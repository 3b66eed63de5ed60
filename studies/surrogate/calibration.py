"""Predict what a trained model loses under any plan, on which texts, with how much noise.

After a nested fine-tuning run the model is probed at random plans (`studies.surrogate.probing`) and
a monotone utility is fitted to each stratum of the texts (`studies.surrogate.fitting`). What
is fitted is a stand-in: final plans are to be verified on the model itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from rankcast.errors import ConfigError, DataError
from rankcast.learner.transformer import TransformerLearner
from rankcast.records import AdapterLayout, FloatArray, IntArray, Projection
from studies.surrogate.fitting import FitQuality, fit, quality_of
from studies.surrogate.monotone import LossLink, MonotoneUtility, significant
from studies.surrogate.probing import ProbeSet, probe, random_plans

Statistic = Literal["lexical_entropy", "oov_rate"]


@dataclass(frozen=True)
class TextGroup:
    """Texts of one stratum.

    Attributes:
        share: of all batches that are of this stratum.
        lexical_entropy: mean and standard deviation of a batch's mean entropy [nats].
        oov_rate: mean and standard deviation of a batch's mean OOV rate.
        utility: loss of such a batch.
    """

    share: float
    lexical_entropy: tuple[float, float]
    oov_rate: tuple[float, float]
    utility: MonotoneUtility

    def to_plain(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "share": significant(self.share),
            "lexical_entropy": [significant(x) for x in self.lexical_entropy],
            "oov_rate": [significant(x) for x in self.oov_rate],
            "utility": self.utility.to_plain(),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Return what `to_plain` described."""
        entropy, oov = plain["lexical_entropy"], plain["oov_rate"]
        utility = MonotoneUtility.from_plain(plain["utility"])
        return cls(plain["share"], (entropy[0], entropy[1]), (oov[0], oov[1]), utility)


@dataclass(frozen=True)
class Calibration:
    """A prediction of what a trained model loses under any plan, with how good it is.

    Attributes:
        layout: the projections and r_max.
        groups: strata of the texts; their shares sum to 1.
        noise_std: standard deviation of the loss of a batch around its stratum's [nats].
        paired_noise_std: likewise of the difference between a plan and full rank on one batch,
            a mean over the probed plans (on a model it shrinks as the plan nears full rank).
        quality: how well the mean over all texts is predicted for unseen plans.
        group_quality: likewise for each stratum.

    Raises:
        ConfigError: no group, shares that do not sum to 1, gains of another layout.
    """

    layout: AdapterLayout
    groups: tuple[TextGroup, ...]
    noise_std: float
    paired_noise_std: float
    quality: FitQuality
    group_quality: tuple[FitQuality, ...]

    def __post_init__(self) -> None:
        """Refuse what does not belong together."""
        shares = [group.share for group in self.groups]
        if not shares or min(shares) <= 0 or abs(sum(shares) - 1.0) > 1e-4:
            raise ConfigError(f"The shares of the groups must sum to 1, got {shares}.")
        if min(self.noise_std, self.paired_noise_std) < 0:
            raise ConfigError("Standard deviations of noise must not be negative.")
        shape = (self.layout.n_projections, self.layout.r_max)
        if any(group.utility.gains.shape != shape for group in self.groups):
            raise ConfigError(f"The gains of every group must have shape {shape}.")

    @classmethod
    def of_probes(
        cls,
        probes: ProbeSet,
        layout: AdapterLayout,
        rng: np.random.Generator,
        n_groups: int = 2,
        *,
        by: Statistic = "lexical_entropy",
        link: LossLink | Literal["auto"] = "auto",
        decreasing: bool = False,
        batch_size: int = 32,
    ) -> Self:
        """Fit a utility to each stratum of the probed texts.

        A plan judged on fewer than two texts of a stratum does not count there.

        Args:
            probes: the measurements.
            layout: of the model probed.
            rng: of the cross-validation.
            n_groups: strata of equal size, from easy to hard.
            by: which statistic orders the texts.
            link: see `MonotoneUtility`; `auto` lets cross-validation choose for each stratum.
            decreasing: whether gains decrease along the rank.
            batch_size: texts of a training batch, for its noise.

        Raises:
            DataError: too few probes, or too few texts of a stratum for enough of them.
        """
        strata = _strata(getattr(probes, by), n_groups)
        fits, groups = [], []
        for number in range(n_groups):
            chosen = strata == number
            losses, error = probes.mean_losses(chosen), probes.std_errors(chosen)
            fitted = fit(
                probes.ranks, losses, layout, rng, link, decreasing=decreasing, std_errors=error
            )
            fits.append(fitted)
            groups.append(
                TextGroup(
                    float(chosen.mean()),
                    _batch_mean(probes.lexical_entropy[chosen], batch_size),
                    _batch_mean(probes.oov_rate[chosen], batch_size),
                    fitted.utility,
                )
            )
        shares = np.array([group.share for group in groups])
        predicted = shares @ np.array([one.predicted for one in fits])
        by_share = shares @ np.array([one.share_predicted for one in fits])
        quality = quality_of(probes.mean_losses(), predicted, by_share, rng, probes.std_errors())
        noise, paired = noise_from_probes(probes, batch_size, strata)
        return cls(
            layout, tuple(groups), noise, paired, quality, tuple(one.quality for one in fits)
        )

    @property
    def gains(self) -> FloatArray:
        """(N, R) first-order worth of each component, for ordering components.

        At rank 0; exact for `identity`, and in proportion to the exact worth for one `exp` group.
        """
        return sum(
            (g.share * g.utility.amplitude * g.utility.gains for g in self.groups),
            np.zeros((self.layout.n_projections, self.layout.r_max)),
        )

    def loss(self, ranks: IntArray) -> FloatArray:
        """Return (B,) loss of (B, N) ranks, a mean over the texts."""
        shares = np.array([group.share for group in self.groups])
        return (shares / shares.sum()) @ np.array([g.utility.loss(ranks) for g in self.groups])

    def to_plain(self) -> dict[str, Any]:
        """Return JSON values, rounded to 6 significant digits."""
        return {
            "layout": {
                "r_max": self.layout.r_max,
                "projections": [
                    [p.name, p.layer, p.kind, p.d_in, p.d_out] for p in self.layout.projections
                ],
            },
            "groups": [group.to_plain() for group in self.groups],
            "noise_std": significant(self.noise_std),
            "paired_noise_std": significant(self.paired_noise_std),
            "quality": self.quality.to_plain(),
            "group_quality": [quality.to_plain() for quality in self.group_quality],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Return what `to_plain` described."""
        projections = tuple(Projection(*row) for row in plain["layout"]["projections"])
        return cls(
            AdapterLayout(projections, int(plain["layout"]["r_max"])),
            tuple(TextGroup.from_plain(group) for group in plain["groups"]),
            float(plain["noise_std"]),
            float(plain["paired_noise_std"]),
            FitQuality.from_plain(plain["quality"]),
            tuple(FitQuality.from_plain(quality) for quality in plain["group_quality"]),
        )


def calibrate(
    learner: TransformerLearner, n_plans: int, texts_per_plan: int | None, file: Path
) -> tuple[Calibration, ProbeSet]:
    """Probe a trained model at random plans and fit utilities to what it loses.

    Args:
        learner: the trained model; plans, texts and folds are drawn from its seed.
        n_plans: how many plans are probed.
        texts_per_plan: texts drawn for each plan; None for all.
        file: where the probes are kept; what it already holds is not measured again.
    """
    seed, layout = learner.config.seed, learner.layout
    plans = random_plans(np.random.default_rng([seed, 1]), n_plans, layout)
    probes = probe(learner, "validation", plans, file, texts_per_plan=texts_per_plan, seed=seed)
    calibration = Calibration.of_probes(
        probes, layout, np.random.default_rng(seed), batch_size=learner.config.batch_size
    )
    return calibration, probes


def noise_from_probes(
    probes: ProbeSet, batch_size: int = 32, strata: IntArray | None = None
) -> tuple[float, float]:
    """Return how much the loss of a batch varies, and its difference to full rank [nats].

    Both are root mean squares over the probed plans, each of which was judged on texts of its own;
    one with fewer than two texts of a stratum says nothing about it.

    Args:
        probes: the measurements.
        batch_size: texts of a batch.
        strata: (T,) stratum of each text, around whose mean the losses vary; one for None.
    """
    strata = np.zeros(probes.n_texts, dtype=np.int64) if strata is None else strata

    def std_of_batch(values: FloatArray) -> float:
        within = [
            (strata == number).mean() * _variance(values, strata[probes.texts] == number)
            for number in np.unique(strata)
        ]
        return float(np.sqrt(np.sum(within) / batch_size))

    return std_of_batch(probes.losses.astype(np.float64)), std_of_batch(probes.differences)


def _variance(values: FloatArray, chosen: NDArray[np.bool_]) -> float:
    """Return the mean over plans of the variance of (P, n) values among the chosen ones."""
    count = chosen.sum(axis=1)
    known = count > 1
    if not known.any():
        return 0.0
    values, chosen, count = values[known], chosen[known], count[known]
    mean = np.where(chosen, values, 0.0).sum(axis=1) / count
    squares = np.where(chosen, (values - mean[:, None]) ** 2, 0.0).sum(axis=1)
    return float((squares / count).mean())


def _strata(values: FloatArray, n_groups: int) -> IntArray:
    """Return (n,) which of equally large groups each text belongs to, from low to high values."""
    if not 1 <= n_groups <= len(values):
        raise DataError(f"{len(values)} texts cannot be parted into {n_groups} groups.")
    order = np.argsort(values, kind="stable")
    strata = np.empty(len(values), dtype=np.int64)
    for number, members in enumerate(np.array_split(order, n_groups)):
        strata[members] = number
    return strata


def _batch_mean(values: FloatArray, batch_size: int) -> tuple[float, float]:
    """Return mean and standard deviation of the mean over a batch."""
    return float(values.mean()), float(values.std() / np.sqrt(batch_size))
