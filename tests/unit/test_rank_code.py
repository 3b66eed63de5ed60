from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rankcast.errors import ConfigError
from rankcast.policy.rank_code import bin_width, decode, dequantise, encode


@pytest.mark.parametrize("r_max", range(1, 257))
def test_decode_inverts_encode_on_every_rank(r_max: int) -> None:
    ranks = torch.arange(r_max + 1)
    code = encode(ranks, r_max)
    assert code.dtype == torch.float32
    assert code.abs().max() <= 1.0
    assert torch.equal(decode(code, r_max), ranks)


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
    noise = dequantise(code, 8, torch.Generator().manual_seed(0), 0.5) - code
    assert noise.abs().max() <= bin_width(8) / 4
    assert noise.min() < -0.95 * bin_width(8) / 4
    assert noise.max() > 0.95 * bin_width(8) / 4


def test_dequantise_refuses_noise_wider_than_a_bin() -> None:
    with pytest.raises(ConfigError, match="width_fraction"):
        dequantise(torch.zeros(3), 8, torch.Generator(), 1.5)
