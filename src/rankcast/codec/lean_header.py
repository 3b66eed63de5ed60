"""The header of version 3, for files of a few kilobytes.

    magic (4) · length (varint) · table of chunks · deflated JSON · CRC-32 of all before (4)

It says what the JSON of version 2 says, but names each kind of layer once, and nothing that the
signed manifest of a release holds as well: of a chunk a CRC-32 instead of its SHA-256, of the base
model's fingerprint the first 8 bytes. The deflater starts from a dictionary of what headers say
(`lean_dictionary.txt`), which is part of the format and never changes.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from rankcast.errors import CodecError

LEAN_MAGIC = b"\x89RC\x03"
LARGEST_HEADER = 2**20
"""Bytes, compressed."""
LARGEST_JSON = 2**23
"""Bytes once it is decompressed, and names written out."""
MOST_CHUNKS = 4096
FINGERPRINT_BYTES = 8
_HAS_FINGERPRINT, _IS_MEASURED = 1, 2
_UNITS = 100_000
"""Losses and accuracies are carried in units of 1/100,000."""
_LARGEST_WORTH = 1e9
_OBJECT = 64
"""Characters that a projection counts beside its names, against runs of many empty ones."""
_LAYER = "/"
"""Stands for the number of the layer in a name; no name of a module has it."""
_N_TOKENS, _TOKEN_STEP = 16, 7919
"""The input whose logits are a fingerprint: token i is 7919·(i + 1), modulo the vocabulary."""


@cache
def dictionary() -> bytes:
    """Return what deflated headers refer to."""
    return Path(__file__).with_name("lean_dictionary.txt").read_bytes()


def lean_bytes(plain: Mapping[str, Any]) -> bytes:
    """Return the header that says what an object of `header` says, the JSON of version 2.

    Losses and accuracies are rounded to 5 decimals, logits to 5 digits, fingerprints cut.

    Raises:
        CodecError: a negative loss, or larger than readers accept.
    """
    text = json.dumps(_compact(plain), separators=(",", ":"), allow_nan=False).encode("ascii")
    body = _table(plain["base"]["fingerprint"], plain["chunks"]) + _deflated(text)
    if len(body) > LARGEST_HEADER:
        raise CodecError(f"The header would have {len(body):,} bytes; adapt fewer modules.")
    front = LEAN_MAGIC + varint(len(body)) + body
    return front + zlib.crc32(front).to_bytes(4, "little")


def read_lean(data: bytes | memoryview) -> tuple[dict[str, Any], int]:
    """Return what a header says, as an object of `header`, and where the first chunk begins.

    Args:
        data: a file that begins with `LEAN_MAGIC`, or its beginning.

    Raises:
        CodecError: a damaged header.
    """
    data = bytes(data[: LARGEST_HEADER + 64])
    reader = _Reader(data, len(LEAN_MAGIC))
    length = reader.varint()
    end = reader.at + length
    if length > LARGEST_HEADER or len(data) < end + 4:
        raise CodecError(
            f"The header is cut short or its length is damaged: of {end + 4:,} bytes {len(data):,} "
            f"are here. Fetch it again."
        )
    if zlib.crc32(data[:end]).to_bytes(4, "little") != data[end : end + 4]:
        raise CodecError("The header is damaged: its CRC-32 does not match. Fetch it again.")
    try:
        reader.data = data[:end]
        fingerprint, chunks = reader.table()
        raw = inflated(data[reader.at : end], zlib.decompressobj(-15, dictionary()))
        plain = _expanded(raw)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, CodecError):
            raise
        raise CodecError(f"The header lacks a field or holds a wrong one ({error!r}).") from error
    plain["base"] = {"name": raw.get("base"), "fingerprint": fingerprint}
    return plain | {"chunks": chunks}, end + 4


def inflated(packed: bytes, inflater: Any) -> dict[str, Any]:
    """Return the JSON object of a header, refusing one that grows beyond measure.

    Raises:
        CodecError: it does, or is none.
    """
    try:
        text = inflater.decompress(packed, LARGEST_JSON)
        whole = inflater.eof and not inflater.unused_data
        plain = json.loads(text) if whole else None
    except (zlib.error, ValueError, RecursionError) as error:
        raise CodecError(f"The header is no compressed JSON ({error}).") from error
    if not isinstance(plain, dict):
        raise CodecError("The header grows beyond its limit, or is no JSON object.")
    return plain


def _table(fingerprint: str | None, chunks: Sequence[Sequence[Any]]) -> bytes:
    """Return fingerprint, lengths, CRC-32 and worth of the chunks."""
    measured = any(worth is not None for chunk in chunks for worth in chunk[2:])
    flags = _HAS_FINGERPRINT * (fingerprint is not None) + _IS_MEASURED * measured
    parts = [varint(len(chunks) << 2 | flags)]
    parts.append(bytes.fromhex(fingerprint or "")[:FINGERPRINT_BYTES])
    for n_bytes, crc32, *worth in chunks:
        parts += [varint(n_bytes), bytes.fromhex(crc32)]
        parts += [varint(_units(value)) for value in worth if measured]
    return b"".join(parts)


def _units(worth: float | None) -> int:
    """Return a loss or an accuracy as it is carried; 0 if nobody measured."""
    if worth is not None and not 0 <= worth < _LARGEST_WORTH:
        raise CodecError(f"A loss or an accuracy lies from 0 to {_LARGEST_WORTH:g}, got {worth}.")
    return 0 if worth is None else round(worth * _UNITS) + 1


def _deflated(text: bytes) -> bytes:
    """Return the shorter of two ways to deflate."""
    tried = []
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED):
        deflater = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy, dictionary())
        tried.append(deflater.compress(text) + deflater.flush())
    return min(tried, key=len)


def varint(number: int) -> bytes:
    """Return a whole number, 7 bits a byte from the lowest, all but the last with bit 7 set."""
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number of 7 bits a byte that begins somewhere, and where it ends.

    Raises:
        CodecError: it has more than 9 bytes, or the data end within.
    """
    number = 0
    for i, byte in enumerate(data[at : at + 9]):
        number |= (byte & 127) << 7 * i
        if byte < 128:
            return number, at + i + 1
    raise CodecError("A file or an update is cut short or holds a number that is too large.")


class _Reader:
    """Takes numbers from the beginning of a header."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def varint(self) -> int:
        """Return the next number; see `read_varint`."""
        number, self.at = read_varint(self.data, self.at)
        return number

    def hexadecimal(self, n_bytes: int) -> str:
        """Return the next bytes."""
        self.at += n_bytes
        return self.data[self.at - n_bytes : self.at].hex()

    def table(self) -> tuple[str | None, list[list[Any]]]:
        """Return what `_table` wrote.

        Raises:
            CodecError: more chunks than a file may have.
        """
        n_chunks, flags = divmod(self.varint(), 4)
        if n_chunks > MOST_CHUNKS:
            raise CodecError(f"The header lists {n_chunks} chunks; {MOST_CHUNKS} are the most.")
        fingerprint = self.hexadecimal(FINGERPRINT_BYTES) if flags & _HAS_FINGERPRINT else None
        chunks: list[list[Any]] = []
        for _ in range(n_chunks):
            entry = [self.varint(), self.hexadecimal(4)]
            units = [self.varint() if flags & _IS_MEASURED else 0 for _ in range(2)]
            chunks.append([*entry, *((n - 1) / _UNITS if n else None for n in units)])
        return fingerprint, chunks


def _compact(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON of version 3."""
    ranks = [p[5] for p in plain["projections"]]
    name, fingerprint = plain["base"]["name"], plain["fingerprint"]
    return {
        **({} if name is None else {"base": name}),
        "layers": _layers(plain["projections"]),
        "ranks": ranks[0] if len(set(ranks)) == 1 else ranks,
        "modules": plain["modules"],
        "task": plain["task"],
        **({} if fingerprint is None else {"fingerprint": _short_fingerprint(fingerprint)}),
        **{key: plain[key] for key in ("config", "segment") if key in plain},
    }


def _expanded(lean: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON of version 2, chunks and base model left out."""
    projections = list(_named(lean["layers"]))
    ranks = lean["ranks"]
    ranks = ranks if isinstance(ranks, list) else [ranks] * len(projections)
    listed = [[*p, r] for p, r in zip(projections, ranks, strict=True)]
    fingerprint = lean.get("fingerprint")
    optional = {key: lean[key] for key in ("config", "segment") if key in lean}
    return {
        "projections": listed, "modules": lean["modules"], "task": lean["task"],
        "fingerprint": None if fingerprint is None else _whole_fingerprint(fingerprint),
    } | optional  # fmt: skip


def _layers(projections: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Return runs of layers that are alike: [first, how many, names and kinds, widths]."""
    runs: list[list[Any]] = []
    for layer, members in groupby(projections, key=lambda p: p[2]):
        names: list[str] = []
        widths: list[int] = []
        for name, kind, _, d_in, d_out, _ in members:
            names += [_template(name, layer), kind]
            if widths[-2:] == [d_in, d_out]:
                widths[-3] += 1
            else:
                widths += [1, d_in, d_out]
        last = runs[-1] if runs else [0, 0, None, None]
        if last[2:] == [names, widths] and last[0] + last[1] == layer:
            last[1] += 1
        else:
            runs.append([layer, 1, names, widths])
    return runs


def _template(name: str, layer: int) -> str:
    """Return a name in which the layer's number is left open, if it has it as a part."""
    parts = name.split(".")
    if str(layer) in parts:
        parts[parts.index(str(layer))] = _LAYER
    return ".".join(parts)


def _named(layers: Sequence[Any]) -> Iterator[list[Any]]:
    """Yield name, kind, layer and widths of every projection of runs of layers.

    Raises:
        CodecError: written out they would take more than `LARGEST_JSON` characters.
    """
    size = 0
    for first, count, names, widths in layers:
        pairs = list(zip(names[::2], names[1::2], strict=True))
        if not pairs or not all(isinstance(name, str) for name in names) or min(first, count) < 0:
            raise CodecError("The header has something else where layers and their names belong.")
        size += count * sum(len(name) + len(kind) + _OBJECT for name, kind in pairs)
        if size > LARGEST_JSON:
            raise CodecError("The header names projections beyond its limit.")
        each = _each_width(widths, len(pairs))
        for layer in range(first, first + count):
            for (name, kind), w in zip(pairs, each, strict=True):
                yield [name.replace(_LAYER, str(layer)), kind, layer, *w]


def _each_width(widths: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Return the two widths of each projection of a layer, given how often they come in turn."""
    each: list[tuple[int, int]] = []
    for n, d_in, d_out in zip(widths[::3], widths[1::3], widths[2::3], strict=True):
        if n > most - len(each):
            raise CodecError("The header has more widths than projections.")
        each += [(d_in, d_out)] * n
    return each


def _tokens(vocabulary: int) -> list[int]:
    """Return the input of a fingerprint; a vocabulary of 0 is larger than all of them."""
    ids = [_TOKEN_STEP * (i + 1) for i in range(_N_TOKENS)]
    return [token % vocabulary for token in ids] if vocabulary else ids


def _short_fingerprint(fingerprint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a fingerprint of logits without its input, if that follows from a vocabulary."""
    if set(fingerprint) != {"input_ids", "logits"}:
        return fingerprint
    ids, logits = fingerprint["input_ids"], fingerprint["logits"]
    if len(ids) != _N_TOKENS or not all(isinstance(token, int) for token in ids):
        return fingerprint
    vocabulary = math.gcd(*(token - found for token, found in zip(_tokens(0), ids, strict=True)))
    if _tokens(vocabulary) != list(ids):
        return fingerprint
    return {"vocabulary": vocabulary, "logits": [float(f"{x:.5g}") for x in logits]}


def _whole_fingerprint(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return a fingerprint with its input."""
    if "vocabulary" not in fingerprint:
        return dict(fingerprint)
    return {"input_ids": _tokens(fingerprint["vocabulary"]), "logits": fingerprint["logits"]}
