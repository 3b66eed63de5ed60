"""The PPO agent's two networks: a Gaussian actor for the coarse action, and a critic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankcast.errors import ConfigError


@dataclass(frozen=True, slots=True)
class CoarseAction:
    """What the actor proposes for B states.

    Attributes:
        action: (B, A) the coarse action a^out.
        log_prob: (B,) its log-density under the policy.
        value: (B,) the critic's V(s).
    """

    action: Tensor
    log_prob: Tensor
    value: Tensor


@dataclass(frozen=True, slots=True)
class ActionScore:
    """What the present networks say about past actions, each (B,).

    Attributes:
        log_prob: log-density of the action.
        entropy: differential entropy of the policy [nats].
        value: V(s).
    """

    log_prob: Tensor
    entropy: Tensor
    value: Tensor


class ActorCritic(nn.Module):
    """Two separate two-layer tanh MLPs; the action is Gaussian with a learned, constant spread.

    Differs from the paper: its actor ends in 6L·(r_max + 1) logits in one place and in a
    continuous latent in another; this is the latter.

    Args:
        observation_dim: D.
        action_dim: A.
        hidden: d_MLP (Table II: 256).
        initial_log_std: log-spread of the actions at the start.
        generator: source of the initial weights.

    Raises:
        ConfigError: a size that is not positive.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        generator: torch.Generator,
        hidden: int = 256,
        initial_log_std: float = -0.5,
    ) -> None:
        super().__init__()
        if min(observation_dim, action_dim, hidden) < 1:
            raise ConfigError(
                f"Sizes must be positive, got observation_dim={observation_dim}, "
                f"action_dim={action_dim}, hidden={hidden}."
            )
        # A small last actor layer makes first actions depend on the noise, not on the state.
        self.actor = _mlp(observation_dim, hidden, action_dim, 0.01, generator)
        self.critic = _mlp(observation_dim, hidden, 1, 1.0, generator)
        self.log_std = nn.Parameter(torch.full((action_dim,), float(initial_log_std)))

    def act(self, obs: Tensor, generator: torch.Generator | None) -> CoarseAction:
        """Sample an action for obs (B, D); None instead of a generator gives the mean action."""
        mean = self.actor(obs)
        action = mean
        if generator is not None:
            noise = torch.randn(mean.shape, generator=generator, device=generator.device)
            action = mean + self.log_std.exp() * noise.to(mean)
        return CoarseAction(action, self._log_prob(mean, action), self.value(obs))

    def evaluate(self, obs: Tensor, action: Tensor) -> ActionScore:
        """Score actions (B, A) taken at obs (B, D) under the present networks."""
        entropy = (self.log_std + 0.5 * math.log(2.0 * math.pi * math.e)).sum()
        return ActionScore(
            self._log_prob(self.actor(obs), action), entropy.expand(len(obs)), self.value(obs)
        )

    def value(self, obs: Tensor) -> Tensor:
        """Return V (B,) of obs (B, D)."""
        return self.critic(obs).squeeze(-1)

    def _log_prob(self, mean: Tensor, action: Tensor) -> Tensor:
        z = (action - mean) * torch.exp(-self.log_std)
        return (-0.5 * z.square() - self.log_std - 0.5 * math.log(2.0 * math.pi)).sum(dim=-1)


def _mlp(d_in: int, hidden: int, d_out: int, gain: float, generator: torch.Generator) -> nn.Module:
    """Return two tanh layers and a linear head, orthogonal weights, zero biases."""
    with torch.random.fork_rng(devices=[]):  # layers draw from the global generator when made
        net = nn.Sequential(
            nn.Linear(d_in, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(),
            nn.Linear(hidden, d_out),
        )  # fmt: skip
    for index, scale in ((0, math.sqrt(2.0)), (2, math.sqrt(2.0)), (4, gain)):
        layer = net[index]
        assert isinstance(layer, nn.Linear)
        nn.init.orthogonal_(layer.weight, scale, generator=generator)
        nn.init.zeros_(layer.bias)
    return net
