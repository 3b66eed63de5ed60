"""From a rank code to noise and back: the schedule (Eq. 13–14) and the reverse chains (Eq. 16–17).

Names: x is x_τ, `x0` is x̂_0, `noise` is ε̃, `signal` is √ᾱ_τ and `sigma` √(1-ᾱ_τ). A `predict`
callable maps (x (B, N), tau (B,)) to the model's output (B, N). Nothing here switches gradients
off: a short chain can be differentiated, and the caller decides.

Steps are counted τ = 0..T-1 here and 1..T in the paper. Constants are kept in float64 and cast to
the type of the data where they meet it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from rankcast.config.policy import Prediction, ScheduleName, Spacing
from rankcast.errors import ConfigError, check_choice
from rankcast.policy.denoisers import Denoiser

Predict = Callable[[Tensor, Tensor], Tensor]
CleanEstimate = Literal["ddim", "posterior_mean"]


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The constants of Eq. 13–14 for every training step.

    Attributes:
        betas: (T,) β_τ, float64.
        alphas: (T,) α_τ = 1 - β_τ.
        alpha_bars: (T,) ᾱ_τ, the product of α up to τ.
    """

    betas: Tensor
    alphas: Tensor
    alpha_bars: Tensor

    @classmethod
    def named(
        cls,
        name: ScheduleName = "scaled_linear",
        training_steps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
    ) -> NoiseSchedule:
        """Build a schedule by its name; `cosine` (Nichol and Dhariwal) ignores the two betas.

        Raises:
            ConfigError: unknown name, no steps, or betas outside 0 < start ≤ end < 1.
        """
        check_choice("noise schedule", name, get_args(ScheduleName))
        if training_steps < 1:
            raise ConfigError(f"training_steps must be at least 1, got {training_steps}.")
        if not 0.0 < beta_start <= beta_end < 1.0:
            raise ConfigError(f"Betas need 0 < start ≤ end < 1, got {beta_start} and {beta_end}.")
        if name == "linear":
            betas = torch.linspace(beta_start, beta_end, training_steps, dtype=torch.float64)
        elif name == "scaled_linear":
            roots = torch.linspace(
                beta_start**0.5, beta_end**0.5, training_steps, dtype=torch.float64
            )
            betas = roots**2
        else:
            betas = _cosine_betas(training_steps)
        alphas = 1.0 - betas
        return cls(betas, alphas, torch.cumprod(alphas, dim=0))

    @property
    def training_steps(self) -> int:
        """T."""
        return len(self.betas)

    def scales(self, tau: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return √ᾱ_τ and √(1-ᾱ_τ) as (B, 1), with the type and device of `like`."""
        tables = (self.alpha_bars.sqrt(), (1.0 - self.alpha_bars).sqrt())
        # Cast on the CPU, then move: some accelerators have no float64.
        signal, sigma = (t.to(like.dtype).to(like.device)[tau].unsqueeze(-1) for t in tables)
        return signal, sigma

    def add_noise(self, x0: Tensor, noise: Tensor, tau: Tensor) -> Tensor:
        """Return x_τ = √ᾱ_τ·x_0 + √(1-ᾱ_τ)·ε (Eq. 14) for x0, noise (B, N) and tau (B,)."""
        signal, sigma = self.scales(tau, x0)
        return signal * x0 + sigma * noise

    def target(self, prediction: Prediction, x0: Tensor, noise: Tensor, tau: Tensor) -> Tensor:
        """Return the (B, N) output that a perfect denoiser of this prediction type gives.

        Raises:
            ConfigError: unknown prediction type.
        """
        check_choice("prediction type", prediction, get_args(Prediction))
        if prediction == "epsilon":
            return noise
        if prediction == "x0":
            return x0
        signal, sigma = self.scales(tau, x0)
        return signal * noise - sigma * x0


def split_output(
    prediction: Prediction,
    output: Tensor,
    x: Tensor,
    signal: Tensor | float,
    sigma: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """Return x̂_0 and ε̂ from a model's output, given √ᾱ_τ (`signal`) and √(1-ᾱ_τ) (`sigma`).

    Raises:
        ConfigError: unknown prediction type.
    """
    check_choice("prediction type", prediction, get_args(Prediction))
    if prediction == "epsilon":
        return (x - sigma * output) / signal, output
    if prediction == "x0":
        return output, (x - signal * output) / sigma
    return signal * x - sigma * output, signal * output + sigma * x


def inference_timesteps(
    training_steps: int, steps: int, spacing: Spacing = "trailing"
) -> tuple[int, ...]:
    """Choose `steps` of the T training steps, noisiest first.

    `trailing` (default) starts at T-1, where x_τ really is nearly pure noise, and stops above 0;
    `leading` ends at 0 but starts below T-1, which costs most when steps are few; `linspace` has
    both ends.

    Raises:
        ConfigError: unknown spacing, or steps outside 1..T.
    """
    check_choice("timestep spacing", spacing, get_args(Spacing))
    if not 1 <= steps <= training_steps:
        raise ConfigError(
            f"Inference steps must lie in 1..{training_steps} (the training steps), got {steps}."
        )
    if spacing == "leading":
        stride = training_steps // steps
        return tuple(k * stride for k in reversed(range(steps)))
    if spacing == "trailing":
        return tuple(round(training_steps - k * training_steps / steps) - 1 for k in range(steps))
    if steps == 1:
        return (training_steps - 1,)
    stretch = (training_steps - 1) / (steps - 1)
    return tuple(round(k * stretch) for k in reversed(range(steps)))


def _cosine_betas(training_steps: int, max_beta: float = 0.999) -> Tensor:
    """Return (T,) betas of the squared-cosine schedule, ᾱ(t) = cos²((t + 0.008)/1.008 · π/2)."""

    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    grid = [alpha_bar(k / training_steps) for k in range(training_steps + 1)]
    betas = [min(1.0 - after / before, max_beta) for before, after in pairwise(grid)]
    return torch.tensor(betas, dtype=torch.float64)


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
        # 1. Noise and clean sample by the model (Eq. 15).
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
    """Clamp to ±bound; gradients pass where descent would move the value back inside."""

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
