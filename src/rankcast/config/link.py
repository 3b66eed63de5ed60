"""Settings of the radio link: how its SNR moves, what it carries, and until when.

`LinkConfig.process` names the group of settings that is read; the other groups are ignored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from rankcast.errors import LinkError

FadingName = Literal["rayleigh", "rician", "nakagami"]
TraceKind = Literal["snr", "throughput"]
"""The quantity in a trace: SNR [dB], or throughput [bit/s]."""
TraceFormat = Literal["csv", "rows", "mahimahi"]
"""How a trace is written; see `rankcast.link.traces`."""
ProcessName = Literal["iid", "static", "block", "gauss-markov", "jakes", "path", "trace"]
RateModelName = Literal[
    "awgn",
    "rayleigh_ergodic",
    "rayleigh_outage",
    "rician_ergodic",
    "rician_outage",
    "nakagami_ergodic",
    "nakagami_outage",
    "truncated_shannon",
    "nr_64qam",
    "nr_256qam",
]
Accounting = Literal["exact", "paper", "paper_with_singular_values"]
"""How many numbers one more rank of a projection costs.

- `exact`: d_in + d_out + 1, what is really sent.
- `paper`: 2·d_h for every projection, the convention of Table IV (OPT-1.3B at r = 8 is
  24·6·8·2·2048 = 4,718,592); it undercounts fc1 and fc2.
- `paper_with_singular_values`: 2·d_h + 1, as written in Eq. 2 and 6.
"""
DeadlineRule = Literal["enforce", "penalise"]
"""Whether Eq. 7 is a constraint (default) or, as in the paper's reward, only a price."""


@dataclass(frozen=True)
class IidConfig:
    """SNR that is drawn anew at every step, as in the paper.

    Attributes:
        values_db: values to draw from [dB]. Comparisons show one plan for each, also where another
            process is trained on.
    """

    values_db: tuple[float, ...] = (-5.0, 0.0, 5.0, 10.0, 15.0)


@dataclass(frozen=True)
class StaticConfig:
    """SNR that never changes.

    Attributes:
        snr_db: received Es/N0 [dB].
    """

    snr_db: float = 5.0


@dataclass(frozen=True)
class BlockConfig:
    """Fading that stays for a block of steps and is then drawn anew.

    Attributes:
        snr_db: mean SNR [dB].
        fading: distribution of |h|².
        k_factor: factor K of Rician fading, linear.
        m: shape m of Nakagami fading.
        length: steps of a block.
    """

    snr_db: float = 5.0
    fading: FadingName = "rayleigh"
    k_factor: float = 3.0
    m: float = 2.0
    length: int = 1


@dataclass(frozen=True)
class GaussMarkovConfig:
    """Shadowing that changes slowly.

    Attributes:
        snr_db: mean SNR [dB].
        std_db: spread of the SNR [dB].
        correlation: correlation from one step to the next, 0..1.
    """

    snr_db: float = 5.0
    std_db: float = 4.0
    correlation: float = 0.9


@dataclass(frozen=True)
class JakesConfig:
    """Fast fading of a moving device on top of shadowing.

    Attributes:
        snr_db: mean SNR [dB].
        speed_m_s: speed of the device [m/s].
        carrier_hz: carrier frequency [Hz].
        step_s: time between two steps [s].
        fading: distribution of |h|².
        k_factor: factor K of Rician fading, linear.
        std_db: spread of the shadowing [dB].
        decorrelation_m: distance over which the shadowing is forgotten [m].
    """

    snr_db: float = 5.0
    speed_m_s: float = 1.5
    carrier_hz: float = 3.5e9
    step_s: float = 1.0
    fading: Literal["rayleigh", "rician"] = "rayleigh"
    k_factor: float = 3.0
    std_db: float = 4.0
    decorrelation_m: float = 50.0


@dataclass(frozen=True)
class PathConfig:
    """A device that walks a path back and forth, with shadowing.

    Attributes:
        snr_db: mean SNR 100 m away from the base station [dB].
        waypoints_m: corners (x, y) of the path [m]; the base station is at the origin.
        speed_m_s: speed of the device [m/s].
        step_s: time between two steps [s].
        exponent: how fast SNR falls with distance, 10·exponent dB for ten times the distance.
        std_db: spread of the shadowing [dB].
        decorrelation_m: distance over which the shadowing is forgotten [m].
    """

    snr_db: float = 5.0
    waypoints_m: tuple[tuple[float, float], ...] = ((50.0, 0.0), (300.0, 0.0))
    speed_m_s: float = 1.5
    step_s: float = 1.0
    exponent: float = 3.9
    std_db: float = 4.0
    decorrelation_m: float = 50.0


@dataclass(frozen=True)
class TraceConfig:
    """A measured trace that is replayed.

    Attributes:
        file: the trace; empty for none.
        kind: what was measured. Throughput becomes its equivalent SNR in the link's bandwidth and
            needs the rate model awgn.
        format: how the file is written; rows and mahimahi hold throughput.
        time_column: column of the time stamps, of csv.
        value_column: column of SNR or throughput, of csv.
        time_format: format of the time stamps, as of `datetime.strptime`; empty for seconds.
        value_scale: factor that turns the values of a csv into dB or bit/s: 1e3 if they are kbit/s.
        step_s: time between two steps [s].
        max_gap_s: longer gaps are cut out [s]; by default 5 s, or twice the usual time between two
            rows where that is longer.
    """

    file: str = ""
    kind: TraceKind = "snr"
    format: TraceFormat = "csv"
    time_column: str = "time_s"
    value_column: str = "snr_db"
    time_format: str = ""
    value_scale: float = 1.0
    step_s: float = 1.0
    max_gap_s: float | None = None


@dataclass(frozen=True)
class RateConfig:
    """Parameters of the rate models; each model reads its own.

    Attributes:
        k_factor: factor K of Rician fading, linear.
        m: shape m of Nakagami fading.
        epsilon: share of transfers that may fail, of the outage rates.
        efficiency: share of Shannon's rate that truncated_shannon has.
        gap_db: SNR that truncated_shannon loses [dB].
        largest: highest rate of truncated_shannon [bit/s/Hz].
        impl_loss_db: SNR that a receiver of nr_64qam and nr_256qam loses [dB].
    """

    k_factor: float = 3.0
    m: float = 2.0
    epsilon: float = 0.1
    efficiency: float = 0.867
    gap_db: float = 1.0
    largest: float = 5.55
    impl_loss_db: float = 0.0


@dataclass(frozen=True)
class LinkConfig:
    """The link that a policy is trained for.

    Attributes:
        process: how SNR changes from step to step; its settings are in the group of that name.
        rate_model: how SNR becomes rate; its parameters are in the group rate.
        bandwidth_hz: bandwidth W [Hz].
        deadline_s: time T_max in which a plan has to arrive [s].
        link_weight: weight λ of the link cost in the reward (Eq. 10).
        accounting: how many numbers one more rank costs.
        bits_per_param: bits b_t of a number.
        min_rank: smallest rank of a projection.
        deadline: whether a plan must arrive in time, or only pays for being late.
        iid: SNR drawn anew at every step.
        static: SNR that never changes.
        block: fading that stays for a block of steps.
        gauss_markov: shadowing that changes slowly.
        jakes: fast fading of a moving device on shadowing.
        path: a device that walks a path.
        trace: a measured trace.
        rate: parameters of the rate models.

    Raises:
        LinkError: bandwidth or deadline not positive and finite.
    """

    process: ProcessName = "iid"
    rate_model: RateModelName = "awgn"
    bandwidth_hz: float = 100e6
    deadline_s: float = 1.0
    link_weight: float = 0.1
    accounting: Accounting = "exact"
    bits_per_param: float = 32.0
    min_rank: int = 0
    deadline: DeadlineRule = "enforce"
    iid: IidConfig = field(default_factory=IidConfig)
    static: StaticConfig = field(default_factory=StaticConfig)
    block: BlockConfig = field(default_factory=BlockConfig)
    gauss_markov: GaussMarkovConfig = field(default_factory=GaussMarkovConfig)
    jakes: JakesConfig = field(default_factory=JakesConfig)
    path: PathConfig = field(default_factory=PathConfig)
    trace: TraceConfig = field(default_factory=TraceConfig)
    rate: RateConfig = field(default_factory=RateConfig)

    def __post_init__(self) -> None:
        """Refuse a link without bandwidth or time."""
        for name in ("bandwidth_hz", "deadline_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise LinkError(f"{name} must be positive and finite, got {getattr(self, name)}.")
