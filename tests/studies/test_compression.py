"""The simpler codes, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from helpers.codec import random_adapter
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.errors import CodecError
from rankcast.records import Projection
from studies.baselines.compression import (
    adaptive_bits,
    compeft,
    loraquant,
    round_numbers,
    round_strips,
    step_strips,
    symbol_bits,
)


def one(left: list[float], right: list[float]) -> AdapterTensors:
    factors = Factors(np.array([left], np.float32).T, np.array([right], np.float32))
    p = Projection("layers.0.x", 0, "x", len(right), len(left))
    return AdapterTensors((p,), (factors,), {}, {})


def test_floats_cost_their_width() -> None:
    tensors = random_adapter(0, modules={"classifier.weight": (2, 24)})
    n = tensors.n_params
    assert n == (24 + 16) * 4 + (16 + 48) * 3 + 48
    assert round_numbers(tensors, "fp32").bits == 32 * n
    half = round_numbers(tensors, "fp16")
    assert half.bits == 16 * n
    assert half.tensors.factors[0].left == pytest.approx(tensors.factors[0].left, rel=1e-3)


def test_integers_by_hand() -> None:
    # int4: seven levels up to the largest magnitude, scale 7 / 7 = 1.
    coded = round_numbers(one([7.0, 0.4, -0.6, 3.5], [1.0, -7.0]), "int4")
    np.testing.assert_array_equal(coded.tensors.factors[0].left[:, 0], [7, 0, -1, 4])
    np.testing.assert_array_equal(coded.tensors.factors[0].right[0], [1, -7])
    assert coded.bits == 4 * 6 + 16 * 2
    with_head = random_adapter(0, modules={"classifier.bias": (2,)})
    assert round_numbers(with_head, "int8").bits == 8 * (40 * 4 + 64 * 3) + 16 * 14 + 16 * 2


def test_compeft_by_hand() -> None:
    values = [4.0, -3.0, 0.5, 0.1, 0.0, -0.2, 0.3, 0.4]
    coded = compeft(one(values[:4], values[4:]), density=0.25)
    size = np.float32(np.std(np.array(values, np.float32)))
    np.testing.assert_allclose(coded.tensors.factors[0].left[:, 0], [size, -size, 0, 0])
    assert not coded.tensors.factors[0].right.any()
    # Two of eight places: 8·H(1/4) = 6.49 bits, two signs, one magnitude.
    assert coded.bits == pytest.approx(8 * 0.8112781 + 2 + 32)
    with pytest.raises(CodecError, match="share in"):
        compeft(one([1.0], [1.0]), density=0.0)


def test_compeft_sends_what_training_changed() -> None:
    start = one([1.0, 1.0], [2.0, -2.0])
    coded = compeft(one([5.0, 1.0], [2.0, -2.5]), density=0.25, gain=2.0, start=start)
    size = 2 * np.std(np.array([4.0, 0.0, 0.0, -0.5]))
    np.testing.assert_allclose(coded.tensors.factors[0].left[:, 0], [1 + size, 1.0])
    np.testing.assert_allclose(coded.tensors.factors[0].right[0], [2.0, -2.0])


def test_loraquant_by_hand() -> None:
    left = np.array([[8.0, 1.0], [0.0, -2.0], [3.0, 1.0]], np.float32)
    right = np.array([[9.0, 0.0], [1.0, -3.0]], np.float32)
    p = Projection("layers.0.x", 0, "x", 2, 3)
    tensors = AdapterTensors((p,), (Factors(left, right),), {}, {})
    coded = loraquant(tensors, share=0.5)
    # The first component in four levels between its extremes, the second in signs.
    np.testing.assert_allclose(coded.tensors.factors[0].left[:, 0], [8, 0, 8 / 3], atol=2e-2)
    np.testing.assert_allclose(coded.tensors.factors[0].right[0], [9, 0])
    mean = np.float32(np.float16(4 / 3))
    np.testing.assert_allclose(coded.tensors.factors[0].left[:, 1], [mean, -mean, mean])
    np.testing.assert_allclose(coded.tensors.factors[0].right[1], [2, -2])
    assert coded.bits == 2 * 5 + 4 * 16 + 5 + 2 * 16
    with pytest.raises(CodecError, match="share"):
        loraquant(tensors, share=1.5)


def test_rank_zero_and_zeros_survive() -> None:
    tensors = random_adapter(0, ranks=(0, 2))
    zero = AdapterTensors(
        tensors.projections,
        (tensors.factors[0], Factors(*(np.zeros_like(x) for x in
                                       (tensors.factors[1].left, tensors.factors[1].right)))),
        {}, {},
    )  # fmt: skip
    for coded in (round_numbers(zero, "int4"), compeft(zero, 0.1), loraquant(zero, 0.9)):
        assert coded.tensors.ranks.tolist() == [0, 2]
        assert all(np.isfinite(f.delta_weight()).all() for f in coded.tensors.factors)


def strip(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def test_strips_of_few_bits_by_hand() -> None:
    # Seven levels either side at 4 bits: 7, 3.5 and -1 need a scale of 1, and nothing is clipped.
    rounded = round_strips([strip(7.0, 3.0, -1.0, 0.0)], 4)
    np.testing.assert_array_equal(rounded.symbols[0], [7, 3, -1, 0])
    np.testing.assert_array_equal(rounded.decoded[0], [7, 3, -1, 0])
    assert rounded.plain_bits(4) == 4 * 4 + 16
    # Two bits have four odd levels: ±0.5 and ±1.5 of a scale, here of 2.
    two = round_strips([strip(3.0, 1.0, -1.0, -3.0)], 2)
    np.testing.assert_array_equal(two.decoded[0], [3, 1, -1, -3])
    np.testing.assert_array_equal(two.symbols[0], [1, 0, -1, -2])
    with pytest.raises(CodecError, match="2 to 8 bits, not 1"):
        round_strips([strip(1.0)], 1)


def test_a_large_number_is_clipped_where_that_costs_less() -> None:
    values = strip(*([1.0, -1.0, 0.4, -0.4] * 50), 4.0)
    decoded = round_strips([values], 3).decoded[0]
    assert decoded.max() < 4.0
    plain = np.rint(values / (4 / 3)) * np.float32(4 / 3)
    assert np.square(decoded - values).sum() < np.square(plain - values).sum()


def test_groups_have_a_scale_each() -> None:
    values = strip(*([0.01, -0.02] * 4), *([5.0, -3.0] * 4))
    grouped, whole = (round_strips([values], 4, group) for group in (8, None))
    assert (grouped.scale_bits, whole.scale_bits) == (32, 16)
    assert np.abs(grouped.decoded[0] - values)[:8].max() < 0.002
    assert not whole.decoded[0][:8].any()


def test_zeros_stay_zeros() -> None:
    zeros = np.zeros(5, np.float32)
    assert not round_strips([zeros], 4).decoded[0].any()
    assert not step_strips([zeros], 0.5).decoded[0].any()


def test_one_step_by_hand() -> None:
    stepped = step_strips([strip(0.9, -0.2), strip(0.3)], 0.5)
    np.testing.assert_array_equal(stepped.symbols[0], [2, 0])
    np.testing.assert_array_equal(stepped.decoded[0], [1.0, 0.0])
    np.testing.assert_array_equal(stepped.decoded[1], [0.5])
    assert stepped.scale_bits == 16


def test_adaptive_bits_by_hand() -> None:
    # Two kinds of symbols, half a symbol of each counted in advance: the first costs 1/2, the
    # second, alike, (1 + 1/2)/2 = 3/4, the third, another, (1/2)/3 = 1/6: 4 bits in all.
    expected = -math.log2(1 / 2 * 3 / 4 * 1 / 6)
    assert adaptive_bits(np.array([3, 3, 4])) == pytest.approx(expected + 16)
    assert expected == pytest.approx(4.0)
    assert adaptive_bits(np.array([7] * 100)) == 16  # there is only one
    assert adaptive_bits(np.zeros(0, np.int64)) == 16


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=200))
def test_adaptive_bits_are_those_of_a_coder_that_counts(symbols: list[int]) -> None:
    low, high = min(symbols), max(symbols)
    counts, bits = dict.fromkeys(range(low, high + 1), 0.5), 0.0
    for symbol in symbols:
        bits -= math.log2(counts[symbol] / sum(counts.values()))
        counts[symbol] += 1
    assert adaptive_bits(np.array(symbols)) == pytest.approx(bits + 16, abs=1e-6)


def test_symbols_share_a_model_where_that_is_less() -> None:
    alike = [np.array([0, 1, 0, 0, 0, 0, 0, 1])] * 20
    together = 1 + adaptive_bits(np.concatenate(alike))
    assert symbol_bits(alike) == pytest.approx(together)
    assert together < 1 + sum(adaptive_bits(one) for one in alike)
    other = [np.zeros(500, np.int64), np.ones(500, np.int64)]
    assert symbol_bits(other) == 1 + 2 * 16
