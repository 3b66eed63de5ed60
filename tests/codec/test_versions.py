"""Plans that mix the files of one training: every projection in one of its versions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from helpers.codec import random_adapter
from rankcast.codec.container import Container, pack_as_trained, read_container
from rankcast.codec.header import BaseModel
from rankcast.codec.packing import Coding, Source, without_zeros
from rankcast.codec.quantiser import Float32Array, dequantise
from rankcast.codec.tensors import Factors
from rankcast.codec.versions import Versions
from rankcast.errors import CodecError, InfeasibleDeadlineError
from rankcast.records import IntArray

N, WIDTH = 12, 384
FIRST_EMPTY = 2
"""A projection of which the smallest file has nothing."""


def a_file(exponent: int, zeros: float, empty: tuple[int, ...] = ()) -> Source:
    """Return an adapter on the grid of one step for each projection, most of it zeros."""
    rng = np.random.default_rng(0)
    tensors = random_adapter(0, ((WIDTH, WIDTH),) * N, (1,) * N)
    offsets = tuple(int(o) for o in rng.integers(-3, 4, N))

    def rounded(values: Float32Array, n: int) -> Float32Array:
        is_kept = (rng.random(values.shape) > zeros) & (n not in empty)
        kept = np.rint(values / np.std(values) * 1.5) * is_kept
        return dequantise(kept.astype(np.int32), exponent + offsets[n])

    factors = tuple(
        Factors(rounded(f.left, n), rounded(f.right, n)) for n, f in enumerate(tensors.factors)
    )
    coding = Coding(exponent, (), {}, ((1,) * N,), tuple((o,) for o in offsets))
    cut, coding = without_zeros(replace(tensors, factors=factors), coding)
    return Source(cut, BaseModel("tiny"), {}).at(coding)


@pytest.fixture(scope="module")
def versions() -> Versions:
    return Versions((a_file(-16, 0.97, (FIRST_EMPTY,)), a_file(-17, 0.9), a_file(-18, 0.7)))


def check_decodes_to(file: Container, versions: Versions, which: IntArray) -> None:
    """Check what a device reads, projection by projection."""
    decoded = read_container(file.to_bytes()).tensors()
    for n, version in enumerate(which.tolist()):
        assert decoded.factors[n].rank == (version >= 0)
        if version >= 0:
            wanted = versions.sources[version].tensors.factors[n]
            np.testing.assert_array_equal(decoded.factors[n].left, wanted.left)
            np.testing.assert_array_equal(decoded.factors[n].right, wanted.right)


def test_a_whole_is_the_file_that_was_trained(versions: Versions) -> None:
    for source, plan in zip(versions.sources, versions.wholes, strict=True):
        assert source.coding is not None
        assert versions.file(plan).to_bytes() == pack_as_trained(source, source.coding).to_bytes()


def test_a_plan_takes_a_version_of_each_projection(versions: Versions) -> None:
    plan = np.random.default_rng(1).integers(0, 4, N)
    which = versions.of_levels[np.arange(N), plan]
    assert len(set(which.tolist())) == 4
    check_decodes_to(versions.file(plan), versions, which)


def test_a_file_without_a_projection_is_no_level_of_it(versions: Versions) -> None:
    assert versions.of_levels[FIRST_EMPTY].tolist() == [-1, 1, 2, 2]
    assert versions.of_levels[0].tolist() == [-1, 0, 1, 2]
    assert versions.wholes[:, FIRST_EMPTY].tolist() == [0, 1, 2]
    assert versions.wholes[:, 0].tolist() == [1, 2, 3]


def test_predicted_bits_are_within_three_per_cent_of_the_file(versions: Versions) -> None:
    levels = versions.levels()
    rng = np.random.default_rng(2)
    for plan in [*versions.wholes, *rng.integers(1, 4, (8, N))]:
        predicted = levels.overhead_bits + levels.bits[np.arange(N), plan].sum()
        assert predicted == pytest.approx(versions.file(plan).n_bits, rel=0.03)


def test_the_least_worthy_level_leaves_where_a_plan_does_not_fit(versions: Versions) -> None:
    whole, worth = versions.wholes[-1], np.ones((N, 3))
    worth[5, 2] = 0.5
    file = versions.file_within(whole, worth, versions.file(whole).n_bits - 1)
    check_decodes_to(file, versions, np.where(np.arange(N) == 5, 1, 2))
    with pytest.raises(InfeasibleDeadlineError):
        versions.file_within(whole, worth, 100)


def test_the_largest_file_that_fits(versions: Versions) -> None:
    sizes = [versions.file(plan).n_bits for plan in versions.wholes]
    assert sizes == sorted(sizes)
    assert versions.largest_within(sizes[1] + 5).n_bits == sizes[1]
    nothing = versions.largest_within(sizes[0] - 1)
    assert not nothing.tensors().ranks.any()


def test_files_say_themselves_what_versions_they_are(versions: Versions) -> None:
    files = [versions.file(plan) for plan in versions.wholes]
    again = Versions.of(read_container(file.to_bytes()) for file in files[::-1])
    plan = np.random.default_rng(3).integers(0, 4, N)
    for some in (plan, *versions.wholes):
        assert again.file(some).to_bytes() == versions.file(some).to_bytes()
    np.testing.assert_array_equal(again.levels().bits, versions.levels().bits)


def test_what_it_refuses(versions: Versions) -> None:
    other = Source(random_adapter(0, ((8, 8),) * N, (1,) * N), BaseModel("tiny"), {})
    with pytest.raises(CodecError, match="same projections"):
        Versions((other, versions.largest))
    with pytest.raises(CodecError, match="same projections"):
        Versions(())
    with pytest.raises(CodecError, match="no known steps"):
        Versions((other,)).file(np.ones(N, dtype=np.int64))
