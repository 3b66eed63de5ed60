"""An adapter to chunks and back: the bytes of the stream (docs/format.md).

`encode` quantises every weight once, to the finest step that the chunks reach, and cuts the digits
into chunks; `Decoder` takes chunks in order and gives, at any time, the adapter that those received
amount to. What the symbols of a chunk say is in `blocks`.

Bytes of a chunk: exponent (int16), table of differences (uint8: which of `FALLS`, plus 128 if
offsets or lead digits of new blocks follow), then the symbols through constriction's ANS coder.
That is a stack: the symbol coded last is read first. A writer therefore collects its symbols and
codes them backwards when asked for bytes; a reader gets them in the order in which they were
written.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankcast.codec.blocks import (
    GroupShape,
    StreamState,
    code_blocks,
    code_uniform,
    lead_digits,
)
from rankcast.codec.entropy_model import FALLS, ans, near_bits, near_model
from rankcast.codec.header import Header
from rankcast.codec.quantiser import Float32Array, Indices, quantise
from rankcast.codec.tensors import AdapterTensors, Factors, group_shapes, rows_of
from rankcast.errors import CodecError
from rankcast.records import IntArray

_HEAD = struct.Struct("<hB")
_WITH_OFFSETS = 128


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """Content of a chunk: which blocks take part, and how precise they become.

    Attributes:
        exponent: of the step to which it brings its blocks, before their offsets.
        counts: blocks of each group that take part, the first ones: ranks, then 0 or 1 for each
            tensor.
    """

    exponent: int
    counts: tuple[int, ...]


def encode(
    tensors: AdapterTensors, plans: Sequence[ChunkPlan], offsets: Sequence[IntArray] | None = None
) -> list[bytes]:
    """Return the chunks of an adapter.

    Args:
        tensors: with the components of each projection in order of importance; see
            `Factors.balanced`, which makes one step fit both factors.
        plans: what each chunk brings, every one a refinement of those before it.
        offsets: for each group an (n_blocks,) array of exponents that are added to the plans';
            None for none.

    Raises:
        CodecError: NaN or infinite weights, or plans that do not fit the adapter or do not refine.
    """
    state, chunks = _with_goals(tensors, plans, offsets), []
    sizes = [shape.blocks for shape in state.shapes]
    for plan in plans:
        fits = len(plan.counts) == len(sizes)
        if not fits or any(not 0 <= n <= m for n, m in zip(plan.counts, sizes, strict=True)):
            raise CodecError(f"A chunk counts {plan.counts} blocks where there are {sizes}.")
        writer = SymbolWriter()
        for n, size in zip(plan.counts, sizes, strict=True):
            code_uniform(writer, np.array([n], dtype=np.int32), 1, size + 1)
        new = [block for _, block in state.chosen(plan.counts) if block.exponent is None]
        for block in new:
            block.lead = lead_digits(block, plan.exponent + block.offset)
        has_offsets = any(block.offset or block.lead for block in new)
        code_blocks(state, plan.counts, plan.exponent, writer, offsets=has_offsets)
        fall = writer.best_fall()
        head = _HEAD.pack(plan.exponent, fall + _WITH_OFFSETS * has_offsets)
        chunks.append(head + writer.to_bytes(fall))
    return chunks


class Decoder:
    """The adapter that the chunks received so far amount to.

    Args:
        header: of the container that they come from.
    """

    def __init__(self, header: Header) -> None:
        self.header = header
        shapes = [m.shape for m in header.modules]
        self._state = StreamState(group_shapes(header.projections, header.ranks, shapes))
        self._damaged = False

    def add(self, chunk: bytes) -> ChunkPlan:
        """Take the next chunk and return what it brought.

        Raises:
            CodecError: no such chunk. The decoder is of no use afterwards.
        """
        self._refuse_damaged()
        self._damaged = True  # until the chunk has been read to its end
        plan, reader, offsets = _opened(self._state.shapes, chunk)
        code_blocks(self._state, plan.counts, plan.exponent, reader, offsets=offsets)
        reader.close()
        self._damaged = False
        return plan

    def tensors(self) -> AdapterTensors:
        """Return the adapter of the chunks received; what has not arrived is zero or absent.

        A component counts as present if both its factors have weights other than zero. Modules
        that travel in full are left out until something of them has arrived; of those that travel
        as a difference, the difference is zero until then.

        Raises:
            CodecError: a damaged chunk was met.
        """
        self._refuse_damaged()
        header, n = self.header, len(self.header.projections)
        factors = tuple(
            _factors(self._state.values(g), p.d_out, p.d_in)
            for g, p in enumerate(header.projections)
        )
        modules, carriage = {}, {}
        for g, module in enumerate(header.modules, start=n):
            blocks = self._state.values(g)
            if blocks:
                modules[module.name] = np.stack(blocks[0]).reshape(module.shape)
            elif module.carriage == "difference":
                modules[module.name] = np.zeros(module.shape, dtype=np.float32)
            else:
                continue
            carriage[module.name] = module.carriage
        return AdapterTensors(header.projections, factors, modules, carriage, header.config)

    def _refuse_damaged(self) -> None:
        if self._damaged:
            raise CodecError("This decoder met a damaged chunk; begin again with a new one.")


def _with_goals(
    tensors: AdapterTensors, plans: Sequence[ChunkPlan], offsets: Sequence[IntArray] | None
) -> StreamState:
    """Return an encoder's state: every block with the indices that it is to reach."""
    shapes = [m.shape for m in tensors.modules.values()]
    state = StreamState(group_shapes(tensors.projections, tensors.ranks.tolist(), shapes))
    factors = [(np.ascontiguousarray(f.left.T), f.right) for f in tensors.factors]
    rows = [tuple(rows_of(m)[:, None]) for m in tensors.modules.values()]  # one block of rows
    for g, (blocks, strips) in enumerate(zip(state.groups, [*factors, *rows], strict=True)):
        for k, block in enumerate(blocks):
            reached = [plan.exponent for plan in plans if plan.counts[g] > k]
            if reached:
                block.offset = 0 if offsets is None else int(offsets[g][k])
                block.finest = min(reached) + block.offset
        for exponent in {b.finest for b in blocks if b.finest is not None}:
            goals = [quantise(strip, exponent) for strip in strips]
            for k, block in enumerate(blocks):
                if block.finest == exponent:
                    for strip, goal in zip(block.strips, goals, strict=True):
                        strip.goal = goal[k]
    return state


def _factors(blocks: list[list[Float32Array]], d_out: int, d_in: int) -> Factors:
    """Return the components that are other than zero."""
    alive = [(left, right) for left, right in blocks if left.any() and right.any()]
    if not alive:
        return Factors(np.zeros((d_out, 0), np.float32), np.zeros((0, d_in), np.float32))
    lefts, rights = zip(*alive, strict=True)
    return Factors(np.stack(lefts, axis=1), np.stack(rights))


def plan_of_chunk(shapes: Sequence[GroupShape], data: bytes) -> ChunkPlan:
    """Return what a chunk brings, from its first symbols alone.

    Raises:
        CodecError: bytes that do not begin like a chunk; what follows is not looked at.
    """
    return _opened(shapes, data)[0]


def _opened(shapes: Sequence[GroupShape], data: bytes) -> tuple[ChunkPlan, SymbolReader, bool]:
    """Return a chunk's plan, the reader behind it, and whether offsets follow."""
    if len(data) < _HEAD.size:
        raise CodecError(f"A chunk has at least {_HEAD.size} bytes, got {len(data)}.")
    exponent, tables = _HEAD.unpack_from(data)
    reader = SymbolReader(data[_HEAD.size :], tables & ~_WITH_OFFSETS)
    counts = [int(code_uniform(reader, None, 1, s.blocks + 1)[0]) for s in shapes]
    return ChunkPlan(exponent, tuple(counts)), reader, bool(tables & _WITH_OFFSETS)


class SymbolWriter:
    """Collects symbols."""

    def __init__(self) -> None:
        self._written: list[tuple[Indices, Callable[[int], Any]]] = []
        self._differences: list[tuple[int, int, int]] = []

    def many(self, symbols: Indices | None, count: int, model: Any) -> Indices:
        """Append `count` symbols, integers from 0, each with the same model, and return them."""
        assert symbols is not None
        assert len(symbols) == count
        if count:
            array = np.ascontiguousarray(symbols, dtype=np.int32)
            self._written.append((array, lambda _: model))
        return symbols

    def near(self, symbol: int, predicted: int, size: int) -> int:
        """Append a symbol of 0..size - 1 that is likely near `predicted`, and return it."""
        self._differences.append((symbol, predicted, size))
        array = np.array([symbol], dtype=np.int32)
        self._written.append((array, lambda fall: near_model(predicted, size, fall)))
        return symbol

    def best_fall(self) -> int:
        """Return which of `FALLS` codes the differences in the fewest bits."""
        seen = Counter(self._differences).items()
        bits = [
            sum(n * near_bits(symbol, p, size, fall) for (symbol, p, size), n in seen)
            for fall in range(len(FALLS))
        ]
        return int(np.argmin(bits))

    def to_bytes(self, fall: int) -> bytes:
        """Return everything written, in whole 32-bit words."""
        coder = ans.stack.AnsCoder()
        for symbols, model in reversed(self._written):
            coder.encode_reverse(symbols, model(fall))
        return coder.get_compressed().astype("<u4").tobytes()


class SymbolReader:
    """Reads what a `SymbolWriter` wrote.

    Args:
        data: what `to_bytes` returned.
        fall: which of `FALLS` it was given.

    Raises:
        CodecError: no whole number of words, no end that the coder could have written, or no such
            fall.
    """

    def __init__(self, data: bytes, fall: int) -> None:
        if len(data) % 4:
            raise CodecError(f"A chunk's symbols come in words of 4 bytes, got {len(data)} bytes.")
        if not 0 <= fall < len(FALLS):
            raise CodecError(f"A chunk names table {fall} of differences; there are {len(FALLS)}.")
        self._fall = fall
        try:
            words = np.frombuffer(data, dtype="<u4").astype(np.uint32)
            self._coder = ans.stack.AnsCoder(words)
        except ValueError as error:
            raise CodecError(f"A chunk's symbols are damaged: {error}") from error

    def many(self, symbols: Indices | None, count: int, model: Any) -> Indices:
        """Return the next `count` symbols; `symbols` is disregarded."""
        del symbols
        if not count:
            return np.zeros(0, dtype=np.int32)
        return self._coder.decode(model, count)

    def near(self, symbol: int, predicted: int, size: int) -> int:
        """Return the next symbol that is likely near `predicted`; `symbol` is disregarded."""
        del symbol
        return int(self._coder.decode(near_model(predicted, size, self._fall), 1)[0])

    def close(self) -> None:
        """Raise CodecError unless everything was read."""
        if not self._coder.is_empty():
            raise CodecError("A chunk holds more symbols than its plan calls for.")
