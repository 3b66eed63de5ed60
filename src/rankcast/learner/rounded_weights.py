"""The weights of an adapter in quantiser steps: rounded little by little, with a price on bits.

A *group* has one step: some components of a projection, or a tensor beside the projections. A
*strip* has one spread: a column of P, a row of Q, a row of a tensor (`rankcast.codec.blocks`). The
weights of all strips stand in one row, so that hundreds of strips take a few operations.

A file can have several prefixes. Each has the components of the one before and some of its own,
which are a group of their own in each projection; what a prefix adds is a *chunk*.

Shapes: W weights, S strips, G groups, K chunks.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rankcast.adapters.arrays import balanced_tensors_of
from rankcast.adapters.elastic import ElasticAdapter
from rankcast.codec.packing import Coding
from rankcast.codec.quantiser import EXPONENTS, PER_RADIX, RADIX, Float32Array, dequantise
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.records import IntArray

LOG_GRID = math.log(RADIX) / PER_RADIX
"""Steps are powers of 3^(1/6): distance of their logarithms."""
STRIP_BITS = 3.0
"""What the spread of a strip takes, about."""
_USUAL_ENERGY = 1e-4
"""Mean square of weights, where all are zero."""
_RAREST = 1e-3
_WIDEST_FACTOR, _HALVINGS = 7.0, 30
"""Logarithm of the largest factor on steps that is tried, and halvings of that range."""


@dataclass(frozen=True, eq=False)
class StripBits:
    """What rounded weights take, as an entropy coder that knows the spread of every strip.

    Attributes:
        each: (S,) bits of each strip.
        marginal: (S,) bits that another weight other than zero would take more than a zero.
    """

    each: Tensor
    marginal: Tensor

    @property
    def total(self) -> float:
        """Bits of all strips."""
        return float(self.each.sum())

    @classmethod
    def of(cls, indices: Tensor, strip: Tensor, widths: Tensor) -> StripBits:
        """Return those of (W,) whole numbers.

        A weight is zero or not, has a sign, and a magnitude that falls geometrically.

        Args:
            indices: (W,) rounded weights in steps.
            strip: (W,) strip of each.
            widths: (S,) weights of each strip.
        """
        size = indices.abs()
        zeros = torch.zeros_like(widths)
        nonzero = zeros.index_add(0, strip, (size > 0).to(widths))
        excess = zeros.index_add(0, strip, (size - 1).clamp_min(0))
        rate = (nonzero / widths).clamp(0.5 / widths, 1 - 0.5 / widths)
        larger = (excess / (nonzero + excess).clamp_min(1)).clamp(_RAREST, 1 - _RAREST)
        signs = nonzero + torch.where(nonzero > 0, widths * _entropy(rate), 0.0)
        magnitudes = torch.where(excess > 0, (nonzero + excess) * _entropy(larger), 0.0)
        return cls(signs + magnitudes + STRIP_BITS, ((1 - rate) / rate).log2() + 1)


def _entropy(p: Tensor) -> Tensor:
    """Return the bits of a choice between two."""
    return -(p * p.log2() + (1 - p) * (1 - p).log2())


@dataclass(frozen=True, eq=False)
class _Place:
    """Where the weights of a parameter stand in the row of all.

    Attributes:
        parameter: its name in the model.
        chunk: in which they are sent.
        start: first of its weights.
        strips: (strips, width).
        columns: whether strips are its columns.
        shape: of what replaces it.
        base: what is added, for a tensor that travels as a difference; None for nothing.
    """

    parameter: str
    chunk: int
    start: int
    strips: tuple[int, int]
    columns: bool
    shape: tuple[int, ...]
    base: Tensor | None = None

    @property
    def stop(self) -> int:
        """Behind its last weight."""
        return self.start + math.prod(self.strips)

    def take(self, weights: Tensor) -> Tensor:
        """Return its part of (W,) weights, as the parameter has it."""
        strips = weights[self.start : self.stop].view(self.strips)
        tensor = (strips.mT if self.columns else strips).reshape(self.shape)
        return tensor if self.base is None else tensor + self.base


class RoundedWeights:
    """Latent weights of an adapter and the logarithms of their steps, both to be trained.

    Args:
        adapter: its active components are taken, and what is trained beside them; it stays as it
            is.
        relative_step: step of a group at the beginning, as a multiple of the root mean square of
            its weights.
        contrasts: names of tensors whose first row may be taken from all rows without changing
            what the model answers, such as a softmax classifier's: the row is then 0 and stays 0.
        ranks: (N,) components of each prefix, ascending, the adapter's own last; all are in one
            prefix if there are none.
    """

    def __init__(
        self,
        adapter: ElasticAdapter,
        relative_step: float,
        contrasts: Collection[str] = (),
        ranks: Sequence[IntArray] = (),
    ) -> None:
        self._tensors = balanced_tensors_of(adapter)
        self.ranks = tuple(ranks) or (adapter.ranks,)
        """(N,) components of each prefix."""
        self._device = adapter.factors()[0][0].device
        self._names = {p.data_ptr(): name for name, p in adapter.model.named_parameters()}
        self._rows: list[Float32Array] = []
        self._at_zero: list[NDArray[np.bool_]] = []
        self._group_of_row: list[int] = []
        self._places: list[_Place] = []
        self._scale = adapter.scale
        self._lambdas = [self._names[lam.data_ptr()] for _, lam, _ in adapter.factors()]
        self._groups: list[tuple[int | str, int]] = []
        for i in range(len(adapter.layers)):
            self._take_projection(adapter, i)
        for name, live in adapter.extra_tensors().items():
            self._take_tensor(name, live, contrast=name in contrasts)
        widths = np.array([len(row) for row in self._rows])
        group = np.repeat(self._group_of_row, widths)
        weights = np.concatenate(self._rows).astype(np.float64)
        energy = np.bincount(group, weights * weights) / np.bincount(group)
        usual = np.median(energy[energy > 0]) if energy.any() else _USUAL_ENERGY
        steps = relative_step * np.sqrt(np.where(energy > 0, energy, usual))
        self._widths = self._on_device(widths)
        self._strip = torch.from_numpy(np.repeat(np.arange(len(widths)), widths)).to(self._device)
        self._group = torch.from_numpy(group).to(self._device)
        chunks = np.array([chunk for _, chunk in self._groups])
        own = [chunks == chunk for chunk in range(len(self.ranks))]
        of_strips = chunks[self._group_of_row]
        self._own_groups = [torch.from_numpy(of).to(self._device) for of in own]
        self._own_strips = [
            torch.from_numpy(of_strips == chunk).to(self._device) for chunk in range(len(own))
        ]
        self._own = [of[self._group] for of in self._own_groups]
        self._free = self._on_device(~np.concatenate(self._at_zero))
        self.latents: Tensor = nn.Parameter(self._on_device(weights / steps[group]))
        self.log_steps: Tensor = nn.Parameter(self._on_device(np.log(steps)))

    def _take_projection(self, adapter: ElasticAdapter, i: int) -> None:
        """Take the components of a projection: those of each chunk are a group."""
        factors, (Q, _, P) = self._tensors.factors[i], adapter.factors()[i]
        ends = (0, *(int(ranks[i]) for ranks in self.ranks))
        for chunk, (first, end) in enumerate(pairwise(ends)):
            left, right = factors.left[:, first:end], factors.right[first:end]
            if len(right):
                self._groups.append((i, chunk))
                self._take(left.T, P, left.shape, columns=True)
                self._take(right, Q, right.shape)

    def _take_tensor(self, name: str, live: Tensor, *, contrast: bool) -> None:
        """Take a tensor beside the projections as one group, if it is trained."""
        values = self._tensors.modules[name]
        if live.data_ptr() not in self._names or values.dtype != np.float32:
            return
        at_zero = np.zeros(values.shape, dtype=np.bool_)
        if contrast:
            values, at_zero[0] = values - values[0], True
        is_difference = self._tensors.carriage[name] == "difference"
        base = live.detach() - torch.from_numpy(values).to(live) if is_difference else None
        self._groups.append((name, 0))
        width = values.shape[-1] if values.ndim else 1
        self._take(values.reshape(-1, width), live, values.shape, at_zero=at_zero, base=base)

    def _take(
        self,
        rows: Float32Array,
        live: Tensor,
        shape: tuple[int, ...],
        *,
        columns: bool = False,
        at_zero: NDArray[np.bool_] | None = None,
        base: Tensor | None = None,
    ) -> None:
        """Let the strips of a parameter stand behind those before, in the group begun last."""
        start = self._places[-1].stop if self._places else 0
        name = self._names[live.data_ptr()]
        chunk = self._groups[-1][1]
        self._places.append(_Place(name, chunk, start, rows.shape, columns, shape, base))
        self._rows += list(rows)
        self._at_zero.append(
            np.zeros(rows.size, np.bool_) if at_zero is None else at_zero.reshape(-1)
        )
        self._group_of_row += [len(self._groups) - 1] * len(rows)

    def _on_device(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.float32)).to(self._device)

    @property
    def parameters(self) -> tuple[Tensor, Tensor]:
        """What is trained: latents, then logarithms of steps."""
        return self.latents, self.log_steps

    def indices(self) -> Tensor:
        """Return the (W,) rounded weights in steps."""
        return (self.latents.detach() * self._free).round()

    def bits(self) -> StripBits:
        """Return what the rounded weights take."""
        return StripBits.of(self.indices(), self._strip, self._widths)

    def chunk_bits(self, bits: StripBits) -> list[float]:
        """Return the bits of each chunk."""
        return [float(bits.each[own].sum()) for own in self._own_strips]

    @torch.no_grad()
    def coarsen_to(self, bits: Sequence[float]) -> None:
        """Make the steps of each chunk coarser or finer, by one factor, for a number of bits.

        Args:
            bits: (K,) to come near to; the coarsest or the finest steps where they are out of
                reach.
        """
        for own, strips, groups, most in zip(
            self._own, self._own_strips, self._own_groups, bits, strict=True
        ):
            low, high = -_WIDEST_FACTOR, _WIDEST_FACTOR
            for _ in range(_HALVINGS):
                middle = (low + high) / 2
                indices = (self.latents * self._free / math.exp(middle)).round()
                found = StripBits.of(indices, self._strip, self._widths)
                if float(found.each[strips].sum()) > most:
                    low = middle
                else:
                    high = middle
            self.latents[own] /= math.exp(high)
            self.log_steps[groups] += high

    def price(self, bits: StripBits, prices: Sequence[float]) -> Tensor:
        """Return what would be saved if every weight went to zero at the marginal bits.

        What is differentiable about the bits: a step of a weight costs what one more weight other
        than zero would cost in its strip.

        Args:
            bits: of the rounded weights.
            prices: of a bit of each chunk; chunks without one cost nothing.
        """
        saved = (self.latents * self._free).abs() * self._each(bits)
        parts = [price * saved[own].sum() for price, own in zip(prices, self._own, strict=False)]
        return torch.stack(parts).sum()

    def gradients_per_bit(self, bits: StripBits) -> list[float]:
        """Return the mean gradient of a chunk's latents beside their bits, both without sign."""
        gradient, each = self.latents.grad, self._free * self._each(bits)
        if gradient is None:
            return [0.0] * len(self._own)
        sums = [
            (gradient[own].abs().sum(), each[own].sum().clamp_min(_RAREST)) for own in self._own
        ]
        return [float(total / bits) for total, bits in sums]

    def _each(self, bits: StripBits) -> Tensor:
        """Return the (W,) marginal bits of each weight."""
        return bits.marginal.clamp_min(1.0)[self._strip]

    def weights(self, share: float) -> Tensor:
        """Return the (W,) weights, rounded by a share of the way; gradients pass through.

        Args:
            share: 0 for latent weights and steps as they are, 1 for those that a file holds.
        """
        latents = self.latents * self._free
        rounded = latents + share * (latents.round() - latents).detach()
        whole = (self.log_steps / LOG_GRID).round() * LOG_GRID
        steps = (self.log_steps + share * (whole - self.log_steps).detach()).exp()
        return rounded * steps[self._group]

    def by_parameter(self, weights: Tensor, prefix: int = -1) -> dict[str, Tensor]:
        """Return what replaces parameters of the model, by their names.

        Args:
            weights: (W,).
            prefix: which; the adapter has to have its ranks.
        """
        ranks = self.ranks[prefix].tolist()
        last = prefix % len(self.ranks)
        parts: dict[str, list[Tensor]] = {}
        axis: dict[str, int] = {}
        for place in self._places:
            if place.chunk <= last:
                parts.setdefault(place.parameter, []).append(place.take(weights))
                axis[place.parameter] = int(place.columns)
        replaced = {
            name: torch.full((r, 1), 1 / self._scale, device=self._device)
            for name, r in zip(self._lambdas, ranks, strict=True)
            if r
        }
        for name, own in parts.items():
            replaced[name] = own[0] if len(own) == 1 else torch.cat(own, dim=axis[name])
        return replaced

    def coding(self) -> Coding:
        """Return the steps that training has come to, and the ranks of the prefixes."""
        found = dict(zip(self._groups, self._exponents(), strict=True))
        n = len(self._tensors.projections)
        common = int(np.median([found[i, 0] for i in range(n) if (i, 0) in found] or [0]))
        offsets = tuple(found.get((i, 0), common) - common for i in range(n))
        of_tensors = {name: e - common for (name, _), e in found.items() if isinstance(name, str)}
        ends = [(0, *(int(ranks[i]) for ranks in self.ranks)) for i in range(n)]
        each = tuple(
            tuple(
                found[i, chunk] - common
                for chunk, (first, end) in enumerate(pairwise(ends[i]))
                for _ in range(first, end)
            )
            for i in range(n)
        )
        prefixes = tuple(tuple(ranks.tolist()) for ranks in self.ranks)
        return Coding(common, offsets, of_tensors, prefixes, each)

    def decoded(self, indices: Tensor) -> AdapterTensors:
        """Return the adapter of (W,) rounded weights, as a decoder computes it from a file."""
        whole = indices.to(torch.int32).cpu().numpy()
        strips = iter([whole[p.start : p.stop].reshape(p.strips) for p in self._places])
        parts: dict[int, list[Factors]] = {}
        modules = dict(self._tensors.modules)
        for (group, _), exponent in zip(self._groups, self._exponents(), strict=True):
            if isinstance(group, str):
                shape = modules[group].shape
                modules[group] = dequantise(next(strips), exponent).reshape(shape)
                continue
            left, right = (dequantise(next(strips), exponent) for _ in range(2))
            parts.setdefault(group, []).append(Factors(np.ascontiguousarray(left.T), right))
        factors = list(self._tensors.factors)
        for i, own in parts.items():
            factors[i] = own[0] if len(own) == 1 else _joined(own)
        by_name = {name: modules[name] for name in sorted(modules)}  # as `read_native` has them
        return replace(self._tensors, factors=tuple(factors), modules=by_name)

    def _exponents(self) -> list[int]:
        """Return the exponent to which the step of each group is rounded."""
        whole = (self.log_steps.detach() / LOG_GRID).round()
        return whole.clamp(*EXPONENTS).int().tolist()

    def n_alive(self, chunk: int) -> int:
        """Return how many rounded weights of a chunk are not zero."""
        return int(self.indices()[self._own[chunk]].count_nonzero())

    def without_smallest(self, counts: Sequence[int]) -> Tensor:
        """Return the rounded weights with some at zero: those whose latents are nearest to it.

        Args:
            counts: for each chunk, of weights other than zero that become zero.
        """
        indices = self.indices()
        for own, count in zip(self._own, counts, strict=True):
            (alive,) = torch.nonzero(indices * own, as_tuple=True)
            order = torch.argsort(self.latents.detach()[alive].abs(), stable=True)
            indices[alive[order[:count]]] = 0
        return indices

    def state_dict(self) -> dict[str, Tensor]:
        """Return the latent weights and the logarithms of their steps, as copies."""
        return {
            "latents": self.latents.detach().clone(),
            "log_steps": self.log_steps.detach().clone(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict()`."""
        self.latents.copy_(state["latents"])
        self.log_steps.copy_(state["log_steps"])


def _joined(parts: Sequence[Factors]) -> Factors:
    """Return the components of all parts, one part after the other."""
    return Factors(
        np.concatenate([part.left for part in parts], axis=1),
        np.concatenate([part.right for part in parts]),
    )
