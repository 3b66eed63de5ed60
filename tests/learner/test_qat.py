"""Quantization-aware training: what to train towards, at which steps, and what it saves."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from helpers.codec import random_adapter
from helpers.models import keyword_splits, randomise, tiny_batch, tiny_model
from rankcast.adapters.arrays import tensors_of
from rankcast.adapters.elastic import ElasticAdapter
from rankcast.codec.container import pack_at_exponent
from rankcast.codec.header import BaseModel
from rankcast.codec.packing import Source, exponent_of_quality, offsets_of_sensitivity
from rankcast.codec.quantiser import step_of
from rankcast.config.learner import FinetuneConfig
from rankcast.errors import ConfigError, DataError, ModelError
from rankcast.learner.batching import Batch, tokenise
from rankcast.learner.objectives import AdapterSnapshot, CausalLM, SequenceClassification
from rankcast.learner.qat import (
    QatConfig,
    coding_for,
    prepare_qat,
    run_qat,
    training_batches,
    weight_sensitivity,
)
from rankcast.learner.rounding import Rounding
from rankcast.learner.transformer import TransformerLearner
from rankcast.records import TextStats
from studies.baselines.canonical import balance

CONFIG = FinetuneConfig(
    model="tiny", lr=1e-2, r_max=3, alpha=3.0, batch_size=8, warmup_steps=0, total_steps=30,
    orthogonality_weight=0.0, mixed_precision="no", measure_reference=False,
)  # fmt: skip


def tiny_learner(**settings: Any) -> TransformerLearner:
    learner = TransformerLearner(replace(CONFIG, **settings), keyword_splits())
    randomise(learner.adapter, 0, scale=0.5)
    balance(learner.adapter)
    return learner


def batch_with(mask: torch.Tensor) -> Batch:
    ids = torch.zeros(mask.shape, dtype=torch.long)
    text = TextStats(np.zeros(1), np.zeros(1))
    return Batch(ids, mask, None, text, np.arange(len(ids)))


def test_divergence_by_hand() -> None:
    # KL((¾, ¼) ‖ (½, ½)) = ¾·ln 1½ + ¼·ln ½.
    reference = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    batch = batch_with(torch.ones(2, 1))
    divergence = SequenceClassification(2).divergence(torch.zeros(2, 2), reference, batch)
    assert divergence.tolist() == pytest.approx([0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0.0])


def test_divergence_of_a_language_model_counts_where_a_token_follows() -> None:
    reference = torch.tensor([[[math.log(3.0), 0.0]] * 3])
    one = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    for length, count in ((3, 2), (2, 1), (1, 0)):
        batch = batch_with((torch.arange(3) < length).long()[None])
        divergence = CausalLM().divergence(torch.zeros(1, 3, 2), reference, batch)
        assert divergence.tolist() == pytest.approx([count * one])


def test_a_snapshot_answers_as_before_and_leaves_the_weights_alone() -> None:
    learner = tiny_learner()
    adapter, (batch,) = learner.adapter, learner._next_parts()

    def answers() -> torch.Tensor:
        with torch.no_grad():
            return adapter.model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask
            ).logits

    snapshot = AdapterSnapshot(adapter)
    adapter.model.eval()
    before = answers()
    for _ in range(3):
        learner.train_step()
    trained = adapter.state_dict()
    with adapter.at_ranks([1] * 12), adapter.at_steps([0.5] * 12), snapshot.answering():
        assert torch.equal(answers(), before)
    for name, tensor in adapter.state_dict().items():
        assert torch.equal(tensor, trained[name])
    assert not torch.allclose(answers(), before)


def test_distillation_comes_back_to_the_answers_from_before() -> None:
    learner = tiny_learner()
    learner.begin_qat(Rounding((-60, -60)), distil=True)
    with torch.no_grad():
        for Q, _, P in learner.adapter.factors():
            Q.mul_(0.5)
            P.mul_(0.5)
    losses = [learner.train_step() for _ in range(30)]
    assert np.mean(losses[-5:]) < 0.2 * np.mean(losses[:5])


@pytest.mark.parametrize("distil", [True, False])
def test_it_distils_unless_told_otherwise(distil: bool) -> None:
    start, splits = tensors_of(tiny_learner().adapter), keyword_splits()
    qat = QatConfig(steps=2, relative_step=1e-3, rate_weight=0.0, distil=distil)
    learner, _ = prepare_qat(start, CONFIG, splits, qat)
    first = learner.train_step()
    assert (first < 1e-4) == distil  # fine steps change nothing: it still answers as before


def test_sensitivity_is_the_mean_squared_gradient() -> None:
    adapter = ElasticAdapter.attach(tiny_model("bert"), r_max=3)
    randomise(adapter, 0, scale=0.3)
    balance(adapter)
    ranks = np.array([0, 1, 2, 3] * 3)
    adapter.set_ranks(ranks)
    batch = {**tiny_batch(), "labels": torch.arange(len(tiny_batch()["input_ids"])) % 2}
    sensitivity = weight_sensitivity(adapter, [batch, batch])
    assert sensitivity[ranks == 0].tolist() == [0.0] * 3
    i = 6  # rank 2
    Q, _, P = adapter.factors()[i]
    loss = adapter.model(**batch).loss
    dq, dp = torch.autograd.grad(loss, [Q, P])
    expected = (dq[:2].square().mean() + dp[:, :2].square().mean()) / 2
    assert sensitivity[i] == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(DataError, match="at least one batch"):
        weight_sensitivity(adapter, [])


def test_coding_of_a_learner() -> None:
    learner = tiny_learner()
    coding = coding_for(learner, 2.0, n_batches=2)
    assert coding.exponent == exponent_of_quality(tensors_of(learner.adapter), 2.0)
    sensitivity = weight_sensitivity(learner.adapter, training_batches(learner, 2))
    assert coding.offsets == offsets_of_sensitivity(sensitivity)
    assert len(set(coding.offsets)) > 1
    assert set(coding_for(learner, 2.0, power=0).offsets) == {0}


def test_it_lands_on_the_grid_and_costs_less() -> None:
    start = tensors_of(tiny_learner().adapter)
    sizes = []
    for weight in (0.0, 1e-2):
        qat = QatConfig(steps=8, lr=2e-2, relative_step=1.0, rate_weight=weight)
        learner, coding = prepare_qat(start, CONFIG, keyword_splits(), qat)
        assert learner._rounding == Rounding((coding.exponent,) * 2, weight, coding.offsets)
        assert run_qat(learner)
        assert learner.n_steps == 8
        source = Source(tensors_of(learner.adapter), BaseModel("tiny"), {}, coding.offsets)
        sizes.append(sum(map(len, pack_at_exponent(source, coding.exponent).chunks)))
    assert sizes[1] < 0.9 * sizes[0]


def test_it_pauses_when_asked() -> None:
    qat = QatConfig(steps=5, relative_step=1.0)
    start = tensors_of(tiny_learner().adapter)
    learner, _ = prepare_qat(start, CONFIG, keyword_splits(), qat)
    assert not run_qat(learner, lambda loss: loss > 0 and learner.n_steps == 2)
    assert learner.n_steps == 2
    assert run_qat(learner, lambda loss: False)


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"lr": 0.0}, {"relative_step": -1.0}, {"rate_weight": -1e-9}]
)
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        QatConfig(**bad)  # pyright: ignore[reportArgumentType]


def test_an_adapter_of_other_projections_is_refused() -> None:
    with pytest.raises(ModelError):
        prepare_qat(random_adapter(0), CONFIG, keyword_splits(), QatConfig(steps=1))


def test_rounding_offsets_must_fit_the_model() -> None:
    rng = np.random.default_rng(0)
    steps = Rounding((-6, -6), 0.0, (0, 6)).draw(rng, 2)
    assert steps == [float(step_of(-6)), float(step_of(0))]
    with pytest.raises(ConfigError, match="2 projections"):
        Rounding((-6, -6), 0.0, (0, 6)).draw(rng, 3)
    with pytest.raises(ConfigError):
        Rounding((-180, 0), 0.0, (-1, 0))


@pytest.mark.parametrize("objective", ["classification", "causal"])
def test_training_batches_have_the_loss_that_the_learner_trains(objective: Any) -> None:
    learner = tiny_learner(objective=objective)
    batches = training_batches(learner, 3, seed=1)
    assert [len(batch["input_ids"]) for batch in batches] == [8, 8, 8]
    judge = CausalLM() if objective == "causal" else SequenceClassification(2)
    learner.adapter.model.eval()
    with torch.no_grad():
        output = learner.adapter.model(**batches[0])
    ids = batches[0]["input_ids"]
    known = tokenise(learner.data.train, learner.tokenizer, learner.config.max_length)
    rows = [
        tuple(row[mask == 1]) for row, mask in zip(ids, batches[0]["attention_mask"], strict=True)
    ]
    tokens = [tuple(t) for t in known.tokens]
    place = np.array([tokens.index(tuple(int(x) for x in row)) for row in rows])
    judged = judge.judge(output.logits, known.collate(place))
    mean = judged.loss.sum() / judged.count.sum()
    assert output.loss.item() == pytest.approx(mean.item(), rel=1e-5)


def test_no_more_batches_than_there_are_texts() -> None:
    with pytest.raises(DataError, match="104 texts"):
        training_batches(tiny_learner(), 13)
