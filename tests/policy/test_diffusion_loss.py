from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers.tensors import normal, seeded
from rankcast.errors import ConfigError
from rankcast.policy.ddim import NoiseSchedule, ddim_sample, guided_predict
from rankcast.policy.denoisers import ResidualMlpDenoiser
from rankcast.policy.diffusion_loss import (
    denoising_loss,
    reward_weighted_loss,
    reward_weights,
    utility_guided_loss,
)

SCHEDULE = NoiseSchedule.named("scaled_linear", 100)


def small(n: int = 4, c: int = 2) -> ResidualMlpDenoiser:
    denoiser = ResidualMlpDenoiser(n, c, hidden=32, time_dim=16)
    with torch.no_grad():
        generator = seeded(9)
        for p in denoiser.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator) * p.shape[-1] ** -0.5)
    return denoiser


class Oracle:
    """Knows x_0 and answers perfectly; remembers which conditions were hidden."""

    def __init__(self, x0: Tensor, prediction: str) -> None:
        self.x0, self.prediction, self.drop = x0, prediction, None

    def __call__(
        self, x: Tensor, tau: Tensor, condition: Tensor, drop: Tensor | None = None
    ) -> Tensor:
        self.drop = drop
        signal, sigma = SCHEDULE.scales(tau, x)
        return SCHEDULE.target(self.prediction, self.x0, (x - signal * self.x0) / sigma, tau)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_a_perfect_denoiser_has_no_loss(prediction: str) -> None:
    x0 = normal(16, 4).clamp(-1, 1)
    oracle = Oracle(x0, prediction)
    loss = denoising_loss(
        oracle, SCHEDULE, x0, normal(16, 2), generator=seeded(), prediction=prediction
    )
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_a_silent_denoiser_pays_the_variance_of_the_noise() -> None:
    x0 = torch.zeros(4000, 4)
    silent = lambda x, tau, condition, drop=None: torch.zeros_like(x)  # noqa: E731
    loss = denoising_loss(silent, SCHEDULE, x0, torch.zeros(4000, 2), generator=seeded())
    assert loss.item() == pytest.approx(1.0, abs=0.04)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_conditions_are_hidden_as_often_as_asked(probability: float) -> None:
    x0 = torch.zeros(4000, 1)
    oracle = Oracle(x0, "x0")
    denoising_loss(
        oracle, SCHEDULE, x0, torch.zeros(4000, 1),
        generator=seeded(), prediction="x0", condition_dropout=probability,
    )  # fmt: skip
    assert float(oracle.drop.float().mean()) == pytest.approx(probability, abs=0.03)


def test_the_same_generator_gives_the_same_loss() -> None:
    denoiser, x0, condition = small(), normal(8, 4), normal(8, 2)
    one, two, three = (
        denoising_loss(denoiser, SCHEDULE, x0, condition, generator=seeded(s)).item()
        for s in (1, 1, 2)
    )
    assert one == two != three


def test_weights_of_one_sample_leave_only_that_sample() -> None:
    denoiser, x0, condition = small(), normal(3, 4), normal(3, 2)

    def loss(weights: Tensor) -> float:
        return denoising_loss(
            denoiser, SCHEDULE, x0, condition, generator=seeded(), weights=weights
        ).item()

    first, second, _ = (loss(row) for row in torch.eye(3))
    assert first != second
    assert loss(torch.tensor([1.0, 3.0, 0.0])) == pytest.approx((first + 3 * second) / 4, rel=1e-5)


@pytest.mark.parametrize(
    "weights", [torch.zeros(3), torch.tensor([1.0, -1.0, 1.0]), torch.ones(2), torch.ones(3, 1)]
)
def test_unusable_weights_are_refused(weights: Tensor) -> None:
    with pytest.raises(ConfigError, match="Weights"):
        denoising_loss(
            small(), SCHEDULE, normal(3, 4), normal(3, 2), generator=seeded(), weights=weights
        )


def test_unusable_dropout_is_refused() -> None:
    with pytest.raises(ConfigError, match="condition_dropout"):
        denoising_loss(
            small(), SCHEDULE, normal(3, 4), normal(3, 2),
            generator=seeded(), condition_dropout=1.5,
        )  # fmt: skip


def test_reward_weights_by_hand() -> None:
    # Rewards -1 and 1 are already standardised: weights 2·softmax(∓κ).
    weights = reward_weights(torch.tensor([-1.0, 1.0]), 1.0)
    low, high = 2 / (1 + 2.718281828**2), 2 / (1 + 2.718281828**-2)
    torch.testing.assert_close(weights, torch.tensor([low, high]))


def test_reward_weights_ignore_scale_and_offset() -> None:
    rewards = normal(6)
    torch.testing.assert_close(
        reward_weights(rewards, 0.5), reward_weights(100 * rewards - 7, 0.5), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(reward_weights(torch.full((4,), 3.0), 0.5), torch.ones(4))


def test_without_guidance_the_reward_weighted_loss_is_the_plain_one() -> None:
    args = (small(), SCHEDULE, normal(8, 4), normal(8, 2))
    plain = denoising_loss(*args, generator=seeded())
    weighted = reward_weighted_loss(
        *args, normal(8, seed=3), generator=seeded(), guidance_weight=0.0
    )
    assert weighted.item() == pytest.approx(plain.item(), rel=1e-5)
    strong = reward_weighted_loss(*args, normal(8, seed=3), generator=seeded(), guidance_weight=3.0)
    assert strong.item() != pytest.approx(plain.item(), rel=1e-3)


def test_the_guided_loss_is_its_two_terms() -> None:
    args = (small(), SCHEDULE, normal(8, 4), normal(8, 2))
    loss = utility_guided_loss(
        *args, lambda x0: x0.sum(dim=1), generator=seeded(), guidance_weight=0.7
    )
    assert loss.total.item() == pytest.approx((loss.denoising - 0.7 * loss.reward).item(), rel=1e-5)
    plain = denoising_loss(*args, generator=seeded())
    assert loss.denoising.item() == pytest.approx(plain.item(), rel=1e-6)


def test_descending_the_guided_loss_raises_the_modelled_reward() -> None:
    # The data say +0.8 everywhere, the reward says -0.5: guided samples must move to the reward.
    denoiser, condition = small(), torch.zeros(32, 2)
    x0 = torch.full((32, 4), 0.8)
    reward = lambda x: -(x + 0.5).square().sum(dim=1)  # noqa: E731
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-2)
    generator = seeded(4)

    def sample_mean() -> float:
        with torch.no_grad():
            x = ddim_sample(
                guided_predict(denoiser, condition, 1.0), normal(32, 4, seed=8), SCHEDULE,
                steps=5, prediction="x0",
            )  # fmt: skip
        return float(x.mean())

    def train(steps: int, kappa: float) -> None:
        for _ in range(steps):
            loss = utility_guided_loss(
                denoiser, SCHEDULE, x0, condition, reward,
                generator=generator, prediction="x0", guidance_weight=kappa, chain_steps=5,
            )  # fmt: skip
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()

    train(60, 0.0)
    assert sample_mean() > 0.6
    train(60, 2.0)
    assert sample_mean() < 0.0
