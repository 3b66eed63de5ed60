"""Training towards the answers that an adapter gave before."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from keyword_data import keyword_splits
from rankcast.adapters.canonical import balance
from rankcast.adapters.coding import tensors_of
from rankcast.finetune.batching import Batch
from rankcast.finetune.config import FinetuneConfig
from rankcast.finetune.distillation import Teacher
from rankcast.finetune.finish import Finish, prepare_finish
from rankcast.finetune.objectives import CausalLM, SequenceClassification
from rankcast.finetune.transformer import TransformerLearner
from rankcast.records import TextStats
from tiny_models import randomise

CONFIG = FinetuneConfig(
    model="tiny", lr=1e-2, r_max=3, alpha=3.0, batch_size=8, warmup_steps=0, total_steps=30,
    orthogonality_weight=0.0, mixed_precision="no", measure_reference=False,
)  # fmt: skip


def learner(**settings: object) -> TransformerLearner:
    found = TransformerLearner(replace(CONFIG, **settings), keyword_splits())  # pyright: ignore[reportArgumentType]
    randomise(found.adapter, 0, scale=0.5)
    balance(found.adapter)
    return found


def batch_of(found: TransformerLearner) -> Batch:
    return found._parts(found._batches.peek())[0]


def batch_with(mask: torch.Tensor) -> Batch:
    ids = torch.zeros(mask.shape, dtype=torch.long)
    text = TextStats(np.zeros(1), np.zeros(1))
    return Batch(ids, mask, None, text, np.arange(len(ids)))


def test_divergence_by_hand() -> None:
    # KL((¾, ¼) ‖ (½, ½)) = ¾·ln 1½ + ¼·ln ½.
    teacher = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    batch = batch_with(torch.ones(2, 1))
    found = SequenceClassification(2).divergence(torch.zeros(2, 2), teacher, batch)
    assert found.tolist() == pytest.approx([0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0.0])


def test_divergence_of_a_language_model_counts_where_a_token_follows() -> None:
    teacher = torch.tensor([[[math.log(3.0), 0.0]] * 3])
    one = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    for length, count in ((3, 2), (2, 1), (1, 0)):
        mask = (torch.arange(3) < length).long()[None]
        batch = batch_with(mask)
        found = CausalLM().divergence(torch.zeros(1, 3, 2), teacher, batch)
        assert found.tolist() == pytest.approx([count * one])


def test_the_teacher_answers_as_before_and_leaves_the_weights_alone() -> None:
    found = learner()
    batch = batch_of(found)
    teacher = Teacher(found.adapter)
    found.adapter.model.eval()
    with torch.no_grad():
        before = found.adapter.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask
        ).logits
    for _ in range(3):
        found.train_step()
    changed = found.adapter.state_dict()
    with found.adapter.at_ranks([1] * 12), found.adapter.at_steps([0.5] * 12):
        assert torch.equal(teacher.logits(batch), before)
    for name, tensor in found.adapter.state_dict().items():
        assert torch.equal(tensor, changed[name])
    with torch.no_grad():
        after = found.adapter.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask
        ).logits
    assert not torch.allclose(after, before)


def test_training_comes_back_to_the_teacher() -> None:
    found = learner()
    teacher = Teacher(found.adapter)
    with torch.no_grad():
        for Q, _, P in found.adapter.factors():
            Q.mul_(0.5)
            P.mul_(0.5)
    found.teacher = teacher
    losses = [found.train_step() for _ in range(30)]
    assert np.mean(losses[-5:]) < 0.2 * np.mean(losses[:5])


def test_a_finish_distils_unless_told_otherwise() -> None:
    start, splits = tensors_of(learner().adapter), keyword_splits()
    for distil in (True, False):
        finish = Finish(steps=2, relative_step=1e-3, bit_weight=0.0, distil=distil)
        found, _ = prepare_finish(start, CONFIG, splits, finish)
        assert (found.teacher is not None) == distil
        first = found.train_step()
        assert (first < 1e-4) == distil  # fine steps change nothing: it still is its teacher
