from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.tensors import normal, seeded
from rankcast.config.policy import DiffusionConfig
from rankcast.errors import ConfigError
from rankcast.policy.ddim import (
    NoiseSchedule,
    ddim_sample,
    guided_predict,
    inference_timesteps,
    reverse_steps,
    split_output,
)
from rankcast.policy.denoisers import ResidualMlpDenoiser

PREDICTIONS = ["epsilon", "v", "x0"]


def test_three_steps_by_hand() -> None:
    schedule = NoiseSchedule.named("linear", 3, beta_start=0.1, beta_end=0.3)
    expected = torch.tensor([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7], dtype=torch.float64)
    torch.testing.assert_close(schedule.betas, torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
    torch.testing.assert_close(schedule.alpha_bars, expected)


def test_scaled_linear_is_linear_in_the_root() -> None:
    schedule = NoiseSchedule.named("scaled_linear", 3, beta_start=0.01, beta_end=0.09)
    torch.testing.assert_close(
        schedule.betas, torch.tensor([0.01, 0.04, 0.09], dtype=torch.float64)
    )


def test_forward_noise_by_hand() -> None:
    schedule = NoiseSchedule.named("linear", 3, beta_start=0.1, beta_end=0.3)
    noisy = schedule.add_noise(torch.ones(1, 2), torch.full((1, 2), 2.0), torch.tensor([1]))
    expected = math.sqrt(0.72) + 2 * math.sqrt(0.28)
    torch.testing.assert_close(noisy, torch.full((1, 2), expected))


def test_forward_noise_keeps_unit_variance() -> None:
    schedule = NoiseSchedule.named("cosine", 1000)
    tau = torch.full((4000,), 400)
    noisy = schedule.add_noise(normal(4000, 8), normal(4000, 8, seed=1), tau)
    assert float(noisy.var()) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", ["linear", "cosine", "scaled_linear"])
def test_a_perfect_output_gives_back_clean_code_and_noise(name: str, prediction: str) -> None:
    schedule = NoiseSchedule.named(name, 600)
    x0, noise = normal(4, 5).double(), normal(4, 5, seed=1).double()
    tau = torch.tensor([0, 100, 400, 590])
    x = schedule.add_noise(x0, noise, tau)
    output = schedule.target(prediction, x0, noise, tau)
    clean, implied = split_output(prediction, output, x, *schedule.scales(tau, x))
    torch.testing.assert_close(clean, x0, atol=1e-9, rtol=0)
    torch.testing.assert_close(implied, noise, atol=1e-9, rtol=0)


def test_velocity_is_the_papers_definition() -> None:
    schedule = NoiseSchedule.named("linear", 3, beta_start=0.1, beta_end=0.3)
    v = schedule.target("v", torch.ones(1, 1), torch.full((1, 1), 2.0), torch.tensor([1]))
    assert float(v) == pytest.approx(2 * math.sqrt(0.72) - math.sqrt(0.28))


def test_spacings_by_hand() -> None:
    assert inference_timesteps(1000, 4, "leading") == (750, 500, 250, 0)
    assert inference_timesteps(1000, 4, "trailing") == (999, 749, 499, 249)
    assert inference_timesteps(1000, 4, "linspace") == (999, 666, 333, 0)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(("training_steps", "steps"), [(10, 10), (7, 5), (999, 998), (1000, 1)])
def test_timesteps_fall_strictly_and_stay_in_range(
    spacing: str, training_steps: int, steps: int
) -> None:
    taus = inference_timesteps(training_steps, steps, spacing)
    assert len(taus) == steps
    assert all(a > b for a, b in pairwise(taus))
    assert taus[-1] >= 0
    assert taus[0] < training_steps


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NoiseSchedule.named("cosin"), "did you mean 'cosine'"),
        (lambda: NoiseSchedule.named("linear", 0), "training_steps"),
        (lambda: NoiseSchedule.named("linear", 10, 0.5, 0.1), "start"),
        (lambda: inference_timesteps(100, 101), "1..100"),
        (lambda: inference_timesteps(100, 0), "1..100"),
        (lambda: inference_timesteps(100, 10, "leadin"), "leading"),
        (lambda: reverse_steps(NoiseSchedule.named(), 5, eta=-0.1), "eta"),
    ],
)
def test_bad_settings_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def test_unknown_prediction_type_is_refused() -> None:
    schedule = NoiseSchedule.named("linear", 10)
    x = torch.zeros(1, 2)
    with pytest.raises(ConfigError, match="epsilon"):
        schedule.target("eps", x, x, torch.tensor([0]))


def test_defaults_are_table_2s() -> None:
    config = DiffusionConfig()
    assert (config.training_steps, config.inference_steps) == (1000, 50)
    assert (config.learning_rate, config.batch_size, config.guidance_weight) == (5e-5, 32, 0.1)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", ["linear", "cosine", "scaled_linear"])
def test_a_model_that_knows_the_answer_is_followed_to_it(name: str, spacing: str) -> None:
    schedule = NoiseSchedule.named(name, 1000)
    answer = normal(3, 6).clamp(-1, 1)
    x = ddim_sample(
        lambda x, tau: answer, normal(3, 6, seed=1), schedule,
        steps=5, prediction="x0", spacing=spacing,
    )  # fmt: skip
    torch.testing.assert_close(x, answer, atol=1e-5, rtol=0)


def test_the_clean_estimate_is_clipped_and_the_noise_follows_it() -> None:
    # One step from τ to 0: the chain returns x̂_0 itself, clipped.
    schedule = NoiseSchedule.named("linear", 100)
    predict = lambda x, tau: torch.full_like(x, 5.0)  # noqa: E731
    x = ddim_sample(predict, torch.zeros(1, 2), schedule, steps=1, prediction="x0")
    assert x.tolist() == [[1.0, 1.0]]
    free = ddim_sample(predict, torch.zeros(1, 2), schedule, steps=1, prediction="x0", clip=None)
    assert free.tolist() == [[5.0, 5.0]]


def test_literal_equation_16_gives_another_answer() -> None:
    # Two steps by hand, T = 2, β = (0.1, 0.2), ε̃ ≡ 1, x_T = 1.
    schedule = NoiseSchedule.named("linear", 2, 0.1, 0.2)
    predict = lambda x, tau: torch.ones_like(x)  # noqa: E731
    x = ddim_sample(predict, torch.ones(1, 1), schedule, steps=2, clean_estimate="posterior_mean")
    mean = (1 - 0.2 / math.sqrt(1 - 0.72)) / math.sqrt(0.8)
    middle = math.sqrt(0.9) * mean + math.sqrt(0.1)
    expected = (middle - 0.1 / math.sqrt(0.1)) / math.sqrt(0.9)
    assert float(x) == pytest.approx(expected, abs=1e-6)
    right = ddim_sample(predict, torch.ones(1, 1), schedule, steps=2)
    assert abs(float(right) - expected) > 0.05


def test_eta_1_needs_a_generator_and_eta_0_ignores_it() -> None:
    schedule = NoiseSchedule.named("linear", 100)
    predict = lambda x, tau: 0.1 * x  # noqa: E731
    with pytest.raises(ConfigError, match="generator"):
        ddim_sample(predict, normal(2, 3), schedule, steps=5, eta=1.0)
    plain = ddim_sample(predict, normal(2, 3), schedule, steps=5)
    with_generator = ddim_sample(predict, normal(2, 3), schedule, steps=5, generator=seeded(1))
    assert torch.equal(plain, with_generator)


def test_a_short_chain_has_the_gradient_of_finite_differences() -> None:
    schedule = NoiseSchedule.named("linear", 100)
    weight = (normal(3, 3) / 5).double().requires_grad_()
    x_T = normal(2, 3, seed=1).double()

    def outcome(weight: Tensor) -> Tensor:
        predict = lambda x, tau: torch.tanh(x @ weight)  # noqa: E731
        return ddim_sample(predict, x_T, schedule, steps=3, prediction="v", clip=None)

    assert torch.autograd.gradcheck(outcome, (weight,))


def test_inward_gradient_can_bring_a_saturated_entry_back() -> None:
    schedule = NoiseSchedule.named("linear", 100)
    level = torch.tensor(3.0, requires_grad=True)

    def gradient(sign: float, **kwargs: Any) -> float:
        x = ddim_sample(
            lambda x, tau: level.expand_as(x), torch.zeros(1, 1), schedule,
            steps=1, prediction="x0", **kwargs,
        )  # fmt: skip
        return float(torch.autograd.grad(sign * x.sum(), level)[0])

    assert gradient(+1) == 0.0
    assert gradient(+1, inward_gradient=True) == 1.0  # descent lowers x: allowed
    assert gradient(-1, inward_gradient=True) == 0.0  # descent would push it further out


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_is_the_mix_of_two_calls(scale: float) -> None:
    denoiser = ResidualMlpDenoiser(5, 3, hidden=8)
    torch.nn.init.normal_(denoiser.null_condition, generator=seeded(2))
    x, tau, condition = normal(4, 5), torch.tensor([0, 3, 50, 99]), normal(4, 3, seed=1)
    cond = denoiser(x, tau, condition, torch.zeros(4, dtype=torch.bool))
    uncond = denoiser(x, tau, condition, torch.ones(4, dtype=torch.bool))
    guided = guided_predict(denoiser, condition, scale)(x, tau)
    torch.testing.assert_close(guided, uncond + scale * (cond - uncond))
    assert not torch.allclose(cond, uncond)
