"""What every scheduler must do, whatever it prefers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from helpers.bands import busy, by_hand
from rankcast.band.airllm import AirLLMScheduler, BandPolicy, small_policy
from rankcast.band.bids import TunedIndex
from rankcast.band.clairvoyant import clairvoyant_bound
from rankcast.band.delivery import Delivery, Frame, Scheduler
from rankcast.band.ladder import Ladder
from rankcast.band.lagrangian import Lagrangian
from rankcast.band.schedulers import EarliestDeadlineFirst, GreedyGain, ProportionalFair

SCHEDULERS = (
    ProportionalFair(),
    EarliestDeadlineFirst(),
    GreedyGain(),
    Lagrangian(),
    TunedIndex(),
    # What every policy must keep to does not depend on what it has learned.
    AirLLMScheduler(BandPolicy(seed=1)),
    AirLLMScheduler(BandPolicy(replace(small_policy(), refinement="none"), seed=1)),
    AirLLMScheduler(BandPolicy(replace(small_policy(), proposal="none"), seed=1)),
)
every = pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: s.name)
ONE = Ladder(np.array([0.0, 20.0]), np.array([0.0, 1.0]))


@every
def test_it_is_a_scheduler_with_a_name_of_its_own(scheduler: Scheduler) -> None:
    assert isinstance(scheduler, Scheduler)
    assert [s.name for s in SCHEDULERS].count(scheduler.name) == 1


@every
@pytest.mark.parametrize("seed", [0, 1])
def test_no_slot_is_overbooked_and_nobody_exceeds_the_bound(
    scheduler: Scheduler, seed: int
) -> None:
    delivery = busy(seed)
    worth = delivery.run(scheduler)  # `step` refuses shares that no slot has
    bound = clairvoyant_bound(delivery.cell, delivery.demands, delivery.rates_bps)
    assert (worth.sum(axis=1) <= bound + 1e-6).all()
    assert worth.sum() > 0.3 * bound.sum()


@every
def test_the_same_frame_gives_the_same_shares_and_is_left_as_it_is(scheduler: Scheduler) -> None:
    frame = _loaded(busy(2))
    before = frame.received_bits.copy()
    assert np.array_equal(scheduler.shares(frame), scheduler.shares(frame))
    assert np.array_equal(before, frame.received_bits)


@every
def test_cells_do_not_see_one_another(scheduler: Scheduler) -> None:
    frame = _loaded(busy(3))
    together = scheduler.shares(frame)
    for c in range(3):
        assert scheduler.shares(_only(frame, c)) == pytest.approx(together[[c]])


@every
def test_who_has_not_arrived_does_not_change_who_is_served(scheduler: Scheduler) -> None:
    frame = _loaded(busy(4))
    later = frame.demands.arrival > frame.slot
    assert later.any()
    changed = replace(frame.demands, worth=np.where(later[..., None], 9.0, frame.demands.worth))
    assert np.array_equal(
        scheduler.shares(frame), scheduler.shares(replace(frame, demands=changed))
    )


@every
def test_a_chunk_that_cannot_arrive_gets_no_airtime(scheduler: Scheduler) -> None:
    # Both need 20 bits within two slots: one gets 8 bits a slot, the other 10.
    frame = by_hand([ONE, ONE], [(0, 2), (0, 2)], [8.0, 10.0], 2).frame()
    assert scheduler.shares(frame).tolist() == [[0.0, 1.0]]


@every
def test_nobody_gets_more_airtime_than_the_rest_of_the_file_takes(scheduler: Scheduler) -> None:
    # 20 bits at 80 bit/s: a quarter of the slot, and the other device the next quarter.
    frame = by_hand([ONE, ONE], [(0, 2), (0, 2)], [80.0, 80.0], 2).frame()
    assert scheduler.shares(frame).tolist() == [[0.25, 0.25]]


@every
def test_with_airtime_for_all_everybody_gets_the_whole_file(scheduler: Scheduler) -> None:
    delivery = by_hand([ONE] * 3, [(0, 9), (1, 9), (2, 9)], [10.0] * 3, 9)
    assert delivery.run(scheduler).tolist() == [[1.0, 1.0, 1.0]]


@every
def test_an_empty_cell_is_left_idle(scheduler: Scheduler) -> None:
    frame = by_hand([ONE], [(1, 3)], [10.0], 3).frame()
    assert scheduler.shares(frame).tolist() == [[0.0]]


def _loaded(delivery: Delivery) -> Frame:
    for _ in range(40):
        delivery.step(ProportionalFair().shares(delivery.frame()))
    return delivery.frame()


def _only(frame: Frame, c: int) -> Frame:
    demands = type(frame.demands)(
        *(getattr(frame.demands, name)[[c]] for name in frame.demands.__dataclass_fields__)
    )
    arrays = (frame.received_bits, frame.rate_bps, frame.rate_quantiles_bps)
    return Frame(frame.slot, frame.slot_s, demands, *(x[[c]] for x in arrays))
