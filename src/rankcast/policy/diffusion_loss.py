"""The loss of the denoiser (Eq. 19), in the readings that have a gradient.

As written, the reward term of Eq. 19 has none: R_t is observed, not computed from ψ. There are two
readings. `reward_weighted_loss` is the literal one, which weighs each plan's denoising error by
the reward that it earned; it is kept as a baseline. `utility_guided_loss` differentiates a model of
the reward (`modelled_reward`) through a short DDIM chain, in the manner of Diffusion-QL
(arXiv 2208.06193).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rankcast.config.policy import Prediction
from rankcast.errors import ConfigError
from rankcast.policy.ddim import NoiseSchedule, ddim_sample, guided_predict
from rankcast.policy.denoisers import Denoiser
from rankcast.policy.rank_code import bin_width
from rankcast.records import FloatArray


def denoising_loss(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x0: Tensor,
    condition: Tensor,
    *,
    generator: torch.Generator,
    prediction: Prediction = "epsilon",
    condition_dropout: float = 0.1,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the first term of Eq. 19, a scalar, at one random τ per sample.

    Differs from the paper: the squared error is averaged over the N entries rather than summed,
    so that κ does not depend on the number of projections.

    Args:
        denoiser: the network.
        schedule: its noise schedule.
        x0: (B, N) clean rank codes.
        condition: (B, C).
        generator: source of τ, of the noise and of the dropped conditions.
        prediction: what the network's output means.
        condition_dropout: probability that a sample's condition is hidden, in [0, 1].
        weights: (B,) weights ≥ 0 of the samples with a positive sum; None weighs them alike.

    Raises:
        ConfigError: unknown prediction type, dropout outside [0, 1], or unusable weights.
    """
    if not 0.0 <= condition_dropout <= 1.0:
        raise ConfigError(f"condition_dropout must lie in [0, 1], got {condition_dropout}.")
    n_samples, device = len(x0), generator.device
    tau = torch.randint(schedule.training_steps, (n_samples,), generator=generator, device=device)
    noise = torch.randn(x0.shape, generator=generator, device=device, dtype=x0.dtype).to(x0.device)
    drop = torch.rand(n_samples, generator=generator, device=device) < condition_dropout
    tau, drop = tau.to(x0.device), drop.to(x0.device)

    output = denoiser(schedule.add_noise(x0, noise, tau), tau, condition, drop)
    error = (output - schedule.target(prediction, x0, noise, tau)).square().mean(dim=-1)
    return error.mean() if weights is None else (_normalised(weights, n_samples) * error).sum()


def reward_weights(rewards: Tensor, guidance_weight: float) -> Tensor:
    """Return (B,) weights with mean 1: the softmax of κ times the standardised rewards (B,).

    Standardising makes κ independent of the reward's scale; κ = 0, or rewards that are all alike,
    give weights of 1.
    """
    centred = rewards - rewards.mean()
    spread = centred.square().mean().sqrt()
    scores = guidance_weight * centred / spread.clamp_min(1e-8)
    return torch.softmax(scores, dim=0) * len(rewards)


def reward_weighted_loss(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x0: Tensor,
    condition: Tensor,
    rewards: Tensor,
    *,
    generator: torch.Generator,
    guidance_weight: float = 0.1,
    prediction: Prediction = "epsilon",
    condition_dropout: float = 0.1,
) -> Tensor:
    """Return Eq. 19 read literally: the denoising error weighted by the observed reward (B,).

    It can only imitate the better of the plans it has seen, and serves as a baseline.

    Raises:
        ConfigError: as `denoising_loss`.
    """
    return denoising_loss(
        denoiser,
        schedule,
        x0,
        condition,
        generator=generator,
        prediction=prediction,
        condition_dropout=condition_dropout,
        weights=reward_weights(rewards, guidance_weight),
    )


def modelled_reward(gains: FloatArray, prices: FloatArray) -> Callable[[Tensor], Tensor]:
    """Return R̂ = -Û - λη of codes (B, N), differentiable: gains interpolated between ranks.

    R̂ is measured in units of the total gain, so that κ does not depend on the task.

    Args:
        gains: (N, R) or (B, N, R) expected loss that each component removes.
        prices: (B, N, R) λη of each component in the states of a batch.
    """
    gain, price = (torch.tensor(x, dtype=torch.float32) for x in (gains, prices))
    r_max, scale = gain.shape[-1], gain.sum(dim=(-2, -1)).clamp_min(1e-8)
    removed = torch.cat([torch.zeros_like(gain[..., :1]), gain.cumsum(dim=-1)], dim=-1)
    paid = torch.cat([torch.zeros_like(price[..., :1]), price.cumsum(dim=2)], dim=2)

    def reward(codes: Tensor) -> Tensor:
        rank = ((codes + 1.0) / bin_width(r_max) - 0.5).clamp(0.0, r_max)
        floor = rank.detach().floor().clamp(max=r_max - 1).long()
        part = rank - floor
        low = removed.expand(len(codes), -1, -1).gather(2, floor[..., None]).squeeze(-1)
        slope = (gain - price).gather(2, floor[..., None]).squeeze(-1)
        spent = paid.gather(2, floor[..., None]).squeeze(-1)
        return (low - spent + part * slope).sum(dim=1) / scale

    return reward


@dataclass(frozen=True, slots=True)
class GuidedLoss:
    """The two terms of Eq. 19 and their weighted sum, which is minimised.

    Attributes:
        total: denoising - κ·reward.
        denoising: the first term.
        reward: mean modelled reward R̂ of the sampled codes.
    """

    total: Tensor
    denoising: Tensor
    reward: Tensor


def utility_guided_loss(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x0: Tensor,
    condition: Tensor,
    reward: Callable[[Tensor], Tensor],
    *,
    generator: torch.Generator,
    guidance_weight: float = 0.1,
    prediction: Prediction = "epsilon",
    condition_dropout: float = 0.1,
    chain_steps: int = 5,
    guidance_scale: float = 1.0,
) -> GuidedLoss:
    """Return Eq. 19 with the observed reward replaced by a differentiable model of it.

    Args:
        denoiser: the network.
        schedule: its noise schedule.
        x0: (B, N) clean rank codes for the denoising term.
        condition: (B, C), of the codes and of the chain.
        reward: maps sampled codes (B, N) to R̂ (B,), differentiable, for the states of this batch.
        generator: source of all noise.
        guidance_weight: κ.
        prediction: what the network's output means.
        condition_dropout: see `denoising_loss`.
        chain_steps: length of the DDIM chain that is differentiated. Act with the same length: at
            steps that this chain does not visit, only the denoising term teaches the network.
        guidance_scale: w within the chain.

    Raises:
        ConfigError: as `denoising_loss` and `ddim_sample`.
    """
    denoising = denoising_loss(
        denoiser,
        schedule,
        x0,
        condition,
        generator=generator,
        prediction=prediction,
        condition_dropout=condition_dropout,
    )
    x_T = torch.randn(x0.shape, generator=generator, device=generator.device, dtype=x0.dtype)
    sampled = ddim_sample(
        guided_predict(denoiser, condition, guidance_scale),
        x_T.to(x0.device),
        schedule,
        steps=chain_steps,
        prediction=prediction,
        inward_gradient=True,
    )
    mean_reward = reward(sampled).mean()
    return GuidedLoss(denoising - guidance_weight * mean_reward, denoising, mean_reward)


def _normalised(weights: Tensor, n_samples: int) -> Tensor:
    total = weights.sum()
    if weights.shape != (n_samples,) or bool((weights < 0).any()) or not bool(total > 0):
        raise ConfigError(
            f"Weights must be {n_samples} numbers ≥ 0 with a positive sum, got shape "
            f"{tuple(weights.shape)} with sum {float(total):.3g}."
        )
    return weights / total
