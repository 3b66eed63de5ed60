"""Deterministic DDIM for deployment: the numbers of the eager chain in a fraction of its time.

Everything that a chain needs again is computed once: the time part of the input layer is a constant
vector per step, the condition part a constant per decision, and one step of Eq. 17 folds into four
scalars. The output layer is affine, so guidance mixes hidden states before it instead of outputs
after it. NumPy rather than torch: at these sizes its calls cost less, and its BLAS reads a weight
matrix for one or two rows faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankcast.config.policy import Prediction, Spacing
from rankcast.errors import ConfigError, check_choice
from rankcast.policy.ddim import NoiseSchedule, ReverseStep, reverse_steps
from rankcast.policy.denoisers import ResidualMlpDenoiser, time_embedding

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _FoldedStep:
    """x̂_0 = clip(a·x + b·output); x' = c·x̂_0 + d·x; `time` (H,) is this τ's part of the input."""

    a: float
    b: float
    c: float
    d: float
    time: Float32Array


@dataclass(frozen=True)
class FastSampler:
    """A residual MLP and its deterministic DDIM chain, folded; build it with `from_denoiser`.

    It is a snapshot: training the denoiser afterwards does not change it. It holds no scratch
    memory, so threads may share it.
    """

    _x_weight: Float32Array
    _condition_weight: Float32Array
    _null_condition: Float32Array
    _n_visible: int
    _blocks: tuple[tuple[Float32Array, Float32Array], ...]
    _output: tuple[Float32Array, Float32Array]
    _steps: tuple[_FoldedStep, ...]
    _guidance_scale: float
    _clip: float | None

    @classmethod
    def from_denoiser(
        cls,
        denoiser: ResidualMlpDenoiser,
        schedule: NoiseSchedule,
        steps: int = 50,
        guidance_scale: float = 1.0,
        prediction_type: Prediction = "epsilon",
        *,
        spacing: Spacing = "trailing",
        clip: float | None = 1.0,
    ) -> FastSampler:
        """Fold a trained denoiser; arguments mean what they mean in `ddim_sample`.

        Raises:
            ConfigError: unknown names, or steps outside 1..T.
        """
        check_choice("prediction type", prediction_type, get_args(Prediction))
        n, t = denoiser.n, denoiser.time_dim
        state = denoiser.state_dict()  # detached
        # SiLU(z) = u·(1 + tanh u) with u = z/2: the halves go into the weights.
        weight, bias = 0.5 * state["input.weight"].T, 0.5 * state["input.bias"]
        chain = reverse_steps(schedule, steps, spacing)
        taus = torch.tensor([step.tau for step in chain], device=weight.device)
        times = time_embedding(taus, t).to(weight.dtype) @ weight[n : n + t] + bias
        names = [f"blocks.{i}" for i in range(len(denoiser.blocks))]
        return cls(
            _x_weight=_array(weight[:n]),
            _condition_weight=_array(weight[n + t :]),
            _null_condition=_array(state["null_condition"]),
            _n_visible=denoiser.n_visible,
            _blocks=tuple(
                (_array(0.5 * state[f"{name}.weight"].T), _array(0.5 * state[f"{name}.bias"]))
                for name in names
            ),
            _output=(_array(state["output.weight"].T), _array(state["output.bias"])),
            _steps=tuple(
                _fold(step, prediction_type, _array(time))
                for step, time in zip(chain, times, strict=True)
            ),
            _guidance_scale=float(guidance_scale),
            _clip=clip,
        )

    def sample(self, x_T: Tensor, condition: Tensor) -> Tensor:
        """Return x_0 (B, N), a CPU tensor, for x_T (B, N) and condition (B, C).

        Raises:
            ConfigError: widths that are not the denoiser's, or batches that differ.
        """
        x, shown = _array(x_T), _array(condition)
        n, c = len(self._x_weight), len(self._condition_weight)
        if x.shape != (len(x), n) or shown.shape != (len(x), c):
            raise ConfigError(
                f"This sampler takes x_T (B, {n}) and condition (B, {c}), got {x.shape} and "
                f"{shown.shape}."
            )
        return torch.from_numpy(self._chain(x, self._condition_part(shown)))

    def _condition_part(self, shown: Float32Array) -> Float32Array:
        """Return (R, H) with R = B for w in {0, 1}, else R = 2B (conditional rows first)."""
        if self._guidance_scale != 1.0:
            hidden = shown.copy()
            hidden[:, self._n_visible :] = self._null_condition[self._n_visible :]
            shown = hidden if self._guidance_scale == 0.0 else np.concatenate([shown, hidden])
        return shown @ self._condition_weight

    def _chain(self, x: Float32Array, base: Float32Array) -> Float32Array:
        """Carry x (B, N) through the chain in place; base is (R, H)."""
        n_samples, width = len(x), base.shape[1]
        copies = len(base) // n_samples
        u, gate, h = np.empty_like(base), np.empty_like(base), np.empty_like(base)
        first = np.empty((n_samples, width), np.float32)
        clean, scaled = np.empty_like(x), np.empty_like(x)
        # Views, so that one x per sample is broadcast over its conditional and null rows.
        u3, base3 = u.reshape(copies, n_samples, width), base.reshape(copies, n_samples, width)
        w_out, b_out = self._output
        for step in self._steps:
            # 1. Input layer: the x part once for both rows, then time and condition.
            np.matmul(x, self._x_weight, out=first)
            np.add(first, step.time, out=first)
            np.add(base3, first, out=u3)
            _silu_of_double(u, h)
            # 2. Residual blocks.
            for w_block, b_block in self._blocks:
                np.matmul(h, w_block, out=u)
                np.add(u, b_block, out=u)
                np.add(h, _silu_of_double(u, gate), out=h)
            # 3. Guidance on hidden states, output layer, and Eq. 17 in four scalars.
            np.matmul(self._mixed(h, first), w_out, out=clean)
            np.add(clean, b_out, out=clean)
            np.multiply(clean, step.b, out=clean)
            np.multiply(x, step.a, out=scaled)
            np.add(clean, scaled, out=clean)
            if self._clip is not None:
                np.minimum(clean, self._clip, out=clean)
                np.maximum(clean, -self._clip, out=clean)
            np.multiply(clean, step.c, out=clean)
            np.multiply(x, step.d, out=x)
            np.add(x, clean, out=x)
        return x

    def _mixed(self, h: Float32Array, out: Float32Array) -> Float32Array:
        """Return uncond + w·(cond - uncond) of the hidden states, written into `out` (B, H)."""
        if self._guidance_scale in (0.0, 1.0):
            return h
        cond, uncond = h[: len(out)], h[len(out) :]
        np.subtract(cond, uncond, out=out)
        np.multiply(out, self._guidance_scale, out=out)
        return np.add(out, uncond, out=out)


def _silu_of_double(u: Float32Array, out: Float32Array) -> Float32Array:
    """Return SiLU(2·u) = u·(1 + tanh u), written into `out`; it cannot overflow."""
    np.tanh(u, out=out)
    np.add(out, 1.0, out=out)
    return np.multiply(out, u, out=out)


def _fold(step: ReverseStep, prediction: Prediction, time: Float32Array) -> _FoldedStep:
    """Fold a deterministic step; ε̃ = (x - √ᾱ·x̂_0)/√(1-ᾱ) holds whether or not x̂_0 was clipped."""
    signal, sigma = step.alpha_bar**0.5, (1.0 - step.alpha_bar) ** 0.5
    ratio = ((1.0 - step.alpha_bar_next) / (1.0 - step.alpha_bar)) ** 0.5
    a, b = {
        "epsilon": (1.0 / signal, -sigma / signal),
        "v": (signal, -sigma),
        "x0": (0.0, 1.0),
    }[prediction]
    return _FoldedStep(a, b, step.alpha_bar_next**0.5 - ratio * signal, ratio, time)


def _array(x: Tensor) -> Float32Array:
    """Copy a tensor: later changes to it do not reach the sampler, nor the other way round."""
    return np.array(x.detach().cpu().numpy(), dtype=np.float32, order="C")
