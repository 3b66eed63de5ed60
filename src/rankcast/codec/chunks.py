"""One chunk of the stream: the first components of every projection, brought to one step.

A chunk says of each group how many of its blocks take part (the ranks of a plan) and to which step
exponent it brings them (its precision). Blocks that were absent appear; blocks that were coarser
gain digits; nothing is said twice. Its bytes: exponent (int16), table of differences (uint8: which
of `FALLS`, plus 128 if new blocks have offsets or lead digits), then the symbols.

Passes go from coarse to fine. Pass t brings every block to within t digits of its aim: a new block
appears in the pass whose number is its lead digits, blocks above it gain a digit.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankcast.codec.gaussian import (
    CONTEXTS,
    ESCAPE,
    FRESH_CLASSES,
    class_of,
    digit_model,
    finer_class,
    fresh_model,
)
from rankcast.codec.quantise import LARGEST_INDEX, PER_RADIX, RADIX, Indices, coarser, finer
from rankcast.codec.state import Block, GroupShape, StreamState, Strip, digits_between, width_shift
from rankcast.codec.symbols import (
    SymbolPort,
    SymbolReader,
    SymbolWriter,
    code_excess,
    code_uniform,
)
from rankcast.errors import CodecError

_HEAD = struct.Struct("<hB")
_WITH_OFFSETS = 128
LARGEST_OFFSET = 60
_TYPICAL_CLASS = 6
MOST_LEAD = 24
"""Digits with which a new block may continue at once, where a step is fine beside its weights."""
_APPEARS_BELOW = 2.5
"""Root mean square in steps of the widest strip of a block at which it appears."""


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """What a chunk brings.

    Attributes:
        exponent: of the step to which it brings its blocks, before their offsets.
        counts: blocks of each group that take part, the first ones: ranks, then 0 or 1 for each
            tensor.
    """

    exponent: int
    counts: tuple[int, ...]


def encode_chunk(state: StreamState, plan: ChunkPlan) -> bytes:
    """Return the bytes of a chunk and bring `state` to where a decoder will be after it.

    Args:
        state: with goals.
        plan: what the chunk is to bring.

    Raises:
        CodecError: a plan that does not fit the adapter, or is no refinement of what was sent.
    """
    _check(state, plan)
    writer = SymbolWriter()
    for n, shape in zip(plan.counts, state.shapes, strict=True):
        code_uniform(writer, np.array([n], dtype=np.int32), 1, shape.blocks + 1)
    new = [block for _, block in state.chosen(plan.counts) if block.exponent is None]
    for block in new:
        block.lead = _lead(block, plan.exponent + block.offset)
    offsets = any(block.offset or block.lead for block in new)
    _code_blocks(state, plan, writer, offsets=offsets)
    fall = writer.best_fall()
    head = _HEAD.pack(plan.exponent, fall + _WITH_OFFSETS * offsets)
    return head + writer.to_bytes(fall)


def decode_chunk(state: StreamState, data: bytes) -> ChunkPlan:
    """Refine `state` by a chunk and return what it brought.

    Raises:
        CodecError: bytes that are no such chunk. The state is then of no use.
    """
    plan, reader, offsets = _begun(state.shapes, data)
    _check(state, plan)
    _code_blocks(state, plan, reader, offsets=offsets)
    reader.close()
    return plan


def plan_of_chunk(shapes: Sequence[GroupShape], data: bytes) -> ChunkPlan:
    """Return what a chunk brings, from its first symbols alone.

    Raises:
        CodecError: bytes that do not begin like a chunk; what follows is not looked at.
    """
    return _begun(shapes, data)[0]


def _begun(shapes: Sequence[GroupShape], data: bytes) -> tuple[ChunkPlan, SymbolReader, bool]:
    """Return a chunk's plan, the reader behind it, and whether offsets follow."""
    if len(data) < _HEAD.size:
        raise CodecError(f"A chunk has at least {_HEAD.size} bytes, got {len(data)}.")
    exponent, tables = _HEAD.unpack_from(data)
    reader = SymbolReader(data[_HEAD.size :], tables & ~_WITH_OFFSETS)
    counts = [int(code_uniform(reader, None, 1, s.blocks + 1)[0]) for s in shapes]
    return ChunkPlan(exponent, tuple(counts)), reader, bool(tables & _WITH_OFFSETS)


def _check(state: StreamState, plan: ChunkPlan) -> None:
    sizes = [shape.blocks for shape in state.shapes]
    fits = len(plan.counts) == len(sizes)
    if not fits or any(not 0 <= n <= m for n, m in zip(plan.counts, sizes, strict=True)):
        raise CodecError(f"A chunk counts {plan.counts} blocks where there are {sizes}.")


def _lead(block: Block, aim: int) -> int:
    """Return the digits with which a new block should continue to reach an exponent."""
    assert block.finest is not None
    skipped = digits_between(aim, block.finest)
    widest = max((_root_mean_square(s.goal) for s in block.strips), default=0.0) / RADIX**skipped
    lead = 0
    while widest > _APPEARS_BELOW * RADIX**lead and lead < MOST_LEAD:
        lead += 1
    return lead


def _root_mean_square(indices: Indices | None) -> float:
    if indices is None or not indices.size:
        return 0.0
    values = indices.astype(np.float64)
    return float(np.sqrt(values @ values / values.size))


def _code_blocks(state: StreamState, plan: ChunkPlan, port: SymbolPort, *, offsets: bool) -> None:
    """Code what becomes of every block, pass by pass."""
    chosen = list(state.chosen(plan.counts))
    if offsets:
        _code_offsets([block for _, block in chosen if block.exponent is None], port)
    first = [_first_pass(block, plan) for _, block in chosen]
    for t in range(max(first, default=-1), -1, -1):
        acting = [pair for pair, start in zip(chosen, first, strict=True) if start >= t]
        _code_pass(state, acting, plan.exponent + PER_RADIX * t, port)


def _first_pass(block: Block, plan: ChunkPlan) -> int:
    """Return the number of the pass in which a block first acts."""
    if block.exponent is None:
        return block.lead
    return digits_between(block.exponent, plan.exponent + block.offset) - 1


def _code_offsets(blocks: list[Block], port: SymbolPort) -> None:
    """Code the offset and the lead digits of each new block, predicted from the block before."""
    offset, lead = LARGEST_OFFSET, 0
    for block in blocks:
        offset = port.near(block.offset + LARGEST_OFFSET, offset, 2 * LARGEST_OFFSET + 1)
        lead = port.near(block.lead, lead, MOST_LEAD + 1)
        block.offset, block.lead = offset - LARGEST_OFFSET, lead


def _code_pass(
    state: StreamState, acting: list[tuple[int, Block]], exponent: int, port: SymbolPort
) -> None:
    """Let blocks appear or gain a digit, so that they are known to `exponent` and their offset."""
    wants = _wants(acting, exponent)
    found = _code_classes(state, acting, wants, port)
    new = [s for _, b in acting if b.exponent is None for s in b.strips]
    known = [s for _, b in acting if b.exponent is not None for s in b.strips]
    for strip, spread_class in found:
        strip.spread_class = spread_class
    _code_new([s for s in new if s.spread_class], wants, port)
    _code_digits([s for s in known if s.spread_class], wants, port)
    for _, block in acting:
        block.exponent = exponent + block.offset


def _wants(acting: list[tuple[int, Block]], exponent: int) -> dict[int, Indices]:
    """Return what an encoder wants of each strip, by the strip's id; nothing for a decoder."""
    wants = {}
    for _, block in acting:
        if block.finest is not None:
            digits = digits_between(exponent + block.offset, block.finest)
            for strip in block.strips:
                assert strip.goal is not None
                wants[id(strip)] = coarser(strip.goal, digits)
    return wants


def _code_classes(
    state: StreamState,
    acting: list[tuple[int, Block]],
    wants: dict[int, Indices],
    port: SymbolPort,
) -> list[tuple[Strip, int]]:
    """Return the class that each strip has after this pass, coded where it was 0.

    The first strip is predicted from that of the block before, the second strip of a component from
    the first, a row of a tensor from the row before.
    """
    found = []
    before = _TYPICAL_CLASS
    for g, block in acting:
        shape = state.shapes[g]
        shift = width_shift(shape) if shape.paired else 0
        for place, strip in enumerate(block.strips):
            predicted = before
            if shape.paired and place:
                predicted = before + shift if before else 0
            if strip.spread_class:
                now = finer_class(strip.spread_class)
            else:
                want = wants.get(id(strip))
                now = class_of(want) if want is not None else 0
                now = port.near(now, min(max(predicted, 0), FRESH_CLASSES), FRESH_CLASSES + 1)
            found.append((strip, now))
            if not (shape.paired and place):
                before = now
    return found


def _code_new(strips: list[Strip], wants: dict[int, Indices], port: SymbolPort) -> None:
    """Code the indices of strips that were absent, class by class."""
    by_class: dict[int, list[Strip]] = {}
    for strip in strips:
        by_class.setdefault(strip.spread_class, []).append(strip)
    for spread_class, members in sorted(by_class.items()):
        want = _joined(members, wants)
        symbols = None if want is None else np.clip(want, -ESCAPE, ESCAPE) + ESCAPE
        sizes = [len(s.indices) for s in members]
        coded = port.many(symbols, sum(sizes), fresh_model(spread_class)) - ESCAPE
        coded = _code_escapes(coded, want, port)
        _share_out(coded, members)


def _code_escapes(coded: Indices, want: Indices | None, port: SymbolPort) -> Indices:
    """Return the indices with the excess of the outermost symbols added."""
    (far,) = np.nonzero(np.abs(coded) == ESCAPE)
    if not len(far):
        return coded
    excess = code_excess(port, None if want is None else np.abs(want[far]) - ESCAPE, len(far))
    result = coded.copy()
    result[far] += np.sign(coded[far]) * excess
    return result


def _code_digits(strips: list[Strip], wants: dict[int, Indices], port: SymbolPort) -> None:
    """Code one more digit of strips, by class and by the magnitude above the digit."""
    if not strips:
        return
    sizes = [len(s.indices) for s in strips]
    old = np.concatenate([s.indices for s in strips])
    magnitude = np.abs(old)
    if magnitude.max() > LARGEST_INDEX // RADIX - 1:
        raise CodecError("A chunk refines weights beyond 2^24 steps.")
    towards = np.sign(old) + (old == 0)  # away from zero
    first = np.array([s.spread_class * CONTEXTS for s in strips], dtype=np.uint8)
    models = np.repeat(first, sizes) + np.minimum(magnitude, CONTEXTS - 1).astype(np.uint8)
    order = np.argsort(models, kind="stable")
    want = _joined(strips, wants)
    symbols = None if want is None else ((want - RADIX * old) * towards + 1)[order]
    pieces, start = [], 0
    for model, count in enumerate(np.bincount(models).tolist()):
        if count:
            known = None if symbols is None else symbols[start : start + count]
            pieces.append(port.many(known, count, digit_model(*divmod(model, CONTEXTS))))
            start += count
    digits = np.empty_like(old)
    digits[order] = np.concatenate(pieces)
    _share_out(finer(old, (digits - 1) * towards), strips)


def _share_out(indices: Indices, strips: list[Strip]) -> None:
    """Give each strip its part of joined indices."""
    start = 0
    for strip in strips:
        end = start + len(strip.indices)
        strip.indices = indices[start:end]
        start = end


def _joined(strips: list[Strip], wants: dict[int, Indices]) -> Indices | None:
    """Return what an encoder wants of strips, one after the other; None for a decoder."""
    if not wants:
        return None
    return np.concatenate([wants[id(strip)] for strip in strips])
