"""The bytes of a chunk: symbols through constriction's ANS coder, and what the symbols mean.

The last symbol that is coded lies on top of the coder's stack, so a writer collects its symbols
and codes them backwards when asked for bytes; a reader gets them in the order in which they were
written. Both offer the same methods, so that one piece of code says what a chunk holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rankcast.codec.gaussian import ans, categorical
from rankcast.codec.quantise import Indices
from rankcast.errors import CodecError

FALLS = (0.12, 0.3, 0.5, 0.75)
"""Chances of one more unit of difference from what was predicted, one of which a chunk uses."""
_LENGTHS = 25
"""Bits that an excess may have."""


class SymbolPort(Protocol):
    """What codes symbols, in or out."""

    def many(self, symbols: Indices | None, count: int, model: Any) -> Indices:
        """Code `count` symbols with one model; a reader disregards `symbols`."""
        ...

    def near(self, symbol: int, predicted: int, size: int) -> int:
        """Code a symbol of 0..size - 1 that is likely near `predicted`."""
        ...


class SymbolWriter:
    """Collects symbols."""

    def __init__(self) -> None:
        self._written: list[tuple[Indices, Callable[[int], Any]]] = []
        self._differences: list[tuple[int, int, int]] = []

    def many(self, symbols: Indices | None, count: int, model: Any) -> Indices:
        """Append `count` symbols, integers from 0, each with the same model."""
        assert symbols is not None
        assert len(symbols) == count
        if count:
            array = np.ascontiguousarray(symbols, dtype=np.int32)
            self._written.append((array, lambda _: model))
        return symbols

    def near(self, symbol: int, predicted: int, size: int) -> int:
        """Append a symbol that is likely near `predicted`."""
        self._differences.append((symbol, predicted, size))
        array = np.array([symbol], dtype=np.int32)
        self._written.append((array, lambda fall: near_model(predicted, size, fall)))
        return symbol

    def best_fall(self) -> int:
        """Return which of `FALLS` codes the differences in the fewest bits."""
        seen = Counter(self._differences).items()
        bits = [
            sum(n * _bits(near_weights(p, size, fall), symbol) for (symbol, p, size), n in seen)
            for fall in range(len(FALLS))
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

    def __init__(self, data: bytes, fall: int) -> None:

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

    def many(self, symbols: Indices | None, count: int, model: Any) -> Indices:
        """Return the next `count` symbols."""
        del symbols
        if not count:
            return np.zeros(0, dtype=np.int32)
        return self._coder.decode(model, count)

    def near(self, symbol: int, predicted: int, size: int) -> int:
        """Return the next symbol that is likely near `predicted`."""
        del symbol
        return int(self._coder.decode(near_model(predicted, size, self._fall), 1)[0])

    def close(self) -> None:
        """Raise CodecError unless everything was read."""
        if not self._coder.is_empty():
            raise CodecError("A chunk holds more symbols than its plan calls for.")


def code_uniform(port: SymbolPort, symbols: Indices | None, count: int, size: int) -> Indices:
    """Code symbols of 0..size - 1 that are all as likely."""
    if size == 1:
        return np.zeros(count, dtype=np.int32)
    return port.many(symbols, count, uniform(size))


def code_excess(port: SymbolPort, values: Indices | None, count: int) -> Indices:
    """Code numbers from 0 that are mostly small: Elias's gamma code of the number plus 1."""
    known = None if values is None else [int(v) + 1 for v in values]
    lengths = None
    if known is not None:
        lengths = np.array([v.bit_length() - 1 for v in known], dtype=np.int32)
    coded = []
    lengths = code_uniform(port, lengths, count, _LENGTHS)
    for i, length in enumerate(lengths.tolist()):
        bits = None
        if known is not None:
            bits = np.array([known[i] >> b & 1 for b in range(length - 1, -1, -1)], dtype=np.int32)
        value = 1
        for bit in code_uniform(port, bits, length, 2).tolist():
            value = 2 * value + bit
        coded.append(value - 1)
    return np.array(coded, dtype=np.int32)


@lru_cache(maxsize=256)
def uniform(size: int) -> Any:
    """Return constriction's model of `size` symbols that are all as likely."""
    return ans.model.Uniform(size)


@lru_cache(maxsize=4096)
def near_model(predicted: int, size: int, fall: int) -> Any:
    """Return constriction's model of the symbols 0..size - 1 that are likely near `predicted`."""
    return categorical(near_weights(predicted, size, fall))


@lru_cache(maxsize=4096)
def near_weights(predicted: int, size: int, fall: int) -> NDArray[np.int64]:
    """Return (size,) integer weights: 2^16 at `predicted`, falling by `FALLS[fall]` a unit."""
    weights = np.empty(size, dtype=np.int64)
    for symbol in range(size):
        share = 65536.0
        for _ in range(abs(symbol - predicted)):
            share *= FALLS[fall]
        weights[symbol] = max(1, int(share))
    return weights


def _bits(weights: NDArray[np.int64], symbol: int) -> float:
    return float(np.log2(weights.sum() / weights[symbol]))
