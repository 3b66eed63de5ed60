"""How the symbols of a file are coded for a device that has another version of it.

A symbol's model is a mixture: with a chance ρ it is drawn anew, from the model that it has in the
file, weighted towards the old symbol; otherwise it is the old one. ρ is one number for a piece of
an update. That is enough: where the model says that a symbol is rare, a change to it is, too, and
on an adapter that went on training, a chance for each strip cost more than it saved. Symbols of
which the old version says nothing (components and tensors that are new) have their own model.

Weights are whole numbers, so that two machines never disagree.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rankcast.codec.entropy_model import categorical, near_model, near_weights
from rankcast.codec.quantiser import Indices
from rankcast.codec.symbols import Hint, SymbolReader, SymbolWriter
from rankcast.errors import CodecError

VERSION = 1
_SETTINGS = {"old": (2, 2), "new": (4, 2), "rate": (6, 5), "moved": (11, 5)}
"""What the models of a piece have in common, as its first bit in a word, behind the version, and
its bits: the chance of a class and the like where the other file has one, and where it has none;
the rate of change, and that where the coarse cell is another one already."""
_WORD = 2
"""Bytes of these."""
_CHANCES = (0.004, 0.03, 0.12, 0.4)
"""Of one more unit of difference from a class, an offset, an exponent that is likely."""
_WHOLE = 2**22
_RATES = tuple((_WHOLE >> k // 2) * (46341 if k % 2 else 65536) // 65536 for k in range(32))
"""Chances of change in 2^-22: 2^(-k/2)."""
_PULL = 3, 10
"""A changed symbol is that much less likely for each unit away from the old one."""


@dataclass(frozen=True, slots=True)
class _Near:
    """Symbols that are likely near another.

    Attributes:
        setting: by whose number the models differ.
        predicted: the other symbol.
        size: number of symbols.
    """

    setting: Literal["old", "new"]
    predicted: int
    size: int

    def model(self, number: int) -> Any:
        """Return constriction's model."""
        return near_model(self.predicted, self.size, _CHANCES[number])

    def weights(self, number: int) -> NDArray[np.int64]:
        """Return the weights of it."""
        return near_weights(self.predicted, self.size, _CHANCES[number])


@dataclass(frozen=True, slots=True)
class _Change:
    """Symbols that are likely the same as in the other file.

    Attributes:
        setting: by whose number the models differ.
        likely: that symbol.
        own: weights of the symbols' own model.
    """

    setting: Literal["rate", "moved"]
    likely: int
    own: tuple[int, ...]

    def model(self, number: int) -> Any:
        """Return constriction's model."""
        return _change_model(self.own, self.likely, number)

    def weights(self, number: int) -> NDArray[np.int64]:
        """Return the weights of it."""
        return np.array(change_weights(self.own, self.likely, number))


def change_weights(weights: Sequence[int], likely: int, rate: int) -> list[int]:
    """Return integer weights of symbols that are mostly the same as before, in whole numbers.

    Args:
        weights: of a symbol that is drawn anew.
        likely: the symbol before.
        rate: which of `_RATES` is the chance that it is.
    """
    pulled = []
    for symbol, weight in enumerate(weights):
        share = 2**16
        for _ in range(abs(symbol - likely)):
            share = share * _PULL[0] // _PULL[1]
        pulled.append(weight * max(share, 1))
    total = sum(pulled)
    changed = [max(1, _RATES[rate] * weight // total) for weight in pulled]
    changed[likely] += _WHOLE - _RATES[rate]
    return changed


@lru_cache(maxsize=4096)
def _change_model(weights: tuple[int, ...], likely: int, rate: int) -> Any:
    return categorical(np.array(change_weights(weights, likely, rate)))


_Key = _Near | _Change
_SAME = (1, 1)
"""Weights of `same` and `other`, where only that is coded at first."""


class _ChangeCoder(ABC):
    """Divides symbols by what the other file says of them."""

    @abstractmethod
    def _code(self, symbols: Indices | None, count: int, model: Any) -> Indices:
        """Code symbols with a `_Key` or with a model of constriction's."""

    def near(self, symbol: int, predicted: int, size: int, likely: int | None = None) -> int:
        """Code a symbol that is likely near another, and return it."""
        key = _Near("new", predicted, size)
        if likely is not None:
            key = _Near("old", min(max(likely, 0), size - 1), size)
        return int(self._code(np.array([symbol], dtype=np.int32), 1, key)[0])

    def many(
        self, symbols: Indices | None, count: int, model: Any, hint: Hint | None = None
    ) -> Indices:
        """Code `count` symbols and return them."""
        if hint is None or not count:
            return self._code(symbols, count, model)
        if hint.weights is None:
            return self._flagged(symbols, model, hint.likely)
        weights = tuple(hint.weights.tolist())
        kinds = np.where(hint.likely < 0, 0, 2 * hint.likely + 2 + hint.moved)
        result = np.empty(count, dtype=np.int32)
        for kind in np.unique(kinds).tolist():
            (here,) = np.nonzero(kinds == kind)
            setting = "moved" if kind % 2 else "rate"
            key = _Change(setting, kind // 2 - 1, weights) if kind else model
            result[here] = self._code(None if symbols is None else symbols[here], len(here), key)
        return result

    def _flagged(self, symbols: Indices | None, model: Any, likely: Indices) -> Indices:
        """Code of symbols with a large model whether they are the same, and then the others."""
        (known,) = np.nonzero(likely >= 0)
        result = likely.copy()
        flags = None if symbols is None else (symbols != likely)[known].astype(np.int32)
        flags = self._code(flags, len(known), _Change("rate", 0, _SAME))
        other = np.ones(len(likely), dtype=bool)
        other[known] = flags > 0
        rest = None if symbols is None else symbols[other]
        result[other] = self._code(rest, int(other.sum()), model)
        return result


class ChangeWriter(_ChangeCoder):
    """Collects the symbols of a piece."""

    def __init__(self) -> None:
        self._written: list[tuple[Indices, Any]] = []

    def _code(self, symbols: Indices | None, count: int, model: Any) -> Indices:
        assert symbols is not None
        assert len(symbols) == count
        if count:
            self._written.append((symbols, model))
        return symbols

    def to_bytes(self) -> bytes:
        """Return everything written, with the settings that make it short."""
        settings = {name: self._best(name, 2**bits) for name, (_, bits) in _SETTINGS.items()}
        writer = SymbolWriter()
        for symbols, key in self._written:
            model = key.model(settings[key.setting]) if isinstance(key, _Key) else key
            writer.many(symbols, len(symbols), model)
        word = VERSION + sum(settings[name] << first for name, (first, _) in _SETTINGS.items())
        # The last word is not 0, so that the zeros at its end can be put back.
        return word.to_bytes(_WORD, "little") + writer.to_bytes(0).rstrip(b"\0")

    def _best(self, setting: str, n: int) -> int:
        """Return which of the `n` numbers of a setting costs the fewest bits."""
        joined: dict[_Key, list[Indices]] = {}
        for symbols, key in self._written:
            if isinstance(key, _Key) and key.setting == setting:
                joined.setdefault(key, []).append(symbols)
        bits = np.zeros(n)
        for key, parts in joined.items():
            weights = np.array([key.weights(number) for number in range(n)], dtype=np.float64)
            counts = np.bincount(np.concatenate(parts), minlength=weights.shape[1])
            bits += np.log2(weights.sum(axis=1, keepdims=True) / weights) @ counts
        return int(np.argmin(bits))


class ChangeReader(_ChangeCoder):
    """Reads what a `ChangeWriter` wrote.

    Args:
        data: what `to_bytes` returned.

    Raises:
        CodecError: too short, or of another version.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        if len(data) < _WORD:
            raise CodecError("A piece of an update is cut short.")
        word = int.from_bytes(data[:_WORD], "little")
        if word & 3 != VERSION:
            raise CodecError("The update is of another version than this program reads.")
        self._settings = {
            name: word >> first & 2**bits - 1 for name, (first, bits) in _SETTINGS.items()
        }
        body = bytes(data[_WORD:])
        self._reader = SymbolReader(body + bytes(-len(body) % 4), 0)

    def _code(self, symbols: Indices | None, count: int, model: Any) -> Indices:
        del symbols
        model = model.model(self._settings[model.setting]) if isinstance(model, _Key) else model
        return self._reader.many(None, count, model)

    def close(self) -> None:
        """Raise CodecError unless everything was read."""
        self._reader.close()
