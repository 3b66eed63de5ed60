"""Which chunks a device should fetch now: the prefix of greatest worth that arrives in time."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from rankcast.delivery.blobs import Blob
from rankcast.delivery.manifest import Ladder, Manifest, PlannerName, Rung
from rankcast.errors import InfeasibleDeadlineError


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """An ordered list of blobs that complete a prefix.

    Attributes:
        ladder: index of the ladder in the release.
        n_rungs: chunks of the prefix, at least one.
        missing: blobs to fetch, in order; empty if the device holds them all.
        bits: of the missing ones.
        loss: expected of the prefix [nats]; None if not measured.
        accuracy: likewise, a share.
        planner: who chose the ladder.
    """

    ladder: int
    n_rungs: int
    missing: tuple[Blob, ...]
    bits: int
    loss: float | None
    accuracy: float | None
    planner: PlannerName = "solver"


def plan_fetch(
    manifest: Manifest, budget_bits: float, held: AbstractSet[str], rate_bps: float | None = None
) -> FetchPlan:
    """Return the best prefix of any ladder whose missing blobs fit the budget.

    The lowest expected loss wins; among ladders that were not measured, the prefix with the most
    chunks of the first ladder. A prefix that the device already holds always fits. Where a policy
    chose, its ladder for the best link that is no better than this one comes before all others.

    Args:
        manifest: the release.
        budget_bits: that arrive before the deadline.
        held: SHA-256 of the blobs that the device has.
        rate_bps: of the link, to look up what a policy chose [bit/s]; None to leave it aside.

    Raises:
        InfeasibleDeadlineError: not even the first chunk of any ladder fits.
    """
    found = [
        prefix
        for index, ladder in enumerate(manifest.ladders)
        for prefix in _prefixes(index, ladder, held)
    ]
    fitting = [prefix for prefix in found if prefix.bits <= budget_bits]
    if not fitting:
        raise InfeasibleDeadlineError(min(prefix.bits for prefix in found), budget_bits)
    chosen = None if rate_bps is None else _chosen(manifest, rate_bps)
    policys = [prefix for prefix in fitting if prefix.ladder == chosen]
    best = min(policys or fitting, key=_worse)
    return _plan(manifest, best, held, "policy" if policys else "solver")


def next_better(manifest: Manifest, plan: FetchPlan, held: AbstractSet[str]) -> FetchPlan | None:
    """Return the prefix worth more than a plan's that needs the fewest bits; None if none is.

    Where loss was not measured, that is the same ladder's with one more chunk; where a policy chose
    the ladder, only prefixes of that ladder count.

    Args:
        manifest: the release.
        plan: of that release.
        held: SHA-256 of the blobs that the device has.
    """
    better = [
        prefix
        for index, ladder in enumerate(manifest.ladders)
        if plan.planner != "policy" or index == plan.ladder
        for prefix in _prefixes(index, ladder, held)
        if _is_better(prefix, plan)
    ]
    if not better:
        return None
    best = min(better, key=lambda prefix: (prefix.bits, _worse(prefix)))
    return _plan(manifest, best, held, plan.planner)


def _chosen(manifest: Manifest, rate_bps: float) -> int | None:
    """Return the ladder that a policy chose for such a link; None if no policy did."""
    if not manifest.choices:
        return None
    slower = [choice for choice in manifest.choices if choice.rate_bps <= rate_bps]
    if slower:
        return max(slower, key=lambda choice: choice.rate_bps).ladder
    return min(manifest.choices, key=lambda choice: choice.rate_bps).ladder


def _is_better(prefix: _Prefix, plan: FetchPlan) -> bool:
    if prefix.rung.loss is not None and plan.loss is not None:
        return prefix.rung.loss < plan.loss
    return prefix.ladder == plan.ladder and prefix.n_rungs > plan.n_rungs


def _plan(
    manifest: Manifest, prefix: _Prefix, held: AbstractSet[str], planner: PlannerName
) -> FetchPlan:
    missing = _missing(manifest.ladders[prefix.ladder], prefix.n_rungs, held)
    rung = prefix.rung
    return FetchPlan(
        prefix.ladder, prefix.n_rungs, missing, prefix.bits, rung.loss, rung.accuracy, planner
    )


class _Prefix(NamedTuple):
    """A choice; its blobs are listed only once it is made, since ladders may be long."""

    ladder: int
    n_rungs: int
    bits: int
    rung: Rung


def _worse(prefix: _Prefix) -> tuple[bool, float, int, int, int]:
    """Sort by worth: measured first, lower loss, earlier ladder, more chunks, fewer bits."""
    unmeasured = prefix.rung.loss is None
    loss = 0.0 if prefix.rung.loss is None else prefix.rung.loss
    return (unmeasured, loss, prefix.ladder, -prefix.n_rungs, prefix.bits)


def _prefixes(index: int, ladder: Ladder, held: AbstractSet[str]) -> list[_Prefix]:
    blobs = [ladder.header, *(rung.blob for rung in ladder.rungs)]
    new, seen = [], set(held)
    for blob in blobs:
        new.append(0 if blob.sha256 in seen else 8 * blob.n_bytes)
        seen.add(blob.sha256)
    sums = list(accumulate(new))[1:]
    return [
        _Prefix(index, n, bits, rung)
        for n, (bits, rung) in enumerate(zip(sums, ladder.rungs, strict=True), start=1)
    ]


def _missing(ladder: Ladder, n_rungs: int, held: AbstractSet[str]) -> tuple[Blob, ...]:
    blobs = [ladder.header, *(rung.blob for rung in ladder.rungs[:n_rungs])]
    return tuple(dict.fromkeys(blob for blob in blobs if blob.sha256 not in held))
