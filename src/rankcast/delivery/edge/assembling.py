"""From blobs to an adapter: every byte verified, every chunk decoded, before anything uses it."""

from __future__ import annotations

from rankcast.codec.container import read_container
from rankcast.codec.packing import unpack
from rankcast.delivery.edge.activation import Candidate
from rankcast.delivery.edge.cache import BlobCache
from rankcast.delivery.edge.records import Release
from rankcast.errors import CodecError


def candidate_of(release: Release, cache: BlobCache) -> Candidate:
    """Return the adapter of a release whose blobs are all here.

    Raises:
        DeliveryError: a blob is missing or was damaged on this disk.
        CodecError: the blobs are no adapter, although they are the ones that were published.
    """
    data = b"".join(cache.read(sha256) for sha256 in release.blobs)
    container = read_container(data, allow_prefix=True)
    named = tuple(entry.sha256 for entry in container.header.chunks[: release.n_rungs])
    if len(container.chunks) != release.n_rungs or named != release.blobs[1:]:
        raise CodecError(
            f"The header of {release.label} names other chunks than its release. Ask whoever "
            f"published to publish again."
        )
    return Candidate(release, container, unpack(container))
