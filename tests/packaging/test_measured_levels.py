"""Ranks and steps by what each level is measured to lose, and rounding by curvature."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rankcast
from helpers.codec import random_adapter
from helpers.commands import Call
from rankcast.adapters.arrays import load_tensors
from rankcast.codec.coded_levels import CodedLevels
from rankcast.codec.header import BaseModel
from rankcast.codec.levels import Levels
from rankcast.codec.packing import Source
from rankcast.errors import ConfigError, InfeasibleSizeError
from rankcast.learner.objectives import AdapterSnapshot
from rankcast.packaging.measure import setup_for
from rankcast.packaging.measured_levels import MeasuredLevels, measure_levels
from rankcast.packaging.pack import read_adapter
from rankcast.packaging.texts import CURVATURE_TEXTS, LEVEL_TEXTS, LevelTexts, Texts

WIDTHS = ((48, 32), (32, 96), (32, 32))


def source_of(seed: int) -> Source:
    return Source(random_adapter(seed, WIDTHS, (4, 4, 4), size=0.3), BaseModel("tiny"), {})


class Passes:
    """What a progress bar is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    def __call__(self, what: str, done: int, total: int) -> None:
        self.seen.append((what, done, total))


def by_hand() -> MeasuredLevels:
    """Return two projections of two levels beside nothing."""
    source = Source(random_adapter(0, WIDTHS[:2], (1, 1)), BaseModel("tiny"), {})
    bits = np.array([[0, 10, 30], [0, 10, 20]])
    levels = Levels(np.array([[0, 1, 1]] * 2), np.array([[0, 0, -3]] * 2), bits, bits * 1.0)
    coded = CodedLevels(source, levels, np.full((2, 3), 0.5), np.array([3, 3]))
    alone = np.array([[6.0, 5, 0], [4.0, 1, 0]])
    beside = np.array([[10.0, 5, 2], [14.0, 3, 0]])
    return MeasuredLevels(coded, alone, beside)


@pytest.mark.parametrize(
    ("bits", "plan", "lost"),
    [
        (40, [2, 1], 3),  # 1 + 2; (1, 2) takes 30 and loses 5 + 0
        (30, [1, 2], 5),  # (1, 1) loses 5 + 2, (2, 0) loses 1 + 9
        (20, [1, 1], 7),  # (0, 2) loses 8 + 0
        (10, [0, 1], 10),  # (1, 0) loses 5 + 9
        (1000, [2, 2], 1),
    ],
)
def test_the_optimum_by_hand(bits: float, plan: list[int], lost: float) -> None:
    levels = by_hand()
    assert levels.losses.tolist() == [[8, 5, 1], [9, 2, 0]]
    assert levels.plan(bits).tolist() == plan
    assert levels.predicted(np.array(plan)) == lost


def test_losses_of_other_levels_are_refused() -> None:
    levels = by_hand()
    with pytest.raises(ConfigError, match=r"\(2, 3\), got \(2, 2\)"):
        replace(levels, alone=levels.alone[:, 1:])
    with pytest.raises(ConfigError, match="finite"):
        replace(levels, beside=levels.beside * np.nan)


@settings(max_examples=15)
@given(st.integers(0, 1000), st.integers(350, 1500), st.integers(1, 800))
def test_it_fits_and_more_bytes_are_never_predicted_to_lose_more(
    seed: int, target: int, more: int
) -> None:
    coded = CodedLevels.near(source_of(seed), 8 * target)
    rng = np.random.default_rng(seed)
    losses = rng.uniform(0, 1, (2, *coded.levels.bits.shape))
    levels = MeasuredLevels(coded, *np.sort(losses)[..., ::-1])
    small, large = levels.plan_within(8 * target), levels.plan_within(8 * (target + more))
    assert coded.file(small).n_bits <= 8 * target
    assert coded.file(large).n_bits <= 8 * (target + more)
    assert levels.predicted(large) <= levels.predicted(small) + 1e-12


def test_a_size_below_the_smallest_file_is_refused() -> None:
    coded = CodedLevels.near(source_of(0), 4000)
    levels = MeasuredLevels(coded, *np.zeros((2, *coded.levels.bits.shape)))
    with pytest.raises(InfeasibleSizeError) as refused:
        levels.plan_within(8 * 20)
    assert refused.value.target_bytes == 20
    assert refused.value.smallest_bytes > 20


def test_levels_are_measured_one_at_a_time(trained: Path) -> None:
    source = read_adapter(trained)
    setup = setup_for(source, trained, Texts())
    learner = setup.learner()
    whole, texts = AdapterSnapshot(learner.adapter), np.arange(len(learner.data.train))
    coded = CodedLevels.near(source, 12_000)
    near = coded.file(np.ones(len(coded.counts), dtype=np.int64)).tensors()
    told = Passes()
    found = measure_levels(learner, whole, coded, near, n_texts=len(texts), on_pass=told)
    total = 2 * int(coded.counts.sum())
    assert told.seen == [("levels", done, total) for done in range(1, total + 1)]
    for others, losses in ((source.tensors, found.alone), (near, found.beside)):
        asked = []
        for level in range(coded.counts[1]):
            factors = [*others.factors]
            factors[1] = coded.factors(1, level)
            load_tensors(learner.adapter, replace(others, factors=tuple(factors)))
            asked.append(learner.divergence_from(whole, "train"))
        expected = np.array(asked) - min(asked)
        assert losses[1, : coded.counts[1]] == pytest.approx(expected, abs=2e-6)
    assert (found.losses.min(axis=1) >= 0).all()
    with pytest.raises(ConfigError, match="at least one text"):
        measure_levels(learner, whole, coded, near, n_texts=0)


def test_pack_measures_levels_for_a_size(trained: Path, tmp_path: Path, call: Call) -> None:
    passes = Passes()
    size = {"target_bytes": 3000, "measure": True, "on_pass": passes}
    plain = rankcast.pack(trained, **size, level_texts=0, curvature_texts=0)
    assert {what for what, _, _ in passes.seen} == {"gain"}
    file = rankcast.pack(trained, **size, level_texts=8, curvature_texts=0)
    levels = [seen for seen in passes.seen if seen[0] == "levels"]
    assert levels[-1] == ("levels", len(levels), len(levels))
    assert file.n_bits <= 8 * 3000
    losses = [f.header.chunks[-1].loss for f in (file, plain)]
    assert losses[0] is not None
    assert losses[1] is not None
    assert losses[0] <= losses[1]
    out = tmp_path / "a.rcast"
    told = json.loads(call.ok("pack", str(trained), "-o", str(out), "--target-bytes", "3000",
                              "--measure", "--level-texts", "8", "--curvature-texts", "0",
                              "--json"))  # fmt: skip
    assert told["loss"] == losses[0]


def test_pack_rounds_by_curvature_for_a_size(trained: Path, tmp_path: Path, call: Call) -> None:
    passes = Passes()
    size = {"target_bytes": 1500, "measure": True, "on_pass": passes, "level_texts": 0}
    plain = rankcast.pack(trained, **size, curvature_texts=0)
    file = rankcast.pack(trained, **size, curvature_texts=CURVATURE_TEXTS)
    curvature = [seen for seen in passes.seen if seen[0] == "curvature"]
    assert curvature[-1][1] == curvature[-1][2]
    assert file.n_bits <= 8 * 1500
    losses = [f.header.chunks[-1].loss for f in (file, plain)]
    assert losses[0] is not None
    assert losses[1] is not None
    assert losses[0] <= losses[1]
    out = tmp_path / "a.rcast"
    told = json.loads(call.ok("pack", str(trained), "-o", str(out), "--target-bytes", "1500",
                              "--measure", "--level-texts", "0", "--curvature-texts", "128",
                              "--json"))  # fmt: skip
    assert told["loss"] == losses[0]


def test_impossible_numbers_of_texts_are_refused(trained: Path) -> None:
    with pytest.raises(ConfigError, match="0 texts or more, got -1"):
        rankcast.pack(trained, target_bytes=3000, measure=True, level_texts=-1)
    with pytest.raises(ConfigError, match="Curvature is measured on 0 texts or more, got -2"):
        rankcast.pack(trained, target_bytes=3000, measure=True, curvature_texts=-2)
    with pytest.raises(ConfigError, match="--curvature-texts goes with"):
        rankcast.pack(trained, curvature_texts=8, target_bytes=3000)
    with pytest.raises(ConfigError, match="--level-texts goes with"):
        rankcast.pack(trained, level_texts=8, target_bytes=3000)
    with pytest.raises(ConfigError, match="--level-texts goes with"):
        rankcast.pack(trained, level_texts=8, measure=True)


def test_levels_are_for_classifiers_and_curvature_for_language_models() -> None:
    assert LevelTexts().of("classification") == (LEVEL_TEXTS, 0)
    assert LevelTexts().of("causal") == (0, CURVATURE_TEXTS)
    assert LevelTexts(5, 7).of("causal") == LevelTexts(5, 7).of("classification") == (5, 7)
