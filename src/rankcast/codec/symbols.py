"""What writes and reads the symbols of a chunk, and what another file may say of them.

Symbols go through constriction's ANS coder. That is a stack: the symbol coded last is read first. A
writer therefore collects its symbols and codes them backwards when asked for bytes; a reader gets
them in the order in which they were written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rankcast.codec.entropy_model import FALLS, ans, near_bits, near_model
from rankcast.codec.quantiser import Indices
from rankcast.errors import CodecError


@dataclass(frozen=True, eq=False, slots=True)
class Hint:
    """Symbols that another version of the file makes likely; see `update`.

    Attributes:
        likely: symbol that is the likeliest in each place; -1 where the other version says nothing.
        moved: whether the other version is in another coarse cell, so that `likely` only points to
            its side.
        weights: of the model that the symbols have without a hint.
    """

    likely: Indices
    moved: NDArray[np.bool_] | bool = False
    weights: NDArray[np.int64] | None = None


class SymbolCoder(Protocol):
    """Writes the symbols of a chunk, or reads them, which then disregards those it is given."""

    def many(
        self, symbols: Indices | None, count: int, model: Any, hint: Hint | None = None
    ) -> Indices:
        """Code `count` symbols, integers from 0, each with the same model, and return them."""
        ...

    def near(self, symbol: int, predicted: int, size: int, likely: int | None = None) -> int:
        """Code a symbol of 0..size - 1 that is likely near `predicted`, and return it.

        Args:
            symbol: disregarded by a reader.
            predicted: from the symbols before.
            size: number of symbols.
            likely: from another version of the file; None without one.
        """
        ...


class SymbolWriter:
    """Collects symbols."""

    def __init__(self) -> None:
        self._written: list[tuple[Indices, Callable[[int], Any]]] = []
        self._differences: list[tuple[int, int, int]] = []

    def many(
        self, symbols: Indices | None, count: int, model: Any, hint: Hint | None = None
    ) -> Indices:
        """Append `count` symbols, integers from 0, each with the same model, and return them."""
        del hint
        assert symbols is not None
        assert len(symbols) == count
        if count:
            array = np.ascontiguousarray(symbols, dtype=np.int32)
            self._written.append((array, lambda _: model))
        return symbols

    def near(self, symbol: int, predicted: int, size: int, likely: int | None = None) -> int:
        """Append a symbol of 0..size - 1 that is likely near `predicted`, and return it."""
        del likely
        self._differences.append((symbol, predicted, size))
        array = np.array([symbol], dtype=np.int32)
        self._written.append((array, lambda fall: near_model(predicted, size, FALLS[fall])))
        return symbol

    def best_fall(self) -> int:
        """Return which of `FALLS` codes the differences in the fewest bits."""
        seen = Counter(self._differences).items()
        bits = [
            sum(n * near_bits(symbol, p, size, chance) for (symbol, p, size), n in seen)
            for chance in FALLS
        ]
        return int(np.argmin(bits))

    def to_bytes(self, fall: int) -> bytes:
        """Return everything written, in whole 32-bit words."""
        coder = ans.stack.AnsCoder()
        for symbols, model in reversed(self._written):
            coder.encode_reverse(symbols, model(fall))
        return coder.get_compressed().astype("<u4").tobytes()


class SymbolReader:
    """Reads what a `SymbolWriter` wrote.

    Args:
        data: what `to_bytes` returned.
        fall: which of `FALLS` it was given.

    Raises:
        CodecError: no whole number of words, no end that the coder could have written, or no such
            fall.
    """

    def __init__(self, data: bytes | memoryview, fall: int) -> None:
        if len(data) % 4:
            raise CodecError(f"A chunk's symbols come in words of 4 bytes, got {len(data)} bytes.")
        if not 0 <= fall < len(FALLS):
            raise CodecError(f"A chunk names table {fall} of differences; there are {len(FALLS)}.")
        self._fall = fall
        try:
            words = np.frombuffer(data, dtype="<u4").astype(np.uint32)
            self._coder = ans.stack.AnsCoder(words)
        except ValueError as error:
            raise CodecError(f"A chunk's symbols are damaged: {error}") from error

    def many(
        self, symbols: Indices | None, count: int, model: Any, hint: Hint | None = None
    ) -> Indices:
        """Return the next `count` symbols; `symbols` is disregarded."""
        del symbols, hint
        if not count:
            return np.zeros(0, dtype=np.int32)
        return self._coder.decode(model, count)

    def near(self, symbol: int, predicted: int, size: int, likely: int | None = None) -> int:
        """Return the next symbol that is likely near `predicted`; `symbol` is disregarded."""
        del symbol, likely
        return int(self._coder.decode(near_model(predicted, size, FALLS[self._fall]), 1)[0])

    def close(self) -> None:
        """Raise CodecError unless everything was read."""
        if not self._coder.is_empty():
            raise CodecError("A chunk holds more symbols than its plan calls for.")
