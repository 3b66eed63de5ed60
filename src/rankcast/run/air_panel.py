"""The end of the demo: its adapter, coded and sent over a simulated 5G NR link."""

from __future__ import annotations

import itertools
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table

from rankcast.codec.packing import pack_at, read_adapter
from rankcast.link.abstraction import NrLink
from rankcast.link.capacity import Awgn
from rankcast.link.nr import Carrier
from rankcast.link.transport import Sender, air_times_s

BANDWIDTH_HZ = 5e6
SIMULATED_DB = 5.0


def air_panel(run: Path, snrs_db: tuple[float, ...], seed: int = 0) -> Table | None:
    """Return air times of a run's coded adapter at each SNR; None without Sionna.

    At one SNR the bytes really pass the simulated air interface.

    Args:
        run: folder of the run.
        snrs_db: Es/N0 [dB].
        seed: of noise and chance.
    """
    if find_spec("sionna") is None:
        return None
    from rankcast.phy.channel import SimulatedChannel  # noqa: PLC0415 imports Sionna

    data = pack_at(read_adapter(run), "small").to_bytes()
    sender = Sender(NrLink(Carrier.for_bandwidth(BANDWIDTH_HZ)))
    table = Table(
        title=f"The adapter in {len(data):,} bytes over 5G NR in {BANDWIDTH_HZ / 1e6:g} MHz",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name in ("dB", "Shannon promises", "5G NR needs", "simulated bit by bit"):
        table.add_column(name, justify="right")
    rng = np.random.default_rng(seed)
    for snr_db in sorted({*snrs_db, SIMULATED_DB}):
        shannon_bps = BANDWIDTH_HZ * float(Awgn().spectral_efficiency(np.array(snr_db)))
        times = air_times_s(sender, len(data), lambda at=snr_db: itertools.repeat(at), rng, 50)
        said = ""
        if snr_db == SIMULATED_DB:
            found = sender.send(data, itertools.repeat(snr_db), SimulatedChannel(sender.link), rng)
            exact = "all bytes right" if found.received == data else "NOT all bytes right"
            again = f"{found.n_retransmissions} blocks sent again"
            said = f"{1e3 * found.air_time_s:.0f} ms, {exact}, {again}"
        table.add_row(
            f"{snr_db:g}", f"{8e3 * len(data) / shannon_bps:.0f} ms",
            f"{1e3 * float(np.nanmean(times)):.0f} ms", said,
        )  # fmt: skip
    return table
