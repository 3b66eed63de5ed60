"""`rankcast serve` and `rankcast tokens`."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rankcast.delivery.registry import Device, Registry
from rankcast.delivery.releases import read_releases
from rankcast.delivery.store import Store
from rankcast.errors import ConfigError, DeliveryError
from rankcast.run.serve_options import Serve, Tokens, TokensAdd, TokensRevoke


def serve(command: Serve) -> int:
    """Serve until told to end, and return the exit status.

    Raises:
        ConfigError: no such folder, a database inside it, or an option that makes no sense.
        DeliveryError: the database does not answer.
    """
    from rankcast.delivery.serving.process import Listening  # noqa: PLC0415 needs FastAPI
    from rankcast.delivery.serving.process import serve as listen  # noqa: PLC0415
    from rankcast.delivery.serving.settings import ServerSettings  # noqa: PLC0415

    if not command.store.is_dir():
        raise ConfigError(f"There is no folder {command.store}; rankcast publish makes one.")
    _check_database(command.database, command.store)
    store = Store(command.store.resolve())
    listening = Listening(command.host, command.port, command.workers, command.grace_s)
    with closing(Registry(command.database)) as registry:
        n_tokens = sum(device.revoked_s is None for device in registry.devices())
    for line in _greeting(command, store, n_tokens):
        print(f"rankcast: {line}", file=sys.stderr)  # noqa: T201
    settings = ServerSettings(database=command.database, is_open=command.open)
    return 0 if listen(store, settings, listening) else 1


def dispatch(command: Tokens) -> int:
    """Do what a command about tokens says and return the exit status.

    Raises:
        ConfigError: a database that cannot be.
        DeliveryError: it does not answer, or has or lacks the device.
    """
    action = command.action
    with closing(Registry(action.database)) as registry:
        if isinstance(action, TokensAdd):
            print(registry.add(action.name, "operator" if action.operator else "device"))  # noqa: T201
        elif isinstance(action, TokensRevoke):
            registry.revoke(action.name)
            print(f"{action.name} is let in no longer.")  # noqa: T201
        elif action.json:
            print(json.dumps([asdict(d) for d in registry.devices()], indent=2))  # noqa: T201
        else:
            Console().print(_table(registry.devices()))
    return 0


def _check_database(url: str, store: Path) -> None:
    """Refuse a database that the server, or another over the same store, would hand out."""
    scheme, _, path = url.partition(":///")
    if scheme.startswith("sqlite") and Path(path).resolve().is_relative_to(store.resolve()):
        raise ConfigError(
            f"The database lies in the store {store}, whose files are for everyone; name a file "
            f"elsewhere with --database."
        )


def _greeting(command: Serve, store: Store, n_tokens: int) -> list[str]:
    try:
        names = sorted(read_releases(store, {}))
        lines = [f"{len(names)} adapters in {command.store}: {', '.join(names)}."]
    except DeliveryError as error:
        lines = [f"No adapter can be served yet. {error}"]
    if command.open:
        lines.append("Open: requests need no token.")
    elif not n_tokens:
        lines.append("No device has a token; rankcast tokens add NAME makes one.")
    return lines


def _table(devices: tuple[Device, ...]) -> Table:
    table = Table("device", "role", "since", "revoked")
    for device in devices:
        revoked = "" if device.revoked_s is None else _date(device.revoked_s)
        table.add_row(device.name, device.role, _date(device.created_s), revoked)
    return table


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
