"""What surrounds the learner in the MDP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from rankcast.errors import ConfigError, nearest

Payment = Literal["plan", "increase"]
"""Whether a step pays for all its ranks (the paper) or for what the device lacks."""


@dataclass(frozen=True)
class EnvConfig:
    """What surrounds the learner.

    Attributes:
        bandwidth_hz: W_t [Hz], constant (the paper: 100 MHz) unless `bandwidth_octaves` says else.
        deadline_s: T_max [s] (the paper: 1 s).
        link_weight: λ of Eq. 10.
        horizon: T_env, steps of an episode; reaching it truncates.
        payment: `plan` pays for all ranks at every step (Eq. 10); `increase` only for what exceeds
            the ranks that the device has received in this delivery, and an episode is a delivery.
        bandwidth_octaves: o; at each step the bandwidth is W·2^u, u uniform in [-o, o] and
            independent of everything else.

    Raises:
        ConfigError: an empty episode, an unknown way of paying, or a negative spread.
    """

    bandwidth_hz: float = 100e6
    deadline_s: float = 1.0
    link_weight: float = 0.1
    horizon: int = 15
    payment: Payment = "plan"
    bandwidth_octaves: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        if self.horizon < 1:
            raise ConfigError(f"horizon must be at least 1 step, got {self.horizon}.")
        if self.payment not in get_args(Payment):
            hint = nearest(self.payment, get_args(Payment))
            raise ConfigError(f"There is no payment {self.payment!r}{hint}.")
        if not 0.0 <= self.bandwidth_octaves < float("inf"):
            raise ConfigError(
                f"bandwidth_octaves must be at least 0 and finite, got {self.bandwidth_octaves}."
            )
