"""A decoder written from docs/format.md alone, in plain Python, reads what rankcast writes."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.codec import header_of, packed, random_adapter
from helpers.lean import DICTIONARY, as_second, split_lean
from helpers.lean import MAGIC as LEAN_MAGIC
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


def rounded(shares: Sequence[float]) -> tuple[int, ...]:
    return tuple(max(1, math.floor(65536 * s + 0.5)) for s in shares)


@functools.cache
def index_weights(c: int, t: int) -> tuple[int, ...]:
    if t and c <= 10:
        gaussian, s = index_weights(c, 0), (0, 6, 4, 2)[t]
        rest = (sum(gaussian) - gaussian[13]) // 2
        far = [max(1, rest * (2**s - 1) // 2 ** (s * m)) for m in range(1, 13)]
        far.append(max(1, rest // 2 ** (s * 12)))
        return (*far[::-1], gaussian[13], *far)
    sigma = step(c - 11)
    tail = [mass((m - 0.5) / sigma, (m + 0.5) / sigma) for m in range(1, 13)]
    tail.append(mass(12.5 / sigma, math.inf))
    return rounded([*tail[::-1], mass(-0.5 / sigma, 0.5 / sigma), *tail])


@functools.cache
def digit_weights(c: int, k: int) -> tuple[int, ...]:
    sigma = step(c - 11)
    masses = [mass((3 * k + d - 0.5) / sigma, (3 * k + d + 0.5) / sigma) for d in (-1, 0, 1)]
    shares = [m / sum(masses) if sum(masses) else 0.0 for m in masses]
    return rounded([7 / 8 * s + 1 / 24 for s in shares] if k == 3 else shares)


@functools.cache
def near_weights(p: int, n: int, f: int) -> tuple[int, ...]:
    weights = []
    for s in range(n):
        w = 65536.0
        for _ in range(abs(s - p)):
            w *= FALLS[f]
        weights.append(max(1, int(w)))
    return tuple(weights)


@functools.cache
def edges_of(weights: tuple[int, ...]) -> list[int]:
    total, scale, edges = 0.0, (2**24 - len(weights)) / float(sum(weights)), []
    for i, w in enumerate(weights):
        edges.append(i + math.floor(total * scale))
        total += w
    return [*edges, 2**24]


@functools.cache
def even_edges(n: int) -> list[int]:
    return [i * (2**24 // n) for i in range(n)] + [2**24]


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

    def weighted(self, weights: tuple[int, ...]) -> int:
        return self.take(edges_of(weights))

    def uniform(self, n: int) -> int:
        if n == 1:
            return 0
        return self.take(even_edges(n))


def shift(d_out: int, d_in: int) -> int:
    large, small, s = max(d_out, d_in), min(d_out, d_in), 0
    while s < 48 and 3 ** (2 * (s + 1) - 1) * small**6 <= large**6:
        s += 1
    return -s if d_out < d_in else s


class Strip:
    def __init__(self, width: int) -> None:
        self.q, self.c = [0] * width, 0


class Block:
    def __init__(
        self, widths: Sequence[int], paired: int | None, own: bool = False, n_whole: int = 0
    ) -> None:
        self.strips = [Strip(w) for w in widths]
        self.shift = paired
        self.own, self.n_whole = own, n_whole
        self.centre = np.float32(0)
        self.whole: list[int] = []
        self.e: int | None = None
        self.o = self.lead = 0


def module_blocks(module: Sequence[Any], segment: int | None) -> list[Block]:
    _, carriage, shape, *dtype = module
    count, width = math.prod(shape), shape[-1] if shape else 1
    if dtype:
        limit = segment or count or 1
        sizes = [min(limit, count - start) for start in range(0, count, limit)] or [0]
        return [Block((), None, n_whole=n) for n in sizes]
    own = carriage == "own"
    if own and not 64 <= width <= 4096:
        width = 256
    widths = [min(width, count - start) for start in range(0, count, width)] if count else []
    each = max(segment // width, 1) if segment and count > segment else len(widths) or 1
    starts = range(0, len(widths), each) or range(1)
    return [Block(widths[start : start + each], None, own) for start in starts]


class Stream:
    def __init__(self, header: dict[str, Any]) -> None:
        limit = header.get("segment")
        self.groups, sizes = [], []
        for _, _, _, d_in, d_out, rank in header["projections"]:
            shifted = shift(d_out, d_in)
            self.groups.append([Block((d_out, d_in), shifted) for _ in range(rank)])
            sizes.append(rank * (d_in + d_out))
        self.of_module = []
        for module in header["modules"]:
            blocks = module_blocks(module, limit)
            self.of_module.append(blocks)
            for b in blocks:
                self.groups.append([b])
                sizes.append(sum(len(s.q) for s in b.strips) + b.n_whole)
        self.segments: list[list[list[Block]]] = [[]]
        total = 0
        for blocks, size in zip(self.groups, sizes, strict=True):
            if limit and total and total + size > limit:
                self.segments.append([])
                total = 0
            self.segments[-1].append(blocks)
            total += size

    def add(self, chunk: bytes) -> None:
        n = len(self.segments)
        if n == 1:
            self.add_piece(self.segments[0], chunk)
            return
        at = 4 * n
        for groups, length in zip(self.segments, struct.unpack_from(f"<{n}I", chunk), strict=True):
            self.add_piece(groups, chunk[at : at + length])
            at += length
        assert at == len(chunk)

    def add_piece(self, groups: list[list[Block]], piece: bytes) -> None:
        exponent, f, how, tail, offsets, symbols = head_of(piece)
        coder = Coder(symbols)
        counts, count = [], None
        for most in map(len, groups):
            if how == 0:
                count = coder.uniform(most + 1)
            elif how == 1 or not most:
                counts.append(most)
                continue
            else:
                p = most if how == 2 or count is None else min(count, most)
                count = coder.weighted(near_weights(p, most + 1, f))
            counts.append(count)
        part = [b for blocks, n in zip(groups, counts, strict=True) for b in blocks[:n]]
        new = [b for b in part if b.e is None]
        if offsets:
            o, lead = 60, 0
            for b in new:
                o = coder.weighted(near_weights(o, 121, f))
                lead = coder.weighted(near_weights(lead, 25, f))
                b.o, b.lead = o - 60, lead
        for b in new:
            self.exact_numbers(b, coder)
        first = [b.lead if b.e is None else (b.e - exponent - b.o) // 6 - 1 for b in part]
        for t in range(max(first, default=-1), -1, -1):
            acting = [b for b, n in zip(part, first, strict=True) if n >= t]
            self.one_pass(acting, coder, f, tail)
            for b in acting:
                b.e = exponent + b.o + 6 * t
        assert coder.state == 0
        assert not coder.words

    def exact_numbers(self, b: Block, coder: Coder) -> None:
        if b.own and coder.uniform(2):
            high, low = coder.uniform(2**16), coder.uniform(2**16)
            (b.centre,) = np.frombuffer(struct.pack("<I", high * 2**16 + low), "<f4")
        if b.n_whole:
            lowest = sum(coder.uniform(2**16) << 16 * i for i in range(4))
            lowest -= (lowest >> 63) * 2**64
            bits = coder.uniform(65)
            b.whole = [lowest] * b.n_whole
            for done in range(0, bits, 16):
                for i in range(b.n_whole):
                    b.whole[i] += coder.uniform(2 ** min(16, bits - done)) << done

    def one_pass(self, acting: list[Block], coder: Coder, f: int, tail: int) -> None:
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
            weights = index_weights(c, tail)
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


def head_of(piece: bytes) -> tuple[int, int, int, int, bool, bytes]:
    """Return exponent, table of differences, mode of counts, tail, offsets, symbols."""
    if piece[1] in (0, 255):
        exponent, tables = struct.unpack_from("<hB", piece)
        return exponent, tables & 127, 0, 0, tables > 127, piece[3:]
    bits, exponent = divmod(struct.unpack_from("<H", piece)[0] - 256, 421)
    symbols = piece[2:] + bytes(-(len(piece) - 2) % 4)
    return exponent - 240, bits & 3, bits >> 2 & 3, bits >> 4 & 3, bits > 63, symbols


def chunks_of(data: bytes) -> Iterator[Any]:
    if data[:4] == LEAN_MAGIC:
        header, chunks = split_lean(data)
        assert [e[1] for e in header["entries"]] == [
            struct.pack("<I", zlib.crc32(chunk)) for chunk in chunks
        ]
        assert data.endswith(b"".join(chunks))
        yield as_second(header)
        yield from chunks
        return
    magic, version, length = struct.unpack_from("<8sHI", data)
    assert magic.hex() == "8952434153540d0a"
    end = 14 + length
    assert hashlib.sha256(data[:end]).digest() == data[end : end + 32]
    header = json.loads(zlib.decompress(data[14:end]))
    kinds = {(module[1], len(module), 0 in module[2]) for module in header["modules"]}
    plain = kinds <= {("full", 3, False), ("difference", 3, False)}
    assert version == (1 if plain and not {"config", "segment"} & header.keys() else 2)
    yield header
    at = end + 32
    for n, digest, _, _ in header["chunks"]:
        assert hashlib.sha256(data[at : at + n]).hexdigest() == digest
        yield data[at : at + n]
        at += n
    assert at == len(data)


def small(seed: int, lean: bool) -> Container:
    tensors = random_adapter(
        seed, ((12, 8), (8, 30)), (3, 0), {"classifier.weight": (2, 8), "classifier.bias": (2,)}
    )
    return packed(tensors, n_steps=3, lean=lean)


def with_outliers(seed: int, lean: bool) -> Container:
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
    chunks = encode(tensors, ladder, lean=lean)
    return Container(header_of(tensors, chunks, lean=lean), tuple(chunks))


def sparse(seed: int, lean: bool) -> Container:
    """Return a file of rank 1 and 2 of few weights other than zero, with and without large ones."""
    rng = np.random.default_rng(seed)
    tensors = random_adapter(seed, ((60, 90), (70, 60), (90, 80)), (1, 2, 2))
    for f in tensors.factors:
        for values in (f.left, f.right):
            size = rng.choice([0, 0, 0, 0, 0, 0, 0, 1, -1, [-2, 5][seed % 2]], size=values.shape)
            values[:] = np.float32(size)
    ladder = [ChunkPlan(0, (1, 1, 2)), ChunkPlan(0, (1, 2, 2))]
    chunks = encode(tensors, ladder, lean=lean)
    return Container(header_of(tensors, chunks, lean=lean), tuple(chunks))


def with_tensors_of_its_own(seed: int, lean: bool) -> Container:
    """Return a file of several segments with every kind of tensor, some larger than a segment."""
    rng = np.random.default_rng(seed)
    tensors = random_adapter(seed, ((12, 8), (8, 30)), (3, 0))
    normal = {
        name: (centre + size * rng.normal(size=shape)).astype(np.float32)
        for name, shape, centre, size in (
            ("a.weight", (70, 1), 0.0, 1.0), ("b.weight", (3, 2, 65), 0.0, 1e-3),
            ("c.magnitude", (300,), 7.0, 0.05), ("d.number", (), 3.0, 0.0),
            ("e.none", (2, 0), 0.0, 0.0), ("f.zeros", (5,), 0.0, 0.0),
            ("g.head", (9, 7), 0.0, 20.0),
        )
    }  # fmt: skip
    whole = {
        "h.places": rng.integers(-(2**62), 2**62, size=(9, 11)),
        "i.mask": rng.integers(0, 2, size=(150,)).astype(bool),
        "j.same": np.full((3,), -7, dtype=np.int8),
        "k.none": np.zeros((0,), dtype=np.int64),
    }
    modules = normal | whole
    carriage = dict.fromkeys(modules, "own") | {"g.head": "full"}
    tensors = dataclasses.replace(
        tensors, modules=modules, carriage=carriage, config={"use_dora": True}
    )
    return packed(tensors, n_steps=3, segment=100, lean=lean)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize("make", [small, with_outliers, sparse, with_tensors_of_its_own])
def test_a_decoder_made_from_the_specification_reads_every_prefix(
    make: Any, lean: bool, seed: int
) -> None:
    container = make(seed, lean)
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
        for (name, _, shape, *dtype), blocks in zip(
            header["modules"], stream.of_module, strict=True
        ):
            if all(block.e is None for block in blocks):
                assert name not in ours.modules
                continue
            values: list[Any] = []
            for block in blocks:
                indices = [q for strip in block.strips for q in strip.q]
                weights = np.float32(step(block.e or 0)) * np.array(indices, np.float32)
                values += block.whole or (weights + block.centre).tolist()
            expected = np.array(values, dtype[0] if dtype else np.float32).reshape(shape)
            np.testing.assert_array_equal(expected, ours.modules[name])
            assert expected.dtype == ours.modules[name].dtype


def test_the_weights_are_those_that_the_format_fixes() -> None:
    digest = hashlib.sha256()
    for c in range(1, 18):
        digest.update(np.array(index_weights(c, 0), "<i8").tobytes())
    for c in range(1, 24):
        for k in range(4):
            digest.update(np.array(digit_weights(c, k), "<i8").tobytes())
    assert digest.hexdigest().startswith("1cb19f1d4964ac93")


def test_the_dictionary_is_the_one_that_the_format_fixes() -> None:
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text("utf-8")
    assert len(DICTIONARY) < 2**15
    assert hashlib.sha256(DICTIONARY).hexdigest() in text
