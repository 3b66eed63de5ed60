"""Fetch blobs over a link that breaks: resumed with Range, bounded, paced, measured.

Whatever a server sends, no more bytes of a blob are taken than the release names, and no byte is
used before the SHA-256 of all of them was checked.

| path | what |
|---|---|
| `blobs/SHA256` | a blob, complete and verified; never fetched again |
| `blobs/SHA256.part` | what has arrived of one; resumed where it ends |
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

import httpx2
import numpy as np

from rankcast.errors import ConfigError, DeliveryError, TrustError, UnavailableError
from rankcast.files import disk_errors, flush_file, flush_folder, put_file
from rankcast.rate_limit import Rate, TokenBucket
from rankcast.release.http import (
    AS_IT_LIES,
    check_encoding,
    check_no_page,
    may_pass,
    shown,
    why_refused,
)
from rankcast.release.manifest import Blob, checked_sha256

BURST_S = 0.05
"""Seconds of a bandwidth cap that may come at once."""
RESERVE_BYTES = 2**20
"""Bytes of the disk that are left free, for state files and whatever else the device does."""
_BLOCK = 2**20
_PART = ".part"
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_WRONG_RANGES = 2
"""Answers with another part than was asked for, after which the whole blob is asked for."""
_HTTP_OK, _HTTP_PARTIAL, _HTTP_RANGE = 200, 206, 416


@dataclass(frozen=True, slots=True)
class Backoff:
    """The pause after the n-th failure in a row: first · 2ⁿ⁻¹, bounded and jittered.

    The jitter is between half and the whole of it, so that devices which lost the same server do
    not come back together.

    Attributes:
        n_tries: failures in a row, without a byte in between, after which to give up.
        first_s: before the second try [s].
        longest_s: between any two [s].
    """

    n_tries: int = 6
    first_s: float = 0.5
    longest_s: float = 30.0

    def wait_s(self, n_failures: int, rng: np.random.Generator, asked_s: float = 0.0) -> float:
        """Return the pause [s]; `asked_s` is what a server asked for with Retry-After."""
        bound = min(self.longest_s, self.first_s * 2.0 ** min(n_failures - 1, 60))
        return max(bound * rng.uniform(0.5, 1.0), min(asked_s, self.longest_s))


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """Cap and patience of a fetch.

    Attributes:
        max_bps: bandwidth cap [bit/s]; None for none.
        silence_s: a connection that says nothing for so long is given up [s].
        backoff: what to do after failures.
    """

    max_bps: float | None = None
    silence_s: float = 20.0
    backoff: Backoff = field(default_factory=Backoff)

    def __post_init__(self) -> None:
        """Refuse a cap that lets nothing pass.

        Raises:
            ConfigError: a cap that is not positive.
        """
        if self.max_bps is not None and not self.max_bps > 0:
            raise ConfigError(f"A bandwidth cap is positive [bit/s], got {self.max_bps}.")


def free_bytes(folder: Path) -> int:
    """Return how many bytes the disk of a folder can still take."""
    return shutil.disk_usage(folder).free


@dataclass(frozen=True)
class BlobCache:
    """The blobs of one device.

    Attributes:
        root: folder; made when the first blob comes.
        free: says how many bytes the disk of a folder can still take.
    """

    root: Path
    free: Callable[[Path], int] = free_bytes

    def path(self, sha256: str) -> Path:
        """Return where a complete blob lies.

        Raises:
            DeliveryError: no SHA-256; nothing else can name a file here.
        """
        return self.root / checked_sha256(sha256)

    def partial(self, blob: Blob) -> Path:
        """Return where the beginning of a blob lies."""
        path = self.path(blob.sha256)
        return path.with_name(path.name + _PART)

    def has(self, blob: Blob) -> bool:
        """Return whether a blob is complete here."""
        path = self.path(blob.sha256)
        return path.is_file() and path.stat().st_size == blob.n_bytes

    def held(self, blobs: Iterable[Blob]) -> frozenset[str]:
        """Return the SHA-256 of those that are complete here."""
        return frozenset(blob.sha256 for blob in blobs if self.has(blob))

    def n_arrived(self, blob: Blob) -> int:
        """Return how many bytes of a blob are here; a beginning that is too long is dropped."""
        if self.has(blob):
            return blob.n_bytes
        partial = self.partial(blob)
        size = partial.stat().st_size if partial.is_file() else 0
        if size > blob.n_bytes:
            partial.unlink()
            return 0
        return size

    def check_space(self, blobs: Iterable[Blob]) -> None:
        """Refuse to begin what the disk cannot take.

        Raises:
            UnavailableError: too little room; says how much is missing.
        """
        needed = sum(blob.n_bytes - self.n_arrived(blob) for blob in blobs)
        if not needed:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        short = needed + RESERVE_BYTES - self.free(self.root)
        if short > 0:
            raise UnavailableError(
                f"The disk of {self.root} is too full: {needed:,} bytes are to be fetched, and "
                f"{short:,} more would have to be free. Nothing was changed; free some space and "
                f"sync again."
            )

    def complete(self, blob: Blob) -> None:
        """Give a blob that has arrived in full its name, in one step, if its bytes are right.

        Raises:
            TrustError: they are not; what had arrived is discarded.
            UnavailableError: the disk does not take it.
        """
        partial = self.partial(blob)
        digest = _digest(partial)
        if digest != blob.sha256 or partial.stat().st_size != blob.n_bytes:
            partial.unlink()
            raise TrustError(
                f"The server sent other bytes than the release names for {blob.sha256[:12]}… "
                f"(their SHA-256 is {digest[:12]}…). They were discarded; fetch from a server that "
                f"you trust, or ask whoever published."
            )
        with disk_errors(partial):
            flush_file(partial)
            partial.replace(self.path(blob.sha256))
            flush_folder(self.root)

    def read(self, sha256: str) -> bytes:
        """Return the bytes of a complete blob.

        Raises:
            DeliveryError: it is not here, or damaged; then it is dropped, to be fetched again.
        """
        path = self.path(sha256)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DeliveryError(
                f"{path} cannot be read ({error.strerror}); sync again to fetch it."
            ) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            path.unlink(missing_ok=True)
            raise DeliveryError(f"{path} was damaged on this disk and dropped; sync again.")
        return data

    def put(self, sha256: str, data: bytes) -> None:
        """Keep the bytes of a blob that was not fetched but made here, and has that SHA-256.

        Raises:
            UnavailableError: the disk does not take it.
        """
        path = self.path(sha256)
        with disk_errors(path):
            put_file(path, data)
        path.with_name(path.name + _PART).unlink(missing_ok=True)

    def drop(self, blobs: Iterable[Blob]) -> None:
        """Drop blobs, complete or not."""
        for blob in blobs:
            self.path(blob.sha256).unlink(missing_ok=True)
            self.partial(blob).unlink(missing_ok=True)

    def collect(self, keep: AbstractSet[str]) -> int:
        """Drop every blob, complete or not, that is not to be kept; return the bytes freed."""
        freed = 0
        if not self.root.is_dir():
            return freed
        for path in sorted(self.root.iterdir()):
            if path.is_file() and path.name.removesuffix(_PART) not in keep:
                freed += path.stat().st_size
                path.unlink()
        return freed


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Fetched:
    """The bytes and the time of a fetch.

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


class _Late(Exception):  # noqa: N818 the link is slow, not the program
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
        cap = settings.max_bps
        self._cap = None if cap is None else TokenBucket(Rate(cap, BURST_S * cap), clock)
        self._n_bytes, self._start_s = 0, 0.0
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
        blobs = tuple(dict.fromkeys(blobs))
        self._cache.check_space(blobs)
        self._start_s = start = self._clock()
        self._until = None if deadline_s is None else start + deadline_s
        self._n_bytes = 0
        missing: tuple[Blob, ...] = ()
        for number, blob in enumerate(blobs):
            try:
                self._complete(blob)
            except _Late:
                missing = tuple(b for b in blobs[number:] if not self._cache.has(b))
                break
        debt_s = min(self._owed_s(), self._left_s(or_late=False))
        if debt_s > 0.0:  # the cap holds for the last blob too
            self._sleep(debt_s)
        return Fetched(self._n_bytes, self._clock() - start, missing)

    def so_far(self) -> Fetched:
        """Return what came since the last fetch began, which may have failed."""
        return Fetched(self._n_bytes, self._clock() - self._start_s)

    def _complete(self, blob: Blob) -> None:
        """Ask until all bytes of a blob are here, and check them."""
        path = f"blobs/{blob.sha256[:2]}/{blob.sha256}"
        failures, n_wrong, is_resumed = 0, 0, self._cache.n_arrived(blob) > 0
        while not self._cache.has(blob):
            before = self._cache.n_arrived(blob)
            try:
                if before < blob.n_bytes:
                    self._pause(self._owed_s())
                    silence_s = min(self._settings.silence_s, self._left_s())
                    headers = _from_byte(before if n_wrong < _WRONG_RANGES else 0)
                    with self._http.stream(
                        "GET", path, headers=headers, timeout=silence_s
                    ) as answer:
                        self._keep(answer, blob, before)
                self._cache.complete(blob)
            except TrustError:
                if not is_resumed:
                    raise
                is_resumed = False  # what lay here may have been damaged by a loss of power
            except (httpx2.TransportError, _Interrupted) as error:
                n_wrong += isinstance(error, _WrongRange)
                failures = 1 if self._cache.n_arrived(blob) > before else failures + 1
                if failures >= self._settings.backoff.n_tries:
                    raise UnavailableError(
                        f"{shown(self._http.base_url)} did not hand out {blob.sha256[:12]}… in "
                        f"{failures} tries ({str(error) or type(error).__name__}). What arrived is "
                        f"kept; sync again when there is a connection."
                    ) from error
                asked_s = getattr(error, "asked_s", 0.0)
                self._pause(self._settings.backoff.wait_s(failures, self._rng, asked_s))

    def _keep(self, answer: httpx2.Response, blob: Blob, start: int) -> None:
        """Append an answer to the `start` bytes that are here.

        Raises:
            _Interrupted: it ended early, or is a failure that may pass.
            DeliveryError: a refusal.
        """
        partial = self._cache.partial(blob)
        if answer.status_code == _HTTP_RANGE:
            partial.unlink(missing_ok=True)
        at = _first_byte(answer, start, blob)
        with disk_errors(partial):
            partial.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("ab", buffering=0) as file:
                for received in answer.iter_raw():
                    if not at:
                        check_no_page(answer, received)
                    self._n_bytes += len(received)
                    fresh = received[max(0, start - at) :][: blob.n_bytes - start]
                    at += len(received)
                    if fresh:
                        _write_all(file, fresh)
                        start += len(fresh)
                        if self._on_progress is not None:
                            self._on_progress(blob, start)
                    wait_s = self._owed_s(8.0 * len(received))
                    if start >= blob.n_bytes:
                        return  # whatever else the server has to say is not of this blob
                    self._pause(wait_s)
        raise _Interrupted("the answer ended early")

    def _owed_s(self, bits: float = 0.0) -> float:
        """Count bits that came against the cap; return how long to wait for it [s]."""
        return 0.0 if self._cap is None else self._cap.spend(bits)

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


def _from_byte(start: int) -> dict[str, str]:
    """Return the headers that ask for a blob from a byte on; no If-Range, since tags differ."""
    return AS_IT_LIES | {"Range": f"bytes={start}-"} if start else AS_IT_LIES


def _write_all(file: FileIO, data: bytes) -> None:
    """Write all of some bytes; an unbuffered file may take fewer at once."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


class _Interrupted(Exception):  # noqa: N818 the link fails, not the program
    """A try that failed and may be repeated.

    Args:
        words: what happened.
        asked_s: what the server wants to be waited [s].
    """

    def __init__(self, words: str, asked_s: float = 0.0) -> None:
        super().__init__(words)
        self.asked_s = asked_s


class _WrongRange(_Interrupted):
    """Another part than the one that was asked for."""


def _first_byte(answer: httpx2.Response, start: int, blob: Blob) -> int:
    """Return which byte of the blob an answer begins with.

    Raises:
        _Interrupted: a failure that may pass.
        DeliveryError: a refusal.
    """
    status = answer.status_code
    if status in (_HTTP_OK, _HTTP_PARTIAL):
        check_encoding(answer)
    if status == _HTTP_OK:
        return 0
    if status == _HTTP_PARTIAL:
        match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if not match or int(match[1]) != start or match[3] not in ("*", str(blob.n_bytes)):
            raise _WrongRange(
                f"asked for bytes from {start} of {blob.n_bytes} on, it answered "
                f"{answer.headers.get('Content-Range')!r}"
            )
        return start
    if may_pass(status):
        asked = answer.headers.get("Retry-After", "")
        asked_s = float(asked) if asked.isascii() and asked.isdigit() else 0.0
        raise _Interrupted(f"it answered {status}", asked_s)
    raise DeliveryError(
        f"{shown(answer.url)} was refused with status {status}: {why_refused(answer)}."
    )
