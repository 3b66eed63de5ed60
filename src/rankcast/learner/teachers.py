"""Adapters in float32 that train before a small one, which then learns what they answer.

The mean of what several adapters answer is better than each of them, and says more of a text than
its label (Hinton et al. 2015, arXiv 1503.02531). They share a learner with the small adapter: one
base model, one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from rankcast.adapters.layer import initialise
from rankcast.config.learner import FinetuneConfig
from rankcast.learner.objectives import AdapterSnapshot
from rankcast.learner.transformer import TransformerLearner


class Teachers:
    """Trains adapters of all components that a learner has room for, each from its own beginning.

    Args:
        learner: at its first step.
        n_teachers: how many.
        n_steps: of each.
    """

    def __init__(self, learner: TransformerLearner, n_teachers: int, n_steps: int) -> None:
        self._learner, self._n_teachers, self._n_steps = learner, n_teachers, n_steps
        self._initial = learner.adapter.state_dict()
        self._snapshots: list[AdapterSnapshot] = []
        if not self.done:
            self._begin()

    @property
    def done(self) -> bool:
        """Whether all have been trained."""
        return len(self._snapshots) == self._n_teachers

    def step(self) -> float:
        """Train a batch and return its loss.

        Raises:
            RankcastError: the loss or its gradients are not finite.
        """
        loss = self._learner.train_step()
        if self._learner.n_steps == self._n_steps:
            self._snapshots.append(AdapterSnapshot(self._learner.adapter))
            self._begin()
        return loss

    def teach(self, weight: float) -> None:
        """Let the learner learn from their mean answers from now on; see `learn_from`."""
        if self._snapshots:
            self._learner.learn_from(self._snapshots, weight)

    def _begin(self) -> None:
        """Put the adapter back to a beginning, a new one for each of them and for what follows."""
        learner, place = self._learner, len(self._snapshots)
        learner.adapter.load_state_dict(self._initial)
        r_max = learner.layout.r_max
        learner.adapter.set_ranks(np.full(learner.layout.n_projections, r_max))
        if place:
            generator = torch.Generator().manual_seed(learner.config.seed + place)
            for factors in learner.adapter.factors():
                initialise(*(f.detach() for f in factors), std=None, generator=generator)
        learner.restart(teacher_training(learner.config, self._n_steps))

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the adapters that have been trained; the learner keeps the one that trains."""
        return [snapshot.state_dict() for snapshot in self._snapshots]

    def load_state_dict(self, state: list[Mapping[str, Any]]) -> None:
        """Continue from `state_dict()`; the learner's own state comes after it."""
        adapter = self._learner.adapter
        self._snapshots = [AdapterSnapshot.of(adapter, snapshot) for snapshot in state]
        self._begin()


def teacher_training(config: FinetuneConfig, n_steps: int) -> FinetuneConfig:
    """Return how a teacher trains: as usual, at full rank."""
    return replace(
        config,
        total_steps=n_steps,
        warmup_steps=min(config.warmup_steps, n_steps),
        nested_prob=0.0,
        orthogonality_weight=0.0,
        measure_reference=False,
    )
