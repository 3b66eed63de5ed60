from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from helpers.models import randomise, tiny_batch, tiny_model
from rankcast.adapters.elastic import ElasticAdapter
from rankcast.adapters.optimizer import PrefixAdamW
from rankcast.errors import CheckpointError, ConfigError

SETTINGS = {"lr": 0.05, "weight_decay": 0.1, "betas": (0.8, 0.9), "eps": 1e-6}


def attach(architecture: str = "bert", **options: Any) -> ElasticAdapter:
    adapter = ElasticAdapter.attach(tiny_model(architecture), **({"r_max": 3} | options))
    randomise(adapter)
    return adapter


def train(adapter: ElasticAdapter, optimizer: Any, ranks: Any, seed: int = 0) -> float:
    adapter.set_ranks(ranks)
    optimizer.zero_grad()
    loss = adapter.model(**tiny_batch(seed=seed)).loss
    loss.backward()
    optimizer.step()
    return loss.item()


def moments(optimizer: PrefixAdamW) -> list[dict[str, torch.Tensor]]:
    return [
        {k: v.clone() for k, v in optimizer.state[p].items() if isinstance(v, torch.Tensor)}
        for p in optimizer.param_groups[0]["params"]
    ]


def test_at_full_rank_it_is_torchs_adamw() -> None:
    ours, reference = attach(), attach()
    optimizer = PrefixAdamW(ours, **SETTINGS)
    theirs = torch.optim.AdamW(reference.trainable_parameters(), **SETTINGS, foreach=False)
    for seed in range(4):
        train(ours, optimizer, [3] * 12, seed)
        train(reference, theirs, [3] * 12, seed)

    for a, b in zip(ours.trainable_parameters(), reference.trainable_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_inactive_components_stay_bit_for_bit() -> None:
    adapter = attach()
    optimizer = PrefixAdamW(adapter, **SETTINGS)
    train(adapter, optimizer, [3] * 12)
    before, state = adapter.state_dict(), moments(optimizer)
    ranks = np.arange(12) % 4
    for seed in range(3):
        train(adapter, optimizer, ranks, seed)
    after, later = adapter.state_dict(), moments(optimizer)

    for i, (p, r) in enumerate(zip(adapter.layout.projections, ranks, strict=True)):
        for part, rows in (("P", lambda x: x.T), ("lam", lambda x: x), ("Q", lambda x: x)):
            old, new = (rows(s[f"{p.name}.{part}"]) for s in (before, after))
            assert torch.equal(old[r:], new[r:])
            assert r == 0 or not torch.equal(old[:r], new[:r])
        for j in range(3):
            for key, old in state[3 * i + j].items():
                assert torch.equal(old[r:], later[3 * i + j][key][r:])
                assert r == 0 or not torch.equal(old[:r], later[3 * i + j][key][:r])
    counts = optimizer.state_dict()["component_steps"]
    assert counts[1].tolist() == [4, 1, 1]
    assert counts[2].tolist() == [4, 4, 1]


def test_changing_ranks_equals_adamw_on_every_component_by_itself() -> None:
    # A reference that keeps each component as tensors of its own, with torch's AdamW for each:
    # a component is stepped exactly when it is active.
    adapter = attach(kinds=["q", "fc1"], modules_to_save=())
    twin = copy.deepcopy(adapter)
    optimizer = PrefixAdamW(adapter, **SETTINGS)
    leaves = {
        (i, k, j): rows[k].detach().clone()
        for i, (Q, lam, P) in enumerate(twin.factors())
        for j, rows in enumerate((Q, lam, P.T))
        for k in range(3)
    }
    singles = {key: torch.optim.AdamW([leaf], **SETTINGS) for key, leaf in leaves.items()}
    for seed, ranks in enumerate(([1, 2, 3, 0], [3, 3, 3, 3], [2, 0, 1, 1], [3, 1, 2, 2])):
        train(adapter, optimizer, ranks, seed)
        twin.set_ranks(ranks)
        twin.model.zero_grad()
        twin.model(**tiny_batch(seed=seed)).loss.backward()
        for (i, k, j), leaf in leaves.items():
            Q, lam, P = twin.factors()[i]
            if k < ranks[i]:
                gradient = (Q.grad, lam.grad, None if P.grad is None else P.grad.T)[j]
                assert gradient is not None
                leaf.grad = gradient[k].clone()
                singles[i, k, j].step()
                with torch.no_grad():
                    (Q, lam, P.T)[j][k] = leaf
        head = [p for p in twin.other_parameters() if p.grad is not None]
        others = adapter.other_parameters()
        with torch.no_grad():  # the head is not what is tested here
            for p, q in zip(twin.other_parameters(), others, strict=True):
                p.copy_(q)
        assert len(head) == len(others)

    for a, b in zip(adapter.factors(), twin.factors(), strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_first_step_by_hand() -> None:
    # AdamW's first step moves by lr·sign(g) after shrinking the value by lr·weight_decay.
    adapter = attach(kinds=["q"])
    optimizer = PrefixAdamW(adapter, lr=0.1, weight_decay=0.5, eps=1e-12)
    lam = adapter.factors()[0][1]
    before = lam.detach().clone()
    train(adapter, optimizer, [2, 2])
    assert lam.grad is not None
    expected = before * (1 - 0.1 * 0.5) - 0.1 * lam.grad.sign()

    torch.testing.assert_close(lam[:2], expected[:2])
    assert torch.equal(lam[2:], before[2:])


def test_state_continues_bit_exactly() -> None:
    adapter = attach()
    optimizer = PrefixAdamW(adapter, **SETTINGS)
    plan = np.random.default_rng(0).integers(0, 4, (6, 12))
    for seed in range(3):
        train(adapter, optimizer, plan[seed], seed)
    other = attach()
    other.load_state_dict(adapter.state_dict())
    resumed = PrefixAdamW(other, lr=9.0)
    resumed.load_state_dict(optimizer.state_dict())
    for seed in range(3, 6):
        train(adapter, optimizer, plan[seed], seed)
        train(other, resumed, plan[seed], seed)

    ours, theirs = adapter.state_dict(), other.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_state_of_another_optimiser_is_refused() -> None:
    optimizer = PrefixAdamW(attach())
    with pytest.raises(CheckpointError, match=r"\(12, 3\), got shape \(4, 3\)"):
        optimizer.load_state_dict(PrefixAdamW(attach(kinds=["q", "k"])).state_dict())
    with pytest.raises(CheckpointError, match="got none"):
        optimizer.load_state_dict(torch.optim.Optimizer.state_dict(optimizer))


def test_reset_state_starts_the_moments_anew() -> None:
    adapter, fresh = attach(), attach()
    optimizer, new = PrefixAdamW(adapter, **SETTINGS), PrefixAdamW(fresh, **SETTINGS)
    train(adapter, optimizer, [3] * 12)
    fresh.load_state_dict(adapter.state_dict())
    optimizer.reset_state()
    train(adapter, optimizer, [2] * 12, seed=1)
    train(fresh, new, [2] * 12, seed=1)

    for a, b in zip(adapter.factors(), fresh.factors(), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_schedulers_clipping_and_closures_work() -> None:
    adapter = attach()
    optimizer = PrefixAdamW(adapter, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = adapter.model(**tiny_batch()).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(adapter.trainable_parameters(), 1e-3)
        assert norm > 1e-3
        return loss

    first = optimizer.step(closure)
    scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.05]
    for _ in range(5):
        last = optimizer.step(closure)
    assert last.item() < first.item()


def test_accelerate_prepares_it() -> None:
    from accelerate import Accelerator

    adapter, plain = attach(), attach()
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(adapter.model, PrefixAdamW(adapter, **SETTINGS))
    reference = PrefixAdamW(plain, **SETTINGS)
    for seed, rank in enumerate((3, 1, 2)):
        adapter.set_ranks([rank] * 12)
        optimizer.zero_grad()
        accelerator.backward(model(**tiny_batch(seed=seed)).loss)
        optimizer.step()
        train(plain, reference, [rank] * 12, seed)

    ours, theirs = adapter.state_dict(), plain.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_moved_parameter_is_noticed() -> None:
    adapter, plain = attach(), attach()
    optimizer, reference = PrefixAdamW(adapter, **SETTINGS), PrefixAdamW(plain, **SETTINGS)
    for seed in range(3):
        train(adapter, optimizer, [2] * 12, seed)
        train(plain, reference, [2] * 12, seed)
        for p in adapter.trainable_parameters():
            p.data = p.data.contiguous().clone()  # P loses its memory layout as well

    ours, theirs = adapter.state_dict(), plain.state_dict()
    assert all(torch.allclose(ours[k], theirs[k], atol=1e-6) for k in ours)


def test_the_base_model_is_never_touched() -> None:
    adapter = attach()
    names = [n for n, p in adapter.model.named_parameters() if not p.requires_grad]
    before = {n: p.clone() for n, p in adapter.model.named_parameters() if n in names}
    optimizer = PrefixAdamW(adapter, **SETTINGS)
    train(adapter, optimizer, [3] * 12)

    assert len(before) > 20
    assert all(torch.equal(before[n], adapter.model.get_parameter(n)) for n in names)


@pytest.mark.parametrize(
    "setting", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"eps": 0.0}, {"weight_decay": -0.1}]
)
def test_impossible_settings_are_refused(setting: Any) -> None:
    with pytest.raises(ConfigError, match="must"):
        PrefixAdamW(attach(), **setting)
