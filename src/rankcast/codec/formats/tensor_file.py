"""Files of tensors (safetensors), read and written one tensor at a time.

The library's own functions take a whole file into memory. An adapter may be larger than a device
wants to spend, so that here a tensor is in memory only while it is looked at.

    length of the JSON (u64) · JSON {name: {dtype, shape, data_offsets}} · data
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankcast.errors import CodecError

LARGEST_JSON = 100 * 2**20
"""Bytes, the library's own limit."""
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "|b1",
}  # fmt: skip
_FLOATS = ("F64", "F32", "F16", "BF16")
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies in a file.

    Attributes:
        dtype: the file's word: `F32`, `BF16`, `I64`, …
        shape: of the tensor.
        start: first byte, from the beginning of the file.
        n_bytes: its length.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    n_bytes: int

    @property
    def is_float(self) -> bool:
        """Whether `TensorFile.array` returns it in float32."""
        return self.dtype in _FLOATS


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A safetensors file of which nothing but the names is in memory.

    Attributes:
        path: of the file.
        entries: every tensor by name, in the order of the names.
        metadata: the file's own, if it has any.
    """

    path: Path
    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> TensorFile:
        """Return what a file holds.

        Raises:
            CodecError: it is missing, damaged or cut short.
        """
        file = Path(path)
        try:
            with file.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
                plain = json.loads(stream.read(min(length, size, LARGEST_JSON)))
            metadata = plain.pop("__metadata__", None) or {}
            front = _LENGTH.size + length
            entries = {name: _entry(plain[name], front, size) for name in sorted(plain)}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
            raise CodecError(
                f"{file} is missing or damaged ({error}); save or copy it again."
            ) from error
        return cls(file, entries, metadata)

    def array(self, name: str) -> NDArray[Any]:
        """Return a tensor: floats of any width as float32, anything else as it is.

        Raises:
            CodecError: no such tensor, or the file cannot be read.
        """
        entry = self._entry(name)
        pieces = list(self.pieces(name, max(math.prod(entry.shape), 1)))
        return pieces[0].reshape(entry.shape)

    def pieces(self, name: str, most: int = 2**18) -> Iterator[NDArray[Any]]:
        """Yield the numbers of a tensor in order, at most so many at a time; see `array`.

        Raises:
            CodecError: no such tensor, or the file cannot be read.
        """
        entry = self._entry(name)
        left = math.prod(entry.shape)
        try:
            with self.path.open("rb") as stream:
                stream.seek(entry.start)
                while True:
                    count = min(left, most)
                    values = np.fromfile(stream, _DTYPES[entry.dtype], count)
                    yield _as_float32(values.reshape(count), entry.dtype)
                    left -= count
                    if not left:
                        return
        except (OSError, ValueError) as error:
            raise CodecError(f"{self.path} cannot be read ({error}).") from error

    def rows(self, name: str, numbers: Sequence[int]) -> NDArray[Any]:
        """Return some rows of a tensor, one number of a tensor with one axis; see `array`.

        Raises:
            CodecError: no such tensor, or the file cannot be read.
        """
        entry = self._entry(name)
        shape, dtype = entry.shape[1:], np.dtype(_DTYPES[entry.dtype])
        count = math.prod(shape)
        found = []
        try:
            with self.path.open("rb") as stream:
                for number in numbers:
                    stream.seek(entry.start + number * count * dtype.itemsize)
                    row = np.fromfile(stream, dtype, count).reshape(shape)
                    found.append(_as_float32(row, entry.dtype))
        except (OSError, ValueError) as error:
            raise CodecError(f"{self.path} cannot be read ({error}).") from error
        return np.stack(found)

    def _entry(self, name: str) -> TensorEntry:
        if name not in self.entries:
            raise CodecError(f"{self.path} has no tensor {name}; save or copy it again.")
        return self.entries[name]


def write_tensor_file(
    path: Path,
    shapes: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
    arrays: Iterable[NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a file of tensors, one after the other.

    Args:
        path: to write; in a folder that appears whole or not at all (`files.new_folder`).
        shapes: shape and dtype of every tensor by its name, in the order of `arrays`.
        arrays: the tensors.
        metadata: for the file.

    Raises:
        CodecError: an array of another shape or dtype, or more or fewer than named.
    """
    words = {np.dtype(kind): word for word, kind in _DTYPES.items() if word != "BF16"}
    plain: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    start = 0
    for name, (shape, dtype) in shapes.items():
        end = start + math.prod(shape) * dtype.itemsize
        plain[name] = {"dtype": words[dtype], "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(plain, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    with path.open("wb") as stream:
        stream.write(_LENGTH.pack(len(text)) + text)
        left = iter(shapes.items())
        for array in arrays:
            name, expected = next(left, ("one more tensor", None))
            if (array.shape, array.dtype) != expected:
                raise CodecError(f"{name} is {array.dtype}{array.shape}, not {expected}.")
            stream.write(np.ascontiguousarray(array).data)
        if next(left, None) is not None:
            raise CodecError(f"{path} lacks tensors that it names.")


def _as_float32(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return floats as float32; bfloat16, which NumPy does not know, is the upper half of one."""
    if dtype == "BF16":
        wide = values.astype("<u4")
        wide <<= 16
        return wide.view("<f4")
    return values.astype(np.float32, copy=False) if dtype in _FLOATS else values


def _entry(plain: Mapping[str, Any], front: int, size: int) -> TensorEntry:
    """Return an entry of the list, checked against the size of the file."""
    start, end = plain["data_offsets"]
    shape = tuple(plain["shape"])
    dtype = plain["dtype"]
    if dtype not in _DTYPES:
        raise ValueError(f"a tensor is stored as {dtype}, which is not known")
    if any(not isinstance(n, int) or n < 0 for n in (*shape, start, end)):
        raise ValueError("a tensor has no shape or place")
    n_bytes = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
    if end - start != n_bytes or front + end > size:
        raise ValueError("a tensor lies beyond its end")
    return TensorEntry(dtype, shape, front + start, n_bytes)
