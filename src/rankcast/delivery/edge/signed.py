"""Where a device gets releases that it may trust: signed metadata of a server or a mirror."""

from __future__ import annotations

from pathlib import Path

from rankcast.delivery.downloads import HttpFetcher, http_client
from rankcast.delivery.trust import TufSource, trust_root
from rankcast.errors import DeliveryError


def signed_source(
    server_url: str,
    folder: Path,
    *,
    token: str | None = None,
    root: Path | None = None,
    root_sha256: str | None = None,
) -> TufSource:
    """Return the releases of a server, checked by what a device's folder trusts.

    Args:
        server_url: of whatever serves a store's files.
        folder: of the device; what it believes is kept in `trust` in it.
        token: of the device; None for open servers.
        root: first root metadata, from the publisher; pinned if this device has none yet.
        root_sha256: what the key ceremony printed, to compare with.

    Raises:
        DeliveryError: the root cannot be read, or the folder cannot be written.
        TrustError: no root, not the expected one, or another one than is pinned already.
    """
    believed = folder / "trust"
    if root is not None:
        try:
            data = root.read_bytes()
        except OSError as error:
            raise DeliveryError(f"{root} cannot be read: {error.strerror}.") from error
        trust_root(believed, data, root_sha256)
    client, server = http_client(), server_url.rstrip("/")
    if token is not None:
        client.headers["Authorization"] = f"Bearer {token}"
    return TufSource(f"{server}/metadata/", f"{server}/targets/", believed, HttpFetcher(client))
