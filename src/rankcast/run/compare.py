"""AirLLM beside the simple answers and the exact solver, on the same model, texts and links."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rankcast.allocation.base import Allocator
from rankcast.allocation.baselines import BeliefAllocator, RandomAllocator, UniformAllocator
from rankcast.records import FloatArray
from rankcast.run.planning import Planner
from rankcast.run.session import Session
from rankcast.statistics import bootstrap_interval, mcnemar


@dataclass(frozen=True, eq=False)
class ComparisonRow:
    """One allocator on one link.

    Attributes:
        snr_db: the link [dB].
        allocator: `AirLLM`, `uniform`, `random` or `solver`.
        ranks: (N,) its plan.
        payload_bits: bits on the air.
        transmission_time_s: time on the air [s].
        link_cost: η.
        accuracy: share of right answers on the test split.
        loss: mean task loss on the test split.
        correct: (n,) share of right answers of each text, for paired statistics.
    """

    snr_db: float
    allocator: str
    ranks: tuple[int, ...]
    payload_bits: float
    transmission_time_s: float
    link_cost: float
    accuracy: float
    loss: float
    correct: FloatArray

    @property
    def mean_rank(self) -> float:
        """Mean over the projections."""
        return float(np.mean(self.ranks))

    def to_plain(self) -> dict[str, Any]:
        """Return all but the single texts, for JSON."""
        plain = asdict(self) | {"mean_rank": self.mean_rank, "ranks": list(self.ranks)}
        del plain["correct"]
        return plain


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """AirLLM's accuracy minus another allocator's on the same texts.

    Attributes:
        snr_db: the link [dB]; None for the mean over all links.
        other: the other allocator.
        difference: in accuracy.
        low: lower end of the 95 % bootstrap interval over texts.
        high: upper end.
        p_value: exact McNemar test; None over all links, whose answers are not independent.
    """

    snr_db: float | None
    other: str
    difference: float
    low: float
    high: float
    p_value: float | None


@dataclass(frozen=True)
class Comparison:
    """All rows, and the paired differences to uniform ranks."""

    rows: tuple[ComparisonRow, ...]
    differences: tuple[PairedDifference, ...]

    def to_plain(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {
            "split": "test",
            "rows": [row.to_plain() for row in self.rows],
            "differences_of_airllm": [asdict(d) for d in self.differences],
        }


def allocators(planner: Planner) -> dict[str, Allocator]:
    """Return who is compared, by the names used in tables."""
    problem = planner.problem
    return {
        "AirLLM": planner.policy,
        "uniform": UniformAllocator(problem),
        "random": RandomAllocator(problem),
        "solver": BeliefAllocator(problem, planner.utility),
    }


def compare(session: Session, on_row: Callable[[ComparisonRow], None] | None = None) -> Comparison:
    """Judge each allocator's plan for each SNR of the run on the test split.

    Args:
        session: a trained run.
        on_row: sees each row when it is known.

    Raises:
        InfeasibleDeadlineError: not even the smallest plan arrives on some link.
    """
    planner, rows = session.planner, []
    for snr_db in session.config.link.values_db:
        link = planner.link(snr_db)
        for name, allocator in allocators(planner).items():
            plan = planner.plan(link, allocator)
            seen = session.judge("test", plan.ranks)
            row = ComparisonRow(
                snr_db,
                name,
                tuple(plan.ranks.tolist()),
                plan.payload_bits,
                plan.transmission_time_s,
                plan.link_cost,
                seen.accuracy,
                seen.loss,
                seen.correct,
            )
            rows.append(row)
            if on_row is not None:
                on_row(row)
    return Comparison(tuple(rows), paired_differences(rows, "uniform", session.config.seed))


def paired_differences(
    rows: list[ComparisonRow], other: str, seed: int
) -> tuple[PairedDifference, ...]:
    """Return AirLLM's accuracy minus another's, for each link and over all of them."""
    of = {(row.snr_db, row.allocator): row.correct for row in rows}
    values = list(dict.fromkeys(row.snr_db for row in rows))
    found = []
    for snr_db in values:
        ours, theirs = of[snr_db, "AirLLM"], of[snr_db, other]
        low, high = bootstrap_interval(ours - theirs, seed)
        found.append(
            PairedDifference(
                snr_db, other, float((ours - theirs).mean()), low, high, mcnemar(ours, theirs)
            )
        )
    mean = np.mean([of[v, "AirLLM"] - of[v, other] for v in values], axis=0)
    low, high = bootstrap_interval(mean, seed)
    return (*found, PairedDifference(None, other, float(mean.mean()), low, high, None))
