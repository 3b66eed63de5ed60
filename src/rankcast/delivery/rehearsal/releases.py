"""What is published in a rehearsal: an adapter made here or given, and the one after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rankcast.codec.container import Container, entry_of, read_container
from rankcast.codec.header import BaseModel
from rankcast.codec.ladder import block_offsets, exponent_of_quality
from rankcast.codec.packing import Source, pack, unpack
from rankcast.codec.stream import Decoder, encode
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.delivery.blobs import blob_of
from rankcast.delivery.manifest import Ladder
from rankcast.delivery.releases import read_releases
from rankcast.delivery.store import Store
from rankcast.errors import DeliveryError
from rankcast.records import Projection

Worth = tuple[float | None, float | None]
"""Expected loss [nats] and accuracy of a prefix."""
_LAYERS, _WIDTH, _RANK = 6, 192, 8
_N_RUNGS = 4
_STEP = 0.1
"""Of the made adapter's last chunk, as a multiple of its weights' root mean square."""
_CHANGE = 0.02
"""Of the weights from one release to the next, as a share of their root mean square."""
_FLOOR_NATS, _SPAN_NATS = 0.3, 0.4


def made_adapter(seed: int) -> Container:
    """Return an adapter of no model: 12 projections of rank 8, eight chunks, about 20 kB.

    Its worth is made up, too: a loss that falls towards 0.3 nats with the squared error that a
    prefix leaves in the weights.
    """
    rng = np.random.default_rng(seed)
    projections, factors = [], []
    fall = 0.05 * 0.7 ** np.arange(_RANK)
    for layer in range(_LAYERS):
        for kind in ("q", "v"):
            name = f"layers.{layer}.self_attn.{kind}_proj"
            projections.append(Projection(name, layer, kind, _WIDTH, _WIDTH))
            left, right = rng.normal(size=(2, _WIDTH, _RANK)) * fall
            made = Factors(left.astype(np.float32), right.T.astype(np.float32).copy())
            factors.append(made.balanced())
    tensors = AdapterTensors(tuple(projections), tuple(factors), {}, {})
    base = BaseModel("made up", blob_of(b"the base model of a rehearsal").sha256)
    source = Source(tensors, base, {"task_type": "SEQ_CLS"})
    container = pack(source, exponent_of_quality(tensors, _STEP), _N_RUNGS, n_parts=2)
    return _with_worth(container, _made_worth(container, tensors))


def next_adapter(container: Container, seed: int) -> Container:
    """Return a stand-in for the next training of an adapter: every weight changed a little.

    Its chunks bring what those before brought, and what was measured of the prefixes before is said
    of the new ones.

    Raises:
        CodecError: damaged chunks.
    """
    rng, head = np.random.default_rng(seed), container.header
    decoder = Decoder(head)
    ladder = [decoder.add(chunk) for chunk in container.chunks]
    found = decoder.tensors()
    factors = tuple(
        Factors(_padded(_nudged(f.left, rng).T, rank).T, _padded(_nudged(f.right, rng), rank))
        for f, rank in zip(found.factors, head.ranks, strict=True)
    )
    modules = {name: _nudged(values, rng) for name, values in found.modules.items()}
    changed = replace(found, factors=factors, modules=modules)
    chunks = encode(changed, ladder, block_offsets(changed))
    made = Container(replace(head, fingerprint=None), tuple(chunks))
    return _with_worth(made, [(entry.loss, entry.accuracy) for entry in head.chunks])


def checked_release(container: Container) -> Container:
    """Return a file that can be rehearsed with: a base model without fingerprint gets one.

    Raises:
        DeliveryError: chunks are missing.
    """
    Ladder.of(container)
    header = replace(container.header, base=_with_fingerprint(container.header.base))
    return replace(container, header=header)


def containers_of(store: Store, name: str | None) -> tuple[str, list[Container]]:
    """Return the name and files of a release that lies in a store.

    Args:
        store: that rankcast publish wrote.
        name: of the adapter; None if there is but one.

    Raises:
        DeliveryError: no such store or adapter, several of them, or damaged blobs.
    """
    found = read_releases(store, {})
    if name is None and len(found) == 1:
        name = next(iter(found))
    if name is None or name not in found:
        raise DeliveryError(
            f"{store.root} holds {', '.join(sorted(found)) or 'no adapter'}: name one with --name."
        )
    files = []
    for ladder in found[name].manifest.ladders:
        blobs = (ladder.header, *(rung.blob for rung in ladder.rungs))
        files.append(read_container(b"".join(store.get(blob) for blob in blobs)))
    return name, files


def _with_fingerprint(base: BaseModel) -> BaseModel:
    if base.fingerprint is not None:
        return base
    return replace(base, fingerprint=blob_of((base.name or "no name").encode()).sha256)


def _nudged(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0
    return (values + _CHANGE * size * rng.normal(size=values.shape)).astype(np.float32)


def _padded(rows: np.ndarray, n: int) -> np.ndarray:
    """Return rows with as many of zeros after them as make n."""
    return np.concatenate([rows, np.zeros((n - len(rows), rows.shape[1]), np.float32)])


def _made_worth(container: Container, tensors: AdapterTensors) -> list[Worth]:
    whole = sum(float(np.square(f.delta_weight()).sum()) for f in tensors.factors)
    found: list[Worth] = []
    for n in range(1, len(container.chunks) + 1):
        pairs = zip(unpack(container, n).factors, tensors.factors, strict=True)
        left = sum(float(np.square(a.delta_weight() - b.delta_weight()).sum()) for a, b in pairs)
        share = left / whole
        found.append((_FLOOR_NATS + _SPAN_NATS * share, 0.9 - 0.3 * share))
    return found


def _with_worth(container: Container, worth: Sequence[Worth]) -> Container:
    entries = tuple(
        entry_of(chunk, *values) for chunk, values in zip(container.chunks, worth, strict=True)
    )
    return replace(container, header=replace(container.header, chunks=entries))
