"""Frozen weights in bfloat16 answer as they did before, to the last bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rankcast.learner.frozen_weights import lower_frozen


def model_of(exact: bool) -> nn.Sequential:
    """Two linear maps; the first is frozen, and bfloat16 loses nothing of it if it is exact."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 32), nn.GELU(), nn.Linear(32, 8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    for parameter in model[0].parameters():
        if exact:
            parameter.data = parameter.data.to(torch.bfloat16).float()
        parameter.requires_grad_(False)
    return model


def passes(model: nn.Module) -> list[Tensor]:
    """Answers and gradients in float32 and under autocast."""
    x = torch.randn(3, 16, 48, generator=torch.Generator().manual_seed(1), requires_grad=True)
    found = []
    for is_low in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_low):
            answer = model(x)
        found += [answer, *torch.autograd.grad(answer.float().square().sum(), x)]
    with torch.no_grad():
        return [*found, model(x)]


@pytest.mark.parametrize("exact", [True, False])
def test_lowered_weights_give_the_same_bits(exact: bool) -> None:
    model = model_of(exact)
    before, names = passes(model), set(model.state_dict())
    assert lower_frozen(model, also_rounded=True) == 1
    assert all(torch.equal(one, other) for one, other in zip(before, passes(model), strict=True))
    assert set(model.state_dict()) == names
    assert model[0].weight.dtype is (torch.bfloat16 if exact else torch.float32)
    assert model[2].weight.dtype is torch.float32  # it trains


def test_weights_that_bfloat16_would_change_stay_if_no_copy_is_wanted() -> None:
    model = model_of(exact=False)
    assert lower_frozen(model, also_rounded=False) == 0
    assert "forward" not in model[0].__dict__
    assert lower_frozen(model_of(exact=True), also_rounded=False) == 1


def test_no_float32_weights_are_kept_for_the_backward_pass() -> None:
    model = model_of(exact=True)
    lower_frozen(model, also_rounded=False)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        model(torch.ones(2, 48, requires_grad=True))
    shapes = [x.dtype for x in kept if x.shape == (32, 48)]
    assert shapes == [torch.bfloat16]
