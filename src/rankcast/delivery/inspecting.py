"""What the chunks of a ladder bring, as far as their first symbols tell: for people who watch.

Nothing is decoded and nobody relies on it, so a ladder whose files are missing, damaged or large
has simply no ranks.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankcast.codec.chunks import plan_of_chunk
from rankcast.codec.container import read_header
from rankcast.codec.tensors import group_shapes
from rankcast.delivery.manifest import Ladder
from rankcast.delivery.store import Store
from rankcast.errors import CodecError, DeliveryError
from rankcast.records import IntArray, Projection

LARGEST_LADDER = 2**26
"""Bytes of the blobs that are read for it."""
MOST_NUMBERS = 100_000
"""Chunks times projections."""
_MOST_KEPT = 64


@dataclass(frozen=True, eq=False)
class Contents:
    """What a ladder brings.

    Attributes:
        projections: that it adapts, N of them.
        whole: (N,) ranks that were packed.
        ranks: (n_rungs, N) components that have arrived with each prefix.
    """

    projections: tuple[Projection, ...]
    whole: tuple[int, ...]
    ranks: IntArray


def contents_of(store: Store, ladder: Ladder) -> Contents | None:
    """Return what a ladder brings; None if it cannot be read or is too large to look at."""
    blobs = [ladder.header, *(rung.blob for rung in ladder.rungs)]
    if sum(blob.n_bytes for blob in blobs) > LARGEST_LADDER:
        return None
    try:
        header, _ = read_header(store.get(ladder.header))
        n = len(header.projections)
        if not n or n * len(ladder.rungs) > MOST_NUMBERS:
            return None
        shapes = group_shapes(header.projections, header.ranks, [m.shape for m in header.modules])
        counts = [plan_of_chunk(shapes, store.get(r.blob)).counts[:n] for r in ladder.rungs]
    except (DeliveryError, CodecError):
        return None
    ranks = np.maximum.accumulate(np.array(counts, dtype=np.int64), axis=0)
    return Contents(header.projections, header.ranks, ranks)


class Inspector:
    """Remembers what ladders bring. Threads may share it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._kept: OrderedDict[Ladder, Contents | None] = OrderedDict()

    def contents(self, ladders: Sequence[Ladder]) -> list[Contents | None]:
        """Return what each ladder brings, see `contents_of`."""
        return [self._one(ladder) for ladder in ladders]

    def _one(self, ladder: Ladder) -> Contents | None:
        with self._lock:  # one at a time: it is short, and nobody does the same work twice
            if ladder not in self._kept:
                self._kept[ladder] = contents_of(self._store, ladder)
            self._kept.move_to_end(ladder)
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
            return self._kept[ladder]
