"""What the commands of a publisher take; see `options`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class _Publisher:
    """What everything that signs has in common."""

    keys: Path
    """Folder of the private keys; outside the store, readable by you alone."""
    store: Path
    """Folder that a web server hands out: blobs/, metadata/, targets/."""
    more_keys: tuple[Path, ...] = ()
    """Further folders with private keys, such as media with root keys."""
    passphrase_env: str | None = None
    """Key files are encrypted; their passphrase is in this environment variable."""
    ask_passphrase: bool = False
    """Key files are encrypted; ask for the passphrase of each."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class KeysInit(_Publisher):
    """Make the keys of all four roles and the first signed metadata of a store.

    rankcast keys init --keys ~/keys --store store

    rankcast keys init --keys ~/keys --store store --root-keys 3 --threshold 2

    Afterwards take the root keys off this machine, and give metadata/root.json to each device when
    it is installed, with the SHA-256 that is printed here.
    """

    root_keys: int = 1
    """Root keys to make, to be kept in different places."""
    threshold: int = 1
    """How many of them have to sign together."""


@dataclass(frozen=True, kw_only=True)
class KeysRotate(_Publisher):
    """Replace a key by a new one; devices follow by themselves and refuse the old one.

    rankcast keys rotate timestamp --keys ~/keys --store store --more-keys /media/root-1

    rankcast keys rotate root --keys ~/keys --store store --replaced 1f0c
    """

    role: tyro.conf.Positional[Literal["root", "targets", "snapshot", "timestamp"]]
    """Whose key."""
    replaced: str | None = None
    """Beginning of the id of the key to replace, where the role has several."""


@dataclass(frozen=True, kw_only=True)
class KeysRefresh(_Publisher):
    """Sign the timestamp anew, and the snapshot when it is due. To be run several times a day.

    rankcast keys refresh --keys ~/keys --store store

    rankcast keys refresh --keys ~/keys --store store --root --more-keys /media/root-1

    Needs the keys of timestamp and snapshot only. Signatures hold a day (timestamp), a week
    (snapshot), 90 days (targets) and a year (root).
    """

    targets: bool = False
    """Sign the list of releases anew, too; publishing does so as well."""
    root: bool = False
    """Sign the root anew, with the same keys."""


@dataclass(frozen=True, kw_only=True)
class KeysStatus(_Publisher):
    """Show what expires when, and which private keys are here.

    rankcast keys status --keys ~/keys --store store
    """


@dataclass(frozen=True)
class Keys:
    """Make, replace and use the keys by which devices know what is yours.

    rankcast keys init --keys ~/keys --store store

    rankcast keys status --keys ~/keys --store store
    """

    action: tyro.conf.OmitSubcommandPrefixes[
        Annotated[KeysInit, tyro.conf.subcommand("init")]
        | Annotated[KeysRotate, tyro.conf.subcommand("rotate")]
        | Annotated[KeysRefresh, tyro.conf.subcommand("refresh")]
        | Annotated[KeysStatus, tyro.conf.subcommand("status")]
    ]

    @property
    def debug(self) -> bool:
        """Whether to show the traceback of an error."""
        return self.action.debug


@dataclass(frozen=True, kw_only=True)
class Publish(_Publisher):
    """Sign a release and put it in force: one file, or several sizes of the same adapter.

    rankcast publish demo.rcast --name demo --store store --keys ~/keys

    rankcast publish fine.rcast small.rcast --name demo --store store --keys ~/keys

    rankcast publish runs/demo --name demo --store store --keys ~/keys

    rankcast publish runs/demo --name demo --store store --keys ~/keys --planner policy
    --snr-db -5 0 5 10 15

    A folder is packed first, as rankcast pack does. Publishing the same again changes nothing. The
    store can be handed out by any web server; the keys make the difference.
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Files of rankcast pack, or folders of runs; the first is the one to prefer."""
    name: str
    """Of the adapter: lower-case letters, digits, dots, dashes, underscores."""
    planner: Literal["policy", "solver"] | None = None
    """For one run: pack a file for each of several links and measure what it is worth. policy: the
    run's policy chooses ranks, and devices get the file that it chose for their link; solver: ranks
    and steps together by what the run has learned, and devices get the best that arrives."""
    snr_db: tuple[float, ...] = ()
    """Those links [dB], with --planner."""
    bandwidth_hz: float | None = None
    """Bandwidth of those links [Hz]; the run's own if left out."""
    deadline_s: float | None = None
    """Deadline of transfers over those links [s]; the run's own if left out."""
    allow_new_base: bool = False
    """Accept another base model than that of the release before."""
    mqtt: str | None = None
    """Broker to tell once the release is in force, mqtt://HOST:PORT or mqtts:// for TLS; user and
    password in the address, or in RANKCAST_MQTT_USER and RANKCAST_MQTT_PASSWORD."""
