"""Releases that a device may trust: signed by keys that follow from the root it was installed with.

The root comes with the installation or over a way that people check, never from the server that
the releases come from. Everything a refresh learns is kept in the state folder, so that a server
cannot take the device back behind it:

| file | what |
|---|---|
| `trusted-root.json` | the root that was pinned |
| `metadata/` | the newest signed metadata, as The Update Framework's client keeps them |
| `manifests/NAME.json` | the manifest of each adapter |
| `seen.json` | the newest version of each adapter; older ones are refused |
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    SlowRetrievalError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from rankcast.errors import DeliveryError, TrustError, UnavailableError
from rankcast.files import only_one, put_file
from rankcast.release.http import HttpFetcher, checked_server, http_client, may_pass
from rankcast.release.manifest import LARGEST_MANIFEST, Manifest, checked_sha256
from rankcast.release.store import target_path

LARGEST_ROOT = 2**16
LARGEST_TIMESTAMP = 2**14
_LIMITS = UpdaterConfig(
    max_root_rotations=256, max_delegations=1, root_max_length=LARGEST_ROOT,
    timestamp_max_length=LARGEST_TIMESTAMP, snapshot_max_length=2**16, targets_max_length=2**22,
)  # fmt: skip
"""Roots that one refresh follows, bins that it reads, and bytes of each kind of metadata."""
_NUMBERED = re.compile(r"[0-9]+\.(targets|snapshot|bin-[0-9a-f]{2})\.json")
_PINNED = "trusted-root.json"
_SEEN = "seen.json"


def utc_now() -> datetime:
    """Return the time by this machine's clock."""
    return datetime.now(UTC)


def trust_root(state_dir: Path, data: bytes, sha256: str | None = None) -> str:
    """Pin the root that a device begins with, once, and return its SHA-256.

    Args:
        state_dir: the device's folder of what it trusts.
        data: `root.json`, from the installation medium or checked by people.
        sha256: what the key ceremony printed, to compare with.

    Raises:
        TrustError: no root, not signed by its own keys, not the expected one, or another one than
            is pinned already.
        DeliveryError: the folder cannot be written.
    """
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and checked_sha256(sha256.lower()) != digest:
        raise TrustError(
            f"This root has the SHA-256 {digest}, and {sha256} was expected: do not use it."
        )
    if len(data) > LARGEST_ROOT:
        raise TrustError(f"A root of {len(data):,} bytes is too long to be one.")
    try:
        root: Metadata[Any] = Metadata.from_bytes(data)
        if not isinstance(root.signed, Root):
            raise TrustError(f"This file is {root.signed.type}.json; a device trusts root.json.")
        root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
    except (RepositoryError, ValueError) as error:
        raise TrustError(f"This is no root signed by its own keys (--root): {error}.") from error
    pinned = state_dir / _PINNED
    try:
        if not pinned.exists():
            with only_one(state_dir / ".lock", "pinning a root", wait=True):
                if not pinned.exists():
                    put_file(pinned, data)
        if pinned.read_bytes() != data:
            raise TrustError(
                f"{state_dir} trusts another root already. Newer roots are fetched by themselves; "
                f"for another publisher choose another folder."
            )
    except OSError as error:
        raise DeliveryError(f"{state_dir} cannot be written: {error.strerror}.") from error
    return digest


def signed_source(
    server_url: str,
    folder: Path,
    *,
    token: str | None = None,
    root: Path | None = None,
    root_sha256: str | None = None,
) -> TufSource:
    """Return the releases of a server, checked against the root that a device's folder trusts.

    Args:
        server_url: of whatever serves a store's files.
        folder: of the device; what it trusts is kept in `trust` in it.
        token: of the device; None for open servers.
        root: first root metadata, from the publisher; pinned if this device has none yet.
        root_sha256: what the key ceremony printed, to compare with.

    Raises:
        DeliveryError: the root cannot be read, or the folder cannot be written.
        TrustError: no root, not the expected one, or another one than is pinned already.
        ConfigError: a token or an address that cannot be one.
    """
    client, server = http_client(token, server_url), checked_server(server_url)
    trusted = folder / "trust"
    if root is not None:
        try:
            data = root.read_bytes()
        except OSError as error:
            raise DeliveryError(
                f"{root} cannot be read: {error.strerror}. It is metadata/root.json of the "
                f"publisher's store: copy it to this device, once."
            ) from error
        trust_root(trusted, data, root_sha256)
    return TufSource(f"{server}metadata/", f"{server}targets/", trusted, HttpFetcher(client))


@dataclass(frozen=True)
class TufSource:
    """Releases by The Update Framework. One process at a time uses a state folder.

    Attributes:
        metadata_url: of signed metadata.
        targets_url: of manifests.
        state_dir: what the device trusts, with the root that `trust_root` pinned.
        fetcher: gets files.
        now: the clock.
    """

    metadata_url: str
    targets_url: str
    state_dir: Path
    fetcher: FetcherInterface
    now: Callable[[], datetime] = utc_now

    def manifest(self, name: str) -> Manifest:
        """Return the newest release, after a refresh of all metadata.

        Raises:
            DeliveryError: no such adapter, no network, or a disk that cannot be written.
            TrustError: no pinned root, or anything that must not be trusted, named.
        """
        path, watched = target_path(name), _Watched(self.fetcher)
        folder, file = self.state_dir / "metadata", self.state_dir / "manifests" / f"{name}.json"
        pinned = self._pinned()
        with only_one(self.state_dir / ".lock", "refreshing"), _refusals(watched):
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob("tmp*"):  # where a refresh was killed while it wrote
                left.unlink()
            updater = Updater(
                str(folder), self.metadata_url, target_base_url=self.targets_url, fetcher=watched,
                config=_LIMITS, bootstrap=pinned,
            )  # fmt: skip
            trusted = _trusted_set(updater)
            trusted.reference_time = self.now()
            updater.refresh()
            info = updater.get_targetinfo(path)
            if info is None:
                raise DeliveryError(f"The publisher has no adapter {name!r}; check the name.")
            if info.length > LARGEST_MANIFEST:
                raise TrustError(
                    f"The manifest of {name} is signed with {info.length:,} bytes, more than the "
                    f"{LARGEST_MANIFEST:,} that a device reads; it was not fetched."
                )
            here = updater.find_cached_target(info, str(file))
            here = here or updater.download_target(info, str(file))
            manifest = Manifest.from_bytes(Path(here).read_bytes())
            if manifest.name != name:
                raise TrustError(
                    f"The manifest signed as {name} is of {manifest.name}: swapped by the "
                    f"publisher."
                )
            keyids = sorted(trusted.root.roles["targets"].keyids)
            SeenReleases(self.state_dir / _SEEN).check(manifest, keyids)
            return manifest

    def _pinned(self) -> bytes:
        try:
            return (self.state_dir / _PINNED).read_bytes()
        except OSError as error:
            raise TrustError(
                f"{self.state_dir} has no trusted root, and one from the server would prove "
                f"nothing: give the publisher's root.json with --root (trust_root), once."
            ) from error


def _trusted_set(updater: Updater) -> Any:
    """Return the metadata that an updater has verified so far.

    Private in python-tuf, which has no public way to set the clock that expiry is judged by, nor to
    read the root that a refresh ended with.
    """
    return updater._trusted_set  # noqa: SLF001


@dataclass(frozen=True)
class SeenReleases:
    """The newest release of each adapter that a device has seen, in a file; it never goes back.

    Attributes:
        path: of the file; made with the first release.
    """

    path: Path

    def check(self, manifest: Manifest, keyids: Sequence[str] = ()) -> None:
        """Refuse what is older than, or not the same as, what was seen; remember what is newer.

        Args:
            manifest: the release that is offered.
            keyids: of the keys that may sign releases. With other keys the count begins anew,
                because a thief of the old ones may have driven it up.

        Raises:
            TrustError: an older release, another one under the same version, or a damaged file.
            OSError: the disk does not take the file.
        """
        seen = self._read()
        known = seen if seen["keys"] == list(keyids) else {"versions": {}, "sha256": {}}
        name, version = manifest.name, manifest.version
        newest, known_sha256 = known["versions"].get(name, 0), known["sha256"].get(name)
        alike = replace(manifest, older=())  # which older versions it allows may change
        sha256 = hashlib.sha256(alike.to_bytes()).hexdigest()
        if version < newest:
            raise TrustError(
                f"Version {version} of {name} is older than version {newest}, which this device "
                f"has seen (rollback): a release never goes back. To bring older weights back, "
                f"publish them as a new version."
            )
        if version == newest and known_sha256 is not None and sha256 != known_sha256:
            raise TrustError(
                f"Version {version} of {name} is not the one that this device has seen before. "
                f"Ask whoever published: a change is a new version."
            )
        if (version, sha256) != (newest, known_sha256):
            plain = {
                "keys": list(keyids),
                "versions": {**known["versions"], name: version},
                "sha256": {**known["sha256"], name: sha256},
            }
            put_file(self.path, json.dumps(plain).encode())

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {"keys": [], "versions": {}, "sha256": {}}
        try:
            raw = json.loads(self.path.read_bytes())
            return {
                "keys": list(cast("list[str]", raw["keys"])),
                "versions": {str(k): int(v) for k, v in raw["versions"].items()},
                "sha256": {str(k): str(v) for k, v in raw.get("sha256", {}).items()},
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrustError(
                f"{self.path} is damaged, so that a rollback could not be noticed. Remove it only "
                f"if nobody else could have written to this device."
            ) from error


_KEPT = "What the device already has stays in use."


class _Watched(FetcherInterface):
    """A fetcher that remembers the file that was asked for last, for the message of a refusal."""

    def __init__(self, inner: FetcherInterface) -> None:
        self.inner = inner
        self.last = "the pinned root"

    def _fetch(self, url: str) -> Iterator[bytes]:
        self.last = url.rpartition("/")[2]
        return self.inner.fetch(url)


@contextmanager
def _refusals(watched: _Watched) -> Iterator[None]:
    """Raise errors of The Update Framework, the network and the disk as errors of ours.

    Raises:
        DeliveryError: network or disk failed.
        TrustError: something must not be trusted.
    """
    try:
        yield
    except DownloadError as error:
        raise _of_download(error, watched.last) from error
    except RepositoryError as error:
        raise TrustError(f"{_of_repository(error, watched.last)} {_KEPT}") from error
    except OSError as error:
        raise DeliveryError(
            f"The device's folder cannot be written ({error}); check space and permissions."
        ) from error


def _of_download(error: DownloadError, file: str) -> DeliveryError:
    match error:
        case DownloadLengthMismatchError():
            return TrustError(
                f"{file} is longer than it may be, so reading was stopped (endless data, or "
                f"tampered with: {error}). {_KEPT}"
            )
        case SlowRetrievalError():
            return UnavailableError(f"The server fell silent ({error}). {_KEPT} Try again later.")
        case DownloadHTTPError() if may_pass(error.status_code):
            return UnavailableError(f"The server cannot answer now ({error}). {_KEPT} Try later.")
        case DownloadHTTPError() if error.status_code == HTTPStatus.UNAUTHORIZED:
            where, _, why = str(error).partition(": HTTP status 401: ")
            return DeliveryError(f"The server refused: {why}. {_KEPT} ({where}, status 401)")
        case DownloadHTTPError():
            absent = error.status_code == HTTPStatus.NOT_FOUND
            lacks = "does not have" if absent else "did not hand out"
            return DeliveryError(
                f"The server {lacks} {file} ({error}). {_KEPT} If that lasts, tell its operator."
            )
    return UnavailableError(f"{file} could not be fetched ({error}). {_KEPT} Try again later.")


def _of_repository(error: RepositoryError, file: str) -> str:
    match error:
        case ExpiredMetadataError():
            return (
                f"The signature has expired ({error}): someone may be holding back newer releases "
                f"(freeze attack), the publisher has not run rankcast keys refresh, or this "
                f"device's clock is wrong."
            )
        case UnsignedMetadataError():
            return (
                f"{file} has a wrong signature: too few of the keys that this device trusts have "
                f"signed it ({error})."
            )
        case BadVersionNumberError():
            return _of_version(error, file)
        case LengthOrHashMismatchError() if _NUMBERED.fullmatch(file):
            return (
                f"{file} is not the one that was signed for: taken from another release "
                f"(mix-and-match), or tampered with ({error})."
            )
    return f"{file} was tampered with or damaged on the way ({error}). Try again."


def _of_version(error: Exception, file: str) -> str:
    if "root" in file:
        return f"{file} is not the next root ({error}): rolled back or misplaced."
    if "targets" in file or ".bin-" in file:
        return f"{file} is of another release than the snapshot (mix-and-match: {error})."
    return (
        f"{file} would take this device back behind what it has seen (rollback: {error}). If the "
        f"store was restored from an old copy, publish again with higher versions."
    )
