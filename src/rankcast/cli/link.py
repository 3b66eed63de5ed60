"""`rankcast link`: simulate a radio link, and look at what it carries."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import tyro

from rankcast.cli.common import print_json
from rankcast.cli.link_budgets import LinkBudgets
from rankcast.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from rankcast.codec.header import Measure
    from rankcast.link.nr_link import NrLink
    from rankcast.link.transport import BlockChannel
    from rankcast.packaging.send import Transfer
    from rankcast.records import FloatArray

_LONG_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class LinkSend:
    """Send a file over a simulated air interface and see what arrives.

    rankcast link send demo.rcast --snr-db 5 --bandwidth-hz 5e6

    rankcast link send demo.rcast --snr-db 3 --bandwidth-hz 1e6 --deadline-s 0.1 -o got.rcast

    rankcast link send demo.rcast --snr-db 8 --bandwidth-hz 5e6 --fading rayleigh --speed-m-s 15

    rankcast link send demo.rcast --trace drive.csv --bandwidth-hz 5e6 --link table

    The bytes are cut into 5G NR transport blocks; link adaptation picks the scheme, blocks that
    fail are sent again with other redundancy. With `--link nr` they really pass checksums, LDPC
    codes, QAM, noise and decoder (pip install 'rankcast[phy]'); with `--link table` a block fails
    as often as in the simulations that the table was made from. A block that never arrives ends
    the transfer: what came before it is still an adapter.
    """

    file: tyro.conf.Positional[Path]
    """A file of rankcast pack."""
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
    """Format of the trace's stamps, such as %Y-%m-%d %H:%M:%S; seconds if left out."""
    trace_gap_s: float | None = None
    """Longer gaps of the trace are cut out [s]; 5 s by default, or twice the usual time between two
    rows where that is longer."""
    deadline_s: float | None = None
    """Stop when so much time is used on the air [s]."""
    link: Literal["nr", "table"] = "nr"
    """How blocks fail: nr codes every bit, sends it through noise and decodes it; table lets chance
    decide."""
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
    """How often a block is sent at most, the first time included."""
    report_delay_slots: int = 1
    """Age of the SNR that the sender knows, in slots."""
    seed: int = 0
    """Seed of fading and noise."""
    output: Path | None = None
    """Write what arrived: every chunk that is complete."""
    json: bool = False
    """Print the outcome as JSON."""

    def run(self, argv: Sequence[str]) -> int:
        """Send the file and print what arrived; the status is 0 if something can be used."""
        transfer = self.transfer()
        if self.output is not None and transfer.arrived is not None:
            transfer.arrived.save(self.output)
        if self.json:
            print_json(transfer.to_plain())
        else:
            _print_transfer(self, transfer)
        return 0 if transfer.arrived is not None and transfer.arrived.chunks else 1

    def transfer(self) -> Transfer:
        """Send the file with a bar on standard error.

        Raises:
            ConfigError: no SNR or two; a delay profile without `--link nr`; no Sionna.
            LinkError: a link that cannot be.
            CodecError: no file of rankcast pack.
        """
        from rankcast.codec.container import load
        from rankcast.link.nr import Carrier
        from rankcast.link.nr_link import NrLink
        from rankcast.link.transport import BlockReport, Sender
        from rankcast.packaging.send import send_container

        whole = load(self.file)
        if (self.snr_db is None) == (self.trace is None):
            raise ConfigError("Give the link's --snr-db, or a --trace of it.")
        if self.trace is not None and self.fading != "none":
            raise ConfigError("A measured trace has its fading in it: leave out --fading.")
        carrier = Carrier.for_bandwidth(self.bandwidth_hz)
        link = NrLink(carrier, self.table, self.impl_loss_db, self.max_transmissions)
        channel = self._channel(link)
        measured_db = None if self.trace is None else self._measured_db(self.trace, link)
        mean_db = self.snr_db if measured_db is None else measured_db
        assert mean_db is not None
        with _progress_bar(quiet=self.json) as bar:
            task = bar.add_task("on the air", total=whole.n_bits // 8, again=0)

            def on_block(received: int, block: BlockReport) -> None:
                again = bar.tasks[0].fields["again"] + len(block.snr_db) - 1
                bar.update(task, completed=received, again=again)

            return send_container(
                whole,
                Sender(link, report_delay_slots=self.report_delay_slots),
                channel,
                lambda rng: self._snrs_db(link, rng) if measured_db is None else measured_db,
                mean_db,
                deadline_s=math.inf if self.deadline_s is None else self.deadline_s,
                predict=self.delay_profile == "flat",
                seed=self.seed,
                progress=on_block,
            )

    def _channel(self, link: NrLink) -> BlockChannel:
        """Return what carries the blocks."""
        if self.link == "table":
            from rankcast.link.transport import AbstractChannel

            if self.delay_profile != "flat":
                raise ConfigError(
                    "A delay profile needs --link nr: the table knows one SNR a slot."
                )
            return AbstractChannel(link)
        from rankcast.phy.channel import SimulatedChannel, best_device

        device = best_device()
        if self.delay_profile == "flat":
            return SimulatedChannel(link, device=device)
        from rankcast.phy.fading import TdlModel, tapped_delay_line

        models: dict[str, TdlModel] = {"tdl-a": "A", "tdl-c": "C", "tdl-d": "D"}
        gains = tapped_delay_line(
            models[self.delay_profile],
            link.carrier,
            delay_spread_s=self.delay_spread_s,
            carrier_hz=self.carrier_hz,
            speed_m_s=self.speed_m_s,
            device=device,
        )
        return SimulatedChannel(link, gains, device=device)

    def _snrs_db(self, link: NrLink, rng: np.random.Generator) -> Iterable[float]:
        """Return the SNR of one slot after another [dB]."""
        from rankcast.link.jakes import JakesSnr
        from rankcast.link.transport import slots

        assert self.snr_db is not None
        if self.fading == "none":
            return repeat(self.snr_db)
        k_factor = self.k_factor if self.fading == "rician" else 0.0
        slot_s = link.carrier.slot_s
        process = JakesSnr(self.snr_db, self.speed_m_s, self.carrier_hz, slot_s, k_factor)
        return slots(process, rng)

    def _measured_db(self, path: Path, link: NrLink) -> FloatArray:
        """Return the SNR of every slot of the trace [dB]."""
        from rankcast.link.traces import read_csv

        columns = (self.time_column, self.value_column)
        trace = read_csv(path, "snr", *columns, time_format=self.time_format)
        return trace.sampled(link.carrier.slot_s, self.trace_gap_s)


@dataclass(frozen=True, kw_only=True)
class LinkRates:
    """Show what a link carries, by every rate model.

    rankcast link rates --snr-db 5 --bandwidth-hz 5e6 --deadline-s 1

    Also says which rate fits a device of this speed: the average over its fading (ergodic), or
    the rate of the moment.
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
    """Print the rates as JSON."""

    def run(self, argv: Sequence[str]) -> int:
        """Print the rates."""
        import numpy as np

        from rankcast.link.curves import SHOWN, efficiencies
        from rankcast.link.jakes import fitting_rate_reading
        from rankcast.link.processes import coherence_time_s

        names = (*SHOWN, "nr_64qam", "nr_256qam")
        at = efficiencies(names, np.array(self.snr_db), self.bandwidth_hz, self.impl_loss_db)
        rates_bps = {name: float(rate) * self.bandwidth_hz for name, rate in at.items()}
        coherence_s = coherence_time_s(self.speed_m_s, self.carrier_hz)
        reading = fitting_rate_reading(self.speed_m_s, self.carrier_hz, self.deadline_s)
        if self.json:
            plain = {"rate_bps": rates_bps, "coherence_time_s": coherence_s, "reading": reading}
            print_json(plain)
            return 0
        from rankcast.cli.console import number_table, stdout

        columns = ("rate model", "Mbit/s", f"kB in {self.deadline_s:g} s")
        table = number_table(*columns, left="rate model")
        for name, rate_bps in rates_bps.items():
            kilobytes = rate_bps * self.deadline_s / 8e3
            table.add_row(name, f"{rate_bps / 1e6:,.3f}", f"{kilobytes:,.1f}")
        fits = {"ergodic": "an ergodic rate, its average", "instantaneous": "awgn, its value now"}
        stdout().print(table)
        stdout().print(
            f"At {self.speed_m_s:g} m/s fading keeps its value for {1e3 * coherence_s:,.1f} ms. "
            f"For a transfer of {self.deadline_s:g} s take {fits[reading]}."
        )
        return 0


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
    output: Path = Path("curves.png")
    """Picture to write, as PNG, SVG or PDF by its name (needs rankcast[train])."""
    json: bool = False
    """Print the curves as JSON; no picture is drawn."""

    def run(self, argv: Sequence[str]) -> int:
        """Draw the curves, or print them."""
        import numpy as np

        from rankcast.link.curves import link_curves
        from rankcast.link.nr import Carrier

        curves = link_curves(self.bandwidth_hz, self.table, self.impl_loss_db)
        if self.json:
            print_json(
                {
                    "bandwidth_hz": curves.bandwidth_hz,
                    "snr_db": np.round(curves.snr_db, 3).tolist(),
                    "bit_per_s_per_hz": {
                        name: rate.tolist() for name, rate in curves.rates.items()
                    },
                    "block_error": curves.block_error.tolist(),
                }
            )
            return 0
        from rankcast.training.pictures import draw_link_curves

        draw_link_curves(self.output, curves)
        share = curves.share_of_shannon
        efficiency = Carrier.for_bandwidth(self.bandwidth_hz).efficiency
        print(
            f"{self.output}: between -5 and 15 dB 5G NR gets {share:.0%} of Shannon's rate "
            f"through, {share / efficiency:.0%} of it per resource element that carries data."
        )
        return 0


@dataclass(frozen=True, kw_only=True)
class LinkProxy:
    """Let a device reach a server on this machine as slowly as over a narrow link.

    rankcast link proxy --port 8081 --to-port 8080 --rate-bps 64000

    Give the device http://127.0.0.1:8081 as --server. Bytes pass at the same rate in both
    directions, TCP on this machine alone; Ctrl-C stops. rankcast simulate has links that change.
    """

    port: int = 8081
    """Port to listen at; 0 for any that is free."""
    to_port: int = 8080
    """Port of the server, such as rankcast serve."""
    rate_bps: float = 64e3
    """Rate of the link [bit/s]."""

    def run(self, argv: Sequence[str]) -> int:
        """Pass bytes on until told to stop."""
        with contextlib.suppress(KeyboardInterrupt), self.listening() as port:
            print(
                f"Listening on http://127.0.0.1:{port}, {self.rate_bps:,.0f} bit/s to port "
                f"{self.to_port}; Ctrl-C stops.",
                flush=True,
            )
            while True:
                time.sleep(_LONG_S)
        return 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[int]:
        """Pass bytes on in another thread; yield the port.

        Raises:
            ConfigError: ports that do not exist, or a rate that carries nothing.
            DeliveryError: a port that is taken.
        """
        import numpy as np

        from rankcast.simulation import proxy
        from rankcast.simulation.shaping import RateSchedule

        if not (0 <= self.port < 2**16 and 0 < self.to_port < 2**16):
            raise ConfigError(f"Ports lie between 1 and 65535, got {self.port} and {self.to_port}.")
        if not 0 < self.rate_bps < math.inf:
            raise ConfigError(f"--rate-bps is more than 0 [bit/s], got {self.rate_bps:g}.")
        link = proxy.DeviceLink.of(RateSchedule(np.array([self.rate_bps])))
        link.port = self.port
        with proxy.LinkProxy([link], lambda: self.to_port):
            yield link.port


@dataclass(frozen=True)
class Link:
    """Simulate a radio link: send a file over it, or see what it carries.

    rankcast link send demo.rcast --snr-db 5 --bandwidth-hz 5e6

    rankcast link rates --snr-db 5 --bandwidth-hz 5e6

    rankcast link budgets a.rcast

    rankcast link curves --output curves.png

    rankcast link proxy --port 8081 --to-port 8080 --rate-bps 64000
    """

    COMMANDS: ClassVar[dict[str, type[Any]]] = {
        "send": LinkSend,
        "rates": LinkRates,
        "budgets": LinkBudgets,
        "curves": LinkCurves,
        "proxy": LinkProxy,
    }


def _progress_bar(*, quiet: bool) -> Any:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    from rankcast.cli.console import stderr

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[again]} sent again"),
        console=stderr(),
        disable=quiet,
    )


def _print_transfer(options: LinkSend, transfer: Transfer) -> None:
    from rankcast.codec.header import measure_of

    plain, delivery = transfer.to_plain(), transfer.delivery
    received = "all of it" if delivery.complete else f"{len(delivery.received):,} bytes of it"
    schemes = plain["schemes"]
    span = f"{min(schemes)} to {max(schemes)}" if schemes else "none"
    print(
        f"{options.file}: {delivery.sent_bytes:,} bytes, {received} received in "
        f"{1e3 * delivery.air_time_s:,.1f} ms on a simulated air interface "
        f"({delivery.throughput_bps / 1e6:.3f} Mbit/s)."
    )
    print(
        f"{plain['blocks']} transport blocks, {plain['retransmissions']} sent again, "
        f"{plain['lost_blocks']} lost; schemes {span} of {options.table}."
    )
    print(
        f"For the whole file: {_prediction(options, transfer.predicted_s)}Shannon's rate would "
        f"take {_ms(transfer.shannon_s)}; in float32 it would have "
        f"{transfer.whole.header.float32_bits / 8:,.0f} bytes."
    )
    print(_usable(plain, measure_of(transfer.whole.header.task)))
    if options.output is not None and transfer.arrived is not None:
        print(f"Written: {options.output}. See rankcast info {options.output} --prefix")


def _usable(plain: dict[str, Any], measure: Measure) -> str:
    if not plain["chunks"]:
        return (
            "Nothing can be decoded: the first chunk is not complete. Give it more time or "
            "bandwidth, or pack fewer bits (rankcast pack --budget-bits)."
        )
    expected = ""
    if plain["accuracy"] is not None:
        expected = f", expected accuracy {plain['accuracy']:.1%}"
    elif plain["loss"] is not None:
        what = "divergence from the adapter" if measure == "divergence" else "loss"
        expected = f", expected {what} {plain['loss']:.3f}"
    return f"Usable: {plain['chunks']} of {plain['chunks_sent']} chunks, an adapter{expected}."


def _prediction(options: LinkSend, seconds: float) -> str:
    if options.delay_profile != "flat":
        return ""
    if math.isnan(seconds):
        return "the table predicts that it never arrives, "
    return f"the table predicts {_ms(seconds)}, "


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f} ms"
