"""The file of at most so many bytes whose errors cost least by the curvature of the loss.

What an error costs depends on where it lies. Inputs that are large, or that often come together,
and outputs on which the loss depends make it dear. `Curvature` says so for a projection: an error E
of its update costs ½·tr(Eᵀ·left·E·right). Three things follow:

- *Components* are turned (`_Turned.of`) until their costs add up: by the SVD of the update between
  the roots of both matrices. Each gets the step at which a number's rounding costs the same, so
  that components which cost less than that vanish: reverse water-filling.
- *Feedback*: numbers are rounded one after the other, and what one loses, those that follow make up
  for, as far as the curvature says that they can (GPTQ, Frantar et al. 2023; LDLQ, Chee et al.
  2023, both for a model's own weights at a fixed number of bits). Right factors first; then the
  left ones are fitted to what became of them, and rounded.
- *A price on bits*: before it is rounded, a number is made smaller by what its bits are worth at
  the slope of the rate, more where an error costs little. For Gaussian numbers that is exact
  rate-distortion optimisation.

The format is the same: a reader notices nothing.

Shapes: `N` projections, `r` components, `d_out`, `d_in` outputs and inputs.
"""

from __future__ import annotations

import pickle
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rankcast.codec.blocks import LARGEST_OFFSET
from rankcast.codec.container import Container, pack_as_trained
from rankcast.codec.packing import Coding, Source, block_offsets
from rankcast.codec.planner import rounded_entropy
from rankcast.codec.quantiser import EXPONENTS, PER_RADIX, RADIX, step_of
from rankcast.codec.target import ONE_CHUNK_BYTES
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.errors import CodecError, InfeasibleSizeError
from rankcast.records import IntArray

DAMPING = 0.1
"""Of the mean curvature, added to the curvature of every number: it is measured on few texts."""
PER_EXPONENT = 8
"""Sizes between two neighbouring exponents, at which components get their steps in turn."""
_PARTS = 3
"""Chunks of a file that is too large for one."""
PRICE = 1 / 12
"""Slope of a uniform quantiser's distortion over its rate, over 2 ln 2 [squared steps]."""
_NARROWEST = 0.4
"""Spread in steps below which the bits of a number no longer grow as its square."""
_AT_ONCE = 64
_ASIDE = 4
"""Sizes between two that are tried around the likely one."""
_FINEST, _COARSEST = 4096.0, 1 / 32
"""Spread in steps of the adapter's numbers at the finest and the coarsest steps that are tried."""


Matrix = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Curvature:
    """How much errors of one projection cost.

    Attributes:
        left: blocks along the diagonal of the (d_out, d_out) curvature of outputs.
        right: blocks along the diagonal of the (d_in, d_in) curvature of inputs.

    Raises:
        CodecError: blocks that are not square, or not finite.
    """

    left: tuple[Matrix, ...]
    right: tuple[Matrix, ...]

    def __post_init__(self) -> None:
        """Check the blocks."""
        for block in (*self.left, *self.right):
            if block.ndim != 2 or block.shape[0] != block.shape[1] or not np.isfinite(block).all():
                raise CodecError("The curvature of a projection is made of finite square blocks.")


@dataclass(frozen=True, eq=False)
class _Block:
    """A part of one side, in the order in which it is rounded.

    Attributes:
        start: of its numbers.
        order: (n,) of its numbers, dearest first.
        costs: (n,) of a number's error that those behind it have made up for.
        feedback: (n, n) unit upper triangular: what those behind take over of an error.
    """

    start: int
    order: IntArray
    costs: Matrix
    feedback: Matrix

    @classmethod
    def of(cls, start: int, matrix: Matrix) -> Self:
        order = np.argsort(-matrix.diagonal(), kind="stable")
        inverse = np.linalg.inv(matrix[np.ix_(order, order)])
        root = np.linalg.cholesky((inverse + inverse.T) / 2).T
        diagonal = root.diagonal()
        return cls(start, order, diagonal**-2.0, (root / diagonal[:, None]).astype(np.float32))


@dataclass(frozen=True, eq=False)
class _Side:
    """The curvature of outputs or of inputs, ready for rounding.

    Attributes:
        matrices: its blocks, damped.
        blocks: the same, factorised.
        cost: geometric mean of what an error costs.
    """

    matrices: tuple[Matrix, ...]
    blocks: tuple[_Block, ...]
    cost: float

    @classmethod
    def of(cls, matrices: Sequence[Matrix], damping: float) -> Self:
        as_double = [np.asarray(m, dtype=np.float64) for m in matrices]
        sizes = [len(m) for m in as_double]
        mean = sum(float(m.trace()) for m in as_double) / max(sum(sizes), 1) or 1.0
        damped = tuple(m / mean + damping * np.eye(len(m)) for m in as_double)
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        blocks = tuple(_Block.of(start, m) for start, m in zip(starts, damped, strict=True))
        logs = np.concatenate([np.log(block.costs) for block in blocks])
        return cls(tuple(m.astype(np.float32) for m in damped), blocks, float(np.exp(logs.mean())))

    def times(self, rows: Matrix) -> Matrix:
        """Return (r, n) rows times the matrix."""
        ends = np.cumsum([len(m) for m in self.matrices])[:-1]
        parts = zip(np.split(rows, ends, axis=1), self.matrices, strict=True)
        return np.concatenate([part @ matrix for part, matrix in parts], axis=1)

    def rounded(self, rows: Matrix, price: float = PRICE) -> Matrix:
        """Return (r, n) indices of rows in steps."""
        spreads = np.maximum(np.sqrt(np.square(rows).mean(axis=1)), _NARROWEST)
        indices = np.empty_like(rows)
        for block in self.blocks:
            places = block.start + block.order
            dear = block.costs[:, None] / self.cost
            smaller = dear / (dear + price / np.square(spreads))
            indices[:, places] = _fed_back(rows[:, places].T, block.feedback, smaller).T
        return indices


def _fed_back(columns: Matrix, feedback: Matrix, smaller: Matrix) -> Matrix:
    """Return (n, r) indices of numbers, each rounded with what those before it have lost."""
    left, indices = columns.astype(np.float32), np.empty(columns.shape)
    smaller = smaller.astype(np.float32)
    for start in range(0, len(left), _AT_ONCE):
        rows = slice(start, min(start + _AT_ONCE, len(left)))
        lost, own = left[rows], feedback[rows, rows]
        for j in range(len(lost)):
            index = np.rint(lost[j] * smaller[start + j])
            indices[start + j] = index
            lost[j] -= index
            lost[j + 1 :] -= own[j, j + 1 :, None] * lost[j]
        left[rows.stop :] -= feedback[rows, rows.stop :].T @ lost
    return indices


@dataclass(frozen=True, eq=False)
class _Turned:
    """A projection whose components do not share costs.

    Attributes:
        left: (d_out, r), as in `Factors`.
        right: (r, d_in); at the same step, rounding errors of both cost the same.
        exponents: (r,) real-valued, of steps at which an error of a number costs 1.
    """

    left: Matrix
    right: Matrix
    exponents: Matrix

    @classmethod
    def of(cls, factors: Factors, curvature: Curvature, outputs: _Side, inputs: _Side) -> Self:
        left, right = factors.left.astype(np.float64), factors.right.astype(np.float64)
        roots = [_root(outputs.times(left.T) @ left), _root(inputs.times(right) @ right.T)]
        u, sizes, vt = np.linalg.svd(roots[0].T @ roots[1])
        share = np.sqrt(np.maximum(sizes, sizes.max(initial=0) * 1e-9))
        apart = (outputs.cost / inputs.cost) ** 0.25
        left = apart * (left @ np.linalg.solve(roots[0].T, u)) * share
        right = share[:, None] * (vt @ np.linalg.solve(roots[1], right)) / apart
        scale = sum(float(np.trace(m)) for m in curvature.left)
        scale *= sum(float(np.trace(m)) for m in curvature.right)
        means = len(left) * right.shape[1]
        dear = np.maximum(sizes * np.sqrt(outputs.cost * inputs.cost) * scale / means, 1e-300)
        exponents = -0.5 * PER_RADIX * np.log(dear) / np.log(RADIX)
        return cls(left, right, exponents)

    def scaled(self, gain: float) -> Self:
        """Return it `gain` times as large, to be rounded at the same steps."""
        root = gain**0.5
        return replace(self, left=root * self.left, right=root * self.right)

    def rounded(self, steps: Matrix, outputs: _Side, inputs: _Side) -> Factors:
        """Return what is sent at (r,) steps, components of zeros included."""
        right = steps[:, None] * inputs.rounded(self.right / steps[:, None])
        seen = inputs.times(right)
        alive = np.abs(right).sum(axis=1) > 0
        left = np.zeros_like(self.left)
        if alive.any():  # outputs are fitted to what is left of the inputs
            gram = seen[alive] @ right[alive].T
            gram[np.diag_indices(len(gram))] *= 1 + 1e-10
            left[:, alive] = np.linalg.solve(gram, seen[alive] @ self.right.T @ self.left.T).T
        left = steps * outputs.rounded((left / steps).T).T
        return Factors(left.astype(np.float32), right.astype(np.float32))


def _root(gram: Matrix) -> Matrix:
    """Return the lower triangular root of a Gram matrix, perhaps one of fewer dimensions."""
    size = max(float(gram.trace()) / max(len(gram), 1), 1e-300)
    return np.linalg.cholesky((gram + gram.T) / 2 + 1e-10 * size * np.eye(len(gram)))


class CurvedAdapter:
    """An adapter that is rounded by the curvature of the loss.

    The curvature, ready for rounding, can take more memory than the model. So it lies in a file
    without a name, where others keep temporary files, until `close`.

    Args:
        source: the adapter; the steps that it knows do not count.
        curvatures: of its N projections, one after the other; scaled alike.
        damping: see `DAMPING`.

    Raises:
        CodecError: curvatures of other projections, or an adapter without components.
    """

    def __init__(
        self, source: Source, curvatures: Iterable[Curvature], damping: float = DAMPING
    ) -> None:
        if not source.tensors.ranks.any():
            raise CodecError("The adapter has no components.")
        self.source = source
        self._turned: list[_Turned] = []
        self._places: list[int] = []
        self._sides = tempfile.TemporaryFile()  # noqa: SIM115 closed by `close`
        try:
            self._read(curvatures, damping)
        except BaseException:
            self.close()
            raise

    def _read(self, curvatures: Iterable[Curvature], damping: float) -> None:
        """Turn every projection, and keep its curvature ready for rounding."""
        tensors = self.source.tensors
        for p, f, c in zip(tensors.projections, tensors.factors, curvatures, strict=True):
            shape = tuple(sum(len(m) for m in side) for side in (c.left, c.right))
            if shape != (p.d_out, p.d_in):
                raise CodecError(f"The curvature of {p.name} is of another shape: {shape}.")
            sides = _Side.of(c.left, damping), _Side.of(c.right, damping)
            self._turned.append(_Turned.of(f, c, *sides))
            self._places.append(self._sides.tell())
            pickle.dump(sides, self._sides)

    def close(self) -> None:
        """Give back the place that the curvature takes; there are no more files then."""
        self._sides.close()

    def file(self, size: int, gain: float = 1.0) -> Container:
        """Return a file at a size of the steps.

        Args:
            size: logarithm of the steps, `PER_EXPONENT` to an exponent; larger is coarser.
            gain: how many times as large the update becomes before it is rounded.

        Raises:
            CodecError: NaN or infinite weights.
        """
        factors, kept = [], []
        for turned, place in zip(self._turned, self._places, strict=True):
            wanted = np.floor(turned.exponents + size / PER_EXPONENT + 0.5)
            own = np.clip(wanted, *EXPONENTS).astype(np.int64)
            steps = np.array([float(step_of(e)) for e in own.tolist()])
            self._sides.seek(place)
            sent = turned.scaled(gain).rounded(steps, *pickle.load(self._sides))  # noqa: S301 written here
            alive = (np.abs(sent.left).sum(axis=0) > 0) & (np.abs(sent.right).sum(axis=1) > 0)
            factors.append(Factors(sent.left[:, alive], sent.right[alive]))
            kept.append(own[alive])
        return self._packed(replace(self.source.tensors, factors=tuple(factors)), kept)

    def likely_bits(self, size: int, gain: float = 1.0) -> float:
        """Return about how many bits a file takes at a size: entropies of Gaussian numbers."""
        total = 0.0
        for turned in self._turned:
            steps = RADIX ** ((turned.exponents + size / PER_EXPONENT) / PER_RADIX) / gain**0.5
            for rows in (turned.left.T, turned.right):
                spreads = np.sqrt(np.square(rows).mean(axis=1)) / steps
                total += rows.shape[1] * float(rounded_entropy(spreads).sum())
        return total

    def coarsest(self) -> int:
        """Return the size of the steps at which hardly a number is left."""
        return self._size_of_spread(_COARSEST)

    def finest(self) -> int:
        """Return the finest size of the steps that is tried."""
        return self._size_of_spread(_FINEST)

    def _size_of_spread(self, spread: float) -> int:
        """Return the size of the steps at which the largest strip of numbers has a spread."""
        found = []
        for turned in self._turned:
            rows = np.square(turned.right).mean(axis=1), np.square(turned.left).mean(axis=0)
            logs = 0.5 * np.log(np.maximum(np.maximum(*rows), 1e-300)) / np.log(RADIX)
            found.append((PER_RADIX * logs - turned.exponents).max(initial=-np.inf))
        return round(PER_EXPONENT * (max(found) - PER_RADIX * np.log(spread) / np.log(RADIX)))

    def _packed(self, sent: AdapterTensors, kept: Sequence[IntArray]) -> Container:
        """Return a file of numbers that lie on their steps already."""
        every = np.concatenate(kept)
        middle = int(np.median(every)) if every.size else 0
        each = tuple(
            tuple(np.clip(own - middle, -LARGEST_OFFSET, LARGEST_OFFSET).tolist()) for own in kept
        )
        offsets = zip(sent.shapes, block_offsets(sent)[len(kept) :], strict=True)
        known = {name: int(own[0]) for name, own in offsets}
        beside = {**known, **self.source.tensor_offsets}
        source, none = replace(self.source, tensors=sent), (0,) * len(kept)

        def in_parts(n: int) -> Container:
            parts = [tuple(-(-len(own) * k // n) for own in kept) for k in range(1, n + 1)]
            return pack_as_trained(source, Coding(middle, none, beside, tuple(parts), each))

        file = in_parts(1)
        return file if file.n_bits <= 8 * ONE_CHUNK_BYTES else in_parts(_PARTS)


def best_within(curved: CurvedAdapter, budget_bits: float, gain: float = 1.0) -> Container:
    """Return the file of the finest steps that fit, which is the one whose errors cost least.

    Raises:
        InfeasibleSizeError: no file that keeps anything of the adapter fits.
        CodecError: NaN or infinite weights.
    """
    files: dict[int, Container] = {}

    def fits(size: int) -> bool:
        files[size] = files.get(size) or curved.file(size, gain)
        return files[size].n_bits <= budget_bits

    finest, coarsest = curved.finest(), curved.coarsest()
    fits(coarsest)
    room, sizes = budget_bits - files[coarsest].n_bits, range(finest, coarsest + 1)
    at = bisect_left(sizes, -room, key=lambda s: -curved.likely_bits(s, gain))
    low = high = sizes[min(at, len(sizes) - 1)]
    aside = _ASIDE
    while low > finest and fits(low):
        low, aside = max(low - aside, finest), 2 * aside
    while high < coarsest and not fits(high):
        high, aside = min(high + aside, coarsest), 2 * aside
    size = low + bisect_left(range(low, high), 1, key=fits)
    if not fits(size) or not files[size].tensors().ranks.any():
        raise InfeasibleSizeError(
            -(-files[size].n_bits // 8), int(budget_bits // 8), trainable=False
        )
    return files[size]
