"""An adapter as arrays: factors of every projection, and the tensors beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rankcast.codec.blocks import GroupShape
from rankcast.codec.quantiser import Float32Array
from rankcast.errors import CodecError
from rankcast.records import IntArray, Projection

Carriage = Literal["full", "difference", "own"]
"""How a tensor outside the projections travels: as it is, in place of the base model's tensor of
the same name; as what it adds to that tensor; or as one of the adapter's own, which the base model
has not."""


@dataclass(frozen=True, eq=False)
class Factors:
    """ΔW = left · right of one projection, scale included.

    Attributes:
        left: (d_out, r).
        right: (r, d_in).
    """

    left: Float32Array
    right: Float32Array

    @property
    def rank(self) -> int:
        """R."""
        return self.left.shape[1]

    def delta_weight(self) -> Float32Array:
        """Return ΔW, (d_out, d_in)."""
        return self.left @ self.right

    def balanced(self) -> Factors:
        """Return the same ΔW with ‖left column‖ = ‖right row‖ for every component."""
        left, right = self.left.astype(np.float64), self.right.astype(np.float64)
        sizes = np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1)
        alive = (sizes[0] > 0) & (sizes[1] > 0)
        ratio = np.ones(self.rank)
        ratio[alive] = np.sqrt(sizes[1][alive] / sizes[0][alive])
        return Factors(
            (left * ratio * alive).astype(np.float32),
            (right / ratio[:, None] * alive[:, None]).astype(np.float32),
        )

    def sorted(self) -> Factors:
        """Return the same ΔW = U·S·Vᵀ as U√S and √S·Vᵀ: orthogonal, strongest component first."""
        if not self.rank:
            return self
        left, left_core = np.linalg.qr(self.left.astype(np.float64))
        right, right_core = np.linalg.qr(self.right.astype(np.float64).T)
        u, s, vt = np.linalg.svd(left_core @ right_core.T)
        n, root = len(s), np.sqrt(s)
        return Factors(
            ((left @ u[:, :n]) * root).astype(np.float32),
            (root[:, None] * (vt[:n] @ right.T)).astype(np.float32),
        )


@dataclass(frozen=True, eq=False)
class AdapterTensors:
    """An adapter to be coded, or as it was decoded.

    Attributes:
        projections: the linear maps that are adapted, in the order of their groups.
        factors: of each projection, strongest component first.
        modules: tensors that travel beside the projections, by their name in the base model, or in
            the adapter's file for its own: float32, or whole numbers that are carried exactly.
        carriage: how each of them travels.
        config: fields of PEFT's configuration that whoever writes the adapter writes again: beside
            a low-rank one what it needs (`target_parameters`); for any other kind of adapter, which
            has no projections and only tensors of its own, all of them.

    Raises:
        CodecError: shapes that do not fit together.
    """

    projections: tuple[Projection, ...]
    factors: tuple[Factors, ...]
    modules: Mapping[str, NDArray[Any]]
    carriage: Mapping[str, Carriage]
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the shapes."""
        if len(self.projections) != len(self.factors) or set(self.modules) != set(self.carriage):
            raise CodecError("Each projection needs its factors, each module its carriage.")
        for p, f in zip(self.projections, self.factors, strict=True):
            if f.left.shape != (p.d_out, f.rank) or f.right.shape != (f.rank, p.d_in):
                raise CodecError(
                    f"{p.name} maps {p.d_in} to {p.d_out}, so factors of rank r have shapes "
                    f"({p.d_out}, r) and (r, {p.d_in}), not {f.left.shape} and {f.right.shape}."
                )

    @property
    def is_general(self) -> bool:
        """Whether this is an adapter of another kind than low-rank, with tensors of its own."""
        return "peft_type" in self.config

    @property
    def ranks(self) -> IntArray:
        """(N,) components that each projection has."""
        return np.array([f.rank for f in self.factors], dtype=np.int64)

    def truncated(self, ranks: IntArray) -> AdapterTensors:
        """Return the adapter with the first components of each projection.

        Args:
            ranks: (N,) at most so many.

        Raises:
            CodecError: ranks for another number of projections.
        """
        if len(ranks) != len(self.factors):
            raise CodecError(
                f"{len(self.factors)} projections need as many ranks, not {len(ranks)}."
            )
        factors = tuple(
            Factors(f.left[:, :r], f.right[:r])
            for f, r in zip(self.factors, np.asarray(ranks).tolist(), strict=True)
        )
        return replace(self, factors=factors)

    @property
    def n_params(self) -> int:
        """Numbers in the factors and the modules."""
        return sum(f.left.size + f.right.size for f in self.factors) + sum(
            m.size for m in self.modules.values()
        )


def rows_of(values: NDArray[Any]) -> NDArray[Any]:
    """Return a tensor as rows: its last axis, or all of it if it is a vector."""
    return values.reshape(-1, values.shape[-1]) if values.ndim > 1 else values.reshape(1, -1)


def group_shapes(
    projections: Sequence[Projection], ranks: Sequence[int], modules: Sequence[tuple[int, ...]]
) -> tuple[GroupShape, ...]:
    """Return the groups of the stream: one per projection, then one per module tensor."""
    components = [
        GroupShape(int(r), (p.d_out, p.d_in), paired=True)
        for p, r in zip(projections, ranks, strict=True)
    ]
    tensors = []
    for shape in modules:
        width = shape[-1] if shape else 1
        rows = int(np.prod(shape[:-1], dtype=np.int64))
        tensors.append(GroupShape(1, (width,) * rows))
    return (*components, *tensors)
