from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.tensors import seeded
from rankcast.errors import ConfigError
from rankcast.policy.rank_code import bin_width, decode, dequantise, encode


def test_decode_inverts_encode_on_every_rank() -> None:
    for r_max in range(1, 257):
        ranks = torch.arange(r_max + 1)
        code = encode(ranks, r_max)
        assert code.dtype == torch.float32
        assert code.abs().max() <= 1.0
        assert torch.equal(decode(code, r_max), ranks), r_max


@pytest.mark.parametrize("r_max", [1, 8, 63, 64, 128, 256])
def test_rounding_errors_of_float32_change_no_rank(r_max: int) -> None:
    ranks = torch.arange(r_max + 1)
    code = encode(ranks, r_max)
    for towards in (-2.0, 2.0):
        nudged = code
        for _ in range(100):
            nudged = torch.nextafter(nudged, torch.full_like(code, towards))
        assert torch.equal(decode(nudged, r_max), ranks)


def test_three_ranks_by_hand() -> None:
    # r_max = 2: bins [-1, -1/3), [-1/3, 1/3), [1/3, 1] with centres -2/3, 0, 2/3.
    assert bin_width(2) == pytest.approx(2 / 3)
    centres = encode(torch.tensor([0, 1, 2]), 2)
    torch.testing.assert_close(centres, torch.tensor([-2 / 3, 0.0, 2 / 3]))
    code = torch.tensor([-1.0, -0.34, -0.33, 0.33, 0.34, 1.0])
    assert decode(code, 2).tolist() == [0, 0, 1, 1, 2, 2]


def test_codes_out_of_range_are_clipped() -> None:
    assert decode(torch.tensor([-7.0, 7.0, float("inf")]), 8).tolist() == [0, 8, 8]


def test_nan_is_refused() -> None:
    with pytest.raises(ConfigError, match="NaN"):
        decode(torch.tensor([0.0, float("nan")]), 8)


@pytest.mark.parametrize(
    ("ranks", "r_max", "message"),
    [
        (torch.tensor([9]), 8, "0..8"),
        (torch.tensor([-1]), 8, "0..8"),
        (torch.tensor([1.0]), 8, "integers"),
        (torch.tensor([0]), 0, "r_max"),
    ],
)
def test_bad_ranks_are_refused(ranks: Tensor, r_max: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        encode(ranks, r_max)


def test_dequantise_spans_the_asked_share_of_the_bin() -> None:
    code = encode(torch.full((4000,), 3), 8)
    noise = dequantise(code, 8, seeded(), 0.5) - code
    assert noise.abs().max() <= bin_width(8) / 4
    assert noise.min() < -0.95 * bin_width(8) / 4
    assert noise.max() > 0.95 * bin_width(8) / 4


def test_dequantise_refuses_noise_wider_than_a_bin() -> None:
    with pytest.raises(ConfigError, match="width_fraction"):
        dequantise(torch.zeros(3), 8, torch.Generator(), 1.5)


r_maxes = st.integers(1, 256)


@st.composite
def rank_vectors(draw: st.DrawFn) -> tuple[Tensor, int]:
    r_max = draw(r_maxes)
    ranks = draw(st.lists(st.integers(0, r_max), min_size=1, max_size=40))
    return torch.tensor(ranks), r_max


@given(rank_vectors(), st.floats(0, 1), st.integers(0, 2**31))
@settings(max_examples=80)
def test_noise_inside_the_bin_never_changes_a_rank(
    vector: tuple[Tensor, int], width_fraction: float, seed: int
) -> None:
    ranks, r_max = vector
    noisy = dequantise(encode(ranks, r_max), r_max, seeded(seed), width_fraction)
    assert torch.equal(decode(noisy, r_max), ranks)


@given(r_maxes, st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=40))
@settings(max_examples=80)
def test_every_code_decodes_to_the_nearest_rank(r_max: int, code: list[float]) -> None:
    values = torch.tensor(code)
    ranks = decode(values, r_max)
    distance = (encode(ranks, r_max) - values.clamp(-1, 1)).abs()
    assert (distance <= bin_width(r_max) / 2 + 1e-6).all()


@given(r_maxes, st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=40))
@settings(max_examples=80)
def test_decoding_is_monotone(r_max: int, code: list[float]) -> None:
    ranks = decode(torch.tensor(sorted(code)), r_max)
    assert (ranks.diff() >= 0).all()
