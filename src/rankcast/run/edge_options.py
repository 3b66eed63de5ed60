"""What the commands of a device take; see `options`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class _DeviceOptions:
    """What syncing once and syncing for ever have in common."""

    server: str
    """Address of the delivery server, such as https://adapters.example."""
    adapter: str
    """Name of the adapter."""
    folder: Path
    """Folder for blobs and state; one for each adapter."""
    base_fingerprint: str | None = None
    """Fingerprint of the base model on this device, 64 hexadecimal digits."""
    base_model: Path | None = None
    """Folder of the base model: to take the fingerprint from (needs torch), for gguf, and where a
    module travels as a difference."""
    format: Literal["peft", "vllm", "gguf", "rcast"] = "peft"
    """peft: LoRA with a rank for each projection. vllm: padded to one rank. gguf: for llama.cpp.
    rcast: as it came."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder of the versions and of `current`, the link to the one in force; FOLDER/adapter if left
    out."""
    hook: str | None = None
    """Command that makes a server read the adapter again and checks it, such as "systemctl reload
    llama"; it finds the folder in RANKCAST_ADAPTER. Any status but 0 brings the one before back."""
    hook_timeout_s: float = 60.0
    """After which the hook is ended and counts as failed [s]."""
    vllm_url: str | None = None
    """Address of a running vLLM, such as http://127.0.0.1:8000, to load the adapter into by its
    name; instead of a hook."""
    root: Path | None = None
    """First root metadata of whoever publishes, if this device has none yet."""
    root_sha256: str | None = None
    """SHA-256 of that root, as rankcast keys init printed it: refuses any other."""
    token: str | None = None
    """The device's token; others on this machine may see it, so prefer --token-file."""
    token_file: Path | None = None
    """File with the device's token."""
    deadline_s: float = 60.0
    """Time for a transfer [s]; what has not arrived by then is resumed the next time."""
    whole: bool = False
    """Put nothing in force before all that the deadline allows is here. Otherwise a device without
    an adapter begins with the first chunks if they are known to be nearly as good."""
    max_bps: float | None = None
    """Bandwidth cap [bit/s]."""
    snr_db: float | None = None
    """Received Es/N0 [dB], with --bandwidth-hz; the measured throughput if left out."""
    bandwidth_hz: float | None = None
    """Bandwidth [Hz]."""
    rate_model: str = "awgn"
    """What a link of that SNR carries."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class EdgeSync(_DeviceOptions):
    """Fetch, verify and activate what is new, once; go back by itself if it does not work.

    rankcast edge sync --server https://adapters.example --adapter sst2 --folder /var/lib/sst2
    --base-model models/minilm --token-file token

    Killed or cut off at any moment, it goes on with the next call and asks for no byte twice. The
    exit status is 0 if the newest adapter is in force, 1 if it failed its proof.
    """


@dataclass(frozen=True, kw_only=True)
class EdgeWatch(_DeviceOptions):
    """Sync again and again until it is stopped.

    rankcast edge watch --server https://adapters.example --adapter sst2 --folder /var/lib/sst2
    --base-model models/minilm --token-file token --every-s 60

    What failed its proof is not tried again by itself; rankcast edge sync does that.
    """

    every_s: float = 60.0
    """From the end of a sync to the next [s], drawn between a half and the whole of it."""
    mqtt: str | None = None
    """Broker that rankcast publish --mqtt tells of releases, mqtt://HOST:PORT, or mqtts:// for TLS;
    a message wakes the next sync and decides nothing. User and password in the address, or in
    RANKCAST_MQTT_USER and RANKCAST_MQTT_PASSWORD."""
    mqtt_delay_s: float = 15.0
    """From a message to the sync that it causes at least [s]: longer than caches keep
    timestamp.json. Messages in between count as one."""
    mqtt_jitter_s: float = 30.0
    """Most that chance adds to it [s], so that not all devices come at once."""


@dataclass(frozen=True, kw_only=True)
class EdgeStatus:
    """Show what is in force, what went wrong, and what happened.

    rankcast edge status --folder /var/lib/sst2
    """

    folder: Path
    """The folder of rankcast edge sync."""
    json: bool = False
    """Print the state as JSON."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Edge:
    """Keep an adapter on this device up to date.

    rankcast edge sync --server URL --adapter NAME --folder FOLDER --base-model MODEL

    rankcast edge status --folder FOLDER
    """

    action: tyro.conf.OmitSubcommandPrefixes[
        Annotated[EdgeSync, tyro.conf.subcommand("sync")]
        | Annotated[EdgeWatch, tyro.conf.subcommand("watch")]
        | Annotated[EdgeStatus, tyro.conf.subcommand("status")]
    ]

    @property
    def debug(self) -> bool:
        """Whether errors show their traceback."""
        return self.action.debug
