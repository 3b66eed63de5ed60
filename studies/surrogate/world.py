"""A world with a known utility, in which any policy can be trained and judged against the optimum.

Regret is (policy - optimum) / (best uniform rank - optimum) of the noise-free objective U + λη,
averaged over the links on which the world is judged: 0 is the optimum, 1 the best single rank for
all projections and all links. Where those two differ by less than `SMALLEST_GAP`, as where the best
uniform rank is optimal, regret counts in units of that instead. `studies.surrogate.training` trains
policies in it.

Shapes: K judged links, `B` links, `N` projections, `R` = r_max.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from rankcast.allocation.baselines import UniformAllocator
from rankcast.allocation.knapsack import knapsack
from rankcast.allocation.problem import AllocationProblem, Allocator
from rankcast.allocation.waterfilling import waterfill
from rankcast.config.link import DeadlineRule
from rankcast.config.run import EnvConfig
from rankcast.env import AllocationMdp
from rankcast.learner.protocol import Learner
from rankcast.learner.synthetic import SyntheticLearner, SyntheticUtility, transformer_layout
from rankcast.learner.synthetic_levels import synthetic_level_problem
from rankcast.link.capacity import Awgn
from rankcast.link.costs import LinkCostModel
from rankcast.link.processes import IidSnr, SnrProcess
from rankcast.records import FloatArray, IntArray, LinkState, Observation, TextStats

Loss = Callable[[IntArray], FloatArray]
"""(B,) noise-free U(r) of (B, N) ranks."""

PAPER_SNRS_DB = (-5.0, 0.0, 5.0, 10.0, 15.0)
SMALLEST_GAP = 1e-3  # of the objective [nats]; a smaller one is no scale to measure by
REPEATS = 40  # plans sampled for each judged link at each evaluation


class KnownUtility(Protocol):
    """A task loss that can be computed, such as a synthetic or a calibrated one."""

    @property
    def gains(self) -> FloatArray:
        """(N, R) loss removed by each component."""
        ...

    def loss(self, ranks: IntArray) -> FloatArray:
        """Return (B,) noise-free U(r) of (B, N) ranks."""
        ...


@dataclass(frozen=True, slots=True)
class WorldConfig:
    """The links and the prices around a utility.

    Attributes:
        snrs_db: links on which policies are judged [dB], and, unless another process is given,
            trained.
        full_rank_at_db: SNR at which full rank costs η = 1 [dB]; scales the bandwidth.
        deadline_s: T_max [s].
        link_weight: λ.
        deadline: whether late plans are refused or, as in the paper's reward, pay.
        horizon: T_env, steps of an episode.
        bandwidth_octaves: o of `EnvConfig`; if it is not 0, policies are judged on each SNR at
            each of the bandwidths W/2^o, W and W·2^o.
    """

    snrs_db: tuple[float, ...] = PAPER_SNRS_DB
    full_rank_at_db: float = 5.0
    deadline_s: float = 1.0
    link_weight: float = 0.1
    deadline: DeadlineRule = "penalise"
    horizon: int = 15
    bandwidth_octaves: float = 0.0


@dataclass(frozen=True)
class World:
    """One utility with an environment to learn in and reference points to be judged by.

    Attributes:
        problem: layout, link costs, λ and deadline rule.
        env: the environment; its learner observes the loss with noise.
        loss: (B,) noise-free U(r) of (B, N) ranks.
        gains: (N, R) loss removed by each component, if it were alone.
        link: the K judged links.
        oracle: mean objective of the best known plans, see `best_known`.
        uniform: that of the best single rank for all projections and links.
        uniform_per_link: that of the best single rank of each link.
    """

    problem: AllocationProblem
    env: AllocationMdp
    loss: Loss
    gains: FloatArray
    link: LinkState
    oracle: float = 0.0
    uniform: float = 1.0
    uniform_per_link: float = 1.0

    def objective(self, ranks: IntArray, link: LinkState) -> FloatArray:
        """Return (B,) U + λη."""
        return self.problem.objective(self.loss(ranks), ranks, link)

    def regret(self, ranks: IntArray, link: LinkState) -> float:
        """Return the regret of (B, N) plans, which hold the judged links equally often."""
        mean = float(self.objective(ranks, link).mean())
        return (mean - self.oracle) / regret_unit(self.oracle, self.uniform)

    def reward(self, regret: float) -> float:
        """Return the mean noise-free reward -U - λη that a regret stands for."""
        return -(self.oracle + regret * regret_unit(self.oracle, self.uniform))

    def observe(self, repeats: int = REPEATS) -> Observation:
        """Return (K·repeats) states: the judged links, the learner's text, no active ranks."""
        size = self.link.size * repeats
        link = LinkState(
            np.tile(self.link.snr_db, repeats),
            np.tile(self.link.bandwidth_hz, repeats),
            np.tile(self.link.deadline_s, repeats),
        )
        text = self.env.learner.next_text()
        seen = TextStats(
            np.full(size, text.lexical_entropy.mean()), np.full(size, text.oov_rate.mean())
        )
        ranks = np.zeros((size, self.problem.layout.n_projections), dtype=np.int64)
        return Observation(link, seen, ranks)

    def regret_of(
        self, allocator: Allocator, rng: np.random.Generator, repeats: int = REPEATS
    ) -> float:
        """Return an allocator's mean regret over repeated plans for the judged links."""
        observation = self.observe(repeats)
        return self.regret(allocator.allocate(observation, rng), observation.link)


def regret_unit(oracle: float, uniform: float) -> float:
    """Return the difference in mean objective that is a regret of 1 [nats]."""
    return max(uniform - oracle, SMALLEST_GAP)


def make_world(
    learner: Learner,
    utility: KnownUtility,
    config: WorldConfig | None = None,
    *,
    link_costs: LinkCostModel | None = None,
    process: SnrProcess | None = None,
    seed: int = 0,
) -> World:
    """Return the world of a utility with its reference points.

    Args:
        learner: observes the utility, with noise; brings the layout.
        utility: the same utility, noise-free.
        config: links, λ, deadline, horizon and bandwidths.
        link_costs: turns ranks and a link into η; None: exact FP32 payload at the AWGN rate.
        process: of the SNR in training; None draws independently from the judged SNRs.
        seed: of the search for the best plans where the utility is not additive.
    """
    config = config or WorldConfig()
    costs = link_costs or LinkCostModel.for_layout(learner.layout, Awgn())
    problem = AllocationProblem(
        learner.layout, costs, link_weight=config.link_weight, deadline=config.deadline
    )
    return world_of(problem, learner, utility, config, process=process, seed=seed)


def world_of(
    problem: AllocationProblem,
    learner: Learner,
    utility: KnownUtility,
    config: WorldConfig,
    *,
    process: SnrProcess | None = None,
    seed: int = 0,
) -> World:
    """Return the world of a problem with its reference points; see `make_world`.

    Price and deadline rule are the problem's, links and horizon those of the configuration.
    """
    at = LinkState(np.array([config.full_rank_at_db]), np.array(1.0), np.array(1.0))
    costs = problem.link_costs
    bandwidth_hz = costs.full_bits / float(costs.budget_bits(at)[0]) / config.deadline_s
    env = AllocationMdp(
        learner,
        process or IidSnr(config.snrs_db),
        problem,
        EnvConfig(
            bandwidth_hz,
            config.deadline_s,
            config.horizon,
            bandwidth_octaves=config.bandwidth_octaves,
        ),
    )
    link = _judged_links(config, bandwidth_hz)
    world = World(problem, env, utility.loss, utility.gains, link)
    best = best_known(problem, utility.loss, utility.gains, link, np.random.default_rng(seed))
    uniform = _uniform_objectives(world)
    return replace(
        world,
        oracle=float(world.objective(best, link).mean()),
        uniform=float(uniform.mean(axis=1).min()),
        uniform_per_link=float(uniform.min(axis=0).mean()),
    )


def _judged_links(config: WorldConfig, bandwidth_hz: float) -> LinkState:
    """Return the K links on which policies are judged: all SNRs at one bandwidth, then the next."""
    octaves = config.bandwidth_octaves
    bandwidths = bandwidth_hz * 2.0 ** np.array([-octaves, 0.0, octaves] if octaves else [0.0])
    return LinkState(
        np.tile(config.snrs_db, len(bandwidths)),
        np.repeat(bandwidths, len(config.snrs_db)),
        np.array(config.deadline_s),
    )


def synthetic_world(
    seed: int, interaction_share: float = 0.0, config: WorldConfig | None = None
) -> World:
    """Return a world of a synthetic utility of 36 projections, drawn from a seed."""
    layout = transformer_layout()
    utility = SyntheticUtility.draw(np.random.default_rng(seed), layout, interaction_share)
    return make_world(SyntheticLearner(layout, utility, seed=seed), utility, config, seed=seed)


def synthetic_level_world(seed: int, interaction_share: float = 0.0) -> World:
    """Return a world of levels, paid in coded bits, that arrive in time.

    Utility and projections are drawn as those of `synthetic_world`. All levels of all projections
    take the whole deadline at 15 dB, so that over most links not everything arrives.
    """
    learner, problem = synthetic_level_problem(seed, interaction_share=interaction_share)
    config = WorldConfig(full_rank_at_db=max(PAPER_SNRS_DB))
    return world_of(problem, learner, learner.utility, config, seed=seed)


def _uniform_objectives(world: World) -> FloatArray:
    """Return (R + 1, K) objectives of each uniform rank, or the largest below it that arrives."""
    observation, rng = world.observe(1), np.random.default_rng(0)
    plans = [
        UniformAllocator(world.problem, rank).allocate(observation, rng)
        for rank in range(world.problem.min_rank, world.problem.layout.r_max + 1)
    ]
    return np.array([world.objective(plan, world.link) for plan in plans])


def best_known(
    problem: AllocationProblem,
    loss: Loss,
    gains: FloatArray,
    link: LinkState,
    rng: np.random.Generator,
) -> IntArray:
    """Return (K, N) optimal plans: exact if U is additive, else the best of ten descents.

    Args:
        problem: λ, bounds and deadline rule.
        loss: U.
        gains: (N, R) loss removed by each component, if it were alone.
        link: K links.
        rng: of the starts of the descents.
    """
    additive = is_additive(loss, gains)
    decreasing = bool((np.diff(gains, axis=1) <= 0).all())
    if additive and not (decreasing and problem.deadline == "penalise"):
        return knapsack(_removed(gains), problem, link)
    best = waterfill(gains, problem, link)
    if additive:
        return best
    top = problem.layout.r_max + 1
    starts = [best, *(rng.integers(0, top, best.shape) for _ in range(9))]
    plans = [descend(problem, loss, problem.feasible(start, link), link) for start in starts]
    scores = np.array([problem.objective(loss(ranks), ranks, link) for ranks in plans])
    return np.array([plans[i][k] for k, i in enumerate(scores.argmin(axis=0))])


def is_additive(loss: Loss, gains: FloatArray) -> bool:
    """Return whether U is its (N, R) gains added up, tried on random plans."""
    n, r_max = gains.shape
    ranks = np.random.default_rng(0).integers(0, r_max + 1, (64, n))
    expected = _removed(gains)[np.arange(n), ranks].sum(axis=1)
    removed = loss(np.zeros((1, n), dtype=np.int64)) - loss(ranks)
    return bool(np.allclose(removed, expected, rtol=1e-6, atol=1e-9))


def descend(problem: AllocationProblem, loss: Loss, ranks: IntArray, link: LinkState) -> IntArray:
    """Change one rank at a time while that lowers the objective and the plan may be sent."""
    ranks, top = ranks.copy(), problem.layout.r_max + 1

    def score(choice: IntArray) -> FloatArray:
        objective = problem.objective(loss(choice), choice, link)
        late = problem.link_costs.link_cost(choice, link) > 1.0
        return np.where(late & (problem.deadline == "enforce"), np.inf, objective)

    while True:
        before = score(ranks).mean()
        for m in range(ranks.shape[1]):
            choices = np.repeat(ranks[None], top, axis=0)
            choices[:, :, m] = np.arange(top)[:, None]
            scores = np.array([score(choice) for choice in choices[problem.min_rank :]])
            ranks[:, m] = problem.min_rank + scores.argmin(axis=0)
        if score(ranks).mean() >= before - 1e-12:
            return ranks


def _removed(gains: FloatArray) -> FloatArray:
    """Return (N, R + 1) loss removed by each projection at each rank."""
    return np.pad(gains.cumsum(axis=1), ((0, 0), (1, 0)))
