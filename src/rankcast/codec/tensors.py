"""An adapter as arrays: factors of every projection, and the tensors beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from rankcast.codec.measures import ComponentSizes, TensorSizes
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
class LazyFactors(Sequence[Factors]):
    """Factors that are fetched anew each time that they are asked for.

    Attributes:
        ranks: of each projection.
        load: returns the factors of one.
    """

    ranks: tuple[int, ...]
    load: Callable[[int], Factors]

    def __len__(self) -> int:
        """Return the number of projections."""
        return len(self.ranks)

    @overload
    def __getitem__(self, index: int) -> Factors: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Factors]: ...
    def __getitem__(self, index: int | slice) -> Factors | Sequence[Factors]:
        """Fetch the factors of one projection, or of some."""
        if isinstance(index, slice):
            return [self.load(i) for i in range(*index.indices(len(self)))]
        return self.load(range(len(self))[index])


Shape = tuple[tuple[int, ...], np.dtype[Any]]
"""Shape and dtype of a tensor."""


@dataclass(frozen=True, eq=False)
class LazyTensors(Mapping[str, NDArray[Any]]):
    """Tensors that are fetched anew each time that they are asked for.

    Attributes:
        shapes: of each tensor by its name.
        load: returns one.
    """

    shapes: Mapping[str, Shape]
    load: Callable[[str], NDArray[Any]]

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self.shapes)

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self.shapes)

    def __contains__(self, name: object) -> bool:
        """Return whether there is such a tensor, without fetching it."""
        return name in self.shapes

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Fetch a tensor."""
        self.shapes[name]  # a KeyError for names that are not known
        return self.load(name)


@dataclass(frozen=True, eq=False)
class AdapterTensors:
    """An adapter to be coded, or as it was decoded.

    Attributes:
        projections: the linear maps that are adapted, in the order of their groups.
        factors: of each projection, strongest component first; perhaps `LazyFactors`.
        modules: tensors that travel beside the projections, by their name in the base model, or in
            the adapter's file for its own: float32, or whole numbers that are carried exactly;
            perhaps `LazyTensors`.
        carriage: how each of them travels.
        config: fields of PEFT's configuration that whoever writes the adapter writes again: beside
            a low-rank one what it needs (`target_parameters`); for any other kind of adapter, which
            has no projections and only tensors of its own, all of them.

    Raises:
        CodecError: shapes that do not fit together.
    """

    projections: tuple[Projection, ...]
    factors: Sequence[Factors]
    modules: Mapping[str, NDArray[Any]]
    carriage: Mapping[str, Carriage]
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the shapes."""
        if len(self.projections) != len(self.factors) or set(self.modules) != set(self.carriage):
            raise CodecError("Each projection needs its factors, each module its carriage.")
        if isinstance(self.factors, LazyFactors):
            return
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

    @cached_property
    def ranks(self) -> IntArray:
        """(N,) components that each projection has."""
        if isinstance(self.factors, LazyFactors):
            return np.array(self.factors.ranks, dtype=np.int64)
        return np.array([f.rank for f in self.factors], dtype=np.int64)

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """Shape and dtype of each module."""
        if isinstance(self.modules, LazyTensors):
            return self.modules.shapes
        return {name: (values.shape, values.dtype) for name, values in self.modules.items()}

    @cached_property
    def component_sizes(self) -> tuple[ComponentSizes, ...]:
        """Sizes of the components of each projection."""
        return tuple(ComponentSizes.of(f.left, f.right) for f in self.factors)

    @cached_property
    def module_sizes(self) -> Mapping[str, TensorSizes]:
        """Sizes of the numbers of each module that is not of whole numbers."""
        return {
            name: TensorSizes.of(self.modules[name])
            for name, (_, dtype) in self.shapes.items()
            if dtype == np.float32
        }

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
        kept = np.minimum(ranks, self.ranks).tolist()

        def cut(i: int) -> Factors:
            whole = self.factors[i]
            return Factors(whole.left[:, : kept[i]], whole.right[: kept[i]])

        lazy = LazyFactors(tuple(kept), cut)
        return replace(self, factors=lazy if isinstance(self.factors, LazyFactors) else tuple(lazy))

    def scaled(self, gain: float) -> AdapterTensors:
        """Return an adapter whose updates are `gain` times as large; other tensors stay."""
        root = np.float32(gain**0.5)
        factors = tuple(Factors(root * f.left, root * f.right) for f in self.factors)
        return replace(self, factors=factors)

    @property
    def n_params(self) -> int:
        """Numbers in the factors and the modules."""
        widths = [p.d_in + p.d_out for p in self.projections]
        factors = sum(r * w for r, w in zip(self.ranks.tolist(), widths, strict=True))
        return factors + sum(math.prod(shape) for shape, _ in self.shapes.values())
