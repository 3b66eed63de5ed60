"""Blocks of weights: what has arrived of an adapter, and how the next chunk refines it.

A *group* is a projection, or a tensor beside the projections (`layout` says how they are cut). A
*block* is what is refined together: a component of a projection, or a tensor. A *strip* is a run of
weights with one spread: a column of a left factor, a row of a right one, a row of a tensor.

A chunk says of each group how many of its blocks take part (the ranks) and to which step exponent
it brings them (the precision). Blocks that were absent appear; blocks that were coarser gain
digits; no weight is ever sent twice. Three ideas carry it:

- *Balanced ternary digits.* A step is divided by three because three is odd: the cell around zero
  of the coarse quantiser then holds exactly three cells of the fine one, so that a coarse index is
  the fine one without its last digit, and both reconstruct to the middle of their cells. Halving
  the step would move the edges.
- *Contexts.* A digit says in which third of a coarse cell a weight lies. Under the Gaussian that
  the strip follows, this depends on how far out the cell is: around zero the middle third is the
  likeliest, further out the third towards zero. Hence a model for each spread and each magnitude.
- *Offsets.* Projections differ in how much a rounding error costs, so each block may add an offset
  to the exponent of the chunk. It stays the same over the whole file, because cells nest only over
  whole digits; it is coded once, when the block appears.

Encoder and decoder run the same functions, with a coder that writes or one that reads: neither can
forget what the other does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankcast.codec.entropy_model import (
    CONTEXTS,
    ESCAPE,
    FRESH_CLASSES,
    class_of,
    digit_model,
    digit_weights,
    finer_class,
    fresh_model,
    fresh_weights,
)
from rankcast.codec.exact import WholeNumbers, code_centre, code_excess, code_whole
from rankcast.codec.quantiser import (
    LARGEST_INDEX,
    PER_RADIX,
    RADIX,
    Indices,
    at_exponent,
    coarser,
    dequantise,
    finer,
)
from rankcast.codec.symbols import Hint, SymbolCoder
from rankcast.errors import CodecError

LARGEST_OFFSET = 60
UNKNOWN = np.iinfo(np.int32).min
"""In the place of an index of which another version says nothing."""
_TYPICAL_CLASS = 6
MOST_LEAD = 24
"""Digits with which a new block may continue at once, where a step is fine beside its weights."""
_APPEARS_BELOW = 2.5
"""Root mean square in steps of the widest strip of a block at which it appears."""


@dataclass(frozen=True, slots=True)
class GroupShape:
    """Number of blocks of a group, and the strips of each.

    Attributes:
        blocks: components of a projection; 1 for a tensor.
        widths: length of each strip of a block: (d_out, d_in), or the row length for every row.
        paired: whether the two strips of a block are the factors of a component.
        own: whether this is a tensor of the adapter's own, whose weights may have a centre.
        whole: whole numbers, which are in no strip and coded exactly.
    """

    blocks: int
    widths: tuple[int, ...]
    paired: bool = False
    own: bool = False
    whole: int = 0

    @property
    def size(self) -> int:
        """Numbers in the group."""
        return self.blocks * sum(self.widths) + self.whole


@dataclass(eq=False, slots=True)
class Strip:
    """A run of weights with one spread.

    Attributes:
        indices: quantised weights at the exponent of the block.
        spread_class: see `entropy_model`; 0 while all are zero.
        goal: what an encoder wants them to become, at the finest exponent of the block.
        first: class that was coded, and the exponent of the block then; None while all are zero.
        expected: indices of another version of the file, at the exponent that is being coded.
    """

    indices: Indices
    spread_class: int = 0
    goal: Indices | None = None
    first: tuple[int, int] | None = None
    expected: Indices | None = None


@dataclass(eq=False, slots=True)
class Block:
    """Weights that are refined together.

    Attributes:
        strips: its weights.
        exponent: of the step they are known to; None before anything has arrived.
        offset: what is added to a chunk's exponent to give the block's.
        lead: digits that follow at once when the block appears.
        finest: exponent of the goals of an encoder.
        centre: what is added to the weights.
        whole: whole numbers.
        before: the same block of another version of the file, as far as it has been received.
    """

    strips: tuple[Strip, ...]
    exponent: int | None = None
    offset: int = 0
    lead: int = 0
    finest: int | None = None
    centre: np.float32 = field(default_factory=np.float32)
    whole: WholeNumbers | None = None
    before: Block | None = None


@dataclass(eq=False)
class StreamState:
    """Every block of a segment, by group.

    Attributes:
        shapes: of the groups.
        groups: their blocks.
    """

    shapes: tuple[GroupShape, ...]
    groups: list[list[Block]] = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nothing received."""
        self.groups = [
            [
                Block(tuple(Strip(np.zeros(w, dtype=np.int32)) for w in shape.widths))
                for _ in range(shape.blocks)
            ]
            for shape in self.shapes
        ]

    def chosen(self, counts: Sequence[int]) -> Iterator[tuple[int, Block]]:
        """Yield group index and block of the first `counts[g]` blocks of every group."""
        for g, count in enumerate(counts):
            for block in self.groups[g][:count]:
                yield g, block

    def components(self, group: int) -> list[Block]:
        """Return the blocks of a projection both strips of which have weights other than zero."""
        return [
            block
            for block in self.groups[group]
            if block.exponent is not None and all(strip.indices.any() for strip in block.strips)
        ]

    def tensor(self, group: int) -> NDArray[Any] | None:
        """Return the numbers of a tensor in a row; None if it has not been received.

        Raises:
            CodecError: numbers beyond float32, which no encoder makes.
        """
        (block,) = self.groups[group]
        if block.exponent is None:
            return None
        if block.whole is not None:
            return block.whole
        indices = [strip.indices for strip in block.strips] or [np.zeros(0, dtype=np.int32)]
        weights = dequantise(np.concatenate(indices), block.exponent)
        if not block.centre:
            return weights
        with np.errstate(over="ignore"):
            weights += block.centre
        if not np.isfinite(weights).all():
            raise CodecError("A chunk gives a tensor weights that are not finite.")
        return weights


@lru_cache(maxsize=4096)
def width_shift(shape: GroupShape) -> int:
    """Return by how many classes a component's second strip is narrower or wider than its first.

    Both strips of a balanced component have the same norm, so their spreads are as the square
    roots of 1 / length: σ₂/σ₁ = √(w₁/w₂) = 3^(shift/6), hence 3^shift ≈ (w₁/w₂)³, rounded in whole
    numbers.
    """
    first, second = shape.widths
    large, small = max(first, second) ** 6, min(first, second) ** 6
    shift = 0
    while RADIX ** (2 * shift + 1) * small <= large and shift < 8 * PER_RADIX:
        shift += 1
    return shift if first >= second else -shift


def digits_between(coarse: int, fine: int) -> int:
    """Return how many digits lead from one exponent to a finer one.

    Raises:
        CodecError: it is not finer, or the cells do not nest.
    """
    digits, rest = divmod(coarse - fine, PER_RADIX)
    if rest or digits < 0:
        raise CodecError(
            f"A chunk refines step exponent {coarse} to {fine}, which is no whole number of "
            f"digits finer."
        )
    return digits


def lead_digits(block: Block, aim: int) -> int:
    """Return the digits with which a new block should continue at once to reach an exponent.

    A symbol of a new strip holds magnitudes up to `ESCAPE`. Where the step is fine beside the
    weights, it is cheaper to appear at a coarser step and to add digits than to code excesses.
    """
    assert block.finest is not None
    skipped = digits_between(aim, block.finest)
    widest = max((_root_mean_square(s.goal) for s in block.strips), default=0.0) / RADIX**skipped
    lead = 0
    while widest > _APPEARS_BELOW * RADIX**lead and lead < MOST_LEAD:
        lead += 1
    return lead


def first_indices(block: Block, aim: int) -> list[Indices]:
    """Return the indices with which an encoder lets each strip of a new block appear."""
    assert block.finest is not None
    digits = digits_between(aim + PER_RADIX * block.lead, block.finest)
    return [coarser(strip.goal, digits) for strip in block.strips if strip.goal is not None]


def _root_mean_square(indices: Indices | None) -> float:
    if indices is None or not indices.size:
        return 0.0
    values = indices.astype(np.float64)
    return float(np.sqrt(values @ values / values.size))


def code_blocks(
    state: StreamState,
    counts: Sequence[int],
    exponent: int,
    coder: SymbolCoder,
    *,
    offsets: bool,
    tail: int = 0,
) -> None:
    """Code what becomes of every block of a chunk, pass by pass.

    Pass t brings every block to within t digits of its aim, so that all blocks take a digit of the
    same weight together and share its models: a new block appears in the pass whose number is its
    lead digits, blocks above it gain a digit.

    Args:
        state: to refine; with goals for a writer.
        counts: blocks of each group that take part, the first ones.
        exponent: of the step to which they are brought, before their offsets.
        coder: of the chunk.
        offsets: whether offsets and lead digits of new blocks are coded.
        tail: which of `TAILS` the indices of new strips have.
    """
    chosen = list(state.chosen(counts))
    new = [(g, block) for g, block in chosen if block.exponent is None]
    if offsets:
        _code_offsets([block for _, block in new], coder)
    for g, block in new:
        if state.shapes[g].own:
            old = None if block.before is None else block.before.centre
            block.centre = code_centre(coder, block.centre, old)
        if state.shapes[g].whole:
            before = None if block.before is None else block.before.whole
            block.whole = code_whole(coder, block.whole, state.shapes[g].whole, before)
    first = [
        block.lead
        if block.exponent is None
        else digits_between(block.exponent, exponent + block.offset) - 1
        for _, block in chosen
    ]
    for t in range(max(first, default=-1), -1, -1):
        acting = [pair for pair, start in zip(chosen, first, strict=True) if start >= t]
        _code_pass(state, acting, exponent + PER_RADIX * t, coder, tail)


def _code_offsets(blocks: list[Block], coder: SymbolCoder) -> None:
    """Code the offset and the lead digits of each new block, predicted from the block before."""
    offset, lead = LARGEST_OFFSET, 0
    for block in blocks:
        old, most = block.before, 2 * LARGEST_OFFSET + 1
        likely = (None, None) if old is None else (old.offset + LARGEST_OFFSET, old.lead)
        offset = coder.near(block.offset + LARGEST_OFFSET, offset, most, likely[0])
        lead = coder.near(block.lead, lead, MOST_LEAD + 1, likely[1])
        block.offset, block.lead = offset - LARGEST_OFFSET, lead


def _code_pass(
    state: StreamState,
    acting: list[tuple[int, Block]],
    exponent: int,
    coder: SymbolCoder,
    tail: int,
) -> None:
    """Let blocks appear or gain a digit, so that they are known to `exponent` and their offset."""
    targets = _targets(acting, exponent)
    _expect(acting, exponent)
    classes = _code_classes(state, acting, targets, exponent, coder, tail=tail)
    new = [s for _, b in acting if b.exponent is None for s in b.strips]
    known = [s for _, b in acting if b.exponent is not None for s in b.strips]
    for strip, spread_class in classes:
        strip.spread_class = spread_class
    # A strip of zeros in a known block is known, too: its first weights are digits of index 0.
    _code_new([s for s in new if s.spread_class], targets, coder, tail)
    _code_digits([s for s in known if s.spread_class], targets, coder)
    for _, block in acting:
        block.exponent = exponent + block.offset
        for strip in block.strips:
            if strip.first is None and strip.spread_class:
                strip.first = strip.spread_class, block.exponent


def _expect(acting: list[tuple[int, Block]], exponent: int) -> None:
    """Tell the strips of blocks that another version has, too, which indices they had there."""
    for _, block in acting:
        old = block.before
        if old is None or old.exponent is None:
            continue
        for strip, known in zip(block.strips, old.strips, strict=True):
            strip.expected = at_exponent(known.indices, old.exponent, exponent + block.offset)


def _likely_class(block: Block, place: int, exponent: int) -> int | None:
    """Return the class that a strip had in another version at an exponent; None without one."""
    if block.before is None or block.before.exponent is None:
        return None
    first = block.before.strips[place].first
    if first is None or first[1] < exponent:  # all were zero then
        return 0
    return min(first[0] + first[1] - exponent, FRESH_CLASSES)


def _targets(acting: list[tuple[int, Block]], exponent: int) -> dict[int, Indices]:
    """Return the indices that an encoder wants of each strip, by its id; none for a decoder."""
    targets = {}
    for _, block in acting:
        if block.finest is not None:
            digits = digits_between(exponent + block.offset, block.finest)
            for strip in block.strips:
                assert strip.goal is not None
                targets[id(strip)] = coarser(strip.goal, digits)
    return targets


def _code_classes(
    state: StreamState,
    acting: list[tuple[int, Block]],
    targets: dict[int, Indices],
    exponent: int,
    coder: SymbolCoder,
    *,
    tail: int,
) -> list[tuple[Strip, int]]:
    """Return the class that each strip has after this pass, coded where it was 0.

    Neighbours in the order of coding have similar spreads: the first strip is predicted from that
    of the block before, the second strip of a component from the first (both have the same norm), a
    row of a tensor from the row before.
    """
    classes = []
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
                target = targets.get(id(strip))
                now = class_of(target, tail) if target is not None else 0
                predicted = min(max(predicted, 0), FRESH_CLASSES)
                likely = _likely_class(block, place, exponent + block.offset)
                now = coder.near(now, predicted, FRESH_CLASSES + 1, likely)
            classes.append((strip, now))
            if not (shape.paired and place):
                before = now
    return classes


def _code_new(
    strips: list[Strip], targets: dict[int, Indices], coder: SymbolCoder, tail: int
) -> None:
    """Code the indices of strips that were absent, class by class."""
    by_class: dict[int, list[Strip]] = {}
    for strip in strips:
        by_class.setdefault(strip.spread_class, []).append(strip)
    for spread_class, members in sorted(by_class.items()):
        target = _joined(members, targets)
        symbols = None if target is None else np.clip(target, -ESCAPE, ESCAPE) + ESCAPE
        count = sum(len(s.indices) for s in members)
        hint, expected = None, _joined_expected(members)
        if expected is not None:
            likely = np.where(expected == UNKNOWN, -1, np.clip(expected, -ESCAPE, ESCAPE) + ESCAPE)
            hint = Hint(likely, weights=fresh_weights(spread_class, tail))
        coded = coder.many(symbols, count, fresh_model(spread_class, tail), hint) - ESCAPE
        coded = _code_escapes(coded, target, coder)
        _share_out(coded, members)


def _code_escapes(coded: Indices, target: Indices | None, coder: SymbolCoder) -> Indices:
    """Return the indices with the excess of the outermost symbols added."""
    (far,) = np.nonzero(np.abs(coded) == ESCAPE)
    if not len(far):
        return coded
    excess = code_excess(coder, None if target is None else np.abs(target[far]) - ESCAPE, len(far))
    result = coded.copy()
    result[far] += np.sign(coded[far]) * excess
    return result


def _code_digits(strips: list[Strip], targets: dict[int, Indices], coder: SymbolCoder) -> None:
    """Code one more digit of strips, by class and by the magnitude above the digit.

    Digits are coded away from zero, so that one model serves both signs; those of one model are
    sorted together, because the coder is fastest on long runs.
    """
    if not strips:
        return
    sizes = [len(s.indices) for s in strips]
    old = np.concatenate([s.indices for s in strips])
    magnitude = np.abs(old)
    if magnitude.max() > LARGEST_INDEX // RADIX - 1:
        raise CodecError("A chunk refines weights beyond 2^24 steps.")
    away = np.sign(old) + (old == 0)
    first = np.array([s.spread_class * CONTEXTS for s in strips], dtype=np.uint8)
    models = np.repeat(first, sizes) + np.minimum(magnitude, CONTEXTS - 1).astype(np.uint8)
    order = np.argsort(models, kind="stable")
    target, expected = _joined(strips, targets), _joined_expected(strips)
    symbols = None if target is None else ((target - RADIX * old) * away + 1)[order]
    likely = moved = None
    if expected is not None:
        digit = np.clip(expected - RADIX * old, -2, 2)
        moved = (np.abs(digit) > 1)[order]
        likely = np.where(expected == UNKNOWN, -1, np.clip(digit, -1, 1) * away + 1)[order]
    pieces, start = [], 0
    for model, count in enumerate(np.bincount(models).tolist()):
        if count:
            here, key, hint = slice(start, start + count), divmod(model, CONTEXTS), None
            known = None if symbols is None else symbols[here]
            if likely is not None and moved is not None:
                hint = Hint(likely[here], moved[here], digit_weights(*key))
            pieces.append(coder.many(known, count, digit_model(*key), hint))
            start += count
    digits = np.empty_like(old)
    digits[order] = np.concatenate(pieces)
    _share_out(finer(old, (digits - 1) * away), strips)


def _share_out(indices: Indices, strips: list[Strip]) -> None:
    """Give each strip its part of joined indices."""
    start = 0
    for strip in strips:
        end = start + len(strip.indices)
        strip.indices = indices[start:end]
        start = end


def _joined(strips: list[Strip], targets: dict[int, Indices]) -> Indices | None:
    """Return what an encoder wants of strips, one after the other; None for a decoder."""
    if not targets:
        return None
    return np.concatenate([targets[id(strip)] for strip in strips])


def _joined_expected(strips: list[Strip]) -> Indices | None:
    """Return what is expected of strips, one after the other; None where nothing is of any."""
    if all(strip.expected is None for strip in strips):
        return None
    return np.concatenate(
        [np.full_like(s.indices, UNKNOWN) if s.expected is None else s.expected for s in strips]
    )
