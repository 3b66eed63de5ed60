"""Files of at most so many bytes: they fit, lose least, and more bytes never lose more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.codec import random_adapter
from rankcast.codec.container import Container, pack_at_exponent, read_container
from rankcast.codec.header import BaseModel
from rankcast.codec.losses import Losses, Rounding, left_of, lost_energy, squared_error
from rankcast.codec.packing import Source, exponent_of_quality
from rankcast.codec.planner import pack_within
from rankcast.codec.quantiser import step_of
from rankcast.codec.successor import pack_after
from rankcast.codec.target import ONE_CHUNK_BYTES, pack_into
from rankcast.codec.tensors import AdapterTensors, Factors, LazyFactors
from rankcast.config.codec import LEAST_BYTES
from rankcast.errors import InfeasibleSizeError

WIDE = ((60, 40), (30, 70), (50, 50))
HEAD = {"classifier.weight": (2, 32)}


def source_of(tensors: AdapterTensors, **more: object) -> Source:
    return replace(Source(tensors, BaseModel("tiny"), {"task_type": "SEQ_CLS"}), **more)


def lost(source: Source, container: Container) -> float:
    """Return the lost share of energy, from the products in full."""
    error = energy = 0.0
    pairs = zip(source.tensors.factors, container.tensors().factors, strict=True)
    for own, other in pairs:
        whole = own.left.astype(np.float64) @ own.right
        error += np.square(whole - other.left.astype(np.float64) @ other.right).sum()
        energy += np.square(whole).sum()
    return float(error / energy)


def diagonal(*values: float) -> Factors:
    n = len(values)
    return Factors(np.eye(n, dtype=np.float32), np.diag(values).astype(np.float32))


def test_errors_by_hand() -> None:
    whole = diagonal(3, 1)
    assert squared_error(whole, diagonal(3, 1)) == 0.0
    part = Factors(np.array([[1], [0]], np.float32), np.array([[2, 0]], np.float32))
    assert squared_error(whole, part) == pytest.approx((3 - 2) ** 2 + 1)
    nothing = Factors(np.zeros((2, 0), np.float32), np.zeros((0, 2), np.float32))
    assert squared_error(whole, nothing) == pytest.approx(3**2 + 1)
    tensors = random_adapter(0, ((2, 2),), (2,))
    known, found = (replace(tensors, factors=(f,)) for f in (whole, part))
    assert lost_energy(known, found) == pytest.approx(0.2)
    assert lost_energy(known, known) == 0.0
    assert lost_energy(known, replace(tensors, factors=(nothing,))) == pytest.approx(1.0)


def test_nothing_is_lost_of_what_has_no_energy() -> None:
    tensors = random_adapter(0, (), (), {"classifier.weight": (2, 4)})
    assert lost_energy(tensors, tensors) is None


def test_a_dead_zone_by_hand() -> None:
    values = np.array([[0.45, 0.55, 0.65, -0.7, 1.2, -1.6]], np.float32)  # in steps of 3^0
    assert Rounding(0).indices(values).tolist() == [[0, 1, 1, -1, 1, -2]]
    assert Rounding(0, 0.6).indices(values).tolist() == [[0, 0, 1, -1, 1, -2]]
    # An exponent of -6 is a third: these are 1.35 to 4.8 steps.
    assert Rounding(0, 0.6).above(-6).indices(values).tolist() == [[1, 2, 2, -2, 4, -5]]


@pytest.mark.parametrize("lazy", [False, True])
def test_the_table_is_what_files_lose(lazy: bool) -> None:
    tensors = random_adapter(3, WIDE, (3, 0, 2), HEAD, size=0.5)
    if lazy:
        factors = LazyFactors((3, 0, 2), lambda i: whole[i])
        whole, tensors = tensors.factors, replace(tensors, factors=factors)
    roundings = [Rounding(-8), Rounding(-3, 0.7), Rounding(12)]
    offsets = (0, 0, -2)
    losses = Losses.of(tensors, roundings, offsets)
    assert losses.errors.shape == losses.bits.shape == (3, 3, 4)
    assert losses.energies == pytest.approx(losses.errors[0, :, 0])
    for j, rounding in enumerate(roundings):
        for ranks in ((3, 0, 2), (2, 0, 1), (0, 0, 2)):
            sent = left_of(tensors, ranks, [rounding.above(offset) for offset in offsets])
            container = pack_at_exponent(source_of(sent, offsets=offsets), rounding.exponent, 1, 1)
            decoded = container.tensors()
            expected = sum(map(squared_error, tensors.factors, decoded.factors))
            assert losses.errors[j][np.arange(3), ranks].sum() == pytest.approx(expected)
    assert (np.diff(losses.bits, axis=2) >= 0).all()


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.integers(300, 1500), st.integers(1, 800))
def test_it_fits_and_more_bytes_never_lose_more(seed: int, target: int, more: int) -> None:
    source = source_of(random_adapter(seed, WIDE[:2], (3, 2), HEAD, size=0.5))
    small, large = pack_into(source, target), pack_into(source, target + more)
    assert len(small.to_bytes()) <= target
    assert len(large.to_bytes()) <= target + more
    assert lost(source, large) <= lost(source, small) + 1e-9
    assert lost(source, small) < 1
    assert lost_energy(source.tensors, small.tensors()) == pytest.approx(lost(source, small))


@pytest.mark.parametrize("ranks", [(8, 8, 8), (1, 1, 1)])
@pytest.mark.parametrize("target", [350, 600])
def test_less_is_lost_than_at_one_step_for_everything(ranks: tuple[int, ...], target: int) -> None:
    source = source_of(random_adapter(1, WIDE, ranks, HEAD, size=0.5))
    before = lost(source, pack_within(source, 8 * target))
    after = lost(source, pack_into(source, target))
    assert after < 0.99 * before


def test_only_strong_components_are_sent_where_bytes_are_few() -> None:
    tensors = random_adapter(2, WIDE, (4, 4, 4), size=0.5)
    # Of 12 components, two have most of the energy.
    weak = [f.right * (1.0 if i else 0.1) for i, f in enumerate(tensors.factors)]
    weak[1][1:] *= 0.05
    weak[2] *= 0.05
    factors = [Factors(f.left, r).balanced() for f, r in zip(tensors.factors, weak, strict=True)]
    source = source_of(replace(tensors, factors=tuple(factors)))
    container = pack_into(source, 150)
    assert container.tensors().ranks.tolist() == [0, 1, 0]
    assert container.header.ranks == (4, 4, 4)  # as many as the adapter has
    assert pack_into(source, 20_000).tensors().ranks.tolist() == [4, 4, 4]


def test_a_trained_rounding_is_met_exactly_where_it_fits() -> None:
    tensors = random_adapter(4, WIDE, (2, 2, 2), size=0.5)
    exponent = exponent_of_quality(tensors, 2.0)
    rounded = [
        Factors(*(np.rint(x / step_of(exponent)) * step_of(exponent) for x in (f.left, f.right)))
        for f in tensors.factors
    ]
    source = source_of(replace(tensors, factors=tuple(rounded)), exponent=exponent)
    trained = pack_at_exponent(source, exponent, 1, 1)
    container = pack_into(source, trained.n_bits // 8)
    assert lost(source, container) == 0.0
    assert container.n_bits <= trained.n_bits
    assert lost(source, pack_into(source, trained.n_bits // 8 - 20)) > 0.0


def test_small_files_are_one_chunk_and_large_ones_many() -> None:
    source = source_of(random_adapter(0, ((400, 300), (300, 500)), (8, 8), size=0.5))
    small, large = pack_into(source, ONE_CHUNK_BYTES), pack_into(source, 2 * ONE_CHUNK_BYTES)
    assert len(small.chunks) == 1
    assert len(large.chunks) > 2
    assert lost(source, large) < lost(source, small)
    assert read_container(large.to_bytes()) == large


def test_step_offsets_are_kept() -> None:
    offsets = (0, -6, 12)
    source = source_of(random_adapter(0, WIDE, (2, 2, 2), size=0.5), offsets=offsets)
    ((plan, tensors),) = pack_into(source, 800).decoded()
    assert tensors.ranks.sum() > 2
    for offset, factors in zip(offsets, tensors.factors, strict=True):
        on_grid = [
            np.abs(cells - np.rint(cells)).max(initial=0) < 1e-3
            for finer in (0, 1)
            for cells in [factors.right / step_of(plan.exponent + offset - finer)]
        ]
        assert any(on_grid)


def test_a_later_version_is_packed_after_it() -> None:
    tensors = random_adapter(5, WIDE, (4, 4, 4), HEAD, size=0.5)
    before = pack_into(source_of(tensors), 700)
    later = tuple(Factors(1.01 * f.left, f.right).balanced() for f in tensors.factors)
    after = pack_after(source_of(replace(tensors, factors=later)), before)
    assert after.header.ranks == before.header.ranks
    assert len(after.chunks) == len(before.chunks)


def test_an_adapter_without_updates_takes_the_finest_steps() -> None:
    tensors = random_adapter(0, (), (), {"classifier.weight": (8, 64)})
    errors = []
    for target in (300, 500, 800):
        container = pack_into(source_of(tensors), target)
        assert 0.8 * target < len(container.to_bytes()) <= target
        (found,) = container.tensors().modules.values()
        errors.append(np.square(found - tensors.modules["classifier.weight"]).sum())
    assert errors[0] > errors[1] > errors[2]
    with pytest.raises(InfeasibleSizeError) as refused:
        pack_into(source_of(tensors), 10)
    assert "qat" not in str(refused.value)


def test_an_impossible_size_names_the_smallest_and_the_remedy() -> None:
    letters = np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), 300)
    long_name = BaseModel("".join(letters))  # so that no file is below the least size of training
    tensors = random_adapter(0, WIDE, (3, 3, 3), HEAD, size=0.5)
    source = source_of(tensors, base=long_name)
    with pytest.raises(InfeasibleSizeError) as refused:
        pack_into(source, LEAST_BYTES)
    smallest = refused.value.smallest_bytes
    assert f"at least {smallest} bytes" in str(refused.value)
    assert f"rankcast qat ADAPTER --target-bytes {LEAST_BYTES}." in str(refused.value)
    assert pack_into(source, smallest).n_bits == 8 * smallest
    with pytest.raises(InfeasibleSizeError):
        pack_into(source, smallest - 1)
    with pytest.raises(InfeasibleSizeError) as refused:
        pack_into(source_of(tensors), 20)
    assert "rankcast qat" not in str(refused.value)  # which trains for no such size, either
