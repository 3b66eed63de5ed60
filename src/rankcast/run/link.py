"""The radio of a run: settings that name a process, a rate model and a deadline."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from rankcast.allocation.base import AllocationProblem, DeadlineRule
from rankcast.errors import LinkError
from rankcast.link.capacity import RateModel, TruncatedShannon
from rankcast.link.composite import SummedSnr
from rankcast.link.costs import LinkCostModel
from rankcast.link.doppler import JakesSnr
from rankcast.link.fading import (
    BlockFadingSnr,
    GaussMarkovSnr,
    IidSnr,
    StaticSnr,
    shadowing_correlation,
)
from rankcast.link.gains import Fading, Nakagami, Rayleigh, Rician
from rankcast.link.mobility import PathSnr
from rankcast.link.payload import Accounting
from rankcast.link.process import SnrProcess
from rankcast.link.rate_models import parameters_of, rate_model
from rankcast.link.replay import ReplayedSnr
from rankcast.link.trace_files import read_csv, read_mahimahi, read_throughput_rows
from rankcast.link.traces import LONGEST_GAP_S, Trace, TraceKind
from rankcast.records import AdapterLayout, LinkState

TraceFormat = Literal["csv", "rows", "mahimahi"]
"""What `rankcast.link.trace_files` reads."""
_QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class LinkConfig:
    """The link that a policy is trained for.

    Attributes:
        process: how SNR changes from step to step.
        values_db: SNR values of `iid` [dB]; comparisons use the same values.
        snr_db: SNR of `static`, mean of `block`, `gauss-markov` and `jakes`, mean 100 m away of
            `path` [dB].
        fading: distribution of |h|² of `block`, and of `jakes`: Rayleigh or Rician there.
        block_length: steps of a block.
        std_db: spread of `gauss-markov`, and of the shadowing of `jakes` and `path` [dB].
        correlation: of `gauss-markov`, between one step and the next.
        step_s: time between decisions, of `trace`, `jakes` and `path` [s].
        speed_m_s: speed of the device, of `jakes` and `path` [m/s].
        carrier_hz: carrier frequency of `jakes` [Hz].
        decorrelation_m: distance in which the shadowing of `jakes` and `path` is forgotten [m].
        waypoints_m: corners (x, y) of `path` [m]; the base station is at the origin.
        exponent: how fast SNR falls along `path`, 10·exponent dB for ten times the distance.
        trace: file of `trace`.
        trace_kind: what it holds. Throughput becomes its equivalent SNR in this bandwidth
            (`rankcast.link.replay`) and needs the rate model `awgn`.
        trace_format: how it is written (`rankcast.link.trace_files`); `rows` and `mahimahi` hold
            throughput.
        time_column: of `csv`, its column of time stamps.
        value_column: of `csv`, its column of SNR or throughput.
        time_format: of `csv`, that of its stamps as of `datetime.strptime`; empty for seconds.
        value_scale: of `csv`, what makes its values dB or bit/s: 1e3 if they are kbit/s.
        max_gap_s: longer gaps are cut out of the trace [s].
        rate_model: how SNR becomes rate (`rankcast.link.rate_models`).
        k_factor: K of Rician fading.
        m: m of Nakagami fading.
        epsilon: share of transfers that may fail, of the outage rate models.
        efficiency: share of Shannon's rate that `truncated_shannon` has.
        gap_db: SNR that it loses [dB].
        largest: its highest rate [bit/s/Hz].
        impl_loss_db: SNR that a receiver of `nr_64qam` and `nr_256qam` loses [dB].
        bandwidth_hz: W_t [Hz].
        deadline_s: T_max [s].
        link_weight: λ of Eq. 10.
        accounting: what one more rank costs (`rankcast.link.payload.Accounting`).
        bits_per_param: b_t.
        min_rank: smallest rank of a projection.
        deadline: whether a plan must arrive in time, or only pays for being late.

    Raises:
        LinkError: an SNR that is not finite; bandwidth or deadline not positive and finite; a
            trace that cannot be read or replayed so.
    """

    process: Literal["iid", "static", "block", "gauss-markov", "jakes", "path", "trace"] = "iid"
    values_db: tuple[float, ...] = (-5.0, 0.0, 5.0, 10.0, 15.0)
    snr_db: float = 5.0
    fading: Literal["rayleigh", "rician", "nakagami"] = "rayleigh"
    block_length: int = 1
    std_db: float = 4.0
    correlation: float = 0.9
    step_s: float = 1.0
    speed_m_s: float = 1.5
    carrier_hz: float = 3.5e9
    decorrelation_m: float = 50.0
    waypoints_m: tuple[tuple[float, float], ...] = ((50.0, 0.0), (300.0, 0.0))
    exponent: float = 3.9
    trace: str = ""
    trace_kind: TraceKind = "snr"
    trace_format: TraceFormat = "csv"
    time_column: str = "time_s"
    value_column: str = "snr_db"
    time_format: str = ""
    value_scale: float = 1.0
    max_gap_s: float = LONGEST_GAP_S
    rate_model: str = "awgn"
    k_factor: float = 3.0
    m: float = 2.0
    epsilon: float = 0.1
    efficiency: float = TruncatedShannon.efficiency
    gap_db: float = TruncatedShannon.gap_db
    largest: float = TruncatedShannon.largest
    impl_loss_db: float = 0.0
    bandwidth_hz: float = 100e6
    deadline_s: float = 1.0
    link_weight: float = 0.1
    accounting: Accounting = "exact"
    bits_per_param: float = 32.0
    min_rank: int = 0
    deadline: DeadlineRule = "enforce"

    def __post_init__(self) -> None:
        """Build everything once, so that what is impossible is refused before a model loads."""
        if not self.values_db:
            raise LinkError("link.values_db needs at least one SNR in dB.")
        self.states((*self.values_db, self.snr_db))
        self.snr_process()
        self.rates()

    def states(self, snr_db: tuple[float, ...]) -> LinkState:
        """Return one link for each SNR [dB], with this bandwidth and deadline."""
        size = len(snr_db)
        return LinkState(
            np.array(snr_db), np.full(size, self.bandwidth_hz), np.full(size, self.deadline_s)
        )

    @property
    def expected_db(self) -> tuple[float, ...]:
        """The values of `iid`, lowest, quartiles and highest of `trace`, else the mean [dB]."""
        match self.snr_process():
            case IidSnr(values_db):
                return values_db
            case ReplayedSnr() as replayed:
                return tuple(np.quantile(replayed.values_db, _QUARTERS, method="nearest").tolist())
            case PathSnr() as path:
                return (path.mean_snr_db,)
            case _:
                return (self.snr_db,)

    @property
    def reference_db(self) -> float:
        """The SNR at which progress is judged: the middle of the values, or the mean [dB]."""
        return sorted(self.expected_db)[len(self.expected_db) // 2]

    def snr_process(self) -> SnrProcess:
        """Return how SNR changes."""
        match self.process:
            case "iid":
                return IidSnr(self.values_db)
            case "static":
                return StaticSnr(self.snr_db)
            case "block":
                return BlockFadingSnr(self.snr_db, self._fading(), self.block_length)
            case "gauss-markov":
                return GaussMarkovSnr(self.snr_db, self.std_db, self.correlation)
            case "jakes" | "path":
                return self._moving()
            case "trace":
                return self._replayed

    def rates(self) -> RateModel:
        """Return how SNR becomes rate."""
        names = parameters_of(self.rate_model)
        return rate_model(self.rate_model, **{name: getattr(self, name) for name in names})

    def problem(self, layout: AdapterLayout) -> AllocationProblem:
        """Return the allocation problem over a layout (Eq. 9).

        Raises:
            ConfigError: settings that make no sense for this layout.
        """
        costs = LinkCostModel.for_layout(layout, self.rates(), self.accounting, self.bits_per_param)
        return AllocationProblem(layout, costs, self.link_weight, self.min_rank, self.deadline)

    def _moving(self) -> SnrProcess:
        """Return fast fading on shadowing, or a path with shadowing."""
        if self.process == "path":
            return PathSnr(
                self.waypoints_m, self.speed_m_s, self.step_s, self.snr_db, self.exponent,
                self.std_db, self.decorrelation_m,
            )  # fmt: skip
        if self.fading == "nakagami":
            raise LinkError(
                "link.fading of the process jakes must be rayleigh or rician, not nakagami; use "
                "the process block for Nakagami fading."
            )
        k_factor = self.k_factor if self.fading == "rician" else 0.0
        correlation = shadowing_correlation(self.speed_m_s, self.step_s, self.decorrelation_m)
        shadowing = GaussMarkovSnr(self.snr_db, self.std_db, correlation)
        fast = JakesSnr(0.0, self.speed_m_s, self.carrier_hz, self.step_s, k_factor)
        return SummedSnr((shadowing, fast))

    @cached_property
    def _replayed(self) -> ReplayedSnr:
        """The trace as a process, read once."""
        if self.trace_kind == "snr":
            return ReplayedSnr.of_snr(self._trace(), self.step_s, self.max_gap_s)
        if self.rate_model != "awgn":
            raise LinkError(
                f"A trace of throughput says what the link carried, fading included: "
                f"link.rate_model must be awgn, not {self.rate_model}."
            )
        return ReplayedSnr.of_throughput(
            self._trace(), self.step_s, self.bandwidth_hz, self.max_gap_s
        )

    def _trace(self) -> Trace:
        """Return what was measured."""
        if not self.trace:
            raise LinkError("The process trace needs a file: set link.trace.")
        path = Path(self.trace).expanduser()
        if self.trace_format == "csv":
            return read_csv(
                path,
                self.trace_kind,
                self.time_column,
                self.value_column,
                scale=self.value_scale,
                time_format=self.time_format or None,
            )
        if self.trace_kind == "snr":
            raise LinkError(
                f"Traces of the format {self.trace_format} hold throughput, from which no SNR "
                f"follows: set link.trace_kind to throughput."
            )
        return read_throughput_rows(path) if self.trace_format == "rows" else read_mahimahi(path)

    def _fading(self) -> Fading:
        match self.fading:
            case "rayleigh":
                return Rayleigh()
            case "rician":
                return Rician(self.k_factor)
            case "nakagami":
                return Nakagami(self.m)
