"""Which adapter is in force, written down so that a crash between any two lines loses nothing.

An activation is: record the release; write it into the state as pending; let the activator put it
in force and prove it; ask the device whether it is well; write it into the state as active. Whoever
finds a pending release was cut short in between, and does it again; after `most_attempts` times the
release is taken to be what cuts it short, and the one before is put back.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import replace

from rankcast.delivery.edge.activation import Activator, Candidate
from rankcast.delivery.edge.assembling import candidate_of
from rankcast.delivery.edge.cache import BlobCache
from rankcast.delivery.edge.fetching import Fetched
from rankcast.delivery.edge.records import DeviceState, LastError, Release
from rankcast.delivery.edge.state import StateFile
from rankcast.delivery.manifest import Manifest
from rankcast.errors import DeliveryError, RankcastError, UnavailableError

_NEW_SHARE = 0.5
"""Of the newest measurement in the throughput that is kept."""


class Seat:
    """The place of the adapter in force, and the state that says who sits there.

    Args:
        adapter: its name.
        states: the state file.
        cache: of blobs.
        activator: puts an adapter in force.
        health: says whether the device works with it; None if nobody can say.
    """

    most_attempts = 3

    def __init__(
        self,
        adapter: str,
        states: StateFile,
        cache: BlobCache,
        activator: Activator,
        health: Callable[[], bool] | None,
    ) -> None:
        self._adapter, self._states, self._cache = adapter, states, cache
        self._activator, self._health = activator, health
        self.state = DeviceState(adapter)

    @staticmethod
    def digest_of(manifest: Manifest) -> str:
        """Return the SHA-256 of a manifest."""
        return hashlib.sha256(manifest.to_bytes()).hexdigest()

    def resume(self) -> DeviceState:
        """Read the state, finish what was cut short, and put in force what should be.

        Raises:
            DeliveryError: the folder is another adapter's, or the disk is full.
        """
        try:
            loaded = self._states.load()
        except DeliveryError:
            loaded = None
        if loaded is None:
            loaded = self._states.rebuild(self._adapter, self._activator.active())
        if loaded.adapter != self._adapter:
            raise DeliveryError(
                f"{self._states.folder} is the folder of {loaded.adapter}; give {self._adapter} "
                f"another one."
            )
        self.state = loaded
        if loaded.pending is not None:
            self._resume_pending(loaded.pending)
        active = self.state.active
        if active is not None and self._activator.active() != active.label:
            self._put_back()
        return self.state

    def saw(self, manifest: Manifest) -> DeviceState:
        """Remember the newest release, so that no older one is ever taken."""
        digest = self.digest_of(manifest)
        if (manifest.version, digest) != (self.state.newest_version, self.state.manifest_sha256):
            self._save(newest_version=manifest.version, manifest_sha256=digest)
        return self.state

    def fetching(self) -> None:
        """Write down that blobs are coming."""
        self._save(phase="fetching")

    def fetched(self, fetched: Fetched, measured_bps: float | None) -> None:
        """Write down what came, and how fast."""
        if not fetched.n_bytes:
            return
        known, bps = self.state.throughput_bps, measured_bps
        if known is not None and measured_bps is not None:
            bps = (1.0 - _NEW_SHARE) * known + _NEW_SHARE * measured_bps
        words = f"{fetched.n_bytes:,} bytes in {fetched.elapsed_s:.2f} s"
        self.state = self._event("fetched", words)
        self._save(throughput_bps=known if bps is None else bps)

    def record(self, release: Release) -> None:
        """Write down what a release consists of."""
        self._states.record(release)

    def put(self, candidate: Candidate, attempts: int = 1) -> str | None:
        """Put an adapter in force; return None, or why it failed and the one before is back.

        Raises:
            UnavailableError: the disk is full, or whoever serves does not answer; the one before
                is in force, and this one may be tried again.
        """
        release = candidate.release
        self._save(phase="activating", pending=release, attempts=attempts)
        try:
            self._activator.activate(candidate)
            self._ask_health()
        except UnavailableError:
            self._save(phase="failed", pending=None, attempts=0)
            with contextlib.suppress(UnavailableError):  # the next sync puts it back
                self._put_back()
            raise
        except Exception as error:  # noqa: BLE001 an activator may be anybody's
            self._reject(release, error)
            return f"{release.label} was put out of force: {error}"
        before = self.state.active
        previous = self.state.previous if before == release else before
        kept = tuple(label for label in self.state.rejected if label != release.label)
        self.state = self._event("activated", release.label)
        self._save(phase="idle", active=release, previous=previous, pending=None, attempts=0,
                   rejected=kept, last_error=None)  # fmt: skip
        return None

    def tidy(self, wanted: AbstractSet[str]) -> None:
        """Drop what neither the release in force nor the one before nor the newest needs."""
        kept = [r for r in (self.state.active, self.state.previous) if r is not None]
        labels = {release.label for release in kept}
        self._activator.discard(labels)
        self._states.forget(labels)
        self._cache.collect({sha256 for r in kept for sha256 in r.blobs} | wanted)

    def idle(self) -> DeviceState:
        """Write down that there is nothing to do."""
        if self.state.phase != "idle" or self.state.last_error is not None:
            self._save(phase="idle", last_error=None)
        return self.state

    def failed(self, kind: str, error: RankcastError) -> None:
        """Write down why a sync came to nothing."""
        told, known = LastError.of(error, self._states.now()), self.state.last_error
        if known is not None and (known.kind, known.message) == (told.kind, told.message):
            return  # a device that is offline for a day does not wear its disk with saying so
        self.state = self._event(kind, str(error))
        self._save(phase="failed", last_error=told)

    def _resume_pending(self, pending: Release) -> None:
        attempts = self.state.attempts + 1
        try:
            if attempts > self.most_attempts:
                raise DeliveryError(
                    f"The activation of {pending.label} was cut short {self.state.attempts} times; "
                    f"it is given up."
                )
            candidate = candidate_of(pending, self._cache)
        except RankcastError as error:
            self._reject(pending, error)
            return
        self.put(candidate, attempts)

    def _reject(self, release: Release, error: Exception) -> None:
        """Put the adapter before back and remember that this one failed."""
        told = LastError.of(error, self._states.now())
        self.state = self._event("rolled-back", f"{release.label}: {error}")
        self.state = self.state.with_rejected(release.label)
        self._put_back()
        self._save(phase="failed", pending=None, attempts=0, last_error=told)

    def _put_back(self) -> None:
        """Make the activator's adapter the one that the state says is active.

        The one before that if its blobs are gone; none at all if those are, too.

        Raises:
            UnavailableError: the disk is full, or whoever serves does not answer.
        """
        for release in (self.state.active, self.state.previous):
            if release is None:
                continue
            if self._activator.active() == release.label:
                return
            try:
                self._activator.restore(candidate_of(release, self._cache))
            except UnavailableError:
                raise
            except RankcastError:
                continue
            if release != self.state.active:
                self.state = self._event("rolled-back", f"{release.label} is in force again")
                self._save(active=release, previous=None)
            return
        if self._activator.active() is not None:
            self._activator.deactivate()
        if self.state.active is not None:
            self._save(active=None)

    def _ask_health(self) -> None:
        """Ask the device whether it is well.

        Raises:
            DeliveryError: it is not.
        """
        if self._health is None:
            return
        try:
            well = self._health()
        except Exception as error:
            raise DeliveryError(f"The health check failed with {error!r}.") from error
        if not well:
            raise DeliveryError("The health check says that the device does not work with it.")

    def _event(self, kind: str, message: str) -> DeviceState:
        return self.state.with_event(kind, message, self._states.now())

    def _save(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)  # pyright: ignore[reportArgumentType]
        self._states.save(self.state)
