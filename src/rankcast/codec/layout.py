"""How the numbers of an adapter lie in its chunks: groups, their strips, segments of groups.

A projection is one group. So is a tensor beside the projections, unless the adapter is large and
the tensor larger than a segment, when it is several. A *segment* is a run of groups that is coded
by itself, so that whoever codes or decodes a large adapter has no more than one in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rankcast.codec.blocks import GroupShape, StreamState
from rankcast.codec.header import Header, ModuleShape
from rankcast.errors import CodecError
from rankcast.records import Projection

STRIP = 256
"""Numbers in a strip of a tensor of the adapter's own whose rows have another length than these:"""
ROWS = (64, 4096)
MOST_SEGMENTS = 4096


@dataclass(frozen=True, slots=True)
class Layout:
    """Groups and segments of an adapter.

    Attributes:
        shapes: of the groups.
        items: which projection or, after those, which tensor each group belongs to.
        segments: the groups of each segment.
    """

    shapes: tuple[GroupShape, ...]
    items: tuple[int, ...]
    segments: tuple[range, ...]

    @classmethod
    def of(cls, header: Header) -> Layout:
        """Return the layout that a header calls for.

        Raises:
            CodecError: segments so small that there are more than `MOST_SEGMENTS`.
        """
        return cls.made(header.projections, header.ranks, header.modules, header.segment)

    @classmethod
    def made(
        cls,
        projections: Sequence[Projection],
        ranks: Sequence[int],
        modules: Sequence[ModuleShape],
        segment: int | None,
    ) -> Layout:
        """Return the layout of an adapter that is cut into segments, unless `segment` is None."""
        shapes = [
            GroupShape(int(r), (p.d_out, p.d_in), paired=True)
            for p, r in zip(projections, ranks, strict=True)
        ]
        items = list(range(len(shapes)))
        for item, module in enumerate(modules, start=len(shapes)):
            parts = _parts(module, segment)
            shapes += parts
            items += [item] * len(parts)
        return cls(tuple(shapes), tuple(items), _segments(shapes, segment))

    def state(self, segment: int) -> StreamState:
        """Return a segment of which nothing has been received."""
        groups = self.segments[segment]
        return StreamState(self.shapes[groups.start : groups.stop])


def _parts(module: ModuleShape, segment: int | None) -> list[GroupShape]:
    """Return the groups of a tensor."""
    count = math.prod(module.shape)
    if module.dtype != "float32":
        per = segment or max(count, 1)
        whole = [min(per, count - start) for start in range(0, count, per)]
        return [GroupShape(1, (), whole=n) for n in whole or [0]]
    own = module.carriage == "own"
    width = module.shape[-1] if module.shape else 1
    if own and not ROWS[0] <= width <= ROWS[1]:
        width = STRIP
    widths = (width,) * (count // width if count else 0)
    widths += (rest,) if (rest := count - width * len(widths)) else ()
    per = max(segment // width, 1) if segment and count > segment else max(len(widths), 1)
    return [
        GroupShape(1, widths[start : start + per], own=own)
        for start in range(0, max(len(widths), 1), per)
    ]


def _segments(shapes: Sequence[GroupShape], segment: int | None) -> tuple[range, ...]:
    """Return runs of groups of at most `segment` numbers, or of a single group."""
    if segment is None:
        return (range(len(shapes)),)
    starts, size = [0], 0
    for g, shape in enumerate(shapes):
        if size and size + shape.size > segment:
            starts.append(g)
            size = 0
        size += shape.size
    if len(starts) > MOST_SEGMENTS:
        raise CodecError(f"The adapter has more than {MOST_SEGMENTS} segments.")
    return tuple(map(range, starts, [*starts[1:], len(shapes)]))
