"""Labels as classes, whoever wrote the table: pandas, a spreadsheet, JSON, the hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rankcast.errors import DataError, nearest
from rankcast.learner.texts import shown

_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})(\.0*)?")  # 01 is a code, not the number 1
_FRACTION = re.compile(r"[+-]?([0-9]*[.,][0-9]+|[0-9]+([.,]|(?=e)))(e[+-]?[0-9]+)?", re.IGNORECASE)
_LIST = re.compile(r"\[(.*[0-9,'\"].*)?\]|\{(.*['\"].*)?\}", re.DOTALL)  # or a dictionary


def sorted_labels(where: object, values: Sequence[Any]) -> tuple[str, ...]:
    """Return the distinct labels: in numeric order if they are whole numbers, else by name.

    Raises:
        DataError: a label that is missing, a list or fractional, or both numbers and words.
    """
    words = _label_words(where, values)
    texts = [
        i for i, v in enumerate(values) if isinstance(v, str) and not _WHOLE.fullmatch(words[i])
    ]
    numbers = [i for i, v in enumerate(values) if isinstance(v, int | float)]
    if texts and numbers:
        raise DataError(
            f"{where}: labels are words in rows {shown(texts)} and numbers in rows "
            f"{shown(numbers)}. Write all of them as words, or all as numbers."
        )
    names = set(words)
    return tuple(sorted(names, key=int if all(map(_WHOLE.fullmatch, names)) else str))


def label_indices(where: object, values: Sequence[Any], names: Sequence[str]) -> tuple[int, ...]:
    """Map labels to classes, by name or else by index.

    An index counts only if the names are words: where they are numbers, `1` is the class
    called `1` and nothing else.

    Raises:
        DataError: a label that is neither.
    """
    index = {_word(name): i for i, name in enumerate(names)}
    if not all(map(_WHOLE.fullmatch, index)):
        index = {str(i): i for i in range(len(names))} | index
    words = _label_words(where, values)
    wrong = [i for i, word in enumerate(words) if word not in index]
    if wrong:
        raise DataError(
            f"{where}: label {words[wrong[0]]!r} in rows {shown(wrong)} is neither one of the "
            f"classes {', '.join(names)} nor an index from 0 to {len(names) - 1}"
            f"{nearest(words[wrong[0]], names)}."
        )
    return tuple(index[word] for word in words)


def _label_words(where: object, values: Sequence[Any]) -> list[str]:
    """Return labels as words, and refuse what is no class."""
    words = [_word(value) for value in values]
    for is_wrong, why in _WRONG.items():
        rows = [i for i, word in enumerate(words) if is_wrong(values[i], word)]
        if rows:
            label = repr(values[rows[0]])[:40]
            raise DataError(f"{where}: the label {label} in rows {shown(rows)} {why}")
    return words


def _word(value: Any) -> str:
    """Return a label as a word: 1, 1.0, True, "1", "1.0" and " +1 " are the same class."""
    if value is None:
        return ""
    if isinstance(value, bool | float) and float(value).is_integer():
        value = int(value)
    word = str(value).strip()
    return str(int(word.partition(".")[0])) if _WHOLE.fullmatch(word) else word


def _is_fraction(value: Any, word: str) -> bool:
    if isinstance(value, float):
        return not value.is_integer()
    return bool(_FRACTION.fullmatch(word))


def _is_missing(_: Any, word: str) -> bool:
    return word.casefold() in ("", "nan")


def _is_several(value: Any, word: str) -> bool:
    return isinstance(value, list | tuple | dict | bytes) or bool(_LIST.fullmatch(word))


_WRONG = {
    _is_missing: "is missing: fill it in, or remove the row.",
    _is_several: "is no single class. Keep one label of a text, or give each a row of its own.",
    _is_fraction: "is neither a whole number nor a word. Regression is not supported: sort such "
    "numbers into named classes, or set the label column to none for a causal model.",
}
"""What no class can be, and why, in the order in which it is looked for."""
