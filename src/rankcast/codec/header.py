"""Everything before the chunks of a file: what it adapts, its tensors, the table of chunks.

    magic (8) · version (u16) · length (u32) · header · SHA-256 of all before (32)

is how versions 1 and 2 are framed, whose header is zlib-compressed JSON; version 3, which is
written unless a header says otherwise, is in `lean_header` (docs/format.md has both). Every field
that comes from outside is checked before memory is taken for it.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from rankcast.codec.lean_header import (
    LARGEST_HEADER,
    LARGEST_JSON,
    LEAN_MAGIC,
    MOST_CHUNKS,
    inflated,
    lean_bytes,
    read_lean,
)
from rankcast.codec.tensors import AdapterTensors, Carriage
from rankcast.errors import CodecError
from rankcast.records import Projection

MAGIC = b"\x89RCAST\r\n"
VERSION = 3
LARGEST_PARAMS = 2**28
"""Numbers that an adapter may have unless the caller allows more: 1 GiB in float32."""
SEGMENT = 2**20
"""Numbers that are coded together; larger adapters are cut into segments."""
LARGEST_WIDTH = 2**24
MOST_AXES = 8
DTYPES = ("float32", "int64", "int32", "int16", "int8", "uint8", "bool")
LEAST_FINGERPRINT = 16
"""Hexadecimal digits of a fingerprint that was cut."""
MEASURE = "measure"
"""Key of a task that says what `loss` of the chunks is, if it is no loss."""
Measure = Literal["loss", "divergence"]
_FRONT = struct.Struct("<8sHI")
_DIGEST = 32
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The frozen model that an adapter belongs to.

    Attributes:
        name: hub id or path, for people.
        fingerprint: SHA-256 of its weights in hexadecimal, or the first digits of it, which is all
            that a file of version 3 carries; None if whoever packed had no model.
    """

    name: str | None = None
    fingerprint: str | None = None


def is_fingerprint(text: object) -> bool:
    """Return whether something is a SHA-256 in hexadecimal, or at least 16 first digits of one."""
    return isinstance(text, str) and LEAST_FINGERPRINT <= len(text) <= 64 and _HEX.issuperset(text)


def same_base(one: str | None, other: str | None) -> bool:
    """Return whether two fingerprints, whole or cut, are of the same base model.

    False where one of them is missing or too short to tell.
    """
    if one is None or other is None or not (is_fingerprint(one) and is_fingerprint(other)):
        return False
    return one.startswith(other) or other.startswith(one)


def measure_of(task: Mapping[str, Any]) -> Measure:
    """Return what a file or a release measures its prefixes by.

    `divergence` is the Kullback-Leibler divergence from the adapter before it was coded, in nats
    per token: lower is better, as with a loss.
    """
    return "divergence" if task.get(MEASURE) == "divergence" else "loss"


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """A tensor that travels beside the projections.

    Attributes:
        name: in the base model.
        shape: of the tensor.
        carriage: see `rankcast.codec.tensors.Carriage`.
        dtype: NumPy's word: float32, or of whole numbers that are carried exactly.
    """

    name: str
    shape: tuple[int, ...]
    carriage: Carriage
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class ChunkEntry:
    """A chunk in the table.

    Attributes:
        n_bytes: its length.
        check: in hexadecimal the CRC-32 of its bytes, or their SHA-256 in versions 1 and 2.
        loss: task loss that was measured with the prefix that ends here [nats], or another
            measure (`measure_of`); None if not.
        accuracy: likewise, a share.
    """

    n_bytes: int
    check: str
    loss: float | None = None
    accuracy: float | None = None

    @classmethod
    def of(
        cls,
        chunk: bytes,
        loss: float | None = None,
        accuracy: float | None = None,
        *,
        lean: bool = True,
    ) -> ChunkEntry:
        """Return the entry of a chunk."""
        return cls(len(chunk), _check(chunk, lean), loss, accuracy)

    def fits(self, chunk: bytes) -> bool:
        """Whether these are the chunk's bytes, as far as its check tells."""
        return self.check == _check(chunk, lean=len(self.check) < 2 * _DIGEST)


def _check(chunk: bytes, lean: bool) -> str:
    crc32 = zlib.crc32(chunk).to_bytes(4, "little").hex()
    return crc32 if lean else hashlib.sha256(chunk).hexdigest()


@dataclass(frozen=True)
class Header:
    """Everything but the chunks.

    Attributes:
        base: the model that it adapts.
        projections: what it adapts.
        ranks: most components of each projection.
        modules: tensors beside them.
        chunks: the table.
        task: what the adapter is for, such as `task_type`; for people and exporters.
        fingerprint: logits that the whole adapter gives for a fixed input; see
            `rankcast.adapters.fingerprint`.
        config: see `AdapterTensors.config`.
        segment: numbers in a segment at most (`rankcast.codec.layout`); None if there is but one.
        lean: whether header and chunks are those of version 3.
    """

    base: BaseModel
    projections: tuple[Projection, ...]
    ranks: tuple[int, ...]
    modules: tuple[ModuleShape, ...]
    chunks: tuple[ChunkEntry, ...]
    task: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: Mapping[str, Any] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    segment: int | None = None
    lean: bool = True

    @classmethod
    def of(
        cls,
        tensors: AdapterTensors,
        chunks: Sequence[bytes],
        base: BaseModel,
        task: Mapping[str, Any],
        segment: int = SEGMENT,
        *,
        lean: bool = True,
    ) -> Header:
        """Return the header of an adapter that was just coded, of which nothing was measured."""
        return cls(
            base=base,
            projections=tensors.projections,
            ranks=tuple(tensors.ranks.tolist()),
            modules=module_shapes(tensors),
            chunks=tuple(ChunkEntry.of(chunk, lean=lean) for chunk in chunks),
            task=task,
            config=tensors.config,
            segment=segment if tensors.n_params > segment else None,
            lean=lean,
        )

    @property
    def n_params(self) -> int:
        """Numbers that the whole adapter has."""
        components = sum(
            r * (p.d_in + p.d_out) for p, r in zip(self.projections, self.ranks, strict=True)
        )
        return components + sum(math.prod(module.shape) for module in self.modules)

    @property
    def float32_bits(self) -> int:
        """Bits that they would take in float32."""
        return 32 * self.n_params


def module_shapes(tensors: AdapterTensors) -> tuple[ModuleShape, ...]:
    """Return the modules of an adapter as a header lists them."""
    return tuple(
        ModuleShape(name, shape, tensors.carriage[name], dtype.name)
        for name, (shape, dtype) in tensors.shapes.items()
    )


def header_bytes(header: Header) -> bytes:
    """Return what stands before the first chunk.

    Raises:
        CodecError: larger than readers accept.
    """
    plain = _to_plain(header)
    text = json.dumps(plain, separators=(",", ":"), allow_nan=False)
    packed = b"" if header.lean else zlib.compress(text.encode("ascii"), 9)
    if len(text) > LARGEST_JSON or len(packed) > LARGEST_HEADER:
        raise CodecError(
            f"The adapter has {len(header.projections) + len(header.modules):,} tensors, whose "
            f"names and shapes take {len(text):,} bytes; readers accept {LARGEST_JSON:,}, and "
            f"{LARGEST_HEADER:,} compressed. Adapt fewer modules."
        )
    if header.lean:
        return lean_bytes(plain)
    front = _FRONT.pack(MAGIC, 2 if _is_second(header) else 1, len(packed)) + packed
    return front + hashlib.sha256(front).digest()


def read_header(
    data: bytes | memoryview, *, largest_params: int = LARGEST_PARAMS
) -> tuple[Header, int]:
    """Return the header of a file and where the first chunk begins.

    Args:
        data: the file, or its beginning.
        largest_params: refuse an adapter of more numbers than that.

    Raises:
        CodecError: no such file, another version, a damaged header, or one of a larger adapter.
    """
    lean = bytes(data[: len(LEAN_MAGIC)]) == LEAN_MAGIC
    plain, start = (read_lean if lean else _read_second)(data)
    header = _from_plain(plain, lean)
    if header.n_params > largest_params:
        raise CodecError(
            f"The adapter has {header.n_params:,} numbers, more than the {largest_params:,} that "
            f"this device accepts."
        )
    return header, start


def _read_second(data: bytes | memoryview) -> tuple[dict[str, Any], int]:
    """Return the JSON of a header of version 1 or 2, and where the first chunk begins."""
    begin = bytes(data[:4])
    if begin[:3] == MAGIC[:3] and begin[3:] and begin != MAGIC[:4]:
        raise CodecError(_newer(begin[3]))
    if len(data) < _FRONT.size:
        raise CodecError("This is no .rcast file: it is shorter than its header.")
    magic, version, length = _FRONT.unpack_from(data)
    if magic != MAGIC:
        raise CodecError("This is no .rcast file: it does not begin with the magic number.")
    if not 1 <= version <= 2:
        raise CodecError(_newer(version))
    end = _FRONT.size + length
    if length > LARGEST_HEADER or len(data) < end + _DIGEST:
        raise CodecError(
            f"The header is cut short or its length is damaged: of {end + _DIGEST:,} bytes "
            f"{len(data):,} are here. Fetch it again."
        )
    front = bytes(data[:end])
    if hashlib.sha256(front).digest() != bytes(data[end : end + _DIGEST]):
        raise CodecError("The header is damaged: its SHA-256 does not match. Fetch it again.")
    return inflated(front[_FRONT.size :], zlib.decompressobj()), end + _DIGEST


def _newer(version: int) -> str:
    return f"The file has format version {version}; this program reads up to {VERSION}. Update it."


def _to_plain(header: Header) -> dict[str, Any]:
    """Return the header as JSON takes it; the order of keys means nothing."""
    return {
        "base": {"name": header.base.name, "fingerprint": header.base.fingerprint},
        "projections": [
            [p.name, p.kind, p.layer, p.d_in, p.d_out, r]
            for p, r in zip(header.projections, header.ranks, strict=True)
        ],
        "modules": [
            [m.name, m.carriage, list(m.shape), *([] if m.dtype == "float32" else [m.dtype])]
            for m in header.modules
        ],
        "chunks": [[c.n_bytes, c.check, c.loss, c.accuracy] for c in header.chunks],
        "task": dict(header.task),
        "fingerprint": None if header.fingerprint is None else dict(header.fingerprint),
        **({"config": dict(header.config)} if header.config else {}),
        **({} if header.segment is None else {"segment": header.segment}),
    }


def _is_second(header: Header) -> bool:
    """Whether a header says what programs that read only version 1 would not understand."""
    new = any(m.carriage == "own" or m.dtype != "float32" or 0 in m.shape for m in header.modules)
    return bool(header.config) or header.segment is not None or new


def _from_plain(raw: Any, lean: bool) -> Header:
    """Return the header of a JSON value, every field checked."""
    try:
        projections = [_projection(item) for item in _typed(raw["projections"], list, "a list")]
        base, fingerprint = raw["base"], raw["base"]["fingerprint"]
        return Header(
            base=BaseModel(
                _typed(base["name"], str | None, "a text"),
                None if fingerprint is None else _digits(fingerprint, 16 if lean else 64),
            ),
            projections=tuple(p for p, _ in projections),
            ranks=tuple(r for _, r in projections),
            modules=tuple(_module(item) for item in _typed(raw["modules"], list, "a list")),
            chunks=_entries(_typed(raw["chunks"], list, "a list"), lean),
            task=_typed(raw["task"], dict, "an object"),
            fingerprint=_typed(raw["fingerprint"], dict | None, "an object"),
            config=_typed(raw.get("config", {}), dict, "an object"),
            segment=_count(raw["segment"], 1, LARGEST_WIDTH) if "segment" in raw else None,
            lean=lean,
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
    name, carriage, shape, *more = item
    dtype = more[0] if more else "float32"
    if carriage not in get_args(Carriage) or dtype not in DTYPES or more[1:]:
        raise CodecError(f"The header knows no carriage {carriage!r} of {dtype!r}; {more[1:]}.")
    if len(shape) > MOST_AXES:
        raise CodecError(f"The header has a tensor of more than {MOST_AXES} axes.")
    return ModuleShape(
        _name(name), tuple(_count(n, 0, LARGEST_WIDTH) for n in shape), carriage, dtype
    )


def _entries(items: Sequence[Any], lean: bool) -> tuple[ChunkEntry, ...]:
    if len(items) > MOST_CHUNKS:
        raise CodecError(f"The header lists {len(items)} chunks; {MOST_CHUNKS} are the most.")
    return tuple(
        ChunkEntry(
            _count(n, 0, 2**40),
            _digits(check, 8 if lean else 64),
            _typed(loss, int | float | None, "a number"),
            _typed(accuracy, int | float | None, "a number"),
        )
        for n, check, loss, accuracy in items
    )


def _typed(value: Any, kind: Any, words: str) -> Any:
    """Return a JSON value if it is of a kind; a truth value is no number."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise CodecError(f"The header has {value!r:.60} where {words} belongs.")
    return value


def _count(value: Any, low: int, high: int) -> int:
    if not low <= _typed(value, int, "a whole number") <= high:
        raise CodecError(f"The header has {value!r} where a whole number in {low}..{high} belongs.")
    return value


def _name(value: Any) -> str:
    """Return a dotted module path; nothing that could be a path of files."""
    if not _typed(value, str, "a name") or set(value) & set("/\\\0"):
        raise CodecError(f"The header has {value!r} where the name of a module belongs.")
    return value


def _digits(value: Any, n: int) -> str:
    """Return so many hexadecimal digits."""
    if len(_typed(value, str, "a digest")) != n or not _HEX.issuperset(value):
        raise CodecError(f"The header has something else where {n} hexadecimal digits belong.")
    return value
