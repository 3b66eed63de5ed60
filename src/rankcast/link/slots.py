"""The SNR of slot after slot, and what a sender is told of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rankcast.link.process import SnrProcess, check_finite


class Reports:
    """The slots that are left, and the SNR that the sender knows."""

    def __init__(self, snr_db: Iterator[float], delay: int, n_slots: float) -> None:
        self._snr_db, self._n_slots = snr_db, n_slots
        self._next: float | None = None
        self._past: list[float] = []
        self._delay = delay
        self.used = 0

    def report(self) -> float | None:
        """Return the last SNR that the sender was told, or None when no slot is left."""
        if self._peek() is None:
            return None
        seen = [*self._past, self._next]
        return seen[max(0, len(seen) - 1 - self._delay)]

    def slot(self) -> float | None:
        """Use the next slot and return its SNR, or None when no slot is left."""
        now = self._peek()
        if now is None:
            return None
        self._past = [*self._past, now][-max(self._delay, 1) :]
        self._next = None
        self.used += 1
        return now

    def _peek(self) -> float | None:
        if self.used >= self._n_slots:
            return None
        if self._next is None:
            self._next = next(self._snr_db, None)
            if self._next is not None:
                check_finite("SNR", self._next)
        return self._next


def slots(process: SnrProcess, rng: np.random.Generator) -> Iterator[float]:
    """Yield the SNR [dB] of one slot after another; the process's step is a slot."""
    state = process.start(rng, 1)
    while True:
        yield float(state.snr_db[0])
        state = process.advance(state, rng)
