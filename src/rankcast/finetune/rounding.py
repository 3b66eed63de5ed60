"""Training on weights as a coder will round them, and paying for the bits that they take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankcast.codec.quantise import EXPONENTS, step_of
from rankcast.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Rounding:
    """How weights are rounded while training.

    Attributes:
        exponents: lowest and highest exponent e of the step 3^(e / 6), drawn anew for each batch.
            Several serve a ladder of chunks, one serves a single size best.
        bit_weight: loss that one bit of the coded adapter costs [nats per bit]. It empties what is
            worth little, which is rank allocation by the coder's own measure.

    Raises:
        ConfigError: exponents that are no range, or a negative weight.
    """

    exponents: tuple[int, int]
    bit_weight: float = 0.0

    def __post_init__(self) -> None:
        """Check the range."""
        low, high = self.exponents
        if not EXPONENTS[0] <= low <= high <= EXPONENTS[1]:
            raise ConfigError(
                f"Rounding needs a lowest and a highest exponent within {EXPONENTS}, got "
                f"{self.exponents}."
            )
        if not self.bit_weight >= 0:
            raise ConfigError(f"bit_weight must be at least 0, got {self.bit_weight}.")

    def draw(self, rng: np.random.Generator) -> float:
        """Return the step for one batch."""
        low, high = self.exponents
        return float(step_of(int(rng.integers(low, high + 1))))
