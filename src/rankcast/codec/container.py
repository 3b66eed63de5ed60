"""The file: a header that says what it adapts, a table of chunks, and the chunks (docs/format.md).

    magic (8) · version (u16) · header length (u32) · header · SHA-256 of all before (32) · chunks

The header names the SHA-256 of every chunk, so that a file is either whole and unchanged, or ends
at the boundary of a chunk and says so, or is refused.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from rankcast.codec.header import ChunkEntry, Header, pack_header, unpack_header
from rankcast.errors import CodecError

MAGIC = b"\x89RCAST\r\n"
VERSION = 1
LARGEST_HEADER = 2**20
"""Bytes, compressed."""
LARGEST_PARAMS = 2**28
"""Numbers that an adapter may have unless the caller allows more: 1 GiB in float32."""
_PREFIX = struct.Struct("<8sHI")
_DIGEST = 32


@dataclass(frozen=True)
class Container:
    """A header and as many of its chunks as there are."""

    header: Header
    chunks: tuple[bytes, ...]

    @property
    def is_whole(self) -> bool:
        """Whether every chunk is there."""
        return len(self.chunks) == len(self.header.chunks)

    def to_bytes(self) -> bytes:
        """Return the file."""
        return header_bytes(self.header) + b"".join(self.chunks)


def entry_of(chunk: bytes, loss: float | None = None, accuracy: float | None = None) -> ChunkEntry:
    """Return the entry of a chunk in the table."""
    return ChunkEntry(len(chunk), hashlib.sha256(chunk).hexdigest(), loss, accuracy)


def header_bytes(header: Header) -> bytes:
    """Return what stands before the first chunk."""
    packed = pack_header(header)
    front = _PREFIX.pack(MAGIC, VERSION, len(packed)) + packed
    return front + hashlib.sha256(front).digest()


def read_container(
    data: bytes | memoryview, *, allow_prefix: bool = False, largest_params: int = LARGEST_PARAMS
) -> Container:
    """Return what a file holds.

    Args:
        data: the file.
        allow_prefix: accept a file that ends early, with the chunks that are complete in it.
        largest_params: refuse an adapter of more numbers than that before memory is taken for it.

    Raises:
        CodecError: no such file, another version, damaged, cut short, or too large.
    """
    header, start = read_header(data, largest_params=largest_params)
    chunks = []
    for number, entry in enumerate(header.chunks):
        end = start + entry.n_bytes
        if end > len(data):
            break
        chunk = bytes(data[start:end])
        if hashlib.sha256(chunk).hexdigest() != entry.sha256:
            raise CodecError(
                f"Chunk {number} is damaged: its SHA-256 is not the one in the header. Fetch it "
                f"again."
            )
        chunks.append(chunk)
        start = end
    if len(chunks) == len(header.chunks):
        if start != len(data):
            raise CodecError(f"{len(data) - start} bytes follow the last chunk; fetch it again.")
    elif not allow_prefix:
        raise CodecError(
            f"The file ends within chunk {len(chunks)} of {len(header.chunks)}: it was cut short. "
            f"Fetch the rest, or use what is complete with --prefix."
        )
    return Container(header, tuple(chunks))


def read_header(
    data: bytes | memoryview, *, largest_params: int = LARGEST_PARAMS
) -> tuple[Header, int]:
    """Return the header of a file and where the first chunk begins.

    Raises:
        CodecError: as `read_container`.
    """
    if len(data) < _PREFIX.size:
        raise CodecError("This is no .rcast file: it is shorter than its header.")
    magic, version, length = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise CodecError("This is no .rcast file: it does not begin with the magic number.")
    if version != VERSION:
        raise CodecError(f"The file has format version {version}; this program reads {VERSION}.")
    end = _PREFIX.size + length
    if length > LARGEST_HEADER or len(data) < end + _DIGEST:
        raise CodecError("The header is cut short or its length is damaged; fetch it again.")
    front = bytes(data[:end])
    if hashlib.sha256(front).digest() != bytes(data[end : end + _DIGEST]):
        raise CodecError("The header is damaged: its SHA-256 does not match. Fetch it again.")
    header = unpack_header(front[_PREFIX.size :])
    if header.n_params > largest_params:
        raise CodecError(
            f"The adapter has {header.n_params:,} numbers, more than the {largest_params:,} that "
            f"this device accepts."
        )
    return header, end + _DIGEST
