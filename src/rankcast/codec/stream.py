"""An adapter to chunks and back.

`encode` quantises every weight once, to the finest step that a ladder of chunks reaches, and cuts
the digits into chunks; `Decoder` takes chunks in order and gives the adapter that the received
prefix amounts to, at any time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rankcast.codec.chunks import ChunkPlan, decode_chunk, encode_chunk
from rankcast.codec.header import Header
from rankcast.codec.quantise import Float32Array, quantise
from rankcast.codec.state import StreamState
from rankcast.codec.tensors import AdapterTensors, Factors, group_shapes, rows_of
from rankcast.errors import CodecError
from rankcast.records import IntArray


def encode(
    tensors: AdapterTensors, ladder: Sequence[ChunkPlan], offsets: Sequence[IntArray] | None = None
) -> list[bytes]:
    """Return the chunks of an adapter.

    Args:
        tensors: with the components of each projection in order of importance; see
            `Factors.balanced`, which makes one step fit both factors.
        ladder: what each chunk brings, every one a refinement of those before it.
        offsets: for each group an (n_blocks,) array of exponents that are added to the ladder's;
            None for none.

    Raises:
        CodecError: NaN or infinite weights, or a ladder that does not fit or does not refine.
    """
    state = _with_goals(tensors, ladder, offsets)
    return [encode_chunk(state, plan) for plan in ladder]


class Decoder:
    """The adapter that the chunks received so far amount to.

    Args:
        header: of the container that they come from.
    """

    def __init__(self, header: Header) -> None:
        self.header = header
        shapes = [m.shape for m in header.modules]
        self._state = StreamState(group_shapes(header.projections, header.ranks, shapes))
        self._n_chunks = 0
        self._damaged = False

    @property
    def n_chunks(self) -> int:
        """Chunks received."""
        return self._n_chunks

    def add(self, chunk: bytes) -> ChunkPlan:
        """Take the next chunk and return what it brought.

        Raises:
            CodecError: no such chunk. The decoder is of no use afterwards.
        """
        if self._damaged:
            raise CodecError("This decoder met a damaged chunk; begin again with a new one.")
        self._damaged = True
        plan = decode_chunk(self._state, chunk)
        self._damaged = False
        self._n_chunks += 1
        return plan

    def tensors(self) -> AdapterTensors:
        """Return the adapter of the chunks received; what has not arrived is zero or absent.

        A component counts as present if both its factors have weights other than zero. Modules
        that travel in full are left out until something of them has arrived; of those that travel
        as a difference, the difference is zero until then.

        Raises:
            CodecError: a damaged chunk was met.
        """
        if self._damaged:
            raise CodecError("This decoder met a damaged chunk; begin again with a new one.")
        header, n = self.header, len(self.header.projections)
        factors = [_factors(self._state.values(g), p.d_out, p.d_in)
                   for g, p in enumerate(header.projections)]  # fmt: skip
        modules, carriage = {}, {}
        for g, module in enumerate(header.modules, start=n):
            found = self._state.values(g)
            if found:
                modules[module.name] = np.stack(found[0]).reshape(module.shape)
            elif module.carriage == "difference":
                modules[module.name] = np.zeros(module.shape, dtype=np.float32)
            else:
                continue
            carriage[module.name] = module.carriage
        return AdapterTensors(header.projections, tuple(factors), modules, carriage)


def _with_goals(
    tensors: AdapterTensors, ladder: Sequence[ChunkPlan], offsets: Sequence[IntArray] | None
) -> StreamState:
    """Return an encoder's state: every block with the indices that it is to reach."""
    shapes = [np.shape(m) for m in tensors.modules.values()]
    ranks = tensors.ranks.tolist()
    state = StreamState(group_shapes(tensors.projections, ranks, shapes))
    factors = [(np.ascontiguousarray(f.left.T), f.right) for f in tensors.factors]
    rows = [tuple(rows_of(m)[:, None]) for m in tensors.modules.values()]  # one block of rows
    for g, (blocks, strips) in enumerate(zip(state.groups, [*factors, *rows], strict=True)):
        for k, block in enumerate(blocks):
            reached = [plan.exponent for plan in ladder if plan.counts[g] > k]
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


def _factors(found: list[list[Float32Array]], d_out: int, d_in: int) -> Factors:
    """Return the components that are other than zero."""
    alive = [(left, right) for left, right in found if left.any() and right.any()]
    if not alive:
        return Factors(np.zeros((d_out, 0), np.float32), np.zeros((0, d_in), np.float32))
    lefts, rights = zip(*alive, strict=True)
    return Factors(np.stack(lefts, axis=1), np.stack(rights))
