"""A decoder written from docs/format.md alone, in plain Python, reads what rankcast writes."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from helpers.codec import header_of, packed, random_adapter
from rankcast.codec.chunks import ChunkPlan, encode
from rankcast.codec.container import Container
from rankcast.codec.tensors import AdapterTensors

ROOTS = (1.0, 1.2009369551760027, 1.4422495703074083, 1.7320508075688772, 2.080083823051904,
         2.498049532966813)  # fmt: skip
FALLS = (0.12, 0.3, 0.5, 0.75)


def step(exponent: int) -> float:
    w, p = divmod(exponent, 6)
    return float(np.float32(ROOTS[p] * 3.0**w if w >= 0 else ROOTS[p] / 3.0**-w))


def mass(low: float, high: float) -> float:
    """Close enough to give the table that the format fixes, and checked against it below."""
    if low < 0 < high:
        return (math.erf(high / math.sqrt(2)) + math.erf(-low / math.sqrt(2))) / 2
    low, high = sorted((abs(low), abs(high)))
    return (math.erfc(low / math.sqrt(2)) - math.erfc(high / math.sqrt(2))) / 2


def rounded(shares: Sequence[float]) -> list[int]:
    return [max(1, math.floor(65536 * s + 0.5)) for s in shares]


def index_weights(c: int) -> list[int]:
    sigma = step(c - 11)
    tail = [mass((m - 0.5) / sigma, (m + 0.5) / sigma) for m in range(1, 13)]
    tail.append(mass(12.5 / sigma, math.inf))
    return rounded([*tail[::-1], mass(-0.5 / sigma, 0.5 / sigma), *tail])


def digit_weights(c: int, k: int) -> list[int]:
    sigma = step(c - 11)
    masses = [mass((3 * k + d - 0.5) / sigma, (3 * k + d + 0.5) / sigma) for d in (-1, 0, 1)]
    shares = [m / sum(masses) if sum(masses) else 0.0 for m in masses]
    return rounded([7 / 8 * s + 1 / 24 for s in shares] if k == 3 else shares)


def near_weights(p: int, n: int, f: int) -> list[int]:
    weights = []
    for s in range(n):
        w = 65536.0
        for _ in range(abs(s - p)):
            w *= FALLS[f]
        weights.append(max(1, int(w)))
    return weights


class Coder:
    def __init__(self, data: bytes) -> None:
        self.words = list(struct.unpack(f"<{len(data) // 4}I", data))
        self.state = 0
        for _ in range(min(2, len(self.words))):
            self.state = self.state << 32 | self.words.pop()

    def take(self, edges: list[int]) -> int:
        u = self.state % 2**24
        i = bisect.bisect_right(edges, u) - 1
        self.state = (self.state >> 24) * (edges[i + 1] - edges[i]) + u - edges[i]
        if self.state < 2**32 and self.words:
            self.state = self.state << 32 | self.words.pop()
        return i

    def weighted(self, weights: list[int]) -> int:
        n, total, scale = len(weights), 0.0, (2**24 - len(weights)) / float(sum(weights))
        edges = []
        for i, w in enumerate(weights):
            edges.append(i + math.floor(total * scale))
            total += w
        assert len(edges) == n
        return self.take([*edges, 2**24])

    def uniform(self, n: int) -> int:
        if n == 1:
            return 0
        return self.take([i * (2**24 // n) for i in range(n)] + [2**24])


def shift(d_out: int, d_in: int) -> int:
    large, small, s = max(d_out, d_in), min(d_out, d_in), 0
    while s < 48 and 3 ** (2 * (s + 1) - 1) * small**6 <= large**6:
        s += 1
    return -s if d_out < d_in else s


class Strip:
    def __init__(self, width: int) -> None:
        self.q, self.c = [0] * width, 0


class Block:
    def __init__(self, widths: Sequence[int], paired: int | None) -> None:
        self.strips = [Strip(w) for w in widths]
        self.shift = paired
        self.e: int | None = None
        self.o = self.lead = 0


class Stream:
    def __init__(self, header: dict[str, Any]) -> None:
        self.groups = [
            [Block((d_out, d_in), shift(d_out, d_in)) for _ in range(rank)]
            for _, _, _, d_in, d_out, rank in header["projections"]
        ]
        for _, _, shape in header["modules"]:
            self.groups.append([Block([shape[-1]] * math.prod(shape[:-1]), None)])

    def add(self, chunk: bytes) -> None:
        exponent, tables = struct.unpack_from("<hB", chunk)
        coder, f = Coder(chunk[3:]), tables & 127
        counts = [coder.uniform(len(blocks) + 1) for blocks in self.groups]
        part = [b for blocks, n in zip(self.groups, counts, strict=True) for b in blocks[:n]]
        if tables & 128:
            o, lead = 60, 0
            for b in part:
                if b.e is None:
                    o = coder.weighted(near_weights(o, 121, f))
                    lead = coder.weighted(near_weights(lead, 25, f))
                    b.o, b.lead = o - 60, lead
        first = [b.lead if b.e is None else (b.e - exponent - b.o) // 6 - 1 for b in part]
        for t in range(max(first, default=-1), -1, -1):
            acting = [b for b, n in zip(part, first, strict=True) if n >= t]
            self.one_pass(acting, coder, f)
            for b in acting:
                b.e = exponent + b.o + 6 * t
        assert coder.state == 0
        assert not coder.words

    def one_pass(self, acting: list[Block], coder: Coder, f: int) -> None:
        before = 6
        new, old = [], []
        for b in acting:
            for j, s in enumerate(b.strips):
                second = b.shift is not None and j == 1
                predicted = (before + b.shift if before else 0) if second else before
                if s.c:
                    s.c = min(s.c + 6, 23)
                else:
                    s.c = coder.weighted(near_weights(min(max(predicted, 0), 17), 18, f))
                if not second:
                    before = s.c
                if s.c:
                    (new if b.e is None else old).append(s)
        for c, same in itertools.groupby(sorted(new, key=lambda s: s.c), key=lambda s: s.c):
            strips = list(same)
            weights = index_weights(c)
            for s in strips:
                s.q = [coder.weighted(weights) - 13 for _ in s.q]
            self.excess(strips, coder)
        places = sorted(
            ((s.c, min(abs(q), 3), i, j) for i, s in enumerate(old) for j, q in enumerate(s.q))
        )
        for c, k, i, j in places:
            d = coder.weighted(digit_weights(c, k)) - 1
            q = old[i].q[j]
            old[i].q[j] = 3 * q + (d if q >= 0 else -d)

    def excess(self, strips: list[Strip], coder: Coder) -> None:
        far = [(s, j) for s in strips for j, q in enumerate(s.q) if abs(q) == 13]
        for (s, j), length in zip(far, [coder.uniform(25) for _ in far], strict=True):
            value = 1
            for _ in range(length):
                value = 2 * value + coder.uniform(2)
            s.q[j] += (value - 1) * (1 if s.q[j] > 0 else -1)


def chunks_of(data: bytes) -> Iterator[Any]:
    magic, version, length = struct.unpack_from("<8sHI", data)
    assert (magic.hex(), version) == ("8952434153540d0a", 1)
    end = 14 + length
    assert hashlib.sha256(data[:end]).digest() == data[end : end + 32]
    header = json.loads(zlib.decompress(data[14:end]))
    yield header
    at = end + 32
    for n, digest, _, _ in header["chunks"]:
        assert hashlib.sha256(data[at : at + n]).hexdigest() == digest
        yield data[at : at + n]
        at += n
    assert at == len(data)


def small(seed: int) -> Container:
    tensors = random_adapter(
        seed, ((12, 8), (8, 30)), (3, 0), {"classifier.weight": (2, 8), "classifier.bias": (2,)}
    )
    return packed(tensors, n_steps=3)


def with_outliers(seed: int) -> Container:
    """Return a file whose indices escape, in a ladder whose ranks come and go."""
    tensors: AdapterTensors = random_adapter(seed, ((12, 8),), (3,))
    left = tensors.factors[0].left
    left[0, 0] = 40.0
    ladder = [
        ChunkPlan(-12, (1,)),
        ChunkPlan(-12, (2,)),
        ChunkPlan(-24, (1,)),
        ChunkPlan(-30, (3,)),
    ]
    chunks = encode(tensors, ladder)
    return Container(header_of(tensors, chunks), tuple(chunks))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [small, with_outliers])
def test_a_decoder_made_from_the_specification_reads_every_prefix(make: Any, seed: int) -> None:
    container = make(seed)
    header, *chunks = chunks_of(container.to_bytes())
    stream = Stream(header)
    for n, chunk in enumerate(chunks, start=1):
        stream.add(chunk)
        ours = container.prefix(n).tensors()
        for g, f in enumerate(ours.factors):
            columns = [
                np.float32(step(b.e)) * np.array([s.q for s in b.strips[:1]], np.float32)[0]
                for b in stream.groups[g]
                if b.e is not None and any(b.strips[0].q) and any(b.strips[1].q)
            ]
            assert len(columns) == f.rank
            for k, column in enumerate(columns):
                np.testing.assert_array_equal(column, f.left[:, k])
        for g, (name, _, shape) in enumerate(header["modules"], start=len(ours.factors)):
            (block,) = stream.groups[g]
            if block.e is None:
                assert name not in ours.modules
                continue
            values = np.float32(step(block.e)) * np.array([s.q for s in block.strips], np.float32)
            np.testing.assert_array_equal(values.reshape(shape), ours.modules[name])


def test_the_weights_are_those_that_the_format_fixes() -> None:
    digest = hashlib.sha256()
    for c in range(1, 18):
        digest.update(np.array(index_weights(c), "<i8").tobytes())
    for c in range(1, 24):
        for k in range(4):
            digest.update(np.array(digit_weights(c, k), "<i8").tobytes())
    assert digest.hexdigest().startswith("1cb19f1d4964ac93")
