"""When to send, if what was sent stays: optimal stopping.

Differs from the paper, whose every step pays for the whole plan (Eq. 8), so that the future cannot
matter: here a component is sent once and is free from then on, and it may be worth waiting for a
better link.

A device lives on with probability γ per step, so a component that removes loss g at every step
from now on is worth g/(1 - γ), and is paid for once, at the price of the step that sends it. Where
nothing couples the components, each is a stopping problem of its own: send now iff

    g/(1 - γ) - λ·c(s) ≥ γ·E[V(s') | s].

Dividing by λ and the component's bits leaves one threshold θ(s) for all of them: send iff the gain
per bit is at least λ·θ(s), where the myopic solver asks for λ·k(s), with k(s) the η of one bit. It
is the Gittins index of a process that earns k(s) - γ·E[k(s') | s], what is lost by paying now
rather than one step later, and lies between (1 - γ)·k(s), where nothing better will come, and k(s).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankcast.allocation.beliefs import LearnedUtility
from rankcast.allocation.waterfilling import PriceFactor, waterfill
from rankcast.errors import ConfigError
from rankcast.link.capacity import RateModel
from rankcast.link.processes import GaussMarkovSnr, SnrProcess, SnrState
from rankcast.records import FloatArray, IntArray, LinkState, Observation
from studies.sequential.problem import IncrementalProblem, check_discount

_NODES = 32  # of the Gauss–Hermite quadrature; its grid is finer than the distance between nodes


@dataclass(frozen=True)
class IncrementalAllocator:
    """Sends every component that removes more than its price.

    Under `StoppingRule.price_factor` it waits as long as that pays, which is optimal where nothing
    couples the components. Under no factor it is myopic, as if this step were the last; under a
    constant 1 - γ it counts all steps to come but waits for none.

    Attributes:
        problem: λ, γ and deadline.
        gains: (N, R) gains per step, or a belief that goes on learning outside.
        price: factor on λ·η by link; None: 1.
        name: for tables.
    """

    problem: IncrementalProblem
    gains: FloatArray | LearnedUtility
    price: PriceFactor | None = None
    name: str = "incremental"

    def allocate(self, observation: Observation, rng: np.random.Generator) -> IntArray:
        """Return (B, N) ranks; `rng` is not used."""
        del rng
        known = self.gains
        gains = known if isinstance(known, np.ndarray) else known.mean_gains(observation.text)
        wanted = waterfill(gains, self.problem, observation.link, self.price)
        return self.problem.settle(wanted, observation, gains)


@dataclass(frozen=True)
class StoppingRule:
    """The threshold θ(s) on the gain per bit at which sending now beats waiting.

    Attributes:
        snr_db: (S,) grid of SNRs [dB], increasing.
        cost: (S,) k(s), η of one bit, in any unit.
        threshold: (S,) θ(s), in the unit of `cost`.
    """

    snr_db: FloatArray
    cost: FloatArray
    threshold: FloatArray

    @classmethod
    def of_chain(
        cls, snr_db: FloatArray, transition: FloatArray, cost: FloatArray, discount: float
    ) -> StoppingRule:
        """Solve a finite chain exactly.

        Args:
            snr_db: (S,) states [dB], increasing.
            transition: (S, S) probabilities, each row from one state.
            cost: (S,) k(s) > 0.
            discount: γ.

        Raises:
            ConfigError: arrays that do not fit together, or γ outside [0, 1).
        """
        check_discount(discount)
        shape = (len(snr_db), len(snr_db))
        if np.shape(transition) != shape or np.shape(cost) != shape[:1]:
            raise ConfigError(
                f"A chain of {len(snr_db)} states needs transitions {shape} and a cost for each "
                f"state, got {np.shape(transition)} and {np.shape(cost)}."
            )
        if not np.allclose(transition.sum(axis=1), 1.0) or (transition < 0).any():
            raise ConfigError("Every row of the transitions must hold probabilities that sum to 1.")
        saved = cost - discount * transition @ cost
        return cls(snr_db, cost, gittins_index(transition, saved, discount))

    @classmethod
    def of_process(
        cls,
        process: GaussMarkovSnr,
        rate_model: RateModel,
        discount: float,
        states: int = 121,
        width: float = 5.0,
    ) -> StoppingRule:
        """Solve for shadowing that moves from step to step; bandwidth and deadline constant.

        Args:
            process: how the SNR moves.
            rate_model: how SNR becomes rate (Eq. 5).
            discount: γ.
            states: S, points of the grid.
            width: the grid reaches so many standard deviations either side of the mean.

        Raises:
            ConfigError: γ outside [0, 1).
        """
        reach = width * max(process.std_db, 1e-3)
        grid = np.linspace(process.mean_db - reach, process.mean_db + reach, states)
        cost = 1.0 / rate_model.spectral_efficiency(grid)
        return cls.of_chain(grid, gauss_markov_transition(process, grid), cost, discount)

    def price_factor(self, link: LinkState) -> FloatArray:
        """Return (B,) θ(s)/k(s): the share of λ·η that a component must remove per step.

        Beyond the grid the factor is that of its end.
        """
        return np.interp(link.snr_db, self.snr_db, self.threshold / self.cost)


class SnrTrace:
    """An SNR process that records its steps, so that a stopping rule can be fitted to them.

    Nothing is known of the process behind it but the SNRs that it has shown.

    Args:
        process: what moves the SNR.
    """

    def __init__(self, process: SnrProcess) -> None:
        self.process = process
        self._pairs: list[FloatArray] = []

    def start(self, rng: np.random.Generator, size: int) -> SnrState:
        """Draw the first SNR of `size` sequences."""
        return self.process.start(rng, size)

    def advance(self, state: SnrState, rng: np.random.Generator) -> SnrState:
        """Return the state one decision later, and record the step."""
        after = self.process.advance(state, rng)
        self._pairs.append(np.stack([state.snr_db, after.snr_db]))
        return after

    @property
    def steps(self) -> int:
        """Recorded steps, over all sequences."""
        return sum(pair.shape[1] for pair in self._pairs)

    def fit(self) -> GaussMarkovSnr:
        """Return the first-order Gauss–Markov process with the moments of the recorded steps.

        Raises:
            ConfigError: fewer than three recorded steps.
        """
        if self.steps < 3:
            raise ConfigError(
                f"A process cannot be fitted to {self.steps} steps; let an episode pass first."
            )
        before, after = np.concatenate(self._pairs, axis=1)
        both = np.concatenate([before, after])
        mean, std = float(both.mean()), float(both.std())
        covariance = float(((before - mean) * (after - mean)).mean())
        correlation = covariance / std**2 if std > 0 else 1.0
        return GaussMarkovSnr(mean, std, float(np.clip(correlation, 0.0, 1.0)))


def gauss_markov_transition(process: GaussMarkovSnr, grid: FloatArray) -> FloatArray:
    """Return (S, S) transition probabilities between the SNRs [dB] of an even grid.

    Gauss–Hermite nodes that fall between two points are shared by them; those beyond an end go to
    that end.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    innovation = np.sqrt(1.0 - process.correlation**2) * process.std_db
    mean = process.mean_db + process.correlation * (grid - process.mean_db)
    after = np.clip(mean[:, None] + innovation * nodes, grid[0], grid[-1])
    place = (after - grid[0]) / (grid[1] - grid[0])
    below = np.minimum(place.astype(np.int64), len(grid) - 2)
    share = np.clip(place - below, 0.0, 1.0)
    transition = np.zeros((len(grid), len(grid)))
    row = np.broadcast_to(np.arange(len(grid))[:, None], below.shape)
    np.add.at(transition, (row, below), (1.0 - share) * weights)
    np.add.at(transition, (row, below + 1), share * weights)
    return transition / weights.sum()


def gittins_index(transition: FloatArray, reward: FloatArray, discount: float) -> FloatArray:
    """Return (S,) sup over stopping times of discounted reward over discounted time.

    States are taken in order of their index, the largest first (P. Varaiya, J. Walrand and
    C. Buyukkoc, Extensions of the multiarmed bandit problem, IEEE Trans. Autom. Control 30(5),
    1985): the best stopping time of the next one continues exactly in those already taken.

    Args:
        transition: (S, S) probabilities, each row from one state.
        reward: (S,) earned in each state.
        discount: γ in [0, 1).
    """
    size = len(reward)
    index = np.full(size, np.nan)
    goes_on = np.zeros(size, dtype=bool)
    both = np.column_stack([reward, np.ones(size)])
    for _ in range(size):
        earned, lasted = np.linalg.solve(np.eye(size) - discount * transition * goes_on, both).T
        ratio = np.where(goes_on, -np.inf, earned / lasted)
        best = int(ratio.argmax())
        index[best] = ratio[best]
        goes_on[best] = True
    return index
