"""`rankcast simulate`: a fleet on this machine, with its cloud and links; no torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from rankcast.cli.common import INTERRUPTED, print_json, stop_on_signal
from rankcast.config.link import (
    BlockConfig,
    FadingName,
    GaussMarkovConfig,
    IidConfig,
    JakesConfig,
    LinkConfig,
    PathConfig,
    ProcessName,
    RateModelName,
    StaticConfig,
    TraceConfig,
    TraceFormat,
    TraceKind,
)
from rankcast.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from rankcast.codec.container import Container
    from rankcast.release.manifest import Manifest
    from rankcast.simulation.fleet import Fleet
    from rankcast.simulation.links import Links
    from rankcast.simulation.shards import Shard
    from rankcast.simulation.sums import FleetSums

_RESTART_AT = 0.75
_SAMPLE = 256
"""Devices by whose links the bandwidth is chosen, with --virtual."""
_LINKS, _RELEASES = 1, 2
"""Streams of chance that follow from the seed."""


@dataclass(frozen=True, kw_only=True)
class Simulate:
    """Simulate a fleet: a cloud and many devices over changing links.

    rankcast simulate --devices 50 --minutes 2

    rankcast simulate demo.rcast --resets 0.05 --restart-server --output simulation.json

    rankcast simulate --store store --name sst2 --trace drive.csv --bandwidth-hz 5e6 --radio

    The server is rankcast serve, the devices are the client of rankcast edge, with real signatures;
    each reaches the server through a port of its own, behind which bytes pass as fast as its link
    carries them at that moment. Half-way a second version is published. Everything is signed with
    keys made for the simulation. The exit status is 1 if a device ended without an adapter although
    its link carried twice what the smallest prefix needs. Needs pip install 'rankcast[serve]'.

    rankcast simulate --devices 100000 --virtual

    With --virtual nothing is real but the rules of a device and the links, so that a hundred
    thousand devices take seconds.

    rankcast simulate --devices 1000000 --virtual --ray local --workers 2

    With --ray the devices are divided among the processors of a Ray cluster, with the same results.
    Needs pip install 'rankcast[ray]'.
    """

    adapter: tyro.conf.Positional[Path | None] = None
    """A file of rankcast pack, or the folder of a run; one is made up if left out."""
    store: Path | None = None
    """Take the adapter from a store that rankcast publish wrote."""
    name: str | None = None
    """Name of the adapter in the store."""
    next: Path | None = None
    """The second version: a file or folder; the first with weights changed a little if left out."""
    devices: int = 50
    """Number of devices."""
    minutes: float = 2.0
    """How long to simulate."""
    deadline_s: float = 10.0
    """Time that a device gives a transfer [s]."""
    every_s: float = 4.0
    """From the end of a device's sync to its next [s], drawn between a half and the whole of it."""
    process: ProcessName = "gauss-markov"
    """How the SNR of a link changes from step to step; each device has its own mean."""
    snr_range_db: tuple[float, float] = (-5.0, 15.0)
    """Mean SNR of the worst device and of the best [dB]; of iid, the values that are drawn."""
    std_db: float = 4.0
    """Spread of gauss-markov, and of the shadowing of jakes and path [dB]."""
    correlation: float = 0.9
    """Correlation of gauss-markov from one step to the next."""
    fading: FadingName = "rayleigh"
    """Fading of block and jakes."""
    speed_m_s: float = 1.5
    """Speed of the devices, of jakes and path [m/s]."""
    step_s: float = 1.0
    """Time after which the rate of a link changes [s]."""
    trace: Path | None = None
    """Measured trace that every device plays from a place of its own; sets --process trace."""
    trace_kind: TraceKind = "snr"
    """Kind of values in the trace."""
    trace_format: TraceFormat = "csv"
    """How the trace is written; rows and mahimahi hold throughput."""
    time_column: str = "time_s"
    """Column of the trace's time stamps."""
    value_column: str = "snr_db"
    """Column of its SNR or throughput."""
    time_format: str = ""
    """Format of its time stamps, such as %Y-%m-%d %H:%M:%S; seconds if left out."""
    value_scale: float = 1.0
    """Factor that makes its values dB or bit/s: 1e3 if they are kbit/s."""
    trace_gap_s: float | None = None
    """Longer gaps of the trace are cut out [s]; 5 s by default, or twice the usual time between two
    rows where that is longer."""
    rate_model: RateModelName = "awgn"
    """How SNR becomes rate."""
    bandwidth_hz: float | None = None
    """Bandwidth of each device [Hz]; if left out, such that the median link just carries the whole
    adapter within the deadline."""
    radio: bool = False
    """Devices plan with the SNR that a modem reports, not with what they measured."""
    resets: float = 0.0
    """Probability that a connection is reset, somewhere in its first 20 kB."""
    restart_server: bool = False
    """Kill the server after three quarters of the time and start it again."""
    virtual: bool = False
    """Compute the devices in simulated time, without server, sockets and signatures."""
    ray: str | None = None
    """Address of a Ray cluster that computes them; auto for one that runs here, local for a new
    one on this machine. Its nodes need this version of rankcast, and a --trace at the same path."""
    workers: int = 2
    """Processors of the cluster that --ray local starts."""
    seed: int = 0
    """Seed of links, pauses and faults; threads and sockets add chance of their own."""
    work: Path | None = None
    """Keep keys, store, logs and devices in this folder, which must be empty."""
    output: Path | None = None
    """Write everything as JSON."""
    csv: Path | None = None
    """Write a row for each device."""
    json: bool = False
    """Print JSON."""

    def run(self, argv: Sequence[str]) -> int:
        """Simulate, print what came out, and return the exit status."""
        import json

        if self.virtual:
            return self._run_virtual()
        import fastapi  # noqa: F401 the server needs it, and here its absence is told at once

        from rankcast.files import put_file
        from rankcast.simulation.report import LiveSummary, csv_of, print_report
        from rankcast.simulation.run import Simulation
        from rankcast.simulation.settings import SimulationSettings

        self._check()
        name, releases = self.releases()
        links = self.links(sum(len(chunk) for chunk in releases[0][0].chunks))
        settings = SimulationSettings(
            adapter=name, duration_s=60.0 * self.minutes, deadline_s=self.deadline_s,
            every_s=self.every_s, assumed_bps=links.median_bps, resets=self.resets,
            restart_at=_RESTART_AT if self.restart_server else None, seed=self.seed,
        )  # fmt: skip
        with self._folder() as folder, stop_on_signal("the transfers under way") as stopping:
            with LiveSummary(settings.duration_s, hidden=self.json) as live:
                simulation = Simulation(settings, links, releases, folder)
                result = simulation.run(stopping, live.update)
            interrupted = stopping()
        plain = {"settings": asdict(settings), "link": self._described(links), **result.to_plain()}
        if self.output is not None:
            put_file(self.output, (json.dumps(plain, indent=2) + "\n").encode())
        if self.csv is not None:
            put_file(self.csv, csv_of(result).encode())
        if self.json:
            print_json(plain)
        else:
            print_report(result, links, self._link_words(links))
        if interrupted:
            return INTERRUPTED
        return 0 if result.succeeded else 1

    def _run_virtual(self) -> int:
        import json

        from rankcast.files import put_file
        from rankcast.simulation.report import FleetProgress, print_fleet
        from rankcast.simulation.shards import RayWorkers, Sharding, shards_here

        self._check()
        links, fleet = self.fleet(self.manifests())
        sharding = Sharding(fleet, with_rows=self.csv is not None)
        with ExitStack() as stack:
            compute = shards_here
            if self.ray is not None:  # which changes what signals do
                compute = stack.enter_context(RayWorkers(self.ray, self.workers)).shards
            stopping = stack.enter_context(stop_on_signal("the devices under way"))
            bar = stack.enter_context(FleetProgress(self.devices, hidden=self.json))
            sums = self._gathered(compute(sharding, stopping), bar.advance)
            interrupted = stopping()
        plain = {
            "settings": asdict(fleet.settings), "link": self._described(links),
            "summary": sums.summary(),
        }  # fmt: skip
        if self.output is not None:
            put_file(self.output, (json.dumps(plain, indent=2) + "\n").encode())
        if self.json:
            print_json(plain)
        else:
            print_fleet(sums, links, self._link_words(links))
        return INTERRUPTED if interrupted else 0

    def _gathered(self, shards: Iterator[Shard], advance: Callable[[int], None]) -> FleetSums:
        """Add shards up, and write the rows of each as it comes."""
        from rankcast.files import replace_file
        from rankcast.simulation.report import FLEET_COLUMNS

        def gather(file: Path | None) -> FleetSums:
            sums: FleetSums | None = None
            with ExitStack() as stack:
                rows = None if file is None else stack.enter_context(file.open("w", newline=""))
                if rows is not None:
                    rows.write(",".join(FLEET_COLUMNS) + "\r\n")
                for shard in shards:
                    if rows is not None:
                        rows.write(shard.rows)
                    sums = shard.sums if sums is None else sums + shard.sums
                    advance(shard.sums.counts["devices"])
            assert sums is not None  # a fleet has one device at least
            return sums

        if self.csv is None:
            return gather(None)
        self.csv.parent.mkdir(parents=True, exist_ok=True)
        return replace_file(self.csv, gather)

    def manifests(self) -> tuple[Manifest, Manifest]:
        """Publish both releases in a folder of a moment, and return what devices would be told.

        Raises:
            CodecError: no adapter there.
            DeliveryError: a store that lacks it, or a file without all its chunks.
        """
        from rankcast.simulation.cloud import Cloud

        name, (first, second) = self.releases()
        with self._folder() as folder:
            cloud = Cloud(folder, name)
            return cloud.publish(first), cloud.publish(second)

    def fleet(self, manifests: tuple[Manifest, Manifest]) -> tuple[Links, Fleet]:
        """Return the links of some devices, and the fleet that is to be computed.

        Args:
            manifests: of the first release and of the second.

        Raises:
            ConfigError: links that cannot be.
            LinkError: an impossible link.
        """
        from rankcast.simulation.fleet import Fleet
        from rankcast.simulation.settings import SimulationSettings

        n_bytes = sum(chunk.blob.n_bytes for chunk in manifests[0].files[0].chunks)
        sample = replace(self, devices=min(self.devices, _SAMPLE)).links(n_bytes)
        settings = SimulationSettings(
            adapter=manifests[0].name, duration_s=60.0 * self.minutes,
            deadline_s=self.deadline_s, every_s=self.every_s, assumed_bps=sample.median_bps,
            seed=self.seed,
        )  # fmt: skip
        links = _FleetLinks(replace(self, bandwidth_hz=sample.bandwidth_hz), n_bytes)
        return sample, Fleet(settings, self.devices, links, manifests)

    def releases(self) -> tuple[str, tuple[Sequence[Container], Sequence[Container]]]:
        """Return a name, the files of the first release and those of the second.

        Raises:
            CodecError: no adapter there.
            DeliveryError: a store that lacks it, or a file without all its chunks.
        """
        import numpy as np

        from rankcast.packaging.pack import load_or_pack
        from rankcast.release.store import Store
        from rankcast.simulation import releases

        seed = int(np.random.default_rng([self.seed, _RELEASES]).integers(2**31))
        name = self.name or "simulation"
        if self.store is not None:
            name, first = releases.published(Store(self.store), self.name)
        elif self.adapter is not None:
            first = [load_or_pack(self.adapter)]
        else:
            first = [releases.made_up_adapter(seed)]
        first = [releases.publishable(container) for container in first]
        if self.next is not None:
            second = [releases.publishable(load_or_pack(self.next))]
        else:
            second = [releases.next_adapter(container, seed + 1) for container in first]
        return name, (first, second)

    def links(
        self,
        adapter_bytes: int,
        rng: np.random.Generator | None = None,
        values_db: tuple[float, float] | None = None,
    ) -> Links:
        """Return the links of all devices.

        Args:
            adapter_bytes: of the first release, to find a bandwidth that fits.
            rng: draws them; follows from the seed if left out.
            values_db: ends of the values of iid [dB]; `snr_range_db` if left out.

        Raises:
            ConfigError: a rate model that needs a bandwidth, or a modem without SNR.
            LinkError: an impossible link.
        """
        import numpy as np

        from rankcast.simulation.links import simulated_links

        return simulated_links(
            self._link_config(values_db or self.snr_range_db),
            rng or np.random.default_rng([self.seed, _LINKS]),
            n_devices=self.devices,
            duration_s=60.0 * self.minutes,
            step_s=self.step_s,
            snr_range_db=self.snr_range_db,
            bandwidth_hz=self.bandwidth_hz,
            adapter_bytes=adapter_bytes,
            radio=self.radio,
        )

    def _link_config(self, values_db: tuple[float, float]) -> LinkConfig:
        """Return process and rate model, with a mean of 0 dB that each device moves."""
        low, high = values_db
        given_hz = self.bandwidth_hz
        levels_db = tuple(low + (high - low) * share for share in (0.0, 0.25, 0.5, 0.75, 1.0))
        if self.process == "jakes" and self.fading == "nakagami":
            raise ConfigError("The process jakes has the fading rayleigh or rician.")
        return LinkConfig(
            process="trace" if self.trace is not None else self.process,
            rate_model=self.rate_model,
            bandwidth_hz=LinkConfig.bandwidth_hz if given_hz is None else given_hz,
            deadline_s=self.deadline_s,
            iid=IidConfig(levels_db),
            static=StaticConfig(0.0),
            block=BlockConfig(0.0, self.fading),
            gauss_markov=GaussMarkovConfig(0.0, self.std_db, self.correlation),
            jakes=JakesConfig(
                0.0, speed_m_s=self.speed_m_s, step_s=self.step_s, std_db=self.std_db,
                fading="rician" if self.fading == "rician" else "rayleigh",
            ),
            path=PathConfig(
                0.0, speed_m_s=self.speed_m_s, step_s=self.step_s, std_db=self.std_db
            ),
            trace=TraceConfig(
                file="" if self.trace is None else str(self.trace), kind=self.trace_kind,
                format=self.trace_format, time_column=self.time_column,
                value_column=self.value_column, time_format=self.time_format,
                value_scale=self.value_scale, step_s=self.step_s, max_gap_s=self.trace_gap_s,
            ),
        )  # fmt: skip

    def _check(self) -> None:
        if self.devices < 1 or not self.minutes > 0:
            raise ConfigError("A simulation has at least one device and takes more than 0 minutes.")
        if self.virtual and (self.resets or self.restart_server or self.work is not None):
            raise ConfigError(
                "--virtual has no connections to reset, no server to restart and no folders: leave "
                "out --resets, --restart-server and --work."
            )
        if self.ray is not None and (not self.virtual or self.workers < 1):
            raise ConfigError(
                "--ray computes the devices of --virtual: add --virtual, and one or more --workers."
            )
        if self.adapter is not None and self.store is not None:
            raise ConfigError("Give a file or a --store, not both.")
        if self.process == "trace" and self.trace is None:
            raise ConfigError("The process trace needs a file: --trace FILE.")
        if self.work is not None and self.work.exists() and any(self.work.iterdir()):
            raise ConfigError(f"{self.work} is not empty; name a new folder with --work.")

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        if self.work is not None:
            self.work.mkdir(parents=True, exist_ok=True)
            yield self.work
            return
        with tempfile.TemporaryDirectory(prefix="rankcast-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def _described(self, links: Links) -> dict[str, Any]:
        return {
            "process": "trace" if self.trace is not None else self.process,
            "trace": None if self.trace is None else self.trace.name,
            "snr_range_db": list(self.snr_range_db),
            "rate_model": self.rate_model,
            "bandwidth_hz": links.bandwidth_hz,
            "step_s": self.step_s,
            "planned_with": "radio" if self.radio else "measured throughput",
            "median_bps": links.median_bps,
        }

    def _link_words(self, links: Links) -> str:
        process = "trace" if self.trace is not None else self.process
        if links.snr_db is None:
            return f"{process}, throughput as it was measured"
        width_khz = links.bandwidth_hz / 1e3
        return f"{process}, {self.rate_model}, {width_khz:,.1f} kHz for each device"


@dataclass(frozen=True)
class _FleetLinks:
    """Makes the links of some devices of a fleet, in whichever process they are wanted.

    Attributes:
        command: with the number of all devices, and a bandwidth.
        adapter_bytes: of the first release.
    """

    command: Simulate
    adapter_bytes: int

    def __call__(self, block: range, rng: np.random.Generator) -> Links:
        command = self.command
        ends = self._mean_db(block.start), self._mean_db(block.stop - 1)
        some = replace(command, devices=len(block), snr_range_db=ends)
        return some.links(self.adapter_bytes, rng, values_db=command.snr_range_db)

    def _mean_db(self, device: int) -> float:
        """Return the mean SNR of a device: they lie evenly between the worst and the best [dB]."""
        low, high = self.command.snr_range_db
        last = self.command.devices - 1
        return high if 0 < device == last else low + device * ((high - low) / max(1, last))
