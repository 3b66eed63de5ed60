"""What a policy is not shown: parts of the state replaced by nominal constants.

This answers what each part of the state buys. The policy alone is blinded: whether a plan arrives,
what it costs, and what the teacher solves follow the true state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from rankcast.allocation.base import AllocationProblem
from rankcast.policy.schedule import check_choice
from rankcast.records import FloatArray, IntArray, LinkState, Observation, TextStats

StateName = Literal["snr", "bandwidth", "entropy", "oov", "ranks"]

NOMINAL_SNR_DB = 5.0


@dataclass(frozen=True, slots=True)
class Blindfold:
    """Maps a state to what the policy may see of it.

    What is shown of a hidden part is its nominal value. Features are computed from what is shown,
    so that a hidden SNR does not come back through the price of the link.

    Attributes:
        hidden: the parts that are not shown.
        bandwidth_hz: nominal W [Hz].
        snr_db: nominal SNR [dB].
        lexical_entropy: nominal H [nats].
        oov_rate: nominal ρ.
        rank: nominal rank in force, the same for every projection.

    Raises:
        ConfigError: an unknown part.
    """

    hidden: tuple[StateName, ...]
    bandwidth_hz: float
    snr_db: float = NOMINAL_SNR_DB
    lexical_entropy: float = 2.5
    oov_rate: float = 0.1
    rank: int = 0

    def __post_init__(self) -> None:
        """Refuse unknown parts."""
        for name in self.hidden:
            check_choice("part of the state", name, get_args(StateName))

    @classmethod
    def for_problem(
        cls, problem: AllocationProblem, hidden: tuple[StateName, ...] = ()
    ) -> Blindfold:
        """Return one whose nominal bandwidth carries full rank in 1 s at the nominal SNR."""
        one_hz = LinkState(np.array([NOMINAL_SNR_DB]), np.array(1.0), np.array(1.0))
        costs = problem.link_costs
        return cls(hidden, costs.full_bits / costs.budget_bits(one_hz).item())

    def __call__(self, observation: Observation) -> Observation:
        """Return B states as the policy sees them; the same object where nothing is hidden."""
        if not self.hidden:
            return observation
        link, text, size = observation.link, observation.text, observation.link.size

        def shown(name: StateName, value: FloatArray, nominal: float) -> FloatArray:
            return np.full(size, nominal) if name in self.hidden else value

        return Observation(
            LinkState(
                shown("snr", link.snr_db, self.snr_db),
                shown("bandwidth", link.bandwidth_hz, self.bandwidth_hz),
                link.deadline_s,
            ),
            TextStats(
                shown("entropy", text.lexical_entropy, self.lexical_entropy),
                shown("oov", text.oov_rate, self.oov_rate),
            ),
            self.ranks(observation.ranks),
        )

    def ranks(self, ranks: IntArray) -> IntArray:
        """Return (B, N) ranks in force as the policy sees them."""
        return np.full_like(ranks, self.rank) if "ranks" in self.hidden else ranks
