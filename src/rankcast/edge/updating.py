"""Make the newest release from the adapter that a device has and an update of fewer bytes.

What an update makes are the blobs that would have been fetched, with the SHA-256 that the signed
manifest names. So the rest of a sync goes on as if they had come over the link, and a device for
which an update does not work loses nothing but the update's bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from rankcast.codec.header import read_header
from rankcast.codec.update import apply_update, n_chunks_made
from rankcast.edge.fetch import BlobCache, Fetched, Fetcher
from rankcast.edge.state import ReleasePrefix
from rankcast.errors import (
    CodecError,
    DeliveryError,
    InfeasibleDeadlineError,
    TrustError,
    UnavailableError,
)
from rankcast.release.manifest import Blob, Manifest, Update, base_of, blob_of
from rankcast.release.plan import MORE_TIME

Updated = Literal["none", "applied", "refused"]


@dataclass(frozen=True, slots=True)
class Offer:
    """An update that starts from what a device has.

    Attributes:
        base: header and chunks of what the device has, joined.
        manifest: the newest release.
        file_index: of the file in it that the update makes.
        n_chunks: of that file that come out.
        update: to be fetched.
    """

    base: bytes
    manifest: Manifest
    file_index: int
    n_chunks: int
    update: Update

    @property
    def made(self) -> tuple[Blob, ...]:
        """The blobs that the update makes: the header and chunks."""
        return self.manifest.files[self.file_index].blobs(self.n_chunks)

    @property
    def prefix(self) -> ReleasePrefix:
        """What these blobs are."""
        return ReleasePrefix.of(self.manifest, self.file_index, self.n_chunks)

    def saved_bytes(self, cache: BlobCache) -> int:
        """Return by how much fewer bytes are to be fetched than without it."""
        whole, update = (
            sum(blob.n_bytes - cache.n_arrived(blob) for blob in blobs)
            for blobs in (self.made, (self.update.blob,))
        )
        return whole - update

    def apply(self, cache: BlobCache) -> None:
        """Put the blobs that it makes into the cache, and drop the update.

        Raises:
            CodecError: something else came out.
            DeliveryError: the update was damaged on this disk.
            UnavailableError: the disk is full.
        """
        cache.check_space(self.made)
        sha256s = [blob.sha256 for blob in self.manifest.files[self.file_index].blobs()]
        made = apply_update(self.base, cache.read(self.update.blob.sha256), sha256s)
        for sha256, data in zip(sha256s, made, strict=False):  # perhaps only the first chunks
            cache.put(sha256, data)
        cache.drop([self.update.blob])


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What became of the updates of a release.

    Attributes:
        outcome: `none`: there was no fitting one; `applied`; `refused`: it did not work.
        fetched: bytes and time that it took.
        words: for people.
        offer: what was applied.
    """

    outcome: Updated = "none"
    fetched: Fetched = field(default_factory=lambda: Fetched(0, 0.0))
    words: str = ""
    offer: Offer | None = None

    def made(self) -> ReleasePrefix:
        """Return the prefix that was made.

        Raises:
            InfeasibleDeadlineError: the update did not arrive in time; what came of it is kept.
        """
        if self.outcome != "applied" or self.offer is None:
            least = sum(blob.n_bytes for blob in self.fetched.missing)
            raise InfeasibleDeadlineError(
                8 * (self.fetched.n_bytes + least), 8 * self.fetched.n_bytes, MORE_TIME
            )
        return self.offer.prefix


def best_offer(manifest: Manifest, held: Iterable[ReleasePrefix], cache: BlobCache) -> Offer | None:
    """Return the update that saves the most bytes; None if none fits or saves any.

    Which file a device has is decided by the SHA-256 of what lies on its disk.

    Args:
        manifest: the newest release.
        held: prefixes that the device has.
        cache: their blobs.
    """
    if not manifest.update_blobs:
        return None
    offers: list[Offer] = []
    for prefix in held:
        try:
            blobs = [cache.read(sha256) for sha256 in prefix.blobs]
            header, _ = read_header(blobs[0])
        except (DeliveryError, CodecError):  # damaged on this disk
            continue
        base = base_of(blob_of(blobs[0]))
        for index, file in enumerate(manifest.files):
            n_chunks = n_chunks_made(header, len(blobs) - 1, len(file.chunks))
            offers += [
                Offer(b"".join(blobs), manifest, index, n_chunks, update)
                for update in file.updates
                if update.base == base
            ]
    best = max(offers, key=lambda offer: offer.saved_bytes(cache), default=None)
    return best if best is not None and best.saved_bytes(cache) > 0 else None


def take_update(
    offer: Offer, fetcher: Fetcher, cache: BlobCache, deadline_s: float
) -> UpdateResult:
    """Fetch an update and apply it, if it arrives in time; otherwise the next sync goes on.

    Raises:
        UnavailableError: the server stays away, or the disk is full.
    """
    try:
        fetched = fetcher.fetch([offer.update.blob], deadline_s)
        if fetched.missing:
            return UpdateResult(fetched=fetched)
        offer.apply(cache)
    except UnavailableError:
        raise
    except (CodecError, TrustError, DeliveryError) as error:
        cache.drop([offer.update.blob])
        return UpdateResult("refused", fetcher.so_far(), f"The update was refused: {error}")
    words = f"An update of {offer.update.blob.n_bytes:,} bytes made it."
    return UpdateResult("applied", fetched, words, offer)
