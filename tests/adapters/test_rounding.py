"""Training on rounded weights sees the adapter that a decoder will have."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.models import adapted, logits, tiny_model
from rankcast.adapters.arrays import install, load_tensors, tensors_of
from rankcast.adapters.elastic import ElasticAdapter
from rankcast.adapters.export import save_adapter
from rankcast.adapters.layer import rounded
from rankcast.codec.container import pack_at_exponent
from rankcast.codec.quantiser import step_of
from rankcast.errors import ModelError
from rankcast.packaging.pack import read_adapter
from studies.baselines.canonical import balance


def test_rounding_passes_the_gradient() -> None:
    x = torch.tensor([0.2, 0.8, -1.4], requires_grad=True)
    y = rounded(x, 0.5)
    assert y.tolist() == [0.0, 1.0, -1.5]
    (y * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(("architecture", "causal"), [("bert", False), ("gpt2", True)])
def test_balancing_changes_no_answer_and_equalises_norms(architecture: str, causal: bool) -> None:
    adapter = adapted(architecture, causal=causal, scale=0.3)
    before = logits(adapter.model, causal=causal)
    balance(adapter)
    assert torch.allclose(logits(adapter.model, causal=causal), before, atol=1e-4)
    for Q, lam, P in adapter.factors():
        assert torch.allclose(lam * adapter.scale, torch.ones_like(lam))
        assert torch.allclose(Q.norm(dim=1), P.norm(dim=0), rtol=1e-4)
    with adapter.at_steps([1e-6] * len(adapter.layers)):
        assert torch.allclose(logits(adapter.model, causal=causal), before, atol=1e-3)


@pytest.mark.parametrize(("architecture", "causal"), [("bert", False), ("gpt2", True)])
def test_rounded_logits_are_those_of_the_decoded_adapter(
    architecture: str, causal: bool, tmp_path: Path
) -> None:
    adapter = adapted(architecture, causal=causal, scale=0.3)
    balance(adapter)
    save_adapter(adapter, tmp_path)
    source = read_adapter(tmp_path)
    exponent = -12
    container = pack_at_exponent(source, exponent, n_steps=1, n_parts=1)
    base = tiny_model(architecture, causal=causal)
    tensors = container.tensors()
    if not causal:  # the head travels in finer steps than the factors; compare the factors alone
        tensors = dataclasses.replace(tensors, modules=source.tensors.modules)
    installed = install(base, tensors, container.header).eval()
    with adapter.at_steps([float(step_of(exponent))] * len(adapter.layers)):
        expected = logits(adapter.model, causal=causal)
    exact = logits(adapter.model, causal=causal)
    assert not torch.allclose(exact, expected, atol=1e-2)
    assert torch.allclose(logits(installed, causal=causal), expected, atol=2e-4)


def test_weights_trained_on_a_grid_stay_on_it_on_disk(tmp_path: Path) -> None:
    adapter = adapted(scale=0.3)
    balance(adapter)
    with torch.no_grad():  # a finish moves both factors, and their norms apart
        for Q, _, P in adapter.factors():
            P.mul_(1.3)
            Q.mul_(0.9)
    save_adapter(adapter, tmp_path)
    tensors = read_adapter(tmp_path).tensors
    for f, (Q, _, P) in zip(tensors.factors, adapter.factors(), strict=True):
        np.testing.assert_array_equal(f.left, P.detach().numpy())
        np.testing.assert_array_equal(f.right, Q.detach().numpy())


def test_the_step_is_restored_and_ranks_still_hold() -> None:
    adapter = adapted(scale=0.3)
    balance(adapter)
    exact = logits(adapter.model)
    ranks = np.zeros(adapter.layout.n_projections, dtype=np.int64)
    with adapter.at_ranks(ranks), adapter.at_steps([0.3] * len(adapter.layers)):
        none = logits(adapter.model)
    with adapter.at_ranks(ranks):
        assert torch.equal(logits(adapter.model), none)
    assert torch.equal(logits(adapter.model), exact)


@pytest.mark.parametrize("modules", [None, ["classifier", "bert.pooler"]])
def test_factors_go_out_and_come_back(modules: list[str] | None) -> None:
    adapter = adapted(scale=0.3, modules=modules)
    with pytest.raises(ModelError, match="balance"):
        tensors_of(adapter)
    balance(adapter)
    adapter.set_ranks(np.array([0, 1, 2, 3, 4, 4] * 2))
    tensors = tensors_of(adapter)
    assert tensors.ranks.tolist() == [0, 1, 2, 3, 4, 4] * 2
    assert ("difference" in tensors.carriage.values()) == (modules is not None)

    other = ElasticAdapter.attach(tiny_model("bert"), r_max=5, alpha=2.0, modules_to_save=modules)
    other.model.eval()
    load_tensors(other, tensors)
    assert torch.allclose(logits(other.model), logits(adapter.model), atol=1e-4)
    again = tensors_of(other)
    for f, g in zip(tensors.factors, again.factors, strict=True):
        np.testing.assert_allclose(f.left, g.left, rtol=1e-6)
        np.testing.assert_allclose(f.right, g.right, rtol=1e-6)
    for name, values in tensors.modules.items():
        np.testing.assert_allclose(values, again.modules[name], atol=1e-6)


def test_factors_that_do_not_fit_are_refused() -> None:
    adapter = adapted(scale=0.3)
    balance(adapter)
    tensors = tensors_of(adapter)
    small = ElasticAdapter.attach(tiny_model("bert"), r_max=2)
    with pytest.raises(ModelError, match="r_max"):
        load_tensors(small, tensors)
    few = ElasticAdapter.attach(tiny_model("bert"), r_max=4, kinds=["q"])
    with pytest.raises(ModelError, match="other projections"):
        load_tensors(few, tensors)
    modules = {"other.weight": np.zeros(2, np.float32)}
    other = dataclasses.replace(tensors, modules=modules, carriage={"other.weight": "full"})
    with pytest.raises(ModelError, match=r"other\.weight"):
        load_tensors(adapter, other)
