"""Rounding by the curvature of the loss: by hand, against its definition, and as files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.codec import random_adapter
from rankcast.codec.container import Container
from rankcast.codec.feedback import PRICE, Curvature, CurvedAdapter, _Block, _Side, best_within
from rankcast.codec.header import BaseModel
from rankcast.codec.packing import Source
from rankcast.codec.target import ONE_CHUNK_BYTES, pack_into
from rankcast.codec.tensors import AdapterTensors
from rankcast.errors import CodecError, InfeasibleSizeError

WIDTHS, HEAD = ((96, 192), (64, 128), (128, 64)), {"classifier.weight": (2, 64)}


def source_of(seed: int, ranks: tuple[int, ...] = (4, 4, 2)) -> Source:
    return Source(random_adapter(seed, WIDTHS, ranks, HEAD, size=0.3), BaseModel("tiny"), {})


def moments(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return second moments of numbers of very different sizes that often come together."""
    values = rng.normal(size=(3 * n, n // 4)) @ rng.normal(size=(n // 4, n))
    values = (values + 0.3 * rng.normal(size=values.shape)) * np.exp(rng.normal(size=n))
    return values.T @ values / len(values)


def curved(seed: int, n_blocks: int = 1) -> list[Curvature]:
    rng = np.random.default_rng(seed)

    def side(width: int) -> tuple[np.ndarray, ...]:
        return tuple(moments(rng, width // n_blocks) for _ in range(n_blocks))

    return [Curvature(side(d_out), side(d_in)) for d_in, d_out in WIDTHS]


def whole(blocks: Sequence[np.ndarray]) -> np.ndarray:
    ends = np.cumsum([0, *[len(b) for b in blocks]])
    full = np.zeros((ends[-1], ends[-1]))
    for start, block in zip(ends, blocks, strict=False):
        full[start : start + len(block), start : start + len(block)] = block
    return full


def packed(source: Source, curvatures: list[Curvature], bits: float) -> Container:
    with closing(CurvedAdapter(source, curvatures)) as adapter:
        return best_within(adapter, bits)


def cost(one: AdapterTensors, other: AdapterTensors, curvatures: list[Curvature]) -> float:
    total = 0.0
    for a, b, c in zip(one.factors, other.factors, curvatures, strict=True):
        error = a.delta_weight().astype(np.float64) - b.delta_weight()
        total += float(np.trace(error.T @ whole(c.left) @ error @ whole(c.right)))
    return total


def test_what_one_number_loses_the_next_makes_up_for() -> None:
    """Errors of both are nearly as good as none if they cancel out: 0.4, 0.4 become 0, 1."""
    side = _Side.of([np.array([[1.0, 0.9], [0.9, 1.0]])], 1e-9)
    assert side.rounded(np.array([[0.4, 0.4]]), 0.0).tolist() == [[0, 1]]
    # (-0.4, 0.6) costs 0.16 + 0.36 - 2·0.9·0.24 = 0.088; (-0.4, -0.4) costs 0.608.
    apart = _Side.of([np.eye(2)], 1e-9)
    assert apart.rounded(np.array([[0.4, 0.4]]), 0.0).tolist() == [[0, 0]]


def test_the_dearest_number_is_rounded_first() -> None:
    block = _Block.of(0, np.array([[1.0, 0.0], [0.0, 4.0]]))
    assert block.order.tolist() == [1, 0]
    assert block.costs.tolist() == [4.0, 1.0]


def test_a_price_makes_cheap_numbers_zero_first() -> None:
    side = _Side.of([np.diag([1.0, 100.0])], 0.0)
    assert side.rounded(np.array([[0.6, 0.6]]), 0.0).tolist() == [[1, 1]]
    assert side.rounded(np.array([[0.6, 0.6]]), PRICE).tolist() == [[0, 1]]


@settings(max_examples=10)
@given(st.integers(0, 1000), st.sampled_from([5, 64, 150]))
def test_feedback_is_the_best_that_those_behind_can_do(seed: int, n: int) -> None:
    """After each number the others move to where the cost is least, as real numbers."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(2 * n, n))
    matrix = root.T @ root / len(root)
    row = 3 * rng.normal(size=n)
    side = _Side.of([matrix], 0.0)
    block = side.blocks[0]
    (m,) = (x.astype(np.float64) for x in side.matrices)
    ordered, wanted = m[np.ix_(block.order, block.order)], row[block.order]
    indices = np.empty(n)
    for j in range(n):
        target = wanted[j:]
        if j:
            fixed = indices[:j] - wanted[:j]
            target = wanted[j:] - np.linalg.solve(ordered[j:, j:], ordered[j:, :j] @ fixed)
        indices[j] = np.rint(target[0])
        if abs(abs(target[0] - indices[j]) - 0.5) < 1e-3:  # a tie: float32 may decide otherwise
            return
    assert side.rounded(row[None], 0.0)[0, block.order].tolist() == indices.tolist()


@pytest.mark.parametrize("n_blocks", [1, 2])
@pytest.mark.parametrize("target", [400, 800, 1500])
def test_its_errors_cost_less_at_the_same_size(target: int, n_blocks: int) -> None:
    source, curvatures = source_of(3), curved(7, n_blocks)
    by_energy = pack_into(source, target)
    file = packed(source, curvatures, 8 * target)
    assert file.n_bits <= 8 * target
    costs = [cost(source.tensors, f.tensors(), curvatures) for f in (file, by_energy)]
    assert costs[0] < 0.6 * costs[1]


def test_tensors_beside_the_projections_travel() -> None:
    source = source_of(1)
    found = packed(source, curved(1), 8 * 4000).tensors()
    own = source.tensors.modules["classifier.weight"]
    assert np.abs(found.modules["classifier.weight"] - own).max() < 0.05


def test_a_large_file_comes_in_parts_that_are_adapters() -> None:
    tensors = random_adapter(2, ((512, 512),) * 2, (8, 8))
    source, eye = Source(tensors, BaseModel("tiny"), {}), (np.eye(512),)
    curvatures = [Curvature(eye, eye)] * 2
    file = packed(source, curvatures, 8 * (ONE_CHUNK_BYTES + 1000))
    costs = [cost(source.tensors, t, curvatures) for _, t in file.decoded()]
    assert len(costs) == 3
    assert costs[0] > costs[1] > costs[2]


def test_finer_steps_cost_less_up_to_nothing() -> None:
    source, curvatures = source_of(4), curved(4)
    with closing(CurvedAdapter(source, curvatures)) as adapter:
        sizes = np.linspace(adapter.coarsest(), adapter.finest(), 6).astype(int).tolist()
        costs = [cost(source.tensors, adapter.file(s).tensors(), curvatures) for s in sizes]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 1e-4 * costs[0]


def test_at_a_gain_the_update_is_larger() -> None:
    source, curvatures = source_of(4), curved(4)
    with closing(CurvedAdapter(source, curvatures)) as adapter:
        found = adapter.file(adapter.finest(), 1.5).tensors()
        files = [best_within(adapter, 8 * 900, gain) for gain in (1.0, 1.5)]
    for was, now in zip(source.tensors.factors, found.factors, strict=True):
        assert now.delta_weight() == pytest.approx(1.5 * was.delta_weight(), abs=2e-3)
    assert all(file.n_bits <= 8 * 900 for file in files)
    kept = [
        sum(
            float(np.sum(was.delta_weight() * now.delta_weight()))
            for was, now in zip(source.tensors.factors, file.tensors().factors, strict=True)
        )
        for file in files
    ]
    assert kept[1] > 1.2 * kept[0]


def test_a_projection_of_rank_0_stays_one() -> None:
    found = packed(source_of(5, (4, 0, 2)), curved(5), 8 * 3000).tensors()
    assert found.ranks.tolist()[1] == 0


def test_a_projection_without_update_or_without_effect_is_left_out() -> None:
    source, curvatures = source_of(6), curved(6)
    first, second, third = source.tensors.factors
    zeros = replace(first, left=np.zeros_like(first.left))
    tensors = replace(source.tensors, factors=(zeros, second, third))
    nothing = Curvature(*((np.zeros((n, n)),) for n in WIDTHS[2][::-1]))
    found = packed(replace(source, tensors=tensors), [*curvatures[:2], nothing], 8 * 3000)
    assert found.tensors().ranks.tolist() == [0, 4, 0]


def test_what_does_not_fit_is_refused() -> None:
    source, curvatures = source_of(0), curved(0)
    with pytest.raises(InfeasibleSizeError):
        packed(source, curvatures, 8 * 40)
    with pytest.raises(CodecError, match="another shape"):
        packed(source, curvatures[::-1], 8 * 4000)
    with pytest.raises(CodecError, match="no components"):
        packed(source_of(0, (0, 0, 0)), curvatures, 8 * 4000)
    with pytest.raises(CodecError, match="finite square"):
        Curvature((np.full((2, 2), np.nan),), (np.eye(2),))
    with pytest.raises(CodecError, match="finite square"):
        Curvature((np.eye(2)[:1],), (np.eye(2),))
