"""Ladders of many devices: how many bits each prefix of a file has, and what it is worth.

Shapes: `C` cells, `D` devices of a cell, `K` chunks of a file. Prefix 0 is nothing, so that arrays
over prefixes have K + 1 entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rankcast.errors import ConfigError
from rankcast.records import FloatArray


@dataclass(frozen=True, eq=False)
class Ladder:
    """The prefixes of one file.

    Attributes:
        prefix_bits: (K + 1,) bits of the first k chunks; starts at 0, never falls.
        worth: (K + 1,) what a device gains that has them, in any unit; starts at 0, never falls.

    Raises:
        ConfigError: other shapes, a start other than 0, or values that fall or are not finite.
    """

    prefix_bits: FloatArray
    worth: FloatArray

    def __post_init__(self) -> None:
        """Refuse what is no ladder."""
        bits, worth = (np.asarray(x, dtype=np.float64) for x in (self.prefix_bits, self.worth))
        if bits.ndim != 1 or bits.shape != worth.shape or len(bits) < 2:
            raise ConfigError(
                f"A ladder needs bits and worth of the same K + 1 ≥ 2 prefixes, got shapes "
                f"{bits.shape} and {worth.shape}."
            )
        for name, x in (("bits", bits), ("worth", worth)):
            if not np.isfinite(x).all() or x[0] != 0.0 or (np.diff(x) < 0).any():
                raise ConfigError(f"The {name} of prefixes start at 0 and never fall, got {x}.")
        object.__setattr__(self, "prefix_bits", bits)
        object.__setattr__(self, "worth", worth)

    @classmethod
    def of_losses(cls, prefix_bits: ArrayLike, losses: ArrayLike, loss_without: float) -> Ladder:
        """Return a ladder whose worth is the loss removed.

        A device that has a longer prefix can still use a shorter one. So a prefix is worth what the
        best of those up to it is worth.

        Args:
            prefix_bits: (K,) bits of the first 1..K chunks.
            losses: (K,) loss with each prefix [nats].
            loss_without: loss without any [nats].

        Raises:
            ConfigError: see the class.
        """
        bits, loss = np.asarray(prefix_bits, dtype=np.float64), np.asarray(losses, dtype=np.float64)
        worth = np.maximum.accumulate(np.concatenate([[0.0], loss_without - loss]))
        return cls(np.concatenate([[0.0], bits]), worth)

    @property
    def n_chunks(self) -> int:
        """K."""
        return len(self.worth) - 1


def stacked(ladders: Sequence[Ladder]) -> tuple[FloatArray, FloatArray]:
    """Return (len, K + 1) bits and worth; the last prefix fills what is longer in others.

    Raises:
        ConfigError: no ladder.
    """
    if not ladders:
        raise ConfigError("There must be at least one ladder.")
    n = max(ladder.n_chunks for ladder in ladders)

    def padded(x: FloatArray) -> FloatArray:
        return np.concatenate([x, np.full(n + 1 - len(x), x[-1])])

    bits = np.stack([padded(ladder.prefix_bits) for ladder in ladders])
    return bits, np.stack([padded(ladder.worth) for ladder in ladders])


def upper_hull(bits: FloatArray, worth: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return bits and worth of the prefixes on the upper concave hull of one ladder, from nothing.

    Args:
        bits: (K + 1,) as in `Ladder`.
        worth: (K + 1,).
    """
    kept = [0]
    for k in range(1, len(bits)):
        if worth[k] <= worth[kept[-1]]:
            continue
        # The middle point goes where the slope into it is not above the slope past it.
        while len(kept) > 1 and _below(bits, worth, kept[-2], kept[-1], k):
            kept.pop()
        if bits[k] > bits[kept[-1]]:
            kept.append(k)
        else:  # more worth for the same bits
            kept[-1] = k
    return bits[kept], worth[kept]


def _below(bits: FloatArray, worth: FloatArray, a: int, b: int, c: int) -> bool:
    into = (worth[b] - worth[a]) * (bits[c] - bits[a])
    return bool(into <= (worth[c] - worth[a]) * (bits[b] - bits[a]))
