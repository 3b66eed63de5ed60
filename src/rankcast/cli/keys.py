"""`rankcast keys`: what the owner of a store does once, and when a key is replaced; no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import tyro

from rankcast.cli.common import print_json, refuse_both
from rankcast.errors import ConfigError

if TYPE_CHECKING:
    from rankcast.release.ceremony import RoleStatus
    from rankcast.release.keys import KeyFolder
    from rankcast.release.store import Store

_SHOWN = 16
_IN_TABLE = 8
"""Digits of a key's id; enough for --replaced."""


@dataclass(frozen=True, kw_only=True)
class SigningOptions:
    """Options of every command that signs."""

    keys: Path
    """Folder of the private keys; outside the store, readable by you alone."""
    store: Path
    """Folder that a web server hands out: blobs/, metadata/, targets/."""
    more_keys: tuple[Path, ...] = ()
    """Further folders with private keys, such as media with root keys."""
    passphrase_env: str | None = None
    """Environment variable with the passphrase of encrypted key files."""
    ask_passphrase: bool = False
    """Ask for the passphrase of each encrypted key file."""
    json: bool = False
    """Print JSON."""

    def opened(self) -> tuple[KeyFolder, Store]:
        """Return the keys, with how they are opened, and the store.

        Raises:
            ConfigError: two ways to open keys, or a variable that is not set.
        """
        from rankcast.release.keys import KeyFolder
        from rankcast.release.store import Store

        name = self.passphrase_env
        refuse_both(passphrase_env=name, ask_passphrase=self.ask_passphrase)
        secret = None if name is None else os.environ.get(name, "").encode()
        if name is not None and not secret:
            raise ConfigError(
                f"--passphrase-env {name}: there is no such variable, or it is empty."
            )
        ask = _ask_passphrase if self.ask_passphrase else lambda path: secret  # noqa: ARG005
        return KeyFolder(self.keys.expanduser(), self.more_keys, ask), Store(self.store)


@dataclass(frozen=True, kw_only=True)
class KeysInit(SigningOptions):
    """Make the keys of all four roles and the first signed metadata of a store.

    rankcast keys init --keys ~/keys --store store

    rankcast keys init --keys ~/keys --store store --root-keys 3 --threshold 2

    Afterwards take the root keys off this machine, and give metadata/root.json to each device when
    it is installed, with the SHA-256 that is printed here.
    """

    root_keys: int = 1
    """Number of root keys to make, to be kept in different places."""
    threshold: int = 1
    """Number of them that have to sign together."""

    def run(self, argv: Sequence[str]) -> int:
        """Make the keys and say where they are."""
        from rankcast.release.ceremony import init_keys, root_sha256

        keys, store = self.opened()
        init_keys(keys, store, datetime.now(UTC), n_root=self.root_keys, threshold=self.threshold)
        digest, root = root_sha256(store), store.metadata / "root.json"
        files = [str(path) for path in keys.files()]
        if self.json:
            print_json({"keys": files, "root": str(root), "sha256": digest})
            return 0
        print("Private keys:\n  " + "\n  ".join(files))
        print(
            f"Take the root keys off this machine. Devices are installed with\n"
            f"  {root}\n  SHA-256 {digest}\n"
            f"Then: rankcast publish FILE.rcast --name NAME --store {store.root} --keys "
            f"{keys.folder}"
        )
        return 0


@dataclass(frozen=True, kw_only=True)
class KeysRotate(SigningOptions):
    """Replace a key by a new one; devices follow by themselves and refuse the old one.

    rankcast keys rotate timestamp --keys ~/keys --store store --more-keys /media/root-1

    rankcast keys rotate root --keys ~/keys --store store --replaced 1f0c
    """

    role: tyro.conf.Positional[Literal["root", "targets", "snapshot", "timestamp"]]
    """Role whose key is replaced: root, targets, snapshot or timestamp."""
    replaced: str | None = None
    """Beginning of the id of the key to replace, where the role has several."""

    def run(self, argv: Sequence[str]) -> int:
        """Replace the key and say which it was."""
        from rankcast.release.ceremony import rotate, status

        keys, store = self.opened()
        before = {key for role in status(keys, store) for key in role.keyids}
        added = rotate(self.role, keys, store, datetime.now(UTC), replaced=self.replaced)
        after = {key for role in status(keys, store) for key in role.keyids}
        removed = next(iter(before - after))
        if self.json:
            print_json({"role": self.role, "added": added, "removed": removed})
            return 0
        print(
            f"Devices now trust {added[:_SHOWN]} as {self.role} and refuse {removed[:_SHOWN]}. "
            f"Destroy {self.role}-{removed[:_SHOWN]}.pem and its copies; make a copy of the new "
            f"one."
        )
        return 0


@dataclass(frozen=True, kw_only=True)
class KeysStatus(SigningOptions):
    """Show what expires when, and which private keys are here.

    rankcast keys status --keys ~/keys --store store
    """

    def run(self, argv: Sequence[str]) -> int:
        """Print the state of every role."""
        from rankcast.release.ceremony import root_sha256, status

        keys, store = self.opened()
        now, digest = datetime.now(UTC), root_sha256(store)
        roles = [_plain(role, now) for role in status(keys, store)]
        if self.json:
            print_json({"root_sha256": digest, "roles": roles})
        else:
            _show_roles(roles, digest)
        return 0


@dataclass(frozen=True, kw_only=True)
class KeysRefresh(KeysStatus):
    """Sign the timestamp anew, and the snapshot when it is due; run it several times a day.

    rankcast keys refresh --keys ~/keys --store store

    rankcast keys refresh --keys ~/keys --store store --root --more-keys /media/root-1

    Needs the keys of timestamp and snapshot only. Signatures hold a day (timestamp), a week
    (snapshot), 90 days (targets) and a year (root).
    """

    targets: bool = False
    """Sign the list of releases anew, too; publishing does so as well."""
    root: bool = False
    """Sign the root anew, with the same keys."""

    def run(self, argv: Sequence[str]) -> int:
        """Sign, and print the state of every role."""
        from rankcast.release.ceremony import refresh_timestamp, renew_root

        keys, store = self.opened()
        if self.root:
            renew_root(keys, store, datetime.now(UTC))
        refresh_timestamp(keys, store, datetime.now(UTC), targets=self.targets)
        return super().run(argv)


class Keys:
    """Make, replace and use the keys by which devices know what is yours.

    rankcast keys init --keys ~/keys --store store

    rankcast keys status --keys ~/keys --store store
    """

    COMMANDS: ClassVar[dict[str, type[Any]]] = {
        "init": KeysInit,
        "rotate": KeysRotate,
        "refresh": KeysRefresh,
        "status": KeysStatus,
    }


def _ask_passphrase(path: Path) -> bytes:
    """Ask for a passphrase; twice for a file that is yet to be written."""
    import getpass

    passphrase = getpass.getpass(f"Passphrase of {path.name}: ")
    if not path.exists() and getpass.getpass("Once more: ") != passphrase:
        raise ConfigError("The two passphrases differ; nothing is locked with either. Try again.")
    return passphrase.encode()


def _plain(role: RoleStatus, now: datetime) -> dict[str, Any]:
    return {
        "role": role.role,
        "version": role.version,
        "expires": role.expires.isoformat(),
        "days_left": (role.expires - now).total_seconds() / 86400,
        "threshold": role.threshold,
        "keys": role.keyids,
        "held": role.held,
    }


def _show_roles(roles: Sequence[dict[str, Any]], digest: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("role", "version", "expires", "days left", "signatures", "keys (* is here)")
    for role in roles:
        table.add_row(
            role["role"],
            str(role["version"]),
            f"{datetime.fromisoformat(role['expires']):%Y-%m-%d %H:%M}",
            f"{role['days_left']:.1f}" if role["days_left"] > 0 else "expired",
            f"{role['threshold']} of {len(role['keys'])}",
            " ".join(k[:_IN_TABLE] + ("*" if k in role["held"] else "") for k in role["keys"]),
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(f"SHA-256 of the root: {digest}", soft_wrap=True)
