"""A model that is trained already: plans of versions are measured, and nothing trains.

What versions of a projection are worth is learned after the training: on batch after batch of the
training texts, each plan beside the largest file on the same batch.
"""

from __future__ import annotations

import numpy as np

from rankcast.adapters.arrays import load_tensors
from rankcast.allocation.level_problem import LevelProblem
from rankcast.codec.versions import Versions
from rankcast.learner.level_learner import PlansOnModel
from rankcast.learner.protocol import StepResult
from rankcast.learner.transformer import TransformerLearner
from rankcast.records import IntArray


class VersionLearner(PlansOnModel):
    """A `Learner` that measures plans of versions; B = 1.

    Args:
        learner: of the training that is over.
        problem: levels of the versions.
        versions: of this learner's adapter.

    Raises:
        ConfigError: levels of other projections, or of more components than the adapter has.
    """

    def __init__(
        self, learner: TransformerLearner, problem: LevelProblem, versions: Versions
    ) -> None:
        super().__init__(learner, problem)
        self._versions = versions

    def step(self) -> StepResult:
        """Return the next batch's loss under the plan and, as a reference, of the largest file."""
        learner = self.learner
        load_tensors(learner.adapter, self._versions.largest.tensors)
        reference = learner.next_loss()
        self._show(self._plan)
        (loss,) = learner.losses_at([learner.adapter.ranks])
        return StepResult(np.array([loss]), np.array([reference]))

    def _show(self, plan: IntArray) -> None:
        """Let the model have a plan."""
        load_tensors(self.learner.adapter, self._versions.mixed(plan).tensors)
