"""Schedules and samplers against diffusers' DDIM and DDPM schedulers.

Theirs computes in float32, whose rounding alone moves a chain by up to 4e-5. So the algorithms are
compared in float64 on shared constants, tightly; and the chain as it is used in float32, loosely.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rankcast.policy.ddim import (
    NoiseSchedule,
    Predict,
    ddim_sample,
    ddpm_sample,
    inference_timesteps,
)

THEIR_SCHEDULE = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
}
THEIR_PREDICTION = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
# (T, T_diff), the paper's.
LENGTHS = [(600, 30), (600, 100), (800, 50), (1000, 30), (1000, 50), (1000, 100)]
N = 12


def scheduler_class(kind: str) -> Any:
    import diffusers.schedulers

    return getattr(diffusers.schedulers, f"{kind}Scheduler")


def make_theirs(
    kind: str, schedule: str, prediction: str, lengths: tuple[int, int], spacing: str = "leading"
) -> Any:
    training_steps, steps = lengths
    theirs = scheduler_class(kind)(
        num_train_timesteps=training_steps,
        beta_schedule=THEIR_SCHEDULE[schedule],
        prediction_type=THEIR_PREDICTION[prediction],
        clip_sample=True,
        timestep_spacing=spacing,
    )
    theirs.set_timesteps(steps)
    return theirs


@pytest.fixture(scope="module")
def network() -> Predict:
    generator = torch.Generator().manual_seed(3)
    first = torch.randn(N + 1, 24, generator=generator, dtype=torch.float64) / 3
    second = torch.randn(24, N, generator=generator, dtype=torch.float64) / 4

    def predict(x: Tensor, tau: Tensor) -> Tensor:
        joined = torch.cat([x, tau[:, None] / 500 - 1], dim=1)
        return torch.tanh(joined @ first.to(x.dtype)) @ second.to(x.dtype)

    return predict


def in_double(theirs: Any) -> NoiseSchedule:
    """Make theirs compute in float64, and return our schedule on the same constants."""
    for name in ("betas", "alphas", "alphas_cumprod", "final_alpha_cumprod", "one"):
        if hasattr(theirs, name):
            setattr(theirs, name, getattr(theirs, name).double())
    return NoiseSchedule(theirs.betas, theirs.alphas, theirs.alphas_cumprod)


def start() -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(4, N, generator=generator, dtype=torch.float64)


def their_chain(theirs: Any, predict: Predict, x_T: Tensor, **kwargs: Any) -> Tensor:
    x = x_T
    for t in theirs.timesteps:
        output = predict(x, torch.full((len(x),), int(t)))
        x = theirs.step(output, int(t), x, **kwargs).prev_sample
    return x


@pytest.mark.parametrize("training_steps", [600, 800, 1000])
@pytest.mark.parametrize("name", list(THEIR_SCHEDULE))
def test_constants(name: str, training_steps: int) -> None:
    ours = NoiseSchedule.named(name, training_steps)
    theirs = make_theirs("DDIM", name, "epsilon", (training_steps, 50))
    torch.testing.assert_close(ours.betas.float(), theirs.betas, rtol=2e-6, atol=0)
    torch.testing.assert_close(ours.alphas.float(), theirs.alphas, rtol=2e-6, atol=1e-7)
    # Theirs is a float32 running product of T factors.
    torch.testing.assert_close(ours.alpha_bars.float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("training_steps", [600, 1000])
@pytest.mark.parametrize("steps", [1, 8, 30, 50, 100, 600])
def test_timesteps(spacing: str, training_steps: int, steps: int) -> None:
    theirs = make_theirs("DDIM", "linear", "epsilon", (training_steps, steps), spacing)
    expected = theirs.timesteps.tolist()
    if spacing == "linspace" and steps == 1:
        expected = [training_steps - 1]  # one step from pure noise, where theirs would take τ = 0
    assert list(inference_timesteps(training_steps, steps, spacing)) == expected


@pytest.mark.parametrize("name", list(THEIR_SCHEDULE))
def test_forward_noise_and_velocity(name: str) -> None:
    ours = NoiseSchedule.named(name, 1000)
    theirs = make_theirs("DDIM", name, "v", (1000, 50))
    x0, noise = start().float(), start().float().flip(0)
    tau = torch.tensor([0, 10, 500, 999])
    torch.testing.assert_close(
        ours.add_noise(x0, noise, tau), theirs.add_noise(x0, noise, tau), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        ours.target("v", x0, noise, tau), theirs.get_velocity(x0, noise, tau), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "lengths", [(600, 30), (600, 100), (800, 50), (1000, 30), (1000, 50), (1000, 100)]
)
@pytest.mark.parametrize("prediction", list(THEIR_PREDICTION))
@pytest.mark.parametrize("name", list(THEIR_SCHEDULE))
def test_ddim(
    network: Predict, name: str, prediction: str, lengths: tuple[int, int], eta: float
) -> None:
    theirs = make_theirs("DDIM", name, prediction, lengths)
    schedule = in_double(theirs)
    expected = their_chain(
        theirs,
        network,
        start(),
        eta=eta,
        use_clipped_model_output=True,
        generator=torch.Generator().manual_seed(11),
    )
    ours = ddim_sample(
        network,
        start(),
        schedule,
        steps=lengths[1],
        prediction=prediction,
        eta=eta,
        spacing="leading",
        generator=torch.Generator().manual_seed(11),
    )
    torch.testing.assert_close(ours, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("steps", [5, 10, 50])
@pytest.mark.parametrize("prediction", list(THEIR_PREDICTION))
@pytest.mark.parametrize("name", list(THEIR_SCHEDULE))
def test_ddim_trailing(network: Predict, name: str, prediction: str, steps: int) -> None:
    # With a stride that divides T, theirs and ours take the same steps under this spacing too.
    theirs = make_theirs("DDIM", name, prediction, (1000, steps), "trailing")
    schedule = in_double(theirs)
    expected = their_chain(theirs, network, start(), use_clipped_model_output=True)
    ours = ddim_sample(network, start(), schedule, steps=steps, prediction=prediction)
    torch.testing.assert_close(ours, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [30, 100])
@pytest.mark.parametrize("prediction", list(THEIR_PREDICTION))
@pytest.mark.parametrize("name", list(THEIR_SCHEDULE))
def test_ddpm(network: Predict, name: str, prediction: str, steps: int, spacing: str) -> None:
    theirs = make_theirs("DDPM", name, prediction, (800, steps), spacing)
    schedule = in_double(theirs)
    expected = their_chain(theirs, network, start(), generator=torch.Generator().manual_seed(11))
    ours = ddpm_sample(
        network,
        start(),
        schedule,
        steps=steps,
        prediction=prediction,
        spacing=spacing,
        generator=torch.Generator().manual_seed(11),
    )
    torch.testing.assert_close(ours, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("prediction", list(THEIR_PREDICTION))
@pytest.mark.parametrize("name", list(THEIR_SCHEDULE))
def test_ddim_with_our_own_constants(network: Predict, name: str, prediction: str) -> None:
    theirs = make_theirs("DDIM", name, prediction, (1000, 50))
    expected = their_chain(theirs, network, start().float(), use_clipped_model_output=True)
    ours = ddim_sample(
        network,
        start().float(),
        NoiseSchedule.named(name, 1000),
        steps=50,
        prediction=prediction,
        spacing="leading",
    )
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
