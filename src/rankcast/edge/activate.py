"""Make an adapter active, written down so that a crash between any two lines loses nothing.

An activation is: write the prefix into the state as pending; let the engine make it active and
prove it; ask the device whether it is well; write it into the state as active. If a state has a
pending prefix, an activation was cut short, and is done again; after `most_attempts` times the
prefix is taken to be what cuts the device short, and the one before is put back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Protocol

from rankcast.codec.container import Container, read_container
from rankcast.codec.tensors import AdapterTensors
from rankcast.edge.fetch import BlobCache, Fetched
from rankcast.edge.manifests import KeptManifests
from rankcast.edge.state import DeviceState, LastError, ReleasePrefix, StateFile
from rankcast.errors import CodecError, DeliveryError, RankcastError, UnavailableError
from rankcast.release.manifest import Manifest, blob_of

_NEW_SHARE = 0.5
"""Of the newest measurement in the throughput that is kept."""
_LEAST_MEASURED = 1024
"""Bytes; fewer say more about the delay of the link than about its rate."""
_MEND = "The one before is active. Mend what failed; rankcast edge sync then tries this again."


@dataclass(frozen=True, eq=False)
class Candidate:
    """A prefix whose every byte was verified and decoded.

    Attributes:
        prefix: what it is.
        container: header and the chunks of the prefix.
        tensors: the adapter that they are.
        manifest: of its release; None where it was lost.
    """

    prefix: ReleasePrefix
    container: Container
    tensors: AdapterTensors
    manifest: Manifest | None = None

    @classmethod
    def load(
        cls, prefix: ReleasePrefix, cache: BlobCache, manifest: Manifest | None = None
    ) -> Candidate:
        """Read a prefix whose blobs are all here.

        Raises:
            DeliveryError: a blob is missing or was damaged on this disk.
            CodecError: the blobs are no adapter, although they are the ones that were published.
        """
        data = b"".join(cache.read(sha256) for sha256 in prefix.blobs)
        container = read_container(data, allow_prefix=True)
        named = tuple(blob_of(chunk).sha256 for chunk in container.chunks)
        if len(container.chunks) != prefix.n_chunks or named != prefix.blobs[1:]:
            raise CodecError(
                f"The header of {prefix.label} names other chunks than its release. Ask whoever "
                f"published to publish again."
            )
        return cls(prefix, container, container.tensors(), manifest)


class Activator(Protocol):
    """An engine that answers with an adapter."""

    def active(self) -> str | None:
        """Return the label of the active prefix; None if there is none, or nobody knows."""
        ...

    def activate(self, candidate: Candidate) -> None:
        """Make an adapter active and prove it; if that fails, the one before stays active.

        Doing it again with the active one repeats the proof.

        Raises:
            RankcastError: it could not be made active, or failed its proof.
        """
        ...

    def restore(self, candidate: Candidate) -> None:
        """Make an adapter active that was proved before; whether it passes again is not asked.

        Raises:
            RankcastError: it could not be made active.
        """
        ...

    def deactivate(self) -> None:
        """Make no adapter active: the base model answers alone."""
        ...

    def discard(self, keep: AbstractSet[str]) -> None:
        """Forget every adapter but those with the labels to keep."""
        ...


@dataclass(frozen=True, eq=False)
class Activation:
    """The active adapter of a device, and the state that says which one it is.

    Attributes:
        states: the state and its file.
        cache: of blobs.
        manifests: of what is here.
        activator: makes an adapter active.
        health: says whether the device works with it; None if nobody can say.
        most_attempts: activations of one prefix that may be cut short before it is given up.
    """

    states: StateFile
    cache: BlobCache
    manifests: KeptManifests
    activator: Activator
    health: Callable[[], bool] | None
    most_attempts: int

    @property
    def state(self) -> DeviceState:
        """The state as it is written."""
        return self.states.state

    def resume(self) -> str | None:
        """Finish what was cut short, put back what the engine has lost, and return its label.

        The state has been read. An engine loses its adapter when it is started again, or when its
        files are damaged.

        Raises:
            UnavailableError: the disk is full, or the engine does not answer.
        """
        if self.state.pending is not None:
            self._resume_pending(self.state.pending)
        active = self.state.active
        if active is None or self.activator.active() == active.label:
            return None
        self._put_back()
        return active.label if self.state.active == active else None

    def candidate(self, prefix: ReleasePrefix) -> Candidate:
        """Read a prefix whose blobs are all here; see `Candidate.load` for what it raises."""
        return Candidate.load(prefix, self.cache, self.manifests.get(prefix.version))

    def begin_fetch(self, manifest: Manifest) -> None:
        """Write down that blobs are coming, and make room for them."""
        self.tidy(manifest)
        self.states.change(phase="fetching")

    def end_fetch(self, fetched: Fetched) -> None:
        """Write down how much came, and how fast."""
        if not fetched.n_bytes:
            return
        bps, new_bps = self.state.throughput_bps, fetched.throughput_bps
        if new_bps is not None and fetched.n_bytes >= _LEAST_MEASURED:
            bps = new_bps if bps is None else (1.0 - _NEW_SHARE) * bps + _NEW_SHARE * new_bps
        self.states.note("fetched", f"{fetched.n_bytes:,} bytes in {fetched.elapsed_s:.2f} s")
        self.states.change(throughput_bps=bps)

    def activate(self, candidate: Candidate, attempts: int = 1) -> str | None:
        """Make an adapter active; return None, or why it failed and the one before is back.

        Raises:
            UnavailableError: the disk is full, or the engine does not answer; the one before is
                active, and this one may be tried again.
        """
        prefix = candidate.prefix
        rejected = tuple(label for label in self.state.rejected if label != prefix.label)
        self.states.change(phase="activating", pending=prefix, attempts=attempts, rejected=rejected)
        try:
            self.activator.activate(candidate)
            self._check_health()
        except UnavailableError:
            self.states.change(phase="failed", pending=None, attempts=0)
            with contextlib.suppress(UnavailableError):  # the next sync puts it back
                self._put_back()
            raise
        except Exception as error:  # noqa: BLE001 an activator may be anybody's
            self._reject(prefix, error)
            return f"{prefix.label} failed and was taken back: {error}"
        before = self.state.active
        self.states.note("activated", prefix.label)
        self.states.change(
            with_backup=True, phase="idle", active=prefix, pending=None, attempts=0,
            previous=self.state.previous if before == prefix else before, last_error=None,
        )  # fmt: skip
        return None

    def tidy(self, manifest: Manifest) -> None:
        """Drop what neither the active adapter nor the one before nor the newest release needs."""
        kept = [p for p in (self.state.active, self.state.previous) if p is not None]
        self.activator.discard({prefix.label for prefix in kept})
        wanted = {blob.sha256 for blob in (*manifest.blobs, *manifest.update_blobs)}
        self.cache.collect(wanted.union(*(prefix.blobs for prefix in kept)))
        self.manifests.collect({manifest.version, *(prefix.version for prefix in kept)})

    def idle(self) -> None:
        """Write down that there is nothing to do."""
        if self.state.phase != "idle" or self.state.last_error is not None:
            self.states.change(phase="idle", last_error=None)

    def failed(self, kind: str, error: RankcastError) -> None:
        """Write down why a sync failed."""
        new, known = LastError.of(error, self.states.now()), self.state.last_error
        if known is not None and (known.kind, known.message) == (new.kind, new.message):
            return  # a device that is offline for a day does not wear its disk with saying so
        self.states.note(kind, str(error))
        self.states.change(phase="failed", last_error=new)

    def _resume_pending(self, pending: ReleasePrefix) -> None:
        attempts = self.state.attempts + 1
        try:
            if pending.label in self.state.rejected:  # and what it replaced could not be put back
                raise DeliveryError(f"{pending.label} failed its proof before.")
            if attempts > self.most_attempts:
                raise DeliveryError(
                    f"The activation of {pending.label} was cut short {self.state.attempts} times; "
                    f"it is given up."
                )
            candidate = self.candidate(pending)
        except RankcastError as error:
            self._reject(pending, error)
            return
        self.activate(candidate, attempts)

    def _reject(self, prefix: ReleasePrefix, error: Exception) -> None:
        """Put the adapter before back and remember that this one failed."""
        self.states.note("rolled-back", f"{prefix.label}: {error}")
        self.states.reject(prefix.label)
        last_error = LastError.of(error, self.states.now())
        if isinstance(error, DeliveryError):
            last_error = replace(last_error, remedy=_MEND)
        try:
            self._put_back()
        except UnavailableError:
            self.states.change(phase="failed", last_error=last_error)
            raise
        self.states.change(phase="failed", pending=None, attempts=0, last_error=last_error)

    def _put_back(self) -> None:
        """Make the engine's adapter the one that the state says is active.

        The one before that if its blobs are gone; none at all if those are, too.

        Raises:
            UnavailableError: the disk is full, or the engine does not answer.
        """
        for prefix in (self.state.active, self.state.previous):
            if prefix is None:
                continue
            if self.activator.active() == prefix.label:
                return
            try:
                self.activator.restore(self.candidate(prefix))
            except UnavailableError:
                raise
            except RankcastError:
                continue
            if prefix != self.state.active:
                self.states.note("rolled-back", f"{prefix.label} is active again")
                self.states.change(active=prefix, previous=None)
            return
        if self.activator.active() is not None:
            self.activator.deactivate()
        if self.state.active is not None:
            self.states.change(active=None)

    def _check_health(self) -> None:
        """Ask the device whether it is well.

        Raises:
            DeliveryError: it is not.
        """
        if self.health is None:
            return
        try:
            well = self.health()
        except Exception as error:
            raise DeliveryError(f"The health check failed with {error!r}.") from error
        if not well:
            raise DeliveryError("The health check says that the device does not work with it.")
