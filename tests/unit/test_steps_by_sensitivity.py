"""Coarser steps where weights matter less: by hand, in ladders, and measured on a model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from codec_data import random_adapter
from keyword_data import keyword_splits
from rankcast.adapters.canonical import balance
from rankcast.adapters.coding import tensors_of
from rankcast.adapters.export import save_adapter
from rankcast.adapters.svd import ElasticAdapter
from rankcast.codec.chunks import ChunkPlan
from rankcast.codec.header import BaseModel
from rankcast.codec.ladder import (
    WIDEST_OFFSET,
    block_offsets,
    exponent_of_quality,
    ladder_to,
    offsets_of_sensitivity,
)
from rankcast.codec.packing import Source, pack, read_adapter, unpack
from rankcast.codec.quantise import dequantise, quantise, step_of
from rankcast.errors import CodecError, ConfigError, DataError, ModelError
from rankcast.finetune.config import FinetuneConfig
from rankcast.finetune.finish import Finish, coding_for, prepare_finish, run_finish
from rankcast.finetune.importance import training_batches, weight_sensitivity
from rankcast.finetune.rounding import Rounding
from rankcast.finetune.transformer import TransformerLearner
from tiny_models import randomise, tiny_batch, tiny_model

CONFIG = FinetuneConfig(
    model="tiny", lr=5e-3, r_max=3, alpha=3.0, batch_size=8, warmup_steps=0,
    orthogonality_weight=0.0, mixed_precision="no", measure_reference=False,
)  # fmt: skip


def test_offsets_by_hand() -> None:
    # Weights that matter 81 times as much have steps 81^(1/4) = 3 times finer at half the power,
    # 9 times at the whole one. Each is moved half of that from the geometric mean.
    assert offsets_of_sensitivity(np.array([1.0, 81.0])) == (3, -3)
    assert offsets_of_sensitivity(np.array([1.0, 81.0]), power=1.0) == (6, -6)
    assert offsets_of_sensitivity(np.array([5e9, 5e9])) == (0, 0)
    assert offsets_of_sensitivity(np.array([0.0, 1.0, 81.0])) == (0, 3, -3)
    assert offsets_of_sensitivity(np.zeros(2)) == (0, 0)
    assert offsets_of_sensitivity(np.array([1e-40, 1.0])) == (WIDEST_OFFSET, -WIDEST_OFFSET)


@pytest.mark.parametrize("bad", [[-1.0, 1.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_impossible_sensitivities_are_refused(bad: list[float]) -> None:
    with pytest.raises(CodecError, match="sensitivity"):
        offsets_of_sensitivity(np.array(bad))


def test_each_projection_is_coded_at_its_own_step() -> None:
    tensors = random_adapter(0, size=0.5)
    offsets = (5, -7)
    decoded = unpack(pack(Source(tensors, BaseModel("tiny"), {}, offsets), -12))
    for f, g, offset in zip(tensors.factors, decoded.factors, offsets, strict=True):
        expected = dequantise(quantise(f.right, -12 + offset), -12 + offset)
        np.testing.assert_array_equal(g.right, expected[: g.rank])


def test_a_coarse_projection_loses_components_first() -> None:
    tensors = random_adapter(0, widths=((24, 16), (24, 16)), ranks=(4, 4), size=0.5)
    same = dataclasses.replace(tensors, factors=(tensors.factors[0],) * 2)
    counts = ladder_to(same, exponent_of_quality(same, 1.0), 1, 1, offsets=(6, -6))[-1].counts
    assert counts[0] < counts[1]


def test_offsets_of_another_adapter_are_refused() -> None:
    tensors = random_adapter(0)
    with pytest.raises(CodecError, match="3 step offsets for 2 projections"):
        block_offsets(tensors, (1, 2, 3))
    with pytest.raises(CodecError, match="step offsets"):
        ladder_to(tensors, 0, offsets=(1,))
    assert ladder_to(tensors, 0, 1, 1) == [ChunkPlan(0, ladder_to(tensors, 0, 1, 1)[0].counts)]


def test_sensitivity_is_the_mean_squared_gradient() -> None:
    adapter = ElasticAdapter.attach(tiny_model("bert"), r_max=3)
    randomise(adapter, 0, scale=0.3)
    balance(adapter)
    ranks = np.array([0, 1, 2, 3] * 3)
    adapter.set_ranks(ranks)
    batch = {**tiny_batch(), "labels": torch.arange(len(tiny_batch()["input_ids"])) % 2}
    found = weight_sensitivity(adapter, [batch, batch])
    assert found[ranks == 0].tolist() == [0.0] * 3
    i = 6  # rank 2
    Q, _, P = adapter.factors()[i]
    loss = adapter.model(**batch).loss
    dq, dp = torch.autograd.grad(loss, [Q, P])
    expected = (dq[:2].square().mean() + dp[:, :2].square().mean()) / 2
    assert found[i] == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(DataError, match="at least one batch"):
        weight_sensitivity(adapter, [])


def learner(seed: int = 0) -> TransformerLearner:
    found = TransformerLearner(dataclasses.replace(CONFIG, seed=seed), keyword_splits())
    randomise(found.adapter, seed, scale=0.5)
    balance(found.adapter)
    return found


def test_coding_of_a_learner() -> None:
    found = learner()
    coding = coding_for(found, 2.0, n_batches=2)
    assert coding.exponent == exponent_of_quality(tensors_of(found.adapter), 2.0)
    sensitivity = weight_sensitivity(found.adapter, training_batches(found, 2))
    assert coding.offsets == offsets_of_sensitivity(sensitivity)
    assert len(set(coding.offsets)) > 1
    assert set(coding_for(found, 2.0, power=0).offsets) == {0}


def test_a_finish_lands_on_the_grid_and_costs_less() -> None:
    before = learner()
    start = tensors_of(before.adapter)
    sizes = []
    for weight in (0.0, 1e-2):
        finish = Finish(steps=8, lr=2e-2, relative_step=1.0, bit_weight=weight)
        found, coding = prepare_finish(start, CONFIG, keyword_splits(), finish)
        assert found.rounding == Rounding((coding.exponent,) * 2, weight, coding.offsets)
        assert run_finish(found)
        assert found.n_steps == 8
        source = Source(tensors_of(found.adapter), BaseModel("tiny"), {}, coding.offsets)
        sizes.append(sum(map(len, pack(source, coding.exponent).chunks)))
    assert sizes[1] < 0.9 * sizes[0]


def test_a_finish_pauses_when_asked() -> None:
    finish = Finish(steps=5, relative_step=1.0)
    found, _ = prepare_finish(tensors_of(learner().adapter), CONFIG, keyword_splits(), finish)
    assert not run_finish(found, lambda loss: loss > 0 and found.n_steps == 2)
    assert found.n_steps == 2
    assert run_finish(found, lambda loss: False)


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"lr": 0.0}, {"relative_step": -1.0}, {"bit_weight": -1e-9}]
)
def test_an_impossible_finish_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Finish(**bad)  # pyright: ignore[reportArgumentType]


def test_an_adapter_of_other_projections_is_refused() -> None:
    with pytest.raises(ModelError):
        prepare_finish(random_adapter(0), CONFIG, keyword_splits(), Finish(steps=1))


def test_rounding_offsets_must_fit_the_model() -> None:
    rng = np.random.default_rng(0)
    steps = Rounding((-6, -6), 0.0, (0, 6)).draw(rng, 2)
    assert steps == [float(step_of(-6)), float(step_of(0))]
    with pytest.raises(ConfigError, match="2 projections"):
        Rounding((-6, -6), 0.0, (0, 6)).draw(rng, 3)
    with pytest.raises(ConfigError):
        Rounding((-180, 0), 0.0, (-1, 0))


def test_the_coding_travels_with_the_adapter(tmp_path: Path) -> None:
    adapter = ElasticAdapter.attach(tiny_model("bert"), r_max=2)
    randomise(adapter, 0, scale=0.3)
    balance(adapter)
    offsets = list(range(12))
    save_adapter(adapter, tmp_path, coding={"exponent": -9, "offsets": offsets})
    source = read_adapter(tmp_path)
    assert (source.exponent, source.offsets) == (-9, tuple(offsets))
    file = tmp_path / "rankcast_adapter.json"
    raw = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(raw | {"coding": {"offsets": "x"}}), "utf-8")
    with pytest.raises(CodecError, match="coding"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("name", "shown"),
    [("/home/me/models/llama", "llama"), ("org/model", "org/model"), (None, None)],
)
def test_a_file_says_nothing_of_this_machines_folders(name: str | None, shown: str | None) -> None:
    packed = pack(Source(random_adapter(0), BaseModel(name), {}), -12)
    assert packed.header.base.name == shown
