"""The policy that all devices of a cell share: what it sees, what it bids, and how it learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.bands import busy, by_hand
from rankcast.band.airllm import REACH, BandPolicy, small_policy
from rankcast.band.bids import SIGHT, WEIGHTS, TunedIndex, look, serve
from rankcast.band.clairvoyant import shadow_prices
from rankcast.band.delivery import Delivery, Frame
from rankcast.band.ladder import Ladder


def file(bits: float, worth: float) -> Ladder:
    return Ladder(np.array([0.0, bits]), np.array([0.0, worth]))


def crowded_by_hand() -> Delivery:
    """Four slots of 10 bits; 20 bits for 3 and 40 bits for 4 are wanted."""
    return by_hand([file(20, 3), file(40, 4)], [(0, 4)] * 2, [10.0, 10.0], 4)


def column(frame: Frame, name: str) -> list[float]:
    return look(frame).features[0, :, SIGHT.index(name)].tolist()


def alone(which: str) -> BandPolicy:
    left_out = {"PPO": {"refinement": "none"}, "DDIM": {"proposal": "none"}}[which]
    return BandPolicy(replace(small_policy(), initial_log_std=-1.2, **left_out), seed=0)


def test_shadow_prices_by_hand() -> None:
    # Half of the 40 bits is left out, so a bit is worth 4/40 and a slot 10 times as much. The 20
    # bits are worth more, and pay what the slot costs.
    delivery = crowded_by_hand()
    foresight = shadow_prices(delivery.frame(), delivery.rates_bps)
    assert foresight.bit == pytest.approx(np.array([[0.1, 0.1]]))
    assert foresight.slot == pytest.approx(np.ones((4, 1)))


def test_shadow_prices_are_of_what_is_still_missing() -> None:
    # With 10 of its 20 bits a device needs one slot for a worth of 3, and three are left.
    delivery = crowded_by_hand()
    delivery.step(np.array([[1.0, 0.0]]))
    foresight = shadow_prices(delivery.frame(), delivery.rates_bps[1:])
    assert foresight.bid.shape == (3, 1, 2)
    assert foresight.bit[0, 1] == pytest.approx(0.1)
    # Two slots on, its last 10 bits are all that fits: 3 for the whole last slot.
    for _ in range(2):
        delivery.step(np.array([[0.0, 1.0]]))
    foresight = shadow_prices(delivery.frame(), delivery.rates_bps[3:])
    # The other could get 10 of its last 20 bits in that slot, worth 2 on its hull.
    assert 2.0 - 1e-9 <= foresight.slot[0, 0] <= 3.0 + 1e-9


def test_where_all_fits_and_outside_of_windows_a_slot_costs_nothing() -> None:
    delivery = by_hand([file(20, 1)] * 2, [(0, 9), (3, 9)], [10.0, 10.0], 9)
    foresight = shadow_prices(delivery.frame(), delivery.rates_bps)
    assert foresight.slot == pytest.approx(np.zeros((9, 1)), abs=1e-9)
    assert (foresight.bid[:3, 0, 1] == 0.0).all()


def test_what_a_device_sees_by_hand() -> None:
    frame = crowded_by_hand().frame()
    # 20 bits at 10 bit/s for 3: 1.5 a second, 2 s of the 4 s left; 40 bits for 4: 1 a second.
    # Only the first fits, so the price is 1 a second.
    assert column(frame, "log10 gain per second of the target") == pytest.approx(
        [np.log10(1.5), 0.0]
    )
    assert column(frame, "airtime of the target over time left") == pytest.approx([0.5, 1.0])
    assert column(frame, "target is in the plan") == [1.0, 0.0]
    assert column(frame, "log10 price per second") == pytest.approx([0.0, 0.0])
    assert column(frame, "log10 gain per second over the price") == pytest.approx(
        [np.log10(1.5), 0.0]
    )
    # Nothing has begun and no rate is off its mean, so five of the weights count.
    left, value, plan, need, slack = WEIGHTS[[1, 2, 3, 5, 6]]
    first = left * np.log10(4) + value * np.log10(1.5) + plan + need * np.log10(2) + slack * 0.5
    assert look(frame).index[0] == pytest.approx(
        [first, left * np.log10(4) + need * np.log10(4) + slack * 1.0]
    )


def test_who_is_to_come_is_a_number_and_nothing_else_of_them_is_seen() -> None:
    frame = by_hand([file(20, 3)] * 4, [(0, 4), (0, 4), (2, 9), (5, 9)], [10.0] * 4, 9).frame()
    assert column(frame, "share of devices still to come") == [0.5, 0.5, 0.0, 0.0]
    assert (look(frame).features[0, 2:] == 0.0).all()


def test_a_bid_decides_who_is_served() -> None:
    frame = crowded_by_hand().frame()
    sight = look(frame)
    behind = sight.index[0, 0] - sight.index[0, 1]
    assert behind > 0.0
    assert serve(frame, sight, np.array([0.0, behind - 0.1])).tolist() == [[1.0, 0.0]]
    assert serve(frame, sight, np.array([0.0, behind + 0.1])).tolist() == [[0.0, 1.0]]


def test_ddim_corrects_within_its_reach_and_alone_does_not_hear_the_proposal() -> None:
    seen = torch.randn(50, len(SIGHT), generator=torch.Generator().manual_seed(0))
    low, high = (torch.full((50, 1), x) for x in (-3.0, 3.0))
    both, ddim, ppo = BandPolicy(seed=3), alone("DDIM"), alone("PPO")
    for policy in (both, ddim):
        assert (policy.correction(seen, low) >= -REACH - 1e-6).all()
        assert (policy.correction(seen, high) <= 1e-6).all()
    assert np.abs(both.correction(seen, low) - both.correction(seen, high)).max() > 1e-3
    assert np.array_equal(ddim.correction(seen, low), ddim.correction(seen, high))
    assert ppo.correction(seen, high).tolist() == [3.0] * 50


def test_weights_that_are_saved_bid_the_same() -> None:
    delivery = busy(1)
    for _ in range(40):
        delivery.step(TunedIndex().shares(delivery.frame()))
    frame = delivery.frame()
    policy, other = BandPolicy(seed=1), BandPolicy(seed=2)
    before = other.correction(*_proposed(other, frame))
    other.load_state_dict(policy.state_dict())
    after = other.correction(*_proposed(other, frame))
    assert np.array_equal(after, policy.correction(*_proposed(policy, frame)))
    assert not np.array_equal(after, before)


@torch.no_grad()
def _proposed(policy: BandPolicy, frame: Frame) -> tuple[torch.Tensor, torch.Tensor]:
    seen = torch.tensor(look(frame).features[frame.active], dtype=torch.float32)
    return seen, policy.actor_critic.actor(seen)
