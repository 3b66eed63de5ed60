"""Costs of plans by hand, the paper's counts, components as coded, and bad input."""

import dataclasses
import math

import numpy as np
import pytest

from rankcast.errors import ConfigError, LinkError
from rankcast.link.capacity import Awgn
from rankcast.link.costs import LinkCostModel, budget_bits, params_per_rank
from rankcast.records import AdapterLayout, LinkState, Projection

THREE_TO_ONE_DB = 10.0 * math.log10(3.0)  # AWGN carries exactly 2 bit/s/Hz
EVEN = LinkCostModel(np.array([[10] * 5, [20] * 5]), 8, Awgn())
CODED = LinkCostModel(np.array([[70, 50, 0], [90, 20, 10]]), 1.0, Awgn(), overhead_bits=100.0)


def link_of(snr_db: float, bandwidth_hz: float, deadline_s: float, size: int = 1) -> LinkState:
    return LinkState(np.full(size, snr_db), np.full(size, bandwidth_hz), np.full(size, deadline_s))


def test_model_by_hand() -> None:
    # 2 bit/s/Hz · 1 kHz · 0.5 s = 1,000 bits.
    link = link_of(THREE_TO_ONE_DB, 1e3, 0.5, size=2)
    assert EVEN.component_bits[:, 0].tolist() == [80.0, 160.0]
    assert EVEN.full_bits == 1200.0
    assert EVEN.rate_bps(link) == pytest.approx([2e3, 2e3])
    assert EVEN.budget_bits(link) == pytest.approx([1e3, 1e3])
    assert EVEN.component_costs(link)[:, :, 4] == pytest.approx(np.array([[0.08, 0.16]] * 2))
    ranks = np.array([[1, 1], [5, 4]])
    assert EVEN.link_cost(ranks, link) == pytest.approx([0.24, 1.04])


def test_coded_components_by_hand() -> None:
    link = link_of(THREE_TO_ONE_DB, 1e3, 0.5)
    ranks = np.array([[0, 0], [1, 2], [3, 3]])
    assert CODED.payload_bits(ranks).tolist() == [100.0, 280.0, 340.0]
    assert CODED.payload_units(ranks).tolist() == [0, 180, 240]
    assert CODED.full_bits == 340.0
    assert CODED.link_cost(ranks[1:2], link) == pytest.approx([0.28])
    expected = np.array([[0.07, 0.05, 0.0], [0.09, 0.02, 0.01]])
    assert CODED.component_costs(link)[0] == pytest.approx(expected)


def test_only_what_the_receiver_lacks_is_paid_for() -> None:
    held, ranks = np.array([[1, 0]]), np.array([[2, 3]])
    assert CODED.payload_bits(ranks, held).tolist() == [170.0]
    assert CODED.link_cost(ranks, link_of(THREE_TO_ONE_DB, 1e3, 0.5), held) == pytest.approx([0.17])
    assert EVEN.payload_bits(ranks, held).tolist() == [80.0 + 480.0]


@pytest.mark.parametrize(
    ("bits", "whole"), [(100.0, 0), (99.5, -1), (100.9, 0), (341.0, 241), (np.inf, np.inf)]
)
def test_whole_units_leave_room_for_the_overhead(bits: float, whole: float) -> None:
    assert CODED.whole_units(np.array([bits])).tolist() == [whole]


def test_whole_units_are_exact_where_bits_are_fractions() -> None:
    costs = LinkCostModel(np.array([[3]]), 0.1, Awgn())
    # Three tenths are more than 0.3 in binary: what "fits" means for a plan counts here, too.
    fits = costs.payload_bits(np.array([[1]]))[0] <= 0.3
    assert (costs.whole_units(np.array([0.3]))[0] >= 3) == fits


def test_plan_by_hand() -> None:
    link = link_of(THREE_TO_ONE_DB, 1e3, 0.5)
    plan = EVEN.plan(np.array([5, 3]), link)
    assert plan.ranks.tolist() == [5, 3]
    assert plan.payload_bits == 880.0
    assert plan.rate_bps == pytest.approx(2e3)
    assert plan.transmission_time_s == pytest.approx(0.44)
    assert plan.link_cost == pytest.approx(0.88)
    assert plan.arrives
    assert not EVEN.plan(np.array([5, 4]), link).arrives
    assert all(type(getattr(plan, f.name)) is float for f in dataclasses.fields(plan)[1:])


def test_plan_keeps_its_ranks_when_the_caller_reuses_the_array() -> None:
    ranks = np.array([1, 2])
    plan = EVEN.plan(ranks, link_of(0.0, 1e3, 1.0))
    ranks[:] = 0
    assert plan.ranks.tolist() == [1, 2]


def test_model_for_layout_uses_the_accounting() -> None:
    layout = AdapterLayout((Projection("q", 0, "q", 8, 8), Projection("fc1", 0, "fc1", 8, 32)), 3)
    model = LinkCostModel.for_layout(layout, Awgn(), "paper", 16)
    assert model.component_bits.tolist() == [[256.0] * 3] * 2
    exact = LinkCostModel.for_layout(layout, Awgn())
    assert exact.component_units.tolist() == [[17] * 3, [41] * 3]


def test_costs_cannot_be_changed_from_outside() -> None:
    units = np.array([[10, 20]])
    model = LinkCostModel(units, 8, Awgn())
    units[:] = 0
    assert model.component_units.tolist() == [[10, 20]]
    with pytest.raises(ValueError, match="read-only"):
        model.component_units[0, 0] = 1


@pytest.mark.parametrize("units", [[], [[]], [10, 20], [[0, 0], [1, 2]], [[-1, 3]], [[0.5]]])
def test_bad_units(units: list) -> None:
    with pytest.raises(ConfigError, match="component_units"):
        LinkCostModel(np.array(units), 8, Awgn())


@pytest.mark.parametrize("bits_per_unit", [0.0, -1.0, math.nan, math.inf])
def test_bad_bits_per_unit(bits_per_unit: float) -> None:
    with pytest.raises(ConfigError, match="positive"):
        LinkCostModel(np.array([[1]]), bits_per_unit, Awgn())


@pytest.mark.parametrize("overhead", [-1.0, math.nan, math.inf])
def test_bad_overhead(overhead: float) -> None:
    with pytest.raises(ConfigError, match="overhead_bits"):
        LinkCostModel(np.array([[1]]), 1.0, Awgn(), overhead)


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (np.array([1.0, 2.0]), "integers"),
        (np.array([1, -1]), "at least 0"),
        (np.array([1, 4]), "at most 3"),
        (np.array([1, 2, 3]), "last axis"),
        (np.array(1), "last axis"),
    ],
)
def test_bad_ranks(ranks: np.ndarray, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CODED.payload_bits(ranks)


def test_batch_mismatch() -> None:
    link = link_of(0.0, 1e3, 1.0, size=2)
    with pytest.raises(ConfigError, match="shape"):
        EVEN.link_cost(np.array([[1, 1]] * 3), link)
    with pytest.raises(ConfigError, match="shape"):
        EVEN.link_cost(np.array([1, 1]), link)
    with pytest.raises(ConfigError, match="one link"):
        EVEN.plan(np.array([1, 1]), link)
    with pytest.raises(ConfigError, match="one rank vector"):
        EVEN.plan(np.array([[1, 1]]), link_of(0.0, 1e3, 1.0))


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


@pytest.mark.parametrize(("rank", "count"), [(8, 4_718_592), (16, 9_437_184), (32, 18_874_368)])
def test_table_iv_counts_of_opt_1_3b(rank: int, count: int) -> None:
    layout = opt_layout(24, 2048)
    ranks = np.full(layout.n_projections, rank)
    paper = LinkCostModel.for_layout(layout, Awgn(), "paper")
    assert paper.payload_units(ranks) == count
    # Eq. 6 as written adds one singular value for each of the 144 projections and each rank.
    with_singular_values = LinkCostModel.for_layout(layout, Awgn(), "paper_with_singular_values")
    assert with_singular_values.payload_units(ranks) == count + 144 * rank


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
    units = np.array([[10] * 3, [20] * 3, [30] * 3])
    ranks = np.array([[1, 2, 3], [0, 0, 1]])
    assert LinkCostModel(units, 16, Awgn()).payload_units(ranks).tolist() == [140, 30]
    assert LinkCostModel(units, 16, Awgn()).payload_bits(ranks).tolist() == [2240.0, 480.0]
    assert LinkCostModel(units, 4.5, Awgn()).payload_bits(ranks[0]) == 630.0


def test_payload_keeps_leading_axes_and_does_not_overflow() -> None:
    ranks = np.full((2, 5, 3), 255, dtype=np.uint8)
    costs = LinkCostModel(np.full((3, 255), 10**9), 1.0, Awgn())
    assert costs.payload_units(ranks).tolist() == [[765 * 10**9] * 5] * 2


def test_budget_by_hand() -> None:
    assert budget_bits(4e6, 2.0) == 8e6
    assert budget_bits(np.array([1e6, 4e6]), np.array([1.0, 0.5])).tolist() == [1e6, 2e6]


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_bad_rate_and_deadline(bad: float) -> None:
    with pytest.raises(LinkError, match="Rate"):
        budget_bits(bad, 1.0)
    with pytest.raises(LinkError, match="Deadline"):
        budget_bits(1.0, bad)
