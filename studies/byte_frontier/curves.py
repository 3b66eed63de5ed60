"""The codes that were judged, as curves of accuracy over bytes, and what they are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rankcast.records import IntArray
from studies.byte_frontier.codes import REFERENCE, ROUNDED
from studies.byte_frontier.methods import METHODS
from studies.byte_frontier.ours import WAYS
from studies.harness.spec import Result
from studies.shared.judging import Answers, unpack_groups
from studies.shared.rates import Point


@dataclass(frozen=True)
class Measured:
    """One code of one method, over seeds.

    Attributes:
        code: its name.
        bytes_of: bytes by seed.
        loss: mean over seeds [nats].
        answers: of each seed and text.
    """

    code: str
    bytes_of: Mapping[int, float]
    loss: float
    answers: Answers

    @property
    def n_bytes(self) -> float:
        """Mean over seeds."""
        return float(np.mean(list(self.bytes_of.values())))

    def at(self, seeds: Sequence[int] = ()) -> Point:
        """Return bytes and accuracy over some seeds; over all of them if none are named."""
        chosen = seeds or self.answers.seeds
        accuracy = np.mean([self.answers.of_seed(seed).mean() for seed in chosen])
        return float(np.mean([self.bytes_of[seed] for seed in chosen])), float(accuracy)


@dataclass(frozen=True)
class Curve:
    """The codes of one family for one method at one size.

    Attributes:
        method: name in `METHODS`, or one of ours.
        size: name of its size; empty for ours.
        family: of the codes.
        codes: from cheap to dear.
    """

    method: str
    size: str
    family: str
    codes: tuple[Measured, ...]

    @property
    def label(self) -> str:
        """What readers call it."""
        if self.method not in METHODS:
            return WAYS[self.method].label if self.method in WAYS else self.method
        return f"{method_label(self.method, self.size)}, {self.family}"

    def points(self, seeds: Sequence[int]) -> list[Point]:
        """Return bytes and accuracies over some seeds, of the codes that all were judged in."""
        return [m.at(seeds) for m in self.codes if set(seeds) <= set(m.answers.seeds)]

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Seeds on which most of the codes were judged."""
        found = [seed for m in self.codes for seed in m.answers.seeds]
        most = len(self.codes) / 2
        return tuple(seed for seed in sorted(set(found)) if found.count(seed) >= most)


def method_label(method: str, size: str) -> str:
    """Return what readers call a method at a size."""
    return f"{METHODS[method].label} {'r ' if method.startswith(('lora', 'adalora')) else ''}{size}"


def curves_of(result: Result, task: str) -> list[Curve]:
    """Return every curve of a task; codes of which some seeds are missing have the others."""
    seen: dict[tuple[str, str, str], dict[str, list[tuple[int, Mapping]]]] = {}
    for row in result.select(task=task):
        s = row.job.settings
        if s["kind"] in ("tuning", "tuning_ours"):
            continue
        method, size = (s["method"], s["size"]) if "method" in s else (s["way"], "")
        for code in row.values["codes"]:
            codes = seen.setdefault((method, size, code["family"]), {})
            codes.setdefault(code["code"], []).append((row.job.seed, code))
    groups = _groups_of(result, task)
    return [Curve(*key, tuple(_measured(codes, groups))) for key, codes in seen.items()]


def _groups_of(result: Result, task: str) -> IntArray | None:
    """Return the group of each judged text of a task; None if no row has them."""
    for row in result.select(task=task, kind="method"):
        if "groups" in row.values:
            return unpack_groups(row.values["groups"], row.values["codes"][0]["n_texts"])
    return None


def _measured(
    codes: Mapping[str, list[tuple[int, Mapping]]], groups: IntArray | None
) -> list[Measured]:
    """Return codes from cheap to dear."""
    found = []
    for code, judged in codes.items():
        answers = Answers.of(judged, groups)
        assert answers is not None  # there is a judgement for each code
        loss = float(np.mean([c["loss"] for _, c in judged]))
        found.append(Measured(code, {seed: c["bytes"] for seed, c in judged}, loss, answers))
    return sorted(found, key=lambda m: m.n_bytes)


@dataclass(frozen=True)
class Reference:
    """The best float32 adapter of any rank.

    Attributes:
        label: of method and rank.
        size: its rank.
        measured: its answers.
    """

    label: str
    size: str
    measured: Measured

    @property
    def answers(self) -> Answers:
        """Of each seed and text."""
        return self.measured.answers

    def accuracy_of(self, seeds: Sequence[int]) -> float:
        """Return its accuracy over some seeds."""
        return self.measured.at(seeds)[1]


def reference_of(curves: Sequence[Curve]) -> Reference | None:
    """Return the LoRA of the best mean accuracy in float32; None if none was judged.

    Ranks are compared over the seeds that all of them have, if there are any.
    """
    found = [
        Reference(method_label(curve.method, curve.size), curve.size, m)
        for curve in curves
        if curve.method in METHODS and METHODS[curve.method].is_lora
        for m in curve.codes
        if m.code == REFERENCE
    ]
    seeds = [set(r.answers.seeds) for r in found]
    common = sorted(set.intersection(*seeds)) if seeds else []
    return max(found, key=lambda r: r.accuracy_of(common), default=None)


def anchor_of(curves: Sequence[Curve]) -> Curve | None:
    """Return LoRA at rank 1, rounded, against which rates are compared."""
    found = (c for c in curves if (c.method, c.size, c.family) == ("lora", "1", ROUNDED))
    return next(found, None)
