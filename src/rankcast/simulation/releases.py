"""Adapters that a simulation publishes: one made up or given, and the one after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rankcast.codec.chunks import encode
from rankcast.codec.container import Container, pack_at_exponent, read_container
from rankcast.codec.header import BaseModel, ChunkEntry
from rankcast.codec.packing import Source, block_offsets, exponent_of_quality
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.errors import DeliveryError
from rankcast.records import Projection
from rankcast.release.manifest import File, Manifest, blob_of
from rankcast.release.store import Store, read_releases

Worth = tuple[float | None, float | None]
"""Expected loss [nats] and accuracy of a prefix."""
OVERHEAD_BYTES = 8192
"""Signed metadata, the manifest and the headers of HTTP, before the first blob."""
_LAYERS, _WIDTH, _RANK = 6, 192, 8
_N_STEPS = 4
_STEP = 0.1
"""Of the last chunk of the made-up adapter, as a multiple of its weights' root mean square."""
_CHANGE = 0.02
"""Of the weights from one release to the next, as a share of their root mean square."""
_LEAST_NATS, _SPAN_NATS = 0.3, 0.4


def made_up_adapter(seed: int) -> Container:
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
            drawn = Factors(left.astype(np.float32), right.T.astype(np.float32).copy())
            factors.append(drawn.balanced())
    tensors = AdapterTensors(tuple(projections), tuple(factors), {}, {})
    base = BaseModel("made up", blob_of(b"the base model of a simulation").sha256)
    source = Source(tensors, base, {"task_type": "SEQ_CLS"})
    container = pack_at_exponent(source, exponent_of_quality(tensors, _STEP), _N_STEPS, n_parts=2)
    return _with_worth(container, _made_up_worth(container, tensors))


def next_adapter(container: Container, seed: int) -> Container:
    """Return a stand-in for the next training of an adapter: every weight changed a little.

    Its chunks bring the same components as those before, and its prefixes are said to be worth
    what those before were.

    Raises:
        CodecError: damaged chunks.
    """
    rng, header = np.random.default_rng(seed), container.header
    tensors, plans = container.tensors(), [plan for plan, _ in container.decoded()]
    factors = tuple(
        Factors(_padded(_nudged(f.left, rng).T, rank).T, _padded(_nudged(f.right, rng), rank))
        for f, rank in zip(tensors.factors, header.ranks, strict=True)
    )
    modules = {name: _nudged(values, rng) for name, values in tensors.modules.items()}
    changed = replace(tensors, factors=factors, modules=modules)
    chunks = encode(changed, plans, block_offsets(changed), lean=header.lean)
    following = Container(replace(header, fingerprint=None), tuple(chunks))
    return _with_worth(following, [(entry.loss, entry.accuracy) for entry in header.chunks])


def publishable(container: Container) -> Container:
    """Return a file that can be published: a base model without fingerprint gets one.

    Raises:
        DeliveryError: chunks are missing.
    """
    File.of(container)
    base = container.header.base
    if base.fingerprint is None:
        base = replace(base, fingerprint=blob_of((base.name or "no name").encode()).sha256)
    return replace(container, header=replace(container.header, base=base))


def published(store: Store, name: str | None) -> tuple[str, list[Container]]:
    """Return the name and files of a release that lies in a store.

    Args:
        store: that rankcast publish wrote.
        name: of the adapter; None if there is but one.

    Raises:
        DeliveryError: no such store or adapter, several of them, or damaged blobs.
    """
    releases = read_releases(store, {})
    if name is None and len(releases) == 1:
        name = next(iter(releases))
    if name is None or name not in releases:
        names = ", ".join(sorted(releases)) or "no adapter"
        raise DeliveryError(f"{store.root} holds {names}: name one with --name.")
    files = releases[name].manifest.files
    return name, [read_container(b"".join(map(store.get, file.blobs()))) for file in files]


def least_bits(manifest: Manifest) -> int:
    """Return the bits of the smallest prefix, with everything that comes before it."""
    smallest = min(sum(blob.n_bytes for blob in file.blobs(1)) for file in manifest.files)
    return 8 * (smallest + OVERHEAD_BYTES)


def _nudged(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if values.dtype != np.float32:  # whole numbers, such as places of weights
        return values
    size = float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0
    return (values + _CHANGE * size * rng.normal(size=values.shape)).astype(np.float32)


def _padded(rows: np.ndarray, n: int) -> np.ndarray:
    """Return `n` rows: those given, and zeros."""
    return np.concatenate([rows, np.zeros((n - len(rows), rows.shape[1]), np.float32)])


def _made_up_worth(container: Container, tensors: AdapterTensors) -> list[Worth]:
    whole = [factor.delta_weight() for factor in tensors.factors]
    energy = sum(float(np.square(weight).sum()) for weight in whole)
    worth: list[Worth] = []
    for _, prefix in container.decoded():
        errors = (a.delta_weight() - b for a, b in zip(prefix.factors, whole, strict=True))
        share = sum(float(np.square(error).sum()) for error in errors) / energy
        worth.append((_LEAST_NATS + _SPAN_NATS * share, 0.9 - 0.3 * share))
    return worth


def _with_worth(container: Container, worth: Sequence[Worth]) -> Container:
    entries = tuple(
        ChunkEntry.of(chunk, *values, lean=container.header.lean)
        for chunk, values in zip(container.chunks, worth, strict=True)
    )
    return replace(container, header=replace(container.header, chunks=entries))
