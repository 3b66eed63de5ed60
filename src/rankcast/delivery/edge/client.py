"""One adapter on one device, kept up to date: what `rankcast edge sync` does.

A sync begins by finishing what the last one left undone, and every step leaves the folder such that
the next sync can go on: blobs are complete or partial, a release is recorded before it can become
active, and the state says what is pending. What is in force was verified to the last byte.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import httpx2

from rankcast.delivery.blobs import Blob, checked_name, checked_sha256
from rankcast.delivery.edge.activation import Activator, WriteAdapter
from rankcast.delivery.edge.advice import Advice, MeasuredLink, advise
from rankcast.delivery.edge.assembling import candidate_of
from rankcast.delivery.edge.cache import BlobCache
from rankcast.delivery.edge.fetching import Fetched, Fetcher
from rankcast.delivery.edge.judging import check_release, early_prefix, why_not
from rankcast.delivery.edge.records import DeviceState, Release
from rankcast.delivery.edge.reporting import report
from rankcast.delivery.edge.seating import Seat
from rankcast.delivery.edge.signed import signed_source
from rankcast.delivery.edge.state import StateFile
from rankcast.delivery.edge.syncing import (
    ManifestSource,
    Outcome,
    Surroundings,
    SyncResult,
    SyncSettings,
)
from rankcast.delivery.locking import only_one
from rankcast.delivery.manifest import Manifest
from rankcast.errors import (
    DeliveryError,
    InfeasibleDeadlineError,
    ModelError,
    RankcastError,
    TrustError,
    UnavailableError,
)

_LEAST_MEASURED = 1024
"""Bytes; fewer say more about the delay of the link than about its rate."""
_MANIFEST_TRIES = 3
_REFUSALS = (TrustError, ModelError)


@dataclass(frozen=True)
class _Job:
    """What one sync works with."""

    http: httpx2.Client
    seat: Seat
    manifest: Manifest
    advice: Advice
    retry_rejected: bool


class EdgeClient:
    """Keeps one adapter of a device up to date.

    Args:
        server_url: of the delivery server, or of whatever hands out its blobs.
        adapter: name of the adapter.
        base_fingerprint: of the base model on this device.
        folder: for blobs and state; one adapter each.
        source: of trusted manifests; `signed_source` of the server if left out.
        activator: puts an adapter in force; writes a PEFT adapter to `folder/adapter` if left out.
        settings: deadline, link, cap.
        token: of this device; None for an open server.
        health: says whether the device works with what was put in force; False or an exception
            brings the one before back.
        on_progress: called with a blob and the bytes of it that are here.
        surroundings: chance, clock and network.

    Raises:
        DeliveryError: a name or a fingerprint that cannot be one.
    """

    def __init__(  # noqa: PLR0917 the first six are what a client is
        self,
        server_url: str,
        adapter: str,
        base_fingerprint: str,
        folder: Path,
        source: ManifestSource | None = None,
        activator: Activator | None = None,
        *,
        settings: SyncSettings | None = None,
        token: str | None = None,
        health: Callable[[], bool] | None = None,
        on_progress: Callable[[Blob, int], None] | None = None,
        surroundings: Surroundings | None = None,
    ) -> None:
        self.adapter = checked_name(adapter)
        self.base_fingerprint = checked_sha256(base_fingerprint)
        self.settings = settings or SyncSettings()
        self.folder = folder
        self.source = source or signed_source(server_url, folder, token=token)
        self._around = surroundings or Surroundings()
        self.cache = BlobCache(folder / "blobs")
        self.states = StateFile(folder, self._around.now)
        self._activator = activator or WriteAdapter("peft", folder / "adapter")
        self._health = health
        self._server_url, self._token, self._on_progress = server_url, token, on_progress

    def with_activator(self, activator: Activator) -> Self:
        """Return the same client with another place to put adapters in force."""
        other = copy.copy(self)
        other._activator = activator  # noqa: SLF001 our own kind
        return other

    def resume(self) -> Release | None:
        """Finish what was cut short, put in force what should be, and return it; needs no network.

        Raises:
            DeliveryError: another process works in the folder, or the disk is full.
        """
        with self._alone():
            return self._seat().resume().active

    def sync(self, *, retry_rejected: bool = False) -> SyncResult:
        """Bring the device to the best prefix of the newest release that arrives in time.

        Args:
            retry_rejected: try again what failed its proof before.

        Raises:
            TrustError: metadata, plan or bytes that must not be trusted; nothing was changed.
            ModelError: another base model than the device has.
            DeliveryError: an unreachable server, a full disk, a folder in use.
            InfeasibleDeadlineError: not even the first chunk arrives in time.
        """
        with self._alone(), self._connection() as http:
            seat = self._seat()
            state = seat.resume()
            try:
                return self._sync(http, seat, state, retry_rejected=retry_rejected)
            except RankcastError as error:
                kind = "refused" if isinstance(error, _REFUSALS) else "failed"
                with contextlib.suppress(DeliveryError):  # the first error is the one to tell
                    seat.failed(kind, error)
                report(http, kind, seat.state, message=str(error))
                raise

    def _sync(
        self, http: httpx2.Client, seat: Seat, state: DeviceState, *, retry_rejected: bool
    ) -> SyncResult:
        manifest = self._manifest()
        check_release(manifest, state, self.adapter, self.base_fingerprint)
        state = seat.saw(manifest)
        link = self.settings.radio or MeasuredLink(state.throughput_bps or self._assumed_bps())
        held = self.cache.held(manifest.blobs)
        advice = advise(http, manifest, link, self.settings.deadline_s, held)
        wanted = Release.of(manifest, advice.plan.ladder, advice.plan.n_rungs)
        reason = why_not(wanted, state, retry_rejected=retry_rejected)
        if reason is not None:
            return self._result(*reason, seat, advice)
        job = _Job(http, seat, manifest, advice, retry_rejected)
        may_begin = self.settings.progressive and state.active is None
        early = early_prefix(manifest, wanted) if may_begin else None
        if early is not None:
            return self._bring_both(job, early, wanted)
        return self._bring(job, wanted, self.settings.deadline_s)

    def _bring_both(self, job: _Job, first: Release, wanted: Release) -> SyncResult:
        """Bring a short prefix into force, then the one that is wanted."""
        start, deadline_s = self._around.clock(), self.settings.deadline_s
        early = self._bring(job, first, deadline_s)
        left_s = deadline_s - (self._around.clock() - start)
        if left_s <= 0.0:
            return early
        later = self._bring(job, wanted, left_s)
        told = early if later.outcome == "up-to-date" else later
        return replace(
            told, n_bytes=early.n_bytes + later.n_bytes, elapsed_s=early.elapsed_s + later.elapsed_s
        )

    def _bring(self, job: _Job, wanted: Release, deadline_s: float) -> SyncResult:
        """Fetch a prefix, put it in force and say what came of it."""
        http, seat, manifest, advice = job.http, job.seat, job.manifest, job.advice
        fetched, wanted = self._fetch(job, wanted, deadline_s)
        reason = why_not(wanted, seat.state, retry_rejected=job.retry_rejected)
        if reason is not None:
            return self._result(*reason, seat, advice, fetched)
        seat.record(wanted)
        try:
            candidate = candidate_of(wanted, self.cache)
        except DeliveryError:  # a blob was damaged on this disk, and was dropped
            self._fetch(job, wanted, deadline_s)
            candidate = candidate_of(wanted, self.cache)
        failure = seat.put(candidate)
        if failure is not None:
            report(http, "rolled-back", seat.state, fetched, failure)
            return self._result("rolled-back", failure, seat, advice, fetched)
        seat.tidy({blob.sha256 for blob in manifest.blobs})
        report(http, "activated", seat.state, fetched)
        return self._result("activated", f"{wanted.label} is in force.", seat, advice, fetched)

    def _manifest(self) -> Manifest:
        """Return the release in force, after several tries over a link that breaks.

        Raises:
            UnavailableError: none of them got through.
            DeliveryError: nothing is there.
            TrustError: what is there must not be trusted.
        """
        backoff = self.settings.fetch.backoff
        for failures in range(1, min(_MANIFEST_TRIES, backoff.n_tries)):
            try:
                return self.source.manifest(self.adapter)
            except UnavailableError:
                self._around.sleep(backoff.wait_s(failures, self._around.rng))
        return self.source.manifest(self.adapter)

    def _fetch(self, job: _Job, wanted: Release, deadline_s: float) -> tuple[Fetched, Release]:
        """Fetch a prefix; return what came, and the prefix that is complete.

        Raises:
            InfeasibleDeadlineError: the deadline passed before a first chunk was complete.
        """
        seat = job.seat
        blobs = {blob.sha256: blob for blob in job.manifest.blobs}
        names = tuple(dict.fromkeys(wanted.blobs))
        seat.tidy(set(blobs))
        seat.fetching()
        fetcher = Fetcher(
            job.http, self.cache, self.settings.fetch, rng=self._around.rng,
            clock=self._around.clock, sleep=self._around.sleep, on_progress=self._on_progress,
        )  # fmt: skip
        fetched = fetcher.fetch([blobs[name] for name in names], deadline_s)
        measured = fetched.throughput_bps if fetched.n_bytes >= _LEAST_MEASURED else None
        seat.fetched(fetched, measured)
        late = {blob.sha256 for blob in fetched.missing}
        n_here = next((n for n, name in enumerate(wanted.blobs) if name in late), None)
        if n_here is None:
            return fetched, wanted
        if n_here < 2:
            bits = 8 * sum(blobs[name].n_bytes for name in wanted.blobs[:2])
            raise InfeasibleDeadlineError(bits, 8 * fetched.n_bytes)
        return fetched, Release.of(job.manifest, wanted.ladder, n_here - 1)

    def _assumed_bps(self) -> float:
        cap = self.settings.fetch.max_bps
        return self.settings.assumed_bps if cap is None else min(cap, self.settings.assumed_bps)

    def _alone(self) -> AbstractContextManager[None]:
        return only_one(self.folder / ".lock", f"syncing {self.folder}")

    def _seat(self) -> Seat:
        seat = Seat(self.adapter, self.states, self.cache, self._activator, self._health)
        seat.most_attempts = self.settings.most_attempts
        return seat

    def _connection(self) -> httpx2.Client:
        headers = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        return httpx2.Client(
            base_url=self._server_url.rstrip("/") + "/", headers=headers,
            transport=self._around.transport, follow_redirects=False,
        )  # fmt: skip

    def _result(
        self, outcome: Outcome, words: str, seat: Seat, advice: Advice,
        fetched: Fetched | None = None,
    ) -> SyncResult:  # fmt: skip
        state = seat.idle() if outcome == "up-to-date" else seat.state
        came = fetched or Fetched(0, 0.0)
        return SyncResult(outcome, state.active, advice.planned_by, came.n_bytes, came.elapsed_s,
                          state.throughput_bps, words)  # fmt: skip
