from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from helpers.models import randomise, tiny_batch, tiny_model
from rankcast.adapters.elastic import ElasticAdapter
from rankcast.errors import ConfigError, DataError, ModelError
from studies.baselines.canonical import canonicalise
from studies.baselines.eva import eva_ranks, eva_scores
from studies.baselines.importance import sensitivity_scores, spectral_scores
from studies.baselines.second_moments import collect_second_moments

N, R = 12, 4


def attach(architecture: str = "bert", r_max: int = R, alpha: float = 6.0) -> ElasticAdapter:
    adapter = ElasticAdapter.attach(tiny_model(architecture), r_max=r_max, alpha=alpha)
    randomise(adapter)
    return adapter


def moments(adapter: ElasticAdapter, *, full: bool) -> list[torch.Tensor]:
    return collect_second_moments(adapter, [tiny_batch(seed=3), tiny_batch(seed=4)], full=full)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**tiny_batch()).logits


def test_plain_scores_are_the_squared_singular_values() -> None:
    adapter = attach()
    before = adapter.state_dict()
    scores = spectral_scores(adapter)
    assert scores.shape == (N, R)
    for i in range(N):
        delta = adapter.delta_weight(i, R).double()
        expected = torch.linalg.svdvals(delta)[:R].square()
        assert np.allclose(scores[i], expected.numpy(), rtol=1e-4)
    assert all(torch.equal(before[name], after) for name, after in adapter.state_dict().items())


def test_the_scores_of_a_hand_made_update() -> None:
    adapter = attach(alpha=4.0)
    Q, lam, P = adapter.factors()[0]
    with torch.no_grad():
        for factor in (Q, lam, P):
            factor.zero_()
        for i, value in enumerate((2.0, -5.0, 1.0)):
            Q[i, i], lam[i], P[i, i] = 1.0, value, 1.0
    assert spectral_scores(adapter)[0] == pytest.approx([25, 4, 1, 0])
    # An input that is nine times as strong along the third axis makes the third component lead.
    weights = [torch.ones(p.d_in) for p in adapter.layout.projections]
    weights[0][2] = 81.0
    assert spectral_scores(adapter, weights)[0] == pytest.approx([81, 25, 4, 0])


@pytest.mark.parametrize("full", [False, True])
def test_weighted_scores_are_what_each_component_adds_to_the_output(full: bool) -> None:
    adapter = attach()
    C = moments(adapter, full=full)
    scores = spectral_scores(adapter, C)
    assert (np.diff(scores, axis=1) <= 1e-9).all()
    canonicalise(adapter, C)
    for i in range(N):
        moment = C[i] if full else torch.diag(C[i])
        for rank in range(1, R + 1):
            delta = adapter.delta_weight(i, rank).double()
            energy = torch.trace(delta @ moment @ delta.mT).item()
            assert scores[i, :rank].sum() == pytest.approx(energy, rel=1e-3)


def test_moments_of_another_model_are_refused() -> None:
    adapter = attach()
    with pytest.raises(ModelError, match="Second moments"):
        spectral_scores(adapter, [torch.ones(16)])
    with pytest.raises(ModelError, match="Second moments"):
        spectral_scores(adapter, [torch.ones(5)] * N)


def test_sensitivity_is_the_slope_of_the_loss_in_each_component() -> None:
    adapter = attach()
    adapter.model.double()
    adapter.set_ranks(np.ones(N, dtype=int))
    batch = tiny_batch(seed=5)
    scores = sensitivity_scores(adapter, [batch], vectors=False)
    assert adapter.ranks.tolist() == [1] * N

    def loss_with(index: int, component: int, factor: float) -> float:
        lam = adapter.factors()[index][1]
        before = lam[component].item()
        with torch.no_grad(), adapter.at_ranks([R] * N):
            lam[component] = before * factor
            loss = adapter.model(**batch).loss.item()
            lam[component] = before
        return loss

    h = 1e-5
    for index, component in ((0, 0), (3, 2), (11, 3)):
        slope = loss_with(index, component, 1 + h) - loss_with(index, component, 1 - h)
        assert scores[index, component] == pytest.approx(abs(slope / (2 * h)), rel=1e-3)


def test_sensitivity_averages_over_batches_and_leaves_no_gradients() -> None:
    adapter = attach()
    adapter.model.train()
    batches = [tiny_batch(seed=s) for s in (5, 6)]
    both = sensitivity_scores(adapter, batches)
    single = [sensitivity_scores(adapter, [batch]) for batch in batches]
    assert np.allclose(both, np.mean(single, axis=0))
    assert (both > sensitivity_scores(adapter, batches, vectors=False)).all()
    assert all(p.grad is None for p in adapter.model.parameters())
    assert adapter.model.training


def test_vectors_add_the_mean_of_their_entries() -> None:
    adapter, batch = attach(), tiny_batch(seed=5)
    adapter.model.eval()
    adapter.model(**batch).loss.backward()
    Q, _, P = adapter.factors()[7]
    assert P.grad is not None
    assert Q.grad is not None
    added = (P * P.grad).abs().mean(0) + (Q * Q.grad).abs().mean(1)
    difference = sensitivity_scores(adapter, [batch]) - sensitivity_scores(
        adapter, [batch], vectors=False
    )
    assert difference[7] == pytest.approx(added.detach().double().numpy(), rel=1e-4)


def test_a_fresh_adapter_or_no_batch_tells_nothing() -> None:
    fresh = ElasticAdapter.attach(tiny_model("bert"), r_max=R)
    with pytest.raises(ModelError, match="Train it first"):
        sensitivity_scores(fresh, [tiny_batch()])
    with pytest.raises(DataError, match="at least one batch"):
        sensitivity_scores(fresh, [])


def eva_batches() -> list[dict[str, torch.Tensor]]:
    return [tiny_batch(seed=s, batch=16, length=9) for s in range(3)]


def test_eva_scores_are_the_explained_variance_of_the_inputs() -> None:
    adapter = attach()
    adapter.model.train()
    (batch,) = eva_batches()[:1]
    seen: list[torch.Tensor] = []
    fc1 = adapter.layout.kinds.index("fc1")
    with torch.no_grad():
        plain = tiny_model("bert")
        name = adapter.layout.projections[fc1].name
        handle = plain.get_submodule(name).register_forward_hook(lambda _, x, __: seen.append(x[0]))
        plain(**batch)
        handle.remove()
    scores = eva_scores(adapter, [batch])
    x = seen[0].flatten(0, 1).double()
    values = torch.linalg.svdvals(x - x.mean(0)).square()
    assert scores.shape == (N, R)
    assert scores[fc1] == pytest.approx((values / values.sum())[:R].numpy(), rel=0.02)
    # Queries, keys and values of a layer read the same input.
    assert np.array_equal(scores[0], scores[1])
    assert np.array_equal(scores[0], scores[2])
    assert adapter.model.training


def test_eva_gives_out_its_budget_and_cleans_up() -> None:
    adapter = attach()
    expected = logits(adapter.model.eval())
    ranks = eva_ranks(adapter, eva_batches(), mean_rank=2)
    assert ranks.sum() == 2 * N
    assert ranks.max() <= R
    assert ranks.dtype == np.int64
    assert eva_ranks(adapter, eva_batches(), mean_rank=2, rho=1.0).tolist() == [2] * N
    assert not any(module._forward_hooks for module in adapter.model.modules())
    assert torch.equal(logits(adapter.model), expected)


def test_eva_that_does_not_settle_says_so_and_cleans_up() -> None:
    adapter = attach()
    with pytest.raises(DataError, match="not settled after 2"):
        eva_ranks(adapter, eva_batches(), mean_rank=2, max_passes=2)
    few = [tiny_batch(batch=1, length=3)]
    with pytest.raises(DataError, match="r_max = 4 tokens"):
        eva_scores(adapter, few, max_passes=2)
    assert not any(module._forward_hooks for module in adapter.model.modules())


@pytest.mark.parametrize("settings", [{"mean_rank": 0}, {"mean_rank": 5}, {"rho": 0.5}, {"rho": 3}])
def test_eva_refuses_ranks_out_of_bounds(settings: Any) -> None:
    with pytest.raises(ConfigError):
        eva_ranks(attach(), eva_batches(), **({"mean_rank": 2} | settings))
    with pytest.raises(DataError, match="at least one batch"):
        eva_scores(attach(), [])


def test_second_moments_are_means_over_the_attended_inputs() -> None:
    adapter = attach()
    batches = [tiny_batch(seed=0), tiny_batch(seed=1, batch=2)]
    batches[1]["attention_mask"][:, 4:] = 0
    seen: list[torch.Tensor] = []
    hook = adapter.layers[0].register_forward_pre_hook(lambda _, x: seen.append(x[0].detach()))
    adapter.model.train()
    diagonal = collect_second_moments(adapter, batches)
    hook.remove()
    assert adapter.model.training
    full = collect_second_moments(adapter, batches, full=True)
    X = torch.cat([seen[0].flatten(0, 1), seen[1][:, :4].flatten(0, 1)]).double()

    torch.testing.assert_close(full[0], X.T @ X / len(X), rtol=1e-4, atol=1e-5)
    for d, f in zip(diagonal, full, strict=True):
        torch.testing.assert_close(d, f.diagonal(), rtol=1e-4, atol=1e-5)
    assert [len(d) for d in diagonal] == [p.d_in for p in adapter.layout.projections]
    with pytest.raises(DataError, match="at least one batch"):
        collect_second_moments(adapter, [])
