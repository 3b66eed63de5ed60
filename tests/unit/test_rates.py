"""Bits and errors of components against closed forms, sampled numbers, and the coder itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codec_data import random_adapter
from rankcast.adapters.rate import rounded_gaussian_entropy
from rankcast.codec.chunks import ChunkPlan
from rankcast.codec.ladder import block_offsets
from rankcast.codec.rates import SIDE_BITS, Spreads, rounded_entropy, rounding_error
from rankcast.codec.stream import encode
from rankcast.errors import CodecError


def test_entropy_by_hand() -> None:
    # σ = ½: masses 0.6827, 2·0.1573, 2·0.0013.
    p = np.array([0.6826895, 0.1573054, 0.1573054, 0.0013496, 0.0013496])
    found = rounded_entropy(np.array([0.5, 10.0, 1e-3, 0.0, 1e3]))
    assert found[0] == pytest.approx(-(p * np.log2(p)).sum(), rel=1e-3)
    assert found[1] == pytest.approx(2.0471 + np.log2(10), rel=1e-3)
    assert found[2] == found[3] == 0.0
    assert found[4] == pytest.approx(2.0471 + np.log2(1e3), rel=1e-3)


def test_entropy_is_that_of_the_differentiable_twin() -> None:
    spread = np.linspace(0.06, 5.0, 50)
    theirs = rounded_gaussian_entropy(torch.tensor(spread)).numpy()
    np.testing.assert_allclose(rounded_entropy(spread), theirs, atol=1e-2)


def test_error_of_sampled_numbers() -> None:
    x = np.random.default_rng(0).standard_normal(200_000)
    for spread in (0.1, 0.3, 0.7, 2.0, 20.0):
        sampled = np.square(spread * x - np.rint(spread * x)).mean() / spread**2
        assert rounding_error(np.array(spread)) == pytest.approx(sampled, rel=0.02, abs=1e-6)
    assert rounding_error(np.array([0.0, 1e-3])).tolist() == [1.0, 1.0]
    assert rounding_error(np.array(100.0)) == pytest.approx(1 / 12e4)


def test_component_bits_are_those_of_the_coder() -> None:
    tensors = random_adapter(0, widths=((400, 300), (300, 500)), ranks=(4, 2), size=0.5)
    spreads = Spreads.of(tensors)
    exponents = np.array([-18, -12])
    expected = spreads.component_bits(exponents)
    assert expected.shape == (2, 4)
    assert expected[1, 2:].tolist() == [SIDE_BITS, SIDE_BITS]  # nothing there to code
    offsets = block_offsets(tensors, (-18, -12))
    coded = 8 * len(encode(tensors, [ChunkPlan(0, (4, 2))], offsets)[0])
    assert expected[0].sum() + expected[1, :2].sum() == pytest.approx(coded, rel=0.03)


def test_kept_share_falls_with_the_step() -> None:
    spreads = Spreads.of(random_adapter(0, size=0.5))
    shares = spreads.kept_share(np.array([[-60, -60], [-12, -12], [20, 20]]))
    assert shares[0, 0].min() > 0.999
    assert (shares[1] <= shares[0]).all()
    assert shares[2].max() == 0.0


def test_an_adapter_without_components_is_refused() -> None:
    with pytest.raises(CodecError, match="no components"):
        Spreads.of(random_adapter(0, ranks=(0, 0)))
