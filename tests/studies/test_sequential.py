from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from rankcast.records import IntArray, Observation
from studies.sequential.stopping import IncrementalAllocator
from studies.sequential.world import DeliveryConfig, DeliveryWorld


@dataclass(frozen=True)
class Everything:
    """Sends full rank at once."""

    name: str = "everything"

    def allocate(self, observation: Observation, rng: np.random.Generator) -> IntArray:
        return np.full_like(observation.ranks, 8)


@pytest.mark.parametrize("steps", [1, 7])
def test_a_delivery_at_once_is_paid_for_once_and_lasts_by_hand(steps: int) -> None:
    # η of full rank is 10 at the mean of 5 dB: 0.3·10 is paid at the first step, and the loss left
    # is 0.25 for twenty expected steps, however many of them are simulated.
    world = DeliveryWorld.draw(0, DeliveryConfig(std_db=0.0))
    delivered = world.deliver(Everything(), np.full((steps, 2), 5.0), np.random.default_rng(0))
    assert delivered.values == pytest.approx([-3.0 - 0.25 * 20] * 2)
    assert delivered.mean_rank.tolist() == [8.0] * steps


@pytest.mark.parametrize("coupled", [False, True])
def test_every_policy_meets_the_same_links_and_none_exceeds_the_bound(coupled: bool) -> None:
    world = DeliveryWorld.draw(3, DeliveryConfig(coupled=coupled))
    paths = world.paths(np.random.default_rng(4), 6, 40)
    assert np.array_equal(paths, world.paths(np.random.default_rng(4), 6, 40))
    rng, gains = np.random.default_rng(0), world.utility.gains
    myopic = world.deliver(IncrementalAllocator(world.problem, gains), paths, rng).values
    stopping = IncrementalAllocator(world.problem, gains, world.rule().price_factor)
    waiting = world.deliver(stopping, paths, rng).values
    bound = world.clairvoyant(paths)
    assert (np.maximum(myopic, waiting) <= bound + 1e-9).all()
    closed = (waiting.mean() - myopic.mean()) / (bound.mean() - myopic.mean())
    assert closed > 0.8


def test_the_environment_pays_for_the_increase_and_its_trace_is_kept() -> None:
    world = DeliveryWorld.draw(0)
    env, trace = world.environment(n_envs=2, horizon=4, seed=0)
    env.reset(seed=0)
    full = np.full((2, 36), 8)
    costs = [env.step(full).link_cost for _ in range(3)]
    assert (costs[0] > 0).all()
    assert np.array_equal(costs[1:], np.zeros((2, 2)))
    assert trace.steps == 6
