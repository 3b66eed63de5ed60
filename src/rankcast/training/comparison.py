"""AirLLM beside the simple answers and the exact solver, on the same model, texts and links."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rankcast.allocation.baselines import BeliefAllocator, RandomAllocator, UniformAllocator
from rankcast.allocation.problem import Allocator
from rankcast.records import Plan
from rankcast.statistics import bootstrap_interval, mcnemar
from rankcast.training.folder import RunFolder
from rankcast.training.pictures import draw_learning, draw_ranks
from rankcast.training.planner import Planner, cost_of
from rankcast.training.run import Judgement, Session


@dataclass(frozen=True, eq=False)
class ComparisonRow:
    """One allocator on one link.

    Attributes:
        snr_db: the link [dB].
        allocator: `AirLLM`, `uniform`, `random`, `solver`, or the name of one's own.
        plan: its ranks and what they cost.
        judged: the test split under this plan.
    """

    snr_db: float
    allocator: str
    plan: Plan
    judged: Judgement

    def to_plain(self) -> dict[str, Any]:
        """Return all but the single texts, for JSON."""
        return {
            "snr_db": self.snr_db,
            "allocator": self.allocator,
            "ranks": self.plan.ranks.tolist(),
            **cost_of(self.plan),
            **self.judged.to_plain(),
        }


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


def allocators(planner: Planner, own: Allocator | None = None) -> dict[str, Allocator]:
    """Return who is compared, by the names used in tables; `own` comes last."""
    problem = planner.problem
    compared: dict[str, Allocator] = {
        "AirLLM": planner.policy,
        "uniform": UniformAllocator(problem),
        "random": RandomAllocator(problem),
        "solver": BeliefAllocator(problem, planner.utility),
    }
    if own is not None:
        compared[f"{own.name} (own)" if own.name in compared else own.name] = own
    return compared


def compare(session: Session, own: Allocator | None = None) -> Comparison:
    """Judge each allocator's plan for each SNR of the run on the test split.

    Args:
        session: a trained run.
        own: a further allocator.

    Raises:
        InfeasibleDeadlineError: not even the smallest plan arrives on some link.
    """
    planner, rows = session.planner, []
    for snr_db in session.config.link.iid.values_db:
        link = planner.link(snr_db)
        for name, allocator in allocators(planner, own).items():
            plan = planner.plan(link, allocator)
            judged = session.judge("test", plan.ranks)
            rows.append(ComparisonRow(snr_db, name, plan, judged))
    return Comparison(tuple(rows), paired_differences(rows, "uniform", session.config.seed))


def paired_differences(
    rows: list[ComparisonRow], other: str, seed: int
) -> tuple[PairedDifference, ...]:
    """Return AirLLM's accuracy minus another's, for each link and over all of them."""
    of = {(row.snr_db, row.allocator): row.judged.correct for row in rows}
    values = list(dict.fromkeys(row.snr_db for row in rows))
    differences = []
    for snr_db in values:
        ours, theirs = of[snr_db, "AirLLM"], of[snr_db, other]
        low, high = bootstrap_interval(ours - theirs, seed)
        differences.append(
            PairedDifference(
                snr_db, other, float((ours - theirs).mean()), low, high, mcnemar(ours, theirs)
            )
        )
    mean = np.mean([of[v, "AirLLM"] - of[v, other] for v in values], axis=0)
    low, high = bootstrap_interval(mean, seed)
    return (*differences, PairedDifference(None, other, float(mean.mean()), low, high, None))


def write_report(
    session: Session, folder: RunFolder, own: Allocator | None = None
) -> tuple[Comparison, list[Path]]:
    """Return the comparison and the pictures' files, after writing all of them."""
    comparison = compare(session, own)
    if not session.is_main:
        return comparison, []
    folder.write_json(folder.comparison, comparison.to_plain())
    ranks, learning = folder.path / "ranks.png", folder.path / "learning.png"
    plans = [
        (f"{row.snr_db:g} dB, mean {row.plan.ranks.mean():.1f}", row.plan.ranks)
        for row in comparison.rows
        if row.allocator == "AirLLM"
    ]
    draw_ranks(ranks, session.learner.layout, plans)
    draw_learning(learning, folder.log)
    return comparison, [ranks, learning]
