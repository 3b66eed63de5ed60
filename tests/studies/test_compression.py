"""The simpler codes, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.codec import random_adapter
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.errors import CodecError
from rankcast.records import Projection
from studies.baselines.compression import compeft, loraquant, round_numbers


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
