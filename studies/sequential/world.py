"""A world in which the future matters: a device receives an adapter piece by piece.

The SNR wanders (Gauss–Markov), only the increase of rank is paid for, and what was received stays.
A delivery is worth J = Σ_{t<T} γ^t·R_t - γ^T·U(r_T)/(1 - γ): after T steps the device keeps what it
has. Every policy is judged on the same SNRs, without noise, and beside a bound that no policy can
exceed: the best delivery for one who knows every SNR to come.

Shapes: `T` steps, `E` deliveries, `N` projections, `R` = r_max.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

from rankcast.allocation.problem import Allocator
from rankcast.config.run import EnvConfig
from rankcast.env import AllocationMdp
from rankcast.errors import RankcastError
from rankcast.learner.synthetic import SyntheticLearner, SyntheticUtility, transformer_layout
from rankcast.link.capacity import Awgn
from rankcast.link.costs import LinkCostModel
from rankcast.link.processes import GaussMarkovSnr
from rankcast.records import FloatArray, IntArray, LinkState, Observation, TextStats
from studies.sequential.problem import IncrementalProblem
from studies.sequential.stopping import SnrTrace, StoppingRule

DEADLINE_S = 1.0


@dataclass(frozen=True, slots=True)
class DeliveryConfig:
    """The link and the prices of a delivery.

    Attributes:
        mean_db: mean SNR [dB].
        std_db: its standard deviation [dB]; TR 38.901 has 6 dB for UMa without line of sight.
        correlation: of the SNR between neighbouring steps.
        full_cost: η of full rank at the mean SNR; scales the bandwidth.
        link_weight: λ.
        discount: γ (Table II).
        coupled: whether the increase of each step has to arrive in time, so that the components
            of a step compete; otherwise a late one only pays.
    """

    mean_db: float = 5.0
    std_db: float = 6.0
    correlation: float = 0.9
    full_cost: float = 10.0
    link_weight: float = 0.3
    discount: float = 0.95
    coupled: bool = False


@dataclass(frozen=True)
class Delivered:
    """The outcome of E deliveries.

    Attributes:
        values: (E,) J, noise-free.
        mean_rank: (T,) mean rank received after each step.
    """

    values: FloatArray
    mean_rank: FloatArray


@dataclass(frozen=True)
class DeliveryWorld:
    """One utility with the link over which it is delivered.

    Attributes:
        problem: layout, link costs, λ, γ and deadline rule.
        utility: additive, known gains.
        process: of the SNR.
        bandwidth_hz: W [Hz].
    """

    problem: IncrementalProblem
    utility: SyntheticUtility
    process: GaussMarkovSnr
    bandwidth_hz: float

    @classmethod
    def draw(cls, seed: int, config: DeliveryConfig | None = None) -> DeliveryWorld:
        """Return the world whose utility is drawn from a seed."""
        c, layout = config or DeliveryConfig(), transformer_layout()
        costs = LinkCostModel.for_layout(layout, Awgn())
        full_bits = costs.full_bits
        efficiency = float(Awgn().spectral_efficiency(np.array([c.mean_db]))[0])
        problem = IncrementalProblem(
            layout,
            costs,
            c.link_weight,
            deadline="enforce" if c.coupled else "penalise",
            discount=c.discount,
        )
        return cls(
            problem,
            SyntheticUtility.draw(np.random.default_rng(seed), layout),
            GaussMarkovSnr(c.mean_db, c.std_db, c.correlation),
            full_bits / (c.full_cost * efficiency * DEADLINE_S),
        )

    def environment(self, n_envs: int, horizon: int, seed: int) -> tuple[AllocationMdp, SnrTrace]:
        """Return an environment to learn in, and the trace of the SNRs that are met there."""
        trace = SnrTrace(self.process)
        learner = SyntheticLearner(self.problem.layout, self.utility, n_envs, seed=seed)
        config = EnvConfig(self.bandwidth_hz, DEADLINE_S, horizon, "increase")
        return AllocationMdp(learner, trace, self.problem, config), trace

    def rule(self, process: GaussMarkovSnr | None = None) -> StoppingRule:
        """Return when to send under a process; None: the one that is at work."""
        rate_model = self.problem.link_costs.rate_model
        return StoppingRule.of_process(process or self.process, rate_model, self.problem.discount)

    def paths(self, rng: np.random.Generator, deliveries: int, steps: int) -> FloatArray:
        """Return (T, E) SNRs [dB]."""
        state = self.process.start(rng, deliveries)
        rows = [state.snr_db]
        for _ in range(steps - 1):
            state = self.process.advance(state, rng)
            rows.append(state.snr_db)
        return np.array(rows)

    def deliver(
        self, allocator: Allocator, paths: FloatArray, rng: np.random.Generator
    ) -> Delivered:
        """Return what an allocator's deliveries over (T, E) SNRs [dB] come to."""
        problem, size = self.problem, paths.shape[1]
        received: IntArray = np.zeros((size, problem.layout.n_projections), dtype=np.int64)
        text = TextStats(np.full(size, 2.5), np.full(size, 0.1))
        values, mean_rank = np.zeros(size), []
        for t, snr_db in enumerate(paths):
            link = self.link(snr_db)
            ranks = allocator.allocate(Observation(link, text, received), rng)
            paid = problem.link_weight * problem.link_costs.link_cost(ranks, link, received)
            values -= problem.discount**t * (self.utility.loss(ranks) + paid)
            received = ranks
            mean_rank.append(float(ranks.mean()))
        lasting = self.utility.loss(received) / (1.0 - problem.discount)
        return Delivered(values - problem.discount ** len(paths) * lasting, np.array(mean_rank))

    def clairvoyant(self, paths: FloatArray) -> FloatArray:
        """Return (E,) what no policy can exceed over (T, E) SNRs [dB]."""
        coupled = self.problem.deadline == "enforce"
        bound = coupled_clairvoyant_value if coupled else clairvoyant_value
        nothing = self.utility.base_loss / (1.0 - self.problem.discount)
        gains = self.utility.gains
        return np.array([bound(gains, self.problem, self.link(p)) for p in paths.T]) - nothing

    def link(self, snr_db: FloatArray) -> LinkState:
        """Return the links at these SNRs [dB]."""
        return LinkState(snr_db, np.array(self.bandwidth_hz), np.array(DEADLINE_S))


def clairvoyant_value(gains: FloatArray, problem: IncrementalProblem, path: LinkState) -> float:
    """Return the greatest value of a delivery along a path; exact while steps have no limit.

    Each component is sent at the step where γ^t·(g/(1 - γ) - λ·c_t) is greatest, if that is above
    zero. With `deadline="penalise"` this is attained; otherwise `coupled_clairvoyant_value` is the
    tighter bound.

    Args:
        gains: (N, R) loss removed per step by each component, decreasing along R.
        problem: λ, γ and link costs.
        path: T links, one after the other.
    """
    price = problem.link_weight * problem.component_costs(path)
    fades = problem.discount ** np.arange(path.size)
    worth = gains / (1.0 - problem.discount)
    values = fades[:, None, None] * (worth - price)
    return float(np.maximum(values.max(axis=0), 0.0).sum())


def coupled_clairvoyant_value(
    gains: FloatArray, problem: IncrementalProblem, path: LinkState
) -> float:
    """Return an upper bound on a delivery whose every step has to meet its deadline (Eq. 7).

    The linear relaxation: components may be split over steps, and each step carries at most what
    arrives in time. Solved by HiGHS (through SciPy).

    Args:
        gains: (N, R) loss removed per step by each component, decreasing along R.
        problem: λ, γ and link costs.
        path: T links, one after the other.

    Raises:
        RankcastError: the solver gave up.
    """
    bits = problem.link_costs.component_bits.ravel()
    price = problem.link_weight * bits / problem.link_costs.budget_bits(path)[:, None]
    fades = problem.discount ** np.arange(path.size)
    values = fades[:, None] * (gains.ravel() / (1.0 - problem.discount) - price)
    step, component = np.nonzero(values > 0.0)
    if not len(step):
        return 0.0
    column = np.arange(len(step))
    load = bits[component] / problem.link_costs.budget_bits(path)[step]
    n_limits = len(bits) + path.size
    limits = csr_array(
        (
            np.concatenate([np.ones(len(step)), load]),
            (np.concatenate([component, len(bits) + step]), np.concatenate([column, column])),
        ),
        shape=(n_limits, len(step)),
    )
    objective = values[step, component]
    solution = linprog(-objective, A_ub=limits, b_ub=np.ones(n_limits), method="highs")
    if solution.x is None:
        raise RankcastError(f"The clairvoyant bound was not solved: {solution.message}")
    return float(-solution.fun)
