"""From noise to a rank code: the reverse chains of DDIM and DDPM as pure functions.

Names: x is x_τ, `x0` is x̂_0, `noise` is ε̃, `signal` is √ᾱ_τ and `sigma` √(1-ᾱ_τ). A `predict`
callable maps (x (B, N), tau (B,)) to the model's output (B, N). Nothing here switches gradients
off: a short chain can be differentiated, and the caller decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from rankcast.errors import ConfigError
from rankcast.policy.denoisers import Denoiser
from rankcast.policy.schedule import (
    NoiseSchedule,
    Prediction,
    Spacing,
    check_choice,
    inference_timesteps,
    split_output,
)

Predict = Callable[[Tensor, Tensor], Tensor]
CleanEstimate = Literal["ddim", "posterior_mean"]


@dataclass(frozen=True, slots=True)
class ReverseStep:
    """The scalars of one step from τ to the next smaller τ' of the chain.

    Attributes:
        tau: τ.
        alpha: α_τ.
        alpha_bar: ᾱ_τ.
        alpha_bar_next: ᾱ_τ'; 1 after the last step.
        sigma: σ_τ = η·√((1-ᾱ_τ')/(1-ᾱ_τ))·√(1-ᾱ_τ/ᾱ_τ').
    """

    tau: int
    alpha: float
    alpha_bar: float
    alpha_bar_next: float
    sigma: float


def reverse_steps(
    schedule: NoiseSchedule, steps: int, spacing: Spacing = "trailing", eta: float = 0.0
) -> tuple[ReverseStep, ...]:
    """Return the scalars of a whole reverse chain, noisiest first.

    Raises:
        ConfigError: unknown spacing, steps outside 1..T, or eta outside [0, 1].
    """
    if not 0.0 <= eta <= 1.0:
        raise ConfigError(
            f"eta must lie in [0, 1] (0 deterministic, 1 as noisy as DDPM), got {eta}."
        )
    taus = inference_timesteps(schedule.training_steps, steps, spacing)
    bars = [float(schedule.alpha_bars[tau]) for tau in taus]
    chain: list[ReverseStep] = []
    for tau, bar, bar_next in zip(taus, bars, [*bars[1:], 1.0], strict=True):
        variance = (1.0 - bar_next) / (1.0 - bar) * (1.0 - bar / bar_next)
        chain.append(
            ReverseStep(tau, float(schedule.alphas[tau]), bar, bar_next, eta * variance**0.5)
        )
    return tuple(chain)


def ddim_sample(
    predict: Predict,
    x_T: Tensor,
    schedule: NoiseSchedule,
    *,
    steps: int = 50,
    prediction: Prediction = "epsilon",
    eta: float = 0.0,
    spacing: Spacing = "trailing",
    clip: float | None = 1.0,
    clean_estimate: CleanEstimate = "ddim",
    inward_gradient: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return x_0 (B, N) of the DDIM chain that starts at x_T (Eq. 17).

    Differs from the paper: Eq. 16 uses the DDPM posterior mean as the clean estimate x̂_0. Here
    x̂_0 = (x_τ - √(1-ᾱ_τ)·ε̃)/√ᾱ_τ, clipped to ±`clip`, and ε̃ is recomputed from the clipped x̂_0.
    `clean_estimate="posterior_mean"` is the literal reading, kept for the record; it neither clips
    nor recomputes.

    Args:
        predict: the model, see the module's docstring.
        x_T: (B, N) standard normal noise.
        schedule: the noise schedule that the model was trained with.
        steps: T_diff.
        prediction: what the model's output means.
        eta: scale of σ_τ.
        spacing: how the steps are chosen.
        clip: bound on |x̂_0|, or None.
        clean_estimate: `ddim`, or `posterior_mean` for the paper's Eq. 16.
        inward_gradient: let a gradient that would bring a clipped x̂_0 back into range pass the
            clip; otherwise a saturated entry can never be corrected through the chain.
        generator: source of ε; needed when eta > 0.

    Raises:
        ConfigError: unknown names, steps outside 1..T, eta outside [0, 1], or eta > 0 without a
            generator.
    """
    check_choice("clean estimate", clean_estimate, get_args(CleanEstimate))
    chain = reverse_steps(schedule, steps, spacing, eta)
    if eta > 0.0 and generator is None:
        raise ConfigError("A stochastic chain (eta > 0) needs a generator; pass one or set eta=0.")
    x = x_T
    for step in chain:
        signal, sigma = step.alpha_bar**0.5, (1.0 - step.alpha_bar) ** 0.5
        # 1. What the model says about noise and clean sample (Eq. 15).
        output = predict(x, _batch_tau(x, step.tau))
        x0, noise = split_output(prediction, output, x, signal, sigma)
        # 2. Clean estimate (Eq. 16).
        if clean_estimate == "posterior_mean":
            x0 = (x - (1.0 - step.alpha) / sigma * noise) / step.alpha**0.5
        elif clip is not None:
            x0 = _InwardClamp.apply(x0, clip) if inward_gradient else x0.clamp(-clip, clip)
            noise = (x - signal * x0) / sigma
        # 3. The next latent (Eq. 17).
        direction = (1.0 - step.alpha_bar_next - step.sigma**2) ** 0.5
        x = step.alpha_bar_next**0.5 * x0 + direction * noise
        if generator is not None and eta > 0.0:
            x = x + step.sigma * _normal_like(x, generator)
    return x


def ddpm_sample(
    predict: Predict,
    x_T: Tensor,
    schedule: NoiseSchedule,
    *,
    generator: torch.Generator,
    steps: int = 50,
    prediction: Prediction = "epsilon",
    spacing: Spacing = "trailing",
    clip: float | None = 1.0,
) -> Tensor:
    """Return x_0 (B, N) of the ancestral DDPM chain, with the small posterior variance.

    Args:
        predict: the model, see the module's docstring.
        x_T: (B, N) standard normal noise.
        schedule: the noise schedule that the model was trained with.
        generator: source of the noise of each step but the last.
        steps: how many of the T steps to take; T is the full chain.
        prediction: what the model's output means.
        spacing: how the steps are chosen.
        clip: bound on |x̂_0|, or None.

    Raises:
        ConfigError: unknown names, or steps outside 1..T.
    """
    x = x_T
    for step in reverse_steps(schedule, steps, spacing, eta=1.0):
        bar, bar_next = step.alpha_bar, step.alpha_bar_next
        # 1. Clean estimate from the model's output.
        output = predict(x, _batch_tau(x, step.tau))
        x0, _ = split_output(prediction, output, x, bar**0.5, (1.0 - bar) ** 0.5)
        if clip is not None:
            x0 = x0.clamp(-clip, clip)
        # 2. Mean of q(x_τ' | x_τ, x̂_0); α is that of the whole stride from τ' to τ.
        alpha = bar / bar_next
        weight_x0 = bar_next**0.5 * (1.0 - alpha) / (1.0 - bar)
        weight_x = alpha**0.5 * (1.0 - bar_next) / (1.0 - bar)
        x = weight_x0 * x0 + weight_x * x
        # 3. Posterior noise; its variance is that of DDIM with η = 1, and 0 at the end.
        if bar_next < 1.0:
            x = x + step.sigma * _normal_like(x, generator)
    return x


def guided_predict(denoiser: Denoiser, condition: Tensor, guidance_scale: float) -> Predict:
    """Return `predict` under classifier-free guidance, ε̃ = ε_uncond + w·(ε_cond - ε_uncond).

    Both terms come from one batched call of 2B rows; w = 1 needs only the conditional one, w = 0
    only the other. The rule is applied to the model's output whatever its type, which is the same
    thing because x̂_0 and ε̂ are affine in it.

    Args:
        denoiser: the network.
        condition: (B, C).
        guidance_scale: w.
    """
    n_samples = len(condition)
    if guidance_scale == 1.0:
        return lambda x, tau: denoiser(x, tau, condition, None)
    if guidance_scale == 0.0:
        hidden = torch.ones(n_samples, dtype=torch.bool, device=condition.device)
        return lambda x, tau: denoiser(x, tau, condition, hidden)
    both = torch.cat([condition, condition])
    drop = torch.arange(2 * n_samples, device=condition.device) >= n_samples

    def predict(x: Tensor, tau: Tensor) -> Tensor:
        output = denoiser(torch.cat([x, x]), torch.cat([tau, tau]), both, drop)
        cond, uncond = output[:n_samples], output[n_samples:]
        return uncond + guidance_scale * (cond - uncond)

    return predict


def _batch_tau(x: Tensor, tau: int) -> Tensor:
    return torch.full((len(x),), tau, dtype=torch.long, device=x.device)


def _normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(x)


class _InwardClamp(torch.autograd.Function):
    """Clamp to ±bound whose gradient passes where descent would move the value back inside."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound  # pyright: ignore[reportAttributeAccessIssue]
        return x.clamp(-bound, bound)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        (grad,) = grads
        bound: float = ctx.bound  # pyright: ignore[reportAttributeAccessIssue]
        outward = ((x > bound) & (grad < 0)) | ((x < -bound) & (grad > 0))
        return grad.masked_fill(outward, 0.0), None
