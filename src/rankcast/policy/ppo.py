"""Proximal policy optimisation (Eq. 12): its terms as pure functions, and one update.

Sign: the paper minimises E[J_CLIP + J_V], which would make good actions less likely. J_CLIP is
maximised here, so the loss is -J_CLIP + c_V·J_V - c_H·entropy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankcast.errors import ConfigError
from rankcast.policy.actor_critic import ActorCritic


@dataclass(frozen=True, slots=True)
class PpoConfig:
    """Settings of PPO; γ, ζ, ϱ, batch size and learning rate are Table II's.

    Attributes:
        discount: γ.
        decay: ζ, the decay factor of GAE.
        clip: ϱ.
        learning_rate: of actor and critic.
        epochs: passes over each rollout.
        minibatch: samples a gradient step.
        value_weight: c_V.
        entropy_weight: c_H.
        max_grad_norm: gradients are scaled down to this norm.
        target_kl: stop a rollout's passes when the policy has moved this far [nats]; None never.

    Raises:
        ConfigError: γ or ζ outside [0, 1], or another setting that is not positive.
    """

    discount: float = 0.95
    decay: float = 0.95
    clip: float = 0.2
    learning_rate: float = 1e-4
    epochs: int = 4
    minibatch: int = 32
    value_weight: float = 0.5
    entropy_weight: float = 0.0
    max_grad_norm: float = 0.5
    target_kl: float | None = None

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        if not (0.0 <= self.discount <= 1.0 and 0.0 <= self.decay <= 1.0):
            raise ConfigError(
                f"discount and decay must lie in [0, 1], got {self.discount} and {self.decay}."
            )
        for name in ("clip", "learning_rate", "epochs", "minibatch", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}.")


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


def probability_ratio(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """Return r_t(θ) = π_θ(a|s) / π_θ_old(a|s)."""
    return torch.exp(log_prob - old_log_prob)


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
    ratio = probability_ratio(score.log_prob, batch.log_probs)
    surrogate = clipped_surrogate(ratio, advantages, config.clip).mean()
    critic = value_loss(score.value, batch.returns).mean()
    entropy = score.entropy.mean()
    loss = -surrogate + config.value_weight * critic - config.entropy_weight * entropy
    # Schulman's low-variance estimate of KL(old ‖ new): E[(r - 1) - log r].
    kl = (ratio - 1.0 - (score.log_prob - batch.log_probs)).mean()
    clipped = ((ratio - 1.0).abs() > config.clip).to(ratio.dtype).mean()
    return loss, torch.stack([surrogate, critic, entropy, kl, clipped]).detach()
