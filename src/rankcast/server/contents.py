"""Which ranks the chunks of a file bring, as far as their first symbols tell: for the dashboard.

Nothing is decoded and nobody relies on it, so a missing, damaged or large file has no ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankcast.codec.chunks import plan_of_chunk
from rankcast.codec.header import read_header
from rankcast.codec.layout import Layout
from rankcast.errors import CodecError, DeliveryError
from rankcast.records import IntArray, Projection
from rankcast.release.manifest import File
from rankcast.release.store import Store

LARGEST_FILE = 2**26
"""Bytes of header and chunks."""
MOST_NUMBERS = 100_000
"""Chunks times projections."""


@dataclass(frozen=True, eq=False)
class Contents:
    """The chunks of a file, described for people.

    Attributes:
        projections: that it adapts, N of them.
        packed_ranks: (N,) ranks that were packed.
        ranks: (n_chunks, N) components that have arrived with each prefix.
    """

    projections: tuple[Projection, ...]
    packed_ranks: tuple[int, ...]
    ranks: IntArray


def contents_of(store: Store, file: File) -> Contents | None:
    """Return what a file brings; None if it cannot be read or is too large to look at."""
    if sum(blob.n_bytes for blob in file.blobs()) > LARGEST_FILE:
        return None
    try:
        header, _ = read_header(store.get(file.header))
        n = len(header.projections)
        if not n or n * len(file.chunks) > MOST_NUMBERS:
            return None
        layout = Layout.of(header)
        counts = [plan_of_chunk(layout, store.get(c.blob)).counts[:n] for c in file.chunks]
    except (DeliveryError, CodecError):
        return None
    ranks = np.maximum.accumulate(np.array(counts, dtype=np.int64), axis=0)
    return Contents(header.projections, header.ranks, ranks)
