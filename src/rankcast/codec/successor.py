"""Pack an adapter as the successor of a file, so that an update from one to the other is small.

Three things make two trainings of one adapter look more different than they are, and cost bits:

- Factors are unique only up to a rotation of their components (a sign, at rank 1). They are turned
  towards the old ones where that brings them closer: orthogonal Procrustes on [L; Rᵀ].
- Steps. The successor has the chunks, exponents and offsets of the file before.
- Weights that sit near the edge of a cell cross it at the least change. A weight may keep its old
  index while it lies within `keep` steps of the middle of the old cell. This is no saving by
  itself: where training went on under rounding, crossing edges is what it learned, and the loss
  that it gained went with the bytes. So `KEEP` is 0.5, which is rounding.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rankcast.codec.chunks import ChunkPlan, Kept, encode, plan_of_chunk
from rankcast.codec.container import Container, pack_at_exponent
from rankcast.codec.header import SEGMENT, Header, module_shapes
from rankcast.codec.layout import Layout
from rankcast.codec.packing import Source, surviving
from rankcast.codec.tensors import AdapterTensors, Factors, LazyFactors
from rankcast.errors import CodecError
from rankcast.naming import public_config, public_name

KEEP = 0.5
"""Steps from the middle of its old cell at which a weight leaves it."""
_PAYS = 0.9
"""Share of the squared distance to the old factors that a rotation may leave at most."""


def pack_after(source: Source, previous: Container, keep: float = KEEP) -> Container:
    """Return an adapter as a file with the chunks and steps of another version of it.

    An adapter that was trained to be rounded to another step is packed at that step; its factors
    are turned all the same.

    Args:
        source: what to pack.
        previous: the file that devices have, whole.
        keep: steps from the middle of its old cell at which a weight leaves it, from 0.5 on.

    Raises:
        CodecError: another adapter, only the beginning of a file, NaN or infinite weights, or a
            `keep` out of range.
    """
    if not 0.5 <= keep <= 1.0:
        raise CodecError(f"A weight keeps its index within 0.5 to 1 steps, got {keep}.")
    _check_alike(source.tensors, previous)
    tensors = aligned(source.tensors, previous.tensors())
    layout = Layout.of(previous.header)
    plans = [plan_of_chunk(layout, chunk) for chunk in previous.chunks]
    if source.exponent not in (None, plans[-1].exponent):
        return pack_at_exponent(replace(source, tensors=tensors), source.exponent)
    n = len(tensors.projections)
    alive = surviving(tensors, np.full(n, plans[-1].exponent))
    counts = (*map(max, plans[-1].counts[:n], alive), *plans[-1].counts[n:])
    plans[-1] = ChunkPlan(plans[-1].exponent, counts)
    segment = previous.header.segment or SEGMENT
    kept = Kept(previous.header, previous.chunks, keep)
    chunks = encode(tensors, plans, segment=segment, kept=kept)
    base = replace(source.base, name=public_name(source.base.name))
    header = Header.of(tensors, chunks, base, source.task, segment)
    return Container(replace(header, config=public_config(header.config)), tuple(chunks))


def _check_alike(tensors: AdapterTensors, previous: Container) -> None:
    """Refuse a file whose numbers are not those of the adapter.

    Raises:
        CodecError: names what differs.
    """
    header = previous.header
    if not previous.is_whole:
        raise CodecError("The previous file was cut short; give the whole one.")
    pairs = (
        ("projections", tensors.projections, header.projections),
        ("ranks", tuple(tensors.ranks.tolist()), header.ranks),
        ("tensors beside them", module_shapes(tensors), header.modules),
    )
    for what, own, others in pairs:
        if own != others:
            raise CodecError(
                f"The previous file has other {what} than this adapter, so it is no version of it. "
                f"Pack without it."
            )


def aligned(tensors: AdapterTensors, previous: AdapterTensors) -> AdapterTensors:
    """Return the same adapter with its components turned towards those of another version."""
    if isinstance(tensors.factors, LazyFactors):
        ranks = tensors.factors.ranks
        lazy = LazyFactors(ranks, lambda i: turned(tensors.factors[i], previous.factors[i]))
        return replace(tensors, factors=lazy)
    pairs = zip(tensors.factors, previous.factors, strict=True)
    return replace(tensors, factors=tuple(turned(new, old) for new, old in pairs))


def turned(new: Factors, old: Factors) -> Factors:
    """Return the same ΔW with components as near to others as a rotation brings them.

    Minimises ‖[L; Rᵀ]·Q − [L'; R'ᵀ]‖ over orthogonal Q: Q = U·Vᵀ with U·S·Vᵀ = [L; Rᵀ]ᵀ·[L'; R'ᵀ].
    The factors stay as they are where this leaves more than `_PAYS` of the squared distance.

    Args:
        new: (d_out, r) and (r, d_in), balanced.
        old: the same of the other version; components that it has not count as zero.
    """
    rank = new.rank
    own = np.concatenate([new.left, new.right.T]).astype(np.float64)
    other = np.zeros_like(own)
    known = np.concatenate([old.left, old.right.T])[:, :rank]
    other[:, : known.shape[1]] = known
    u, _, vt = np.linalg.svd(own.T @ other)
    rotation = u @ vt
    if np.square(own @ rotation - other).sum() > _PAYS * np.square(own - other).sum():
        return new
    left, right = new.left @ rotation, rotation.T @ new.right
    return Factors(left.astype(np.float32), right.astype(np.float32)).balanced()
