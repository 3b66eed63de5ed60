"""Bits, seconds and η by hand, the paper's counts, and bad input."""

import math

import numpy as np
import pytest

from rankcast.errors import ConfigError, LinkError
from rankcast.link.payload import (
    budget_bits,
    link_cost,
    params_per_rank,
    payload_bits,
    payload_params,
    transmission_time_s,
)
from rankcast.records import AdapterLayout, LinkState, Projection

THREE_TO_ONE_DB = 10.0 * math.log10(3.0)  # AWGN carries exactly 2 bit/s/Hz


def opt_layout(n_layers: int, d_h: int, r_max: int = 64) -> AdapterLayout:
    widths = {
        **dict.fromkeys(("q", "k", "v", "o"), (d_h, d_h)),
        "fc1": (d_h, 4 * d_h),
        "fc2": (4 * d_h, d_h),
    }
    return AdapterLayout(
        tuple(
            Projection(f"layers.{layer}.{kind}", layer, kind, *widths[kind])
            for layer in range(n_layers)
            for kind in widths
        ),
        r_max,
    )


def layout_of(*shapes: tuple[int, str, int, int]) -> AdapterLayout:
    return AdapterLayout(tuple(Projection(f"{s[0]}.{s[1]}", *s) for s in shapes), 8)


def link_of(snr_db: float, bandwidth_hz: float, deadline_s: float, size: int = 1) -> LinkState:
    return LinkState(np.full(size, snr_db), np.full(size, bandwidth_hz), np.full(size, deadline_s))


@pytest.mark.parametrize(("rank", "count"), [(8, 4_718_592), (16, 9_437_184), (32, 18_874_368)])
def test_table_iv_counts_of_opt_1_3b(rank: int, count: int) -> None:
    layout = opt_layout(24, 2048)
    ranks = np.full(layout.n_projections, rank)
    assert payload_params(ranks, params_per_rank(layout, "paper")) == count
    # Eq. 6 as written adds one singular value for each of the 144 projections and each rank.
    with_singular_values = params_per_rank(layout, "paper_with_singular_values")
    assert payload_params(ranks, with_singular_values) == count + 144 * rank


def test_exact_accounting_counts_true_widths() -> None:
    # Four square projections of 2·8 + 1 = 17, and two of 8 + 32 + 1 = 41.
    counts = params_per_rank(opt_layout(2, 8))
    assert counts.tolist() == [17, 17, 17, 17, 41, 41] * 2
    assert counts.dtype == np.int64


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        # The query decides, whatever the rest looks like.
        (layout_of((0, "fc1", 32, 64), (0, "q", 8, 16), (0, "fc2", 64, 32)), [16, 16, 16]),
        # No query: 8 appears five times.
        (
            layout_of((0, "qkv", 8, 24), (0, "o", 8, 8), (0, "fc1", 8, 32), (0, "fc2", 32, 8)),
            [16] * 4,
        ),
        # A tie goes to the narrower side, on the way up and on the way down.
        (layout_of((0, "fc1", 8, 32)), [16]),
        (layout_of((0, "fc2", 32, 8)), [16]),
        # Each layer has its own d_h.
        (layout_of((0, "q", 8, 8), (1, "q", 4, 4), (0, "v", 8, 8)), [16, 8, 16]),
    ],
)
def test_hidden_width(layout: AdapterLayout, expected: list[int]) -> None:
    assert params_per_rank(layout, "paper").tolist() == expected


def test_unknown_accounting_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'paper'"):
        params_per_rank(opt_layout(1, 8), "papr")  # type: ignore[arg-type]


def test_accounting_does_not_share_memory_with_the_layout() -> None:
    layout = opt_layout(1, 8)
    params_per_rank(layout)[:] = 0
    assert layout.params_per_rank[0] == 17


def test_payload_by_hand() -> None:
    counts = np.array([10, 20, 30])
    ranks = np.array([[1, 2, 3], [0, 0, 1]])
    assert payload_params(ranks, counts).tolist() == [140, 30]
    assert payload_bits(ranks, counts, 16).tolist() == [2240.0, 480.0]
    assert payload_bits(ranks[0], counts, 4.5) == 630.0
    assert payload_bits(ranks[0], counts) == 140 * 32


def test_payload_keeps_leading_axes_and_does_not_overflow() -> None:
    ranks = np.full((2, 5, 3), 255, dtype=np.uint8)
    assert payload_params(ranks, np.array([10**9] * 3)).tolist() == [[765 * 10**9] * 5] * 2


def test_time_budget_and_cost_by_hand() -> None:
    assert transmission_time_s(2e6, 4e6) == 0.5
    assert budget_bits(4e6, 2.0) == 8e6
    assert link_cost(2e6, 4e6, 2.0) == 0.25
    bits = np.array([0.0, 2e6])
    assert transmission_time_s(bits, 4e6).tolist() == [0.0, 0.5]
    assert link_cost(bits, np.array([1e6, 4e6]), np.array([1.0, 0.5])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (np.array([1.0, 2.0]), "integers"),
        (np.array([1, -1]), "at least 0"),
        (np.array([1, 2, 3]), "last axis"),
        (np.array(1), "last axis"),
    ],
)
def test_bad_ranks(ranks: np.ndarray, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        payload_params(ranks, np.array([10, 20]))


@pytest.mark.parametrize("bits_per_param", [0.0, -1.0, math.nan, math.inf])
def test_bad_bits_per_param(bits_per_param: float) -> None:
    with pytest.raises(ConfigError, match="bits_per_param"):
        payload_bits(np.array([1]), np.array([1]), bits_per_param)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_bad_rate_and_deadline(bad: float) -> None:
    with pytest.raises(LinkError, match="Rate"):
        transmission_time_s(1.0, bad)
    with pytest.raises(LinkError, match="Rate"):
        budget_bits(bad, 1.0)
    with pytest.raises(LinkError, match="Deadline"):
        link_cost(1.0, 1.0, bad)


@pytest.mark.parametrize("bits", [-1.0, math.nan, math.inf])
def test_bad_bits(bits: float) -> None:
    with pytest.raises(LinkError, match="Payload"):
        transmission_time_s(bits, 1.0)
    with pytest.raises(LinkError, match="Payload"):
        link_cost(bits, 1.0, 1.0)
