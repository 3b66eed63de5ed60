"""What a process that moves the SNR is, and what it remembers from one decision to the next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rankcast.errors import CheckpointError, LinkError
from rankcast.records import FloatArray, IntArray


def _nothing() -> FloatArray:
    return np.zeros((0, 0))


@dataclass(frozen=True, slots=True, eq=False)
class SnrState:
    """Where B processes stand; together with the generator's state, all that resuming needs.

    Attributes:
        snr_db: (B,) SNR now [dB].
        age: (B,) steps for which the present draw has been in force, 0 on the step that drew it.
        hidden: (B, K) what else a process has to remember; K = 0 for most.
    """

    snr_db: FloatArray
    age: IntArray
    hidden: FloatArray = field(default_factory=_nothing)

    def __post_init__(self) -> None:
        """Give a state without hidden parts one row for each sequence."""
        if self.hidden.shape == (0, 0):
            object.__setattr__(self, "hidden", np.zeros((len(self.snr_db), 0)))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return named copies of the arrays, for a checkpoint."""
        return {part.name: getattr(self, part.name).copy() for part in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Rebuild a state from `to_arrays()`.

        Raises:
            CheckpointError: an array is missing, or their shapes differ.
        """
        missing = [name for name in ("snr_db", "age") if name not in arrays]
        if missing:
            raise CheckpointError(f"The stored SNR process lacks {', '.join(missing)}.")
        snr_db = np.array(arrays["snr_db"], dtype=np.float64)
        age = np.array(arrays["age"], dtype=np.int64)
        if snr_db.ndim != 1 or snr_db.shape != age.shape:
            raise CheckpointError(
                f"The stored SNR process must hold vectors of one length, "
                f"got {snr_db.shape} and {age.shape}."
            )
        # Checkpoints from before there were hidden parts lack them.
        hidden = np.array(arrays.get("hidden", np.zeros((len(age), 0))), dtype=np.float64)
        if hidden.ndim != 2 or len(hidden) != len(age):
            raise CheckpointError(
                f"The stored SNR process must hold a row of hidden parts for each of {len(age)} "
                f"sequences, got {hidden.shape}."
            )
        return cls(snr_db, age, hidden)


@runtime_checkable
class SnrProcess(Protocol):
    """B independent SNR sequences drawn from one generator.

    A process holds no state of its own: the same state and generator give the same next state.
    """

    def start(self, rng: np.random.Generator, size: int) -> SnrState:
        """Draw the first SNR of `size` sequences from the stationary distribution.

        Raises:
            LinkError: size is below 1.
        """
        ...

    def advance(self, state: SnrState, rng: np.random.Generator) -> SnrState:
        """Return the state one decision later; the given one is left as it is."""
        ...


def fresh(snr_db: FloatArray, hidden: FloatArray | None = None) -> SnrState:
    """Return a state that was drawn just now."""
    age = np.zeros(len(snr_db), dtype=np.int64)
    return SnrState(snr_db, age, _nothing() if hidden is None else hidden)


def checked_size(size: int) -> int:
    """Return a number of sequences, refusing less than one.

    Raises:
        LinkError: size below 1.
    """
    if size < 1:
        raise LinkError(f"A process needs at least one sequence, got size {size}.")
    return size


def check_finite(name: str, *values_db: float) -> None:
    """Refuse what is no number of dB.

    Raises:
        LinkError: NaN or infinity.
    """
    if not all(math.isfinite(value) for value in values_db):
        raise LinkError(f"{name} must be a finite number of dB, got {values_db}.")
