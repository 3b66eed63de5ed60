"""Who is served, in cases that fit on a hand; and the bound."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.bands import busy, by_hand
from rankcast.band.clairvoyant import clairvoyant_bound
from rankcast.band.delivery import Delivery, Frame, Scheduler
from rankcast.band.ladder import Ladder
from rankcast.band.lagrangian import Lagrangian, Steps, airtime_plan, hull_steps, sweep
from rankcast.band.schedulers import EarliestDeadlineFirst, GreedyGain, ProportionalFair
from rankcast.errors import ConfigError


def file(bits: float, worth: float) -> Ladder:
    return Ladder(np.array([0.0, bits]), np.array([0.0, worth]))


def bound_of(delivery: Delivery) -> float:
    [bound] = clairvoyant_bound(delivery.cell, delivery.demands, delivery.rates_bps)
    return bound


def first_served(scheduler: Scheduler, frame: Frame) -> int:
    return int(scheduler.shares(frame)[0].argmax())


def test_proportional_fair_serves_who_has_had_little_for_its_rate() -> None:
    # After one slot device 1 has 20 bits; at equal rates device 0, with none, is next.
    delivery = by_hand([file(90, 1)] * 2, [(0, 20)] * 2, [20.0, 20.0], 20)
    delivery.step(np.array([[0.0, 1.0]]))
    assert first_served(ProportionalFair(), delivery.frame()) == 0
    # Throughputs so far: 20/2 and (20 + 20)/2, so that device 1 is next from twice the rate on.
    delivery.rates_bps[1] = [[20.0, 39.0]]
    assert first_served(ProportionalFair(), delivery.frame()) == 0
    delivery.rates_bps[1] = [[20.0, 41.0]]
    assert first_served(ProportionalFair(), delivery.frame()) == 1


def test_earliest_deadline_serves_who_has_least_time() -> None:
    frame = by_hand([file(20, 1), file(20, 9)], [(0, 5), (0, 9)], [10.0, 90.0], 9).frame()
    assert first_served(EarliestDeadlineFirst(), frame) == 0


def test_greedy_serves_the_gain_of_a_second() -> None:
    # 1 for 2 s, or 3 for 3 s.
    frame = by_hand([file(20, 1), file(30, 3)], [(0, 5), (0, 9)], [10.0, 10.0], 9).frame()
    assert first_served(GreedyGain(), frame) == 1


def test_the_lagrangian_takes_both_where_greedy_misses_the_early_deadline() -> None:
    # Two slots each. Greedy begins with the one worth more and has none left for the early one.
    def delivery() -> Delivery:
        return by_hand([file(20, 1), file(20, 2)], [(0, 2), (0, 4)], [10.0, 10.0], 4)

    assert delivery().run(GreedyGain()).tolist() == [[0.0, 2.0]]
    assert delivery().run(Lagrangian()).tolist() == [[1.0, 2.0]]
    assert bound_of(delivery()) == pytest.approx(3.0)


def test_in_an_overload_the_lagrangian_drops_what_is_worth_least() -> None:
    # Six slots are wanted before slot 4: the 2-slot file that is worth 1 has no room.
    delivery = by_hand([file(20, 1), file(20, 3), file(20, 2)], [(0, 4)] * 3, [10.0, 10.0, 10.0], 4)
    plan = airtime_plan(delivery.frame())
    assert plan.target.tolist() == [[0, 1, 1]]
    assert plan.price[0] == pytest.approx(0.5)  # 1 for two seconds
    assert delivery.run(Lagrangian()).tolist() == [[0.0, 3.0, 2.0]]


def test_the_fading_of_a_device_decides_when_it_is_served() -> None:
    # Both need one slot of two; device 1 is at four times its mean, so it goes now.
    delivery = by_hand([file(10, 1), file(10, 1)], [(0, 2)] * 2, [10.0, 10.0], 2)
    delivery.rates_bps[0] = [[10.0, 40.0]]
    assert Lagrangian().shares(delivery.frame())[0] == pytest.approx([0.75, 0.25])


def test_hull_steps_go_from_the_steepest_on_by_hand() -> None:
    airtime_s = np.array([[[0.0, 1, 2, 4]]])
    steps = hull_steps(airtime_s, np.array([[[0.0, 1, 4, 5]]]))
    assert steps.gain_per_s[0, 0].tolist() == [2.0, 0.5, 0.0]
    assert steps.airtime_s[0, 0].tolist() == [2.0, 2.0, 0.0]
    assert steps.prefix[0, 0].tolist() == [2, 3, 3]


def test_a_step_without_room_closes_its_device_and_sets_the_price() -> None:
    # 3 s of room. Device 0: 2 s at 5, then 2 s at 4 (no room, price 4), then nothing of it.
    # Device 1, due at 9 s: its 5 s at 1 fit after the 2 s before.
    steps = Steps(
        np.array([[[5.0, 4.0, 3.0], [1.0, 0.0, 0.0]]]),
        np.array([[[2.0, 2.0, 1.0], [5.0, 0.0, 0.0]]]),
        np.array([[[1, 2, 3], [2, 2, 2]]]),
    )
    plan = sweep(steps, np.array([[3.0, 9.0]]))
    assert plan.target.tolist() == [[1, 2]]
    assert plan.price.tolist() == [4.0]


def test_where_all_fits_airtime_has_no_price() -> None:
    frame = by_hand([file(20, 1)] * 2, [(0, 9)] * 2, [10.0, 10.0], 9).frame()
    assert airtime_plan(frame).price.tolist() == [0.0]


def test_the_bound_may_divide_a_file_and_counts_each_slot_once_by_hand() -> None:
    # Four slots, 60 bits wanted at 10 a slot: 20 bits for 3, and half of the 40 bits for 4.
    delivery = by_hand([file(20, 3), file(40, 4)], [(0, 4)] * 2, [10.0, 10.0], 4)
    assert bound_of(delivery) == pytest.approx(5.0)


def test_the_bound_knows_when_the_link_will_be_good() -> None:
    delivery = by_hand([file(30, 1)], [(0, 3)], [10.0], 3)
    delivery.rates_bps[1] = 0.0
    delivery.rates_bps[2] = 40.0
    assert bound_of(delivery) == pytest.approx(1.0)
    delivery.rates_bps[2] = 5.0
    assert bound_of(delivery) == pytest.approx(0.5)  # 15 of 30 bits


def test_the_bound_is_no_bound_if_a_slot_could_be_used_twice() -> None:
    """The contract's comparison can fail: half the rates make a bound that schedulers exceed."""
    delivery = busy(0)
    lower = clairvoyant_bound(delivery.cell, delivery.demands, delivery.rates_bps / 4)
    assert (delivery.run(Lagrangian()).sum(axis=1) > lower).any()
    with pytest.raises(ConfigError, match="shape"):
        clairvoyant_bound(delivery.cell, delivery.demands, delivery.rates_bps[1:])
