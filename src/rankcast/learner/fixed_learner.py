"""A model that is trained already: plans of its levels are measured, and nothing trains.

What an adapter's levels are worth is learned after its training: on batch after batch of the
training texts, each plan beside all levels on the same batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rankcast.allocation.level_problem import LevelProblem
from rankcast.errors import ConfigError
from rankcast.learner.level_learner import checked_plan
from rankcast.learner.protocol import StepResult
from rankcast.learner.transformer import TransformerLearner
from rankcast.records import AdapterLayout, IntArray, TextStats


class FixedLearner:
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
        if problem.layout.projections != learner.layout.projections:
            raise ConfigError("The levels are of other projections than the learner's.")
        most = int(problem.levels.ranks.max(initial=0))
        if most > learner.layout.r_max:
            raise ConfigError(
                f"Levels go up to rank {most}, the learner to {learner.layout.r_max}."
            )
        self.learner, self.problem = learner, problem
        self._all = problem.levels.ranks[:, -1]
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
        """Begin an episode: nothing to do."""

    def next_text(self) -> TextStats:
        """Return the statistics of the batch that the next `step` will measure on."""
        return self.learner.next_text()

    def apply(self, ranks: IntArray) -> None:
        """Activate a (1, N) plan of levels.

        Raises:
            ModelError: another shape, or a level that there is not.
        """
        self._plan = checked_plan(ranks, self.layout)
        self.learner.adapter.set_ranks(self.problem.levels.chosen(self._plan)[0])

    def step(self) -> StepResult:
        """Return the loss of the next batch under the plan and, as a reference, at all levels."""
        ranks, _ = self.problem.levels.chosen(self._plan)
        loss, reference = self.learner.losses_at([ranks, self._all])
        return StepResult(np.array([loss]), np.array([reference]))

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue bit-exactly."""
        return {"learner": self.learner.state_dict(), "plan": self._plan.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.learner.load_state_dict(state["learner"])
        self.apply(np.array(state["plan"], dtype=np.int64)[None])
