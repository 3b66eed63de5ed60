"""Files that one training came down to, and plans that mix them.

Training goes on from file to file, so that each projection has a version of the same weights in
each. A plan takes a version of every projection: the level of a projection is which. Where a link
lies between two sizes, the smaller file arrives with some projections of the larger one.

Shapes: `N` projections, `K` files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from rankcast.adapters.arrays import load_tensors
from rankcast.allocation.level_problem import LevelProblem
from rankcast.codec.container import Container, pack_as_trained
from rankcast.codec.levels import Levels
from rankcast.codec.packing import Coding, Source
from rankcast.codec.tensors import Factors
from rankcast.errors import InfeasibleDeadlineError
from rankcast.learner.level_learner import PlansOnModel
from rankcast.learner.protocol import StepResult
from rankcast.learner.transformer import TransformerLearner
from rankcast.records import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Versions:
    """The files of one training.

    Attributes:
        sources: the adapter of each file at the steps it was trained for, smallest file first.
    """

    sources: tuple[Source, ...]

    @property
    def largest(self) -> Source:
        """The adapter of the largest file."""
        return self.sources[-1]

    @cached_property
    def of_levels(self) -> IntArray:
        """(N, K + 1) the file whose version each level is; -1 for nothing.

        A file that has nothing of a projection is no level of it: the last level stands again
        behind those that there are.
        """
        has = np.array([source.tensors.ranks > 0 for source in self.sources]).T
        found = np.full((len(has), len(self.sources) + 1), -1)
        for own, there in zip(found, has, strict=True):
            versions = np.flatnonzero(there)
            own[1 : 1 + len(versions)] = versions
            own[1 + len(versions) :] = versions[-1:] if len(versions) else -1
        return found

    @cached_property
    def wholes(self) -> IntArray:
        """(K, N) the plan of levels that each file is."""
        real = np.diff(self.of_levels, axis=1) > 0
        within = self.of_levels[:, 1:] <= np.arange(len(self.sources))[:, None, None]
        return (real & within).sum(axis=-1)

    def mixed(self, plan: IntArray) -> Source:
        """Return the adapter of an (N,) plan of levels.

        Tensors beside the projections, such as a classifier, are those of the smallest file of
        which the plan has anything.
        """
        versions = self.of_levels[np.arange(len(plan)), plan]
        least = self.sources[min(versions[versions >= 0], default=0)]
        assert least.coding is not None
        common, factors, offsets = least.coding.exponent, [], []
        for n, version in enumerate(versions.tolist()):
            own, each = _projection(self.sources[version], n)
            factors.append(own if version >= 0 else Factors(own.left[:, :0], own.right[:0]))
            offsets.append(tuple(e - common for e in each) if version >= 0 else ())
        ranks = tuple(f.rank for f in factors)
        coding = Coding(common, (), least.coding.tensor_offsets, (ranks,), tuple(offsets))
        tensors = replace(least.tensors, factors=tuple(factors))
        return replace(least, tensors=tensors).at(coding)

    def file(self, plan: IntArray) -> Container:
        """Return an (N,) plan of levels as a file."""
        source = self.mixed(plan)
        assert source.coding is not None
        return pack_as_trained(source, source.coding)

    def file_within(self, plan: IntArray, worth: FloatArray, budget_bits: float) -> Container:
        """Return the file of a plan, without its least worthy levels where they are too much.

        Args:
            plan: (N,) levels.
            worth: (N, K) of each level beyond the one before, by bit.
            budget_bits: that the file may have.

        Raises:
            InfeasibleDeadlineError: not even the file without any component fits.
        """
        chosen = plan.astype(np.int64)
        while (file := self.file(chosen)).n_bits > budget_bits:
            sent = np.flatnonzero(chosen)
            if not sent.size:
                raise InfeasibleDeadlineError(file.n_bits, budget_bits)
            chosen[sent[np.argmin(worth[sent, chosen[sent] - 1])]] -= 1
        return file

    def largest_within(self, budget_bits: float) -> Container:
        """Return the largest of the files that fits; one without any component if none does."""
        files = [self.file(plan) for plan in self.wholes[::-1]]
        nothing = self.file(np.zeros(len(self.of_levels), dtype=np.int64))
        return next((file for file in files if file.n_bits <= budget_bits), nothing)

    def levels(self) -> Levels:
        """Return the levels of each projection, their coded bits, and the energy that they keep."""
        which = self.of_levels
        n, k = which.shape[0], which.shape[1] - 1
        nothing = np.zeros(n, dtype=np.int64)
        overhead_bits = float(self.file(nothing).n_bits)
        alone, energy = np.zeros(which.shape), np.zeros(which.shape)
        real = np.diff(which, axis=1) > 0
        for i, before in np.argwhere(real):
            plan = nothing.copy()
            plan[i] = level = before + 1
            alone[i, level] = max(self.file(plan).n_bits - overhead_bits, alone[i, before] + 1)
            energy[i, level] = _energy(_projection(self.sources[which[i, level]], i)[0])
        alone, energy = (np.maximum.accumulate(x, axis=1) for x in (alone, energy))
        # The coder adapts: projections together take less than the sum of what each takes alone.
        together = np.array([float(self.file(whole).n_bits) for whole in self.wholes])
        of_wholes = [alone[np.arange(n), whole].sum() for whole in self.wholes]
        share = np.diff(together, prepend=overhead_bits) / np.diff(of_wholes, prepend=0.0)
        of_step = share[np.clip(which[:, 1:], 0, k - 1)]
        more = np.where(real, np.maximum(np.rint(np.diff(alone, axis=1) * of_step), 1.0), 0.0)
        more[~real.any(axis=1), 0] = 1.0  # a projection without components: a level of nothing
        bits = np.concatenate([np.zeros((n, 1)), more.cumsum(axis=1)], axis=1)
        sizes = np.array([[0, *(s.tensors.ranks[i] for s in self.sources)] for i in range(n)])
        ranks = np.take_along_axis(sizes, which + 1, axis=1)
        return Levels(ranks, np.zeros_like(ranks), bits.astype(np.int64), energy, overhead_bits)


class VersionLearner(PlansOnModel):
    """A `Learner` that measures plans of versions; nothing trains.

    Args:
        learner: of the training that is over.
        problem: levels of the versions.
        versions: of this learner's adapter.
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


def _projection(source: Source, n: int) -> tuple[Factors, Sequence[int]]:
    """Return the components of a projection, and the exponents of their steps."""
    coding = source.coding
    assert coding is not None
    return source.tensors.factors[n], [o + coding.exponent for o in coding.component_offsets[n]]


def _energy(factors: Factors) -> float:
    """Return the squared norm of an update."""
    return float(np.square(factors.left @ factors.right).sum())
