"""Damage to containers, seeded: what a hostile or broken sender could deliver.

Half of the mutants get digests that match, so that what lies behind the checksums is tried, too.
"""

from __future__ import annotations

import hashlib
import json
import struct
import tracemalloc
import zlib
from collections import Counter
from typing import Any

import numpy as np

from helpers.lean import MAGIC as LEAN_MAGIC
from helpers.lean import NO_JSON, joined_lean, split_lean, varint
from rankcast.codec.container import read_container
from rankcast.codec.header import MAGIC
from rankcast.errors import CodecError

LARGEST_PARAMS = 100_000
MEMORY_BYTES = 64 * 2**20
"""An adapter of LARGEST_PARAMS numbers takes 0.4 MB; the JSON of a header may take 8 MiB of text,
several times that as objects."""
_NUMBERS = (-1, 0, 1, 2**31, 2**62, 1e308, -0.5, True, None, "7", [], {})


def mutant(data: bytes, rng: np.random.Generator) -> bytes:
    """Return a damaged copy of a container."""
    kind = rng.integers(8)
    if kind == 0:
        return data[: rng.integers(len(data))]
    if kind == 1:
        return data + rng.bytes(int(rng.integers(1, 100)))
    if kind in (2, 3):
        damaged = bytearray(data)
        for at in rng.integers(len(data), size=rng.integers(1, 5)):
            damaged[at] ^= 1 << int(rng.integers(8))
        return bytes(damaged)
    if kind == 4:
        return rng.bytes(int(rng.integers(300)))
    header, chunks = _parts(data)
    if kind == 5:
        if data[:4] == LEAN_MAGIC and rng.random() < 0.5:
            return _forged_body(data, rng)
        plain = {key: header.pop(key) for key in list(header) if key not in NO_JSON}
        _change(plain, rng)
        header |= plain
    elif kind == 6:
        i = int(rng.integers(len(chunks)))
        damaged = bytearray(chunks[i])
        for at in rng.integers(len(damaged), size=rng.integers(1, 5)):
            damaged[at] ^= 1 << int(rng.integers(8))
        chunks[i] = bytes(damaged)[: int(rng.integers(1, len(damaged) + 1))]
    else:
        rng.shuffle(chunks)
    return _forged(header, chunks, adjust=kind != 5)


def try_mutants(data: bytes, n: int, seed: int) -> Counter[str]:
    """Read and decode `n` mutants; count refusals, unchanged copies and forged adapters.

    Raises:
        AssertionError: a mutant without forged digests gave an adapter, or memory ran over.
        Exception: anything but a CodecError came out.
    """
    outcome: Counter[str] = Counter()
    children = np.random.SeedSequence(seed).spawn(n)
    tracemalloc.start()
    try:
        for child in children:
            damaged = mutant(data, np.random.default_rng(child))
            if damaged == data:
                outcome["unchanged"] += 1
                continue
            tracemalloc.reset_peak()
            try:
                container = read_container(damaged, largest_params=LARGEST_PARAMS)
                decoded = container.tensors()
            except CodecError:
                outcome["refused"] += 1
            else:
                assert all(np.isfinite(f.left).all() for f in decoded.factors)
                outcome["forged"] += 1
                assert _is_forged(damaged, data), "a damaged file was accepted"
            peak = tracemalloc.get_traced_memory()[1]
            assert peak < MEMORY_BYTES, f"{peak:,} bytes were taken"
    finally:
        tracemalloc.stop()
    return outcome


def _is_forged(damaged: bytes, data: bytes) -> bool:
    """Whether the header's digest is another than the original's: someone made it fit."""

    def digest(file: bytes) -> bytes:
        if file[:4] == LEAN_MAGIC:
            length, at = varint(file, 4)
            return file[at + length : at + length + 4]
        end = 14 + struct.unpack_from("<8sHI", file)[2]
        return file[end : end + 32]

    return digest(damaged) != digest(data)


def _parts(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    if data[:4] == LEAN_MAGIC:
        return split_lean(data)
    length = struct.unpack_from("<8sHI", data)[2]
    header = json.loads(zlib.decompress(data[14 : 14 + length]))
    at, chunks = 14 + length + 32, []
    for entry in header["chunks"]:
        chunks.append(data[at : at + entry[0]])
        at += entry[0]
    return header, chunks


def _change(header: dict[str, Any], rng: np.random.Generator) -> None:
    """Put something else somewhere in the header."""
    node: Any = header
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = keys[int(rng.integers(len(keys)))]
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
            node = node[key]
            continue
        if rng.random() < 0.15:
            del node[key]
        elif isinstance(node[key], list) and rng.random() < 0.3:
            node[key] = node[key] * int(rng.integers(2, 3000))
        else:
            node[key] = _NUMBERS[int(rng.integers(len(_NUMBERS)))]
        return


def _forged_body(data: bytes, rng: np.random.Generator) -> bytes:
    """Return a lean file with damage between its length and its CRC-32, which fits."""
    length, at = varint(data, 4)
    body = bytearray(data[: at + length])
    for place in rng.integers(at, at + length, size=rng.integers(1, 5)):
        body[place] ^= 1 << int(rng.integers(8))
    return bytes(body) + struct.pack("<I", zlib.crc32(body)) + data[at + length + 4 :]


def _forged(header: dict[str, Any], chunks: list[bytes], *, adjust: bool) -> bytes:
    """Return a file with a matching digest, and with matching chunk entries if asked for."""
    if "fingerprint bytes" in header:
        return joined_lean(header, chunks, adjust=adjust)
    if adjust:
        header = header | {
            "chunks": [[len(c), hashlib.sha256(c).hexdigest(), None, None] for c in chunks]
        }
    body = zlib.compress(json.dumps(header).encode())
    front = struct.pack("<8sHI", MAGIC, 1, len(body)) + body
    return front + hashlib.sha256(front).digest() + b"".join(chunks)
