"""Tensors beside the projections: of any shape and kind, cut into segments or not."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.codec import header_of, mixtures, packed, random_adapter
from rankcast.codec.blocks import GroupShape
from rankcast.codec.chunks import Decoder, encode
from rankcast.codec.container import pack_at_exponent, read_container
from rankcast.codec.exact import code_centre, code_uniform, code_whole
from rankcast.codec.header import BaseModel, ModuleShape
from rankcast.codec.layout import Layout
from rankcast.codec.packing import (
    MODULE_OFFSET,
    OF_A_MATRIX,
    OF_A_VECTOR,
    Source,
    block_offsets,
    chunk_plans,
    exponent_of_quality,
)
from rankcast.codec.planner import pack_within
from rankcast.codec.quantiser import step_of
from rankcast.codec.symbols import SymbolReader, SymbolWriter
from rankcast.codec.tensors import AdapterTensors, LazyFactors, LazyTensors
from rankcast.errors import CodecError
from rankcast.records import Projection


def general(**modules: Any) -> AdapterTensors:
    """Return an adapter that has nothing but tensors of its own."""
    arrays = {name: np.asarray(values) for name, values in modules.items()}
    return AdapterTensors((), (), arrays, dict.fromkeys(arrays, "own"), {"peft_type": "IA3"})


def packed_well(tensors: AdapterTensors, quality: float = 1.0) -> AdapterTensors:
    source = Source(tensors, BaseModel("tiny"), {})
    container = pack_at_exponent(source, exponent_of_quality(tensors, quality))
    return read_container(container.to_bytes()).tensors()


def same(one: AdapterTensors, other: AdapterTensors) -> None:
    for f, g in zip(one.factors, other.factors, strict=True):
        np.testing.assert_array_equal(f.left, g.left)
        np.testing.assert_array_equal(f.right, g.right)
    assert list(one.modules) == list(other.modules)
    for name, values in one.modules.items():
        np.testing.assert_array_equal(values, other.modules[name])
        assert values.dtype == other.modules[name].dtype


@given(mixtures(), st.sampled_from([7, 40, 250, 2**20]))
def test_any_mixture_arrives_whatever_it_is_cut_into(tensors: AdapterTensors, segment: int) -> None:
    finest = exponent_of_quality(tensors, 0.5) if tensors.ranks.any() else -30
    whole = packed(tensors, finest, n_steps=3)
    cut = packed(tensors, finest, n_steps=3, segment=segment)
    assert cut.to_bytes() == packed(tensors, finest, n_steps=3, segment=segment).to_bytes()
    read, decoder = read_container(cut.to_bytes()), Decoder(cut.header)
    for n, chunk in enumerate(read.chunks, start=1):
        plan = decoder.add(chunk)
        assert len(plan.counts) == len(tensors.projections) + len(tensors.modules)
        same(read.prefix(n).tensors(), decoder.tensors())
        same(read.prefix(n).tensors(), whole.prefix(n).tensors())
    decoded = read.tensors()
    offsets = block_offsets(tensors, finest=finest)[len(tensors.projections) :]
    for (name, values), (offset,) in zip(tensors.modules.items(), offsets, strict=True):
        found = decoded.modules[name]
        assert (found.shape, found.dtype) == (values.shape, values.dtype)
        if values.dtype == np.float32:
            half = float(step_of(finest + int(offset))) / 2
            slack = 2e-7 * np.abs(values).max(initial=0)  # of the sum in float32
            assert np.abs(found - values).max(initial=0) <= half * 1.001 + slack
        else:
            np.testing.assert_array_equal(found, values)


def test_strips_and_segments_by_hand() -> None:
    modules = [
        ModuleShape("long", (8192, 1), "own"),
        ModuleShape("rows", (3, 2, 65), "own"),
        ModuleShape("number", (), "own"),
        ModuleShape("none", (4, 0), "own"),
        ModuleShape("full", (3, 2), "full"),
        ModuleShape("places", (5,), "own", "int64"),
    ]
    layout = Layout.made((), (), modules, None)
    assert layout.segments == (range(6),)
    assert [g.widths for g in layout.shapes] == [(256,) * 32, (65,) * 6, (1,), (), (2,) * 3, ()]
    assert [g.own for g in layout.shapes] == [True, True, True, True, False, False]
    assert [g.size for g in layout.shapes] == [8192, 390, 1, 0, 6, 5]
    # 4000 numbers a segment: 15 strips of 256, 15, 2 and 390 + 1 + 0 + 6 + 5.
    layout = Layout.made((), (), modules, 4000)
    assert [g.size for g in layout.shapes] == [3840, 3840, 512, 390, 1, 0, 6, 5]
    assert layout.items == (0, 0, 0, 1, 2, 3, 4, 5)
    assert layout.segments == (range(1), range(1, 2), range(2, 8))
    # 4 numbers: rows that are longer are groups by themselves; 5 whole numbers are 4 and 1.
    assert [g.size for g in Layout.made((), (), modules[4:], 4).shapes] == [4, 2, 4, 1]
    projection = Projection("q", 0, "q", 30, 20)
    assert Layout.made([projection], [2], [], 10).shapes == (GroupShape(2, (20, 30), paired=True),)
    with pytest.raises(CodecError, match="more than 4096 segments"):
        Layout.made((), (), [ModuleShape("x", (5000,), "own", "int8")], 1)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_whole_numbers_survive_the_coder(values: list[int]) -> None:
    writer = SymbolWriter()
    code_whole(writer, np.array(values, dtype=np.int64), len(values))
    reader = SymbolReader(writer.to_bytes(0), 0)
    assert code_whole(reader, None, len(values)).tolist() == values
    reader.close()


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_centre_survives_the_coder(value: float) -> None:
    writer = SymbolWriter()
    code_centre(writer, np.float32(value))
    reader = SymbolReader(writer.to_bytes(0), 0)
    assert code_centre(reader, np.float32(0)) == np.float32(value)
    reader.close()


def test_a_centre_that_is_not_finite_is_refused() -> None:
    writer = SymbolWriter()
    for symbol, size in ((1, 2), (0x7FC0, 2**16), (0, 2**16)):  # the bits of NaN
        code_uniform(writer, np.array([symbol], dtype=np.int32), 1, size)
    with pytest.raises(CodecError, match="not finite"):
        code_centre(SymbolReader(writer.to_bytes(0), 0), np.float32(0))


def test_steps_follow_the_spread_of_each_tensor() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4, 600)).astype(np.float32)
    tensors = general(
        near_one=1 + 0.01 * noise[0], large=50 * noise[1], small=1e-4 * noise[2:], same=[0.25] * 9
    )
    tensors = replace(
        tensors, modules={name: x.astype(np.float32) for name, x in tensors.modules.items()}
    )
    decoded = packed_well(tensors)
    share = {"near_one": OF_A_VECTOR * 0.01, "large": OF_A_VECTOR * 50, "small": OF_A_MATRIX * 1e-4}
    for name, step in share.items():
        error = float(np.sqrt(np.square(decoded.modules[name] - tensors.modules[name]).mean()))
        # A step is off by up to 3^(1/12), a spread of 600 or 1200 numbers by some per cent.
        assert error == pytest.approx(step / np.sqrt(12), rel=0.2), name
    assert decoded.modules["same"].tolist() == [0.25] * 9


def test_bits_of_a_matrix_of_its_own() -> None:
    """Seven or eight a number: 1/32 of the spread is 5 + log2(√(2πe)) = 7.05 bits."""
    tensors = general(x=np.random.default_rng(0).normal(size=(200, 300)).astype(np.float32))
    container = packed(tensors, exponent_of_quality(tensors, 1.0), n_steps=5)
    assert 6.9 < container.n_bits / tensors.n_params < 7.4


def test_prefixes_come_closer() -> None:
    noise = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    tensors = general(x=noise, y=1 + 0.01 * noise[0])
    container = pack_at_exponent(
        Source(tensors, BaseModel("tiny"), {}), exponent_of_quality(tensors, 1.0)
    )
    errors = [
        float(np.abs(prefix.modules["x"] - noise).mean()) for _, prefix in container.decoded()
    ]
    assert len(errors) >= 4
    for one, other in itertools.pairwise(errors[1:]):
        assert other == pytest.approx(one / 3, rel=0.1)  # a digit each


def test_whole_numbers_are_exact_in_every_prefix() -> None:
    noise = np.random.default_rng(0).normal(size=(30, 30)).astype(np.float32)
    tensors = general(x=noise, places=np.array([[2**40, -1], [7, -(2**63)]]))
    container = packed(tensors, n_steps=4)
    assert len(container.chunks) == 4
    for n in range(1, 5):
        found = container.prefix(n).tensors().modules["places"]
        np.testing.assert_array_equal(found, tensors.modules["places"])


@pytest.mark.parametrize("values", [[0.0, np.nan], [np.inf, 1.0], [1.0, -np.inf]])
def test_numbers_that_are_not_finite_are_refused_by_name(values: list[float]) -> None:
    tensors = general(x=np.ones(3, np.float32), **{"h.gate": np.array(values, np.float32)})
    with pytest.raises(CodecError, match=r"h\.gate holds NaN or infinite"):
        packed_well(tensors)


@pytest.mark.parametrize(
    "values",
    [np.zeros((3, 4), np.float32), np.zeros((0, 4), np.float32), np.arange(5), np.zeros((0,), int)],
)
def test_an_adapter_without_anything_but_zeros_or_whole_numbers_arrives(values: Any) -> None:
    tensors = general(x=values)
    found = packed_well(tensors).modules["x"]
    np.testing.assert_array_equal(found, values)
    assert found.dtype == values.dtype
    assert not packed_well(general()).modules


def test_a_low_rank_adapter_of_zeros_is_refused_unless_something_is_beside_it() -> None:
    zeros = random_adapter(0, size=0.0)
    with pytest.raises(CodecError, match="other than zero"):
        packed_well(zeros)
    head = np.arange(6, dtype=np.float32)
    beside = replace(zeros, modules={"h": head}, carriage={"h": "full"})
    assert np.abs(packed_well(beside).modules["h"] - head).max() < 0.5


@pytest.mark.parametrize("size", [1e-3, 0.02, 0.5, 30.0])
def test_a_head_takes_the_fixed_step_unless_its_own_spread_needs_a_finer_one(size: float) -> None:
    tensors = random_adapter(0, ((64, 64),), (4,), {"head": (8, 64)}, size=0.1)
    tensors.modules["head"][...] *= size / 0.1
    common = float(step_of(exponent_of_quality(tensors, 1.0)))
    (offset,) = block_offsets(tensors)[1]
    finer = size / 6 < common / 9
    assert (offset < MODULE_OFFSET) == finer
    step = common * 3.0 ** (int(offset) / 6)
    assert step == pytest.approx(min(size / 6, common / 9), rel=0.15)
    error = packed_well(tensors).modules["head"] - tensors.modules["head"]
    assert np.sqrt(np.square(error).mean()) < 0.06 * size  # 1/6 of it over √12, and some


def test_the_largest_numbers_can_be_coded_at_the_finest_steps() -> None:
    values = np.ones(500, np.float32)
    values[0] = 1e6
    tensors = general(x=values, y=np.ones((4, 4), np.float32) * np.float32(1e-9), z=values[:, None])
    container = pack_within(Source(tensors, BaseModel("tiny"), {}), 1e9)
    for name, found in container.tensors().modules.items():
        assert np.abs(found - tensors.modules[name]).max() <= 1e-6 * tensors.modules[name].max()


def test_a_tensor_that_has_not_arrived_is_left_out() -> None:
    tensors = general(x=np.ones(300, np.float32), y=np.arange(4))
    for segment in (100, 2**20):
        decoder = Decoder(header_of(tensors, [], segment))
        assert not decoder.tensors().modules


def lazy(tensors: AdapterTensors) -> AdapterTensors:
    return replace(
        tensors,
        factors=LazyFactors(tuple(tensors.ranks.tolist()), lambda i: tensors.factors[i]),
        modules=LazyTensors(tensors.shapes, lambda name: tensors.modules[name]),
    )


def test_an_adapter_on_the_disk_is_coded_like_one_in_memory() -> None:
    tensors = random_adapter(0, modules={"classifier.weight": (2, 24), "classifier.bias": (2,)})
    assert packed(lazy(tensors)).to_bytes() == packed(tensors).to_bytes()
    decoded = packed(tensors, segment=50).tensors()
    assert isinstance(decoded.factors, LazyFactors)
    assert isinstance(decoded.modules, LazyTensors)
    same(decoded, packed(tensors).tensors())
    assert decoded.n_params == packed(tensors).tensors().n_params
    assert [f.rank for f in decoded.truncated(np.array([1, 2])).factors] == [1, 2]
    assert [f.rank for f in decoded.factors[1:]] == [3]
    assert decoded.factors[-1].rank == 3
    with pytest.raises(IndexError):
        decoded.factors[2]
    with pytest.raises(KeyError):
        decoded.modules["other"]


def test_damaged_tables_of_pieces_are_refused() -> None:
    tensors = random_adapter(0, modules={"classifier.weight": (2, 24)})
    container = packed(tensors, segment=50)
    chunk = container.chunks[0]
    for damaged in (b"", chunk[:7], chunk[:-1], chunk + b"\0", b"\xff" * 4 + chunk[4:]):
        with pytest.raises(CodecError, match="pieces another number"):
            Decoder(container.header).add(damaged)
    offsets = block_offsets(tensors)
    plans = chunk_plans(tensors, -24, 1, 1), chunk_plans(tensors, -25, 1, 1)
    one, other = (encode(tensors, plan, offsets, 50)[0] for plan in plans)
    n, at = len(Layout.of(container.header).segments), []
    for data in (one, other):
        lengths = np.frombuffer(data, "<u4", n)
        at.append((4 * n + int(lengths[0]), int(lengths[0])))
    (end, length), (start, _) = at
    swapped = length.to_bytes(4, "little") + other[4 : 4 * n] + one[4 * n : end] + other[start:]
    for decode in (Decoder(container.header).add, lambda data: replace(
        container, chunks=(data,)
    ).tensors()):  # fmt: skip
        with pytest.raises(CodecError, match="different steps"):
            decode(swapped)


def test_memory_is_bounded_by_a_segment() -> None:
    """Twenty projections of 20,000 numbers that are made when asked for, two a segment."""
    made = random_adapter(0, ((600, 400),), (20,))
    n = 20
    tensors = AdapterTensors(
        made.projections * n, LazyFactors((20,) * n, lambda _: made.factors[0]), {}, {}
    )
    assert tensors.component_sizes[0].count == 20_000

    def peak(call: Callable[[], Any]) -> tuple[int, Any]:
        tracemalloc.start()
        try:
            result = call()
            return tracemalloc.get_traced_memory()[1], result
        finally:
            tracemalloc.stop()

    taken = {}
    for segment in (40_000, 2**20):
        encoding, container = peak(lambda segment=segment: packed(tensors, segment=segment))
        decoding, decoded = peak(container.tensors)
        assert len(Layout.of(container.header).segments) == (10 if segment == 40_000 else 1)
        assert decoded.ranks.tolist() == [container.tensors().ranks[0]] * n
        taken[segment] = encoding, decoding
    for small, large in zip(taken[40_000], taken[2**20], strict=True):
        assert small < large / 4


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> Any:
        raise OSError(28, "No space left on device")

    container = packed(random_adapter(0), segment=50)
    monkeypatch.setattr("rankcast.codec.spool.TemporaryFile", full)
    with pytest.raises(CodecError, match=r"No space left on device.*TMPDIR"):
        container.tensors()
