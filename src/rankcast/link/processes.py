"""How SNR moves from one decision to the next: seeded, vectorised, resumable processes.

What h does *between* decisions is here; what it does *during* one transfer is the rate model's
business (`rankcast.link.capacity`). Compare `coherence_time_s` with the deadline and the time
between decisions:

| the device | process | rate model |
|---|---|---|
| as in the paper (Table II) | `IidSnr` | `Awgn` |
| nothing moves | `StaticSnr` | `Awgn` if SNR is measured, `Outage` if only its mean is |
| coherence time above the deadline | `BlockFadingSnr`, or `JakesSnr` on shadowing | `Awgn` |
| likewise, but |h|² is unknown when a plan is made | `GaussMarkovSnr`, `PathSnr` | `Outage` |
| coherence time far below it (walking, driving) | `GaussMarkovSnr`, `PathSnr` | `Ergodic` |
| SNR was measured | `ReplayedSnr.of_snr` | `Awgn`; `Ergodic` if its readings are means |
| throughput was measured | `ReplayedSnr.of_throughput` | `Awgn` only |

At 1.5 m/s and 3.5 GHz the coherence time is 24 ms, so the paper's 1 s deadline spans about forty;
`rankcast.link.jakes.fitting_rate_reading` draws the line at ten. Where |h|² is in the process
(`BlockFadingSnr`, `JakesSnr`, throughput), `Ergodic` or `Outage` would count it twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rankcast.errors import CheckpointError, LinkError
from rankcast.link.capacity import Fading
from rankcast.records import FloatArray, IntArray

_LIGHT_M_S = 299_792_458.0
SMALLEST_GAIN = 1e-12
"""-120 dB: keeps the deepest fade finite in dB."""


def _nothing() -> FloatArray:
    return np.zeros((0, 0))


@dataclass(frozen=True, slots=True, eq=False)
class SnrState:
    """The state of B sequences; with the generator's state, all that resuming needs.

    Attributes:
        snr_db: (B,) SNR now [dB].
        age: (B,) steps since the present value was drawn, 0 on the step that drew it.
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
        # Older checkpoints have no hidden parts.
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


def fresh(snr_db: FloatArray) -> SnrState:
    """Return a state that was drawn just now."""
    return SnrState(snr_db, np.zeros(len(snr_db), dtype=np.int64))


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


@dataclass(frozen=True)
class StaticSnr:
    """The same SNR at every step.

    Attributes:
        snr_db: SNR [dB].

    Raises:
        LinkError: SNR is not finite.
    """

    snr_db: float

    def __post_init__(self) -> None:
        """Refuse an SNR that is no number."""
        check_finite("SNR", self.snr_db)

    def start(self, rng: np.random.Generator, size: int) -> SnrState:  # noqa: ARG002 - protocol
        """Return `size` copies."""
        return fresh(np.full(checked_size(size), self.snr_db, dtype=np.float64))

    def advance(self, state: SnrState, rng: np.random.Generator) -> SnrState:  # noqa: ARG002
        """Return the same SNR, one step older."""
        return SnrState(state.snr_db, state.age + 1)


@dataclass(frozen=True)
class IidSnr:
    """A new value at every step, uniformly from a list: the paper's (Table II).

    Attributes:
        values_db: the values [dB].

    Raises:
        LinkError: no values, or one that is not finite.
    """

    values_db: tuple[float, ...] = (-5.0, 0.0, 5.0, 10.0, 15.0)

    def __post_init__(self) -> None:
        """Refuse an empty list and values that are no numbers."""
        if not self.values_db:
            raise LinkError("IidSnr needs at least one value in dB.")
        check_finite("Every SNR value", *self.values_db)

    def start(self, rng: np.random.Generator, size: int) -> SnrState:
        """Draw `size` values."""
        values = np.asarray(self.values_db, dtype=np.float64)
        return fresh(values[rng.integers(len(values), size=checked_size(size))])

    def advance(self, state: SnrState, rng: np.random.Generator) -> SnrState:
        """Draw again; the state decides only how many."""
        return self.start(rng, len(state.snr_db))


@dataclass(frozen=True)
class BlockFadingSnr:
    """Small-scale fading that holds for a block of steps and is then redrawn (Sec. III-A).

    Attributes:
        mean_snr_db: SNR at the mean power gain [dB].
        fading: distribution of |h|².
        block_length: steps of a block, at least 1; coherence time over decision interval.

    Raises:
        LinkError: mean SNR not finite, or an impossible block length.
    """

    mean_snr_db: float
    fading: Fading
    block_length: int = 1

    def __post_init__(self) -> None:
        """Refuse a mean that is no number and a block without steps."""
        check_finite("Mean SNR", self.mean_snr_db)
        if self.block_length < 1 or self.block_length != int(self.block_length):
            raise LinkError(
                f"A fading block lasts a whole number of steps, at least 1, "
                f"got {self.block_length}."
            )

    def start(self, rng: np.random.Generator, size: int) -> SnrState:
        """Draw `size` gains, each at a random point of its block."""
        snr_db = self._draw(rng, checked_size(size))
        return SnrState(snr_db, rng.integers(self.block_length, size=size))

    def advance(self, state: SnrState, rng: np.random.Generator) -> SnrState:
        """Redraw the gains whose block is over."""
        due = state.age + 1 >= self.block_length
        snr_db = state.snr_db.copy()
        snr_db[due] = self._draw(rng, int(due.sum()))
        return SnrState(snr_db, np.where(due, 0, state.age + 1))

    def _draw(self, rng: np.random.Generator, size: int) -> FloatArray:
        gain = np.maximum(self.fading.sample(rng, size), SMALLEST_GAIN)
        return self.mean_snr_db + 10.0 * np.log10(gain)


@dataclass(frozen=True)
class GaussMarkovSnr:
    """Shadowing: a first-order autoregressive process in dB, stationary from the first step.

    x' - μ = ρ·(x - μ) + √(1 - ρ²)·σ·n with n ~ N(0, 1), so that x ~ N(μ, σ²) at every step
    (M. Gudmundson, Correlation model for shadow fading in mobile radio systems, 1991).

    Attributes:
        mean_db: μ [dB].
        std_db: σ ≥ 0 [dB]; 3GPP TR 38.901 has 4/6 dB for UMa and 4/7.82 dB for UMi (LOS/NLOS).
        correlation: ρ in [0, 1] between decisions; see `shadowing_correlation`.

    Raises:
        LinkError: a mean that is not finite, σ below 0, or ρ outside [0, 1].
    """

    mean_db: float
    std_db: float
    correlation: float

    def __post_init__(self) -> None:
        """Refuse parameters without a stationary distribution."""
        check_finite("Mean SNR", self.mean_db)
        if not (math.isfinite(self.std_db) and self.std_db >= 0):
            raise LinkError(f"The standard deviation must be at least 0 dB, got {self.std_db}.")
        if not 0.0 <= self.correlation <= 1.0:
            raise LinkError(f"The correlation must lie in [0, 1], got {self.correlation}.")

    def start(self, rng: np.random.Generator, size: int) -> SnrState:
        """Draw `size` values from N(μ, σ²)."""
        return fresh(self.mean_db + self.std_db * rng.standard_normal(checked_size(size)))

    def advance(self, state: SnrState, rng: np.random.Generator) -> SnrState:
        """Take one autoregressive step."""
        innovation = math.sqrt(1.0 - self.correlation**2) * self.std_db
        noise = rng.standard_normal(len(state.snr_db))
        deviation = self.correlation * (state.snr_db - self.mean_db) + innovation * noise
        return fresh(self.mean_db + deviation)


def shadowing_correlation(speed_m_s: float, step_s: float, decorrelation_m: float) -> float:
    """Return ρ = e^{-v·Δt/d_corr} for `GaussMarkovSnr` (Gudmundson, 1991).

    Args:
        speed_m_s: speed of the device [m/s].
        step_s: time between decisions [s].
        decorrelation_m: d_corr [m]; 3GPP TR 38.901 has 37/50 m for UMa, 10/13 m for UMi (LOS/NLOS).

    Raises:
        LinkError: a negative or infinite value, or no decorrelation distance.
    """
    if not (0 <= speed_m_s < math.inf and 0 <= step_s < math.inf and decorrelation_m > 0):
        raise LinkError(
            f"Speed and step must be at least 0 and the decorrelation distance positive, "
            f"got {speed_m_s} m/s, {step_s} s, {decorrelation_m} m."
        )
    return math.exp(-speed_m_s * step_s / decorrelation_m)


def coherence_time_s(speed_m_s: float, carrier_hz: float) -> float:
    """Return 0.423/f_d [s] with the Doppler spread f_d = v·f_c/c (Rappaport, Eq. 5.40.c).

    Args:
        speed_m_s: speed of the device or of what surrounds it [m/s]; 0 gives infinity.
        carrier_hz: carrier frequency [Hz].

    Raises:
        LinkError: a negative speed, or a carrier that is not positive.
    """
    spread_hz = doppler_hz(speed_m_s, carrier_hz)
    return 0.423 / spread_hz if spread_hz > 0 else math.inf


def doppler_hz(speed_m_s: float, carrier_hz: float) -> float:
    """Return the Doppler spread f_d = v·f_c/c [Hz].

    Args:
        speed_m_s: speed of the device or of what surrounds it [m/s].
        carrier_hz: carrier frequency [Hz].

    Raises:
        LinkError: a negative speed, or a carrier that is not positive.
    """
    if not (0 <= speed_m_s < math.inf and 0 < carrier_hz < math.inf):
        raise LinkError(
            f"Speed must be at least 0 and the carrier positive, "
            f"got {speed_m_s} m/s and {carrier_hz} Hz."
        )
    return speed_m_s * carrier_hz / _LIGHT_M_S


@dataclass(frozen=True)
class SummedSnr:
    """Gains that multiply, such as shadowing and fast fading: their decibels add up.

    Attributes:
        parts: independent processes; as a rule all means but one are 0 dB.

    Raises:
        LinkError: no part.
    """

    parts: tuple[SnrProcess, ...]

    def __post_init__(self) -> None:
        """Refuse a sum of nothing."""
        if not self.parts:
            raise LinkError("A sum of processes needs at least one part.")

    def start(self, rng: np.random.Generator, size: int) -> SnrState:
        """Begin every part."""
        return _joined([part.start(rng, size) for part in self.parts])

    def advance(self, state: SnrState, rng: np.random.Generator) -> SnrState:
        """Advance every part."""
        states, at = [], 0
        for part in self.parts:
            width = int(state.hidden[0, at])
            snr_db, age = state.hidden[:, at + 1], state.hidden[:, at + 2].astype(np.int64)
            hidden = state.hidden[:, at + 3 : at + 3 + width]
            states.append(part.advance(SnrState(snr_db, age, hidden), rng))
            at += 3 + width
        return _joined(states)


def _joined(states: Sequence[SnrState]) -> SnrState:
    """Return one state: each part's width, SNR, age and hidden parts, side by side."""
    rows = []
    for state in states:
        width = np.full(len(state.age), state.hidden.shape[1], dtype=np.float64)
        rows.append(np.column_stack([width, state.snr_db, state.age, state.hidden]))
    snr_db = np.sum([state.snr_db for state in states], axis=0)
    return SnrState(snr_db, states[0].age, np.column_stack(rows))
