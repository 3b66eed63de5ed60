"""Many devices at once: let them in from a table, renew their tokens, end them.

Tokens are written to a new file that nobody else may read, and before the database knows them, so
that a crash in between leaves a file of tokens that open nothing, and never a device whose token
nobody has.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import sqlalchemy as sa

from rankcast.errors import ConfigError, DeliveryError
from rankcast.server.registry import (
    DEVICES,
    Registry,
    checked_device,
    checked_groups,
    checked_time_zone,
    new_token,
)

MOST_DEVICES = 1_000_000
_COLUMNS = ("name", "groups", "time_zone")
_AT_ONCE = 500
"""Names in one statement: SQLite takes 999 values in some builds."""


@dataclass(frozen=True, slots=True)
class NewDevice:
    """A device to let in.

    Attributes:
        name: of the device.
        groups: that rollouts may be for.
        time_zone: of its maintenance windows.
    """

    name: str
    groups: tuple[str, ...] = ()
    time_zone: str = "UTC"


@dataclass(frozen=True, slots=True)
class Selection:
    """Devices that have a token, by name or group.

    Attributes:
        names: each has to have a token.
        groups: of which every device is meant that has a token.
    """

    names: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse to mean nobody, which might be taken for everybody.

        Raises:
            ConfigError: neither a name nor a group.
        """
        if not self.names and not self.groups:
            raise ConfigError("Name devices, or a group of them with --group.")


def read_devices(path: Path) -> tuple[NewDevice, ...]:
    """Read a table of devices: CSV with the columns name, groups and time_zone.

    Several groups of a device stand in one field, with spaces between them.

    Raises:
        ConfigError: no such table; names the line.
        OSError: the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            devices = _devices_of(file, path)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8; a spreadsheet calls that CSV UTF-8 when it saves."
        ) from error
    if not devices:
        raise ConfigError(f"{path} names no device; write one in each line below the columns.")
    if len(devices) > MOST_DEVICES:
        raise ConfigError(
            f"{path} names {len(devices):,} devices, more than {MOST_DEVICES:,}; divide it."
        )
    return tuple(devices.values())


def import_devices(registry: Registry, devices: Sequence[NewDevice], tokens: Path) -> None:
    """Let devices in, all or none.

    Args:
        registry: of the devices.
        devices: with different names.
        tokens: new file of names and tokens, which are kept nowhere else.

    Raises:
        DeliveryError: a name that cannot be one, or of a device that has a token.
        ConfigError: a group or a time zone that cannot be one, or the file is there.
    """
    made = [new_token(d.name, "device", d.groups, d.time_zone) for d in devices]
    rows = [row for _, row in made]
    with registry.writing() as connection, _token_file(tokens) as write:
        names = [row["name"] for row in rows]
        holding = [row.name for row in _rows(connection, names) if row.revoked_s is None]
        if holding:
            more = f" and {len(holding) - 1:,} more have tokens" if holding[1:] else " has a token"
            raise DeliveryError(
                f"{holding[0]}{more} already; leave them out, or rankcast devices rotate them."
            )
        write((row["name"], token) for token, row in made)
        for some in _batches(names):  # revoked ones come anew
            connection.execute(sa.delete(DEVICES).where(DEVICES.c.name.in_(some)))
        connection.execute(sa.insert(DEVICES), rows)


def rotate(registry: Registry, selection: Selection, tokens: Path) -> int:
    """Give devices new tokens, end their old ones, and return how many they are.

    Args:
        registry: of the devices.
        selection: which devices.
        tokens: new file of names and tokens, which are kept nowhere else.

    Raises:
        DeliveryError: a name without a token, or a group without a device.
        ConfigError: the file is there.
    """
    with registry.writing() as connection, _token_file(tokens) as write:
        names = _selected(connection, selection)
        made = [new_token(name) for name in names]
        write(zip(names, (token for token, _ in made), strict=True))
        change = sa.update(DEVICES).where(DEVICES.c.name == sa.bindparam("of"))
        change = change.values(token_sha256=sa.bindparam("sha256"))
        values = [{"of": row["name"], "sha256": row["token_sha256"]} for _, row in made]
        connection.execute(change, values)
    return len(names)


def revoke(registry: Registry, selection: Selection) -> int:
    """End the tokens of devices, and return how many they are.

    Raises:
        DeliveryError: a name without a token, or a group without a device.
    """
    return _update(registry, selection, {"revoked_s": time.time()})


def label(
    registry: Registry,
    selection: Selection,
    groups: Sequence[str] | None,
    time_zone: str | None,
) -> int:
    """Put devices into groups instead of those they were in; return how many they are.

    Args:
        registry: of the devices.
        selection: which devices.
        groups: their new groups; None to leave them.
        time_zone: of their maintenance windows; None to leave it.

    Raises:
        DeliveryError: a name without a token, or a group without a device.
        ConfigError: a group or a time zone that cannot be one, or neither is given.
    """
    changed: dict[str, Any] = {}
    if groups is not None:
        changed["groups"] = json.dumps(list(checked_groups(groups)))
    if time_zone is not None:
        changed["time_zone"] = checked_time_zone(time_zone)
    if not changed:
        raise ConfigError("Name groups with --groups, or a time zone with --time-zone.")
    return _update(registry, selection, changed)


def _devices_of(file: TextIO, path: Path) -> dict[str, NewDevice]:
    """Return the devices of a table by their names.

    Raises:
        ConfigError: no such table; names the line.
    """
    devices: dict[str, NewDevice] = {}
    reader = csv.DictReader(file, skipinitialspace=True, strict=True)
    try:
        columns = _checked_columns(reader.fieldnames or (), path)
        reader.fieldnames = columns
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise ConfigError(f"{where} has not as many fields as the first, {len(columns)}.")
            device = _device(row, where)
            if device.name in devices:
                raise ConfigError(f"{where} names {device.name} a second time.")
            devices[device.name] = device
    except csv.Error as error:
        raise ConfigError(f"{path}, line {reader.reader.line_num} is not CSV: {error}.") from error
    return devices


def _checked_columns(named: Sequence[str], path: Path) -> list[str]:
    columns = [column.strip() for column in named]
    if "name" in columns and set(columns) <= set(_COLUMNS) and len(set(columns)) == len(columns):
        return columns
    of = f"the columns {', '.join(columns)}" if columns else "no columns"
    hint = " Put commas between fields, not semicolons." if ";" in "".join(columns) else ""
    raise ConfigError(
        f"{path} has {of}; a table of devices has name, and may have groups and time_zone, each "
        f"once.{hint}"
    )


def _device(row: dict[str, str], where: str) -> NewDevice:
    try:
        name = checked_device(row["name"].strip())
        groups = checked_groups((row.get("groups") or "").split())
        zone = checked_time_zone((row.get("time_zone") or "").strip() or "UTC")
    except (ConfigError, DeliveryError) as error:
        raise ConfigError(f"{where}: {error}") from error
    return NewDevice(name, groups, zone)


def _update(registry: Registry, selection: Selection, changed: dict[str, Any]) -> int:
    with registry.writing() as connection:
        names = _selected(connection, selection)
        for some in _batches(names):
            here = DEVICES.c.name.in_(some)
            connection.execute(sa.update(DEVICES).where(here).values(**changed))
    return len(names)


def _selected(connection: sa.Connection, selection: Selection) -> list[str]:
    """Return the names of a selection, each once.

    Raises:
        DeliveryError: a name without a token, or a group without a device.
    """
    query = sa.select(DEVICES.c.name, DEVICES.c.groups).where(DEVICES.c.revoked_s.is_(None))
    groups_of = {row.name: json.loads(row.groups or "[]") for row in connection.execute(query)}
    names = dict.fromkeys(selection.names)
    for name in names:
        if name not in groups_of:
            raise DeliveryError(f"No device {name!r} has a token; see rankcast devices list.")
    for group in selection.groups:
        inside = [name for name, groups in groups_of.items() if group in groups]
        if not inside:
            raise DeliveryError(f"No device is in a group {group!r}; see rankcast devices list.")
        names |= dict.fromkeys(sorted(inside))
    return list(names)


def _rows(connection: sa.Connection, names: Iterable[str]) -> Iterator[Any]:
    for some in _batches(names):
        query = sa.select(DEVICES.c.name, DEVICES.c.revoked_s).where(DEVICES.c.name.in_(some))
        yield from connection.execute(query)


def _batches(names: Iterable[str]) -> Iterator[list[str]]:
    left = iter(names)
    while some := list(islice(left, _AT_ONCE)):
        yield some


@contextmanager
def _token_file(path: Path) -> Iterator[Any]:
    """Yield what writes tokens to a new file; the file goes away again if anything fails.

    Raises:
        ConfigError: the file is there.
    """
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ConfigError(
            f"{path} is there already and may hold tokens that are nowhere else; name another."
        ) from error
    with os.fdopen(number, "w", encoding="utf-8", newline="") as file:

        def write(pairs: Iterable[tuple[str, str]]) -> None:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("name", "token"))
            writer.writerows(pairs)
            file.flush()
            os.fsync(file.fileno())

        try:
            yield write
        except BaseException:
            path.unlink(missing_ok=True)
            raise
