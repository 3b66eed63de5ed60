"""Updates: what turns the version of a file that a device has into the next one, byte for byte.

An update is a way to transfer a file, not another kind of adapter. It carries the symbols of the
new file's chunks, coded with what the old file says of them (`changes`); whoever applies it writes
these symbols into chunks again. No choice of an encoder is made anew, so the new file comes out to
the last bit on every machine, whichever program packed it, and its SHA-256 proves it.

An update has a *piece* for each chunk of the new file, which needs no more of the old file than its
first as many chunks, so that a device with a prefix makes a prefix of it. The first piece begins
with the new header. docs/format.md has the bytes.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rankcast.codec.blocks import StreamState, code_blocks
from rankcast.codec.changes import ChangeReader, ChangeWriter
from rankcast.codec.chunks import joined_pieces, make_known, pieces_of, refine
from rankcast.codec.container import read_container
from rankcast.codec.header import LARGEST_HEADER, Header, read_header
from rankcast.codec.layout import Layout
from rankcast.codec.lean_header import read_varint, varint
from rankcast.codec.piece import HEAD_EXPONENTS, PieceHead, code_counts
from rankcast.codec.quantiser import Indices
from rankcast.codec.symbols import Hint, SymbolCoder, SymbolReader, SymbolWriter
from rankcast.errors import CodecError

_WORD = 3
"""Bytes before the header: its length (21 bits), which of `_SUMS` follows, whether it is packed."""
_SUMS = (
    (4, lambda data: zlib.crc32(data).to_bytes(4, "little")),
    (32, lambda data: hashlib.sha256(data).digest()),
)
"""Sums at the end of a header, which need not travel: lengths, and what gives them."""


def make_update(old: bytes, new: bytes) -> bytes:
    """Return the update from one file to another.

    Args:
        old: the file that devices have, whole.
        new: the file that they shall have, whole.

    Raises:
        CodecError: damaged files, or ones too different to share anything.
    """
    before, after = _Parsed.of(old), _Parsed.of(new)
    parts = _coded_parts(before, after.header, after.layout, after.parts, _made_piece)
    pieces = [joined_pieces(of_chunk) for of_chunk in zip(*parts, strict=True)]
    pieces[0] = _packed_header(before.header_bytes, after.header_bytes) + pieces[0]
    lengths = b"".join(varint(len(piece)) for piece in pieces[:-1])
    return lengths + b"".join(pieces)


def n_chunks_made(old: Header, n_held: int, n_new: int) -> int:
    """Return how many of the `n_new` chunks of a file come out of `n_held` chunks of an old one."""
    return n_new if n_held == len(old.chunks) else min(n_held, n_new)


def apply_update(old: bytes, update: bytes, sha256s: Sequence[str]) -> tuple[bytes, ...]:
    """Return the header of the new file and as many of its chunks as `n_chunks_made` says.

    Args:
        old: the file that the device has; perhaps only its first chunks, at least one.
        update: what `make_update` returned.
        sha256s: of the new header and of each chunk of the new file.

    Raises:
        CodecError: another old file than the update starts from, or a damaged update; anything
            that would come out other than as named.
    """
    before, n_new = _Parsed.of(old, prefix=True), len(sha256s) - 1
    n_made = n_chunks_made(before.header, len(before.parts), n_new)
    if n_made < 1:
        raise CodecError("An update makes at least a chunk, of at least a chunk of the old file.")
    pieces = _pieces_of(update, n_new)[:n_made]
    header_bytes, first = _unpacked_header(before.header_bytes, pieces[0])
    _check(header_bytes, sha256s[0], "header")  # before memory is taken for what it describes
    header, end = read_header(header_bytes)
    if end != len(header_bytes) or n_new != len(header.chunks):
        raise CodecError("An update has more than its file: it is damaged.")
    layout = Layout.of(header)
    parts = [pieces_of(piece, len(layout.segments)) for piece in (first, *pieces[1:])]
    applied = _coded_parts(before, header, layout, parts, _applied_piece)
    chunks = tuple(joined_pieces(of_chunk) for of_chunk in zip(*applied, strict=True))
    for number, (chunk, sha256) in enumerate(zip(chunks, sha256s[1:], strict=False)):
        _check(chunk, sha256, f"chunk {number}")
    return (header_bytes, *chunks)


def _pieces_of(update: bytes, n: int) -> list[bytes]:
    """Return the pieces of an update.

    Raises:
        CodecError: cut short; the last piece may have any length.
    """
    ends, at = [0], 0
    for _ in range(n - 1):
        length, at = read_varint(update, at)
        ends.append(ends[-1] + length)
    body = update[at:]
    if ends[-1] > len(body):
        raise CodecError("The update is cut short.")
    return [body[a:b] for a, b in pairwise([*ends, len(body)])]


def _check(data: bytes, sha256: str, what: str) -> None:
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CodecError(
            f"The update gives another {what} than the release names: it starts from another file, "
            f"or is damaged. Fetch the whole file."
        )


@dataclass(frozen=True, eq=False)
class _Parsed:
    """A file, or its first chunks.

    Attributes:
        header_bytes: what stands before the chunks.
        header: the same, read.
        layout: of its numbers.
        parts: the pieces of each chunk, one for each segment.
    """

    header_bytes: bytes
    header: Header
    layout: Layout
    parts: tuple[Sequence[bytes | memoryview], ...]

    @classmethod
    def of(cls, data: bytes, *, prefix: bool = False) -> _Parsed:
        """Read a file.

        Raises:
            CodecError: damaged.
        """
        container, (_, end) = read_container(data, allow_prefix=prefix), read_header(data)
        layout = Layout.of(container.header)
        parts = tuple(pieces_of(chunk, len(layout.segments)) for chunk in container.chunks)
        return cls(data[:end], container.header, layout, parts)


@dataclass(frozen=True, slots=True)
class _Head:
    """What a piece of a chunk says before its weights.

    Attributes:
        head: exponent and tables.
        counts: blocks that take part, of each group of the other file; -1 where it has no such.
    """

    head: PieceHead
    counts: tuple[int, ...]


_CodePiece = Callable[[StreamState, _Head | None, bytes | memoryview], bytes]


def _coded_parts(
    old: _Parsed,
    header: Header,
    layout: Layout,
    parts: Sequence[Sequence[bytes | memoryview]],
    code: _CodePiece,
) -> list[list[bytes]]:
    """Code the parts of each chunk of the new file, one segment after the other.

    Raises:
        CodecError: segments of another kind, or damaged chunks.
    """
    own, others = _keys(header, layout), _keys(old.header, old.layout)
    n = len(layout.segments)
    if n != len(old.layout.segments) or (n > 1 and (layout, own) != (old.layout, others)):
        raise CodecError(
            "The two files divide their numbers in other ways; send the new one whole."
        )
    coded = []
    for i, (groups, there) in enumerate(zip(layout.segments, old.layout.segments, strict=True)):
        state, before = layout.state(i), old.layout.state(i)
        places = [others.index(key) - there.start if key in others else None for key in own]
        make_known(state, before, places := places[groups.start : groups.stop])
        coded.append([])
        for j, part in enumerate(parts):
            head = None
            if j < len(old.parts):
                chunk = memoryview(old.parts[j][i])
                known_head, _ = PieceHead.split(chunk)
                counts = refine(before, chunk).counts
                known = tuple(-1 if place is None else counts[place] for place in places)
                head = _Head(known_head, known)
            coded[-1].append(code(state, head, part[i]))
    return coded


def _keys(header: Header, layout: Layout) -> list[tuple[str, int]]:
    """Return the name of what each group belongs to, and which part of it the group is."""
    names = [p.name for p in header.projections] + [m.name for m in header.modules]
    seen: Counter[int] = Counter()
    keys = []
    for item in layout.items:
        keys.append((names[item], seen[item]))
        seen[item] += 1
    return keys


def _made_piece(state: StreamState, old: _Head | None, piece: bytes | memoryview) -> bytes:
    """Return the update of a piece of a chunk."""
    update = ChangeWriter()
    head, symbols = PieceHead.split(piece)
    _code_head(update, head, old)
    chunk = SymbolReader(symbols, head.fall)
    _code_symbols(state, head, old, _Through(chunk, update))
    chunk.close()
    return update.to_bytes()


def _applied_piece(state: StreamState, old: _Head | None, data: bytes | memoryview) -> bytes:
    """Return the piece of a chunk that an update gives."""
    update, chunk = ChangeReader(data), SymbolWriter()
    head = _code_head(update, PieceHead(0, 0), old)
    _code_symbols(state, head, old, _Through(update, chunk))
    update.close()
    return head.join(chunk.to_bytes(head.fall))


def _code_head(coder: SymbolCoder, head: PieceHead, old: _Head | None) -> PieceHead:
    """Code exponent and tables of a piece of a chunk.

    Raises:
        CodecError: tables that do not exist.
    """
    low, high = HEAD_EXPONENTS
    if not low <= head.exponent <= high:
        raise CodecError(f"No chunk has the step exponent {head.exponent}.")
    known = (0 - low, 0) if old is None else (old.head.exponent - low, old.head.tables)
    exponent = coder.near(head.exponent - low, known[0], high - low + 1, known[0])
    return PieceHead(exponent + low, coder.near(head.tables, known[1], 256, known[1]))


def _code_symbols(
    state: StreamState, head: PieceHead, old: _Head | None, coder: SymbolCoder
) -> None:
    """Code everything in a piece of a chunk behind its head."""
    counts = code_counts(coder, None, state.shapes, head.counts, old and old.counts)
    code_blocks(state, counts, head.exponent, coder, offsets=head.offsets, tail=head.tail)


class _Through:
    """Reads symbols from one coder and gives each to another.

    Args:
        source: to read from.
        sink: to write to.
    """

    def __init__(self, source: SymbolCoder, sink: SymbolCoder) -> None:
        self._source, self._sink = source, sink

    def many(
        self, symbols: Indices | None, count: int, model: Any, hint: Hint | None = None
    ) -> Indices:
        """Pass `count` symbols on and return them."""
        symbols = self._source.many(symbols, count, model, hint)
        return self._sink.many(symbols, count, model, hint)

    def near(self, symbol: int, predicted: int, size: int, likely: int | None = None) -> int:
        """Pass a symbol on and return it."""
        symbol = self._source.near(symbol, predicted, size, likely)
        return self._sink.near(symbol, predicted, size, likely)


def _packed_header(old: bytes, new: bytes) -> bytes:
    """Return a header with its length before it, as short as the old one makes it."""
    sums = [sum_of(new[:-n]) if new[-n:] == sum_of(new[:-n]) else b"" for n, sum_of in _SUMS]
    check = next((i for i, digest in enumerate(sums) if digest), len(sums))
    body = new[: len(new) - len(b"".join(sums))]
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zdict=old)
    packed = deflater.compress(body) + deflater.flush()
    is_packed = len(packed) < len(body)
    body = packed if is_packed else body
    return (len(body) | check << 21 | is_packed << 23).to_bytes(_WORD, "little") + body


def _unpacked_header(old: bytes, piece: bytes) -> tuple[bytes, bytes]:
    """Return the new header and what follows it.

    Raises:
        CodecError: cut short, no deflated data, or longer than a header may be.
    """
    word = int.from_bytes(piece[:_WORD], "little")
    end = _WORD + word % 2**21
    body = piece[_WORD:end]
    if word >> 23:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS, zdict=old)
        try:
            body = inflater.decompress(body, 2 * LARGEST_HEADER)
        except zlib.error as error:
            raise CodecError(f"The header in an update is damaged: {error}.") from error
    check = word >> 21 & 3
    return body + (_SUMS[check][1](body) if check < len(_SUMS) else b""), piece[end:]
