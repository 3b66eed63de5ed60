"""A model that is trained already: plans of its levels are measured, and nothing trains.

What an adapter's levels are worth is learned after its training: on batch after batch of the
training texts, each plan beside all levels on the same batch.
"""

from __future__ import annotations

import numpy as np

from rankcast.allocation.level_problem import LevelProblem
from rankcast.learner.level_learner import PlansOnModel
from rankcast.learner.protocol import StepResult
from rankcast.learner.transformer import TransformerLearner
from rankcast.records import IntArray


class FixedLearner(PlansOnModel):
    """A `Learner` that measures plans of levels; B = 1.

    The adapter is as a decoder has it, so that a level is a number of components: those of levels
    that were trained for prefixes (`rankcast.codec.trained_levels`). Levels that differ in their
    step alone are for `LevelLearner`.

    Args:
        learner: holds the adapter.
        problem: levels of this adapter.

    Raises:
        ConfigError: levels of other projections, or of more components than the adapter has.
    """

    def __init__(self, learner: TransformerLearner, problem: LevelProblem) -> None:
        super().__init__(learner, problem)
        self._all = problem.levels.ranks[:, -1]

    def step(self) -> StepResult:
        """Return the loss of the next batch under the plan and, as a reference, at all levels."""
        ranks, _ = self.problem.levels.chosen(self._plan)
        loss, reference = self.learner.losses_at([ranks, self._all])
        return StepResult(np.array([loss]), np.array([reference]))

    def _show(self, plan: IntArray) -> None:
        """Activate the components of a plan."""
        self.learner.adapter.set_ranks(self.problem.levels.chosen(plan)[0])
