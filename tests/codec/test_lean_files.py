"""Files of version 3: what they cost beside the numbers, what they keep, what they refuse."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.codec import packed, random_adapter
from helpers.lean import DICTIONARY, as_varint, joined_lean, split_lean
from rankcast.codec.blocks import GroupShape
from rankcast.codec.chunks import ChunkPlan, decode, encode
from rankcast.codec.container import Container, read_container
from rankcast.codec.entropy_model import FALLS
from rankcast.codec.header import (
    BaseModel,
    ChunkEntry,
    Header,
    header_bytes,
    is_fingerprint,
    read_header,
    same_base,
)
from rankcast.codec.lean_header import LARGEST_JSON, LEAN_MAGIC
from rankcast.codec.piece import PieceHead, best_counts, code_counts
from rankcast.codec.symbols import SymbolReader, SymbolWriter
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.errors import CodecError
from rankcast.records import Projection

MINILM = {
    "attention.self.query": ("q", 384, 384), "attention.self.key": ("k", 384, 384),
    "attention.self.value": ("v", 384, 384), "attention.output.dense": ("o", 384, 384),
    "intermediate.dense": ("fc1", 384, 1536), "output.dense": ("fc2", 1536, 384),
}  # fmt: skip
BASE = BaseModel("sentence-transformers/all-MiniLM-L6-v2", "0123456789abcdef" * 4)


def ternary(seed: int, share: float = 0.04, twos: float = 0.0) -> AdapterTensors:
    """Return an adapter of MiniLM's shape and rank 1 whose numbers are mostly zeros, and a head."""
    rng = np.random.default_rng(seed)

    def drawn(n: int, size: float) -> np.ndarray:
        signs = rng.choice([-1, 1], n) * np.where(rng.random(n) < twos, 2, 1)
        return (signs * (rng.random(n) < size)).astype(np.float32)

    projections, factors = [], []
    for layer in range(6):
        for end, (kind, d_in, d_out) in MINILM.items():
            size = share * np.exp(0.35 * rng.normal())
            name = f"bert.encoder.layer.{layer}.{end}"
            projections.append(Projection(name, layer, kind, d_in, d_out))
            factors.append(Factors(drawn(d_out, size)[:, None], drawn(d_in, size)[None]))
    head = {"classifier.bias": (2,), "classifier.weight": (2, 384)}
    modules = {name: rng.normal(size=shape).astype(np.float32) for name, shape in head.items()}
    return AdapterTensors(
        tuple(projections), tuple(factors), modules, dict.fromkeys(modules, "full")
    )


def order_0_bytes(tensors: AdapterTensors) -> float:
    """Return the entropy of the rounded numbers of every strip by itself."""
    strips = [strip for f in tensors.factors for strip in (f.left[:, 0], f.right[0])]
    strips += [row for m in tensors.modules.values() for row in np.rint(np.atleast_2d(m))]
    bits = 0.0
    for strip in strips:
        counts = np.unique(strip, return_counts=True)[1]
        bits -= float((counts * np.log2(counts / counts.sum())).sum())
    return bits / 8


def in_chunks(tensors: AdapterTensors, n: int, *, lean: bool) -> Container:
    """Return a file whose chunks bring a share each of the components, in an order of chance."""
    order = np.random.default_rng(1).permutation(36)
    plans = []
    for k in range(1, n + 1):
        counts = np.zeros(36, dtype=int)
        counts[order[: 36 * k // n]] = 1
        plans.append(ChunkPlan(0, (*counts.tolist(), 1, 1)))
    chunks = encode(tensors, plans, lean=lean)
    header = Header.of(tensors, chunks, BASE, {"task_type": "SEQ_CLS"}, lean=lean)
    return Container(header, tuple(chunks))


@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_file_costs_at_most_150_bytes_beside_its_numbers(n: int) -> None:
    tensors = ternary(0)
    container = in_chunks(tensors, n, lean=True)
    size = len(container.to_bytes())
    assert size - order_0_bytes(tensors) <= 150
    assert len(header_bytes(container.header)) <= 70
    assert size < len(in_chunks(tensors, n, lean=False).to_bytes()) - 450
    for mine, theirs in zip(container.tensors().factors, tensors.factors, strict=True):
        np.testing.assert_array_equal(mine.left, theirs.left)
        np.testing.assert_array_equal(mine.right, theirs.right)


def test_both_versions_decode_to_the_same_weights() -> None:
    tensors = random_adapter(3, modules={"classifier.weight": (2, 24), "classifier.bias": (2,)})
    new, old = packed(tensors, n_steps=3), packed(tensors, n_steps=3, lean=False)
    assert len(new.chunks) == len(old.chunks)
    for n in range(len(new.chunks) + 1):
        one, other = new.prefix(n).tensors(), old.prefix(n).tensors()
        for f, g in zip(one.factors, other.factors, strict=True):
            np.testing.assert_array_equal(f.delta_weight(), g.delta_weight())
        assert one.modules.keys() == other.modules.keys()


def test_numbers_that_fall_off_slowly_take_fewer_bytes_than_as_gaussians() -> None:
    tensors = ternary(0, twos=0.1)
    new, old = (in_chunks(tensors, 1, lean=lean).chunks[0] for lean in (True, False))
    assert PieceHead.split(new)[0].tail > 0
    assert len(new) < 0.95 * len(old)
    assert PieceHead.split(in_chunks(ternary(0), 1, lean=True).chunks[0])[0].tail == 0


names = st.lists(
    st.one_of(st.integers(0, 12).map(str), st.sampled_from(["layers", "h", "#", "{}", "é", ""])),
    min_size=1, max_size=5,
).map(".".join).filter(bool)  # fmt: skip
projections = st.builds(
    Projection, names, st.integers(0, 12), st.sampled_from(["q", "fc1", "odd"]),
    st.integers(1, 3), st.integers(1, 3),
)  # fmt: skip


@given(st.lists(projections, max_size=30), st.integers(0, 1), st.booleans())
def test_any_names_come_back(listed: list[Projection], rank: int, same: bool) -> None:
    ranks = tuple(rank if same else i % 2 for i, _ in enumerate(listed))
    header = Header(BaseModel(), tuple(listed), ranks, (), ())
    data = header_bytes(header)
    assert read_header(data) == (header, len(data))


def test_what_was_measured_comes_back_to_five_decimals() -> None:
    container = packed(random_adapter(0))
    n = len(container.chunks)
    worth = [(0.123456789, 0.5), (None, 1.0), (12345.0, None)] * n
    entries = tuple(
        ChunkEntry.of(chunk, *values)
        for chunk, values in zip(container.chunks, worth[:n], strict=True)
    )
    ids = [7919 * (i + 1) % 30522 for i in range(16)]
    for seen in (ids, [7919 * (i + 1) for i in range(16)], [5, 6]):
        logits = {"input_ids": seen, "logits": [1.2345678, -20.04]}
        header = replace(container.header, chunks=entries, fingerprint=logits)
        data = header_bytes(header)
        back, _ = read_header(data)
        assert [(c.loss, c.accuracy) for c in back.chunks][:2] == [(0.12346, 0.5), (None, 1.0)]
        assert back.fingerprint is not None
        assert back.fingerprint["input_ids"] == seen
        assert back.fingerprint["logits"] == pytest.approx([1.2345678, -20.04], rel=1e-4)
        assert header_bytes(back) == data
    with pytest.raises(CodecError, match="loss"):
        header_bytes(replace(header, chunks=(ChunkEntry.of(b"", -1.0),)))


def test_fingerprints_are_cut_and_still_tell_base_models_apart() -> None:
    whole, other = "0123456789abcdef" * 4, "0123456789abcdee" + "0" * 48
    header = Header(BaseModel("tiny", whole), (), (), (), ())
    assert read_header(header_bytes(header))[0].base.fingerprint == whole[:16]
    assert same_base(whole, whole[:16])
    assert same_base(whole[:16], whole)
    assert same_base(whole, whole)
    assert not same_base(whole, other)
    assert not same_base(whole[:16], other)
    for short in (None, "", whole[:15], whole.upper(), whole + "0", "x" * 16):
        assert not same_base(whole, short)
        assert not same_base(short, whole)
        assert not is_fingerprint(short)


def forged(change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return a file whose header was changed and whose checksum was made to fit."""
    tensors = random_adapter(0, modules={"classifier.weight": (2, 24)})
    header, chunks = split_lean(packed(tensors).to_bytes())
    change(header)
    return joined_lean(header, chunks)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h.pop("layers"), "lacks a field"),
        (lambda h: h.pop("ranks"), "lacks a field"),
        (lambda h: h["layers"].append(7), "lacks a field"),
        (lambda h: h["ranks"].append(1), "lacks a field"),
        (lambda h: h["layers"][0].__setitem__(0, -1), "layers and their names"),
        (lambda h: h["layers"][0].__setitem__(1, 2**40), "beyond its limit"),
        (lambda h: h["layers"][0].__setitem__(1, 1.5), "lacks a field"),
        (lambda h: h["layers"][0].__setitem__(2, [7, "q"]), "layers and their names"),
        (lambda h: h["layers"][0].__setitem__(2, ["a"]), "lacks a field"),
        (lambda h: h["layers"][0].__setitem__(2, ["\\", "q"]), "name of a module"),
        (lambda h: h["layers"][0].__setitem__(3, [2**40, 3, 3]), "more widths"),
        (lambda h: h["layers"][0].__setitem__(3, [1, 3]), "lacks a field"),
        (lambda h: h["layers"][0].__setitem__(3, [1, 0, 3]), "whole number"),
        (lambda h: h["layers"][0].__setitem__(3, [1, "3", 3]), "whole number"),
        (lambda h: h.__setitem__("base", 3), "text"),
        (lambda h: h.__setitem__("task", []), "object"),
        (lambda h: h.__setitem__("fingerprint", 7), "lacks a field"),
        (lambda h: h.__setitem__("fingerprint", {"vocabulary": "x"}), "lacks a field"),
        (lambda h: h["modules"][0].__setitem__(2, [2**24, 2**24]), "numbers, more than"),
    ],
)  # fmt: skip
def test_forged_headers_are_refused(change: Callable[[dict[str, Any]], object], words: str) -> None:
    with pytest.raises(CodecError, match=words):
        read_container(forged(change))


def framed(body: bytes) -> bytes:
    front = LEAN_MAGIC + as_varint(len(body)) + body
    return front + zlib.crc32(front).to_bytes(4, "little")


def test_what_grows_beyond_measure_is_refused() -> None:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=DICTIONARY)
    bomb = deflater.compress(b'{"a":"' + b"0" * (LARGEST_JSON + 10) + b'"}') + deflater.flush()
    for data, words in (
        (framed(as_varint(0) + bomb), "beyond its limit"),
        (framed(as_varint(4 * 5000)), "5000 chunks"),
        (framed(b"\xff" * 12), "too large"),
        (framed(b""), "cut short or holds"),
        (framed(as_varint(4)), "cut short or holds"),
        (LEAN_MAGIC, "cut short or holds"),
        (LEAN_MAGIC + as_varint(2**40), "cut short"),
        (framed(as_varint(0) + b"\0\0"), "no compressed JSON|beyond its limit"),
    ):
        with pytest.raises(CodecError, match=words):
            read_header(data)


def test_a_file_that_was_cut_short_says_what_is_missing() -> None:
    container = packed(random_adapter(0))
    data = container.to_bytes()
    with pytest.raises(CodecError, match=r"header is cut short.*of \d\d bytes 20 are here"):
        read_container(data[:20])
    with pytest.raises(CodecError, match=f"within chunk {len(container.chunks) - 1}.*3 bytes"):
        read_container(data[:-3])
    at = len(header_bytes(container.header))
    with pytest.raises(CodecError, match="Chunk 0 is damaged"):
        read_container(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def test_heads_of_pieces_of_both_kinds_come_back() -> None:
    for lean in (False, True):
        for exponent in (-240, -20, -1, 0, 97, 180):
            for fall in range(len(FALLS)):
                for tail in range(4 if lean else 1):
                    head = PieceHead.of(
                        exponent, fall, offsets=bool(fall % 2), lean=lean,
                        counts="before" if lean else "even", tail=tail,
                    )  # fmt: skip
                    for symbols in (b"", b"\1\0\0\0", b"\0\0\0\1\1\2\0\0"):
                        piece = head.join(symbols)
                        assert PieceHead.split(piece) == (head, symbols)
    with pytest.raises(CodecError, match="exponent"):
        PieceHead.of(181, 0, offsets=False, lean=True, counts="all", tail=0).join(b"")


@pytest.mark.parametrize(
    "piece", [b"", b"\1", b"\0\0", b"\0\0\4", b"\0\0\x40", b"\xff\xf0", b"\0\1\0"]
)
def test_heads_that_do_not_exist_are_refused(piece: bytes) -> None:
    with pytest.raises(CodecError):
        PieceHead.split(piece)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_counts_come_back_however_they_are_coded(pairs: list[tuple[int, int]]) -> None:
    shapes = [GroupShape(max(pair), (3,)) for pair in pairs]
    counts = [min(pair) for pair in pairs]
    for how in ("even", "full", "before"):
        writer = SymbolWriter()
        code_counts(writer, counts, shapes, how)
        reader = SymbolReader(writer.to_bytes(2), 2)
        assert code_counts(reader, None, shapes, how) == counts
        reader.close()
    assert (best_counts(counts, shapes) == "all") == all(low == high for low, high in pairs)


def test_the_way_to_code_counts_is_the_cheapest() -> None:
    shapes = [GroupShape(8, (3,))] * 20
    assert best_counts([8] * 20, shapes) == "all"
    assert best_counts([8] * 19 + [7], shapes) == "full"
    assert best_counts([2] * 20, shapes) == "before"
    assert best_counts([0, 8] * 10, shapes) == "even"


def test_an_old_piece_in_a_new_file_is_read() -> None:
    """The head of a piece tells its kind, whatever the file's version."""
    tensors = random_adapter(1)
    chunks = encode(tensors, [ChunkPlan(-24, (4, 3))], lean=False)
    one = decode(Header.of(tensors, chunks, BaseModel(), {}), chunks)
    other = decode(Header.of(tensors, chunks, BaseModel(), {}, lean=False), chunks)
    for f, g in zip(one.factors, other.factors, strict=True):
        np.testing.assert_array_equal(f.left, g.left)
