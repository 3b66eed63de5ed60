"""Keep one adapter of one device up to date: what `rankcast edge sync` does.

A sync begins by finishing what the last one left undone, and every step leaves the folder such that
the next sync can go on: blobs are complete or partial, and the state says what is pending. Every
byte of the active adapter was verified.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, Self, TypeVar

import httpx2
import numpy as np

from rankcast.codec.header import same_base
from rankcast.edge.activate import Activation, Activator
from rankcast.edge.advice import (
    Advice,
    CellFullError,
    MeasuredLink,
    RadioLink,
    advise,
)
from rankcast.edge.assigned import Assigned, ask_assigned, assigned_manifest
from rankcast.edge.cell_steps import fetch_in_steps
from rankcast.edge.engines.folder import WriteAdapter
from rankcast.edge.fetch import BlobCache, Fetched, Fetcher, FetchSettings
from rankcast.edge.install import Installer, SyncResult, early_prefix
from rankcast.edge.manifests import KeptManifests
from rankcast.edge.report import report
from rankcast.edge.state import ReleasePrefix, StateFile, utc_now
from rankcast.edge.updating import UpdateResult, best_offer, take_update
from rankcast.errors import (
    DeliveryError,
    ModelError,
    RankcastError,
    TrustError,
    UnavailableError,
)
from rankcast.files import only_one
from rankcast.release.http import http_client
from rankcast.release.manifest import Blob, Manifest, checked_fingerprint, checked_name
from rankcast.release.plan import FetchPlan
from rankcast.release.runs_on import copy_with
from rankcast.release.verify import signed_source

_Answer = TypeVar("_Answer")
_MANIFEST_TRIES = 3
_REFUSALS = (TrustError, ModelError)
_LEAST_LEFT_S = 1e-3
"""For what has arrived by the deadline: it is activated, and nothing more is fetched."""


class ManifestSource(Protocol):
    """Gives manifests that may be trusted."""

    def manifest(self, name: str) -> Manifest:
        """Return the newest release of an adapter, and never an older one than before.

        Raises:
            TrustError: what is there must not be trusted; see `verify.SeenReleases` for what
                refuses older releases.
            DeliveryError: nothing is there, or nobody answers.
        """
        ...


@dataclass(frozen=True, slots=True)
class SyncSettings:
    """Deadline, link and patience of syncs.

    Attributes:
        deadline_s: time for a transfer [s].
        radio: the link as the modem sees it; None to use what was measured.
        assumed_bps: rate to plan with before anything was measured [bit/s].
        fetch: cap, patience and pauses.
        progressive: whether a device without an adapter begins with a prefix that is good enough as
            soon as it is here, and takes the rest later; see `early_prefix`.
        most_attempts: activations of one prefix that may be cut short before it is given up.
    """

    deadline_s: float = 60.0
    radio: RadioLink | None = None
    assumed_bps: float = 1e6
    fetch: FetchSettings = field(default_factory=FetchSettings)
    progressive: bool = True
    most_attempts: int = 3


@dataclass(frozen=True)
class Runtime:
    """Clock, chance and network of a device, so that a simulation can bring its own.

    Attributes:
        rng: draws the jitter of pauses.
        clock: gives seconds that never run backwards.
        sleep: waits [s].
        now: gives date and time in UTC.
        transport: of the connection; None for the network.
    """

    rng: np.random.Generator = field(default_factory=np.random.default_rng)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], str] = utc_now
    transport: httpx2.BaseTransport | None = None


class EdgeClient:
    """Keeps one adapter of a device up to date.

    Args:
        server_url: of the delivery server, or of any web server that hands out the store; with
            user and password where that one asks for them.
        adapter: name of the adapter.
        base_fingerprint: of the base model on this device; several, where one folder has a
            fingerprint for each class that it may be loaded under.
        folder: for blobs and state; one adapter each.
        source: of trusted manifests; `signed_source` of the server if left out.
        activator: makes an adapter active; writes a PEFT adapter to `folder/adapter` if left out.
        settings: deadline, link, cap.
        token: of this device; None for an open server.
        health: says whether the device works with a new adapter; False or an exception brings the
            one before back.
        on_progress: called with a blob and the bytes of it that are here.
        runtime: clock, chance and network.

    Raises:
        DeliveryError: a name or a fingerprint that cannot be one.
    """

    def __init__(  # noqa: PLR0917 the first six are what a client is
        self,
        server_url: str,
        adapter: str,
        base_fingerprint: str | Sequence[str],
        folder: Path,
        source: ManifestSource | None = None,
        activator: Activator | None = None,
        *,
        settings: SyncSettings | None = None,
        token: str | None = None,
        health: Callable[[], bool] | None = None,
        on_progress: Callable[[Blob, int], None] | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self.adapter = checked_name(adapter)
        several = [base_fingerprint] if isinstance(base_fingerprint, str) else base_fingerprint
        self.base_fingerprints = tuple(map(checked_fingerprint, several))
        self.settings = settings or SyncSettings()
        self.folder = folder
        self.source = source or signed_source(server_url, folder, token=token)
        self._runtime = runtime or Runtime()
        self._activation = Activation(
            StateFile(folder, self.adapter, self._runtime.now),
            BlobCache(folder / "blobs"),
            KeptManifests(folder / "manifests"),
            activator or WriteAdapter("peft", folder / "adapter"),
            health,
            self.settings.most_attempts,
        )
        self._server_url, self._token, self._on_progress = server_url, token, on_progress

    def with_activator(self, activator: Activator) -> Self:
        """Return the same client with another engine."""
        other = copy.copy(self)
        other._activation = replace(self._activation, activator=activator)  # noqa: SLF001 our own
        return other

    def resume(self) -> ReleasePrefix | None:
        """Finish what was cut short, make active what should be, and return it; needs no network.

        Raises:
            DeliveryError: another process works in the folder, or the disk is full.
        """
        with self._alone():
            self._activation.states.recover()
            self._activation.resume()
            return self._activation.state.active

    def sync(self, *, radio: RadioLink | None = None, retry_rejected: bool = False) -> SyncResult:
        """Bring the device to the best prefix of its release that arrives in time.

        Its release is the newest, or the version that the server assigns it among those that the
        newest release names. A device that has nothing begins with a shorter prefix that is good
        enough.

        Args:
            radio: the link as the modem sees it now; that of the settings if left out.
            retry_rejected: try again what failed its proof before.

        Raises:
            TrustError: metadata, plan or bytes that must not be trusted; nothing was changed.
            ModelError: another base model than the device has.
            DeliveryError: an unreachable server, a full disk, a folder in use.
            InfeasibleDeadlineError: not even the first chunk arrives in time.
        """
        activation = self._activation
        with self._alone(), self._connection() as http:
            activation.states.recover()
            with _errors_told(http, activation):
                restored = activation.resume()
                if restored is not None:
                    activation.states.note("restored", f"{restored}, which the engine had lost")
                    activation.states.change()
                result = self._take_newest(http, radio, retry_rejected)
        if restored is None or result.outcome == "activated":
            return result
        words = f"The engine had lost {restored}, or its files were changed; it is active again."
        return replace(result, message=f"{words} {result.message}")

    def _take_newest(
        self, http: httpx2.Client, radio: RadioLink | None, retry_rejected: bool
    ) -> SyncResult:
        """Do what `sync` does, once what it left undone the last time is done."""
        activation, deadline_s = self._activation, self.settings.deadline_s
        newest = self._newest()
        assigned = self._assigned(http)
        if assigned.holds:
            return self._held(assigned)
        manifest = assigned_manifest(
            newest, assigned, activation.manifests, cache=activation.cache,
            fetcher=self._fetcher(http), deadline_s=deadline_s,
        )  # fmt: skip
        activation.manifests.put(manifest)
        if manifest.version != activation.state.newest_version:  # for people, and for reports
            activation.states.change(newest_version=manifest.version)
        check_runs_on(manifest, self.base_fingerprints)
        link = radio or self.settings.radio or MeasuredLink(self._expected_bps())
        updated = self._update(http, manifest, retry_rejected)
        left_s = deadline_s - updated.fetched.elapsed_s
        if not 0.0 < deadline_s <= updated.fetched.elapsed_s:
            is_older = manifest.version != newest.version
            try:
                advice, left_s, came = self._advised(
                    http, manifest, link, left_s, names_version=is_older
                )
            except CellFullError as full:
                return self._held(Assigned(holds=True, reason=str(full)))
            plan, planned_by, cell = advice.plan, advice.planned_by, advice.cell
            wanted = ReleasePrefix.of(manifest, plan.file_index, plan.n_chunks)
        else:
            wanted, planned_by, left_s = updated.made(), "device", deadline_s
            cell, came = None, Fetched(0, 0.0)
        installer = Installer(
            http, self._fetcher(http), activation, manifest, planned_by, retry_rejected,
            updated, self.base_fingerprints, cell, came,
        )  # fmt: skip
        skipped = installer.skip(wanted)
        if skipped is not None:
            return skipped
        may_begin = self.settings.progressive and activation.state.active is None
        may_begin = may_begin and not came.n_bytes  # after steps most of it is here
        early = early_prefix(manifest, wanted) if may_begin else None
        if early is None:
            return installer.install(wanted, left_s)
        start_s = self._runtime.clock()
        first = installer.install(early, left_s)
        left_s -= self._runtime.clock() - start_s
        return first if left_s <= 0.0 else first.then(installer.install(wanted, left_s))

    def _advised(
        self,
        http: httpx2.Client,
        manifest: Manifest,
        link: RadioLink | MeasuredLink,
        left_s: float,
        *,
        names_version: bool,
    ) -> tuple[Advice, float, Fetched]:
        """Ask for a plan, and in a cell fetch step by step; see `fetch_in_steps`."""
        activation, fetcher = self._activation, self._fetcher(http)

        def ask(left_s: float) -> Advice:
            held = activation.cache.held(manifest.blobs)
            return advise(http, manifest, link, left_s, held, names_version=names_version)

        def fetch(plan: FetchPlan, left_s: float) -> Fetched:
            activation.begin_fetch(manifest)
            blobs = manifest.files[plan.file_index].blobs(plan.n_chunks)
            fetched = fetcher.fetch(blobs, left_s)
            activation.end_fetch(fetched)
            return fetched

        clock, sleep = self._runtime.clock, self._runtime.sleep
        advice, left_s, came = fetch_in_steps(ask, fetch, left_s, clock, sleep)
        return advice, max(left_s, _LEAST_LEFT_S), came

    def _update(
        self, http: httpx2.Client, manifest: Manifest, retry_rejected: bool
    ) -> UpdateResult:
        """Make the release from the adapter that is active, or was before, where that saves bytes.

        Raises:
            UnavailableError: the server stays away, or the disk is full.
        """
        activation, state = self._activation, self._activation.state
        if state.active is None or state.active.version == manifest.version:
            return UpdateResult()
        held = [prefix for prefix in (state.active, state.previous) if prefix is not None]
        offer = best_offer(manifest, held, activation.cache)
        lost = [s for s in state.active.blobs if not activation.cache.path(s).is_file()]
        if lost and offer is None and manifest.update_blobs:
            words = f"What lay here of {state.active.label} was damaged: whole files were fetched."
            return UpdateResult(words=words)
        if offer is None or (offer.prefix.label in state.rejected and not retry_rejected):
            return UpdateResult()
        activation.begin_fetch(manifest)
        result = take_update(offer, self._fetcher(http), activation.cache, self.settings.deadline_s)
        activation.end_fetch(result.fetched)
        return result

    def _newest(self) -> Manifest:
        """Return the newest release, after several tries over a link that breaks.

        Raises:
            UnavailableError: none of them got through.
            DeliveryError: nothing is there.
            TrustError: what is there must not be trusted, or is of another adapter.
        """
        manifest = self._patiently(lambda: self.source.manifest(self.adapter))
        if manifest.name != self.adapter:
            raise TrustError(f"Asked for {self.adapter}, got a release of {manifest.name}.")
        return manifest

    def _assigned(self, http: httpx2.Client) -> Assigned:
        """Return which version the server says, likewise after several tries.

        Raises:
            UnavailableError: none of them got through.
            DeliveryError: the server does not accept the device's token.
        """
        state = self._activation.state
        active = None if state.active is None else state.active.version
        return self._patiently(lambda: ask_assigned(http, self.adapter, active, state.rejected))

    def _held(self, assigned: Assigned) -> SyncResult:
        """Return the result of a sync that leaves everything as it is.

        Raises:
            UnavailableError: there is nothing to leave.
        """
        state = self._activation.state
        if state.active is None:
            raise UnavailableError(f"There is no adapter for this device yet. {assigned.reason}")
        self._activation.idle()
        words = f"The active adapter stays. {assigned.reason}"
        return SyncResult("up-to-date", state.active, "server", 0, 0.0, state.throughput_bps, words)

    def _patiently(self, ask: Callable[[], _Answer]) -> _Answer:
        """Ask several times over a link that breaks, with pauses."""
        backoff, words, failures, alike = self.settings.fetch.backoff, "", 0, 0
        while True:
            try:
                return ask()
            except UnavailableError as error:
                failures, alike = failures + 1, alike + 1 if str(error) == words else 1
                words = str(error)  # names the file: another one is progress
                if alike >= _MANIFEST_TRIES or failures >= backoff.n_tries:
                    raise
                self._runtime.sleep(backoff.wait_s(failures, self._runtime.rng))

    def _expected_bps(self) -> float:
        """Return the rate of a link that no modem describes [bit/s]."""
        cap, assumed = self.settings.fetch.max_bps, self.settings.assumed_bps
        measured = self._activation.state.throughput_bps
        return measured or (assumed if cap is None else min(cap, assumed))

    def _alone(self) -> AbstractContextManager[None]:
        return only_one(self.folder / ".lock", f"syncing {self.folder}")

    def _connection(self) -> httpx2.Client:
        return http_client(self._token, self._server_url, self._runtime.transport)

    def _fetcher(self, http: httpx2.Client) -> Fetcher:
        runtime = self._runtime
        return Fetcher(
            http, self._activation.cache, self.settings.fetch, rng=runtime.rng,
            clock=runtime.clock, sleep=runtime.sleep, on_progress=self._on_progress,
        )  # fmt: skip


def check_runs_on(manifest: Manifest, fingerprints: Sequence[str]) -> None:
    """Refuse a release for another base model than a device has.

    Args:
        manifest: the release.
        fingerprints: of the device's base model; one of them has to be the release's own, or that
            of a copy that the release names.

    Raises:
        ModelError: another base model.
    """
    if any(same_base(manifest.base.fingerprint, own) for own in fingerprints):
        return
    if copy_with(manifest.runs_on, fingerprints) is not None:
        return
    base, own = manifest.base, ", ".join(f"{fingerprint[:12]}…" for fingerprint in fingerprints)
    copies = "".join(
        f", or {copy.words(base.name)} ({copy.fingerprint[:12]}…)" for copy in manifest.runs_on
    )
    raise ModelError(
        f"{manifest.name} adapts {base.name or 'a model'} (fingerprint "
        f"{str(base.fingerprint)[:12]}…){copies}; this device has another base model ({own}). "
        f"Install that model, ask for another adapter, or, if this device's model is a copy of it, "
        f"ask whoever publishes to name it with --runs-on."
    )


@contextmanager
def _errors_told(http: httpx2.Client, activation: Activation) -> Iterator[None]:
    """Write an error into the state, and tell the server of it."""
    try:
        yield
    except RankcastError as error:
        kind = "refused" if isinstance(error, _REFUSALS) else "failed"
        with contextlib.suppress(DeliveryError):  # the first error is the one to report
            activation.failed(kind, error)
        report(http, kind, activation.state, Fetched(0, 0.0), str(error))
        raise
