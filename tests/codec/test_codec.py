"""Quantiser, models, chunks and containers by hand, and what they refuse."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from helpers.codec import header_of, packed, random_adapter
from rankcast.codec import entropy_model
from rankcast.codec.blocks import GroupShape, width_shift
from rankcast.codec.chunks import ChunkPlan, Decoder, encode
from rankcast.codec.container import read_container
from rankcast.codec.exact import code_excess
from rankcast.codec.header import LARGEST_JSON, MAGIC, ChunkEntry, read_header
from rankcast.codec.packing import chunk_plans, exponent_of_quality
from rankcast.codec.quantiser import coarser, dequantise, exponent_near, quantise, step_of
from rankcast.codec.symbols import SymbolReader, SymbolWriter
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.errors import CodecError
from rankcast.records import Projection


def test_steps_are_powers_of_three_to_a_sixth() -> None:
    assert step_of(0) == 1.0
    assert step_of(6) == 3.0
    assert step_of(-12) == np.float32(1 / 9)
    for exponent in range(-180, 121):
        assert step_of(exponent) == pytest.approx(3.0 ** (exponent / 6), rel=1e-6)
        assert exponent_near(float(step_of(exponent))) == exponent


def test_quantiser_by_hand() -> None:
    values = [0.0, 0.4, -0.6, 4.4, -4.6, 13.0]
    np.testing.assert_array_equal(quantise(values, 0), [0, 0, -1, 4, -5, 13])
    # 13 = 1·9 + 1·3 + 1, -5 = -1·9 + 1·3 + 1, 4 = 1·3 + 1
    np.testing.assert_array_equal(coarser(quantise(values, 0)), [0, 0, 0, 1, -2, 4])
    np.testing.assert_array_equal(coarser(quantise(values, 0), 2), [0, 0, 0, 0, -1, 1])
    np.testing.assert_array_equal(dequantise(np.array([2, -1], np.int32), 6), [6.0, -3.0])


@pytest.mark.parametrize("bad", [[np.nan], [np.inf], [-np.inf]])
def test_weights_that_are_not_finite_are_refused(bad: list[float]) -> None:
    with pytest.raises(CodecError, match="NaN or infinite"):
        quantise(bad, 0)
    with pytest.raises(CodecError, match="coarser step"):
        quantise([1.0], -180)


def test_normal_probabilities_agree_with_scipy() -> None:
    edges = np.concatenate([np.linspace(-9, 9, 73), [np.inf]])
    for low, high in itertools.pairwise(edges):
        expected = abs(stats.norm.sf(abs(low)) - stats.norm.sf(abs(high)))
        if low >= 0 or high <= 0:
            assert entropy_model.normal_mass(low, high) == pytest.approx(expected, rel=1e-9)


def test_tables_are_the_same_on_every_machine() -> None:
    """A decoder with other tables reads other weights: this digest is part of the format."""
    digest = hashlib.sha256()
    for c in range(1, entropy_model.FRESH_CLASSES + 1):
        digest.update(entropy_model.fresh_weights(c).astype("<i8").tobytes())
    for c in range(1, entropy_model.CLASSES + 1):
        for context in range(entropy_model.CONTEXTS):
            digest.update(entropy_model.digit_weights(c, context).astype("<i8").tobytes())
    assert digest.hexdigest() == TABLES


TABLES = "1cb19f1d4964ac935eb42a7488030dd81edf3a002c886de279f0db97b7ed8ad2"


def test_class_is_the_one_whose_spread_fits() -> None:
    rng = np.random.default_rng(0)
    for c in range(4, entropy_model.FRESH_CLASSES + 1):
        indices = np.rint(rng.normal(size=50_000) * entropy_model.spread_of(c)).astype(np.int32)
        assert abs(entropy_model.class_of(indices) - c) <= 1
    assert entropy_model.class_of(np.zeros(5, dtype=np.int32)) == 0
    assert entropy_model.finer_class(entropy_model.CLASSES) == entropy_model.CLASSES


def test_second_strip_of_a_component_is_predicted_from_the_first() -> None:
    rng = np.random.default_rng(0)
    for widths in ((384, 384), (384, 1536), (1536, 384), (2048, 128)):
        shift = width_shift(GroupShape(1, widths, paired=True))
        spreads = [rng.normal(size=w) / np.sqrt(w) for w in widths]
        ratio = np.linalg.norm(spreads[1]) / np.linalg.norm(spreads[0])
        assert ratio == pytest.approx(1, abs=0.1)
        assert 3 ** (shift / 6) == pytest.approx(np.sqrt(widths[0] / widths[1]), rel=0.1)


def test_excess_survives_the_coder() -> None:
    values = np.array([0, 1, 2, 3, 100, 2**23], dtype=np.int32)
    writer = SymbolWriter()
    code_excess(writer, values, len(values))
    reader = SymbolReader(writer.to_bytes(0), 0)
    np.testing.assert_array_equal(code_excess(reader, None, len(values)), values)
    reader.close()


@pytest.mark.parametrize("exponent", [-18, -14, -11])
def test_size_is_within_three_percent_of_the_entropy_of_the_symbols(exponent: int) -> None:
    """Entropy of each strip's own histogram, which no decoder knows; MiniLM's widths."""
    rng = np.random.default_rng(0)
    projections, factors = [], []
    for i in range(6):
        d_in, d_out = ((384, 384), (384, 1536), (1536, 384))[i % 3]
        size = 2.0 * 0.8 ** np.arange(8)
        left = rng.normal(size=(d_out, 8)) * size / np.sqrt(d_out)
        right = rng.normal(size=(8, d_in)) * size[:, None] / np.sqrt(d_in)
        factors.append(Factors(left.astype(np.float32), right.astype(np.float32)).balanced())
        projections.append(Projection(f"layers.{i}.x", i, "x", d_in, d_out))
    tensors = AdapterTensors(tuple(projections), tuple(factors), {}, {})
    chunks = encode(tensors, [ChunkPlan(exponent, (8,) * 6)])
    entropy = 0.0
    for f in factors:
        for strip in (*f.left.T, *f.right):
            counts = np.unique(quantise(strip, exponent), return_counts=True)[1]
            entropy -= float((counts * np.log2(counts / counts.sum())).sum())
    assert 8 * len(chunks[0]) < 1.03 * entropy + 64  # one coder state


def test_modules_and_offsets_arrive() -> None:
    tensors = random_adapter(0, modules={"classifier.weight": (2, 24), "classifier.bias": (2,)})
    container = packed(tensors)
    read = read_container(container.to_bytes())
    decoder = Decoder(read.header)
    for chunk in read.chunks:
        decoder.add(chunk)
    decoded = decoder.tensors()
    finest = float(step_of(-24 - 12))
    for name, values in tensors.modules.items():
        assert decoded.modules[name].shape == values.shape
        assert np.abs(decoded.modules[name] - values).max() <= finest / 2 * 1.001
    for f, g in zip(tensors.factors, decoded.factors, strict=True):
        assert np.abs(f.delta_weight() - g.delta_weight()).max() < 0.02


def test_nothing_received_is_an_empty_adapter() -> None:
    tensors = random_adapter(0, modules={"classifier.weight": (2, 24)})
    decoded = Decoder(header_of(tensors, [])).tensors()
    assert decoded.ranks.tolist() == [0, 0]
    assert not decoded.modules


def test_a_difference_that_has_not_arrived_is_zero() -> None:
    tensors = random_adapter(0, modules={"pooler.weight": (3, 4)})
    tensors = dataclasses.replace(tensors, carriage={"pooler.weight": "difference"})
    decoded = Decoder(header_of(tensors, [])).tensors()
    np.testing.assert_array_equal(decoded.modules["pooler.weight"], np.zeros((3, 4)))


def test_components_beyond_a_step_vanish_and_ranks_fall_with_it() -> None:
    tensors = random_adapter(0, ((64, 64),), (8,), size=1.0)
    ranks = []
    for exponent in (-24, 0, 6, 30):
        chunks = encode(tensors, [ChunkPlan(exponent, (8,))])
        decoder = Decoder(header_of(tensors, chunks))
        decoder.add(chunks[0])
        ranks.append(int(decoder.tensors().ranks[0]))
    assert ranks[0] == 8
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[-1] == 0


def test_a_ladder_that_does_not_refine_is_refused() -> None:
    tensors = random_adapter(0)
    with pytest.raises(CodecError, match="no whole number of digits"):
        encode(tensors, [ChunkPlan(-20, (4, 3)), ChunkPlan(-14, (4, 3))])
    with pytest.raises(CodecError, match="no whole number of digits"):
        encode(tensors, [ChunkPlan(-20, (4, 3)), ChunkPlan(-22, (4, 3))])
    with pytest.raises(CodecError, match="counts"):
        encode(tensors, [ChunkPlan(-20, (5, 3))])
    with pytest.raises(CodecError, match="at least one step"):
        chunk_plans(tensors, -20, n_steps=0)


def test_a_relative_step_is_a_multiple_of_the_root_mean_square() -> None:
    tensors = random_adapter(0)
    rms = np.sqrt(
        np.mean(
            np.concatenate([x.ravel() ** 2 for f in tensors.factors for x in (f.left, f.right)])
        )
    )
    assert step_of(exponent_of_quality(tensors, 1.0)) == pytest.approx(rms, rel=0.1)
    with pytest.raises(CodecError, match="positive"):
        exponent_of_quality(tensors, 0.0)


def test_a_prefix_is_accepted_only_when_asked_for() -> None:
    container = packed(random_adapter(0))
    data = container.to_bytes()
    short = data[: -len(container.chunks[-1])]
    with pytest.raises(CodecError, match="cut short"):
        read_container(short)
    prefix = read_container(short, allow_prefix=True)
    assert prefix.chunks == container.chunks[:-1]
    assert not prefix.is_whole
    assert read_container(data[:-1], allow_prefix=True).chunks == container.chunks[:-1]


def forged(change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return a file whose header was changed and whose digest was made to fit."""
    tensors = random_adapter(0, modules={"classifier.weight": (2, 24)})
    data = packed(tensors, lean=False).to_bytes()
    length = struct.unpack_from("<8sHI", data)[2]
    plain = json.loads(zlib.decompress(data[14 : 14 + length]))
    change(plain)
    body = zlib.compress(json.dumps(plain).encode())
    front = struct.pack("<8sHI", MAGIC, 1, len(body)) + body
    return front + hashlib.sha256(front).digest() + data[14 + length + 32 :]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h.pop("projections"), "lacks a field"),
        (lambda h: h["projections"].append(7), "lacks a field"),
        (lambda h: h["projections"][0].__setitem__(3, -1), "whole number"),
        (lambda h: h["projections"][0].__setitem__(3, 1e3), "whole number"),
        (lambda h: h["projections"][0].__setitem__(5, 10**9), "whole number"),
        (lambda h: h["projections"][0].__setitem__(0, "../../etc/passwd"), "name of a module"),
        (lambda h: h.__setitem__("projections", {}), "list"),
        (lambda h: h.__setitem__("task", []), "object"),
        (lambda h: h["modules"][0].__setitem__(2, [2**24, 2**24]), "numbers, more than"),
        (lambda h: h["modules"][0].__setitem__(2, [1] * 9), "axes"),
        (lambda h: h["modules"][0].__setitem__(1, "pickle"), "carriage"),
        (lambda h: h["chunks"][0].__setitem__(1, "zz"), "64 hexadecimal"),
        (lambda h: h["chunks"][0].__setitem__(2, "low"), "number"),
        (lambda h: h["chunks"].extend([[0, "0" * 64, None, None]] * 5000), "chunks"),
        (lambda h: h["base"].__setitem__("name", 3), "text"),
    ],
)
def test_forged_headers_are_refused(change: Callable[[dict[str, Any]], object], words: str) -> None:
    with pytest.raises(CodecError, match=words):
        read_container(forged(change))


def test_a_decompression_bomb_is_refused() -> None:
    body = zlib.compress(b'{"a":"' + b"0" * (LARGEST_JSON + 10) + b'"}', 9)
    front = struct.pack("<8sHI", MAGIC, 1, len(body)) + body
    with pytest.raises(CodecError, match="beyond its limit"):
        read_header(front + hashlib.sha256(front).digest())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "shorter"),
        (b"PK\x03\x04" + b"\0" * 40, "magic"),
        (struct.pack("<8sHI", MAGIC, 9, 0) + b"\0" * 40, "version 9"),
        (b"\x89RC\x04" + b"\0" * 40, "version 4"),
        (struct.pack("<8sHI", MAGIC, 1, 2**31) + b"\0" * 40, "cut short"),
    ],
)
def test_other_files_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(CodecError, match=words):
        read_container(data)


def test_a_chunk_of_another_adapter_is_refused() -> None:
    header = header_of(random_adapter(0, ((4, 4),), (2,)), [])
    for data in (b"", b"\0\0", b"\0\0\0\0\0", b"\0\0\x07", b"\0\0\0" + b"\0" * 4):
        with pytest.raises(CodecError):
            Decoder(header).add(data)


def test_adapters_that_do_not_fit_together_are_refused() -> None:
    tensors = random_adapter(0)
    with pytest.raises(CodecError, match="have shapes"):
        dataclasses.replace(tensors, factors=tensors.factors[::-1])
    with pytest.raises(CodecError, match="carriage"):
        dataclasses.replace(tensors, modules={"x": np.zeros(2, np.float32)})


@pytest.mark.parametrize("lean", [True, False])
def test_the_table_of_chunks_keeps_what_was_measured(lean: bool) -> None:
    container = packed(random_adapter(0), lean=lean)
    chunks = tuple(
        ChunkEntry(c.n_bytes, c.check, round(0.5 / (i + 1), 5), None if i else 0.86439)
        for i, c in enumerate(container.header.chunks)
    )
    header = dataclasses.replace(container.header, chunks=chunks)
    data = dataclasses.replace(container, header=header).to_bytes()
    assert read_container(data).header == header
