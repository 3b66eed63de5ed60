"""The header of a GGUF file: its metadata and where its tensors lie, without torch or the weights.

The layout is that of GGUF versions 2 and 3, little-endian. The file is read from its start to the
end of the header; long lists, such as a tokenizer's words, are passed over.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from rankcast.errors import ModelError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_NUMBERS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
"""Types of metadata, as `struct` names them."""
_STRING, _LIST = 8, 9
_KEPT = 4096
"""Lists of more numbers are passed over: they are a tokenizer's."""
_LONGEST = 1 << 26
"""Bytes of the longest text that is read."""
_MOST = 1 << 24
"""Tensors, keys, or dimensions' product of a list that a header may announce."""
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies.

    Attributes:
        shape: slowest axis first, as numpy has it: (d_out, d_in) of a weight.
        type: number of its quantisation (`gguf.GGMLQuantizationType`).
        start: of its first byte, from the start of the file.
        path: of the file that has it: a model may lie in several.
    """

    shape: tuple[int, ...]
    type: int
    start: int
    path: Path


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a model's GGUF says before its weights.

    Attributes:
        path: of its first file.
        metadata: by key; None for long lists and lists of texts.
        tensors: by name, of all files of the model.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GgufHeader:
        """Read the header of a file, and those of the other parts where a model has several.

        Raises:
            ModelError: no GGUF, one that is cut short or damaged, or a part that is missing.
        """
        file = Path(path)
        metadata, tensors = _read(file)
        for part in _others(file, int(metadata.get("split.count") or 1)):
            tensors |= _read(part)[1]
        return cls(file, metadata, tensors)

    def text(self, key: str) -> str:
        """Return a text of the metadata.

        Raises:
            ModelError: there is none.
        """
        value = self.metadata.get(key)
        if not isinstance(value, str):
            raise ModelError(f"{self.path} does not say its {key}; convert the model again.")
        return value

    def number(self, key: str) -> int:
        """Return a whole number of the metadata, the largest where it lists one for each layer.

        Raises:
            ModelError: there is none.
        """
        value = self.metadata.get(key)
        value = max(value) if isinstance(value, tuple) and value else value
        if not isinstance(value, int):
            raise ModelError(f"{self.path} does not say its {key}; convert the model again.")
        return value


def _others(path: Path, n_parts: int) -> list[Path]:
    """Return the other files of a model that lies in several."""
    if n_parts <= 1:
        return []
    match = _SHARD.search(path.name)
    if match is None or int(match[2]) != n_parts or int(match[1]) != 1:
        raise ModelError(
            f"{path} is one of {n_parts} parts of a model: name the first, which ends in "
            f"-00001-of-{n_parts:05}.gguf, with the others beside it."
        )
    stem = path.name[: match.start()]
    return [
        path.with_name(f"{stem}-{number:05}-of-{n_parts:05}.gguf")
        for number in range(2, n_parts + 1)
    ]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    try:
        with path.open("rb") as stream:
            return _Reader(stream, path).header()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    except (struct.error, UnicodeDecodeError, OverflowError) as error:
        raise ModelError(
            f"{path} is no whole GGUF file: its header is cut short or damaged. Fetch it again."
        ) from error


class _Reader:
    """Reads one file from its start to the end of its header."""

    def __init__(self, stream: BufferedReader, path: Path) -> None:
        self._stream, self._path = stream, path

    def header(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        magic = self._stream.read(4)
        if magic != _MAGIC:
            raise ModelError(f"{self._path} is no GGUF file: it begins with {magic!r}.")
        version = self._number("I")
        if version not in _VERSIONS:
            raise ModelError(
                f"{self._path} is GGUF version {version}, little-endian versions "
                f"{' and '.join(map(str, _VERSIONS))} are read. Convert the model again."
            )
        n_tensors, n_keys = self._count(), self._count()
        metadata = {self._string(): self._value(self._number("I")) for _ in range(n_keys)}
        found = [self._tensor() for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ModelError(f"{self._path} says an alignment of {alignment!r}. Fetch it again.")
        data = -(-self._stream.tell() // alignment) * alignment
        return metadata, {
            name: GgufTensor(shape, kind, data + offset, self._path)
            for name, shape, kind, offset in found
        }

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, n_axes = self._string(), self._number("I")
        if n_axes > 8:
            raise ModelError(f"{self._path} is damaged: {name} has {n_axes} axes. Fetch it again.")
        shape = tuple(self._number("Q") for _ in range(n_axes))[::-1]
        return name, shape, self._number("I"), self._number("Q")

    def _value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _LIST:
            raise ModelError(f"{self._path} is damaged: metadata of type {kind}. Fetch it again.")
        kind, n = self._number("I"), self._count()
        if kind in _NUMBERS:
            return self._numbers(_NUMBERS[kind], n)
        for _ in range(n):
            if kind == _STRING:
                self._skip(self._number("Q"))
            else:
                self._value(kind)
        return None

    def _numbers(self, kind: str, n: int) -> tuple[Any, ...] | None:
        size = struct.calcsize(kind) * n
        if n > _KEPT:
            self._skip(size)
            return None
        return struct.unpack(f"<{n}{kind}", self._stream.read(size))

    def _number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self._stream.read(struct.calcsize(f"<{kind}")))[0]

    def _count(self) -> int:
        n = self._number("Q")
        if n > _MOST:
            raise ModelError(f"{self._path} is damaged: it announces {n} entries. Fetch it again.")
        return n

    def _string(self) -> str:
        n = self._number("Q")
        if n > _LONGEST:
            raise ModelError(f"{self._path} is damaged: a text of {n} bytes. Fetch it again.")
        data = self._stream.read(n)
        if len(data) < n:
            raise struct.error
        return data.decode("utf-8")

    def _skip(self, n: int) -> None:
        """Pass over bytes; what lies behind the end shows at the next number."""
        if n > _LONGEST * 16:
            raise ModelError(f"{self._path} is damaged: a text of {n} bytes. Fetch it again.")
        if n < 1 << 16:
            self._stream.read(n)
        else:
            self._stream.seek(n, os.SEEK_CUR)


def n_values(tensor: GgufTensor) -> int:
    """Return how many numbers a tensor has."""
    return math.prod(tensor.shape)
