"""Processes made of processes: slow times fast, and signal over interference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rankcast.errors import LinkError
from rankcast.link.process import SnrProcess, SnrState
from rankcast.records import FloatArray


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
        _check_parts(self.parts)

    def start(self, rng: np.random.Generator, size: int) -> SnrState:
        """Begin every part."""
        return _joined([part.start(rng, size) for part in self.parts], _sum_db)

    def advance(self, state: SnrState, rng: np.random.Generator) -> SnrState:
        """Advance every part."""
        return _advanced(self.parts, state, rng, _sum_db)


@dataclass(frozen=True)
class InterferedSnr:
    """SINR: a signal beside co-channel interferers, S / (1 + Σ I), all relative to the noise.

    Attributes:
        signal: SNR of the wanted signal.
        interferers: interference-to-noise ratio of each neighbour.

    Raises:
        LinkError: no interferer.
    """

    signal: SnrProcess
    interferers: tuple[SnrProcess, ...]

    def __post_init__(self) -> None:
        """Refuse interference by nobody."""
        _check_parts(self.interferers)

    def start(self, rng: np.random.Generator, size: int) -> SnrState:
        """Begin every part."""
        return _joined([part.start(rng, size) for part in self._parts], _sinr_db)

    def advance(self, state: SnrState, rng: np.random.Generator) -> SnrState:
        """Advance every part."""
        return _advanced(self._parts, state, rng, _sinr_db)

    @property
    def _parts(self) -> tuple[SnrProcess, ...]:
        return (self.signal, *self.interferers)


Combine = Callable[[Sequence[FloatArray]], FloatArray]


def _sum_db(snrs_db: Sequence[FloatArray]) -> FloatArray:
    return np.sum(snrs_db, axis=0)


def _sinr_db(snrs_db: Sequence[FloatArray]) -> FloatArray:
    signal, *others = snrs_db
    noise = 1.0 + sum(10.0 ** (other / 10.0) for other in others)
    return signal - 10.0 * np.log10(noise)


def _joined(states: Sequence[SnrState], combine: Combine) -> SnrState:
    """Return one state: each part's width, SNR, age and hidden parts, side by side."""
    rows = []
    for state in states:
        width = np.full(len(state.age), state.hidden.shape[1], dtype=np.float64)
        rows.append(np.column_stack([width, state.snr_db, state.age, state.hidden]))
    age = states[0].age
    return SnrState(combine([state.snr_db for state in states]), age, np.column_stack(rows))


def _advanced(
    parts: Sequence[SnrProcess], state: SnrState, rng: np.random.Generator, combine: Combine
) -> SnrState:
    found, at = [], 0
    for part in parts:
        width = int(state.hidden[0, at])
        snr_db, age = state.hidden[:, at + 1], state.hidden[:, at + 2].astype(np.int64)
        hidden = state.hidden[:, at + 3 : at + 3 + width]
        found.append(part.advance(SnrState(snr_db, age, hidden), rng))
        at += 3 + width
    return _joined(found, combine)


def _check_parts(parts: Sequence[SnrProcess]) -> None:
    if not parts:
        raise LinkError("A composed process needs at least one part.")
