"""How much larger an adapter is made before it is rounded coarsely, so that it acts as it did.

Coarse rounding makes an update smaller: what is left out never points the other way. Each
projection loses a share, all shares act in the same direction, and so they add up in amplitude.
What the adapter does to the answers shrinks much more than errors of the weights say. A *gain*
above 1 on the whole update makes up for that. Texts say which: how far the answers are from the
adapter's at each step of a ladder.

The format stays, and no byte is added. The larger adapter is packed to the same size, at steps that
are a little coarser beside it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rankcast.adapters.arrays import load_tensors
from rankcast.codec.container import Container
from rankcast.codec.tensors import AdapterTensors
from rankcast.errors import InfeasibleDeadlineError, InfeasibleSizeError
from rankcast.learner.objectives import AdapterSnapshot
from rankcast.learner.transformer import TransformerLearner
from rankcast.packaging.texts import OnPass

GAIN_TEXTS = 32
"""Training texts on which gains are compared."""
GAINS = tuple(1.1**n for n in range(1, 9))
"""That are tried, one after the other."""
Way = Callable[[float, float], Container]
"""Packs an adapter, made larger by a gain, within a number of bits."""


class GainSearch:
    """Finds the gain at which what a file decodes to answers most like the adapter.

    Args:
        learner: with the model; it holds what was tried last afterwards.
        whole: the adapter as it was trained.
        n_texts: training texts on which is compared, drawn at random; all if there are fewer.
        on_pass: told which of all gains is tried.
    """

    def __init__(
        self,
        learner: TransformerLearner,
        whole: AdapterSnapshot,
        n_texts: int = GAIN_TEXTS,
        on_pass: OnPass | None = None,
    ) -> None:
        self._learner, self._whole, self._on_pass = learner, whole, on_pass
        n_known = len(learner.data.train)
        self._texts = np.random.default_rng(0).permutation(n_known)[:n_texts]

    def divergence(self, tensors: AdapterTensors) -> float:
        """Return how far the answers of a version are from the adapter's [nats per prediction]."""
        load_tensors(self._learner.adapter, tensors)
        return self._learner.divergence_from(self._whole, "train", self._texts)

    def best(self, tensors: AdapterTensors) -> tuple[float, float]:
        """Return the gain after which the divergence rises, and the divergence at a gain of 1.

        Args:
            tensors: what a file decodes to.
        """
        first = lowest = self.divergence(tensors)
        best = 1.0
        for number, gain in enumerate(GAINS, 1):
            if self._on_pass is not None:
                self._on_pass("gain", number, len(GAINS))
            found = self.divergence(tensors.scaled(gain))
            if found >= lowest:
                break
            best, lowest = gain, found
        return best, first

    def suits(self, way: Way, budget_bits: float) -> float:
        """Return the gain at which a file of a size is nearer to the adapter than at a gain of 1.

        Returns:
            1 if there is none, or if the larger adapter does not fit.

        Raises:
            RankcastError: as `way` at a gain of 1.
        """
        gain, divergence = self.best(way(1.0, budget_bits).tensors())
        if gain == 1.0:
            return gain
        try:
            larger = way(gain, budget_bits).tensors()
        except (InfeasibleDeadlineError, InfeasibleSizeError):
            return 1.0
        return gain if self.divergence(larger) < divergence else 1.0
