"""How the policy of a cell learns: prices of foresight, lessons of the denoiser, rounds of PPO."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.bands import busy
from rankcast.band.airllm import BandPolicy
from rankcast.band.bids import SIGHT
from studies.shared_band.learning import BandTrainer, Episode, Lesson, lesson, teach


@pytest.fixture(scope="module")
def episode() -> Episode:
    delivery = busy(0)
    return Episode.of(delivery.cell, delivery.demands, delivery.rates_bps)


@pytest.fixture(scope="module")
def taught(episode: Episode) -> Lesson:
    return lesson(episode, np.random.default_rng(0))


def test_a_lesson_says_who_was_next_with_foresight(taught: Lesson) -> None:
    assert taught.seen.shape[1] == len(SIGHT)
    assert len(taught.seen) == len(taught.coarse) == len(taught.code)
    assert taught.code.min() >= -1.0
    assert taught.code.max() == 1.0  # who bids most is at the price
    assert 0.05 < float((taught.code == 1.0).float().mean()) < 0.9


def test_the_denoiser_learns_its_lesson(taught: Lesson) -> None:
    policy = BandPolicy(seed=0)
    first, last = teach(policy, taught, 5, seed=0), teach(policy, taught, 150, seed=0)
    assert last < 0.7 * first
    # Who is at the price gets the higher bid.
    corrections = policy.correction(taught.seen, taught.coarse)
    near, far = taught.code[:, 0] > 0.9, taught.code[:, 0] < -0.5
    assert corrections[near.numpy()].mean() > corrections[far.numpy()].mean() + 1.0


def test_a_round_of_ppo_is_repeatable_and_leaves_the_denoiser_alone(episode: Episode) -> None:
    def after(seed: int) -> tuple[float, BandPolicy]:
        policy = BandPolicy(seed=0)
        return BandTrainer(policy, seed).improve(episode), policy

    (worth, policy), (again, same), (_, other) = after(1), after(1), after(2)
    assert worth == again > 0.0
    weights = [p.actor_critic.actor.state_dict()["0.weight"] for p in (policy, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    fresh = BandPolicy(seed=0).denoiser.state_dict()
    assert all(torch.equal(fresh[name], x) for name, x in policy.denoiser.state_dict().items())
