"""What `rankcast rehearse` takes; see `options`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Rehearse:
    """Rehearse a roll-out: a cloud and many devices on this machine, over changing links.

    rankcast rehearse --devices 50 --minutes 2

    rankcast rehearse demo.rcast --resets 0.05 --restart-server --output rehearsal.json

    rankcast rehearse --store store --name sst2 --trace drive.csv --bandwidth-hz 5e6 --radio

    The server is rankcast serve, the devices are the client of rankcast edge, with real signatures;
    each reaches the server through a port of its own, behind which bytes pass as fast as its link
    carries them at that moment. Half-way a second version is published. Everything is signed with
    keys of the rehearsal. The exit status is 1 if a device ended without an adapter although its
    link carried twice what the smallest prefix needs. Needs pip install 'rankcast[serve]'.
    """

    adapter: tyro.conf.Positional[Path | None] = None
    """A file of rankcast pack, or the folder of a run; one is made up if left out."""
    store: Path | None = None
    """Take the adapter from a store that rankcast publish wrote."""
    name: str | None = None
    """Of the adapter in the store."""
    next: Path | None = None
    """The second version: a file or folder; the first with weights changed a little if left out."""
    devices: int = 50
    """Number of devices."""
    minutes: float = 2.0
    """How long to rehearse."""
    deadline_s: float = 10.0
    """Time that a device gives a transfer [s]."""
    every_s: float = 4.0
    """From the end of a device's sync to its next [s], drawn between a half and the whole of it."""
    process: Literal["iid", "static", "block", "gauss-markov", "jakes", "path", "trace"] = (
        "gauss-markov"
    )
    """How the SNR of a link changes from step to step; each device has its own mean."""
    snr_range_db: tuple[float, float] = (-5.0, 15.0)
    """Mean SNR of the worst device and of the best [dB]; of iid, the values that are drawn."""
    std_db: float = 4.0
    """Spread of gauss-markov, and of the shadowing of jakes and path [dB]."""
    correlation: float = 0.9
    """Of gauss-markov, from one step to the next."""
    fading: Literal["rayleigh", "rician", "nakagami"] = "rayleigh"
    """Of block and jakes."""
    speed_m_s: float = 1.5
    """Speed of the devices, of jakes and path [m/s]."""
    step_s: float = 1.0
    """After which the rate of a link changes [s]."""
    trace: Path | None = None
    """Measured trace that every device plays from a place of its own; sets --process trace."""
    trace_kind: Literal["snr", "throughput"] = "snr"
    """What it holds."""
    trace_format: Literal["csv", "rows", "mahimahi"] = "csv"
    """How it is written; rows and mahimahi hold throughput."""
    time_column: str = "time_s"
    """Column of the trace's time stamps."""
    value_column: str = "snr_db"
    """Column of its SNR or throughput."""
    time_format: str = ""
    """Of its stamps, such as %Y-%m-%d %H:%M:%S; seconds if left out."""
    value_scale: float = 1.0
    """What makes its values dB or bit/s: 1e3 if they are kbit/s."""
    rate_model: str = "awgn"
    """How SNR becomes rate."""
    bandwidth_hz: float | None = None
    """Of each device [Hz]; if left out, such that the median link just carries the whole adapter
    within the deadline."""
    radio: bool = False
    """Devices plan with the SNR of the moment, as a modem tells it, not with what they measured."""
    resets: float = 0.0
    """Probability that a connection is reset, somewhere in its first 20 kB."""
    restart_server: bool = False
    """Kill the server after three quarters of the time and start it again."""
    seed: int = 0
    """Of links, pauses and faults; threads and sockets add chance of their own."""
    work: Path | None = None
    """Keep keys, store, logs and devices in this folder, which must be empty."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Write everything as JSON."""
    csv: Path | None = None
    """Write a row for each device."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""
