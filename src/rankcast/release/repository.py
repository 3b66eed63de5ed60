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
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from rankcast.errors import DeliveryError, TrustError
from rankcast.files import only_one, put_file
from rankcast.release.bins import Divide, bin_names, bin_of, bits_of, delegations, wanted_bits
from rankcast.release.keys import Role
from rankcast.release.store import Store

_VERSIONED = re.compile(r"([0-9]{1,15})\.(root|targets|snapshot|bin-[0-9a-f]{2})\.json")
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
        renew: whether lists of releases that did not change are signed anew, too; if not, those
            alone whose half life is over.
    """

    signers: Signers
    now: datetime
    lifetimes: Lifetimes
    renew: bool = True

    def has_to_sign(self, listed: Metadata[Targets]) -> bool:
        """Return whether a list has to be signed: one that changed has no signatures."""
        is_due = listed.signed.expires - self.now < self.lifetimes.targets / 2
        return self.renew or is_due or not listed.signatures


@dataclass(frozen=True)
class Repository:
    """The metadata of a store, verified by the newest root.

    Attributes:
        root: who may sign what.
        targets: which manifests there are, or which bins.
        snapshot: which targets are active.
        timestamp: which snapshot is.
        bins: which manifests there are, by the name of the bin; none where `targets` lists them.
    """

    root: Metadata[Root]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]
    bins: Mapping[str, Metadata[Targets]] = field(default_factory=dict)

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
            bins = _read_bins(store, snapshot.signed, targets.signed)
        except (RepositoryError, KeyError, ValueError) as error:
            raise TrustError(
                f"The metadata in {store.metadata} were changed by someone without the keys "
                f"({error}). Nothing was signed; restore them from a copy."
            ) from error
        return cls(root, targets, snapshot, timestamp, bins)

    def target(self, path: str) -> TargetFile | None:
        """Return the entry of a manifest; None if no list has it."""
        name = bin_of(self.targets.signed, path)
        listed = self.targets if name is None else self.bins[name]
        return listed.signed.targets.get(path)

    def with_targets(
        self, entries: Mapping[str, TargetFile], divide: Divide = "auto"
    ) -> Repository:
        """Return the state with new entries; lists that changed have no signatures until `write`.

        Args:
            entries: by path.
            divide: whether a list that is whole becomes bins.
        """
        whole = self.targets.signed
        listed = {
            p: t for m in (self.targets, *self.bins.values()) for p, t in m.signed.targets.items()
        }
        listed |= entries
        now = bits_of(whole)
        bits = wanted_bits(len(listed), now, divide)
        if not bits:
            return replace(self, targets=_unsigned(self.targets, listed))
        if bits == now:
            return replace(self, bins=_filled(self.bins, whole, entries))
        targets = _unsigned(self.targets, {})
        targets.signed.delegations = delegations(self.root.signed, bits)
        empty = {name: _emptied(self.bins.get(name)) for name in bin_names(targets.signed)}
        return replace(self, targets=targets, bins=_filled(empty, targets.signed, listed))

    def write(self, store: Store, signing: Signing, root: Root | None = None) -> Repository:
        """Sign the state anew for each role that has signers, make it active and return it.

        The timestamp comes last: before it the old state is active, after it the new one.

        Args:
            store: where to.
            signing: the keys and the time.
            root: whose keys of targets sign the bins; None for the present one.
        """
        lists, snapshot = {"targets": self.targets, **self.bins}, copy.deepcopy(self.snapshot)
        timestamp = copy.deepcopy(self.timestamp)
        if "targets" in signing.signers:
            lists = self._signed_lists(store, signing, root or self.root.signed, snapshot.signed)
        if "snapshot" in signing.signers:
            data = _resigned(store, snapshot, "snapshot", signing)
            version = snapshot.signed.version
            timestamp.signed.snapshot_meta = MetaFile.from_data(version, data, ["sha256"])
        _resigned(store, timestamp, "timestamp", signing)
        return Repository(self.root, lists.pop("targets"), snapshot, timestamp, lists)

    def _signed_lists(
        self, store: Store, signing: Signing, root: Root, snapshot: Snapshot
    ) -> dict[str, Metadata[Targets]]:
        """Sign the lists that have to be, write them, and name them in a snapshot.

        Bins are signed by the keys that `root` trusts, even while `targets.json` carries the
        signature of a key that is being replaced: a stolen key is not trusted with a bin again.
        """
        targets, bits = self.targets, bits_of(self.targets.signed)
        if bits and targets.signed.delegations != delegations(root, bits):
            targets = _unsigned(targets, targets.signed.targets)
            targets.signed.delegations = delegations(root, bits)
            signing = replace(signing, renew=True)
        lists = {**self.bins, "targets": targets}
        trusted = root.roles["targets"].keyids
        of_bins = [s for s in signing.signers["targets"] if s.public_key.keyid in trusted]
        for name, listed in lists.items():
            if not signing.has_to_sign(listed):
                continue
            lists[name] = metadata = copy.deepcopy(listed)
            signers = signing.signers["targets"] if name == "targets" else of_bins
            data = _signed(
                store, metadata, name, signing.lifetimes.end("targets", signing.now), signers
            )
            version = metadata.signed.version
            snapshot.meta[f"{name}.json"] = MetaFile.from_data(version, data, ["sha256"])
        return lists


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


def versions_of(store: Store, role: str) -> list[int]:
    """Return the versions of a role's or bin's files, with what a crash left behind; ascending."""
    matches = (_VERSIONED.fullmatch(path.name) for path in store.metadata.glob("*.json"))
    return sorted(int(m[1]) for m in matches if m is not None and m[2] == role)


def _resigned(store: Store, metadata: Metadata[Any], role: Role, signing: Signing) -> bytes:
    """Give the metadata of a role their next version and expiry, sign and write them."""
    end = signing.lifetimes.end(role, signing.now)
    return _signed(store, metadata, role, end, signing.signers[role])


def _signed(
    store: Store,
    metadata: Metadata[Any],
    role: str,
    expires: datetime,
    signers: Sequence[CryptoSigner],
) -> bytes:
    """Give the metadata of a role or a bin their next version, sign and write them."""
    signed = cast("Signed", metadata.signed)
    signed.version = max([signed.version, *versions_of(store, role)]) + 1
    signed.expires = expires
    data = signed_bytes(metadata, signers)
    name = "timestamp.json" if role == "timestamp" else f"{signed.version}.{role}.json"
    put_file(store.metadata / name, data)
    return data


def _unsigned(listed: Metadata[Targets], entries: Mapping[str, TargetFile]) -> Metadata[Targets]:
    """Return a list with other entries, without signatures."""
    fresh = Targets(
        listed.signed.version or None,
        listed.signed.spec_version,
        listed.signed.expires,
        dict(entries),
        listed.signed.delegations,
        listed.signed.unrecognized_fields,
    )
    fresh.version = listed.signed.version
    return Metadata(fresh)


def _emptied(before: Metadata[Targets] | None) -> Metadata[Targets]:
    """Return an empty bin that comes after another; `write` counts its version on."""
    metadata = Metadata(Targets())
    metadata.signed.version = 0 if before is None else before.signed.version
    return metadata


def _filled(
    bins: Mapping[str, Metadata[Targets]], whole: Targets, entries: Mapping[str, TargetFile]
) -> dict[str, Metadata[Targets]]:
    """Return bins with further entries, each in its own."""
    by_bin: dict[str, dict[str, TargetFile]] = {}
    for path, target in entries.items():
        by_bin.setdefault(str(bin_of(whole, path)), {})[path] = target
    changed = {
        name: _unsigned(bins[name], {**bins[name].signed.targets, **those})
        for name, those in by_bin.items()
    }
    return {**bins, **changed}


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


def _read_bins(store: Store, snapshot: Snapshot, targets: Targets) -> dict[str, Metadata[Targets]]:
    """Return the bins that a snapshot names, signed by the keys that `targets.json` names.

    Raises:
        RepositoryError: one that is not.
        KeyError: one that the snapshot does not name.
        ValueError: a delegation that is not ours.
    """
    bits_of(targets)
    bins = {}
    for name in bin_names(targets):
        named = snapshot.meta[f"{name}.json"]
        data = _read(store, f"{named.version}.{name}.json")
        named.verify_length_and_hashes(data)
        metadata = _verified(Targets, data, None, "targets")
        targets.verify_delegate(name, metadata.signed_bytes, metadata.signatures)
        bins[name] = metadata
    return bins


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
