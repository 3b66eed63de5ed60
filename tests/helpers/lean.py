"""Headers of version 3 taken apart and put together as docs/format.md says, without our code."""

from __future__ import annotations

import json
import struct
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import rankcast.codec

DICTIONARY = (Path(rankcast.codec.__file__).parent / "lean_dictionary.txt").read_bytes()
NO_JSON = ("fingerprint bytes", "entries")
"""What `split_lean` adds to the JSON of a header."""
MAGIC = bytes.fromhex("89524303")


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins somewhere, and where the next byte lies."""
    number = shift = 0
    while data[at] >= 128:
        number |= (data[at] - 128) << shift
        at, shift = at + 1, shift + 7
    return number | data[at] << shift, at + 1


def as_varint(number: int) -> bytes:
    """Return a number as it is carried."""
    head = b""
    while number >= 128:
        head, number = head + bytes([number % 128 + 128]), number // 128
    return head + bytes([number])


def split_lean(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Return what a header says, with the entries of its chunks, and the chunks."""
    assert data[:4] == MAGIC
    length, at = varint(data, 4)
    end = at + length
    assert struct.pack("<I", zlib.crc32(data[:end])) == data[end : end + 4]
    word, at = varint(data, at)
    header: dict[str, Any] = {"fingerprint bytes": data[at : at + 8 * (word % 2)], "entries": []}
    at += 8 * (word % 2)
    for _ in range(word // 4):
        n, at = varint(data, at)
        entry: list[Any] = [n, data[at : at + 4]]
        at += 4
        for _ in range(2 * (word // 2 % 2)):
            units, at = varint(data, at)
            entry.append((units - 1) / 100_000 if units else None)
        header["entries"].append(entry)
    header |= json.loads(zlib.decompressobj(-15, DICTIONARY).decompress(data[at:end]))
    ends = [end + 4]
    for entry in header["entries"]:
        ends.append(ends[-1] + entry[0])
    return header, [data[a:b] for a, b in pairwise(ends)]


def joined_lean(header: dict[str, Any], chunks: list[bytes], *, adjust: bool = True) -> bytes:
    """Return a file with a matching CRC-32, and with matching entries of chunks if asked for."""
    fingerprint = header["fingerprint bytes"]
    plain = {key: value for key, value in header.items() if key not in NO_JSON}
    entries = header["entries"]
    if adjust:
        entries = [[len(c), struct.pack("<I", zlib.crc32(c))] for c in chunks]
    body = as_varint(4 * len(entries) + bool(fingerprint)) + fingerprint
    body += b"".join(as_varint(n) + crc for n, crc, *_ in entries)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=DICTIONARY)
    body += deflater.compress(json.dumps(plain).encode()) + deflater.flush()
    front = MAGIC + as_varint(len(body)) + body
    return front + struct.pack("<I", zlib.crc32(front)) + b"".join(chunks)


def as_second(header: dict[str, Any]) -> dict[str, Any]:
    """Return what a header of version 2 would say of projections and modules."""
    rows: list[list[Any]] = []
    for first, count, names, widths in header["layers"]:
        each = [widths[i + 1 : i + 3] for i in range(0, len(widths), 3) for _ in range(widths[i])]
        for layer in range(first, first + count):
            rows += [
                [names[2 * i].replace("/", str(layer)), names[2 * i + 1], layer, *each[i]]
                for i in range(len(each))
            ]
    ranks = header["ranks"]
    ranks = [ranks] * len(rows) if isinstance(ranks, int) else ranks
    return header | {"projections": [[*p, r] for p, r in zip(rows, ranks, strict=True)]}
