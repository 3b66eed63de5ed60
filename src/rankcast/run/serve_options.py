"""What the commands of a server take; see `options`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

_DATABASE = "sqlite:///rankcast.db"


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Hand published adapters out and tell devices which chunks to fetch.

    rankcast serve --store store

    rankcast serve --store store --host 0.0.0.0 --database postgresql://rankcast@db/rankcast

    Every device needs a token (rankcast tokens add NAME). The server holds no keys: devices verify
    what they fetch. Several servers may share a store and a database. Put a proxy before it that
    speaks TLS. Needs pip install 'rankcast[serve]'.
    """

    store: Path
    """Folder that rankcast publish writes."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all."""
    port: int = 8080
    """Port to listen at; 0 for any that is free."""
    database: str = _DATABASE
    """Devices, tokens and events: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME."""
    open: bool = False
    """Answer requests without a token: whoever reaches the port may fetch, report and watch."""
    workers: int = 1
    """Processes."""
    grace_s: float = 30.0
    """Time for requests to finish once the server is told to end [s]."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class TokensAdd:
    """Let a device in: print its token, which is kept nowhere.

    rankcast tokens add pi-7
    """

    name: tyro.conf.Positional[str]
    """Of the device."""
    operator: bool = False
    """Let it see the events of all devices, as a dashboard needs."""
    database: str = _DATABASE
    """The server's."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class TokensList:
    """List the devices that have or had a token.

    rankcast tokens list --json
    """

    database: str = _DATABASE
    """The server's."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class TokensRevoke:
    """Let a device in no longer: no call from now on, and no file a few seconds later.

    rankcast tokens revoke pi-7
    """

    name: tyro.conf.Positional[str]
    """Of the device."""
    database: str = _DATABASE
    """The server's."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Tokens:
    """Say which devices a server answers.

    rankcast tokens add pi-7

    rankcast tokens list

    rankcast tokens revoke pi-7
    """

    action: tyro.conf.OmitSubcommandPrefixes[
        Annotated[TokensAdd, tyro.conf.subcommand("add")]
        | Annotated[TokensList, tyro.conf.subcommand("list")]
        | Annotated[TokensRevoke, tyro.conf.subcommand("revoke")]
    ]

    @property
    def debug(self) -> bool:
        """Whether errors show their traceback."""
        return self.action.debug
