"""From `.rcast` files to a signed release that devices may fetch.

What is published is in force from the moment that `timestamp.json` is replaced, which comes last:
a crash before it leaves the release before, a crash after it the new one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from tuf.api.metadata import TargetFile

from rankcast.codec.container import Container, header_bytes
from rankcast.delivery.keyring import KeyFolder, Role
from rankcast.delivery.manifest import LARGEST_MANIFEST, Choice, Ladder, Manifest
from rankcast.delivery.repository import Lifetimes, Repository, Signers, Signing, changing
from rankcast.delivery.signing import LIFETIMES, check_outside, check_root
from rankcast.delivery.store import Store, target_path
from rankcast.errors import DeliveryError
from rankcast.files import put_file

_SIGNING: tuple[Role, ...] = ("targets", "snapshot", "timestamp")


@dataclass(frozen=True, slots=True)
class Published:
    """What the signed list of releases says of an adapter.

    Attributes:
        version: of its release.
        base_fingerprint: of the model that it adapts.
        sha256: of its manifest.
    """

    version: int
    base_fingerprint: str
    sha256: str


def published(repository: Repository, name: str) -> Published | None:
    """Return the release in force; None if the adapter was never published.

    Raises:
        DeliveryError: no name of an adapter, or a list that another program signed.
    """
    target = repository.targets.signed.targets.get(target_path(name))
    if target is None:
        return None
    try:
        said: Any = target.custom
        return Published(int(said["version"]), str(said["base"]), target.hashes["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise DeliveryError(
            f"The signed list says nothing of the version of {name} ({error!r}); it was not "
            f"written by rankcast publish."
        ) from error


def publish(
    source: Sequence[Container],
    name: str,
    store: Store,
    keys: KeyFolder,
    now: datetime,
    *,
    choices: Sequence[Choice] = (),
    allow_new_base: bool = False,
    lifetimes: Lifetimes = LIFETIMES,
) -> Manifest:
    """Put a release in force; publishing the same again changes nothing.

    Args:
        source: whole files of the same fine-tuning; the first is the one to prefer.
        name: of the adapter.
        store: where to.
        keys: of targets, snapshot and timestamp.
        now: the time.
        choices: which of the files a policy chose for which link; none for the solver.
        allow_new_base: accept another base model than that of the release before.
        lifetimes: of the signatures.

    Returns:
        The release in force.

    Raises:
        DeliveryError: files that do not belong together, another base model, another publisher at
            work, keys missing, the root expired, or a store that cannot be written.
        TrustError: the store's metadata were changed by someone without the keys.
    """
    check_outside(keys, store)
    first = _manifest(source, name, tuple(choices))
    if not store.metadata.is_dir():
        Repository.load(store)  # says how to begin
    with changing(store):
        repository = Repository.load(store)
        check_root(repository, now)
        root = repository.root.signed
        signers: Signers = {role: keys.signers(root, role) for role in _SIGNING}
        before = published(repository, name)
        manifest = replace(first, version=before.version) if before else first
        if before and before.base_fingerprint != manifest.base.fingerprint and not allow_new_base:
            raise DeliveryError(
                f"{name} is for the base model {before.base_fingerprint[:16]}…, and these files "
                f"are for {str(manifest.base.fingerprint)[:16]}… ({manifest.base.name}). Publish "
                f"them under another name, or with --allow-new-base if every device changes over."
            )
        signing = Signing(signers, now, lifetimes)
        return _put_in_force(source, manifest, store, repository, signing)


def check_publisher(store: Store, keys: KeyFolder, now: datetime) -> None:
    """Raise what `publish` would raise of store and keys, before any work is done.

    Raises:
        DeliveryError: no store, keys missing, or the root expired.
        TrustError: the store's metadata were changed by someone without the keys.
    """
    check_outside(keys, store)
    repository = Repository.load(store)
    check_root(repository, now)
    for role in _SIGNING:
        keys.signers(repository.root.signed, role)


def _put_in_force(
    source: Sequence[Container],
    manifest: Manifest,
    store: Store,
    repository: Repository,
    signing: Signing,
) -> Manifest:
    """Write blobs, manifest and metadata, each before what names it."""
    for container in source:
        for data in (header_bytes(container.header), *container.chunks):
            store.put(data)
    path = target_path(manifest.name)
    before = repository.targets.signed.targets.get(path)
    unchanged = before is not None and _target(manifest).hashes == before.hashes
    if before is not None and not unchanged:
        manifest = replace(manifest, version=manifest.version + 1)
    target = _target(manifest)
    file = store.targets / target.get_prefixed_paths()[0]
    file.parent.mkdir(parents=True, exist_ok=True)
    put_file(file, manifest.to_bytes())
    if not unchanged:
        targets = copy.deepcopy(repository.targets)
        targets.signed.targets[path] = target
        replace(repository, targets=targets).write(store, signing)
    return manifest


def _manifest(source: Sequence[Container], name: str, choices: tuple[Choice, ...]) -> Manifest:
    """Return the release of some files, refusing those that do not belong together."""
    if not source:
        raise DeliveryError("A release has at least one file; name what to publish.")
    head = source[0].header
    for container in source[1:]:
        found = container.header
        if found.base.fingerprint != head.base.fingerprint:
            raise DeliveryError(
                f"The files are for different base models, {head.base.name} "
                f"({str(head.base.fingerprint)[:16]}…) and {found.base.name} "
                f"({str(found.base.fingerprint)[:16]}…); publish each under a name of its own."
            )
        if dict(found.task) != dict(head.task):
            raise DeliveryError(
                f"The files are for different tasks, {dict(head.task)} and {dict(found.task)}; "
                f"publish each under a name of its own."
            )
    ladders = tuple(Ladder.of(container) for container in source)
    planner = "policy" if choices else "solver"
    manifest = Manifest(name, 1, head.base, ladders, dict(head.task), planner, choices)
    size = len(manifest.to_bytes())
    if size > LARGEST_MANIFEST - 32:  # a longer version number fits
        raise DeliveryError(
            f"The manifest would have {size:,} bytes, more than devices read; publish fewer files."
        )
    Manifest.from_bytes(manifest.to_bytes())  # what devices would refuse is refused here
    return manifest


def _target(manifest: Manifest) -> TargetFile:
    """Return the entry of a manifest in the signed list."""
    target = TargetFile.from_data(target_path(manifest.name), manifest.to_bytes(), ["sha256"])
    said = {"version": manifest.version, "base": manifest.base.fingerprint}
    target.unrecognized_fields["custom"] = said
    return target
