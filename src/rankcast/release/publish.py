"""Publish `.rcast` files as a signed release that devices may fetch.

A release is active from the moment that `timestamp.json` is replaced, which comes last: a crash
before it leaves the old release, a crash after it the new one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from tuf.api.metadata import TargetFile

from rankcast.codec.container import Container
from rankcast.codec.header import BaseModel, header_bytes, same_base
from rankcast.errors import DeliveryError
from rankcast.files import put_file
from rankcast.naming import public_config, public_name
from rankcast.release.bins import Divide
from rankcast.release.ceremony import LIFETIMES, check_outside, check_root
from rankcast.release.keys import KeyFolder, Role
from rankcast.release.manifest import LARGEST_MANIFEST, Choice, File, Manifest, Older
from rankcast.release.proof import Proof
from rankcast.release.repository import Lifetimes, Repository, Signers, Signing, changing
from rankcast.release.runs_on import BaseCopy
from rankcast.release.store import Store, target_path
from rankcast.release.updates import released, with_updates

KEPT_OLDER = 4
"""Versions that a release allows devices to go back to, unless others are named."""
_SIGNING: tuple[Role, ...] = ("targets", "snapshot", "timestamp")


@dataclass(frozen=True, slots=True)
class Published:
    """An adapter's entry in the signed list of releases.

    Attributes:
        version: of its release.
        base_fingerprint: of the model that it adapts.
        sha256: of its manifest.
    """

    version: int
    base_fingerprint: str
    sha256: str


def published(repository: Repository, name: str) -> Published | None:
    """Return the active release; None if the adapter was never published.

    Raises:
        DeliveryError: no name of an adapter, or a list that another program signed.
    """
    target = repository.target(target_path(name))
    if target is None:
        return None
    try:
        custom: Any = target.custom
        return Published(int(custom["version"]), str(custom["base"]), target.hashes["sha256"])
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
    update_from: Sequence[int] | None = None,
    runs_on: Sequence[BaseCopy] | None = None,
    proof: Proof | None = None,
    divide: Divide = "auto",
    older: Sequence[int] | None = None,
    lifetimes: Lifetimes = LIFETIMES,
) -> Manifest:
    """Make a release active; publishing the same again changes nothing.

    Args:
        source: whole files of the same training; the first is the one to prefer.
        name: of the adapter.
        store: where to.
        keys: of targets, snapshot and timestamp.
        now: the time.
        choices: which of the files a policy chose for which link; none for the solver.
        allow_new_base: accept another base model than that of the release before.
        update_from: versions from which devices may be updated by the difference; None for the
            active one, none to have every device fetch whole files.
        runs_on: copies of the base model that devices may have; None for those of the active
            release, if it is of the same base model.
        proof: what the adapter changes; None keeps that of the active release if its files are the
            same.
        divide: whether a list of releases that is whole becomes bins; see `bins`.
        older: versions that devices may go back to, as far as the active release is or names them;
            None for the newest `KEPT_OLDER`.
        lifetimes: of the signatures.

    Returns:
        The active release.

    Raises:
        DeliveryError: files that do not belong together, another base model, another publisher at
            work, keys missing, the root expired, or a store that cannot be written.
        TrustError: the store's metadata were changed by someone without the keys.
    """
    check_outside(keys, store)
    source = [_public(container) for container in source]
    first = _manifest(source, name, tuple(choices))
    first = _checked(replace(first, runs_on=tuple(runs_on or ()), proof=proof))
    if not store.metadata.is_dir():
        Repository.load(store)  # says how to begin
    with changing(store):
        repository, signers = _open(store, keys, now)
        before = published(repository, name)
        manifest = replace(first, version=before.version) if before else first
        known = BaseModel(manifest.base.name, before.base_fingerprint if before else None)
        same = same_base(known.fingerprint, manifest.base.fingerprint)
        if before and not same and not allow_new_base:
            raise _of_another_base(name, before, manifest.base)
        if same:
            manifest = replace(manifest, base=_whole([manifest.base, known]))
        active = _active(store, name, before)
        if active is None:  # lost or damaged: the same files repair it
            unchanged = before is not None and before.sha256 == _target(manifest).hashes["sha256"]
        else:
            manifest = _with_kept(manifest, active, copies=runs_on is None and same)
            alike = replace(manifest, base=known) if same else manifest
            unchanged = active.without_updates().to_bytes() == alike.to_bytes()
        files = [(header_bytes(c.header), *c.chunks) for c in source]
        for data in (data for file in files for data in file):
            store.put(data)
        if unchanged:
            kept = active or manifest
            manifest = kept if older is None else replace(kept, older=_kept(kept.older, older))
            unchanged = manifest == kept
        elif before:
            manifest = _successor(store, manifest, before.version, active, older)
            bases = [] if active is None else [active]
            if update_from is not None:
                bases = released(store, name, update_from)
            manifest = with_updates(store, manifest, files, bases)
        target = _target(manifest)
        put_file(store.targets / target.get_prefixed_paths()[0], manifest.to_bytes())
        after = repository.with_targets({target.path: target}, divide)
        if not unchanged or len(after.bins) != len(repository.bins):
            after.write(store, Signing(signers, now, lifetimes, renew=False))
        return manifest


def _with_kept(manifest: Manifest, active: Manifest, *, copies: bool) -> Manifest:
    """Return a manifest with what the active release says of the same base model and files."""
    if copies:
        manifest = replace(manifest, runs_on=active.runs_on)
    if manifest.proof is None and active.without_updates().files == manifest.files:
        manifest = replace(manifest, proof=active.proof)
    return _checked(replace(manifest, older=active.older))


def _successor(
    store: Store,
    manifest: Manifest,
    before: int,
    active: Manifest | None,
    wanted: Sequence[int] | None,
) -> Manifest:
    """Return a manifest under the next version, with the versions that devices may go back to."""
    manifest = replace(manifest, version=before + 1)
    if active is None:
        return manifest
    known = (Older(active.version, store.put(active.listed())), *active.older)
    listed = known[:KEPT_OLDER] if wanted is None else _kept(known, wanted)
    return _checked(replace(manifest, older=listed))


def _kept(known: tuple[Older, ...], wanted: Sequence[int]) -> tuple[Older, ...]:
    return tuple(older for older in known if older.version in wanted)


def _of_another_base(name: str, before: Published, base: BaseModel) -> DeliveryError:
    """Word the refusal of files for another base model than the active release's."""
    return DeliveryError(
        f"{name} is for the base model {before.base_fingerprint[:16]}…, and these files are for "
        f"{str(base.fingerprint)[:16]}… ({base.name}). Publish them under another name, or with "
        f"--allow-new-base if every device changes over."
    )


def _active(store: Store, name: str, entry: Published | None) -> Manifest | None:
    """Return the active release; None if there is none, or its manifest was lost or damaged."""
    if entry is None:
        return None
    try:
        data = store.manifest_path(name, entry.sha256).read_bytes()
        is_whole = hashlib.sha256(data).hexdigest() == entry.sha256
        return Manifest.from_bytes(data) if is_whole else None
    except (OSError, DeliveryError):
        return None


def check_publisher(store: Store, keys: KeyFolder, now: datetime) -> None:
    """Check store and keys as `publish` does, before minutes of work are done.

    Raises:
        DeliveryError: no store, keys missing, or the root expired.
        TrustError: the store's metadata were changed by someone without the keys.
    """
    check_outside(keys, store)
    _open(store, keys, now)


def _open(store: Store, keys: KeyFolder, now: datetime) -> tuple[Repository, Signers]:
    """Return the state of a store, and the signers of a release."""
    repository = Repository.load(store)
    check_root(repository, now)
    root = repository.root.signed
    return repository, {role: keys.signers(root, role) for role in _SIGNING}


def _public(container: Container) -> Container:
    """Return a file without folders of the machine that packed it, as earlier versions wrote."""
    header = container.header
    base = replace(header.base, name=public_name(header.base.name))
    return replace(
        container, header=replace(header, base=base, config=public_config(header.config))
    )


def _manifest(source: Sequence[Container], name: str, choices: tuple[Choice, ...]) -> Manifest:
    """Return the release of some files, refusing those that do not belong together."""
    if not source:
        raise DeliveryError("A release has at least one file; name what to publish.")
    head = source[0].header
    for container in source[1:]:
        other = container.header
        bases = head.base.fingerprint, other.base.fingerprint
        if bases != (None, None) and not same_base(*bases):
            raise DeliveryError(
                f"The files are for different base models, {head.base.name} "
                f"({str(head.base.fingerprint)[:16]}…) and {other.base.name} "
                f"({str(other.base.fingerprint)[:16]}…); publish each under a name of its own."
            )
        if dict(other.task) != dict(head.task):
            raise DeliveryError(
                f"The files are for different tasks, {dict(head.task)} and {dict(other.task)}; "
                f"publish each under a name of its own."
            )
    files = tuple(File.of(container) for container in source)
    planner = "policy" if choices else "solver"
    base = _whole([container.header.base for container in source])
    return Manifest(name, 1, base, files, dict(head.task), planner, choices)


def _checked(manifest: Manifest) -> Manifest:
    """Return a manifest, refusing one that devices would not read."""
    size = len(manifest.to_bytes())
    if size > LARGEST_MANIFEST - 32:  # a longer version number fits
        raise DeliveryError(
            f"The manifest would have {size:,} bytes, more than devices read; publish fewer files."
        )
    Manifest.from_bytes(manifest.to_bytes())  # what devices would refuse is refused here
    return manifest


def _whole(bases: Sequence[BaseModel]) -> BaseModel:
    """Return the one of some descriptions of a base model whose fingerprint is the longest."""
    longest = max(bases, key=lambda base: len(base.fingerprint or ""))
    return replace(bases[0], fingerprint=longest.fingerprint)


def _target(manifest: Manifest) -> TargetFile:
    """Return the entry of a manifest in the signed list."""
    target = TargetFile.from_data(target_path(manifest.name), manifest.to_bytes(), ["sha256"])
    custom = {"version": manifest.version, "base": manifest.base.fingerprint}
    target.unrecognized_fields["custom"] = custom
    return target
