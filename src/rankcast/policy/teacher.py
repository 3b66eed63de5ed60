"""Lessons for the denoiser: plans solved exactly from the learned utility.

Sampling a denoiser that was taught on plans solved from draws of the belief *is* amortised
Thompson sampling: broad where the utility is uncertain, sharp where it is known. Half of the plans
are of that kind ("explore"). The other half is solved from the expected gains, under prices that
vary by group, so that the denoiser learns the best plan for *every* coarse description and PPO's
proposal keeps a meaning when the belief has become sharp.

The teacher can also act itself, by solving for a fresh draw at each step (`Teacher.act`).

Where only the increase of rank is paid for, a price that depends on the link makes the solver wait
for better ones: sampling the denoiser is then amortised stopping.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from rankcast.allocation.beliefs import LearnedUtility
from rankcast.allocation.problem import AllocationProblem
from rankcast.allocation.waterfilling import PriceFactor, plan_at_price
from rankcast.config.policy import TeacherConfig
from rankcast.policy.airllm import CoarseDescription, StateMask, state_features
from rankcast.records import FloatArray, IntArray, LinkState, Observation, TextStats


@dataclass(frozen=True)
class Lesson:
    """M plans with the states that they are for.

    Attributes:
        ranks: (M, N) plans, feasible.
        features: (M, 4) state features, as far as the policy sees them.
        coarse: (M, K) descriptions of the plans.
        explore: (M,) whether the plan comes from a draw of the belief.
        best_coarse: (M, K) description of the plan solved from the expected gains, which the actor
            is shown.
        link: the M true links.
        text: the M true texts.
        received: (M, N) ranks that the device has, as far as the policy sees them, or None where
            plans do not depend on them.
    """

    ranks: IntArray
    features: FloatArray
    coarse: FloatArray
    explore: np.ndarray[tuple[int], np.dtype[np.bool_]]
    best_coarse: FloatArray
    link: LinkState
    text: TextStats
    received: IntArray | None = None


class Teacher:
    """Remembers the states that were met, and solves plans for them from the belief.

    Args:
        problem: layout, λ and deadline rule.
        utility: the belief.
        describe: the coarse description.
        config: how plans are made.
        price: factor on λ·η by link; None: 1.
        mask: hides parts of the state from the policy; None: nothing. Plans follow the true state,
            but for text that is hidden from the belief, too.
    """

    def __init__(
        self,
        problem: AllocationProblem,
        utility: LearnedUtility,
        describe: CoarseDescription,
        config: TeacherConfig | None = None,
        price: PriceFactor | None = None,
        *,
        mask: StateMask | None = None,
    ) -> None:
        self.problem, self.utility, self.describe = problem, utility, describe
        self.config = config or TeacherConfig()
        self.price = price
        self.mask = mask or StateMask.for_problem(problem)
        self._states: deque[tuple[float, ...]] = deque(maxlen=self.config.memory)
        self._received: deque[IntArray] = deque(maxlen=self.config.memory)

    def remember(self, observation: Observation) -> None:
        """Keep B states to solve plans for."""
        link, text = observation.link, observation.text
        columns = (
            link.snr_db, link.bandwidth_hz, link.deadline_s, text.lexical_entropy, text.oov_rate,
        )  # fmt: skip
        self._states.extend(zip(*(c.tolist() for c in columns), strict=True))
        if self.problem.sent_stays:
            self._received.extend(observation.ranks)

    def mean_text(self) -> TextStats:
        """Return the mean statistics of the remembered texts, (1,) each."""
        entropy, oov_rate = np.array(self._states, dtype=np.float64).reshape(-1, 5)[:, 3:].T
        return TextStats(entropy.mean(keepdims=True), oov_rate.mean(keepdims=True))

    def lesson(self, rng: np.random.Generator) -> Lesson:
        """Return a fresh set of solved plans."""
        c = self.config
        observation = self._states_to_teach(rng, c.plans)
        explore = np.arange(c.plans) % 2 == 0
        link, text = observation.link, observation.text
        gains = self.utility.gains_at(self.problem, link, text=text)
        best = plan_at_price(gains, self.problem, observation, self.price)
        if c.group_price_spread > 0.0:
            members = self.describe.weights > 0
            factors = rng.normal(0.0, c.group_price_spread, (c.plans, self.describe.size))
            gains *= np.exp(factors @ members)[..., None]
        gains[explore] = self.utility.gains_at(
            self.problem, link.select(explore), rng, c.explore_width, text=text.select(explore)
        )
        ranks = plan_at_price(gains, self.problem, observation, self.price)
        seen = self.mask(observation)
        return Lesson(
            ranks,
            state_features(seen, self.problem),
            self.describe(ranks),
            explore,
            self.describe(best),
            link,
            text,
            seen.ranks if self._received else None,
        )

    def act(self, observation: Observation, rng: np.random.Generator) -> IntArray:
        """Return (B, N) plans of Thompson sampling: each is solved from a draw of its own.

        They are solved as the exploring plans of a lesson are, for the true state.

        Raises:
            InfeasibleDeadlineError: not even the smallest plan arrives in time.
        """
        link, width = observation.link, self.config.explore_width
        gains = self.utility.gains_at(self.problem, link, rng, width, text=observation.text)
        wanted = plan_at_price(gains, self.problem, observation, self.price)
        return self.problem.settle(wanted, observation, gains)

    def state_dict(self) -> dict[str, FloatArray]:
        """Return the remembered states."""
        state = {"states": np.array(self._states, dtype=np.float64).reshape(-1, 5)}
        if self._received:
            state["received"] = np.array(self._received, dtype=np.float64)
        return state

    def load_state_dict(self, state: dict[str, FloatArray]) -> None:
        """Continue from `state_dict()`."""
        self._states.clear()
        self._states.extend(tuple(row) for row in np.asarray(state["states"]).tolist())
        self._received.clear()
        if "received" in state:
            self._received.extend(np.asarray(state["received"]).astype(np.int64))

    def _states_to_teach(self, rng: np.random.Generator, size: int) -> Observation:
        """Return states that were met, and some from the whole range of links."""
        met = np.array(self._states, dtype=np.float64).reshape(-1, 5)
        rows = np.column_stack(
            [
                rng.uniform(-10.0, 25.0, size),
                10.0 ** rng.uniform(5.0, 8.3, size),
                10.0 ** rng.uniform(-1.0, 1.0, size),
                rng.uniform(1.0, 4.0, size),
                rng.uniform(0.0, 0.5, size),
            ]
        )
        received = np.zeros((size, self.problem.layout.n_projections), dtype=np.int64)
        if len(met):
            wide = rng.random(size) < self.config.wide_links
            index = rng.integers(len(met), size=size)
            rows = np.where(wide[:, None], rows, met[index])
            if self._received:
                received = np.array(self._received)[index]
        arrivable = np.flatnonzero(self.problem.arrivable(_link(rows)))  # the others teach nothing
        if not len(arrivable):
            self.problem.require_feasible(_link(met))
        chosen = arrivable[rng.integers(len(arrivable), size=size)]
        rows = rows[chosen]
        return Observation(_link(rows), TextStats(rows[:, 3], rows[:, 4]), received[chosen])


def _link(rows: FloatArray) -> LinkState:
    return LinkState(rows[:, 0], rows[:, 1], rows[:, 2])
