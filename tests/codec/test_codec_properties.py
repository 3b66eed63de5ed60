"""What is decoded is what was encoded, whatever the adapter and however it is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.codec import adapters_and_ladders, header_of, packed, random_adapter
from rankcast.codec.chunks import ChunkPlan, Decoder, encode
from rankcast.codec.container import read_container
from rankcast.codec.packing import chunk_plans
from rankcast.codec.quantiser import coarser, dequantise, finer, quantise, step_of
from rankcast.codec.tensors import AdapterTensors
from rankcast.errors import CodecError


def aims(ladder: list[ChunkPlan], group: int, block: int) -> list[int | None]:
    """Return the exponent to which a block is known after each chunk."""
    reached, now = [], None
    for plan in ladder:
        if plan.counts[group] > block:
            now = plan.exponent
        reached.append(now)
    return reached


@given(adapters_and_ladders())
def test_every_prefix_decodes_to_the_weights_rounded_to_the_step_it_reaches(
    drawn: tuple[AdapterTensors, list[ChunkPlan]],
) -> None:
    tensors, ladder = drawn
    chunks = encode(tensors, ladder)
    decoder = Decoder(header_of(tensors, chunks))
    for i, (chunk, plan) in enumerate(zip(chunks, ladder, strict=True)):
        assert decoder.add(chunk) == plan
        for g, f in enumerate(tensors.factors):
            for k in range(f.rank):
                reached = aims(ladder, g, k)
                expected = [
                    np.zeros_like(x)
                    if reached[i] is None
                    else dequantise(
                        coarser(quantise(x, reached[-1]), (reached[i] - reached[-1]) // 6),
                        reached[i],
                    )
                    for x in (f.left[:, k], f.right[k])
                ]
                block = decoder._states[0].groups[g][k]
                exponent = reached[i] or 0
                for strip, want in zip(block.strips, expected, strict=True):
                    np.testing.assert_array_equal(dequantise(strip.indices, exponent), want)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1), st.integers(-30, 10), st.integers(0, 4))
def test_a_coarser_index_is_the_index_at_the_coarser_step(
    values: list[float], exponent: int, digits: int
) -> None:
    at_once = quantise(values, exponent + 6 * digits)
    fine = quantise(values, exponent)
    error = np.abs(coarser(fine, digits) * 3**digits - fine).max()
    assert error <= (3**digits - 1) / 2
    # Rounding twice differs only where a value lies on the edge of a cell.
    away = np.abs(np.asarray(values) / float(step_of(exponent + 6 * digits)) % 1 - 0.5) > 1e-6
    np.testing.assert_array_equal(coarser(fine, digits)[away], at_once[away])


@given(st.integers(-(2**20), 2**20), st.sampled_from([-1, 0, 1]))
def test_a_digit_is_taken_away_again(index: int, digit: int) -> None:
    one = np.array([index], dtype=np.int32)
    assert coarser(finer(one, np.array([digit], dtype=np.int32)))[0] == index


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 4))
def test_many_chunks_lose_nothing_against_one(seed: int, n_steps: int, parts: int) -> None:
    tensors = random_adapter(seed, modules={"classifier.weight": (2, 24)})
    ladder = chunk_plans(tensors, -30, n_steps, parts)
    once = [ChunkPlan(-30, ladder[-1].counts)]
    results = []
    for plans in (ladder, once):
        chunks = encode(tensors, plans)
        decoder = Decoder(header_of(tensors, chunks))
        for chunk in chunks:
            decoder.add(chunk)
        results.append(decoder.tensors())
    for one, other in zip(results[0].factors, results[1].factors, strict=True):
        np.testing.assert_array_equal(one.left, other.left)
        np.testing.assert_array_equal(one.right, other.right)
    np.testing.assert_array_equal(
        results[0].modules["classifier.weight"], results[1].modules["classifier.weight"]
    )


@given(st.data())
def test_a_changed_container_is_refused(data: st.DataObject) -> None:
    whole = packed(random_adapter(0, modules={"classifier.weight": (2, 24)})).to_bytes()
    how = data.draw(st.sampled_from(["flip", "cut", "add", "swap"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    if how == "flip":
        bit = 1 << data.draw(st.integers(0, 7))
        changed = whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]
    elif how == "cut":
        changed = whole[:at]
    elif how == "add":
        changed = whole + data.draw(st.binary(min_size=1, max_size=20))
    else:
        other = data.draw(st.integers(0, len(whole) - 1))
        changed = bytearray(whole)
        changed[at], changed[other] = changed[other], changed[at]
        changed = bytes(changed)
        if changed == whole:
            return
    with pytest.raises(CodecError):
        read_container(changed)


@given(st.binary(max_size=200), st.integers(0, 100))
def test_a_damaged_chunk_never_crashes_the_decoder(garbage: bytes, seed: int) -> None:
    """Even with a matching hash: the decoder stands on its own."""
    tensors = random_adapter(seed, modules={"classifier.weight": (2, 24)})
    decoder = Decoder(header_of(tensors, []))
    try:
        decoder.add(garbage)
    except CodecError:
        with pytest.raises(CodecError, match="begin again"):
            decoder.tensors()
    else:
        decoded = decoder.tensors()
        for f in decoded.factors:
            assert np.isfinite(f.left).all()
            assert np.isfinite(f.right).all()
