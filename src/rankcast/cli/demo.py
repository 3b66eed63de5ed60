"""`rankcast demo`: train, compare and send, in minutes and without downloads."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rankcast.cli.evaluate import print_comparison
from rankcast.cli.train import Settings, stopped, train_with_progress

if TYPE_CHECKING:
    from rich.table import Table

    from rankcast.training.run import Session

_NARROW_HZ = 1e5
"""Of links on which bytes as coded matter: at 5 MHz the whole coded adapter always arrives."""
_BANDWIDTH_HZ = 5e6
_SIMULATED_DB = 5.0
"""The link over which the demo's adapter really passes the simulated air interface."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train MiniLM for minutes, compare, and draw what each link gets.

    rankcast demo

    rankcast demo --steps 150 --output runs/short

    Takes every setting that rankcast train takes. A run in runs/demo is replaced.
    """

    overwrite: bool = False
    """Replace a run in the folder given with --output."""
    json: bool = False
    """Print the comparison as JSON."""
    settings: Settings

    @classmethod
    def defaults(cls, args: Sequence[str]) -> Self:
        """Return the demo's preset."""
        from rankcast.presets import load_preset, typed_first

        return cls(settings=load_preset("demo", typed_first(args)))

    def run(self, argv: Sequence[str]) -> int:
        """Train, compare on the test split, and send the adapter."""
        from rankcast.presets import load_preset

        config = self.settings
        overwrite = self.overwrite or config.output == load_preset("demo").output
        outcome = train_with_progress(config, argv, resume=False, overwrite=overwrite)
        if not (outcome.finished and outcome.session.is_main):
            return stopped(outcome)
        print("Comparing on the test split …", file=sys.stderr)
        print_comparison(outcome.session, outcome.folder, as_json=self.json)
        if not self.json:
            from rankcast.cli.console import stdout

            snrs_db = config.link.iid.values_db
            stdout().print(narrow_table(outcome.session, outcome.folder.path, snrs_db))
        if not self.json and find_spec("sionna") is not None:
            from rankcast.cli.console import stdout

            stdout().print(air_table(outcome.folder.path, config.link.iid.values_db))
        if not self.json:
            print(
                f"Next: rankcast quickstart {outcome.folder.path} delivers the adapter to a device "
                f"on this machine."
            )
        return 0


def narrow_table(session: Session, run: Path, snrs_db: tuple[float, ...]) -> Table:
    """Return what narrow links carry: ranks at 32 bits a number beside bytes as coded.

    Args:
        session: the run in memory; its model does not have the run's adapter afterwards.
        run: its folder.
        snrs_db: Es/N0 [dB].
    """
    from rankcast.cli.console import number_table
    from rankcast.packaging.coded_links import coded_links
    from rankcast.packaging.pack import read_adapter

    table = number_table(
        "dB",
        "bytes that arrive",
        "ranks, 32 bits a number",
        "sent, as coded",
        "ranks and steps",
        "one step",
        title=f"Accuracy over {_NARROW_HZ / 1e3:g} kHz, test texts",
    )
    source = read_adapter(run)
    for link in coded_links(session.planner, session.learner, source, snrs_db, _NARROW_HZ):
        table.add_row(
            f"{link.snr_db:g}",
            f"{link.budget_bytes:,}",
            f"{link.ranks.accuracy:.1%}",
            f"{link.n_bytes:,}",
            f"{link.planned.accuracy:.1%}",
            f"{link.one_step.accuracy:.1%}",
        )
    return table


def air_table(run: Path, snrs_db: tuple[float, ...], seed: int = 0) -> Table:
    """Return air times of a run's coded adapter at each SNR.

    At one SNR the bytes really pass the simulated air interface, which needs Sionna.

    Args:
        run: folder of the run.
        snrs_db: Es/N0 [dB].
        seed: of noise and chance.
    """
    import numpy as np

    from rankcast.cli.console import number_table
    from rankcast.link.capacity import Awgn
    from rankcast.link.nr import Carrier
    from rankcast.link.nr_link import NrLink
    from rankcast.link.transport import Sender, air_times_s
    from rankcast.packaging.pack import pack

    data = pack(run, quality="small").to_bytes()
    sender = Sender(NrLink(Carrier.for_bandwidth(_BANDWIDTH_HZ)))
    table = number_table(
        "dB",
        "Shannon promises",
        "5G NR needs",
        "simulated bit by bit",
        title=f"The adapter in {len(data):,} bytes over 5G NR in {_BANDWIDTH_HZ / 1e6:g} MHz",
    )
    rng = np.random.default_rng(seed)
    for snr_db in sorted({*snrs_db, _SIMULATED_DB}):
        shannon_bps = _BANDWIDTH_HZ * float(Awgn().spectral_efficiency(np.array(snr_db)))
        times = air_times_s(sender, len(data), lambda at=snr_db: itertools.repeat(at), rng, 50)
        simulated = _simulated(sender, data, rng) if snr_db == _SIMULATED_DB else ""
        table.add_row(
            f"{snr_db:g}",
            f"{8e3 * len(data) / shannon_bps:.0f} ms",
            f"{1e3 * float(np.nanmean(times)):.0f} ms",
            simulated,
        )
    return table


def _simulated(sender: Any, data: bytes, rng: Any) -> str:
    """Send the bytes over the simulated air interface and say how that went."""
    from rankcast.phy.channel import SimulatedChannel

    channel = SimulatedChannel(sender.link)
    delivery = sender.send(data, itertools.repeat(_SIMULATED_DB), channel, rng)
    exact = "all bytes right" if delivery.received == data else "NOT all bytes right"
    again = f"{delivery.n_retransmissions} blocks sent again"
    return f"{1e3 * delivery.air_time_s:.0f} ms, {exact}, {again}"
