"""Read the signed state of a store, and write a new one.

The present state is what `timestamp.json` points to. Files with a version in their name are never
overwritten, so that a device or a cache in the middle of a refresh finds what it was promised, and
whatever a crash left behind is skipped (The Update Framework 1.0.34, section 6).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from rankcast.errors import DeliveryError, TrustError
from rankcast.files import only_one, put_file
from rankcast.release.keys import Role
from rankcast.release.store import Store

_VERSIONED = re.compile(r"([0-9]{1,15})\.(root|targets|snapshot)\.json")
_COMPACT = JSONSerializer(compact=True)
Signers = Mapping[Role, Sequence[CryptoSigner]]


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """For how long signatures are valid: the longest that a device can be kept on old metadata.

    Attributes:
        root: until the offline keys have to be fetched again.
        targets: until releases have to be signed again.
        snapshot: until `rankcast keys refresh` has to sign the list of metadata again.
        timestamp: until it has to run again.
    """

    root: timedelta = timedelta(days=365)
    targets: timedelta = timedelta(days=90)
    snapshot: timedelta = timedelta(days=7)
    timestamp: timedelta = timedelta(days=1)

    def end(self, role: Role, now: datetime) -> datetime:
        """Return when a signature made now expires.

        Raises:
            DeliveryError: a time without a zone.
        """
        if now.tzinfo is None:
            raise DeliveryError("Signing needs a time with its zone; use datetime.now(UTC).")
        return now.astimezone(UTC) + cast("timedelta", getattr(self, role))


@dataclass(frozen=True)
class Signing:
    """The keys and the time of signatures.

    Attributes:
        signers: of timestamp; of snapshot where it or targets changes; of targets likewise.
        now: the time.
        lifetimes: of the signatures.
    """

    signers: Signers
    now: datetime
    lifetimes: Lifetimes


@dataclass(frozen=True)
class Repository:
    """The metadata of a store, verified by the newest root.

    Attributes:
        root: who may sign what.
        targets: which manifests there are.
        snapshot: which targets are active.
        timestamp: which snapshot is.
    """

    root: Metadata[Root]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]

    @classmethod
    def load(cls, store: Store) -> Repository:
        """Read the present state. Expiry is left to who asks, since renewal has to be possible.

        Raises:
            DeliveryError: no metadata there.
            TrustError: metadata that its keys have not signed, or files of different states.
        """
        root = _newest_root(store)
        try:
            timestamp = _verified(Timestamp, _read(store, "timestamp.json"), root, "timestamp")
            named = timestamp.signed.snapshot_meta
            data = _read(store, f"{named.version}.snapshot.json")
            named.verify_length_and_hashes(data)
            snapshot = _verified(Snapshot, data, root, "snapshot")
            named = snapshot.signed.meta["targets.json"]
            data = _read(store, f"{named.version}.targets.json")
            named.verify_length_and_hashes(data)
            targets = _verified(Targets, data, root, "targets")
        except (RepositoryError, KeyError) as error:
            raise TrustError(
                f"The metadata in {store.metadata} were changed by someone without the keys "
                f"({error}). Nothing was signed; restore them from a copy."
            ) from error
        return cls(root, targets, snapshot, timestamp)

    def write(self, store: Store, signing: Signing) -> Repository:
        """Sign the state anew for each role that has signers, make it active and return it.

        The timestamp comes last: before it the old state is active, after it the new one.
        """
        targets, snapshot = copy.deepcopy(self.targets), copy.deepcopy(self.snapshot)
        timestamp = copy.deepcopy(self.timestamp)
        if "targets" in signing.signers:
            data = _resigned(store, targets, "targets", signing)
            version = targets.signed.version
            snapshot.signed.meta["targets.json"] = MetaFile.from_data(version, data, ["sha256"])
        if "snapshot" in signing.signers:
            data = _resigned(store, snapshot, "snapshot", signing)
            version = snapshot.signed.version
            timestamp.signed.snapshot_meta = MetaFile.from_data(version, data, ["sha256"])
        _resigned(store, timestamp, "timestamp", signing)
        return Repository(self.root, targets, snapshot, timestamp)


@contextmanager
def changing(store: Store) -> Iterator[None]:
    """Change a store alone, in an order that leaves a release active whatever fails.

    Raises:
        DeliveryError: another process changes it, or it cannot be written.
    """
    with only_one(store.root / ".lock", "publishing"):
        try:
            yield
        except OSError as error:
            raise DeliveryError(
                f"The store {store.root} cannot be written ({error}); what was active before is "
                f"still active. Check space and permissions, then do the same again."
            ) from error


def signed_bytes(metadata: Metadata[Any], signers: Sequence[CryptoSigner]) -> bytes:
    """Sign metadata with every key given and return the file."""
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes(_COMPACT)


def write_root(store: Store, root: Metadata[Root], signers: Sequence[CryptoSigner]) -> bytes:
    """Make a root active and return its file."""
    data = signed_bytes(root, signers)
    put_file(store.metadata / f"{root.signed.version}.root.json", data)
    put_file(store.metadata / "root.json", data)
    return data


def versions_of(store: Store, role: Role) -> list[int]:
    """Return the versions of a role's files, including what a crash left behind; ascending."""
    matches = (_VERSIONED.fullmatch(path.name) for path in store.metadata.glob("*.json"))
    return sorted(int(m[1]) for m in matches if m is not None and m[2] == role)


def _resigned(store: Store, metadata: Metadata[Any], role: Role, signing: Signing) -> bytes:
    """Give metadata their next version and expiry, sign and write them."""
    signed = cast("Signed", metadata.signed)
    signed.version = max([signed.version, *versions_of(store, role)]) + 1
    signed.expires = signing.lifetimes.end(role, signing.now)
    data = signed_bytes(metadata, signing.signers[role])
    name = "timestamp.json" if role == "timestamp" else f"{signed.version}.{role}.json"
    put_file(store.metadata / name, data)
    return data


def _newest_root(store: Store) -> Metadata[Root]:
    """Return the newest root after following the chain that devices follow."""
    versions = versions_of(store, "root")
    if not versions:
        raise DeliveryError(
            f"{store.root} has no signed metadata: make keys with rankcast keys init --keys DIR "
            f"--store {store.root}."
        )
    newest: Metadata[Root] | None = None
    for version in versions:
        try:
            root = _verified(Root, _read(store, f"{version}.root.json"), newest, "root")
            root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
        except (RepositoryError, ValueError) as error:
            raise TrustError(
                f"{version}.root.json in {store.metadata} is not signed by the keys of the root "
                f"before it and its own ({error}); restore it from a copy."
            ) from error
        if root.signed.version != version:
            raise TrustError(f"{version}.root.json in {store.metadata} is another version's file.")
        newest = root
    assert newest is not None
    return newest


def _verified(
    kind: type[Signed], data: bytes, root: Metadata[Root] | None, role: Role
) -> Metadata[Any]:
    metadata: Metadata[Any] = Metadata.from_bytes(data)
    if not isinstance(metadata.signed, kind):
        raise RepositoryError(f"{role}.json says that it is {metadata.signed.type}")
    if root is not None:
        root.signed.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    return metadata


def _read(store: Store, name: str) -> bytes:
    try:
        return (store.metadata / name).read_bytes()
    except OSError as error:
        raise DeliveryError(
            f"{store.metadata / name} cannot be read ({error.strerror}): restore it from a copy."
        ) from error
