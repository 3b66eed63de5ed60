"""Bits of an adapter in training, against the coder; and training that pays for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from helpers.models import keyword_splits, randomise, tiny_model
from rankcast.adapters.arrays import tensors_of
from rankcast.adapters.elastic import ElasticAdapter
from rankcast.adapters.rate import coded_bits
from rankcast.codec.chunks import ChunkPlan, encode
from rankcast.codec.quantiser import exponent_near, step_of
from rankcast.config.learner import FinetuneConfig
from rankcast.errors import ConfigError
from rankcast.learner.rounding import Rounding
from rankcast.learner.transformer import TransformerLearner
from studies.baselines.canonical import balance

CONFIG = FinetuneConfig(
    model="tiny", lr=2e-2, r_max=4, alpha=4.0, batch_size=8, warmup_steps=2,
    orthogonality_weight=0.0,
    mixed_precision="no", measure_reference=False,
)  # fmt: skip


def test_bits_are_those_of_the_coder() -> None:
    adapter = ElasticAdapter.attach(tiny_model("bert"), r_max=8)
    randomise(adapter, 0, scale=0.3)
    balance(adapter)
    ranks = np.random.default_rng(0).integers(0, 9, adapter.layout.n_projections)
    adapter.set_ranks(ranks)
    tensors = tensors_of(adapter)
    counts = (*tensors.ranks.tolist(), *(0 for _ in tensors.modules))
    for step in (0.1, 0.3):
        exponent = exponent_near(step)
        coded = 8 * len(encode(tensors, [ChunkPlan(exponent, counts)])[0])
        steps = [float(step_of(exponent))] * len(adapter.layers)
        estimate = coded_bits(adapter, steps).item()
        assert estimate == pytest.approx(coded, rel=0.25)  # strips of 16 and 24 numbers


def test_bits_fall_along_their_gradient() -> None:
    adapter = ElasticAdapter.attach(tiny_model("bert"), r_max=4)
    randomise(adapter, 0, scale=0.3)
    balance(adapter)
    before = coded_bits(adapter, [0.2] * len(adapter.layers))
    before.backward()
    with torch.no_grad():
        for Q, _, P in adapter.factors():
            for p in (Q, P):
                assert p.grad is not None
                p.sub_(1e-4 * p.grad)
    assert float(coded_bits(adapter, [0.2] * len(adapter.layers))) < float(before)


def test_a_strip_of_zeros_has_no_slope() -> None:
    adapter = ElasticAdapter.attach(tiny_model("bert"), r_max=4)  # P is zero
    coded_bits(adapter, [0.2] * len(adapter.layers)).backward()
    for factors in adapter.factors():
        for p in factors:
            assert p.grad is None or bool(torch.isfinite(p.grad).all())


def learner(**settings: Any) -> TransformerLearner:
    config = replace(CONFIG, **settings)
    made = TransformerLearner(config, keyword_splits())
    randomise(made.adapter, 0, scale=0.5)
    balance(made.adapter)
    return made


def test_training_that_pays_for_bits_ends_with_fewer() -> None:
    bits = []
    for weight in (0.0, 1e-3):
        live = learner(total_steps=12)
        live.begin_qat(Rounding((-12, -12), weight), distil=False)
        for _ in range(12):
            live.train_step()
        bits.append(
            float(coded_bits(live.adapter, [float(step_of(-12))] * len(live.adapter.layers)))
        )
    assert bits[1] < 0.9 * bits[0]


def test_rounded_training_is_repeated_bit_by_bit() -> None:
    states = []
    for _ in range(2):
        live = learner(total_steps=4)
        live.begin_qat(Rounding((-18, -6), 1e-6), distil=False)
        for _ in range(4):
            live.train_step()
        states.append(live.adapter.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name])


@pytest.mark.parametrize("bad", [((3, 2), 0.0), ((-999, 0), 0.0), ((0, 1), -1.0)])
def test_impossible_rounding_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigError):
        Rounding(*bad)
