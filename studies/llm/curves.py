"""The codes that were judged, as curves of the answers' loss over bytes.

A row keeps the summed loss of every answer, so that every difference is taken answer by answer and
every mean is that of a token: the tokens of an answer are the same for all codes.

Shapes: S seeds, n answers, G groups of answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rankcast.errors import ConfigError
from rankcast.records import FloatArray, IntArray
from studies.harness.spec import Result, Row
from studies.llm.codes import NOTHING, OURS, PEERS, REFERENCE, SIZED
from studies.llm.texts import unpack_numbers
from studies.report.statistics import Estimate, pooled_bootstrap
from studies.shared.rates import Point, bytes_at


@dataclass(frozen=True)
class Texts:
    """The answers that a task is judged on.

    Attributes:
        digest: of the texts; rows of others are not compared.
        counts: (n,) tokens of each answer.
        groups: (n,) answers of one group are drawn together.
    """

    digest: str
    counts: FloatArray
    groups: IntArray


@dataclass(frozen=True)
class Measured:
    """One code of one adapter, over seeds.

    Attributes:
        code: its name.
        bytes_of: bytes by seed.
        losses: (n,) summed loss of each answer, by seed [nats].
        more: mean over seeds of what else was measured: `divergence`, `agreement`, `exact_match`.
        texts: that were answered.
    """

    code: str
    bytes_of: Mapping[int, float]
    losses: Mapping[int, FloatArray]
    more: Mapping[str, float]
    texts: Texts

    @property
    def seeds(self) -> tuple[int, ...]:
        """In order."""
        return tuple(sorted(self.bytes_of))

    def n_bytes(self, seeds: Sequence[int] = ()) -> float:
        """Return the mean over some seeds; over all of them if none are named."""
        return float(np.mean([self.bytes_of[seed] for seed in seeds or self.seeds]))

    def loss(self, seeds: Sequence[int] = ()) -> float:
        """Return the mean over some seeds [nats per token]."""
        summed = np.mean([self.losses[seed].sum() for seed in seeds or self.seeds])
        return float(summed / self.texts.counts.sum())

    def shared(self, other: Measured) -> tuple[int, ...]:
        """Return the seeds that both have; none where the texts were others."""
        if self.texts.digest != other.texts.digest:
            return ()
        return tuple(seed for seed in self.seeds if seed in other.bytes_of)

    def minus(self, other: Measured) -> Estimate:
        """Return how much more loss this has [nats per token], paired by seed and answer.

        Raises:
            ConfigError: no seed in common.
        """
        both = self.shared(other)
        if not both:
            raise ConfigError(f"{self.code} and {other.code} have no seed and texts in common.")
        n = len(self.texts.counts)
        per_token = n / self.texts.counts.sum()  # so that the mean over answers is that of a token
        found = [(self.losses[s] - other.losses[s]) * per_token for s in both]
        return pooled_bootstrap(np.array(found), 0, groups=self.texts.groups)


@dataclass(frozen=True)
class Curve:
    """The codes of one family for one adapter.

    Attributes:
        source: `rank` or `rank x times`; empty for files that are trained for a size.
        family: of the codes.
        codes: from cheap to dear.
    """

    source: str
    family: str
    codes: tuple[Measured, ...]

    @property
    def label(self) -> str:
        """What readers call it."""
        return f"LoRA r {self.source}, {self.family}" if self.source else self.family

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Seeds in which every code was judged."""
        seeds = [set(m.seeds) for m in self.codes]
        return tuple(sorted(set.intersection(*seeds)))

    def points(self, seeds: Sequence[int]) -> list[Point]:
        """Return bytes and negative loss over some seeds."""
        return [(m.n_bytes(seeds), -m.loss(seeds)) for m in self.codes]

    def bytes_at(self, loss: float, seeds: Sequence[int]) -> float:
        """Return the bytes at a loss over some seeds; infinite where the curve ends above it."""
        found = bytes_at(self.points(seeds), -loss)
        return np.inf if found is None else found


@dataclass(frozen=True)
class TaskCurves:
    """Everything that was judged on one task.

    Attributes:
        curves: of peers and of ours.
        exact: the float32 adapter of each source.
        alone: the base model without an adapter.
        texts: that were judged.
    """

    curves: tuple[Curve, ...]
    exact: Mapping[str, Measured]
    alone: Measured
    texts: Texts

    @property
    def peers(self) -> tuple[Curve, ...]:
        """Curves of codes that are not ours; none before anything but float32 was judged."""
        found = tuple(c for c in self.curves if c.family in PEERS)
        return found if any(m.code != REFERENCE for c in found for m in c.codes) else ()

    def ours(self, *families: str) -> tuple[Curve, ...]:
        """Return curves of ours."""
        return tuple(c for c in self.curves if c.family in families)

    def best(self, seeds: Sequence[int]) -> tuple[str, float]:
        """Return the source of the least loss in float32 over some seeds, and this loss."""
        found = {s: m.loss(seeds) for s, m in self.exact.items() if set(seeds) <= set(m.seeds)}
        source = min(found, key=lambda s: found[s])
        return source, found[source]


def task_curves(result: Result, task: str) -> TaskCurves | None:
    """Return what was judged on a task; None if no float32 adapter was.

    Rows of other texts than the first are left out.
    """
    rows = [row for row in result.select(task=task) if row.values.get("codes")]
    first = next((row for row in rows if "groups" in row.values), None)
    if first is None:
        return None
    v = first.values
    groups = unpack_numbers(v["groups"]).astype(np.int64)
    texts = Texts(v["texts"], unpack_numbers(v["counts"]), groups)
    found: dict[tuple[str, str, str], list[tuple[int, Mapping[str, Any]]]] = {}
    for row in rows:
        if row.values["texts"] == texts.digest:
            for code in row.values["codes"]:
                source = "" if code["family"] == SIZED else _source(row)
                key = source, code["family"], code["code"]
                found.setdefault(key, []).append((row.job.seed, code))
    measured = {key: _measured(key[2], seen, texts) for key, seen in found.items()}
    families: dict[tuple[str, str], list[Measured]] = {}
    for (source, family, _), m in measured.items():
        if family in (*PEERS, *OURS):
            families.setdefault((source, family), []).append(m)
    curves = [
        Curve(*key, tuple(sorted(codes, key=lambda m: m.n_bytes())))
        for key, codes in families.items()
    ]
    exact = {source: m for (source, _, code), m in measured.items() if code == REFERENCE}
    alone = next(m for (_, _, code), m in measured.items() if code == NOTHING)
    return TaskCurves(tuple(curves), exact, alone, texts)


def _source(row: Row) -> str:
    """Return what the adapter of a row is called."""
    s = row.job.settings
    times = s.get("times", 1)
    return str(s["rank"]) if times == 1 else f"{s['rank']}, {times} times the steps"


def _measured(code: str, seen: Sequence[tuple[int, Mapping[str, Any]]], texts: Texts) -> Measured:
    names = ("divergence", "agreement", "exact_match")
    more = {
        name: float(np.mean([c[name] for _, c in seen if name in c]))
        for name in names
        if any(name in c for _, c in seen)
    }
    losses = {seed: unpack_numbers(c["losses"]) for seed, c in seen}
    return Measured(code, {seed: c["bytes"] for seed, c in seen}, losses, more, texts)
