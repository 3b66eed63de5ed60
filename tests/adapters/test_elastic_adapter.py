from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from helpers.models import ARCHITECTURES, randomise, tiny_batch, tiny_model
from rankcast.adapters.elastic import ElasticAdapter
from rankcast.adapters.export import load_adapter, save_adapter
from rankcast.errors import CheckpointError, ConfigError, ModelError


def attach(architecture: str = "bert", **options: Any) -> ElasticAdapter:
    adapter = ElasticAdapter.attach(tiny_model(architecture), **({"r_max": 4} | options))
    randomise(adapter)
    adapter.model.eval()
    return adapter


def logits(model: Any, **batch: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**(batch or tiny_batch())).logits


def some_ranks(adapter: ElasticAdapter, seed: int = 0) -> np.ndarray:
    n, r_max = adapter.layout.n_projections, adapter.layout.r_max
    return np.random.default_rng(seed).integers(0, r_max + 1, n)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forward_is_the_base_model_with_the_truncated_product_added(architecture: str) -> None:
    adapter = attach(architecture, alpha=6.0)
    ranks = some_ranks(adapter)
    adapter.set_ranks(ranks)
    expected = tiny_model(architecture)
    head = expected.state_dict()
    for i, p in enumerate(adapter.layout.projections):
        P, lam, Q = adapter.components(i)
        r = ranks[i]
        delta = 6.0 / 4 * P[:, :r] @ torch.diag(lam[:r]) @ Q[:r]
        head[f"{p.name}.weight"] += delta.T if architecture == "gpt2" else delta
        assert torch.allclose(adapter.delta_weight(i), delta, atol=1e-6)
    expected.load_state_dict(head)

    assert torch.allclose(logits(adapter.model), logits(expected), atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rank_zero_is_exactly_the_base_model(architecture: str) -> None:
    adapter = attach(architecture)
    adapter.set_ranks(np.zeros(adapter.layout.n_projections, dtype=int))

    assert torch.equal(logits(adapter.model), logits(tiny_model(architecture)))


def test_a_fresh_adapter_changes_nothing_and_can_learn() -> None:
    adapter = ElasticAdapter.attach(tiny_model("bert"), r_max=4)

    assert torch.equal(logits(adapter.model.eval()), logits(tiny_model("bert")))
    adapter.model(**tiny_batch()).loss.backward()
    for Q, lam, P in adapter.factors():
        assert P.grad is not None
        assert P.grad.abs().sum() > 0
        assert not P.any()
        assert lam.detach().eq(1).all()
        torch.testing.assert_close((Q @ Q.T).detach(), torch.eye(4))


def test_the_spread_of_q_can_be_chosen() -> None:
    adapter = ElasticAdapter.attach(tiny_model("bert"), r_max=16, init_std=0.5)
    values = torch.cat([Q.detach().flatten() for Q, _, _ in adapter.factors()])

    assert len(values) > 3000
    assert values.std().item() == pytest.approx(0.5, rel=0.05)


def test_full_rank_agrees_with_pefts_adalora() -> None:
    from peft import AdaLoraConfig, get_peft_model

    adapter = attach("bert", alpha=6.0)
    names = [p.name for p in adapter.layout.projections]
    config = AdaLoraConfig(
        init_r=4, target_r=4, lora_alpha=6, target_modules=names, total_step=100, tinit=10, tfinal=1
    )
    stock = get_peft_model(tiny_model("bert"), config).eval()
    with torch.no_grad():
        for i, name in enumerate(names):
            layer = stock.base_model.model.get_submodule(name)
            P, lam, Q = adapter.components(i)
            layer.lora_B["default"].copy_(P)
            layer.lora_A["default"].copy_(Q)
            # PEFT divides by ranknum + 1e-5 where we divide by r_max.
            layer.lora_E["default"].copy_(lam[:, None] * (4 + 1e-5) / 4)

    assert torch.allclose(logits(adapter.model), logits(stock), atol=1e-5)


def test_inactive_components_get_no_gradient() -> None:
    adapter = attach("opt")
    ranks = some_ranks(adapter, seed=1)
    adapter.set_ranks(ranks)
    (adapter.model(**tiny_batch()).loss + adapter.orthogonality()).backward()

    assert 0 in ranks
    for (Q, lam, P), r in zip(adapter.factors(), ranks, strict=True):
        for rows in (Q.grad, lam.grad, None if P.grad is None else P.grad.T):
            if r == 0:
                assert rows is None or not rows.any()
            else:
                assert rows is not None
                assert rows[:r].abs().sum() > 0
                assert not rows[r:].any()


def test_gradients_equal_those_of_the_written_out_product() -> None:
    adapter = attach("bert", kinds=["q"], alpha=8.0)
    adapter.set_ranks([2, 3])
    layer = adapter.layers[0]
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    (layer(x) ** 2).sum().backward()
    Q, lam, P = (p.detach().clone().requires_grad_() for p in adapter.factors()[0])
    W, b = layer.base_layer.weight, layer.base_layer.bias
    y = x @ W.T + b + 2.0 * x @ Q[:2].T @ torch.diag(lam[:2, 0]) @ P[:, :2].T
    (y**2).sum().backward()

    for ours, expected in zip(adapter.factors()[0], (Q, lam, P), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-4, atol=1e-4)


def test_orthogonality_by_hand() -> None:
    adapter = attach("bert", kinds=["q"], r_max=2)
    (Q, _, P), (Q1, _, P1) = adapter.factors()
    with torch.no_grad():
        for tensor in (Q, P, Q1, P1):
            tensor.zero_()
        Q[0, 0], Q[1, 1] = 1.0, 2.0
        P[0, 0], P[0, 1] = 1.0, 1.0
    # Projection 0: QQᵀ − I = diag(0, 3) gives 9; PᵀP − I = [[0, 1], [1, 0]] gives 2.
    adapter.set_ranks([2, 0])
    assert adapter.orthogonality().item() == pytest.approx(11.0)
    # At rank 1 both are exact; projection 1 is all zero: ‖−I‖² = 1 for each of P and Q.
    adapter.set_ranks([1, 0])
    assert adapter.orthogonality().item() == pytest.approx(0.0)
    adapter.set_ranks([1, 1])
    assert adapter.orthogonality().item() == pytest.approx((0 + 2) / 2)
    adapter.set_ranks([0, 0])
    assert adapter.orthogonality().item() == 0.0


def test_at_ranks_restores_even_after_an_error() -> None:
    adapter = attach()
    before = some_ranks(adapter)
    adapter.set_ranks(before)
    with adapter.at_ranks(np.full(12, 3)):
        assert adapter.ranks.tolist() == [3] * 12
    with pytest.raises(KeyError), adapter.at_ranks(np.full(12, 1)):
        raise KeyError
    assert np.array_equal(adapter.ranks, before)


def test_ranks_is_a_copy() -> None:
    adapter = attach()
    adapter.ranks[:] = 0

    assert adapter.ranks.tolist() == [4] * 12


@pytest.mark.parametrize(
    ("ranks", "error", "words"),
    [
        ([1, 2], ModelError, "12 projections"),
        ([[1] * 12], ModelError, "shape"),
        ([5] * 12, ConfigError, r"0\.\.4, got 5\.\.5"),
        ([-1] + [1] * 11, ConfigError, r"got -1\.\.1"),
        ([1.0] * 12, ConfigError, "integers"),
    ],
)
def test_impossible_ranks_are_refused(ranks: Any, error: type[Exception], words: str) -> None:
    adapter = attach()
    with pytest.raises(error, match=words):
        adapter.set_ranks(ranks)
    assert adapter.ranks.tolist() == [4] * 12


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="dropout"):
        ElasticAdapter.attach(tiny_model("bert"), dropout=1.0)
    with pytest.raises(ConfigError, match="alpha"):
        ElasticAdapter.attach(tiny_model("bert"), alpha=0.0)
    with pytest.raises(ConfigError, match="SEQ_CLS"):
        ElasticAdapter.attach(tiny_model("bert"), task_type="SEQ_CLASS")
    with pytest.raises(ConfigError, match="did you mean 'classifier'"):
        ElasticAdapter.attach(tiny_model("bert"), modules_to_save=["clasifier"])
    with pytest.raises(ModelError, match="already carries"):
        ElasticAdapter.attach(attach().model)


@pytest.mark.parametrize(
    ("architecture", "head"),
    [("bert", "classifier"), ("gpt2", "score"), ("t5", "classification_head")],
)
def test_the_head_of_a_classifier_is_trained_and_the_base_is_not(
    architecture: str, head: str
) -> None:
    adapter = attach(architecture)

    assert list(adapter.extra_modules()) == [head]
    names = {n for n, p in adapter.model.named_parameters() if p.requires_grad}
    assert all(".lora_" in n or f"{head}.modules_to_save" in n for n in names)
    assert len(adapter.trainable_parameters()) == len(names)
    assert not ElasticAdapter.attach(tiny_model("llama", causal=True)).extra_modules()


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    one, same, other = (
        ElasticAdapter.attach(tiny_model("bert"), seed=s).state_dict() for s in (1, 1, 2)
    )

    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


def test_merging_uses_the_active_components() -> None:
    adapter = attach("gpt2")
    adapter.set_ranks(some_ranks(adapter))
    expected = logits(adapter.model)
    merged = adapter.model.merge_and_unload()

    assert torch.allclose(logits(merged), expected, atol=1e-4)


def test_disabling_the_adapter_gives_the_base_model_and_its_head() -> None:
    adapter = attach()
    with adapter.model.disable_adapter():
        assert torch.equal(logits(adapter.model), logits(tiny_model("bert")))


def test_a_deep_copy_has_its_own_ranks() -> None:
    adapter = attach()
    twin = copy.deepcopy(adapter)
    expected = logits(adapter.model)
    twin.set_ranks(np.zeros(12, dtype=int))

    assert adapter.ranks.tolist() == [4] * 12
    assert torch.equal(logits(adapter.model), expected)
    assert torch.equal(logits(twin.model), logits(tiny_model("bert")))


def test_state_goes_to_another_adapter_and_is_a_copy() -> None:
    adapter, other = attach(), ElasticAdapter.attach(tiny_model("bert", seed=0), r_max=4)
    state = adapter.state_dict()
    other.load_state_dict(state)

    assert torch.equal(logits(other.model.eval()), logits(adapter.model))
    next(iter(state.values())).zero_()
    assert torch.equal(logits(other.model), logits(adapter.model))


def test_state_of_another_shape_changes_nothing() -> None:
    adapter = attach()
    before = adapter.state_dict()
    with pytest.raises(CheckpointError, match="another r_max"):
        adapter.load_state_dict(attach(r_max=3).state_dict())
    with pytest.raises(CheckpointError, match="missing from the checkpoint"):
        adapter.load_state_dict(attach(kinds=["q"]).state_dict())
    assert all(torch.equal(before[k], v) for k, v in adapter.state_dict().items())


@pytest.mark.parametrize("architecture", ["roberta", "t5"])
def test_saved_adapter_comes_back(architecture: str, tmp_path: Any) -> None:
    adapter = attach(architecture, alpha=6.0, kinds=["v", "fc2"], dropout=0.1)
    adapter.set_ranks(some_ranks(adapter))
    for module in adapter.extra_modules().values():
        for p in module.parameters():
            p.data += 0.1
    save_adapter(adapter, tmp_path / "a")
    save_adapter(adapter, tmp_path / "a")  # over itself
    loaded = load_adapter(tiny_model(architecture), tmp_path / "a")

    assert loaded.layout == adapter.layout
    assert np.array_equal(loaded.ranks, adapter.ranks)
    assert torch.equal(logits(loaded.model.eval()), logits(adapter.model))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_loading_into_another_model_names_the_first_difference(tmp_path: Any) -> None:
    save_adapter(attach("bert"), tmp_path)
    with pytest.raises(ModelError, match=r"bert\.encoder\.layer\.0.*model\.decoder\.layers\.0"):
        load_adapter(tiny_model("opt"), tmp_path)
    with pytest.raises(ModelError, match=r"12 projections.*this model has 6"):
        load_adapter(tiny_model("bert", n_layers=1), tmp_path)


def test_broken_files_are_refused(tmp_path: Any) -> None:
    save_adapter(attach("bert"), tmp_path)
    weights = tmp_path / "rankcast_adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load_adapter(tiny_model("bert"), tmp_path)
    (tmp_path / "rankcast_adapter.json").write_text("{")
    with pytest.raises(CheckpointError, match="description"):
        load_adapter(tiny_model("bert"), tmp_path)
    with pytest.raises(CheckpointError, match="description"):
        load_adapter(tiny_model("bert"), tmp_path / "absent")
