"""How much noise there is at each diffusion step, and what follows from it (Eq. 13–14).

Steps are counted τ = 0..T-1 here and 1..T in the paper. Constants are kept in float64 and cast to
the type of the data where they meet it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from rankcast.errors import ConfigError, nearest

ScheduleName = Literal["linear", "cosine", "scaled_linear"]
Prediction = Literal["epsilon", "v", "x0"]
Spacing = Literal["trailing", "leading", "linspace"]


def check_choice(what: str, word: str, known: tuple[str, ...]) -> None:
    """Refuse a word that is not among the known ones.

    Raises:
        ConfigError: names the known words and the closest of them.
    """
    if word not in known:
        raise ConfigError(
            f"Unknown {what} {word!r}{nearest(word, known)}. Choose one of {', '.join(known)}."
        )


@dataclass(frozen=True)
class DiffusionConfig:
    """Settings of the refinement by diffusion; the defaults are Table II's.

    Attributes:
        training_steps: T.
        inference_steps: T_diff.
        schedule: name of the noise schedule.
        prediction: what the denoiser's output means.
        guidance_scale: w of classifier-free guidance; 1 is the plain conditional model, which
            needs no unconditional evaluation (the paper names no value).
        condition_dropout: share of training samples whose condition is hidden (not in the paper).
        eta: scale of σ_τ in Eq. 17; 0 is deterministic.
        spacing: how the T_diff steps are chosen among T.
        guidance_weight: κ of Eq. 19.
        batch_size: samples a gradient step.
        learning_rate: of the denoiser.
    """

    training_steps: int = 1000
    inference_steps: int = 50
    schedule: ScheduleName = "scaled_linear"
    prediction: Prediction = "epsilon"
    guidance_scale: float = 1.0
    condition_dropout: float = 0.1
    eta: float = 0.0
    spacing: Spacing = "trailing"
    guidance_weight: float = 0.1
    batch_size: int = 32
    learning_rate: float = 5e-5


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

    def estimates(
        self, prediction: Prediction, output: Tensor, x: Tensor, tau: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return x̂_0 and ε̂, both (B, N), that a model's output implies at x_τ and tau (B,).

        Raises:
            ConfigError: unknown prediction type.
        """
        signal, sigma = self.scales(tau, x)
        return split_output(prediction, output, x, signal, sigma)


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
