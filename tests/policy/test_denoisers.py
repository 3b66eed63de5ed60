from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from helpers.tensors import normal, seeded
from rankcast.errors import ConfigError
from rankcast.policy.ddim import NoiseSchedule, ddim_sample, guided_predict
from rankcast.policy.denoisers import ResidualMlpDenoiser, UNetDenoiser, time_embedding
from rankcast.policy.fast_ddim import FastSampler

Builder = Callable[[int, int], ResidualMlpDenoiser | UNetDenoiser]
BUILDERS: dict[str, Builder] = {
    "mlp": lambda n, c: ResidualMlpDenoiser(n, c, hidden=32),
    "unet": lambda n, c: UNetDenoiser(n, c, channels=8),
}


@pytest.fixture(params=list(BUILDERS))
def build(request: pytest.FixtureRequest) -> Builder:
    return BUILDERS[request.param]


@pytest.mark.parametrize("n", [2, 3, 5, 12, 36, 144, 145])
def test_output_has_the_shape_of_the_input(build: Builder, n: int) -> None:
    denoiser = build(n, 4)
    output = denoiser(normal(3, n), torch.tensor([0, 10, 999]), normal(3, 4), None)
    assert output.shape == (3, n)
    assert torch.isfinite(output).all()


def test_rows_do_not_mix(build: Builder) -> None:
    denoiser = build(12, 4)
    x, tau, condition = normal(3, 12), torch.tensor([5, 10, 999]), normal(3, 4, seed=1)
    together = denoiser(x, tau, condition)
    alone = denoiser(x[1:2], tau[1:2], condition[1:2])
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=0)


def test_time_and_condition_matter(build: Builder) -> None:
    denoiser = build(12, 4)
    x, tau, condition = normal(1, 12), torch.tensor([5]), normal(1, 4, seed=1)
    base = denoiser(x, tau, condition)
    assert not torch.allclose(base, denoiser(x, tau + 300, condition), atol=1e-4)
    assert not torch.allclose(base, denoiser(x, tau, condition + 1), atol=1e-4)


def test_a_hidden_condition_is_the_null_condition(build: Builder) -> None:
    denoiser = build(12, 4)
    torch.nn.init.constant_(denoiser.null_condition, 0.7)
    x, tau, condition = normal(2, 12), torch.tensor([5, 6]), normal(2, 4, seed=1)
    output = denoiser(x, tau, condition, torch.tensor([True, False]))
    null = denoiser(x, tau, torch.full((2, 4), 0.7))
    shown = denoiser(x, tau, condition)
    torch.testing.assert_close(output[0], null[0])
    torch.testing.assert_close(output[1], shown[1])


def test_every_parameter_is_used(build: Builder) -> None:
    denoiser = build(36, 4)
    drop = torch.tensor([True, False, False])
    denoiser(normal(3, 36), torch.tensor([5, 6, 7]), normal(3, 4), drop).square().sum().backward()
    unused = [name for name, p in denoiser.named_parameters() if p.grad is None]
    assert unused == []


def test_depth_is_limited_by_length() -> None:
    assert [UNetDenoiser(n, 1).levels for n in (2, 3, 4, 36, 144)] == [1, 1, 2, 5, 6]
    assert UNetDenoiser(144, 1).padded == 160


def test_mlp_holds_the_weights_that_its_docstring_describes() -> None:
    n_weights = sum(p.numel() for p in ResidualMlpDenoiser(144, 10).parameters())
    layers = (144 + 64 + 10 + 1) * 512 + 2 * (512 + 1) * 512 + (512 + 1) * 144
    assert n_weights == layers + 10


def test_time_embedding_by_hand() -> None:
    embedded = time_embedding(torch.tensor([0, 1]), 4)
    torch.testing.assert_close(embedded[0], torch.tensor([0.0, 0.0, 1.0, 1.0]))
    angles = torch.tensor([1.0, 0.01])
    torch.testing.assert_close(embedded[1], torch.cat([angles.sin(), angles.cos()]))


@pytest.mark.parametrize(
    "call",
    [
        lambda: ResidualMlpDenoiser(0, 3),
        lambda: ResidualMlpDenoiser(4, 3, time_dim=7),
        lambda: UNetDenoiser(1, 3),
        lambda: UNetDenoiser(8, 3, kernel=4),
        lambda: UNetDenoiser(8, 3, channels=64, max_channels=32),
    ],
)
def test_bad_sizes_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        call()


def trained_looking(n: int, c: int, hidden: int, blocks: int = 2) -> ResidualMlpDenoiser:
    denoiser = ResidualMlpDenoiser(n, c, hidden=hidden, blocks=blocks)
    generator = seeded(5)
    with torch.no_grad():
        for p in denoiser.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * p.shape[-1] ** -0.5)
    return denoiser


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
@pytest.mark.parametrize(("name", "steps"), [("scaled_linear", 50), ("linear", 5), ("cosine", 10)])
def test_fast_sampler_equals_the_eager_chain(
    name: str, steps: int, prediction: str, scale: float, batch: int
) -> None:
    denoiser = trained_looking(24, 6, 64)
    schedule = NoiseSchedule.named(name, 1000)
    x_T, condition = normal(batch, 24), normal(batch, 6, seed=1)
    with torch.inference_mode():
        eager = ddim_sample(
            guided_predict(denoiser, condition, scale), x_T, schedule,
            steps=steps, prediction=prediction,
        )  # fmt: skip
    fast = FastSampler.from_denoiser(denoiser, schedule, steps, scale, prediction)
    torch.testing.assert_close(fast.sample(x_T, condition), eager, atol=1e-4, rtol=0)


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_fast_sampler_takes_any_depth_clip_and_spacing(blocks: int, clip: float | None) -> None:
    denoiser = trained_looking(10, 3, 16, blocks)
    schedule = NoiseSchedule.named("scaled_linear", 600)
    x_T, condition = normal(2, 10), normal(2, 3, seed=1)
    predict = guided_predict(denoiser, condition, 1.5)
    eager = ddim_sample(
        predict, x_T, schedule, steps=8, prediction="v", clip=clip, spacing="leading"
    )
    fast = FastSampler.from_denoiser(denoiser, schedule, 8, 1.5, "v", clip=clip, spacing="leading")
    torch.testing.assert_close(fast.sample(x_T, condition), eager.detach(), atol=1e-4, rtol=0)


def test_fast_sampler_is_a_snapshot_and_leaves_its_inputs_alone() -> None:
    denoiser = trained_looking(10, 3, 16)
    fast = FastSampler.from_denoiser(denoiser, NoiseSchedule.named(), 4)
    x_T, condition = normal(2, 10), normal(2, 3, seed=1)
    before = fast.sample(x_T, condition)
    with torch.no_grad():
        for p in denoiser.parameters():
            p.zero_()
    assert torch.equal(fast.sample(x_T, condition), before)
    assert torch.equal(x_T, normal(2, 10))


def test_fast_sampler_refuses_wrong_widths() -> None:
    fast = FastSampler.from_denoiser(trained_looking(10, 3, 16), NoiseSchedule.named(), 4)
    with pytest.raises(ConfigError, match=r"\(B, 10\)"):
        fast.sample(normal(2, 9), normal(2, 3))
    with pytest.raises(ConfigError, match=r"\(B, 3\)"):
        fast.sample(normal(2, 10), normal(1, 3))


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_visible_conditions_are_never_hidden_and_the_fast_sampler_agrees(scale: float) -> None:
    denoiser = ResidualMlpDenoiser(6, 5, hidden=16, n_visible=2)
    torch.nn.init.constant_(denoiser.null_condition, 0.7)
    schedule = NoiseSchedule.named("scaled_linear", 100)
    x_T, condition = normal(3, 6), normal(3, 5, seed=1)
    eager = ddim_sample(
        guided_predict(denoiser, condition, scale), x_T, schedule, steps=5, prediction="x0"
    )
    fast = FastSampler.from_denoiser(denoiser, schedule, 5, scale, "x0").sample(x_T, condition)
    torch.testing.assert_close(fast, eager, atol=1e-4, rtol=0)

    other = condition.clone()
    other[:, 2:] += 1.0  # what may be hidden
    hidden = torch.ones(3, dtype=torch.bool)
    tau = torch.zeros(3, dtype=torch.long)
    same = denoiser(x_T, tau, other, hidden)
    torch.testing.assert_close(same, denoiser(x_T, tau, condition, hidden))
    other[:, 0] += 1.0  # what never is
    assert not torch.allclose(denoiser(x_T, tau, other, hidden), same)
