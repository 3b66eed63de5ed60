"""Which chunks a device should fetch now: the prefix of greatest worth that arrives in time."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from rankcast.delivery.manifest import Blob, Ladder, Manifest
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
    """

    ladder: int
    n_rungs: int
    missing: tuple[Blob, ...]
    bits: int
    loss: float | None
    accuracy: float | None


def plan_fetch(manifest: Manifest, budget_bits: float, held: AbstractSet[str]) -> FetchPlan:
    """Return the best prefix of any ladder whose missing blobs fit the budget.

    The lowest expected loss wins; among ladders that were not measured, the prefix with the most
    chunks of the first ladder. A prefix that the device already holds always fits.

    Args:
        manifest: the release.
        budget_bits: that arrive before the deadline.
        held: SHA-256 of the blobs that the device has.

    Raises:
        InfeasibleDeadlineError: not even the first chunk of any ladder fits.
    """
    found = [
        plan
        for index, ladder in enumerate(manifest.ladders)
        for plan in _prefixes(index, ladder, held)
    ]
    fitting = [plan for plan in found if plan.bits <= budget_bits]
    if not fitting:
        raise InfeasibleDeadlineError(min(plan.bits for plan in found), budget_bits)
    return min(fitting, key=_worse)


def _worse(plan: FetchPlan) -> tuple[bool, float, int, int, int]:
    """Sort by worth: measured first, lower loss, earlier ladder, more chunks, fewer bits."""
    unmeasured = plan.loss is None
    loss = 0.0 if plan.loss is None else plan.loss
    return (unmeasured, loss, plan.ladder, -plan.n_rungs, plan.bits)


def _prefixes(index: int, ladder: Ladder, held: AbstractSet[str]) -> list[FetchPlan]:
    blobs, found = [ladder.header], []
    for n, rung in enumerate(ladder.rungs, start=1):
        blobs.append(rung.blob)
        missing = tuple(dict.fromkeys(b for b in blobs if b.sha256 not in held))
        bits = 8 * sum(b.n_bytes for b in missing)
        found.append(FetchPlan(index, n, missing, bits, rung.loss, rung.accuracy))
    return found
