"""A trained adapter as the numbers that have to be sent, whatever the method.

An adapter is read from PEFT's folder as strips: numbers of one kind that share a scale when they
are rounded. What a decoder has instead of them is turned into the weights that replace those of
the base model. What both sides have from the base model or from a seed is not sent.

Shapes: C classes, `d` features of the classifier.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

from rankcast.codec.formats.peft import WEIGHTS, read_peft
from rankcast.codec.formats.peft_names import PREFIX
from rankcast.codec.quantiser import Float32Array
from rankcast.codec.tensors import AdapterTensors
from rankcast.errors import ModelError
from rankcast.learner.base_models import BaseModel
from studies.baselines.lora_xs import strongest_triples
from studies.byte_frontier.judging import Weights
from studies.byte_frontier.methods import METHODS, Settings, Target
from studies.byte_frontier.training import CORES
from studies.shared.strips import Strips, strips_of, with_strips

SHORTEST_STRIP = 128
"""Tensors of fewer numbers share a scale with others of their kind."""
HEAD = ("classifier.weight", "classifier.bias")
_HEAD_MODULE = "classifier."
_CORE = "lora_xs_core"
FROM_BASE = (".tinylora_A", ".tinylora_B")
"""Ends of names of what PEFT saves although it follows from the base model."""
SMALLEST_SHARE = 1e-4
"""Of a vector of VB-LoRA's bank, after rounding."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Head:
    """A classifier: what it computes, and the numbers that say so.

    Probabilities do not change when all classes get the same logit more, so C - 1 contrasts of the
    C rows are sent: for two classes 385 numbers instead of 770.

    Attributes:
        weight: (C, d).
        bias: (C,).
    """

    weight: Float32Array
    bias: Float32Array

    @property
    def contrasts(self) -> Float32Array:
        """(C - 1, d + 1) orthonormal contrasts of the rows, the bias last."""
        both = np.concatenate([self.weight, self.bias[:, None]], axis=1)
        return (_contrasts(len(self.bias)) @ both).astype(np.float32)

    @classmethod
    def of_contrasts(cls, rows: Float32Array) -> Head:
        """Return the classifier of (C - 1, d + 1) contrasts."""
        both = (_contrasts(len(rows) + 1).T @ rows).astype(np.float32)
        return cls(both[:, :-1], both[:, -1])

    @property
    def weights(self) -> Weights:
        """What replaces the base model's classifier."""
        return dict(zip(HEAD, map(torch.from_numpy, (self.weight, self.bias)), strict=True))


def _contrasts(n_classes: int) -> NDArray[np.float64]:
    """Return (C - 1, C) orthonormal rows that each add up to 0 (Helmert's)."""
    rows = np.zeros((n_classes - 1, n_classes))
    for k in range(1, n_classes):
        rows[k - 1, :k], rows[k - 1, k] = 1.0, -k
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _not_own(arrays: Arrays) -> tuple[Strips, Head]:
    raise ModelError(f"A LoRA has no tensors of its own, but {sorted(arrays)[:1]} were given.")


@dataclass(frozen=True)
class Trained:
    """An adapter that can be coded.

    Attributes:
        strips: its numbers, each strip in one dimension.
        head: its classifier.
        exact_bits: of whole numbers that are sent as they are.
        weights_of: returns what replaces weights of the base model, given what a decoder has for
            the strips.
        low_rank: the same numbers as factors, without the classifier; None for other methods.
        own: the same numbers as tensors of PEFT's file, with PEFT's configuration, for methods
            that are no LoRA.
        of_own: returns strips and classifier, given what a decoder has for these tensors.
    """

    strips: tuple[Float32Array, ...]
    head: Head
    exact_bits: float
    weights_of: Callable[[Strips], Weights]
    low_rank: AdapterTensors | None = None
    own: AdapterTensors | None = None
    of_own: Callable[[Arrays], tuple[Strips, Head]] = _not_own

    @property
    def n_numbers(self) -> int:
        """How many numbers are sent, without the classifier's."""
        return sum(strip.size for strip in self.strips)

    def weights(self, strips: Strips, head: Head) -> Weights:
        """Return everything that replaces weights of the base model."""
        return {**self.weights_of(strips), **head.weights}


@dataclass(frozen=True)
class Origin:
    """What an adapter was trained from.

    Attributes:
        method: name in `METHODS`.
        size: name of one of its sizes.
        settings: that tuning has chosen.
        seed: of the training.
        fresh: returns the base model as it was before training, for nobody else to use.
    """

    method: str
    size: str
    settings: Settings
    seed: int
    fresh: Callable[[], BaseModel]


def read_trained(folder: Path, base: Weights, origin: Origin) -> Trained:
    """Return the adapter that `AdapterTrainer.save` wrote.

    Args:
        folder: of the adapter.
        base: weights of the base model.
        origin: what it was trained from.
    """
    if origin.method == "lora_xs":
        return _read_lora_xs(folder, base)
    if METHODS[origin.method].is_lora or METHODS[origin.method].adaptive:
        return of_low_rank(read_peft(folder)[0], base)
    return _read_general(folder, base, origin)


def of_low_rank(tensors: AdapterTensors, base: Weights) -> Trained:
    """Return a LoRA as strips: each column of the left and each row of the right factors."""
    head = Head(*(np.asarray(tensors.modules[name], np.float32) for name in HEAD))
    alone = replace(tensors, modules={}, carriage={})
    strips = strips_of(tensors)

    def weights_of(decoded: Strips) -> Weights:
        return merged(with_strips(alone, decoded), base)

    return Trained(tuple(strips), head, 0.0, weights_of, low_rank=alone)


def merged(tensors: AdapterTensors, base: Weights) -> Weights:
    """Return the weights of the base model with ΔW of a LoRA added."""
    weights = {}
    for projection, factors in zip(tensors.projections, tensors.factors, strict=True):
        name = f"{projection.name}.weight"
        weights[name] = base[name] + torch.from_numpy(factors.delta_weight())
    return weights


def _read_lora_xs(folder: Path, base: Weights) -> Trained:
    """Return LoRA-XS as its cores."""
    found = load_file(folder / CORES)
    names, rank = list(found), next(iter(found.values())).shape[0]
    triples = {name: strongest_triples(base[f"{name}.weight"], rank) for name in names}
    arrays = load_file(folder / WEIGHTS)
    plan = _Plan.of(found)

    def weights_of(decoded: Strips) -> Weights:
        weights = {}
        for name, core in plan.arrays(decoded).items():
            left, basis = triples[name]
            weight = f"{name}.weight"
            weights[weight] = base[weight] + left @ torch.from_numpy(core) @ basis
        return weights

    def of_own(given: Arrays) -> tuple[Strips, Head]:
        return plan.strips({name: given[f"{name}.{_CORE}"] for name in names}), _head(given)

    own = _own({f"{name}.{_CORE}": core for name, core in found.items()}, "LORA_XS", arrays)
    return Trained(plan.strips(found), _head(arrays), 0.0, weights_of, own=own, of_own=of_own)


def _read_general(folder: Path, base: Weights, origin: Origin) -> Trained:
    """Return an adapter of any other kind as the tensors of PEFT's file."""
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict  # noqa: PLC0415

    arrays = load_file(folder / WEIGHTS)
    head = _head(arrays)
    plain, fresh = replace(METHODS[origin.method], finish=None), origin.fresh()
    target = Target(fresh.model, fresh.head, origin.seed)
    wrapped = plain.wrap(target, origin.size, origin.settings)
    given = {n: x for n, x in arrays.items() if n.endswith(FROM_BASE)}
    whole = {n: x for n, x in arrays.items() if x.dtype.kind in "iu"}
    heads = {PREFIX + name for name in HEAD}
    sent = {n: x for n, x in arrays.items() if n not in {*given, *whole, *heads}}
    before = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    plan = _Plan.of(sent, {n: before[n].numpy().copy() for n in sent})

    def weights_of(decoded: Strips) -> Weights:
        state = {**arrays, **{n: _valid(n, x) for n, x in plan.arrays(decoded).items()}}
        tensors = {n: torch.from_numpy(np.ascontiguousarray(x)) for n, x in state.items()}
        set_peft_model_state_dict(wrapped, tensors)
        merged_state = copy.deepcopy(wrapped).eval().merge_and_unload().state_dict()
        return _changed(merged_state, base)

    indices = sum(x.size * _index_bits(plain.sizes[origin.size]) for x in whole.values())
    own = read_peft(folder)[0]
    kept = [name for name in own.modules if not name.endswith(FROM_BASE)]
    own = replace(
        own,
        modules={name: own.modules[name] for name in kept},
        carriage={name: own.carriage[name] for name in kept},
    )

    def of_own(decoded: Arrays) -> tuple[Strips, Head]:
        return plan.strips({name: decoded[name] for name in sent}), _head(decoded)

    return Trained(plan.strips(sent), head, indices, weights_of, own=own, of_own=of_own)


def _index_bits(size: Mapping[str, Any]) -> int:
    """Return the bits that say which vector of VB-LoRA's bank is meant."""
    return (size["num_vectors"] - 1).bit_length()


def _valid(name: str, values: NDArray[Any]) -> NDArray[Any]:
    """Return numbers that the adapter can have: VB-LoRA's shares of vectors add up to 1."""
    if not name.endswith("_topk_weights"):
        return values
    return np.clip(values, SMALLEST_SHARE, 1 - SMALLEST_SHARE)


def _changed(state: Mapping[str, Tensor], base: Weights) -> Weights:
    """Return the weights of a merged model that are not the base model's."""
    body = {name: x for name, x in state.items() if not name.startswith(_HEAD_MODULE)}
    unknown = sorted(set(body) - set(base))
    if unknown:
        raise ModelError(f"The merged model has {unknown[0]}, which its base model has not.")
    return {name: x for name, x in body.items() if not torch.equal(x, base[name])}


def _head(arrays: Arrays) -> Head:
    """Return the classifier in PEFT's file."""
    return Head(*(np.asarray(arrays[PREFIX + name], np.float32) for name in HEAD))


def _own(found: Arrays, kind: str, arrays: Arrays) -> AdapterTensors:
    """Return tensors that PEFT has no configuration for, in general form."""
    modules = {**found, **{PREFIX + name: arrays[PREFIX + name] for name in HEAD}}
    config = {"peft_type": kind}
    return AdapterTensors((), (), modules, dict.fromkeys(modules, "own"), config)


@dataclass(frozen=True)
class _Plan:
    """Which tensors make up which strip.

    Attributes:
        strips_of: names of the tensors of each strip.
        starts: what is added to each tensor that was decoded.
    """

    strips_of: tuple[tuple[str, ...], ...]
    starts: Arrays

    @classmethod
    def of(cls, tensors: Arrays, before: Arrays | None = None) -> _Plan:
        """Return a plan for tensors.

        Args:
            tensors: to be sent.
            before: what they were before training, which a receiver knows; it is subtracted where
                that leaves less, as of scales that start at 1.
        """
        kinds: dict[str, list[str]] = {}
        for name in sorted(tensors):
            short = tensors[name].size < SHORTEST_STRIP
            kind = re.sub(r"\d+", "#", name) if short else name  # whatever the layer
            kinds.setdefault(kind, []).append(name)
        known, norm = before or {}, np.linalg.norm
        starts = {
            name: known[name] if name in known and norm(x - known[name]) < norm(x) else 0 * x
            for name, x in tensors.items()
        }
        return cls(tuple(map(tuple, kinds.values())), starts)

    def strips(self, tensors: Arrays) -> tuple[Float32Array, ...]:
        """Return the numbers to be sent."""
        return tuple(
            np.concatenate([(tensors[n] - self.starts[n]).ravel() for n in names])
            for names in self.strips_of
        )

    def arrays(self, strips: Strips) -> dict[str, NDArray[Any]]:
        """Return the tensors of what was decoded."""
        found = {}
        for names, strip in zip(self.strips_of, strips, strict=True):
            at = 0
            for name in names:
                start = self.starts[name]
                found[name] = start + strip[at : at + start.size].reshape(start.shape)
                at += start.size
        return found
