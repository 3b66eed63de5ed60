"""A base model in a GGUF: its fingerprint, its quantisation, and some rows of its weights."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rankcast.codec.formats.gguf_architecture import library
from rankcast.codec.formats.gguf_header import GgufHeader, GgufTensor, n_values
from rankcast.codec.quantiser import Float32Array
from rankcast.errors import ModelError

_BLOCK = 2**20
_SAID = "rankcast gguf base 1;"
_TYPES = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 40), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
    28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
    40: (64, 36), 41: (128, 18),
}  # fmt: skip
"""Numbers in a block and bytes of it, by the number of a quantisation."""


@dataclass(frozen=True)
class GgufBase:
    """A base model of which nothing but names is in memory.

    Attributes:
        header: of its files.
    """

    header: GgufHeader

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GgufBase:
        """Return what a file, or the first of several, holds.

        Raises:
            ModelError: no GGUF of a base model, or one that is cut short.
        """
        header = GgufHeader.open(path)
        kind = header.metadata.get("general.type", "model")
        if kind != "model":
            raise ModelError(f"{path} is no base model but of type {kind!r}.")
        base = cls(header)
        for name, tensor in header.tensors.items():
            if tensor.start + base.n_bytes_of(name) > tensor.path.stat().st_size:
                raise ModelError(
                    f"{tensor.path} is cut short: {name} is not whole. Fetch it again."
                )
        if not header.tensors:
            raise ModelError(f"{path} holds no tensor.")
        return base

    @property
    def paths(self) -> tuple[str, ...]:
        """Its files, in order."""
        return tuple(sorted({str(tensor.path) for tensor in self.header.tensors.values()}))

    def n_bytes_of(self, name: str) -> int:
        """Return the length of a tensor.

        Raises:
            ModelError: a quantisation that is not known.
        """
        tensor = self.header.tensors[name]
        if tensor.type not in _TYPES:
            raise ModelError(
                f"{tensor.path} stores {name} in quantisation {tensor.type}, which is not known "
                f"here. A newer rankcast may know it."
            )
        count, size = _TYPES[tensor.type]
        return n_values(tensor) // count * size

    @property
    def n_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(map(self.n_bytes_of, self.header.tensors))

    def fingerprint(self) -> str:
        """Return the SHA-256 of names, shapes, quantisations and stored bytes, in hexadecimal.

        Metadata, such as a chat template, and the order of the tensors do not count. The files are
        read a megabyte at a time.

        Raises:
            ModelError: the files cannot be read.
        """
        digest = hashlib.sha256(_SAID.encode())
        for name, tensor in sorted(self.header.tensors.items()):
            digest.update(f"{name}:{tensor.shape}:{tensor.type};".encode())
            try:
                with tensor.path.open("rb") as stream:
                    stream.seek(tensor.start)
                    left = self.n_bytes_of(name)
                    while left and (data := stream.read(min(left, _BLOCK))):
                        digest.update(data)
                        left -= len(data)
            except OSError as error:
                raise ModelError(f"{tensor.path} cannot be read: {error.strerror}.") from error
            if left:
                raise ModelError(f"{tensor.path} is cut short: {name} is not whole.")
        return digest.hexdigest()

    @cached_property
    def quantisation(self) -> str:
        """Return llama.cpp's word for the whole, such as `Q4_K_M`, or that of most weights.

        Raises:
            ConfigError: the extra gguf is missing.
        """
        gguf = library()
        kind = self.header.metadata.get("general.file_type")
        try:
            return gguf.LlamaFileType(kind).name.removeprefix("MOSTLY_").removeprefix("ALL_")
        except ValueError:
            wide = [t for t in self.header.tensors.values() if len(t.shape) > 1]
            number, _ = Counter(t.type for t in wide).most_common(1)[0]
            return self.type_name(number)

    def type_name(self, number: int) -> str:
        """Return the word for the quantisation of a tensor, such as `Q4_K`."""
        return library().GGMLQuantizationType(number).name

    def rows(self, name: str, numbers: Sequence[int]) -> Float32Array | None:
        """Return some rows of a tensor, dequantised; None where nobody here can.

        Args:
            name: of the tensor.
            numbers: of rows; a tensor with one axis has one row.

        Raises:
            ModelError: the files cannot be read.
        """
        gguf: Any = library()
        from gguf import quants  # noqa: PLC0415 an extra

        tensor: GgufTensor = self.header.tensors[name]
        width = tensor.shape[-1] if tensor.shape else 1
        count, size = _TYPES[tensor.type]
        n_bytes = width // count * size
        try:
            with tensor.path.open("rb") as stream:
                found = []
                for number in numbers:
                    stream.seek(tensor.start + number * n_bytes)
                    found.append(np.frombuffer(stream.read(n_bytes), np.uint8))
            data = np.stack(found)
        except (OSError, ValueError) as error:
            raise ModelError(f"{tensor.path} cannot be read ({error}).") from error
        try:
            kind = gguf.GGMLQuantizationType(tensor.type)
            plain = {0: np.float32, 1: np.float16}.get(tensor.type)
            rows = data.view(plain) if plain else quants.dequantize(data, kind)
        except NotImplementedError:
            return None
        return np.asarray(rows, np.float32)
