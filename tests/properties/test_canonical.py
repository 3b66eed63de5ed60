from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankcast.adapters.canonical import canonicalise, collect_second_moments, sorted_factors
from rankcast.adapters.svd import ElasticAdapter
from rankcast.errors import DataError, ModelError
from tiny_models import randomise, tiny_batch, tiny_model

SIZES = st.integers(1, 12)
SHAPES = st.tuples(SIZES, SIZES, st.integers(1, 8))


def factors(
    d_out: int, d_in: int, r: int, seed: int, zeros: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    P, lam, Q = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((d_out, r), (r,), (r, d_in))
    )
    lam[: min(zeros, r)] = 0.0
    return P, lam, Q


def product(P: torch.Tensor, lam: torch.Tensor, Q: torch.Tensor, r: int) -> torch.Tensor:
    return P[:, :r] @ torch.diag(lam[:r]) @ Q[:r]


@given(SHAPES, st.integers(0, 1000), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_prefix_is_the_best_truncation(
    shape: tuple[int, int, int], seed: int, zeros: int
) -> None:
    d_out, d_in, r = shape
    old = factors(d_out, d_in, r, seed, zeros)
    new = sorted_factors(*old)
    M = product(*old, r)
    singular = torch.linalg.svdvals(M)

    assert [x.shape for x in new] == [x.shape for x in old]
    torch.testing.assert_close(product(*new, r), M, rtol=0, atol=1e-9)
    for k in range(r + 1):
        error = (M - product(*new, k)).square().sum()
        torch.testing.assert_close(error, singular[k:].square().sum(), rtol=1e-8, atol=1e-9)


@given(SHAPES, st.integers(0, 1000), st.booleans(), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_prefix_is_best_for_the_inputs_that_come(
    shape: tuple[int, int, int], seed: int, full: bool, dead: int
) -> None:
    d_out, d_in, r = shape
    old = factors(d_out, d_in, r, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    X = torch.randn(20, d_in, generator=generator, dtype=torch.float64)
    X[:, :dead] = 0.0  # inputs that never fire make C singular
    C = X.T @ X / 20
    if not full:
        C = torch.diag(C.diagonal())
        X = (20 * C).sqrt()
    new = sorted_factors(*old, C if full else C.diagonal())
    M = product(*old, r)
    singular = torch.linalg.svdvals(M @ X.T)

    torch.testing.assert_close(product(*new, r), M, rtol=0, atol=1e-7)
    for k in range(r + 1):
        error = ((M - product(*new, k)) @ X.T).square().sum()
        torch.testing.assert_close(error, singular[k:].square().sum(), rtol=1e-6, atol=1e-6)


@given(st.integers(8, 12), st.integers(8, 12), st.integers(1, 4), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_components_without_value_can_still_learn(d_out: int, d_in: int, r: int, seed: int) -> None:
    P, _, Q = factors(d_out, d_in, r, seed)
    left, values, right = sorted_factors(P, torch.zeros(r, dtype=torch.float64), Q)

    assert not values.any()
    eye = torch.eye(r, dtype=torch.float64)
    torch.testing.assert_close(left.T @ left, eye)
    torch.testing.assert_close(right @ right.T, eye)


def attach() -> ElasticAdapter:
    adapter = ElasticAdapter.attach(tiny_model("bert"), r_max=4)
    randomise(adapter)
    return adapter


@pytest.mark.parametrize("weighted", [None, "diagonal", "full"])
def test_the_update_of_a_model_is_unchanged(weighted: str | None) -> None:
    adapter = attach()
    adapter.model.eval()
    before = [adapter.delta_weight(i) for i in range(12)]
    moments = weighted and collect_second_moments(
        adapter, [tiny_batch(seed=s) for s in range(2)], full=weighted == "full"
    )
    canonicalise(adapter, moments or None)

    for i, delta in enumerate(before):
        torch.testing.assert_close(adapter.delta_weight(i), delta, rtol=0, atol=1e-5)
        P, _, _ = adapter.components(i)
        torch.testing.assert_close(P.T @ P, torch.eye(4), rtol=0, atol=1e-5)


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


def test_second_moments_that_do_not_fit_are_refused() -> None:
    adapter = attach()
    with pytest.raises(ModelError, match="12 projections but 1"):
        canonicalise(adapter, [torch.ones(16)])
    with pytest.raises(ModelError, match=r"takes 16 inputs.*not \(3,\)"):
        canonicalise(adapter, [torch.ones(3)] * 12)
    with pytest.raises(DataError, match="at least one batch"):
        collect_second_moments(adapter, [])
