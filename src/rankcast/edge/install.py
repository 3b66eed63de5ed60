"""Install a prefix of a release on the device: fetch it, make it active, say how it went."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import httpx2

from rankcast.edge.activate import Activation
from rankcast.edge.advice import PlannedBy
from rankcast.edge.fetch import Fetched, Fetcher
from rankcast.edge.report import report
from rankcast.edge.state import ReleasePrefix
from rankcast.edge.updating import Updated, UpdateResult
from rankcast.errors import DeliveryError, InfeasibleDeadlineError
from rankcast.release.manifest import Manifest
from rankcast.release.plan import MORE_TIME
from rankcast.release.runs_on import copy_with

Outcome = Literal["activated", "up-to-date", "rolled-back", "rejected"]
_EARLY_SHARE, _EARLY_NATS = 0.25, 0.1
"""Of the gap in expected loss between the first chunk and the prefix that is wanted, and nats: what
may still be missing when a device that has nothing begins."""


@dataclass(frozen=True, slots=True)
class SyncResult:
    """The outcome of a sync.

    Attributes:
        outcome: `activated`; `up-to-date`; `rolled-back`: the new one failed its proof and the one
            before is active; `rejected`: the new one failed before and was not tried again.
        active: the prefix that is active now; None for none.
        planned_by: who chose the prefix.
        n_bytes: received.
        elapsed_s: of the transfer [s].
        throughput_bps: of the link, smoothed over syncs [bit/s]; None before the first transfer.
        message: in words.
        update: `applied`: the release was made of the adapter before and its difference to it;
            `refused`: that did not work, and whole chunks were fetched; `none`: they always were.
        cell: what the server says of the cell that the device shares; None for none.
        file_chunks: of the file of which `active` has the first ones; None where unknown.
    """

    outcome: Outcome
    active: ReleasePrefix | None
    planned_by: PlannedBy
    n_bytes: int
    elapsed_s: float
    throughput_bps: float | None
    message: str
    update: Updated = "none"
    cell: str | None = None
    file_chunks: int | None = None

    def then(self, rest: SyncResult) -> SyncResult:
        """Return the outcome of two transfers together."""
        return replace(
            self if rest.outcome == "up-to-date" else rest,
            n_bytes=self.n_bytes + rest.n_bytes,
            elapsed_s=self.elapsed_s + rest.elapsed_s,
        )


@dataclass(frozen=True)
class Installer:
    """Installs prefixes of one release on the device.

    Attributes:
        http: the connection to the server.
        fetcher: of blobs.
        activation: of the device.
        manifest: the release.
        planned_by: who chose the prefix.
        retry_rejected: whether to try again what failed its proof before.
        updated: what an update made of the release before.
        fingerprints: of the base model on this device.
        cell: see `SyncResult`.
        came: what was fetched in steps.
    """

    http: httpx2.Client
    fetcher: Fetcher
    activation: Activation
    manifest: Manifest
    planned_by: PlannedBy
    retry_rejected: bool
    updated: UpdateResult
    fingerprints: tuple[str, ...]
    cell: str | None
    came: Fetched

    def install(self, wanted: ReleasePrefix, deadline_s: float) -> SyncResult:
        """Fetch a prefix, or as much of it as arrives in time, and make it active.

        Raises:
            TrustError: other bytes than the release names.
            DeliveryError: the server stays away or refuses, or the disk is full.
            InfeasibleDeadlineError: the deadline passed before a first chunk was complete.
        """
        activation, blobs = self.activation, self.manifest.files[wanted.file_index].blobs()
        activation.begin_fetch(self.manifest)
        fetched = self.fetcher.fetch(blobs[: len(wanted.blobs)], deadline_s)
        activation.end_fetch(fetched)
        here = self._complete(wanted, fetched)
        skipped = self.skip(here, fetched)
        if skipped is not None:
            return skipped
        try:
            candidate = activation.candidate(here)
        except DeliveryError:  # a blob was damaged on this disk, and was dropped
            activation.end_fetch(self.fetcher.fetch(blobs[: len(here.blobs)], deadline_s))
            candidate = activation.candidate(here)
        failure = activation.activate(candidate)
        if failure is None:
            activation.tidy(self.manifest)
        outcome = "activated" if failure is None else "rolled-back"
        words = failure or self.updated.words
        report(self.http, outcome, activation.state, self._all(fetched), words)
        words = failure or self._active_words(here)
        return self._result(outcome, words, fetched)

    def skip(self, wanted: ReleasePrefix, fetched: Fetched | None = None) -> SyncResult | None:
        """Return the result of a sync that leaves a prefix alone; None if it is to be activated."""
        state, came = self.activation.state, fetched or Fetched(0, 0.0)
        if not _is_better(wanted, state.active):
            self.activation.idle()
            words = "Nothing better than the active adapter arrives in time."
            files = enumerate(self.manifest.files)
            whole = (ReleasePrefix.of(self.manifest, i, len(file.chunks)) for i, file in files)
            if state.active is not None and not any(_is_better(w, state.active) for w in whole):
                words = f"There is nothing new: all of {state.active.label} is active."
            return self._result("up-to-date", words, came)
        if wanted.label in state.rejected and not self.retry_rejected:
            words = (
                f"{wanted.label} failed its proof before. It is not tried again by itself; "
                f"rankcast edge sync does."
            )
            return self._result("rejected", words, came)
        return None

    def _active_words(self, here: ReleasePrefix) -> str:
        """Say what is active, and on which copy of the base model if it is one."""
        copy = copy_with(self.manifest.runs_on, self.fingerprints)
        on = "" if copy is None else f" on {copy.words(self.manifest.base.name)}"
        m, n = here.n_chunks, len(self.manifest.files[here.file_index].chunks)
        more = f"{m} of {n} chunks; sync again for the rest." if m < n else ""
        words = (f"{here.label} is active{on}.", more, self.updated.words, self.cell)
        return " ".join(filter(None, words))

    def _complete(self, wanted: ReleasePrefix, fetched: Fetched) -> ReleasePrefix:
        """Return as much of a prefix as is here."""
        late = {blob.sha256 for blob in fetched.missing}
        n_here = next((n for n, sha256 in enumerate(wanted.blobs) if sha256 in late), None)
        if n_here is None:
            return wanted
        if n_here < 2:  # the header, and not even one chunk
            least = self.manifest.files[wanted.file_index].blobs(1)
            bits = 8 * sum(blob.n_bytes for blob in least)
            raise InfeasibleDeadlineError(bits, 8 * fetched.n_bytes, MORE_TIME)
        return ReleasePrefix.of(self.manifest, wanted.file_index, n_here - 1)

    def _result(self, outcome: Outcome, message: str, fetched: Fetched) -> SyncResult:
        state, fetched = self.activation.state, self._all(fetched)
        return SyncResult(
            outcome, state.active, self.planned_by, fetched.n_bytes, fetched.elapsed_s,
            state.throughput_bps, message, self.updated.outcome, self.cell,
            self.activation.manifests.n_chunks(state.active),
        )  # fmt: skip

    def _all(self, fetched: Fetched) -> Fetched:
        """Return what came, that of an update and of steps included."""
        all_of = (self.updated.fetched, self.came, fetched)
        return Fetched(sum(f.n_bytes for f in all_of), sum(f.elapsed_s for f in all_of))


def early_prefix(manifest: Manifest, wanted: ReleasePrefix) -> ReleasePrefix | None:
    """Return a shorter prefix that is worth beginning with; None if there is none.

    A first chunk alone may be worse than no adapter at all, so it takes measured losses to tell.
    """
    chunks = manifest.files[wanted.file_index].chunks[: wanted.n_chunks]
    first, last = chunks[0].loss, chunks[-1].loss
    if first is None or last is None:
        return None
    enough = last + max(_EARLY_SHARE * (first - last), _EARLY_NATS)
    n_chunks = next(
        n for n, chunk in enumerate(chunks, 1) if chunk.loss is not None and chunk.loss <= enough
    )
    if n_chunks == len(chunks):
        return None
    return ReleasePrefix.of(manifest, wanted.file_index, n_chunks)


def _is_better(wanted: ReleasePrefix, active: ReleasePrefix | None) -> bool:
    """Return whether a prefix is worth more than the active one: newer, or of lower loss."""
    if active is None or wanted.version != active.version:
        return True
    if wanted.loss is not None and active.loss is not None:
        return wanted.loss < active.loss
    return wanted.file_index == active.file_index and wanted.n_chunks > active.n_chunks
