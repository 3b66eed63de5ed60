"""Private keys at rest: PEM files of one folder, or several, outside the store.

Ed25519 (RFC 8032) in PKCS#8 (RFC 5958), readable by their owner only, encrypted if a passphrase is
given. A file is called `ROLE-ID.pem`, where ID is the beginning of the key's id in the metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Root

from rankcast.errors import DeliveryError
from rankcast.files import put_file

Role = Literal["root", "targets", "snapshot", "timestamp"]
ROLES: tuple[Role, ...] = get_args(Role)
Passphrase = Callable[[Path], bytes | None]
"""Returns the passphrase of a key file; None if it is not encrypted."""
_OWNER_ONLY = 0o600
_SHOWN = 16
"""Digits of a key's id in the name of its file."""


@dataclass(frozen=True)
class KeyFolder:
    """A folder of private keys, and further folders to look in.

    Attributes:
        folder: where new keys are written.
        more: further folders to look in, such as a medium with root keys that is not always there.
        passphrase: of a key file, asked for when the file is read or written.
    """

    folder: Path
    more: tuple[Path, ...] = ()
    passphrase: Passphrase = lambda path: None  # noqa: ARG005 not encrypted

    def create(self, role: Role) -> CryptoSigner:
        """Make a key and keep it.

        Raises:
            DeliveryError: the folder cannot be written.
        """
        signer = CryptoSigner.generate_ed25519()
        path = self.folder / _file_name(role, signer.public_key.keyid)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            put_file(path, _pem(signer, self.passphrase(path)), _OWNER_ONLY)
        except OSError as error:
            raise DeliveryError(
                f"{path} cannot be written: {error.strerror}. Choose a folder of your own for the "
                f"private keys."
            ) from error
        return signer

    def files(self) -> list[Path]:
        """Return every key file there is."""
        return sorted(path for folder in (self.folder, *self.more) for path in folder.glob("*.pem"))

    def held(self, root: Root, role: Role) -> list[str]:
        """Return the ids of a role's keys whose private halves are here, unopened."""
        names = {path.name for path in self.files()}
        return [k for k in root.roles[role].keyids if _file_name(role, k) in names]

    def signers(self, root: Root, role: Role) -> list[CryptoSigner]:
        """Return as many signers of a role as are here and as it needs.

        Raises:
            DeliveryError: fewer than it needs, or a key file that cannot be used.
        """
        needed, held = root.roles[role].threshold, self.held(root, role)
        if len(held) < needed:
            raise DeliveryError(self._lacking(role, root.roles[role].keyids, len(held), needed))
        return [self.signer(root, role, keyid) for keyid in held[:needed]]

    def signer(self, root: Root, role: Role, keyid: str) -> CryptoSigner:
        """Return the signer of one key.

        Raises:
            DeliveryError: no such file, an unreadable one, another key in it, a wrong passphrase.
        """
        name = _file_name(role, keyid)
        path = next((p for p in self.files() if p.name == name), self.folder / name)
        private = _load(path, self.passphrase)
        signer = CryptoSigner(private)
        if signer.public_key.keyid != keyid or keyid not in root.keys:
            raise DeliveryError(f"{path} holds another key than its name says; restore it.")
        return signer

    def _lacking(self, role: Role, keyids: Sequence[str], n_here: int, needed: int) -> str:
        names = ", ".join(_file_name(role, keyid) for keyid in keyids)
        folders = ", ".join(map(str, (self.folder, *self.more)))
        return (
            f"Signing as {role} needs {needed} of its private keys, and {n_here} are in {folders}. "
            f"The store trusts {names}."
        )


def _file_name(role: Role, keyid: str) -> str:
    return f"{role}-{keyid[:_SHOWN]}.pem"


def _pem(signer: CryptoSigner, passphrase: bytes | None) -> bytes:
    if not passphrase:
        return signer.private_bytes
    private = load_pem_private_key(signer.private_bytes, None)
    locked: KeySerializationEncryption = BestAvailableEncryption(passphrase)
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked)


def _load(path: Path, passphrase: Passphrase) -> Ed25519PrivateKey:
    try:
        data = path.read_bytes()
        secret = passphrase(path) if b"ENCRYPTED" in data else None
        private = load_pem_private_key(data, secret)
    except OSError as error:
        raise DeliveryError(f"{path} cannot be read: {error.strerror}.") from error
    except TypeError as error:
        raise DeliveryError(
            f"{path} is encrypted: give its passphrase with --passphrase-env or --ask-passphrase."
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DeliveryError(
            f"{path} does not open: the passphrase is wrong or the file is damaged."
        ) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise DeliveryError(f"{path} holds another kind of key than Ed25519.")
    return cast("Ed25519PrivateKey", private)
