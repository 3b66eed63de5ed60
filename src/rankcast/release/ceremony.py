"""The key ceremony: make the keys of four roles, and replace those that are lost or grow old.

Root says whose signatures count and stays offline; targets signs releases; snapshot says which
targets belong together; timestamp says what is newest and is signed every day (The Update
Framework 1.0.34, section 2.1). Devices follow from the root that they were installed with to the
newest by the signatures of both old and new keys.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from datetime import datetime

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from rankcast.errors import DeliveryError
from rankcast.release.keys import ROLES, KeyFolder, Role
from rankcast.release.repository import (
    Lifetimes,
    Repository,
    Signers,
    Signing,
    changing,
    versions_of,
    write_root,
)
from rankcast.release.store import Store

LIFETIMES = Lifetimes()
MOST_ROOT_KEYS = 16


def init_keys(
    keys: KeyFolder,
    store: Store,
    now: datetime,
    *,
    n_root: int = 1,
    threshold: int = 1,
    lifetimes: Lifetimes = LIFETIMES,
) -> Repository:
    """Make the keys of every role and the first metadata of a store without releases.

    Args:
        keys: where the private keys go; outside the store.
        store: gets `metadata/`.
        now: the time.
        n_root: root keys.
        threshold: root keys that have to sign together.
        lifetimes: of the signatures.

    Raises:
        DeliveryError: keys or metadata are there already, keys within the store, an impossible
            threshold, or a folder that cannot be written.
    """
    if not 1 <= threshold <= n_root <= MOST_ROOT_KEYS:
        raise DeliveryError(
            f"A root has 1 to {MOST_ROOT_KEYS} keys, and a threshold of 1 to as many as it has; "
            f"got {n_root} keys and a threshold of {threshold}."
        )
    check_outside(keys, store)
    _make_folder(store)
    with changing(store):
        _check_empty(keys, store)
        root = Root(expires=lifetimes.end("root", now))
        made: dict[Role, list[CryptoSigner]] = {role: [keys.create(role)] for role in ROLES[1:]}
        made["root"] = [keys.create("root") for _ in range(n_root)]
        for role, signers in made.items():
            for signer in signers:
                root.add_key(signer.public_key, role)
        root.roles["root"].threshold = threshold
        fresh = Metadata(Targets()), Metadata(Snapshot()), Metadata(Timestamp())
        for metadata in fresh:
            metadata.signed.version = 0  # `write` counts from here
        repository = Repository(Metadata(root), *fresh)
        repository = repository.write(store, Signing(made, now, lifetimes))
        write_root(store, repository.root, made["root"])  # last: from here on the store exists
    return repository


def rotate(
    role: Role,
    keys: KeyFolder,
    store: Store,
    now: datetime,
    *,
    replaced: str | None = None,
    lifetimes: Lifetimes = LIFETIMES,
) -> str:
    """Replace a key of a role by a new one and return the id of the new one.

    What the role signs is first signed by old and new key together, and then the root that names
    the new one is made active, so that a device finds something valid at any moment. If the old
    private key is lost, devices that have the old root refuse updates between these two steps.

    Args:
        role: whose key.
        keys: with as many root keys as sign together, and all that the role's metadata need.
        store: with the metadata.
        now: the time.
        replaced: beginning of the id of the key to replace, where the role has several.
        lifetimes: of the new signatures.

    Raises:
        DeliveryError: private keys missing, or several keys and none named.
    """
    check_outside(keys, store)
    with changing(store):
        before = Repository.load(store)
        old = _one_key(before.root.signed, role, replaced)
        root_signers = keys.signers(before.root.signed, "root")
        online = _online_signers(role, keys, before.root.signed, old)
        added = keys.create(role)
        root = copy.deepcopy(before.root)
        root.signed.version += 1
        root.signed.expires = lifetimes.end("root", now)
        root.signed.add_key(added.public_key, role)
        root.signed.revoke_key(old, role)
        if role == "root":
            further = _further_signers(keys, root.signed, added)
            by_id = {s.public_key.keyid: s for s in (*root_signers, added, *further)}
            root_signers = list(by_id.values())
        else:
            online[role].append(added)
            before.write(store, Signing(online, now, lifetimes), root.signed)
        write_root(store, root, root_signers)
    return added.public_key.keyid


def refresh_timestamp(
    keys: KeyFolder,
    store: Store,
    now: datetime,
    *,
    targets: bool = False,
    lifetimes: Lifetimes = LIFETIMES,
) -> Repository:
    """Sign the timestamp anew, and the snapshot once half of its life is over.

    Args:
        keys: of timestamp; of snapshot when it is due; of targets if asked for.
        store: with the metadata.
        now: the time.
        targets: sign the releases anew, too.
        lifetimes: of the new signatures.

    Raises:
        DeliveryError: a key is missing, or the root has expired.
    """
    with changing(store):
        repository = Repository.load(store)
        check_root(repository, now)
        due = repository.snapshot.signed.expires - now < lifetimes.snapshot / 2
        roles: tuple[Role, ...] = ("snapshot", "timestamp") if due else ("timestamp",)
        roles = ROLES[1:] if targets else roles
        signers: Signers = {role: keys.signers(repository.root.signed, role) for role in roles}
        return repository.write(store, Signing(signers, now, lifetimes))


def renew_root(
    keys: KeyFolder, store: Store, now: datetime, lifetimes: Lifetimes = LIFETIMES
) -> int:
    """Give the root a new expiry with the same keys and return its version.

    Raises:
        DeliveryError: too few root keys here.
    """
    with changing(store):
        root = Repository.load(store).root
        signers = keys.signers(root.signed, "root")
        root.signed.version += 1
        root.signed.expires = lifetimes.end("root", now)
        write_root(store, root, signers)
    return root.signed.version


def check_outside(keys: KeyFolder, store: Store) -> None:
    """Refuse private keys where a web server would hand them out.

    Raises:
        DeliveryError: a folder of keys lies in the store, or around it.
    """
    base = store.root.resolve()
    for folder in (keys.folder, *keys.more):
        if folder.resolve().is_relative_to(base):
            raise DeliveryError(
                f"Private keys in {folder} would be handed out with the store {store.root}; keep "
                f"them in a folder outside it."
            )


def check_root(repository: Repository, now: datetime) -> None:
    """Refuse to sign under a root that devices no longer accept.

    Raises:
        DeliveryError: it has expired.
    """
    expires = repository.root.signed.expires
    if expires <= now:
        raise DeliveryError(
            f"The root's signature expired on {expires:%Y-%m-%d}, so devices accept nothing: sign "
            f"it anew with rankcast keys refresh --root, where the root keys are."
        )


def _make_folder(store: Store) -> None:
    try:
        store.metadata.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeliveryError(f"{store.root} cannot be written: {error.strerror}.") from error


def _check_empty(keys: KeyFolder, store: Store) -> None:
    if versions_of(store, "root"):
        raise DeliveryError(
            f"{store.root} has signed metadata already, and devices trust their keys: use rankcast "
            f"keys rotate, or name a new folder for a new store."
        )
    if keys.files():
        raise DeliveryError(
            f"{keys.folder} holds private keys already: name another folder. If they are what an "
            f"interrupted rankcast keys init left behind, nobody trusts them; remove them."
        )


def _one_key(root: Root, role: Role, replaced: str | None) -> str:
    keyids = root.roles[role].keyids
    matches = [k for k in keyids if k.startswith(replaced or "")]
    if len(matches) != 1:
        listed = ", ".join(k[:16] for k in keyids)
        raise DeliveryError(
            f"The key of {role} to replace is one of {listed}; name it with --replaced."
        )
    return matches[0]


def _online_signers(
    role: Role, keys: KeyFolder, root: Root, old: str
) -> dict[Role, list[CryptoSigner]]:
    """Return the signers of all that a new key changes; the old key, too, if it is here."""
    if role == "root":
        return {}
    changed = ROLES[ROLES.index(role) :]
    signers: dict[Role, list[CryptoSigner]] = {
        other: keys.signers(root, other) for other in changed if other != role
    }
    signers[role] = [keys.signer(root, role, old)] if old in keys.held(root, role) else []
    return signers


def _further_signers(keys: KeyFolder, root: Root, added: CryptoSigner) -> list[CryptoSigner]:
    """Return further signers that a new root needs besides the added one."""
    needed = root.roles["root"].threshold - 1
    others = [k for k in keys.held(root, "root") if k != added.public_key.keyid]
    if len(others) < needed:
        return keys.signers(root, "root")  # says what is missing
    return [keys.signer(root, "root", k) for k in others[:needed]]


@dataclass(frozen=True, slots=True)
class RoleStatus:
    """A role of a store: when its signature expires, and which keys are here.

    Attributes:
        role: which.
        version: of its metadata.
        expires: when its signature does; of targets, the first among the list and its bins.
        threshold: signatures that it needs.
        keyids: whose count.
        held: those of them whose private keys are here.
    """

    role: Role
    version: int
    expires: datetime
    threshold: int
    keyids: tuple[str, ...]
    held: tuple[str, ...]


def status(keys: KeyFolder, store: Store) -> tuple[RoleStatus, ...]:
    """Return every role's state.

    Raises:
        DeliveryError: no metadata, or changed ones.
    """
    repository = Repository.load(store)
    root = repository.root.signed
    roles = []
    for role in ROLES:
        signed, listed = getattr(repository, role).signed, root.roles[role]
        ids, held = tuple(listed.keyids), tuple(keys.held(root, role))
        bins = repository.bins.values() if role == "targets" else ()
        expires = min([signed.expires, *(x.signed.expires for x in bins)])
        roles.append(RoleStatus(role, signed.version, expires, listed.threshold, ids, held))
    return tuple(roles)


def root_sha256(store: Store) -> str:
    """Return the SHA-256 of the newest root, for people to compare when a device is installed.

    Raises:
        DeliveryError: no metadata.
    """
    version = Repository.load(store).root.signed.version
    data = (store.metadata / f"{version}.root.json").read_bytes()
    return hashlib.sha256(data).hexdigest()
