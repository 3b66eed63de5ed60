"""How the keys and signatures of a store stand: what expires when, and which keys are here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from rankcast.delivery.keyring import ROLES, KeyFolder, Role
from rankcast.delivery.repository import Repository
from rankcast.delivery.store import Store


@dataclass(frozen=True, slots=True)
class RoleStatus:
    """How a role stands.

    Attributes:
        role: which.
        version: of its metadata.
        expires: when its signature does.
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
    """Return how each role stands.

    Raises:
        DeliveryError: no metadata, or changed ones.
    """
    repository = Repository.load(store)
    root = repository.root.signed
    found = []
    for role in ROLES:
        signed, listed = getattr(repository, role).signed, root.roles[role]
        ids, held = tuple(listed.keyids), tuple(keys.held(root, role))
        found.append(RoleStatus(role, signed.version, signed.expires, listed.threshold, ids, held))
    return tuple(found)


def root_sha256(store: Store) -> str:
    """Return the SHA-256 of the newest root, for people to compare when a device is installed.

    Raises:
        DeliveryError: no metadata.
    """
    version = Repository.load(store).root.signed.version
    data = (store.metadata / f"{version}.root.json").read_bytes()
    return hashlib.sha256(data).hexdigest()
