"""`rankcast devices`: who may ask a server."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, ClassVar

import tyro

from rankcast.cli.common import print_json
from rankcast.server import DEFAULT_DATABASE

if TYPE_CHECKING:
    from rich.table import Table

    from rankcast.server.registry import Device, Registry


@dataclass(frozen=True, kw_only=True)
class _OnDatabase:
    database: str = DEFAULT_DATABASE
    """The server's: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME."""

    def _registry(self) -> Registry:
        from rankcast.server.registry import Registry

        return Registry(self.database)


@dataclass(frozen=True, kw_only=True)
class DevicesAdd(_OnDatabase):
    """Let a device in: print its token, which is kept nowhere.

    rankcast devices add pi-7
    """

    name: tyro.conf.Positional[str]
    """Name of the device."""
    operator: bool = False
    """Let it see the events of all devices, as a dashboard needs."""

    def run(self, argv: Sequence[str]) -> int:
        """Print the token and return the exit status."""
        with closing(self._registry()) as registry:
            print(registry.add(self.name, "operator" if self.operator else "device"))
        use = "type it into the dashboard" if self.operator else "give it by --token-file FILE"
        if sys.stdout.isatty():
            print(f"rankcast: this token is shown once; {use}.", file=sys.stderr)
        return 0


@dataclass(frozen=True, kw_only=True)
class DevicesList(_OnDatabase):
    """List the devices that have or had a token.

    rankcast devices list --json
    """

    json: bool = False
    """Print JSON."""

    def run(self, argv: Sequence[str]) -> int:
        """Print the devices and return the exit status."""
        from rich.console import Console

        with closing(self._registry()) as registry:
            devices = registry.devices()
        if self.json:
            print_json([asdict(device) for device in devices])
        else:
            Console().print(_table(devices))
        return 0


@dataclass(frozen=True, kw_only=True)
class DevicesRevoke(_OnDatabase):
    """Let a device in no longer: no call from now on, and no file a few seconds later.

    rankcast devices revoke pi-7
    """

    name: tyro.conf.Positional[str]
    """Name of the device."""

    def run(self, argv: Sequence[str]) -> int:
        """End the token and return the exit status."""
        with closing(self._registry()) as registry:
            registry.revoke(self.name)
        print(f"{self.name} is let in no longer.")
        return 0


class Devices:
    """Say which devices a server answers.

    rankcast devices add pi-7

    rankcast devices list

    rankcast devices revoke pi-7
    """

    COMMANDS: ClassVar = {"add": DevicesAdd, "list": DevicesList, "revoke": DevicesRevoke}


def _table(devices: Sequence[Device]) -> Table:
    from rich.table import Table

    table = Table("device", "role", "since", "revoked")
    for device in devices:
        revoked = "" if device.revoked_s is None else _date(device.revoked_s)
        table.add_row(device.name, device.role, _date(device.created_s), revoked)
    return table


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
