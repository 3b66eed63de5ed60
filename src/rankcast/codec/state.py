"""What has been received of an adapter: quantised strips of weights, component by component.

Groups, blocks, strips: a group is a projection or a tensor of a module that is sent in full. A
projection has one block per component, each of two strips, a column of the left factor and a row
of the right one. A tensor is a single block with a strip per row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from rankcast.codec.quantise import PER_RADIX, RADIX, Float32Array, Indices, dequantise
from rankcast.errors import CodecError


@dataclass(frozen=True, slots=True)
class GroupShape:
    """How many blocks a group has, and what each holds.

    Attributes:
        blocks: components of a projection; 1 for a tensor.
        widths: length of each strip of a block: (d_out, d_in), or the row length for every row.
        paired: whether the two strips of a block are the factors of a component.
    """

    blocks: int
    widths: tuple[int, ...]
    paired: bool = False

    @property
    def size(self) -> int:
        """Numbers in the group."""
        return self.blocks * sum(self.widths)


@dataclass(eq=False, slots=True)
class Strip:
    """A run of weights with one spread.

    Attributes:
        indices: quantised weights at the exponent of the block.
        spread_class: see `gaussian`; 0 while all are zero.
        goal: what an encoder wants them to become, at the finest exponent of the block.
    """

    indices: Indices
    spread_class: int = 0
    goal: Indices | None = None


@dataclass(eq=False, slots=True)
class Block:
    """What is refined together.

    Attributes:
        strips: its weights.
        exponent: of the step they are known to; None before anything has arrived.
        offset: what is added to a chunk's exponent to give the block's.
        lead: digits that follow at once when the block appears.
        finest: exponent of the goals of an encoder.
    """

    strips: tuple[Strip, ...]
    exponent: int | None = None
    offset: int = 0
    lead: int = 0
    finest: int | None = None


@dataclass(eq=False)
class StreamState:
    """Every block of an adapter, by group.

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

    def received(self) -> list[int]:
        """Return the number of blocks of each group of which something has arrived."""
        return [sum(b.exponent is not None for b in blocks) for blocks in self.groups]

    def values(self, group: int) -> list[list[Float32Array]]:
        """Return the weights of each strip of each received block of a group."""
        return [
            [dequantise(strip.indices, block.exponent) for strip in block.strips]
            for block in self.groups[group]
            if block.exponent is not None
        ]


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
