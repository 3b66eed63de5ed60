"""`rankcast serve`."""

from __future__ import annotations

import logging.config
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rankcast.cli.common import LogFormat, logs_json
from rankcast.errors import ConfigError, DeliveryError
from rankcast.server import DEFAULT_DATABASE

if TYPE_CHECKING:
    from rankcast.release.store import Store
    from rankcast.server.cells import Cell
    from rankcast.server.registry import Device

_MOST_NAMES = 10


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Hand out published adapters and tell devices which chunks to fetch.

    rankcast serve --store store

    rankcast serve --store store --host 0.0.0.0 --database postgresql://rankcast@db/rankcast

    Every device needs a token (rankcast devices add NAME). The server holds no keys: devices verify
    what they fetch. Several servers may share a store and a database. Put a proxy in front that
    speaks TLS. Needs pip install 'rankcast[serve]'.
    """

    store: Path
    """Folder that rankcast publish writes."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all."""
    port: int = 8080
    """Port to listen at; 0 for any that is free."""
    database: str = DEFAULT_DATABASE
    """Devices, tokens and events: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME."""
    no_auth: bool = False
    """Answer requests without a token: whoever reaches the port may fetch, report and watch."""
    cells: Path | None = None
    """TOML file of cells whose band or backhaul devices share; a device is in the cell NAME if one
    of its groups is cell=NAME. The same for all servers of a database."""
    workers: int = 1
    """Number of processes."""
    grace_s: float = 30.0
    """Time for requests to finish once the server is told to stop [s]."""
    log_format: LogFormat = "auto"
    """Lines for people, or JSON for machines; auto is text at a terminal and JSON elsewhere."""

    def run(self, argv: Sequence[str]) -> int:
        """Serve until told to stop, and return the exit status."""
        from rankcast.release.store import Store
        from rankcast.server.cells import read_cells
        from rankcast.server.process import ProcessSettings, log_config, serve
        from rankcast.server.registry import Registry
        from rankcast.server.settings import ServerSettings

        if not self.store.is_dir():
            raise ConfigError(f"There is no folder {self.store}; rankcast publish makes one.")
        _check_database(self.database, self.store)
        store, as_json = Store(self.store.resolve()), logs_json(self.log_format)
        process = ProcessSettings(
            host=self.host, port=self.port, workers=self.workers, grace_s=self.grace_s,
            json_logs=as_json,
        )  # fmt: skip
        with closing(Registry(self.database)) as registry:
            devices = [device for device in registry.devices() if device.revoked_s is None]
        cells = () if self.cells is None else read_cells(self.cells)
        logging.config.dictConfig(log_config(as_json=as_json))
        for line in [*self._greeting(store, len(devices)), *_about_cells(cells, devices)]:
            logging.getLogger("rankcast.serve").info(line)
        settings = ServerSettings(database=self.database, needs_token=not self.no_auth, cells=cells)
        serve(store, settings, process)
        return 0

    def _greeting(self, store: Store, n_tokens: int) -> list[str]:
        from rankcast.release.store import read_releases

        try:
            names = sorted(read_releases(store, {}))
            n_more = len(names) - _MOST_NAMES
            more = [f"{n_more} more"] if n_more > 0 else []
            lines = [f"Adapters in {self.store}: {', '.join([*names[:_MOST_NAMES], *more])}."]
        except DeliveryError as error:
            lines = [f"No adapter can be served yet. {error}"]
        if self.no_auth:
            return [*lines, "Requests need no token (--no-auth). The dashboard is at /."]
        if not n_tokens:
            where = "" if self.database == DEFAULT_DATABASE else ", with this --database,"
            lines.append(f"No device has a token; rankcast devices add NAME{where} makes one.")
        lines.append("The dashboard is at /. It takes a token of rankcast devices add --operator.")
        return lines


def _about_cells(cells: Sequence[Cell], devices: Sequence[Device]) -> list[str]:
    """Say which cells have no device, and which cells of devices are none."""
    from rankcast.server.cells import cell_of

    known, named = {cell.name for cell in cells}, {cell_of(d.groups) for d in devices} - {None}
    lines = {
        "No device has the group cell=NAME of these cells: {}.": known - named,
        "Devices of these cells, which --cells lacks, are planned as if alone: {}.": named - known,
    }
    return [line.format(", ".join(map(str, cells))) for line, cells in lines.items() if cells]


def _check_database(url: str, store: Path) -> None:
    """Refuse a database that the server, or another over the same store, would hand out."""
    scheme, _, path = url.partition(":///")
    if scheme.startswith("sqlite") and Path(path).resolve().is_relative_to(store.resolve()):
        raise ConfigError(
            f"The database lies in the store {store}, whose files are for everyone; name a file "
            f"elsewhere with --database."
        )
