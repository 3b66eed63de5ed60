"""The radio of a run: settings that name a process, a rate model and a deadline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rankcast.allocation.base import AllocationProblem, DeadlineRule
from rankcast.errors import LinkError
from rankcast.link.capacity import RateModel, rate_model
from rankcast.link.costs import LinkCostModel
from rankcast.link.fading import BlockFadingSnr, GaussMarkovSnr, IidSnr, StaticSnr
from rankcast.link.gains import Fading, Nakagami, Rayleigh, Rician
from rankcast.link.payload import Accounting
from rankcast.link.process import SnrProcess
from rankcast.records import AdapterLayout, LinkState


@dataclass(frozen=True)
class LinkConfig:
    """The link that a policy is trained for.

    Attributes:
        process: how SNR changes from step to step.
        values_db: SNR values of `iid` [dB]; comparisons use the same values.
        snr_db: SNR of `static`, mean of `block` and `gauss-markov` [dB].
        fading: distribution of |h|² of `block`.
        block_length: steps of a block.
        std_db: spread of `gauss-markov` [dB].
        correlation: of `gauss-markov`, between one step and the next.
        rate_model: how SNR becomes rate (`rankcast.link.capacity.RATE_MODELS`).
        k_factor: K of Rician fading.
        m: m of Nakagami fading.
        epsilon: share of transfers that may fail, of the outage rate models.
        bandwidth_hz: W_t [Hz].
        deadline_s: T_max [s].
        link_weight: λ of Eq. 10.
        accounting: what one more rank costs (`rankcast.link.payload.Accounting`).
        bits_per_param: b_t.
        min_rank: smallest rank of a projection.
        deadline: whether a plan must arrive in time, or only pays for being late.

    Raises:
        LinkError: an SNR that is not finite; bandwidth or deadline not positive and finite.
    """

    process: Literal["iid", "static", "block", "gauss-markov"] = "iid"
    values_db: tuple[float, ...] = (-5.0, 0.0, 5.0, 10.0, 15.0)
    snr_db: float = 5.0
    fading: Literal["rayleigh", "rician", "nakagami"] = "rayleigh"
    block_length: int = 1
    std_db: float = 4.0
    correlation: float = 0.9
    rate_model: str = "awgn"
    k_factor: float = 3.0
    m: float = 2.0
    epsilon: float = 0.1
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
        """The values of `iid`, else the mean [dB]."""
        return self.values_db if self.process == "iid" else (self.snr_db,)

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

    def rates(self) -> RateModel:
        """Return how SNR becomes rate."""
        fading, _, kind = self.rate_model.partition("_")
        wanted = {"rician": ("k_factor",), "nakagami": ("m",)}.get(fading, ())
        names = (*wanted, "epsilon") if kind == "outage" else wanted
        return rate_model(self.rate_model, **{name: getattr(self, name) for name in names})

    def problem(self, layout: AdapterLayout) -> AllocationProblem:
        """Return the allocation problem over a layout (Eq. 9).

        Raises:
            ConfigError: settings that make no sense for this layout.
        """
        costs = LinkCostModel.for_layout(layout, self.rates(), self.accounting, self.bits_per_param)
        return AllocationProblem(layout, costs, self.link_weight, self.min_rank, self.deadline)

    def _fading(self) -> Fading:
        match self.fading:
            case "rayleigh":
                return Rayleigh()
            case "rician":
                return Rician(self.k_factor)
            case "nakagami":
                return Nakagami(self.m)
