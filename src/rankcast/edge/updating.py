"""Make the newest release from the adapter that a device has and an update of fewer bytes.

What an update makes are the blobs that would have been fetched, with the SHA-256 that the signed
manifest names. So the rest of a sync goes on as if they had come over the link, and a device for
which an update does not work loses nothing but the update's bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Literal

from rankcast.codec.update import apply_update
from rankcast.edge.fetch import BlobCache, Fetched, Fetcher
from rankcast.edge.state import ReleasePrefix
from rankcast.errors import (
    CodecError,
    DeliveryError,
    InfeasibleDeadlineError,
    TrustError,
    UnavailableError,
)
from rankcast.release.manifest import Blob, Manifest, UpdatePiece
from rankcast.release.updates import base_digests

Updated = Literal["none", "applied", "refused"]


@dataclass(frozen=True, slots=True)
class Offer:
    """An update that starts from what a device has.

    Attributes:
        base: header and chunks of what the device has, joined.
        manifest: the newest release.
        file_index: of the file in it that the update makes.
        pieces: the first ones of the update, as far as that reaches.
    """

    base: bytes
    manifest: Manifest
    file_index: int
    pieces: tuple[UpdatePiece, ...]

    @property
    def made(self) -> tuple[Blob, ...]:
        """The blobs that the pieces make: the header, and a chunk for each."""
        return self.manifest.files[self.file_index].blobs(len(self.pieces))

    @property
    def prefix(self) -> ReleasePrefix:
        """What these blobs are."""
        return ReleasePrefix.of(self.manifest, self.file_index, len(self.pieces))

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """The pieces, to be fetched."""
        return tuple(piece.blob for piece in self.pieces)

    def saved_bytes(self, cache: BlobCache) -> int:
        """Return by how much fewer bytes are to be fetched than without it."""
        whole, pieces = (
            sum(blob.n_bytes - cache.n_arrived(blob) for blob in blobs)
            for blobs in (self.made, self.blobs)
        )
        return whole - pieces

    def apply(self, cache: BlobCache) -> None:
        """Put the blobs that it makes into the cache, and drop the pieces.

        Raises:
            CodecError: something else came out.
            DeliveryError: a piece was damaged on this disk.
            UnavailableError: the disk is full.
        """
        cache.check_space(self.made)
        pieces = [cache.read(blob.sha256) for blob in self.blobs]
        sha256s = [blob.sha256 for blob in self.made]
        made = apply_update(self.base, pieces, sha256s)
        for sha256, data in zip(sha256s, made, strict=True):
            cache.put(sha256, data)
        cache.drop(self.blobs)


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What became of the updates of a release.

    Attributes:
        outcome: `none`: there was no fitting one; `applied`; `refused`: it did not work.
        fetched: bytes and time that it took.
        words: for people.
        offer: what was applied, as much of it as arrived in time.
    """

    outcome: Updated = "none"
    fetched: Fetched = field(default_factory=lambda: Fetched(0, 0.0))
    words: str = ""
    offer: Offer | None = None

    def made(self) -> ReleasePrefix:
        """Return the prefix that was made until the deadline.

        Raises:
            InfeasibleDeadlineError: not even its first chunk was.
        """
        if self.outcome != "applied" or self.offer is None:
            least = min((blob.n_bytes for blob in self.fetched.missing), default=0)
            raise InfeasibleDeadlineError(
                8 * (self.fetched.n_bytes + least), 8 * self.fetched.n_bytes
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
        except DeliveryError:  # damaged on this disk
            continue
        digests = frozenset(base_digests(blobs))
        for index, file in enumerate(manifest.files):
            for update in file.updates:
                foreign = (j for j, piece in enumerate(update) if piece.base not in digests)
                if n := next(foreign, len(update)):
                    offers.append(Offer(b"".join(blobs), manifest, index, update[:n]))
    best = max(offers, key=lambda offer: offer.saved_bytes(cache), default=None)
    return best if best is not None and best.saved_bytes(cache) > 0 else None


def take_update(
    offer: Offer, fetcher: Fetcher, cache: BlobCache, deadline_s: float
) -> UpdateResult:
    """Fetch an update and apply as much of it as arrives in time.

    Raises:
        UnavailableError: the server stays away, or the disk is full.
    """
    try:
        fetched = fetcher.fetch(offer.blobs, deadline_s)
        late = {blob.sha256 for blob in fetched.missing}
        here = replace(offer, pieces=_before(offer.pieces, late))
        if here.pieces:
            here.apply(cache)
    except UnavailableError:
        raise
    except (CodecError, TrustError, DeliveryError) as error:
        cache.drop(offer.blobs)
        return UpdateResult("refused", fetcher.so_far(), f"The update was refused: {error}")
    if not here.pieces:
        return UpdateResult("none", fetched)
    words = f"An update of {sum(blob.n_bytes for blob in here.blobs):,} bytes made it."
    return UpdateResult("applied", fetched, words, here)


def _before(pieces: tuple[UpdatePiece, ...], late: AbstractSet[str]) -> tuple[UpdatePiece, ...]:
    """Return the pieces before the first one that is late."""
    return tuple(takewhile(lambda piece: piece.blob.sha256 not in late, pieces))
