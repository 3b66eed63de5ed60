"""A live model that trains under plans of levels: one training for every link.

Each step trains the components that a plan sends, rounded as its levels say, with gradients that
pass straight through. Beside the plan that was asked for, random budgets are trained, so that the
adapter is good at every plan and not only at those of one link.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from rankcast.adapters.arrays import balanced_tensors_of, load_tensors
from rankcast.allocation.level_problem import LevelProblem
from rankcast.errors import ConfigError, ModelError
from rankcast.learner.protocol import StepResult
from rankcast.learner.rounding import Rounding
from rankcast.learner.transformer import TransformerLearner
from rankcast.records import AdapterLayout, FloatArray, IntArray, TextStats


class PlansOnModel(ABC):
    """What learners of levels have in common: a live model, its levels, and a plan of them; B = 1.

    Args:
        learner: holds the adapter.
        problem: levels of this adapter.

    Raises:
        ConfigError: levels of other projections, or of more components than the adapter has.
    """

    def __init__(self, learner: TransformerLearner, problem: LevelProblem) -> None:
        if problem.layout.projections != learner.layout.projections:
            raise ConfigError("The levels are of other projections than the learner's.")
        most = int(problem.levels.ranks.max(initial=0))
        if most > learner.layout.r_max:
            raise ConfigError(
                f"Levels go up to rank {most}, the learner to {learner.layout.r_max}."
            )
        self.learner, self.problem = learner, problem
        self._plan = np.zeros(problem.layout.n_projections, dtype=np.int64)

    @property
    def layout(self) -> AdapterLayout:
        """The projections; the largest rank is the number of levels."""
        return self.problem.layout

    @property
    def n_envs(self) -> int:
        """1."""
        return 1

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode: nothing to do, because the model keeps what it has learned."""
        del seed

    def next_text(self) -> TextStats:
        """Return the statistics of the batch that the next `step` will work on."""
        return self.learner.next_text()

    def apply(self, ranks: IntArray) -> None:
        """Activate a (1, N) plan of levels.

        Raises:
            ModelError: another shape, or a level that there is not.
        """
        self._plan = checked_plan(ranks, self.layout)
        self._show(self._plan)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue bit-exactly."""
        return {"learner": self.learner.state_dict(), "plan": self._plan.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.learner.load_state_dict(state["learner"])
        self.apply(np.array(state["plan"], dtype=np.int64)[None])

    @abstractmethod
    def _show(self, plan: IntArray) -> None:
        """Let the model have a plan."""


class LevelLearner(PlansOnModel):
    """A `Learner` whose ranks are levels of a trained adapter; B = 1.

    Args:
        learner: holds the adapter. Its own random ranks and references are off (`nested_prob`,
            `measure_reference`): this class draws plans, and a rounded loss has no reference.
        problem: levels of this adapter.
        random_share: share of the steps that train a plan for a random budget instead of the one
            that was applied. Losses are those of the latter either way.
        rate_weight: loss that a bit costs; see `Rounding`.

    Raises:
        ConfigError: levels of other projections, or a learner with random ranks or references.
    """

    def __init__(
        self,
        learner: TransformerLearner,
        problem: LevelProblem,
        random_share: float = 0.5,
        rate_weight: float = 0.0,
    ) -> None:
        super().__init__(learner, problem)
        config = learner.config
        if config.nested_prob > 0 or config.measure_reference or config.orthogonality_weight > 0:
            raise ConfigError(
                "A learner of levels needs nested_prob 0, orthogonality_weight 0 and "
                "measure_reference false."
            )
        self.random_share, self.rate_weight = random_share, rate_weight
        layout = learner.layout
        learner.adapter.set_ranks(np.full(layout.n_projections, layout.r_max))
        load_tensors(learner.adapter, balanced_tensors_of(learner.adapter))
        self._show(self._plan)

    def step(self) -> StepResult:
        """Train one batch, under the plan or one for a random budget, and return the plan's loss.

        Raises:
            RankcastError: the loss or its gradients are not finite.
        """
        rng = np.random.default_rng([self.learner.config.seed, self.learner.n_steps, 3])
        if rng.random() >= self.random_share:
            return StepResult(np.array([self.learner.train_step()]))
        loss = self.learner.next_loss()
        self._show(self.problem.plans_within(self._random_budget(rng))[0])
        self.learner.train_step()
        self._show(self._plan)
        return StepResult(np.array([loss]))

    def _random_budget(self, rng: np.random.Generator) -> FloatArray:
        """Return (1,) bits, from those of the first level to all: small ones as often as large."""
        costs = self.problem.link_costs
        least = costs.overhead_bits + costs.component_bits[:, 0].min()
        return np.exp(rng.uniform(np.log(least), np.log(costs.full_bits), 1))

    def _show(self, plan: IntArray) -> None:
        """Let the model have the ranks and steps of a plan."""
        ranks, exponents = self.problem.levels.chosen(plan)
        sent = exponents[ranks > 0]
        common = int(np.median(sent)) if sent.size else int(np.median(exponents))
        offsets = tuple(np.where(ranks > 0, exponents - common, 0).tolist())
        self.learner.adapter.set_ranks(ranks)
        self.learner.round_weights(Rounding((common, common), self.rate_weight, offsets))


def checked_plan(levels: IntArray, layout: AdapterLayout) -> IntArray:
    """Return the (N,) plan of a single link.

    Args:
        levels: (1, N).
        layout: its largest rank is the number of levels.

    Raises:
        ModelError: another shape, or a level that there is not.
    """
    plan = np.asarray(levels)
    inside = plan.size and plan.min() >= 0 and plan.max() <= layout.r_max
    if plan.shape != (1, layout.n_projections) or not inside:
        raise ModelError(
            f"This model takes levels 0..{layout.r_max} of shape (1, {layout.n_projections}), "
            f"got {plan!r}."
        )
    return plan[0].astype(np.int64)
