"""Proximal policy optimisation: advantages (Eq. 11), actor and critic, and one update (Eq. 12).

Sign: the paper minimises E[J_CLIP + J_V], which would make good actions less likely. J_CLIP is
maximised here, so the loss is -J_CLIP + c_V·J_V - c_H·entropy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankcast.config.policy import PpoConfig
from rankcast.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Advantages:
    """The targets of actor and critic, both (T, B).

    Attributes:
        advantages: Â_t.
        returns: Â_t + V(s_t), the critic's target of Eq. 12.
    """

    advantages: Tensor
    returns: Tensor


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    discount: float = 0.95,
    decay: float = 0.95,
) -> Advantages:
    """Return the advantages of T steps in B environments (Eq. 11).

    Differs from the paper: the sum ends where an episode does. A terminated step has no future, so
    nothing is bootstrapped; a truncated one has a future that was not seen, so the value of its
    final observation is bootstrapped. Either way no later step contributes.

    Args:
        rewards: (T, B) R_t.
        values: (T, B) V(s_t).
        next_values: (T, B) V(s_{t+1}), where s_{t+1} is the observation that the step led to: at
            the end of an episode its final observation, not the first of the next episode.
        terminated: (T, B) bool.
        truncated: (T, B) bool.
        discount: γ.
        decay: ζ.

    Raises:
        ConfigError: shapes that differ, or γ or ζ outside [0, 1].
    """
    shapes = {tuple(x.shape) for x in (rewards, values, next_values, terminated, truncated)}
    if len(shapes) != 1 or rewards.dim() != 2:
        raise ConfigError(f"GAE takes five arrays of one shape (T, B), got {sorted(shapes)}.")
    if not (0.0 <= discount <= 1.0 and 0.0 <= decay <= 1.0):
        raise ConfigError(f"γ and ζ must lie in [0, 1], got {discount} and {decay}.")
    terminated, truncated = terminated.bool(), truncated.bool()
    # torch.where, not a product: a NaN value of a state without a future must not spread.
    future = torch.where(terminated, torch.zeros_like(next_values), next_values)
    deltas = rewards + discount * future - values
    carry = discount * decay * (~(terminated | truncated)).to(rewards.dtype)
    running = torch.zeros_like(rewards[0])
    traces: list[Tensor] = []
    for delta, keep in zip(deltas.flip(0), carry.flip(0), strict=True):
        running = delta + keep * running
        traces.append(running)
    advantages = torch.stack(traces[::-1])
    return Advantages(advantages, advantages + values)


@dataclass(frozen=True, slots=True)
class CoarseAction:
    """A proposal of the actor for B states.

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
    """Past actions under the present networks, each (B,).

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


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """M steps of experience, time and environments flattened together.

    Attributes:
        observations: (M, D).
        actions: (M, A) coarse actions taken.
        log_probs: (M,) their log-density when they were taken.
        advantages: (M,) Â.
        returns: (M,) the critic's targets.

    Raises:
        ConfigError: lengths that differ, or no steps at all.
    """

    observations: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together."""
        size = len(self.observations)
        flat = (self.log_probs, self.advantages, self.returns)
        if size == 0 or len(self.actions) != size or any(x.shape != (size,) for x in flat):
            shapes = [tuple(x.shape) for x in (self.observations, self.actions, *flat)]
            raise ConfigError(
                f"A rollout needs (M, D), (M, A) and three (M,), M ≥ 1; got {shapes}."
            )

    def __len__(self) -> int:
        """M."""
        return len(self.observations)

    def select(self, index: Tensor) -> RolloutBatch:
        """Return the steps at these positions."""
        return RolloutBatch(
            self.observations[index],
            self.actions[index],
            self.log_probs[index],
            self.advantages[index],
            self.returns[index],
        )


@dataclass(frozen=True, slots=True)
class PpoMetrics:
    """How an update went, averaged over its gradient steps.

    Attributes:
        surrogate: J_CLIP, which is maximised.
        value_loss: J_V.
        entropy: of the policy [nats].
        approx_kl: estimate of KL(old ‖ new) [nats].
        clip_fraction: share of samples whose ratio left [1 - ϱ, 1 + ϱ].
        gradient_steps: how many were taken.
    """

    surrogate: float
    value_loss: float
    entropy: float
    approx_kl: float
    clip_fraction: float
    gradient_steps: int


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip: float = 0.2) -> Tensor:
    """Return J_CLIP per sample (Eq. 12), to be maximised."""
    return torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip, 1.0 + clip) * advantages)


def value_loss(values: Tensor, returns: Tensor) -> Tensor:
    """Return J_V per sample (Eq. 12): the squared distance to the return."""
    return (values - returns).square()


def standardise(advantages: Tensor) -> Tensor:
    """Return the advantages with mean 0 and spread 1; a single one is returned as it is."""
    if advantages.numel() < 2:
        return advantages
    return (advantages - advantages.mean()) / (advantages.std(unbiased=False) + 1e-8)


def ppo_update(
    actor_critic: ActorCritic,
    optimizer: torch.optim.Optimizer,
    batch: RolloutBatch,
    config: PpoConfig,
    generator: torch.Generator,
) -> PpoMetrics:
    """Improve actor and critic on one rollout (Eq. 12), advantages standardised over the rollout.

    Args:
        actor_critic: the networks, changed in place.
        optimizer: of their parameters.
        batch: the rollout.
        config: settings.
        generator: source of the order of samples, a CPU generator.
    """
    scaled = standardise(batch.advantages)
    rows: list[Tensor] = []
    for _ in range(config.epochs):
        order = torch.randperm(len(batch), generator=generator).to(batch.observations.device)
        for index in order.split(config.minibatch):
            loss, row = _loss(actor_critic, batch.select(index), scaled[index], config)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(actor_critic.parameters(), config.max_grad_norm)
            optimizer.step()
            rows.append(row)
        if config.target_kl is not None and float(rows[-1][3]) > config.target_kl:
            break
    means = torch.stack(rows).mean(dim=0).tolist()
    return PpoMetrics(*means, gradient_steps=len(rows))


def _loss(
    actor_critic: ActorCritic, batch: RolloutBatch, advantages: Tensor, config: PpoConfig
) -> tuple[Tensor, Tensor]:
    """Return the loss of a minibatch, and the first five numbers of `PpoMetrics`."""
    score = actor_critic.evaluate(batch.observations, batch.actions)
    ratio = torch.exp(score.log_prob - batch.log_probs)  # r_t(θ) = π_θ(a|s) / π_θ_old(a|s)
    surrogate = clipped_surrogate(ratio, advantages, config.clip).mean()
    critic = value_loss(score.value, batch.returns).mean()
    entropy = score.entropy.mean()
    loss = -surrogate + config.value_weight * critic - config.entropy_weight * entropy
    # Schulman's low-variance estimate of KL(old ‖ new): E[(r - 1) - log r].
    kl = (ratio - 1.0 - (score.log_prob - batch.log_probs)).mean()
    clipped = ((ratio - 1.0).abs() > config.clip).to(ratio.dtype).mean()
    return loss, torch.stack([surrogate, critic, entropy, kl, clipped]).detach()
