"""What a plan is worth, learned from noisy losses: a Bayesian linear utility.

U(r | H, ρ) = b·(1, H, ρ) - Σ_m Σ_{i ≤ r_m} g_{m,i} with a Gaussian belief over b and g. Gains are
correlated along the rank of a projection and decrease along it; the latter is imposed on whatever
leaves the belief, by isotonic projection. A draw from the belief, solved exactly, is a plan of
Thompson sampling.

The paper has no such model: it observes R_t and differentiates nothing (docs/paper-map.md, Eq. 19).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from rankcast.allocation.base import AllocationProblem
from rankcast.allocation.rank_bins import RankBins, isotonic_decreasing  # noqa: F401 (older home)
from rankcast.errors import CheckpointError, ConfigError, nearest
from rankcast.records import AdapterLayout, FloatArray, IntArray, LinkState, TextStats

N_BASELINE = 3  # intercept, lexical entropy, OOV rate


UtilityForm = Literal["additive", "saturating"]


class LearnedUtility(Protocol):
    """A belief over what each component is worth, that learns from observed losses."""

    def update(
        self,
        ranks: IntArray,
        task_loss: FloatArray,
        text: TextStats,
        reference_loss: FloatArray | None = None,
    ) -> None:
        """Learn from the losses of (B, N) plans; see `BayesianUtility.update`."""
        ...

    def mean_gains(self) -> FloatArray:
        """Return (N, R) expected gains, decreasing along R and not negative."""
        ...

    def sample_gains(self, rng: np.random.Generator, size: int, width: float = 1.0) -> FloatArray:
        """Return (size, N, R) draws; `width` scales their distance from the mean."""
        ...

    def gains_at(
        self,
        problem: AllocationProblem,
        link: LinkState,
        rng: np.random.Generator | None = None,
        width: float = 1.0,
    ) -> FloatArray:
        """Return (B, N, R) gains for which water-filling finds the best plan of each link.

        Args:
            problem: λ and link costs; of no account to an additive utility.
            link: B links.
            rng: for a draw of each link's own (Thompson sampling); None for the expected gains.
            width: scales the draws' distance from the mean.
        """
        ...

    def predict(self, ranks: IntArray, text: TextStats) -> FloatArray:
        """Return (B,) expected task loss of (B, N) plans."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to continue."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        ...


@dataclass(frozen=True, slots=True)
class UtilityConfig:
    """The prior belief and the noise.

    Attributes:
        total_gain: loss [nats] that full rank is expected to remove; ln 2, the loss of a guess
            between two classes, unless something better is known.
        relative_std: standard deviation of a gain, as a multiple of its mean.
        rank_correlation: correlation between the gains of neighbouring ranks.
        rank_decay: ranks over which the expected gain falls by a factor of e; None: r_max / 2.
        noise_std: standard deviation of one observed loss [nats].
        paired_noise_std: likewise of the difference between a plan and full rank on one batch.
        forgetting: share of the evidence that is kept at each update; below 1 where the model
            under the utility is itself learning.
        form: `additive`, or `saturating` where later components remove less than the same ones
            alone, as on fine-tuned models (`rankcast.allocation.saturating`); the latter takes no
            notice of `relative_std`, `rank_correlation` and `rank_decay`.
    """

    total_gain: float = 0.7
    relative_std: float = 1.0
    rank_correlation: float = 0.98
    rank_decay: float | None = None
    noise_std: float = 0.05
    paired_noise_std: float = 0.02
    forgetting: float = 1.0
    form: UtilityForm = "additive"

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if self.form not in get_args(UtilityForm):
            hint = nearest(self.form, get_args(UtilityForm))
            raise ConfigError(f"There is no form of utility {self.form!r}{hint}.")
        positive = ("total_gain", "relative_std", "rank_decay", "noise_std", "paired_noise_std")
        values = {name: getattr(self, name) for name in positive}
        bad = [name for name, value in values.items() if value is not None and not value > 0]
        if bad or not 0 <= self.rank_correlation < 1 or not 0 < self.forgetting <= 1:
            raise ConfigError(
                f"The utility needs positive {', '.join(positive)}, rank_correlation in [0, 1) "
                f"and forgetting in (0, 1]; got {self}."
            )


class BayesianUtility:
    """A Gaussian belief over the gains of all components, updated with every observed loss.

    Ranks above 8 share gains within doubling bins (9–16, 17–32, …), so that the belief grows with
    log r_max. An update costs O(D²) per observation and a draw O(D³), D = 3 + N·bins.

    Args:
        layout: the projections and r_max.
        config: prior and noise.
    """

    def __init__(self, layout: AdapterLayout, config: UtilityConfig | None = None) -> None:
        self.layout, self.config = layout, config or UtilityConfig()
        self._bins = RankBins(layout)
        mean, precision = self._prior()
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
        """Learn from the losses of (B, N) plans.

        Args:
            ranks: (B, N) plans.
            task_loss: (B,) observed U(r).
            text: (B,) statistics of the batches.
            reference_loss: (B,) loss of the same batches under full rank. If given, the pair is
                used: its difference holds less noise and no baseline.
        """
        active = self._bins.counts(ranks)
        if reference_loss is None:
            features = np.concatenate([baseline_features(text), -active], axis=1)
            target, noise = np.asarray(task_loss), self.config.noise_std
        else:
            missing = self._bins.full - active
            features = np.concatenate([np.zeros((len(ranks), N_BASELINE)), missing], axis=1)
            target, noise = np.asarray(task_loss) - reference_loss, self.config.paired_noise_std
        keep = self.config.forgetting ** len(ranks)
        if keep < 1.0:
            self._precision += (1.0 - keep) * (self._prior_precision - self._precision)
            self._information += (1.0 - keep) * (self._prior_information - self._information)
        self._precision += features.T @ features / noise**2
        self._information += features.T @ target / noise**2
        self._factor = None

    def mean_gains(self) -> FloatArray:
        """Return (N, R) expected gains, decreasing along R and not negative."""
        return self._to_gains(self._mean()[None])[0]

    def sample_gains(self, rng: np.random.Generator, size: int, width: float = 1.0) -> FloatArray:
        """Return (size, N, R) draws; `width` scales their distance from the mean."""
        mean = self._mean()
        normal = rng.standard_normal((len(mean), size))
        spread = solve_triangular(self._cholesky(), normal, lower=True, trans=1)
        return self._to_gains(mean + width * spread.T)

    def gains_at(
        self,
        problem: AllocationProblem,
        link: LinkState,
        rng: np.random.Generator | None = None,
        width: float = 1.0,
    ) -> FloatArray:
        """Return (B, N, R) gains for each link; see `LearnedUtility.gains_at`."""
        del problem
        if rng is None:
            return np.repeat(self.mean_gains()[None], link.size, axis=0)
        return self.sample_gains(rng, link.size, width)

    def predict(self, ranks: IntArray, text: TextStats) -> FloatArray:
        """Return (B,) expected task loss under the linear belief (without isotonic projection)."""
        counts = self._bins.counts(ranks)
        return np.concatenate([baseline_features(text), -counts], axis=1) @ self._mean()

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
                f"{len(self._information)}; load it with the model and r_max it was trained with."
            )
        self._precision = np.array(state["precision"], dtype=np.float64)
        self._information = np.array(state["information"], dtype=np.float64)
        self._factor = None

    def _prior(self) -> tuple[FloatArray, FloatArray]:
        """Return mean (D,) and precision (D, D)."""
        c, n = self.config, self.layout.n_projections
        middle, widths = self._bins.middles - 1, self._bins.widths
        shape = np.exp(-middle / (c.rank_decay or self.layout.r_max / 2))
        mean = c.total_gain / (n * (shape * widths).sum()) * shape
        distance = np.abs(np.subtract.outer(middle, middle))
        covariance = (c.relative_std**2 * np.outer(mean, mean)) * c.rank_correlation**distance
        block = np.linalg.inv(covariance)
        precision = np.zeros((N_BASELINE + n * len(mean),) * 2)
        # A wide prior on the baseline, in nats per nat of entropy and per unit of OOV rate.
        precision[:N_BASELINE, :N_BASELINE] = np.diag([0.25, 25.0, 25.0])
        for m in range(n):
            at = slice(N_BASELINE + m * len(mean), N_BASELINE + (m + 1) * len(mean))
            precision[at, at] = (block + block.T) / 2
        baseline = np.zeros(N_BASELINE)
        baseline[0] = 2 * c.total_gain
        return np.concatenate([baseline, np.tile(mean, n)]), precision

    def _mean(self) -> FloatArray:
        return cho_solve((self._cholesky(), True), self._information)

    def _cholesky(self) -> FloatArray:
        """Return the lower factor L of the precision, L·Lᵀ."""
        if self._factor is None:
            self._factor = np.asarray(cho_factor(self._precision, lower=True)[0])
        return self._factor

    def _to_gains(self, beliefs: FloatArray) -> FloatArray:
        return self._bins.to_ranks(beliefs[:, N_BASELINE:])


def baseline_features(text: TextStats) -> FloatArray:
    """Return (B, 3): a constant, lexical entropy and OOV rate."""
    return np.column_stack([np.ones_like(text.oov_rate), text.lexical_entropy, text.oov_rate])
