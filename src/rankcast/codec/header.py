"""What stands before the chunks of a file: what it adapts, its tensors and the table of chunks.

On the wire it is zlib-compressed JSON (docs/format.md). Every field that comes from outside is
checked before anything is allocated for it.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rankcast.codec.tensors import Carriage
from rankcast.errors import CodecError
from rankcast.records import Projection

LARGEST_JSON = 2**23
"""Bytes of the header once it is decompressed."""
MOST_CHUNKS = 4096
LARGEST_WIDTH = 2**24
MOST_AXES = 8


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The frozen model that an adapter belongs to.

    Attributes:
        name: hub id or path, for people.
        fingerprint: SHA-256 of its weights in hexadecimal; None if whoever packed had no model.
    """

    name: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """A tensor that travels beside the projections.

    Attributes:
        name: in the base model.
        shape: of the tensor.
        carriage: as it is, or as a difference from the base model's.
    """

    name: str
    shape: tuple[int, ...]
    carriage: Carriage


@dataclass(frozen=True, slots=True)
class ChunkEntry:
    """A chunk in the table.

    Attributes:
        n_bytes: its length.
        sha256: of its bytes, in hexadecimal.
        loss: task loss that was measured with the prefix that ends here [nats]; None if not.
        accuracy: likewise, a share.
    """

    n_bytes: int
    sha256: str
    loss: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Header:
    """Everything but the chunks.

    Attributes:
        base: the model that it adapts.
        projections: what it adapts.
        ranks: most components of each projection.
        modules: tensors beside them.
        chunks: the table.
        task: what the adapter is for: `task_type`, `labels`, …; for people and exporters.
        fingerprint: logits that the whole adapter gives for a fixed input; see `adapters`.
    """

    base: BaseModel
    projections: tuple[Projection, ...]
    ranks: tuple[int, ...]
    modules: tuple[ModuleShape, ...]
    chunks: tuple[ChunkEntry, ...]
    task: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: Mapping[str, Any] | None = None

    @property
    def n_params(self) -> int:
        """Numbers that the whole adapter has."""
        components = sum(
            r * (p.d_in + p.d_out) for p, r in zip(self.projections, self.ranks, strict=True)
        )
        return components + sum(math.prod(module.shape) for module in self.modules)


def pack_header(header: Header) -> bytes:
    """Return the header as compressed JSON."""
    text = json.dumps(_to_plain(header), separators=(",", ":"), allow_nan=False)
    return zlib.compress(text.encode("ascii"), 9)


def unpack_header(packed: bytes) -> Header:
    """Return the header of compressed JSON.

    Raises:
        CodecError: it is damaged, grows beyond its limit, or a field is missing or wrong.
    """
    return _from_plain(_inflated(packed))


def _inflated(packed: bytes) -> Any:
    """Return the JSON of a header, refusing one that grows beyond measure."""
    try:
        inflater = zlib.decompressobj()
        text = inflater.decompress(packed, LARGEST_JSON)
        whole = inflater.eof and not inflater.unused_data
        plain = json.loads(text) if whole else None
    except (zlib.error, ValueError, RecursionError) as error:
        raise CodecError(f"The header is no compressed JSON ({error}).") from error
    if not isinstance(plain, dict):
        raise CodecError("The header grows beyond its limit, or is no JSON object.")
    return plain


def _to_plain(header: Header) -> dict[str, Any]:
    """Return the header as JSON takes it; the order of keys means nothing."""
    return {
        "base": {"name": header.base.name, "fingerprint": header.base.fingerprint},
        "projections": [
            [p.name, p.kind, p.layer, p.d_in, p.d_out, r]
            for p, r in zip(header.projections, header.ranks, strict=True)
        ],
        "modules": [[m.name, m.carriage, list(m.shape)] for m in header.modules],
        "chunks": [[c.n_bytes, c.sha256, c.loss, c.accuracy] for c in header.chunks],
        "task": dict(header.task),
        "fingerprint": None if header.fingerprint is None else dict(header.fingerprint),
    }


def _from_plain(raw: Any) -> Header:
    """Return the header of a JSON value, every field checked."""
    try:
        projections = [_projection(item) for item in _items(raw["projections"])]
        return Header(
            base=BaseModel(_text(raw["base"]["name"]), _digest(raw["base"]["fingerprint"])),
            projections=tuple(p for p, _ in projections),
            ranks=tuple(r for _, r in projections),
            modules=tuple(_module(item) for item in _items(raw["modules"])),
            chunks=_entries(_items(raw["chunks"])),
            task=_mapping(raw["task"]),
            fingerprint=None if raw["fingerprint"] is None else _mapping(raw["fingerprint"]),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, CodecError):
            raise
        raise CodecError(f"The header lacks a field or holds a wrong one ({error!r}).") from error


def _projection(item: Any) -> tuple[Projection, int]:
    name, kind, layer, d_in, d_out, rank = item
    widths = _count(d_in, 1, LARGEST_WIDTH), _count(d_out, 1, LARGEST_WIDTH)
    projection = Projection(_name(name), _count(layer, 0, 2**20), _name(kind), *widths)
    return projection, _count(rank, 0, min(widths))


def _module(item: Any) -> ModuleShape:
    name, carriage, shape = item
    if carriage not in ("full", "difference"):
        raise CodecError(f"The header knows no carriage {carriage!r}.")
    if len(shape) > MOST_AXES:
        raise CodecError(f"The header has a tensor of more than {MOST_AXES} axes.")
    return ModuleShape(_name(name), tuple(_count(n, 1, LARGEST_WIDTH) for n in shape), carriage)


def _entries(items: Sequence[Any]) -> tuple[ChunkEntry, ...]:
    if len(items) > MOST_CHUNKS:
        raise CodecError(f"The header lists {len(items)} chunks; {MOST_CHUNKS} are the most.")
    return tuple(
        ChunkEntry(_count(n, 0, 2**40), _digest(sha) or "", _number(loss), _number(accuracy))
        for n, sha, loss, accuracy in items
    )


def _items(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise CodecError("The header has something else where a list belongs.")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CodecError("The header has something else where an object belongs.")
    return value


def _count(value: Any, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise CodecError(f"The header has {value!r} where a whole number in {low}..{high} belongs.")
    return value


def _number(value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise CodecError(f"The header has {value!r} where a number belongs.")
    return value


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise CodecError(f"The header has {value!r} where a text belongs.")
    return value


def _name(value: Any) -> str:
    """Return a dotted module path; nothing that could be a path of files."""
    if not isinstance(value, str) or not value or set(value) & set("/\\\0"):
        raise CodecError(f"The header has {value!r} where the name of a module belongs.")
    return value


def _digest(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise CodecError("The header has something else where a SHA-256 belongs.")
    return value
