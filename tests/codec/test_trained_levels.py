"""Levels of adapters that were trained for prefixes: their components, bits and files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from helpers.codec import random_adapter
from rankcast.codec.header import BaseModel
from rankcast.codec.packing import Coding, Source, without_zeros
from rankcast.codec.quantiser import Float32Array, dequantise
from rankcast.codec.tensors import Factors
from rankcast.codec.trained_levels import (
    file_beyond_prefix,
    file_of_ranks,
    file_within,
    trained_levels,
    trained_prefixes,
)
from rankcast.errors import CodecError, InfeasibleDeadlineError
from rankcast.link.capacity import Awgn

N, WIDTH, EXPONENT = 12, 384, -18
PREFIXES = ((1,) * N, (2,) * N, (3,) * N)


def trained_source(seed: int = 0, zeros: float = 0.85) -> Source:
    """Return an adapter on its quantiser's grid, most of whose weights are zero."""
    rng = np.random.default_rng(seed)
    tensors = random_adapter(seed, ((WIDTH, WIDTH),) * N, (3,) * N)

    def rounded(values: Float32Array) -> Float32Array:
        kept = np.rint(values / np.std(values)) * (rng.random(values.shape) > zeros)
        return dequantise(kept.astype(np.int32), EXPONENT)

    factors = tuple(Factors(rounded(f.left), rounded(f.right)) for f in tensors.factors)
    coding = Coding(EXPONENT, (0,) * N, {}, PREFIXES, ((0,) * 3,) * N)
    return Source(replace(tensors, factors=factors), BaseModel("tiny"), {}, coding=coding)


def test_levels_are_the_components_of_each_prefix() -> None:
    levels = trained_levels(trained_source())
    assert levels.ranks.tolist() == [[0, 1, 2, 3]] * N
    assert (np.diff(levels.bits, axis=1) > 0).all()
    assert (levels.bits[:, 0] == 0).all()
    assert (levels.exponents == EXPONENT).all()
    assert (levels.step_gains >= 0).all()


def test_a_prefix_that_adds_nothing_is_no_level() -> None:
    source = trained_source()
    assert source.coding is not None
    prefixes = ((1, 0) * 6, (1, 2) * 6, (3, 2) * 6)
    source = replace(source, coding=replace(source.coding, prefix_ranks=prefixes))
    levels = trained_levels(source)
    assert levels.ranks[:2].tolist() == [[0, 1, 3, 3], [0, 2, 2, 2]]
    assert np.diff(levels.bits, axis=1)[:2, -1].tolist() == [0, 0]


def test_components_of_zeros_are_left_out_wherever_they_stand() -> None:
    source = trained_source()
    first, *others = source.tensors.factors
    left, right = first.left.copy(), first.right.copy()
    left[:, 0], right[0] = 0, 0
    tensors = replace(source.tensors, factors=(Factors(left, right), *others))
    assert source.coding is not None
    coding = replace(source.coding, component_offsets=((1, 2, 3), *((0,) * 3,) * (N - 1)))
    cut, trimmed = without_zeros(tensors, coding)
    assert cut.ranks.tolist() == [2] + [3] * (N - 1)
    np.testing.assert_array_equal(cut.factors[0].left, first.left[:, 1:])
    assert trimmed.component_offsets[0] == (2, 3)
    assert [ranks[:2] for ranks in trimmed.prefix_ranks] == [(0, 1), (1, 2), (2, 3)]
    # Without steps of their own their number is all that a file has, and only last ones go.
    cut, _ = without_zeros(tensors, replace(coding, component_offsets=()))
    assert cut.ranks.tolist() == [3] * N


def test_a_projection_without_components_costs_a_bit_and_brings_nothing() -> None:
    source = trained_source()
    factors = source.tensors.factors
    empty = Factors(np.zeros((WIDTH, 0), np.float32), np.zeros((0, WIDTH), np.float32))
    assert source.coding is not None
    each = ((), *source.coding.component_offsets[1:])
    source = replace(
        source,
        tensors=replace(source.tensors, factors=(empty, *factors[1:])),
        coding=replace(source.coding, component_offsets=each),
    )
    levels = trained_levels(source)
    assert levels.ranks[0].tolist() == [0, 0, 0, 0]
    assert levels.bits[0].tolist() == [0, 1, 1, 1]
    assert levels.gains[0].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_predicted_bits_are_those_of_the_file(seed: int) -> None:
    """Within 3 %, container included, for any plan."""
    source = trained_source(seed)
    levels, rng = trained_levels(source), np.random.default_rng(seed)
    costs = levels.link_costs(Awgn())
    plans = [np.full(N, k) for k in range(4)] + [rng.integers(0, 4, N) for _ in range(8)]
    for plan in plans:
        ranks, _ = levels.chosen(plan)
        predicted = float(costs.payload_bits(plan))
        assert predicted == pytest.approx(file_of_ranks(source, ranks).n_bits, rel=0.03)


def test_a_file_holds_the_components_of_its_plan_exactly() -> None:
    source = trained_source()
    ranks = np.array([0, 1, 2, 3] * 3)
    decoded = file_of_ranks(source, ranks).tensors()
    assert decoded.ranks.tolist() == ranks.tolist()
    for r, mine, theirs in zip(ranks, decoded.factors, source.tensors.factors, strict=True):
        assert np.array_equal(mine.left, theirs.left[:, :r])
        assert np.array_equal(mine.right, theirs.right[:r])


def test_what_does_not_fit_leaves_from_the_least_worthy_level() -> None:
    source = trained_source()
    levels = trained_levels(source)
    plan, worth = np.full(N, 3), np.ones((N, 3))
    worth[2, 2], worth[5, 2] = 0.1, 0.2
    whole = file_of_ranks(source, np.full(N, 3))
    fewer = file_within(source, levels, plan, worth, whole.n_bits - 8)
    assert fewer.tensors().ranks.tolist() == [3, 3, 2] + [3] * 9
    assert file_within(source, levels, plan, worth, whole.n_bits).n_bits == whole.n_bits
    with pytest.raises(InfeasibleDeadlineError, match="80 before the deadline"):
        file_within(source, levels, plan, worth, 80)


def test_other_adapters_are_refused() -> None:
    plain = Source(random_adapter(0), BaseModel("tiny"), {})
    with pytest.raises(CodecError, match="not trained for prefixes"):
        trained_levels(plain)


def test_a_prefix_as_a_plan_has_its_components() -> None:
    source = trained_source()
    assert source.coding is not None
    prefixes = ((1, 0) * 6, (1, 2) * 6, (3, 2) * 6)
    source = replace(source, coding=replace(source.coding, prefix_ranks=prefixes))
    levels = trained_levels(source)
    plans = trained_prefixes(source, levels)
    assert plans[:, :2].tolist() == [[1, 0], [1, 1], [2, 1]]
    assert [levels.chosen(plan)[0].tolist() for plan in plans] == [list(p) for p in prefixes]


def test_beyond_a_prefix_goes_what_fits_of_the_next_and_the_prefix_stays() -> None:
    source = trained_source()
    assert source.coding is not None
    first, second = (file_of_ranks(source, np.array(p)).n_bits for p in PREFIXES[:2])
    ranks = []
    for budget in np.linspace(first + 800, second, 4):
        file = file_beyond_prefix(source, 1, budget)
        assert file.n_bits <= budget
        (_, prefix), (_, whole) = file.decoded()
        assert prefix.ranks.tolist() == [1] * N
        assert whole.ranks.min() >= 1
        ranks.append(int(whole.ranks.sum()))
    assert ranks == sorted(ranks)
    assert N < ranks[0] < ranks[-1] < 2 * N + 2
    bare = file_beyond_prefix(source, 1, first)  # no room for another chunk
    assert len(bare.ladder) == 1
    assert bare.tensors().ranks.tolist() == [1] * N
