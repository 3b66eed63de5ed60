"""An adapter to chunks and back: the bytes of the stream (docs/format.md).

`encode` quantises every weight once, to the finest step that the chunks reach, and cuts the digits
into chunks; `Decoder` takes chunks in order and gives, at any time, the adapter that those received
amount to. What the symbols of a chunk say is in `blocks`, how they become bytes in `symbols`.

A chunk of an adapter of several segments (`layout`) is the lengths of their pieces (uint32 each)
and the pieces; that of a small adapter is its one piece. A piece has a head (`piece`), then
symbols.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from rankcast.codec.blocks import (
    Block,
    GroupShape,
    StreamState,
    code_blocks,
    first_indices,
    lead_digits,
)
from rankcast.codec.entropy_model import best_tail, magnitude_counts
from rankcast.codec.header import SEGMENT, Header, ModuleShape, module_shapes
from rankcast.codec.layout import Layout
from rankcast.codec.piece import Counts, PieceHead, best_counts, code_counts
from rankcast.codec.quantiser import quantise, step_of
from rankcast.codec.spool import Collector, QuantisedFactors
from rankcast.codec.symbols import SymbolReader, SymbolWriter
from rankcast.codec.tensors import AdapterTensors, Carriage
from rankcast.errors import CodecError
from rankcast.records import IntArray

_SAMPLE = 48
"""Blocks by which the tail of a piece's indices is chosen, at most."""


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """Content of a chunk: which blocks take part, and how precise they become.

    Attributes:
        exponent: of the step to which it brings its blocks, before their offsets.
        counts: components of each projection that take part, the first ones, then 0 or 1 for each
            tensor.
    """

    exponent: int
    counts: tuple[int, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Kept:
    """A file of another version of an adapter, whose indices and offsets are to be kept.

    Attributes:
        header: of the file.
        chunks: all of them.
        steps: from the middle of its cell, within which a weight keeps its index.
    """

    header: Header
    chunks: Sequence[bytes]
    steps: float

    def state(self, segment: int) -> StreamState:
        """Return what a segment is once all chunks are here."""
        layout = Layout.of(self.header)
        state = layout.state(segment)
        for chunk in self.chunks:
            refine(state, pieces_of(chunk, len(layout.segments))[segment])
        return state


def encode(
    tensors: AdapterTensors,
    plans: Sequence[ChunkPlan],
    offsets: Sequence[IntArray] | None = None,
    segment: int = SEGMENT,
    kept: Kept | None = None,
    *,
    lean: bool = True,
) -> list[bytes]:
    """Return the chunks of an adapter.

    Args:
        tensors: with the components of each projection in order of importance; see
            `Factors.balanced`, which makes one step fit both factors.
        plans: what each chunk brings, every one a refinement of those before it.
        offsets: for each component of a projection and for each tensor exponents that are added to
            the plans'; None for none.
        segment: numbers that are coded together; an adapter of more is cut into segments.
        kept: another version with the same layout, whose offsets are used; None for none.
        lean: for a file of version 3, not of those before.

    Raises:
        CodecError: NaN or infinite weights, or plans that do not fit the adapter or do not refine.
    """
    ranks = tensors.ranks.tolist()
    sizes = [*ranks, *(1 for _ in tensors.modules)]
    for plan in plans:
        fits = len(plan.counts) == len(sizes)
        if not fits or any(not 0 <= n <= m for n, m in zip(plan.counts, sizes, strict=True)):
            raise CodecError(f"A chunk counts {plan.counts} blocks where there are {sizes}.")
    limit = segment if tensors.n_params > segment else None
    layout = Layout.made(tensors.projections, ranks, module_shapes(tensors), limit)
    numbers = _numbers(tensors, layout)
    pieces = [
        _encode_segment(layout, i, islice(numbers, len(groups)), plans, offsets, kept, lean)
        for i, groups in enumerate(layout.segments)
    ]
    return [joined_pieces(of_chunk) for of_chunk in zip(*pieces, strict=True)]


def joined_pieces(pieces: Sequence[bytes]) -> bytes:
    """Return the chunk of the pieces of all segments."""
    if len(pieces) == 1:
        return pieces[0]
    return struct.pack(f"<{len(pieces)}I", *map(len, pieces)) + b"".join(pieces)


def pieces_of(chunk: bytes | memoryview, n: int) -> list[memoryview]:
    """Return the pieces of a chunk.

    Raises:
        CodecError: their lengths do not add up to the chunk's.
    """
    if n == 1:
        return [memoryview(chunk)]
    table = struct.Struct(f"<{n}I")
    lengths = table.unpack_from(chunk) if len(chunk) >= table.size else ()
    if table.size + sum(lengths) != len(chunk):
        raise CodecError(f"A chunk has {len(chunk)} bytes, and its {n} pieces another number.")
    pieces, start = [], table.size
    for length in lengths:
        pieces.append(memoryview(chunk)[start : start + length])
        start += length
    return pieces


@dataclass(frozen=True, eq=False)
class _Numbers:
    """What an encoder codes of a group: arrays of strips, one block after the other."""

    strips: Sequence[NDArray[Any]]
    centre: float = 0.0
    whole: NDArray[np.int64] | None = None


def _numbers(tensors: AdapterTensors, layout: Layout) -> Iterator[_Numbers]:
    """Yield the numbers of each group, with one projection or tensor in memory at a time."""
    for factors in tensors.factors:
        yield _Numbers((np.ascontiguousarray(factors.left.T), factors.right))
    g = len(tensors.projections)
    for item, name in enumerate(tensors.modules, start=g):
        values, start = tensors.modules[name].reshape(-1), 0
        sizes = tensors.module_sizes.get(name)
        while g < len(layout.items) and layout.items[g] == item:
            shape = layout.shapes[g]
            part = values[start : start + shape.size]
            start, g = start + shape.size, g + 1
            if sizes is None:
                yield _Numbers((), whole=part.astype(np.int64))
            else:
                ends = np.cumsum(shape.widths, dtype=np.int64)
                strips = np.split(part, ends)[:-1]  # behind the last one nothing is left
                centre = sizes.centre if shape.own else 0.0
                yield _Numbers([strip[None] for strip in strips], centre)


def _encode_segment(  # noqa: PLR0917 what `encode` was asked for
    layout: Layout,
    segment: int,
    numbers: Iterable[_Numbers],
    plans: Sequence[ChunkPlan],
    offsets: Sequence[IntArray] | None,
    kept: Kept | None,
    lean: bool,
) -> list[bytes]:
    """Return the piece of a segment in each chunk."""
    groups, state = layout.segments[segment], layout.state(segment)
    if kept is not None:
        make_known(state, kept.state(segment), range(len(groups)))
    for g, blocks, coded in zip(groups, state.groups, numbers, strict=True):
        item = layout.items[g]
        for k, block in enumerate(blocks):
            reached = [plan.exponent for plan in plans if plan.counts[item] > k]
            if reached:
                block.offset = 0 if offsets is None else int(offsets[item][k])
                for old in (blocks[0].before, block.before):
                    block.offset = old.offset if _has_appeared(old) else block.offset
                block.finest = min(reached) + block.offset
        _set_goals(blocks, coded, 0.0 if kept is None else kept.steps)
    pieces = []
    for plan in plans:
        counts = tuple(plan.counts[layout.items[g]] for g in groups)
        pieces.append(_encode_piece(state, ChunkPlan(plan.exponent, counts), lean))
    return pieces


def make_known(state: StreamState, before: StreamState, places: Sequence[int | None]) -> None:
    """Tell the blocks of a state of those that another version has in their place.

    Args:
        state: whose blocks are told.
        before: of the other version.
        places: for each group of `state` that of `before`; None where there is none.
    """
    for g, place in enumerate(places):
        if place is None:
            continue
        shape, other = state.shapes[g], before.shapes[place]
        if (shape.widths, shape.paired, shape.whole) == (other.widths, other.paired, other.whole):
            for block, known in zip(state.groups[g], before.groups[place], strict=False):
                block.before = known


def _has_appeared(block: Block | None) -> TypeGuard[Block]:
    return block is not None and block.exponent is not None


def _set_goals(blocks: list[Block], coded: _Numbers, kept_steps: float) -> None:
    """Give every block the indices that it is to reach, those before where they are near enough."""
    old = blocks[0].before if blocks else None
    centre = float(old.centre) if _has_appeared(old) else coded.centre
    for block in blocks:
        block.centre, block.whole = np.float32(centre), coded.whole
    for exponent in {b.finest for b in blocks if b.finest is not None}:
        for place, strip in enumerate(coded.strips):
            centred = strip.astype(np.float64) - centre if centre else strip
            goals = quantise(centred, exponent)
            for k, block in enumerate(blocks):
                if block.finest != exponent:
                    continue
                goal, old = goals[k], block.before
                if old is not None and old.exponent == exponent:
                    before, steps = old.strips[place].indices, centred[k] / step_of(exponent)
                    goal = np.where(np.abs(steps - before) <= kept_steps, before, goal)
                block.strips[place].goal = goal


def _encode_piece(state: StreamState, plan: ChunkPlan, lean: bool) -> bytes:
    new = [block for _, block in state.chosen(plan.counts) if block.exponent is None]
    for block in new:
        if _has_appeared(block.before):
            block.lead = block.before.lead
        else:
            block.lead = lead_digits(block, plan.exponent + block.offset)
    offsets = any(block.offset or block.lead for block in new)
    counts: Counts = "even"
    tail = 0
    if lean:
        some = new[:: len(new) // (_SAMPLE + 1) + 1]
        strips = [s for b in some for s in first_indices(b, plan.exponent + b.offset)]
        tail = best_tail(list(map(magnitude_counts, strips)))
        counts = best_counts(plan.counts, state.shapes)
    writer = SymbolWriter()
    code_counts(writer, plan.counts, state.shapes, counts)
    code_blocks(state, plan.counts, plan.exponent, writer, offsets=offsets, tail=tail)
    fall = writer.best_fall()
    head = PieceHead.of(plan.exponent, fall, offsets=offsets, lean=lean, counts=counts, tail=tail)
    return head.join(writer.to_bytes(fall))


class Decoder:
    """The adapter that the chunks received so far amount to.

    Args:
        header: of the container that they come from.
    """

    def __init__(self, header: Header) -> None:
        self.header = header
        self._layout = Layout.of(header)
        self._states = [self._layout.state(i) for i in range(len(self._layout.segments))]
        self._damaged = False

    def add(self, chunk: bytes) -> ChunkPlan:
        """Take the next chunk and return what it brought.

        Raises:
            CodecError: no such chunk. The decoder is of no use afterwards.
        """
        self._refuse_damaged()
        self._damaged = True  # until the chunk has been read to its end
        pieces = pieces_of(chunk, len(self._states))
        plans = [refine(state, piece) for state, piece in zip(self._states, pieces, strict=True)]
        plan = _joined_plans(self._layout, plans)
        self._damaged = False
        return plan

    def tensors(self) -> AdapterTensors:
        """Return the adapter of the chunks received; what has not arrived is zero or absent.

        A component counts as present if both its factors have weights other than zero. Modules
        that travel in full are left out until something of them has arrived; of those that travel
        as a difference, the difference is zero until then.

        Raises:
            CodecError: a damaged chunk was met, or numbers that do not fit their type.
        """
        self._refuse_damaged()
        received = (group for state in self._states for group in _received(state))
        return _assembled(self.header, self._layout, received)

    def exponents(self) -> list[list[int]]:
        """Return the step exponents of what has arrived: of components, then of each tensor."""
        found: list[list[int]] = [[] for _ in range(max(self._layout.items, default=-1) + 1)]
        for state, groups in zip(self._states, self._layout.segments, strict=True):
            for g, (item, shape) in enumerate(zip(groups, state.shapes, strict=True)):
                blocks = state.components(g) if shape.paired else state.groups[g]
                known = [block.exponent for block in blocks if block.exponent is not None]
                found[self._layout.items[item]] += known
        return found

    def _refuse_damaged(self) -> None:
        if self._damaged:
            raise CodecError("This decoder met a damaged chunk; begin again with a new one.")


def decode(header: Header, chunks: Sequence[bytes]) -> AdapterTensors:
    """Return the adapter that chunks amount to; see `Decoder.tensors`.

    One segment after the other is decoded. An adapter of several lies on the disk afterwards, and
    only what is looked at is in memory.

    Raises:
        CodecError: a damaged chunk.
    """
    layout = Layout.of(header)
    parts = [pieces_of(chunk, len(layout.segments)) for chunk in chunks]

    def received() -> Iterator[Any]:
        exponents: list[int] = []
        for i in range(len(layout.segments)):
            state = layout.state(i)
            met = [refine(state, pieces[i]).exponent for pieces in parts]
            if met != (exponents := exponents or met):
                raise CodecError("The pieces of a chunk reach different steps.")
            yield from _received(state)

    return _assembled(header, layout, received())


def ranks_of_prefixes(header: Header, chunks: Sequence[bytes]) -> tuple[list[ChunkPlan], IntArray]:
    """Decode every prefix, one segment after the other, and return what is to be said of them.

    Returns:
        What each chunk brings, and (n_chunks, N) the ranks of the prefix that ends with it.

    Raises:
        CodecError: a damaged chunk, or numbers that do not fit their type.
    """
    layout, n = Layout.of(header), len(header.projections)
    parts = [pieces_of(chunk, len(layout.segments)) for chunk in chunks]
    ranks, plans = np.zeros((len(chunks), n), dtype=np.int64), [[] for _ in chunks]
    for i, groups in enumerate(layout.segments):
        state = layout.state(i)
        for j, pieces in enumerate(parts):
            plans[j].append(refine(state, pieces[i]))
            for g, received in zip(groups, _received(state), strict=True):
                if g < n:
                    ranks[j, g] = len(received)
                elif received is not None:
                    _cast(received, header.modules[layout.items[g] - n])
    return [_joined_plans(layout, of_chunk) for of_chunk in plans], ranks


def plan_of_chunk(layout: Layout, data: bytes) -> ChunkPlan:
    """Return what a chunk brings, from its first symbols alone.

    Raises:
        CodecError: bytes that do not begin like a chunk; what follows is not looked at.
    """
    pieces = pieces_of(data, len(layout.segments))
    plans = []
    for s, piece in zip(layout.segments, pieces, strict=True):
        head, counts, _ = _opened(layout.shapes[s.start : s.stop], piece)
        plans.append(ChunkPlan(head.exponent, tuple(counts)))
    return _joined_plans(layout, plans)


def _joined_plans(layout: Layout, plans: Sequence[ChunkPlan]) -> ChunkPlan:
    """Return the plan of a chunk from those of its pieces.

    Raises:
        CodecError: they differ in what they say of the chunk.
    """
    if len({plan.exponent for plan in plans}) > 1:
        raise CodecError("The pieces of a chunk reach different steps.")
    counts: dict[int, int] = {}
    for item, n in zip(layout.items, (n for plan in plans for n in plan.counts), strict=True):
        counts[item] = max(n, counts.get(item, 0))
    return ChunkPlan(plans[0].exponent, tuple(counts.values()))


def refine(state: StreamState, piece: memoryview) -> ChunkPlan:
    """Let a piece refine its segment, and return what it brought."""
    head, counts, reader = _opened(state.shapes, piece)
    code_blocks(state, counts, head.exponent, reader, offsets=head.offsets, tail=head.tail)
    reader.close()
    return ChunkPlan(head.exponent, tuple(counts))


def _opened(
    shapes: Sequence[GroupShape], data: memoryview
) -> tuple[PieceHead, list[int], SymbolReader]:
    """Return a piece's head and counts, and the reader behind them."""
    head, symbols = PieceHead.split(data)
    reader = SymbolReader(symbols, head.fall)
    return head, code_counts(reader, None, shapes, head.counts), reader


def _received(state: StreamState) -> Iterator[Any]:
    """Yield what has been received of each group: components, or a tensor's numbers or None."""
    for g, shape in enumerate(state.shapes):
        yield state.components(g) if shape.paired else state.tensor(g)


def _assembled(header: Header, layout: Layout, received: Iterator[Any]) -> AdapterTensors:
    """Return the adapter that the groups amount to, on the disk if it has several segments."""
    collector = Collector(None if header.segment is None else 0)
    factors = collector.quantised(
        _quantised(blocks, p.d_out, p.d_in)
        for p, blocks in zip(header.projections, received, strict=False)
    )
    modules = collector.tensors(_modules(header, layout, received))
    carriage: dict[str, Carriage] = {
        m.name: m.carriage for m in header.modules if m.name in modules
    }
    return AdapterTensors(header.projections, factors, modules, carriage, header.config)


def _modules(
    header: Header, layout: Layout, received: Iterator[Any]
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the tensors of which something has been received, and differences that are zero."""
    first, n_parts = len(header.projections), Counter(layout.items)
    g = first
    for item, module in enumerate(header.modules, start=first):
        parts = list(islice(received, n_parts[item]))
        shapes, g = layout.shapes[g : g + len(parts)], g + len(parts)
        if module.carriage != "difference" and all(part is None for part in parts):
            continue
        dtype = np.dtype(module.dtype)
        filled = [
            np.zeros(shape.size, dtype) if part is None else part
            for part, shape in zip(parts, shapes, strict=True)
        ]
        values = np.concatenate(filled) if filled[1:] else filled[0]
        yield module.name, _cast(values, module).reshape(module.shape)


def _cast(values: NDArray[Any], module: ModuleShape) -> NDArray[Any]:
    """Return numbers of a tensor in its type.

    Raises:
        CodecError: they do not fit it.
    """
    cast = values.astype(np.dtype(module.dtype), copy=False)
    if cast is not values and not np.array_equal(cast, values):
        raise CodecError(f"{module.name} holds numbers that are no {module.dtype}.")
    return cast


def _quantised(blocks: list[Block], d_out: int, d_in: int) -> QuantisedFactors:
    """Return the components of a projection."""
    left, right = (np.empty((len(blocks), d), dtype=np.int32) for d in (d_out, d_in))
    steps = np.empty(len(blocks), dtype=np.float32)
    for k, block in enumerate(blocks):
        assert block.exponent is not None
        left[k], right[k] = (strip.indices for strip in block.strips)
        steps[k] = step_of(block.exponent)
    return QuantisedFactors(left, right, steps)
