from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from helpers.tensors import normal, seeded
from rankcast.config.policy import PpoConfig
from rankcast.errors import ConfigError
from rankcast.policy.ppo import (
    ActorCritic,
    RolloutBatch,
    clipped_surrogate,
    gae,
    ppo_update,
    standardise,
    value_loss,
)

# Three steps, γ = 0.5, ζ = 0.5: δ = R + 0.5·V' - V and a trace of 0.25.
REWARDS = torch.tensor([[1.0], [2.0], [3.0]])
VALUES = torch.tensor([[0.5], [1.0], [1.5]])
NEXT_VALUES = torch.tensor([[1.0], [1.5], [2.0]])
NEVER = torch.zeros(3, 1, dtype=torch.bool)
AT_1 = torch.tensor([[False], [True], [False]])


def run(
    terminated: Tensor, truncated: Tensor, next_values: Tensor = NEXT_VALUES
) -> tuple[list[float], list[float]]:
    result = gae(REWARDS, VALUES, next_values, terminated, truncated, discount=0.5, decay=0.5)
    return result.advantages.flatten().tolist(), result.returns.flatten().tolist()


def test_three_steps_by_hand() -> None:
    # δ = (1 + 0.5 - 0.5, 2 + 0.75 - 1, 3 + 1 - 1.5) = (1, 1.75, 2.5)
    # Â_2 = 2.5; Â_1 = 1.75 + 0.25·2.5 = 2.375; Â_0 = 1 + 0.25·2.375 = 1.59375
    advantages, returns = run(NEVER, NEVER)
    assert advantages == [1.59375, 2.375, 2.5]
    assert returns == [2.09375, 3.375, 4.0]


def test_termination_bootstraps_nothing_and_stops_the_trace() -> None:
    # δ_1 = 2 - 1 = 1, and nothing of step 2 reaches it.
    advantages, _ = run(AT_1, NEVER)
    assert advantages == [1.0 + 0.25, 1.0, 2.5]


def test_truncation_bootstraps_the_final_observation_and_stops_the_trace() -> None:
    # The final observation is worth 4 here: δ_1 = 2 + 0.5·4 - 1 = 3.
    next_values = torch.tensor([[1.0], [4.0], [2.0]])
    advantages, _ = run(NEVER, AT_1, next_values)
    assert advantages == [1.0 + 0.25 * 3.0, 3.0, 2.5]


def test_a_step_that_is_both_counts_as_terminated() -> None:
    assert run(AT_1, AT_1) == run(AT_1, NEVER)


def test_the_value_after_a_terminal_state_is_never_read() -> None:
    next_values = torch.tensor([[1.0], [float("nan")], [2.0]])
    advantages, _ = run(AT_1, NEVER, next_values)
    assert all(math.isfinite(a) for a in advantages)


def test_decay_1_gives_the_discounted_return() -> None:
    last = torch.tensor([[False], [False], [True]])
    result = gae(REWARDS, VALUES, NEXT_VALUES, last, NEVER, discount=0.5, decay=1.0)
    # The values telescope away only if V' is the next V, as it is here.
    assert result.returns.flatten().tolist() == [1 + 0.5 * 2 + 0.25 * 3, 2 + 0.5 * 3, 3.0]


def test_environments_do_not_mix() -> None:
    rewards, values, after = normal(5, 3), normal(5, 3, seed=1), normal(5, 3, seed=2)
    terminated = torch.zeros(5, 3, dtype=torch.bool)
    terminated[2, 1] = True
    none = torch.zeros_like(terminated)
    together = gae(rewards, values, after, terminated, none).advantages
    for b in range(3):
        column = slice(b, b + 1)
        alone = gae(
            rewards[:, column], values[:, column], after[:, column],
            terminated[:, column], none[:, column],
        ).advantages  # fmt: skip
        torch.testing.assert_close(together[:, column], alone)


def test_gae_refuses_bad_input() -> None:
    with pytest.raises(ConfigError, match="shape"):
        gae(REWARDS, VALUES[:2], NEXT_VALUES, NEVER, NEVER)
    with pytest.raises(ConfigError, match="γ"):
        gae(REWARDS, VALUES, NEXT_VALUES, NEVER, NEVER, discount=1.5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (1.5, 2.0, 2.4, 0.0),  # good and already likelier: held at 1.2·2
        (0.5, 2.0, 1.0, 2.0),  # good but less likely: full gradient
        (1.5, -2.0, -3.0, -2.0),  # bad and likelier: full gradient
        (0.5, -2.0, -1.6, 0.0),  # bad and already less likely: held at 0.8·(-2)
        (1.1, 2.0, 2.2, 2.0),  # inside the range nothing is clipped
    ],
)
def test_clipping_in_every_case_of_signs(
    ratio: float, advantage: float, expected: float, slope: float
) -> None:
    r = torch.tensor([ratio], requires_grad=True)
    j = clipped_surrogate(r, torch.tensor([advantage]), 0.2)
    j.sum().backward()
    assert j.item() == pytest.approx(expected)
    assert r.grad.item() == pytest.approx(slope)


def test_value_loss_by_hand() -> None:
    assert value_loss(torch.tensor([1.0]), torch.tensor([3.0])).item() == 4.0


def test_standardise() -> None:
    scaled = standardise(torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(scaled, torch.tensor([-1.0, 1.0]))
    assert standardise(torch.tensor([5.0])).tolist() == [5.0]


def test_log_prob_and_entropy_agree_with_torch_distributions() -> None:
    agent = ActorCritic(3, 4, seeded(), hidden=8)
    with torch.no_grad():
        agent.log_std.copy_(torch.tensor([-1.0, 0.0, 0.5, 1.0]))
    obs, action = normal(6, 3), normal(6, 4, seed=1)
    theirs = torch.distributions.Independent(
        torch.distributions.Normal(agent.actor(obs), agent.log_std.exp()), 1
    )
    score = agent.evaluate(obs, action)
    torch.testing.assert_close(score.log_prob, theirs.log_prob(action))
    torch.testing.assert_close(score.entropy, theirs.entropy())


def test_act_and_evaluate_agree() -> None:
    agent = ActorCritic(3, 2, seeded(), hidden=8)
    obs = normal(5, 3)
    taken = agent.act(obs, seeded(1))
    score = agent.evaluate(obs, taken.action)
    torch.testing.assert_close(taken.log_prob, score.log_prob)
    torch.testing.assert_close(taken.value, score.value)
    assert torch.equal(taken.action, agent.act(obs, seeded(1)).action)
    assert not torch.equal(taken.action, agent.act(obs, seeded(2)).action)
    torch.testing.assert_close(agent.act(obs, None).action, agent.actor(obs))


def test_weights_start_orthogonal_and_follow_the_generator() -> None:
    one, two, three = (ActorCritic(6, 2, seeded(s), hidden=8) for s in (0, 0, 1))
    hidden = one.actor[2].weight
    torch.testing.assert_close(hidden @ hidden.T, 2.0 * torch.eye(8), atol=1e-5, rtol=0)
    assert torch.equal(hidden, two.actor[2].weight)
    assert not torch.equal(hidden, three.actor[2].weight)
    assert one.act(normal(4, 6), None).action.abs().max() < 0.1


def test_actor_and_critic_share_nothing() -> None:
    agent = ActorCritic(3, 2, seeded(), hidden=8)
    agent.value(normal(4, 3)).sum().backward()
    assert all(p.grad is None for p in agent.actor.parameters())
    assert agent.log_std.grad is None


def rollout(agent: ActorCritic, generator: torch.Generator, m: int = 256) -> RolloutBatch:
    """One-step episodes: the reward is highest where the action equals the observation."""
    obs = torch.rand(m, 1, generator=generator) * 2 - 1
    with torch.no_grad():
        taken = agent.act(obs, generator)
    rewards = -(taken.action - obs).square().sum(dim=1)
    return RolloutBatch(obs, taken.action, taken.log_prob, rewards - taken.value, rewards)


def test_updates_learn_a_bandit() -> None:
    agent = ActorCritic(1, 1, seeded(), hidden=32)
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-3)
    generator = seeded(1)
    before = rollout(agent, seeded(9)).returns.mean()
    config = PpoConfig(minibatch=64)
    for _ in range(15):
        metrics = ppo_update(agent, optimizer, rollout(agent, generator), config, generator)
    after = rollout(agent, seeded(9)).returns.mean()
    assert metrics.gradient_steps == 4 * 256 // 64
    assert after > 0.5 * before  # both negative: at least half of the loss is gone
    assert metrics.approx_kl < 0.1


def test_the_first_gradient_step_of_an_unmoved_policy_clips_nothing() -> None:
    agent = ActorCritic(1, 1, seeded(), hidden=8)
    optimizer = torch.optim.SGD(agent.parameters(), lr=1e-4)
    batch = rollout(agent, seeded(1), m=16)
    metrics = ppo_update(agent, optimizer, batch, PpoConfig(epochs=1), seeded())
    assert metrics.gradient_steps == 1
    assert metrics.clip_fraction == 0.0
    assert metrics.approx_kl == pytest.approx(0.0, abs=1e-6)
    assert metrics.surrogate == pytest.approx(0.0, abs=1e-5)  # mean of standardised advantages


def test_a_target_kl_ends_the_passes() -> None:
    agent = ActorCritic(1, 1, seeded(), hidden=8)
    optimizer = torch.optim.Adam(agent.parameters(), lr=0.1)
    config = PpoConfig(epochs=10, minibatch=64, target_kl=1e-3)
    metrics = ppo_update(agent, optimizer, rollout(agent, seeded(1)), config, seeded())
    assert metrics.gradient_steps < 40


def test_defaults_are_table_2s() -> None:
    config = PpoConfig()
    assert (config.discount, config.decay, config.clip) == (0.95, 0.95, 0.2)
    assert (config.learning_rate, config.minibatch) == (1e-4, 32)


@pytest.mark.parametrize("field", ["discount", "decay", "clip", "learning_rate", "epochs"])
def test_bad_settings_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        PpoConfig(**{field: -1})


def test_a_rollout_of_unequal_lengths_is_refused() -> None:
    one = torch.zeros(3)
    with pytest.raises(ConfigError, match="rollout"):
        RolloutBatch(torch.zeros(3, 2), torch.zeros(2, 1), one, one, one)
