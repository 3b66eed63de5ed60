"""How much larger an adapter is made before it is rounded coarsely."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import rankcast
from helpers.codec import random_adapter
from rankcast.adapters.arrays import load_tensors
from rankcast.codec.coded_levels import CodedLevels
from rankcast.codec.container import Container, pack_at_exponent
from rankcast.codec.header import BaseModel
from rankcast.codec.packing import RELATIVE_STEPS, Source, exponent_of_quality
from rankcast.codec.planner import pack_within
from rankcast.errors import InfeasibleSizeError
from rankcast.learner.objectives import AdapterSnapshot
from rankcast.learner.transformer import TransformerLearner
from rankcast.packaging.gain import GAINS, GainSearch
from rankcast.packaging.measure import setup_for
from rankcast.packaging.measured_levels import MeasuredLevels
from rankcast.packaging.pack import read_adapter
from rankcast.packaging.texts import Texts


@pytest.fixture(scope="module")
def source(trained: Path) -> Source:
    return read_adapter(trained)


@pytest.fixture(scope="module")
def learner(source: Source, trained: Path) -> TransformerLearner:
    return setup_for(source, trained, Texts()).learner()


@pytest.fixture(scope="module")
def search(learner: TransformerLearner, source: Source) -> GainSearch:
    load_tensors(learner.adapter, source.tensors)
    return GainSearch(learner, AdapterSnapshot(learner.adapter))


def test_an_adapter_becomes_larger_and_what_is_beside_it_does_not() -> None:
    tensors = random_adapter(0, ((8, 6), (6, 4)), (2, 1), {"classifier.weight": (2, 4)})
    larger = tensors.scaled(1.5)
    for was, now in zip(tensors.factors, larger.factors, strict=True):
        assert now.delta_weight() == pytest.approx(1.5 * was.delta_weight(), rel=1e-5)
        assert np.linalg.norm(now.left) / np.linalg.norm(was.left) == pytest.approx(1.5**0.5)
    assert larger.modules is tensors.modules


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_an_adapter_that_became_smaller_gets_its_size_back(
    search: GainSearch, source: Source, steps: int
) -> None:
    size = (1.0, *GAINS)[steps]
    smaller = source.tensors.scaled(1 / size)
    gain, divergence = search.best(smaller)
    assert gain == size
    assert divergence == pytest.approx(search.divergence(smaller))
    assert search.divergence(smaller.scaled(gain)) == pytest.approx(0, abs=1e-6)


def test_no_gain_is_beyond_the_largest(search: GainSearch, source: Source) -> None:
    gain, _ = search.best(source.tensors.scaled(0.2))
    assert gain == GAINS[-1]


def test_it_says_which_gain_it_tries(learner: TransformerLearner, source: Source) -> None:
    load_tensors(learner.adapter, source.tensors)
    told: list[tuple[str, int, int]] = []
    whole = AdapterSnapshot(learner.adapter)
    search = GainSearch(learner, whole, on_pass=lambda *seen: told.append(seen))
    assert search.best(source.tensors.scaled(1 / GAINS[1]))[0] == GAINS[1]
    assert told == [("gain", number, len(GAINS)) for number in (1, 2, 3)]  # the third is worse


def fine(source: Source) -> Container:
    return pack_at_exponent(source, exponent_of_quality(source.tensors, RELATIVE_STEPS["fine"]))


def test_the_gain_that_suits_brings_a_file_nearer(search: GainSearch, source: Source) -> None:
    half = source.scaled(1 / GAINS[1])
    asked: list[tuple[float, float]] = []

    def way(gain: float, bits: float) -> Container:
        asked.append((gain, bits))
        return fine(half.scaled(gain))

    gain = search.suits(way, 900.0)
    assert gain == GAINS[1]
    assert asked == [(1.0, 900.0), (gain, 900.0)]
    near, far = (search.divergence(way(g, 900.0).tensors()) for g in (gain, 1.0))
    assert near < far


def test_a_larger_one_that_is_worse_or_does_not_fit_does_not_suit(
    search: GainSearch, source: Source
) -> None:
    half = source.scaled(1 / GAINS[1])

    def worse(gain: float, bits: float) -> Container:
        del bits
        return fine(half if gain == 1.0 else half.scaled(0.1))

    def too_large(gain: float, bits: float) -> Container:
        if gain > 1.0:
            raise InfeasibleSizeError(100, int(bits // 8), trainable=False)
        return fine(half)

    def impossible(gain: float, bits: float) -> Container:
        raise InfeasibleSizeError(int(gain), int(bits // 8), trainable=False)

    assert search.suits(worse, 900.0) == search.suits(too_large, 900.0) == 1.0
    with pytest.raises(InfeasibleSizeError):
        search.suits(impossible, 900.0)


def test_levels_of_a_larger_adapter_are_chosen_by_the_same_losses() -> None:
    source = Source(random_adapter(1, ((48, 32), (32, 96)), (4, 4)), BaseModel("tiny"), {})
    coded = CodedLevels.near(source, 4000)
    rows = np.sort(np.random.default_rng(0).uniform(0, 1, coded.levels.bits.shape))[:, ::-1]
    levels = MeasuredLevels(coded, rows, rows)
    larger = levels.scaled(2.0)
    assert (larger.losses == levels.losses).all()
    plan = coded.counts - 1
    for i, whole in enumerate(source.tensors.factors):
        sent = larger.coded.file(plan).tensors().factors[i].delta_weight()
        error = np.linalg.norm(sent - 2.0 * whole.delta_weight())
        assert error < 0.5 * np.linalg.norm(sent - whole.delta_weight())


def test_pack_with_texts_comes_nearer_to_the_adapter(trained: Path, search: GainSearch) -> None:
    """At a size at which most is lost; without texts nothing tells the gain."""
    source, target = read_adapter(trained), 900
    file = rankcast.pack(
        trained, target_bytes=target, measure=True, level_texts=0, curvature_texts=0
    )
    assert file.n_bits <= 8 * target
    plain = pack_within(replace(source, offsets=()), 8 * target)
    assert search.divergence(file.tensors()) < search.divergence(plain.tensors())
