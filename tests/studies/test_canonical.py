from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.models import randomise, tiny_model
from rankcast.adapters.elastic import ElasticAdapter
from rankcast.errors import ModelError
from studies.baselines.canonical import canonicalise, sorted_factors

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
@settings(max_examples=60)
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
@settings(max_examples=60)
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
@settings(max_examples=20)
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
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(64, p.d_in, generator=generator) for p in adapter.layout.projections]
    full = [x.T @ x / len(x) for x in inputs]
    moments = {None: None, "full": full, "diagonal": [m.diagonal() for m in full]}
    canonicalise(adapter, moments[weighted])

    for i, delta in enumerate(before):
        torch.testing.assert_close(adapter.delta_weight(i), delta, rtol=0, atol=1e-5)
        P, _, _ = adapter.components(i)
        torch.testing.assert_close(P.T @ P, torch.eye(4), rtol=0, atol=1e-5)


def test_second_moments_that_do_not_fit_are_refused() -> None:
    adapter = attach()
    with pytest.raises(ModelError, match="12 projections but 1"):
        canonicalise(adapter, [torch.ones(16)])
    with pytest.raises(ModelError, match=r"takes 16 inputs.*not \(3,\)"):
        canonicalise(adapter, [torch.ones(3)] * 12)
