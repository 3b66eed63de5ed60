"""Coarser steps where weights matter less: by hand, in ladders, and measured on a model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from helpers.codec import random_adapter
from helpers.models import randomise, tiny_model
from rankcast.adapters.elastic import ElasticAdapter
from rankcast.adapters.export import save_adapter
from rankcast.codec.chunks import ChunkPlan
from rankcast.codec.container import pack_at_exponent
from rankcast.codec.header import BaseModel
from rankcast.codec.packing import (
    WIDEST_OFFSET,
    Coding,
    Source,
    block_offsets,
    chunk_plans,
    exponent_of_quality,
    offsets_of_sensitivity,
)
from rankcast.codec.quantiser import dequantise, quantise
from rankcast.config.learner import FinetuneConfig
from rankcast.errors import CodecError
from rankcast.packaging.pack import read_adapter
from studies.baselines.canonical import balance

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
    decoded = pack_at_exponent(Source(tensors, BaseModel("tiny"), {}, offsets), -12).tensors()
    for f, g, offset in zip(tensors.factors, decoded.factors, offsets, strict=True):
        expected = dequantise(quantise(f.right, -12 + offset), -12 + offset)
        np.testing.assert_array_equal(g.right, expected[: g.rank])


def test_a_coarse_projection_loses_components_first() -> None:
    tensors = random_adapter(0, widths=((24, 16), (24, 16)), ranks=(4, 4), size=0.5)
    same = dataclasses.replace(tensors, factors=(tensors.factors[0],) * 2)
    counts = chunk_plans(same, exponent_of_quality(same, 1.0), 1, 1, offsets=(6, -6))[-1].counts
    assert counts[0] < counts[1]


def test_offsets_of_another_adapter_are_refused() -> None:
    tensors = random_adapter(0)
    with pytest.raises(CodecError, match="3 step offsets for 2 projections"):
        block_offsets(tensors, (1, 2, 3))
    with pytest.raises(CodecError, match="step offsets"):
        chunk_plans(tensors, 0, offsets=(1,))
    assert chunk_plans(tensors, 0, 1, 1) == [ChunkPlan(0, chunk_plans(tensors, 0, 1, 1)[0].counts)]


def test_the_coding_travels_with_the_adapter(tmp_path: Path) -> None:
    adapter = ElasticAdapter.attach(tiny_model("bert"), r_max=2)
    randomise(adapter, 0, scale=0.3)
    balance(adapter)
    offsets = list(range(12))
    save_adapter(adapter, tmp_path, coding=Coding(-9, offsets))
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
    packed = pack_at_exponent(Source(random_adapter(0), BaseModel(name), {}), -12)
    assert packed.header.base.name == shown
