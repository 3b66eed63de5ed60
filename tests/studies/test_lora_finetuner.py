"""PEFT's plain LoRA, trained, stopped and continued, and read as arrays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.models import keyword_splits
from rankcast.adapters.arrays import load_tensors
from rankcast.codec.formats.peft import read_peft
from rankcast.config.learner import FinetuneConfig
from rankcast.errors import CheckpointError
from rankcast.learner.transformer import TransformerLearner
from studies.baselines.adalora import LoraFinetuner

CONFIG = FinetuneConfig(
    model="tiny", lr=2e-2, r_max=4, alpha=8.0, total_steps=30, warmup_steps=2, batch_size=16,
    mixed_precision="no", measure_reference=False,
)  # fmt: skip
DATA = keyword_splits()


def tuner(**changes: Any) -> LoraFinetuner:
    return LoraFinetuner(replace(CONFIG, **changes), DATA)


def test_it_learns_and_continues_bit_by_bit() -> None:
    whole = tuner()
    losses: list[float] = []
    whole.train(lambda _, loss: losses.append(loss))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:3])

    first = tuner()
    for _ in range(11):
        first.step()
    second = tuner()
    second.load_state_dict(first.state_dict())
    second.train()
    for a, b in zip(whole.state_dict()["trained"], second.state_dict()["trained"], strict=True):
        assert torch.equal(a, b)
    with pytest.raises(CheckpointError, match="rank"):
        tuner(r_max=2).load_state_dict(first.state_dict())


def test_its_factors_move_into_an_elastic_adapter(tmp_path: Path) -> None:
    made = tuner()
    made.train()
    made.model.save_pretrained(tmp_path)
    learner = TransformerLearner(CONFIG, DATA)
    load_tensors(learner.adapter, read_peft(tmp_path)[0])
    theirs, _ = made.judge_texts("test")
    ours, _, _ = learner.judge_texts("test", None)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
