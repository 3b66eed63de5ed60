"""`rankcast devices`: who may ask a server, and which groups they are in."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from rankcast.cli.common import open_registry, print_json
from rankcast.server import DEFAULT_DATABASE

if TYPE_CHECKING:
    from rich.table import Table

    from rankcast.server.provisioning import Selection
    from rankcast.server.registry import Device, Registry

TokenFile = Annotated[Path, tyro.conf.arg(aliases=["-o"])]


@dataclass(frozen=True, kw_only=True)
class _OnDatabase:
    database: str = DEFAULT_DATABASE
    """The server's: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME."""

    def _registry(self, *, makes: bool = False) -> Registry:
        return open_registry(self.database, makes=makes)

    @property
    def _where(self) -> str:
        """The database for people, without a password."""
        return f"in {self.database.partition('///')[2] or 'the database'} (--database)"


@dataclass(frozen=True, kw_only=True)
class DevicesAdd(_OnDatabase):
    """Let a device in: print its token, which is kept nowhere.

    rankcast devices add pi-7

    rankcast devices add pi-7 --group eu canary --time-zone Europe/Berlin
    """

    name: tyro.conf.Positional[str]
    """Name of the device."""
    operator: bool = False
    """Let it see the events of all devices and order rollouts, as a dashboard needs."""
    group: tuple[str, ...] = ()
    """Groups that rollouts may be for."""
    time_zone: str = "UTC"
    """Time zone of its maintenance windows, such as Europe/Berlin."""

    def run(self, argv: Sequence[str]) -> int:
        """Print the token and return the exit status."""
        with closing(self._registry(makes=True)) as registry:
            role = "operator" if self.operator else "device"
            print(registry.add(self.name, role, self.group, self.time_zone))
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
            Console().print(_table(devices, self._where))
        return 0


@dataclass(frozen=True, kw_only=True)
class DevicesImport(_OnDatabase):
    """Let many devices in at once, from a table: all of them or none.

    rankcast devices import devices.csv -o tokens.csv

    The table is CSV with the columns name, groups and time_zone; the last two may be missing or
    empty. Several groups stand in one field, with spaces between them.
    """

    file: tyro.conf.Positional[Path]
    """Table of devices."""
    output: TokenFile
    """New file of names and tokens, for you alone to read: they are kept nowhere else."""

    def run(self, argv: Sequence[str]) -> int:
        """Write the tokens and return the exit status."""
        from rankcast.server.provisioning import import_devices, read_devices

        devices = read_devices(self.file)
        with closing(self._registry(makes=True)) as registry:
            import_devices(registry, devices, self.output)
        print(f"{_counted(len(devices))} let in; the tokens are in {self.output}.")
        return 0


@dataclass(frozen=True, kw_only=True)
class _OfSome(_OnDatabase):
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names of devices."""
    group: tuple[str, ...] = ()
    """Groups, of which every device that has a token is meant."""

    def _selection(self) -> Selection:
        from rankcast.server.provisioning import Selection

        return Selection(self.names, self.group)


@dataclass(frozen=True, kw_only=True)
class DevicesRotate(_OfSome):
    """Give devices new tokens; the old ones end at once.

    rankcast devices rotate pi-7 pi-8 -o tokens.csv

    rankcast devices rotate --group eu -o tokens.csv
    """

    output: TokenFile
    """New file of names and tokens, for you alone to read: they are kept nowhere else."""

    def run(self, argv: Sequence[str]) -> int:
        """Write the tokens and return the exit status."""
        from rankcast.server.provisioning import rotate

        with closing(self._registry()) as registry:
            n = rotate(registry, self._selection(), self.output)
        print(f"{_counted(n)} given new tokens, in {self.output}.")
        return 0


@dataclass(frozen=True, kw_only=True)
class DevicesRevoke(_OfSome):
    """Let devices in no longer: no call from now on, and no file a few seconds later.

    rankcast devices revoke pi-7

    rankcast devices revoke --group stolen
    """

    def run(self, argv: Sequence[str]) -> int:
        """End the tokens and return the exit status."""
        from rankcast.server.provisioning import revoke

        with closing(self._registry()) as registry:
            n = revoke(registry, self._selection())
        is_one = n == 1 and len(self.names) == 1
        who = f"{self.names[0]} is" if is_one else f"{n:,} devices are"
        print(f"{who} let in no longer, {self._where}.")
        return 0


@dataclass(frozen=True, kw_only=True)
class DevicesLabel(_OfSome):
    """Put devices into groups instead of those they were in, or set their time zone.

    rankcast devices label pi-7 pi-8 --groups eu canary

    rankcast devices label --group berlin --time-zone Europe/Berlin
    """

    groups: tuple[str, ...] | None = None
    """New groups."""
    time_zone: str | None = None
    """Time zone of maintenance windows, such as Europe/Berlin."""

    def run(self, argv: Sequence[str]) -> int:
        """Change the devices and return the exit status."""
        from rankcast.server.provisioning import label

        with closing(self._registry()) as registry:
            n = label(registry, self._selection(), self.groups, self.time_zone)
        print(f"{_counted(n)} changed, {self._where}.")
        return 0


class Devices:
    """Say which devices a server answers.

    rankcast devices add pi-7

    rankcast devices import devices.csv -o tokens.csv

    rankcast devices list

    rankcast devices revoke pi-7
    """

    COMMANDS: ClassVar = {
        "add": DevicesAdd, "import": DevicesImport, "list": DevicesList, "label": DevicesLabel,
        "rotate": DevicesRotate, "revoke": DevicesRevoke,
    }  # fmt: skip


def _table(devices: Sequence[Device], where: str) -> Table:
    from rich.table import Table

    table = Table("device", "role", "groups", "time zone", "since", "revoked")
    table.title, table.title_justify = f"Devices {where}", "left"
    for device in devices:
        revoked = "" if device.revoked_s is None else _date(device.revoked_s)
        groups = " ".join(device.groups)
        since = _date(device.created_s)
        table.add_row(device.name, device.role, groups, device.time_zone, since, revoked)
    return table


def _counted(n: int) -> str:
    """Return how many devices something was done to."""
    return "1 device was" if n == 1 else f"{n:,} devices were"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
