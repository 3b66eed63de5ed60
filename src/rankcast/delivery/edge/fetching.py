"""Fetch blobs over a link that breaks: resumed with Range, bounded, paced, measured.

Whatever a server sends, no more bytes of a blob are taken than the release names, and no byte is
used before the SHA-256 of all of them was found right.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import FileIO

import httpx2
import numpy as np

from rankcast.delivery.blobs import Blob
from rankcast.delivery.edge.answers import HTTP_RANGE, Interrupted, first_byte
from rankcast.delivery.edge.cache import BlobCache
from rankcast.delivery.edge.durable import disk_error
from rankcast.delivery.edge.pacing import Backoff, TokenBucket
from rankcast.errors import ConfigError, TrustError, UnavailableError


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """How to fetch.

    Attributes:
        max_bps: bandwidth cap [bit/s]; None for none.
        silence_s: a connection that says nothing for so long is given up [s].
        backoff: what to do after failures.
    """

    max_bps: float | None = None
    silence_s: float = 20.0
    backoff: Backoff = field(default_factory=Backoff)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came of a fetch.

    Attributes:
        n_bytes: received, those that had to be thrown away included.
        elapsed_s: from the first request to the last byte, pauses included [s].
        missing: blobs that are not complete; empty unless the deadline passed.
    """

    n_bytes: int
    elapsed_s: float
    missing: tuple[Blob, ...] = ()

    @property
    def throughput_bps(self) -> float | None:
        """Bits per second; None if nothing came or no time passed."""
        if not self.n_bytes or self.elapsed_s <= 0.0:
            return None
        return 8.0 * self.n_bytes / self.elapsed_s


class _Late(Exception):  # noqa: N818 likewise
    """The deadline has passed."""


class Fetcher:
    """Fetches blobs into a cache.

    Args:
        http: the connection; its base address is the server's, its headers carry the token.
        cache: where blobs go.
        settings: how to fetch.
        rng: draws the jitter of pauses.
        clock: gives seconds that never run backwards.
        sleep: waits [s].
        on_progress: called with the blob and the bytes of it that are here.
    """

    def __init__(
        self,
        http: httpx2.Client,
        cache: BlobCache,
        settings: FetchSettings,
        *,
        rng: np.random.Generator,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        on_progress: Callable[[Blob, int], None] | None = None,
    ) -> None:
        self._http, self._cache, self._settings = http, cache, settings
        self._rng, self._clock, self._sleep = rng, clock, sleep
        self._on_progress = on_progress
        self._bucket = TokenBucket(settings.max_bps, clock)
        self._n_bytes = 0
        self._until: float | None = None

    def fetch(self, blobs: Sequence[Blob], deadline_s: float | None = None) -> Fetched:
        """Complete blobs in order, until a deadline passes.

        Args:
            blobs: what to complete; those that are complete cost nothing.
            deadline_s: time from now [s]; None for no bound.

        Raises:
            TrustError: other bytes than the release names.
            UnavailableError: the server stays away, or the disk is full. What arrived is kept and
                resumed.
            DeliveryError: the server refuses.
            ConfigError: a deadline that is not positive.
        """
        if deadline_s is not None and not deadline_s > 0:
            raise ConfigError(f"A deadline is positive [s], got {deadline_s}.")
        self._cache.check_space(blobs)
        start = self._clock()
        self._until = None if deadline_s is None else start + deadline_s
        self._n_bytes = 0
        missing: tuple[Blob, ...] = ()
        for number, blob in enumerate(blobs):
            try:
                self._complete(blob)
            except _Late:
                missing = tuple(b for b in blobs[number:] if not self._cache.has(b))
                break
        debt_s = min(self._bucket.take(0.0), self._left_s(or_late=False))
        if debt_s > 0.0:  # the cap holds for the last blob too
            self._sleep(debt_s)
        return Fetched(self._n_bytes, self._clock() - start, missing)

    def _complete(self, blob: Blob) -> None:
        if self._cache.has(blob):
            return
        resumed = self._cache.n_arrived(blob) > 0
        self._receive(blob)
        try:
            self._cache.complete(blob)
        except TrustError:
            if not resumed:
                raise
            self._receive(blob)  # what lay here may have been damaged by a loss of power
            self._cache.complete(blob)

    def _receive(self, blob: Blob) -> None:
        """Try until all bytes of a blob are here."""
        failures = 0
        while (before := self._cache.n_arrived(blob)) < blob.n_bytes:
            try:
                self._try(blob, before)
            except (httpx2.TransportError, Interrupted) as error:
                failures = 1 if self._cache.n_arrived(blob) > before else failures + 1
                if failures >= self._settings.backoff.n_tries:
                    raise UnavailableError(
                        f"{self._http.base_url} did not hand out {blob.sha256[:12]}… in {failures} "
                        f"tries ({str(error) or type(error).__name__}). What arrived is kept; sync "
                        f"again when there is a connection."
                    ) from error
                asked_s = getattr(error, "asked_s", 0.0)
                self._pause(self._settings.backoff.wait_s(failures, self._rng, asked_s))

    def _try(self, blob: Blob, start: int) -> None:
        """Ask once for the bytes from `start` on, and keep what comes."""
        self._pause(self._bucket.take(0.0))
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"  # no If-Range: tags differ, a blob's name does not
        wait_s = min(self._settings.silence_s, self._left_s())
        path = f"blobs/{blob.sha256[:2]}/{blob.sha256}"
        with self._http.stream("GET", path, headers=headers, timeout=wait_s) as answer:
            if answer.status_code == HTTP_RANGE:
                self._cache.partial(blob).unlink(missing_ok=True)
            at = first_byte(answer, start, blob)
            self._keep(answer, blob, at, start)
        if self._cache.n_arrived(blob) < blob.n_bytes:
            raise Interrupted("the answer ended early")

    def _keep(self, answer: httpx2.Response, blob: Blob, at: int, start: int) -> None:
        """Append an answer that begins at byte `at` to the `start` bytes that are here."""
        partial = self._cache.partial(blob)
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("ab", buffering=0) as file:
                for received in answer.iter_raw():
                    self._n_bytes += len(received)
                    fresh = received[max(0, start - at) :][: blob.n_bytes - start]
                    at += len(received)
                    if fresh:
                        _write_all(file, fresh)
                        start += len(fresh)
                        if self._on_progress is not None:
                            self._on_progress(blob, start)
                    wait_s = self._bucket.take(8.0 * len(received))
                    if start >= blob.n_bytes:
                        return  # whatever else the server has to say is not of this blob
                    self._pause(wait_s)
        except OSError as error:
            raise disk_error(partial, error) from error

    def _pause(self, wait_s: float) -> None:
        left_s = self._left_s()
        if wait_s > 0.0:
            self._sleep(min(wait_s, left_s))
            self._left_s()

    def _left_s(self, *, or_late: bool = True) -> float:
        """Return the time until the deadline [s].

        Raises:
            _Late: there is none.
        """
        left_s = float("inf") if self._until is None else self._until - self._clock()
        if left_s <= 0.0 and or_late:
            raise _Late
        return max(0.0, left_s)


def _write_all(file: FileIO, data: bytes) -> None:
    """Write all of some bytes; an unbuffered file may take fewer at once."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
