"""`rankcast keys`: what the owner of a store does once, and when a key is replaced; no torch."""

from __future__ import annotations

import getpass
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rankcast.delivery.keyring import KeyFolder, Passphrase, no_passphrase
from rankcast.delivery.role_status import RoleStatus, root_sha256, status
from rankcast.delivery.signing import init_keys, refresh_timestamp, renew_root, rotate
from rankcast.delivery.store import Store
from rankcast.errors import ConfigError
from rankcast.run.delivery_options import Keys, KeysInit, KeysRefresh, KeysRotate, KeysStatus

_SHOWN = 16
_IN_TABLE = 8
"""Digits of a key's id; enough for --replaced."""


def dispatch(command: Keys) -> int:
    """Do what a command says and return the exit status."""
    match command.action:
        case KeysInit() as action:
            return _init(action)
        case KeysRotate() as action:
            return _rotate(action)
        case KeysRefresh() as action:
            return _refresh(action)
        case KeysStatus() as action:
            return _status(action)


def key_folder(command: Any) -> KeyFolder:
    """Return where the keys are and how they open.

    Raises:
        ConfigError: two ways to open them, or a variable that is not set.
    """
    return KeyFolder(command.keys.expanduser(), command.more_keys, _passphrase(command))


def _passphrase(command: Any) -> Passphrase:
    name = command.passphrase_env
    if name is not None and command.ask_passphrase:
        raise ConfigError("Give one of --passphrase-env and --ask-passphrase.")
    if command.ask_passphrase:
        return _asked
    if name is None:
        return no_passphrase
    if not os.environ.get(name):
        raise ConfigError(f"--passphrase-env {name}: there is no such variable, or it is empty.")
    return lambda path: os.environ[name].encode()  # noqa: ARG005 one for all files


def _asked(path: Path) -> bytes:
    """Ask for a passphrase; twice for a file that is yet to be written."""
    found = getpass.getpass(f"Passphrase of {path.name}: ")
    if not path.exists() and getpass.getpass("Once more: ") != found:
        raise ConfigError("The two passphrases differ; nothing is locked with either. Try again.")
    return found.encode()


def _init(command: KeysInit) -> int:
    keys, store = key_folder(command), Store(command.store)
    init_keys(keys, store, _now(), n_root=command.root_keys, threshold=command.threshold)
    digest = root_sha256(store)
    made = [str(path) for path in keys.files()]
    if command.json:
        root = str(store.metadata / "root.json")
        print(json.dumps({"keys": made, "root": root, "sha256": digest}, indent=2))  # noqa: T201
        return 0
    print("Private keys:\n  " + "\n  ".join(made))  # noqa: T201
    print(  # noqa: T201
        f"Take the root keys off this machine. Devices are installed with\n"
        f"  {store.metadata / 'root.json'}\n  SHA-256 {digest}\n"
        f"Then: rankcast publish FILE.rcast --name NAME --store {store.root} --keys {keys.folder}"
    )
    return 0


def _rotate(command: KeysRotate) -> int:
    keys, store = key_folder(command), Store(command.store)
    before = {key for role in status(keys, store) for key in role.keyids}
    added = rotate(command.role, keys, store, _now(), replaced=command.replaced)
    after = {key for role in status(keys, store) for key in role.keyids}
    gone = next(iter(before - after))
    if command.json:
        found = {"role": command.role, "added": added, "removed": gone}
        print(json.dumps(found, indent=2))  # noqa: T201
        return 0
    print(  # noqa: T201
        f"Devices now trust {added[:_SHOWN]} as {command.role} and refuse {gone[:_SHOWN]}. Destroy "
        f"{command.role}-{gone[:_SHOWN]}.pem and its copies; make a copy of the new one."
    )
    return 0


def _refresh(command: KeysRefresh) -> int:
    keys, store = key_folder(command), Store(command.store)
    if command.root:
        renew_root(keys, store, _now())
    refresh_timestamp(keys, store, _now(), targets=command.targets)
    return _print_status(command, keys, store)


def _status(command: KeysStatus) -> int:
    return _print_status(command, key_folder(command), Store(command.store))


def _print_status(command: Any, keys: KeyFolder, store: Store) -> int:
    roles, now = status(keys, store), _now()
    if command.json:
        found = [_plain(role, now) for role in roles]
        print(json.dumps({"root_sha256": root_sha256(store), "roles": found}, indent=2))  # noqa: T201
        return 0
    table = Table("role", "version", "expires", "days left", "signatures", "keys (* is here)")
    for role in roles:
        listed = " ".join(k[:_IN_TABLE] + ("*" if k in role.held else "") for k in role.keyids)
        days = _plain(role, now)["days_left"]
        left = f"{days:.1f}" if days > 0 else "expired"
        needed = f"{role.threshold} of {len(role.keyids)}"
        expires = f"{role.expires:%Y-%m-%d %H:%M}"
        table.add_row(role.role, str(role.version), expires, left, needed, listed)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"SHA-256 of the root: {root_sha256(store)}", soft_wrap=True)
    return 0


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


def _now() -> datetime:
    return datetime.now(UTC)
