"""Training on weights as a coder will round them, and paying for the bits that they take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankcast.codec.quantiser import EXPONENTS, step_of
from rankcast.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Rounding:
    """How weights are rounded while training.

    Attributes:
        exponents: lowest and highest exponent e of the step 3^(e / 6), drawn anew for each batch.
            Several serve a ladder of chunks, one serves a single size best.
        rate_weight: loss that one bit of the coded adapter costs [nats per bit]. It empties what is
            worth little, which is rank allocation by the coder's own measure.
        offsets: added to the exponent of each projection; empty for no offsets.

    Raises:
        ConfigError: exponents that are no range, or a negative weight.
    """

    exponents: tuple[int, int]
    rate_weight: float = 0.0
    offsets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the range."""
        low, high = self.exponents
        finest, coarsest = (low + min(self.offsets, default=0), high + max(self.offsets, default=0))
        if not (low <= high and EXPONENTS[0] <= finest and coarsest <= EXPONENTS[1]):
            raise ConfigError(
                f"Rounding needs a lowest and a highest exponent within {EXPONENTS}, got "
                f"{self.exponents} and offsets {self.offsets}."
            )
        if not self.rate_weight >= 0:
            raise ConfigError(f"rate_weight must be at least 0, got {self.rate_weight}.")

    def draw(self, rng: np.random.Generator, n_projections: int) -> list[float]:
        """Return the step of each projection for one batch.

        Raises:
            ConfigError: offsets for another number of projections.
        """
        low, high = self.exponents
        offsets = self.offsets or (0,) * n_projections
        if len(offsets) != n_projections:
            raise ConfigError(
                f"Rounding has offsets for {len(offsets)} projections, the model has "
                f"{n_projections}."
            )
        exponent = int(rng.integers(low, high + 1))
        return [float(step_of(exponent + offset)) for offset in offsets]
