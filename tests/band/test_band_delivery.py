from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.bands import LADDERS, busy, by_hand
from rankcast.band.cell import Cell, DemandConfig, Demands, draw_demands
from rankcast.band.delivery import Delivery, fill_by_priority
from rankcast.band.ladder import Ladder
from rankcast.errors import ConfigError, LinkError
from rankcast.link.processes import StaticSnr

TWO_CHUNKS = Ladder(np.array([0.0, 15.0, 30.0]), np.array([0.0, 2.0, 3.0]))


def test_a_chunk_counts_when_its_last_bit_arrives_by_hand() -> None:
    # 10 bits a slot: the first chunk (15 bits) is whole after two slots, the second after three.
    delivery = by_hand([TWO_CHUNKS], [(0, 4)], [10.0], 4)
    gains = [delivery.step(np.ones((1, 1))).gain[0, 0] for _ in range(3)]
    assert gains == [0.0, 2.0, 1.0]
    assert not delivery.frame().active.any()  # the file is complete


def test_what_comes_after_the_deadline_is_refused_and_a_part_of_a_chunk_is_worth_nothing() -> None:
    delivery = by_hand([TWO_CHUNKS], [(1, 3)], [10.0], 4)
    assert not delivery.frame().active[0, 0]  # not there yet
    with pytest.raises(ConfigError, match="not active"):
        delivery.step(np.ones((1, 1)))
    delivery.step(np.zeros((1, 1)))
    assert delivery.step(np.ones((1, 1))).gain[0, 0] == 0.0
    assert delivery.step(np.full((1, 1), 0.4)).gain[0, 0] == 0.0  # 14 of 15 bits
    assert not delivery.frame().active[0, 0]
    assert delivery.step(np.zeros((1, 1))).over
    with pytest.raises(ConfigError, match="over"):
        delivery.frame()


def test_reach_counts_this_slot_at_its_rate_and_later_ones_at_the_mean() -> None:
    delivery = by_hand([TWO_CHUNKS], [(0, 3)], [10.0], 4)
    delivery.rates_bps[0] = 4.0  # 4 now and 2 × 10 later: 15 bits are in reach, 30 are not
    assert delivery.frame().reachable[0, 0].tolist() == [False, True, False]
    delivery.rates_bps[0] = 10.0
    assert delivery.frame().reachable[0, 0].tolist() == [False, True, True]


@pytest.mark.parametrize(
    "shares", [np.array([[0.7, 0.7]]), np.array([[-0.1, 0.0]]), np.array([[np.nan, 0]]), np.ones(2)]
)
def test_shares_that_no_slot_has_are_refused(shares: np.ndarray) -> None:
    delivery = by_hand([TWO_CHUNKS] * 2, [(0, 4)] * 2, [10.0, 10.0], 4)
    with pytest.raises(ConfigError):
        delivery.step(shares)
    assert delivery.slot == 0


def test_the_highest_priority_is_served_first_by_hand() -> None:
    priority = np.array([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0]])
    wanted = np.array([[1.0, 0.25, 0.5], [0.5, 0.75, 1.0]])
    assert fill_by_priority(priority, wanted).tolist() == [[0.25, 0.25, 0.5], [0.5, 0.5, 0.0]]


@given(
    st.lists(st.tuples(st.floats(-9, 9), st.floats(0, 1)), min_size=1, max_size=6),
)
def test_filling_properties_the_slot_is_full_or_everybody_has_what_he_wants(
    devices: list[tuple[float, float]],
) -> None:
    priority, wanted = (np.array([[d[i] for d in devices]]) for i in (0, 1))
    shares = fill_by_priority(priority, wanted)
    assert (shares >= 0).all()
    assert (shares <= wanted + 1e-12).all()
    assert shares.sum() == pytest.approx(min(1.0, wanted.sum()))


def test_demands_are_drawn_from_the_seed_and_end_within_the_episode() -> None:
    cell, config = Cell(n_slots=100), DemandConfig(20, shortest_s=2.0, longest_s=10.0)
    one, same, other = (
        draw_demands(cell, LADDERS, config, np.random.default_rng(seed), 5) for seed in (0, 0, 1)
    )
    assert np.array_equal(one.arrival, same.arrival)
    assert not np.array_equal(one.arrival, other.arrival)
    window = one.deadline - one.arrival
    assert (window.min(), window.max(), one.deadline.max()) <= (100, 100, 100)
    assert window.min() >= 20
    assert one.arrival.min() >= 0
    assert {tuple(x) for x in one.worth.reshape(-1, 4)} == {
        tuple(np.pad(x.worth, (0, 4 - len(x.worth)), mode="edge")) for x in LADDERS
    }


def test_rates_follow_from_mean_and_fading_and_the_quantiles_from_its_distribution() -> None:
    cell = Cell(fading=StaticSnr(3.0), n_slots=2)
    rates = cell.rates_of(np.array([[1.0, 7.0]]), np.random.default_rng(0))
    assert rates == pytest.approx(np.tile(cell.rate_bps(np.array([4.0, 10.0])), (2, 1, 1)))
    # Rayleigh: |h|² is exponential, and its median is ln 2 (-1.59 dB); 4,096 samples, ± 0.3 dB.
    quantiles = Cell().fading_quantiles_db()
    assert quantiles[7:9].mean() == pytest.approx(10 * np.log10(np.log(2)), abs=0.3)
    assert (np.diff(quantiles) > 0).all()


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(LinkError, match="bandwidth"):
        Cell(bandwidth_hz=0.0)
    with pytest.raises(LinkError, match="slot"):
        Cell(n_slots=0)
    with pytest.raises(ConfigError, match="windows"):
        DemandConfig(shortest_s=3.0, longest_s=2.0)
    with pytest.raises(ConfigError, match="do not fit"):
        draw_demands(Cell(n_slots=10), LADDERS, DemandConfig(), np.random.default_rng(0))
    good = busy(0).demands
    with pytest.raises(ConfigError, match="window"):
        Demands(good.prefix_bits, good.worth, good.deadline, good.arrival, good.mean_snr_db)
    with pytest.raises(ConfigError, match="shape"):
        Delivery(Cell(n_slots=120), good, np.ones((3, 1, 1)))
