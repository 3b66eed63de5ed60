"""How to simulate."""

from __future__ import annotations

from dataclasses import dataclass

from rankcast.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    """How to simulate.

    Attributes:
        adapter: name of what is published.
        duration_s: [s].
        deadline_s: time that a device gives a transfer [s].
        every_s: from the end of a sync to the next, drawn between a half and the whole of it [s].
        assumed_bps: rate that a device plans with before it measured any [bit/s].
        update_at: share of the time after which the second release is published.
        resets: probability that a connection is reset.
        restart_at: share of the time after which the server is killed and started again; None for
            never.
        seed: of pauses and faults.

    Raises:
        ConfigError: a time that is not positive, or a share or probability outside 0..1.
    """

    adapter: str = "simulation"
    duration_s: float = 120.0
    deadline_s: float = 10.0
    every_s: float = 4.0
    assumed_bps: float = 1e6
    update_at: float = 0.5
    resets: float = 0.0
    restart_at: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        times = (self.duration_s, self.deadline_s, self.every_s, self.assumed_bps)
        shares = (self.resets, self.update_at, self.restart_at or 0.0)
        if not all(0 < x < float("inf") for x in times) or not all(0 <= x <= 1 for x in shares):
            raise ConfigError(
                f"A simulation has positive times and rates, and shares and probabilities from 0 "
                f"to 1, got {self}."
            )
