"""`rankcast keys` and `rankcast publish`: what the owner of an adapter does; no torch."""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rankcast.codec.container import Container
from rankcast.codec.packing import pack, pack_at, read_adapter
from rankcast.delivery.keyring import KeyFolder, Passphrase, no_passphrase
from rankcast.delivery.manifest import Choice, Manifest
from rankcast.delivery.publishing import publish
from rankcast.delivery.role_status import RoleStatus, root_sha256, status
from rankcast.delivery.signing import init_keys, refresh_timestamp, renew_root, rotate
from rankcast.delivery.store import Store
from rankcast.errors import ConfigError, UnavailableError
from rankcast.run.containers import read_file
from rankcast.run.delivery_options import (
    Keys,
    KeysInit,
    KeysRefresh,
    KeysRotate,
    KeysStatus,
    Publish,
)

_SHOWN = 16
_IN_TABLE = 8
"""Digits of a key's id; enough for --replaced."""


def dispatch(command: Keys | Publish) -> int:
    """Do what a command says and return the exit status."""
    if isinstance(command, Publish):
        return _publish(command)
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


def _publish(command: Publish) -> int:
    if not command.files:
        raise ConfigError("Name what to publish: rankcast publish FILE.rcast --name NAME …")
    tell = _herald(command.mqtt)
    source, choices = _planned(command) if command.planner else _as_they_are(command)
    keys, store = key_folder(command), Store(command.store)
    manifest = publish(
        source, command.name, store, keys, _now(), choices=choices,
        allow_new_base=command.allow_new_base,
    )  # fmt: skip
    n_bytes = sum(blob.n_bytes for blob in manifest.blobs)
    was_told = tell(manifest)
    if command.json:
        found = {
            "name": manifest.name,
            "version": manifest.version,
            "base_model": manifest.base.name,
            "base_fingerprint": manifest.base.fingerprint,
            "ladders": len(manifest.ladders),
            "planner": manifest.planner,
            "bytes": n_bytes,
            "broker_told": was_told,
        }
        print(json.dumps(found, indent=2))  # noqa: T201
        return 0
    print(  # noqa: T201
        f"{manifest.name} version {manifest.version} is in force: {n_bytes:,} bytes in "
        f"{len(manifest.blobs)} blobs, for {manifest.base.name}."
    )
    return 0


def _as_they_are(command: Publish) -> tuple[list[Container], tuple[Choice, ...]]:
    if command.snr_db or command.bandwidth_hz is not None or command.deadline_s is not None:
        raise ConfigError(
            "--snr-db, --bandwidth-hz and --deadline-s say for which links to plan; say who plans "
            "with --planner policy or --planner solver."
        )
    return [_container(path) for path in command.files], ()


def _planned(command: Publish) -> tuple[list[Container], tuple[Choice, ...]]:
    if len(command.files) != 1 or not command.files[0].is_dir() or not command.snr_db:
        raise ConfigError("--planner takes one run and its links: RUN --planner policy --snr-db …")
    try:
        from rankcast.run.planned_ladders import planned_ladders  # noqa: PLC0415 needs torch
    except ImportError as error:
        raise ConfigError("--planner needs torch: pip install 'rankcast[train]'.") from error
    assert command.planner is not None
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("planning and measuring", total=len(command.snr_db))
        found = planned_ladders(
            command.files[0],
            command.planner,
            command.snr_db,
            bandwidth_hz=command.bandwidth_hz,
            deadline_s=command.deadline_s,
            on_link=lambda done: progress.update(task, completed=done),
        )
    return list(found.containers), found.choices


def _herald(url: str | None) -> Callable[[Manifest], bool]:
    """Return what tells a broker of a release, and returns whether that worked.

    Raises:
        ConfigError: no address of a broker, or a missing extra.
    """
    if url is None:
        return lambda manifest: False  # noqa: ARG005 nobody to tell
    from rankcast.delivery.notices import Broker, connector, notify  # noqa: PLC0415 most do without

    broker = Broker.of(url)
    connector(broker)  # a missing extra is told before anything is published

    def tell(manifest: Manifest) -> bool:
        try:
            notify(broker, manifest.name, manifest.version)
        except UnavailableError as error:
            print(f"rankcast: {error}", file=sys.stderr)  # noqa: T201
            return False
        return True

    return tell


def _container(path: Path) -> Container:
    """Return the container in a file, or the adapter of a folder, packed."""
    if not path.is_dir():
        return read_file(path)
    source = read_adapter(path)
    return pack_at(source, "good") if source.exponent is None else pack(source, source.exponent)


def _now() -> datetime:
    return datetime.now(UTC)
