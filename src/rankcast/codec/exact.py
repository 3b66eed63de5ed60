"""Numbers that are coded exactly, 16 bits at a time: excesses, centres, whole numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankcast.codec.entropy_model import uniform
from rankcast.codec.quantiser import Indices
from rankcast.codec.symbols import Hint, SymbolCoder
from rankcast.errors import CodecError

WholeNumbers = NDArray[np.int64]

_LENGTHS = 25
"""Bits that an excess may have."""
_LIMB = 16
"""Bits of numbers that are coded exactly, at a time."""


def code_uniform(
    coder: SymbolCoder,
    symbols: Indices | None,
    count: int,
    size: int,
    likely: Indices | None = None,
) -> Indices:
    """Code symbols of 0..size - 1 that are all as likely, or the same as another version's."""
    if size == 1:
        return np.zeros(count, dtype=np.int32)
    return coder.many(symbols, count, uniform(size), None if likely is None else Hint(likely))


def code_excess(coder: SymbolCoder, values: Indices | None, count: int) -> Indices:
    """Code numbers from 0 that are mostly small: Elias's gamma code of the number plus 1."""
    known = None if values is None else [int(v) + 1 for v in values]
    lengths = None
    if known is not None:
        lengths = np.array([v.bit_length() - 1 for v in known], dtype=np.int32)
    coded = []
    lengths = code_uniform(coder, lengths, count, _LENGTHS)
    for i, length in enumerate(lengths.tolist()):
        bits = None
        if known is not None:
            bits = np.array([known[i] >> b & 1 for b in range(length - 1, -1, -1)], dtype=np.int32)
        value = 1
        for bit in code_uniform(coder, bits, length, 2).tolist():
            value = 2 * value + bit
        coded.append(value - 1)
    return np.array(coded, dtype=np.int32)


def code_centre(
    coder: SymbolCoder, centre: np.float32, before: np.float32 | None = None
) -> np.float32:
    """Code a float32, which is mostly 0, or what it was `before` in another version of the file.

    Raises:
        CodecError: not finite.
    """
    bits, old = (
        int(np.asarray(x, dtype=np.float32).view(np.uint32)) for x in (centre, before or 0)
    )
    known = np.array([old != 0], dtype=np.int32)
    if not code_uniform(coder, np.array([bits != 0], dtype=np.int32), 1, 2, known)[0]:
        return np.float32(0)
    limbs, known = (np.array([x >> _LIMB, x % 2**_LIMB], dtype=np.int32) for x in (bits, old))
    high, low = code_uniform(coder, limbs, 2, 2**_LIMB, known if old else None).tolist()
    result = np.uint32(high << _LIMB | low).view(np.float32)
    if not np.isfinite(result):
        raise CodecError("A chunk gives a tensor a centre that is not finite.")
    return result


def code_whole(
    coder: SymbolCoder,
    values: WholeNumbers | None,
    count: int,
    before: WholeNumbers | None = None,
) -> WholeNumbers:
    """Code whole numbers of 64 bits: the lowest, then what each has above it.

    Args:
        coder: of the chunk.
        values: the numbers; disregarded by a reader.
        count: how many.
        before: those of another version of the file; None without one.
    """
    known, old = _WholeParts.of(values), _WholeParts.of(before)
    lows = code_uniform(coder, known.lows, 4, 2**_LIMB, old.lows).tolist()
    lowest = np.uint64(sum(part << _LIMB * i for i, part in enumerate(lows)))
    (bits,) = code_uniform(coder, known.bits, 1, 65, old.bits).tolist()
    result = np.zeros(count, dtype=np.uint64)
    for shift in range(0, bits, _LIMB):
        size = 2 ** min(_LIMB, bits - shift)
        limbs = code_uniform(coder, known.limbs(shift, size), count, size, old.limbs(shift, size))
        result |= limbs.astype(np.uint64) << np.uint64(shift)
    return (result + lowest).view(np.int64)


@dataclass(frozen=True, eq=False, slots=True)
class _WholeParts:
    """Whole numbers as they are coded: the lowest in four limbs, and what each has above it."""

    lows: Indices | None = None
    bits: Indices | None = None
    above: NDArray[np.uint64] | None = None

    @classmethod
    def of(cls, values: WholeNumbers | None) -> _WholeParts:
        """Return those of numbers; nothing for a reader."""
        if values is None:
            return cls()
        low = int(values.min())
        lows = [low >> shift & 2**_LIMB - 1 for shift in range(0, 64, _LIMB)]
        bits = (int(values.max()) - low).bit_length()
        above = values.view(np.uint64) - np.uint64(low % 2**64)
        return cls(np.array(lows, dtype=np.int32), np.array([bits], dtype=np.int32), above)

    def limbs(self, shift: int, size: int) -> Indices | None:
        """Return the limb of each number that begins at a bit."""
        if self.above is None:
            return None
        return (self.above >> np.uint64(shift) & np.uint64(size - 1)).astype(np.int32)
