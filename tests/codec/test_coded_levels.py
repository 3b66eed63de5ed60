"""Levels near a size: what they decode to, and what they take in a file."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.codec import random_adapter
from rankcast.codec.coded_levels import PRICES, STEPS, CodedLevels
from rankcast.codec.header import BaseModel
from rankcast.codec.losses import squared_error
from rankcast.codec.packing import Source
from rankcast.codec.tensors import Factors
from rankcast.errors import CodecError

WIDTHS, HEAD = ((96, 192), (64, 128), (128, 64)), {"classifier.weight": (2, 64)}


def source_of(seed: int, ranks: tuple[int, ...] = (4, 4, 2)) -> Source:
    return Source(random_adapter(seed, WIDTHS, ranks, HEAD, size=0.3), BaseModel("tiny"), {})


def random_plan(coded: CodedLevels, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, coded.counts)


def test_levels_are_some_of_energy_and_some_of_all_components() -> None:
    coded = CodedLevels.near(source_of(0), 6000)
    levels, counts = coded.levels, coded.counts
    assert levels.ranks.shape == coded.dead_zones.shape == (3, counts.max())
    assert (counts <= 1 + len(PRICES) + len(STEPS)).all()
    assert (levels.ranks[:, 0] == 0).all()
    assert (levels.bits[:, 0] == 0).all()
    assert (np.diff(levels.bits, axis=1) >= 0).all()
    for i, rank in enumerate((4, 4, 2)):
        whole = (levels.ranks[i] == rank) & (coded.dead_zones[i] == 0.5)
        assert len(set(levels.exponents[i][whole].tolist())) >= len(STEPS)
        assert (levels.bits[i, counts[i] :] == levels.bits[i, -1]).all()


@settings(max_examples=10)
@given(st.integers(0, 1000), st.integers(2000, 30_000))
def test_a_file_decodes_to_the_levels_of_its_plan(seed: int, budget: int) -> None:
    coded = CodedLevels.near(source_of(seed), budget)
    plan = random_plan(coded, seed)
    found = coded.file(plan).tensors()
    for i, (own, level) in enumerate(zip(found.factors, plan, strict=True)):
        expected = coded.factors(i, int(level))
        none = Factors(own.left[:, :0], own.right[:0])
        assert squared_error(expected, own) <= 1e-9 * max(squared_error(own, none), 1e-9)


@pytest.mark.parametrize("budget", [4000, 12_000, 40_000])
def test_counted_bits_are_those_of_the_file(budget: int) -> None:
    """Within 3 % for any plan, beside the file that holds nothing of the projections."""
    bare = source_of(1)
    source = replace(bare, tensors=replace(bare.tensors, modules={}, carriage={}))
    coded = CodedLevels.near(source, budget)
    nothing = coded.file(np.zeros(3, dtype=np.int64)).n_bits
    for seed in range(6):
        plan = random_plan(coded, seed)
        counted = int(coded.levels.bits[np.arange(3), plan].sum())
        assert coded.file(plan).n_bits == pytest.approx(nothing + counted, rel=0.03)


def test_a_projection_without_components_has_one_level() -> None:
    assert CodedLevels.near(source_of(2, (4, 0, 2)), 6000).counts[1] == 1
    with pytest.raises(CodecError, match="no components"):
        CodedLevels.near(source_of(2, (0, 0, 0)), 6000)
