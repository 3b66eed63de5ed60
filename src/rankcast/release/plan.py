"""Plan which chunks a device should fetch now: the best prefix that arrives in time."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from rankcast.errors import InfeasibleDeadlineError
from rankcast.release.manifest import Blob, Chunk, File, Manifest, PlannerName

MORE_TIME = "Give it more time or a better link; what has arrived is kept for the next try."
LEAST_GAIN = 0.1
"""Of a first prefix, see `gains` [nats]."""


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """An ordered list of blobs that complete a prefix.

    Attributes:
        file_index: of the file in the release.
        n_chunks: chunks of the prefix, at least one.
        missing: blobs to fetch, in order; empty if the device holds them all.
        bits: of the missing ones.
        loss: expected of the prefix [nats]; None if not measured.
        accuracy: likewise, a share.
        planner: who chose the file.
    """

    file_index: int
    n_chunks: int
    missing: tuple[Blob, ...]
    bits: int
    loss: float | None
    accuracy: float | None
    planner: PlannerName = "solver"

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        file_index: int,
        n_chunks: int,
        held: AbstractSet[str],
        planner: PlannerName = "solver",
    ) -> FetchPlan:
        """Return the plan that completes a prefix.

        Args:
            manifest: the release.
            file_index: of the file in it.
            n_chunks: chunks of the prefix.
            held: SHA-256 of the blobs that the device has.
            planner: who chose the file.
        """
        file = manifest.files[file_index]
        blobs = dict.fromkeys(file.blobs(n_chunks))
        missing = tuple(blob for blob in blobs if blob.sha256 not in held)
        bits = 8 * sum(blob.n_bytes for blob in missing)
        last = file.chunks[n_chunks - 1]
        return cls(file_index, n_chunks, missing, bits, last.loss, last.accuracy, planner)


def plan_fetch(
    manifest: Manifest, budget_bits: float, held: AbstractSet[str], rate_bps: float | None = None
) -> FetchPlan:
    """Return the best prefix of any file whose missing blobs fit the budget.

    The lowest expected loss wins; among files that were not measured, the prefix with the most
    chunks of the first file. A prefix that the device already holds always fits. Where a policy
    chose, its file for the best link that is no better than this one comes before all others.

    Args:
        manifest: the release.
        budget_bits: that arrive before the deadline.
        held: SHA-256 of the blobs that the device has.
        rate_bps: of the link, to look up what a policy chose [bit/s]; None to leave it aside.

    Raises:
        InfeasibleDeadlineError: not even the first chunk of any file fits.
    """
    prefixes = _prefixes(manifest, held)
    fitting = [prefix for prefix in prefixes if prefix.bits <= budget_bits]
    if not fitting:
        raise InfeasibleDeadlineError(min(p.bits for p in prefixes), budget_bits, MORE_TIME)
    chosen = None if rate_bps is None else _policys_choice(manifest, rate_bps)
    policys = [prefix for prefix in fitting if prefix.file_index == chosen]
    best = min(policys or fitting, key=_worse)
    planner = "policy" if policys else "solver"
    return FetchPlan.of(manifest, best.file_index, best.n_chunks, held, planner)


def next_better(manifest: Manifest, plan: FetchPlan, held: AbstractSet[str]) -> FetchPlan | None:
    """Return the prefix worth more than a plan's that needs the fewest bits; None if none is.

    Where loss was not measured, that is the same file's with one more chunk; where a policy chose
    the file, only prefixes of that file count.

    Args:
        manifest: the release.
        plan: of that release.
        held: SHA-256 of the blobs that the device has.
    """
    better = [
        prefix
        for prefix in _prefixes(manifest, held)
        if plan.planner != "policy" or prefix.file_index == plan.file_index
        if _is_better(prefix, plan)
    ]
    if not better:
        return None
    best = min(better, key=lambda prefix: (prefix.bits, _worse(prefix)))
    return FetchPlan.of(manifest, best.file_index, best.n_chunks, held, plan.planner)


def gains(
    manifest: Manifest, held: AbstractSet[str], rate_bps: float | None = None
) -> list[tuple[int, float]]:
    """Return the missing bits of each prefix that `plan_fetch` may choose, and what it would gain.

    The gain is the loss removed [nats] beside the best prefix that is here. What a device without
    one has is not known: the worst prefix stands for it, and having any is taken to be worth as
    much as all that follows, `LEAST_GAIN` at least. Where no loss was measured, a file is worth 1
    and each of its chunks the same.

    Args:
        manifest: the release.
        held: SHA-256 of the blobs that the device has.
        rate_bps: see `plan_fetch`.
    """
    prefixes = _prefixes(manifest, held)
    chosen = None if rate_bps is None else _policys_choice(manifest, rate_bps)
    prefixes = [prefix for prefix in prefixes if prefix.file_index == chosen] or prefixes
    losses = [(p.bits, p.last.loss) for p in prefixes if p.last.loss is not None]
    if losses:
        best, worst = (of(loss for _, loss in losses) for of in (min, max))
        without = worst + max(worst - best, LEAST_GAIN)
    else:
        first, without = prefixes[0].file_index, 1.0
        share = 1.0 / len(manifest.files[first].chunks)
        losses = [(p.bits, 1.0 - share * p.n_chunks) for p in prefixes if p.file_index == first]
    without = min((loss for bits, loss in losses if not bits), default=without)
    return [(bits, without - loss) for bits, loss in losses if bits]


class _Prefix(NamedTuple):
    """A candidate; its blobs are listed only once it is chosen, since files may be long."""

    file_index: int
    n_chunks: int
    bits: int
    last: Chunk


def _prefixes(manifest: Manifest, held: AbstractSet[str]) -> list[_Prefix]:
    """Return every prefix of every file, with the bits that are missing of it."""
    return [
        _Prefix(index, n, bits, chunk)
        for index, file in enumerate(manifest.files)
        for n, (bits, chunk) in enumerate(
            zip(_missing_bits(file, held), file.chunks, strict=True), start=1
        )
    ]


def _missing_bits(file: File, held: AbstractSet[str]) -> list[int]:
    """Return the bits that are missing of each prefix of a file."""
    new, seen = [], set(held)
    for blob in file.blobs():
        new.append(0 if blob.sha256 in seen else 8 * blob.n_bytes)
        seen.add(blob.sha256)
    return list(accumulate(new))[1:]


def _policys_choice(manifest: Manifest, rate_bps: float) -> int | None:
    """Return the file that a policy chose for such a link; None if no policy did."""
    if not manifest.choices:
        return None
    slower = [choice for choice in manifest.choices if choice.rate_bps <= rate_bps]
    if slower:
        return max(slower, key=lambda choice: choice.rate_bps).file_index
    return min(manifest.choices, key=lambda choice: choice.rate_bps).file_index


def _worse(prefix: _Prefix) -> tuple[bool, float, int, int, int]:
    """Sort by worth: measured first, lower loss, earlier file, more chunks, fewer bits."""
    loss = prefix.last.loss
    return (loss is None, loss or 0.0, prefix.file_index, -prefix.n_chunks, prefix.bits)


def _is_better(prefix: _Prefix, plan: FetchPlan) -> bool:
    if prefix.last.loss is not None and plan.loss is not None:
        return prefix.last.loss < plan.loss
    return prefix.file_index == plan.file_index and prefix.n_chunks > plan.n_chunks
