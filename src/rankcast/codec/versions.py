"""Files that one training came down to, and plans that mix them.

Training goes on from file to file (`codec.smaller_bytes`), so that each projection has a version of
the same weights in each. The levels of a projection are its versions: where a link lies between two
sizes, the smaller file arrives with some projections of the larger one.

Shapes: `N` projections, `K` files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from rankcast.codec.container import Container, pack_as_trained
from rankcast.codec.levels import Levels
from rankcast.codec.packing import Coding, Source
from rankcast.codec.tensors import Factors
from rankcast.errors import CodecError, InfeasibleDeadlineError
from rankcast.records import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Versions:
    """The files of one training.

    Attributes:
        sources: the adapter of each file at the steps that it has there, smallest file first.

    Raises:
        CodecError: no file, or files of different adapters.
    """

    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        """Refuse files that cannot be mixed."""
        if len({source.tensors.projections for source in self.sources}) != 1:
            raise CodecError("Files to mix must be of the same projections.")

    @classmethod
    def of(cls, files: Iterable[Container]) -> Versions:
        """Return the versions in some files, in any order."""
        return cls(tuple(file.source() for file in sorted(files, key=lambda file: file.n_bits)))

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
        common, beside = _coding_of(least).exponent, _coding_of(least).tensor_offsets
        factors, offsets = [], []
        for n, version in enumerate(versions.tolist()):
            own = self.sources[version].tensors.factors[n]
            factors.append(own if version >= 0 else Factors(own.left[:, :0], own.right[:0]))
            coding = _coding_of(self.sources[version])
            each = coding.component_offsets[n] if version >= 0 else ()
            offsets.append(tuple(o + coding.exponent - common for o in each))
        ranks = tuple(f.rank for f in factors)
        tensors = replace(least.tensors, factors=tuple(factors))
        coding = Coding(common, (), beside, (ranks,), tuple(offsets))
        return replace(least, tensors=tensors).at(coding)

    def file(self, plan: IntArray) -> Container:
        """Return an (N,) plan of levels as a file."""
        source = self.mixed(plan)
        return pack_as_trained(source, _coding_of(source))

    def file_within(self, plan: IntArray, worth: FloatArray, budget_bits: float) -> Container:
        """Return the file of a plan, without its least worthy levels where they are too much.

        Predicted bits are a few per cent off. What they promised may not fit by a few bytes.

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
        files = (self.file(plan) for plan in self.wholes[::-1])
        nothing = np.zeros(len(self.of_levels), dtype=np.int64)
        return next((file for file in files if file.n_bits <= budget_bits), self.file(nothing))

    def levels(self) -> Levels:
        """Return the levels of each projection, their coded bits, and the energy that they keep.

        Bits are measured with the coder: of each version by itself, scaled so that whole files are
        exact. Measure what levels are worth before choosing by their energy.
        """
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
            energy[i, level] = _energy(self.sources[which[i, level]].tensors.factors[i])
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


def _coding_of(source: Source) -> Coding:
    if source.coding is None:
        raise CodecError("An adapter of no known steps has no versions; take it from a file.")
    return source.coding


def _energy(factors: Factors) -> float:
    """Return the squared norm of an update."""
    return float(np.square(factors.left @ factors.right).sum())
