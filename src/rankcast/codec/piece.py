"""The head of a piece of a chunk: exponent, tables, and how many blocks of each group take part.

A head has 3 bytes in versions 1 and 2 (int16, uint8) and 2 bytes in version 3. There the second
byte is neither 0 nor 255, as it always is in the older ones, so that a piece tells which it has.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from rankcast.codec.blocks import LARGEST_OFFSET, GroupShape
from rankcast.codec.entropy_model import FALLS, near_bits
from rankcast.codec.exact import code_uniform
from rankcast.codec.quantiser import EXPONENTS
from rankcast.codec.symbols import SymbolCoder
from rankcast.errors import CodecError

Counts = Literal["even", "all", "full", "before"]
"""How counts of blocks are coded: all numbers as likely, as in versions 1 and 2; not at all,
because all blocks take part; likely all; likely as many as of the group before."""
_COUNTS = get_args(Counts)
_LEAN, _WITH_OFFSETS = 64, 128
_OLD, _NEW = struct.Struct("<hB"), struct.Struct("<H")
HEAD_EXPONENTS = EXPONENTS[0] - LARGEST_OFFSET, EXPONENTS[1] + LARGEST_OFFSET
"""That a head of version 3 can say."""
_N_EXPONENTS = HEAD_EXPONENTS[1] - HEAD_EXPONENTS[0] + 1
_FIRST_WORD = 256
"""Of heads of version 3: the second byte is not 0."""


@dataclass(frozen=True, slots=True)
class PieceHead:
    """What stands before the symbols of a piece.

    Attributes:
        exponent: see `ChunkPlan`.
        tables: bits 0 and 1 which of `FALLS` the differences take, 2 and 3 which of `Counts`,
            4 and 5 which of `TAILS` the indices have, 6 whether the head is of version 3, 7 whether
            offsets are coded.
    """

    exponent: int
    tables: int

    @classmethod
    def of(
        cls, exponent: int, fall: int, *, offsets: bool, lean: bool, counts: Counts, tail: int
    ) -> PieceHead:
        """Return a head; see its properties."""
        tables = fall | _COUNTS.index(counts) << 2 | tail << 4
        return cls(exponent, tables | _LEAN * lean | _WITH_OFFSETS * offsets)

    def __post_init__(self) -> None:
        """Check the tables.

        Raises:
            CodecError: tables that do not exist.
        """
        if not self.tables & _LEAN and self.tables & 127 >= len(FALLS):
            raise CodecError(f"A chunk names table {self.tables & 127} of {len(FALLS)}.")

    @classmethod
    def split(cls, piece: bytes | memoryview) -> tuple[PieceHead, bytes]:
        """Return the head of a piece and its symbols, in whole words.

        Raises:
            CodecError: too short, or no such head.
        """
        if len(piece) < _NEW.size:
            raise CodecError(f"A chunk has at least {_NEW.size} bytes, got {len(piece)}.")
        if piece[1] in (0, 255):
            if len(piece) < _OLD.size:
                raise CodecError(f"Such a chunk has at least {_OLD.size} bytes, got {len(piece)}.")
            exponent, tables = _OLD.unpack_from(piece)
            if tables & _LEAN:
                raise CodecError(f"A chunk names table {tables & 127} of {len(FALLS)}.")
            return cls(exponent, tables), bytes(piece[_OLD.size :])
        (word,) = _NEW.unpack_from(piece)
        bits, exponent = divmod(word - _FIRST_WORD, _N_EXPONENTS)
        symbols = bytes(piece[_NEW.size :])
        if bits > 127 or symbols[-1:] == b"\0":
            raise CodecError("A chunk has no head that exists, or a zero byte at its end.")
        tables = bits & 63 | (bits & 64) << 1 | _LEAN
        return cls(exponent + HEAD_EXPONENTS[0], tables), symbols + bytes(-len(symbols) % 4)

    def join(self, symbols: bytes) -> bytes:
        """Return a piece of whole words of symbols.

        Raises:
            CodecError: an exponent that cannot be said.
        """
        if not self.tables & _LEAN:
            return _OLD.pack(self.exponent, self.tables) + symbols
        low, high = HEAD_EXPONENTS
        if not low <= self.exponent <= high:
            raise CodecError(f"A chunk cannot have the step exponent {self.exponent}.")
        bits = self.tables & 63 | (self.tables & _WITH_OFFSETS) >> 1
        word = _FIRST_WORD + bits * _N_EXPONENTS + self.exponent - low
        # The last word is not 0, so that the zeros at its end can be put back.
        return _NEW.pack(word) + symbols.rstrip(b"\0")

    @property
    def fall(self) -> int:
        """Which of `FALLS` the differences take."""
        return self.tables & 3

    @property
    def counts(self) -> Counts:
        """How counts are coded."""
        return _COUNTS[self.tables >> 2 & 3]

    @property
    def tail(self) -> int:
        """Which of `TAILS` the indices of new strips have."""
        return self.tables >> 4 & 3

    @property
    def offsets(self) -> bool:
        """Whether offsets and lead digits of new blocks are coded."""
        return bool(self.tables & _WITH_OFFSETS)


def code_counts(
    coder: SymbolCoder,
    counts: Sequence[int] | None,
    shapes: Sequence[GroupShape],
    how: Counts,
    likely: Sequence[int] | None = None,
) -> list[int]:
    """Code how many blocks of each group take part, and return it.

    Args:
        coder: of the piece.
        counts: disregarded by a reader.
        shapes: of the groups.
        how: they are coded.
        likely: from another version of the file, -1 where it has no such group; None without one.
    """
    coded: list[int] = []
    before = None
    for g, shape in enumerate(shapes):
        most = shape.blocks
        if how == "all" or not most:
            coded.append(most)
            continue
        count, old = 0 if counts is None else counts[g], -1 if likely is None else likely[g]
        old = min(old, most)
        if how == "even":
            symbols, hint = (np.array([n], dtype=np.int32) for n in (count, old))
            coded.append(int(code_uniform(coder, symbols, 1, most + 1, hint)[0]))
            continue
        predicted = most if how == "full" or before is None else min(before, most)
        before = coder.near(count, predicted, most + 1, old if old >= 0 else None)
        coded.append(before)
    return coded


def best_counts(counts: Sequence[int], shapes: Sequence[GroupShape]) -> Counts:
    """Return how counts take the fewest bits."""
    pairs = [(n, shape.blocks) for n, shape in zip(counts, shapes, strict=True) if shape.blocks]
    if all(n == most for n, most in pairs):
        return "all"
    before = [pairs[0][1], *(n for n, _ in pairs[:-1])]
    bits: dict[Counts, float] = {
        "even": sum(math.log2(most + 1) for _, most in pairs),
        "full": _bits((n, most, most + 1) for n, most in pairs),
        "before": _bits(
            (n, min(b, most), most + 1) for (n, most), b in zip(pairs, before, strict=True)
        ),
    }
    return min(bits, key=lambda how: bits[how])


def _bits(differences: Iterable[tuple[int, int, int]]) -> float:
    """Return what symbols take that are likely near others, among so many."""
    seen = Counter(differences).items()
    return min(
        sum(n * near_bits(*difference, chance) for difference, n in seen) for chance in FALLS
    )
