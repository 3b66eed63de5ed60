"""What a model loses where one projection of its adapter is cut or rounded, and what it looks like.

Shapes: `N` projections, `K` levels at which each is measured, `F` features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import numpy as np

from rankcast.codec.header import BaseModel
from rankcast.codec.levels import Levels
from rankcast.codec.losses import squared_error
from rankcast.codec.packing import Source
from rankcast.codec.quantiser import step_of
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.files import put_file
from rankcast.records import FloatArray
from studies.harness.spec import RunContext
from studies.unseen.adapters import AdapterSpec, config_of, folder_of, splits_of, trained

N_LEVELS = 3
"""Levels of a projection beside nothing, from coarse to fine. The finest loses next to nothing and
is not measured, so that as many losses are measured as there are levels."""
SENSITIVITY_BATCHES = 8
LEAST = 1e-9
"""Of a divergence [nats]: below it is the rounding of float32."""
FEATURES = (
    "size", "stable rank", "rank", "peak of left", "peak of right", "size beside frozen weight",
)  # fmt: skip
"""Of a projection, as natural logarithms; see `features`."""


@dataclass(frozen=True)
class Measured:
    """What is known of an adapter.

    Attributes:
        kinds: (N,) of its projections.
        layers: (N,) likewise, from 0.
        n_layers: of the model.
        features: (N, F).
        errors: (N, K) ‖ΔW - ΔW'‖² at nothing and at each measured level.
        divergences: (N, K) KL(adapter as trained ‖ with this projection at that level) [nats].
        offsets: (N,) steps by sensitivity to texts, as `pack --texts` measures them.
        whole: divergence of the base model without adapter [nats], and accuracy of the adapter.
    """

    kinds: tuple[str, ...]
    layers: tuple[int, ...]
    n_layers: int
    features: tuple[tuple[float, ...], ...]
    errors: tuple[tuple[float, ...], ...]
    divergences: tuple[tuple[float, ...], ...]
    offsets: tuple[int, ...]
    whole: tuple[float, float]

    @property
    def losses(self) -> FloatArray:
        """(N, K) divergences as an array."""
        return np.array(self.divergences)

    @property
    def log_sensitivity(self) -> FloatArray:
        """(N,) mean logarithm of divergence over squared error, of the levels that lose anything.

        A projection that loses nothing anywhere gets the least of the others.
        """
        errors, losses = np.array(self.errors), np.maximum(self.losses, LEAST)
        alive = errors > 0
        logs = np.where(alive, np.log(losses) - np.log(np.where(alive, errors, 1.0)), 0.0)
        counts = alive.sum(axis=1)
        means = logs.sum(axis=1) / np.maximum(counts, 1)
        return np.where(counts > 0, means, means[counts > 0].min(initial=0.0))

    def to_plain(self) -> dict[str, Any]:
        """Return it as JSON values, with numbers of five digits."""
        return {name: _short(value) for name, value in asdict(self).items()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Return what `to_plain` was of."""
        return cls(**{f.name: _tuples(plain[f.name]) for f in fields(cls)})


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return [_short(v) for v in value] if isinstance(value, list | tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def measured(spec: AdapterSpec, context: RunContext) -> Measured:
    """Return what is known of an adapter, trained and measured unless it was."""
    file = folder_of(spec, context) / "measured.json"
    if not file.is_file():
        put_file(file, json.dumps(_measure(spec, context).to_plain()).encode())
    return Measured.from_plain(json.loads(file.read_text("utf-8")))


def source_of(tensors: AdapterTensors) -> Source:
    """Return an adapter to pack without its classifier, which is the same in every file."""
    name = "sentence-transformers/all-MiniLM-L6-v2"
    alone = replace(tensors, modules={}, carriage={})
    return Source(alone, BaseModel(name, "0123456789abcdef" * 4), {"task_type": "SEQ_CLS"})


def levels_of(source: Source) -> Levels:
    """Return the levels of an adapter that are measured, and the finest."""
    return Levels.of(source, None, N_LEVELS)


def at_level(factors: Factors, rank: int, exponent: int) -> Factors:
    """Return the first components of a projection, rounded to a step."""
    step = step_of(exponent)
    left, right = factors.left[:, :rank], factors.right[:rank]
    return Factors(np.rint(left / step) * step, np.rint(right / step) * step)


def features(factors: Sequence[Factors], weight_norms: Sequence[float]) -> FloatArray:
    """Return (N, F) what the weights of each projection look like, as `FEATURES` names it.

    Size is ‖ΔW‖, stable rank ‖ΔW‖² over the largest squared singular value, a peak the largest
    number of a factor beside its root mean square.

    Args:
        factors: (N,) sorted: orthogonal, the strongest component first.
        weight_norms: (N,) ‖W‖ of the frozen weights.
    """
    rows = []
    for f, norm in zip(factors, weight_norms, strict=True):
        squares = np.square(np.linalg.norm(f.left, axis=0) * np.linalg.norm(f.right, axis=1))
        total = max(float(squares.sum()), 1e-30)
        stable = total / max(float(squares.max(initial=0.0)), 1e-30)
        beside = total / max(norm, 1e-15) ** 2
        peaks = (_peak(f.left), _peak(f.right))
        rows.append(np.log([np.sqrt(total), stable, max(f.rank, 1), *peaks, np.sqrt(beside)]))
    return np.array(rows)


def _peak(values: Any) -> float:
    rms = float(np.sqrt(np.square(values, dtype=np.float64).mean())) if values.size else 0.0
    return float(np.abs(values).max()) / rms if rms > 0 else 1.0


def _measure(spec: AdapterSpec, context: RunContext) -> Measured:
    """Train an adapter and measure every projection at every level."""
    from studies.unseen.answers import Answers  # noqa: PLC0415 torch

    splits, config = splits_of(spec, context), config_of(spec, context)
    whole = trained(spec, splits, context)
    answers = Answers(config, splits, whole)
    asked = answers.texts(splits.validation)
    levels = levels_of(source_of(whole))
    errors, losses = [], []
    for i, factors in enumerate(whole.factors):
        tried = [
            at_level(factors, int(levels.ranks[i, k]), int(levels.exponents[i, k]))
            for k in range(N_LEVELS)
        ]
        errors.append(tuple(squared_error(factors, other) for other in tried))
        losses.append(tuple(asked.divergence_with(i, other) for other in tried))
    nothing = whole.truncated(np.zeros(len(whole.factors), dtype=np.int64))
    projections = whole.projections
    return Measured(
        kinds=tuple(p.kind for p in projections),
        layers=tuple(p.layer for p in projections),
        n_layers=1 + max(p.layer for p in projections),
        features=_tuples(features(whole.factors, answers.weight_norms()).tolist()),
        errors=tuple(errors),
        divergences=tuple(losses),
        offsets=_offsets(spec, context, whole),
        whole=(answers.judge(asked, nothing).divergence, asked.judged(asked.wanted).accuracy),
    )


def _offsets(spec: AdapterSpec, context: RunContext, whole: AdapterTensors) -> tuple[int, ...]:
    """Return the steps that squared gradients on training texts suggest."""
    from rankcast.learner.qat import coding_for, learner_for  # noqa: PLC0415 torch

    learner = learner_for(whole, config_of(spec, context), splits_of(spec, context))
    few = 2 if context.scale == "quick" else SENSITIVITY_BATCHES
    return coding_for(learner, 1.0, n_batches=few).offsets
