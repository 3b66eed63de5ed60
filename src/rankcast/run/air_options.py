"""What the commands about the link itself take; see `options`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Send:
    """Send a file over a simulated air interface and see what arrives.

    rankcast send demo.rcast --snr-db 5 --bandwidth-hz 5e6

    rankcast send demo.rcast --snr-db 3 --bandwidth-hz 1e6 --deadline-s 0.1 --output got.rcast

    rankcast send demo.rcast --snr-db 8 --bandwidth-hz 5e6 --fading rayleigh --speed-m-s 15

    rankcast send demo.rcast --trace drive.csv --bandwidth-hz 5e6 --link table

    The bytes are cut into 5G NR transport blocks; link adaptation picks the scheme, blocks that
    fail are sent again with other redundancy. With `--link nr` they really pass checksums, LDPC
    codes, QAM, noise and decoder (pip install 'rankcast[phy]'); with `--link table` a block fails
    as often as in the simulations that the table was made from. A block that never arrives ends
    the transfer: what came before it is still an adapter.
    """

    file: tyro.conf.Positional[Path]
    """An `.rcast` file (see rankcast pack)."""
    bandwidth_hz: float
    """Bandwidth of the channel [Hz], at least 200 kHz."""
    snr_db: float | None = None
    """Mean received Es/N0 [dB]; or give a --trace."""
    trace: Path | None = None
    """Measured SNR [dB]: a CSV file with a header; the transfer begins with its first row."""
    time_column: str = "time_s"
    """Column of the trace's time stamps."""
    value_column: str = "snr_db"
    """Column of the trace's SNR."""
    time_format: str | None = None
    """Of the trace's stamps, such as %Y-%m-%d %H:%M:%S; seconds if left out."""
    deadline_s: float | None = None
    """Stop when so much time is used on the air [s]."""
    link: Literal["nr", "table"] = "nr"
    """nr: every bit is coded, sent through noise and decoded. table: blocks fail by chance."""
    table: Literal["64qam", "256qam"] = "64qam"
    """Modulation and coding schemes: table 5.1.3.1-1 or 5.1.3.1-2 of TS 38.214."""
    fading: Literal["none", "rayleigh", "rician"] = "none"
    """How the SNR changes from slot to slot (Jakes' spectrum)."""
    speed_m_s: float = 1.5
    """Speed of the device, for fading [m/s]."""
    carrier_hz: float = 3.5e9
    """Carrier frequency, for fading [Hz]."""
    k_factor: float = 3.0
    """Power of the direct path over that of the others, of rician; linear."""
    delay_profile: Literal["flat", "tdl-a", "tdl-c", "tdl-d"] = "flat"
    """Fading inside each slot, over frequency and time: a model of TR 38.901; needs --link nr."""
    delay_spread_s: float = 100e-9
    """Root mean square delay spread of the profile [s]."""
    impl_loss_db: float = 0.0
    """How much more SNR the receiver needs than an ideal one [dB]."""
    max_transmissions: int = 4
    """Of a block, the first included."""
    report_delay_slots: int = 1
    """Age of the SNR that the sender knows."""
    seed: int = 0
    """Of fading and noise."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Write what arrived: every chunk that is complete."""
    json: bool = False
    """Print the outcome as JSON."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class LinkCurves:
    """Draw what each rate model makes of an SNR, and where 5G NR loses its blocks.

    rankcast link curves --output curves.png

    rankcast link curves --bandwidth-hz 5e6 --json
    """

    bandwidth_hz: float = 100e6
    """Bandwidth of the channel [Hz]."""
    table: Literal["64qam", "256qam"] = "64qam"
    """Modulation and coding schemes."""
    impl_loss_db: float = 0.0
    """How much more SNR the receiver needs than an ideal one [dB]."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("curves.png")
    """Picture to write, as PNG, SVG or PDF by its name (needs rankcast[train])."""
    json: bool = False
    """Print the curves as JSON; no picture is drawn."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class LinkRates:
    """Say what a link carries, by every rate model.

    rankcast link rates --snr-db 5 --bandwidth-hz 5e6 --deadline-s 1

    Also says which reading of the fading fits a device of this speed: its average over the
    transfer (ergodic), or its value of the moment.
    """

    snr_db: float
    """Received Es/N0 [dB]: the mean for fading models, else of the moment."""
    bandwidth_hz: float
    """Bandwidth [Hz]."""
    deadline_s: float = 1.0
    """Time of a transfer [s]."""
    speed_m_s: float = 1.5
    """Speed of the device [m/s]."""
    carrier_hz: float = 3.5e9
    """Carrier frequency [Hz]."""
    impl_loss_db: float = 0.0
    """How much more SNR a receiver of 5G NR needs than an ideal one [dB]."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Link:
    """Look at the radio link: what it carries, and where its blocks get lost.

    rankcast link rates --snr-db 5 --bandwidth-hz 5e6

    rankcast link curves --output curves.png
    """

    action: tyro.conf.OmitSubcommandPrefixes[
        Annotated[LinkRates, tyro.conf.subcommand("rates")]
        | Annotated[LinkCurves, tyro.conf.subcommand("curves")]
    ]

    @property
    def debug(self) -> bool:
        """Whether errors show their traceback."""
        return self.action.debug
