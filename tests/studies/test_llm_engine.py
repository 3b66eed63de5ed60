"""Answers of llama.cpp itself: the same losses as those of the model that it runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.gguf_bases import VOCABULARY, tiny_causal_model, write_base
from helpers.llama_cpp import needs_llama_cpp
from rankcast.codec.formats.peft import read_peft
from rankcast.learner.batching import TokenisedDataset
from rankcast.records import TextStats
from studies.llm import engine
from studies.llm.engine import engine_losses


def some_answers() -> TokenisedDataset:
    rng = np.random.default_rng(0)
    tokens = tuple(rng.integers(3, VOCABULARY, size=4 + n) for n in range(3))
    marks = tuple(np.arange(len(ids)) >= 3 for ids in tokens)
    return TokenisedDataset(tokens, None, TextStats(np.zeros(3), np.zeros(3)), 0, marks)


def by_hand(model: Any, tokens: TokenisedDataset) -> list[float]:
    losses = []
    assert tokens.is_answer is not None
    for ids, marks in zip(tokens.tokens, tokens.is_answer, strict=True):
        with torch.no_grad():
            found = model(torch.from_numpy(ids)[None]).logits[0].double().log_softmax(-1)
        losses.append(-sum(float(found[i - 1, ids[i]]) for i in np.flatnonzero(marks)))
    return losses


def test_losses_are_those_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import LoraConfig, get_peft_model

    needs_llama_cpp()
    monkeypatch.setattr(engine, "N_BEST", 20)  # most words are asked for a second time
    model, tokens = tiny_causal_model("gemma3_text"), some_answers()
    base = write_base(model, tmp_path / "base.gguf")
    alone = by_hand(model, tokens)
    config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted: Any = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    adapted.eval().save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    adapter = read_peft(tmp_path / "adapter")[0]
    found = engine_losses(base, adapter, tokens, VOCABULARY, tmp_path / "with")
    assert found == pytest.approx(by_hand(adapted, tokens), abs=2e-2)
    bare = engine_losses(base, None, tokens, VOCABULARY, tmp_path / "without")
    assert bare == pytest.approx(alone, abs=2e-2)
    assert np.abs(found - bare).min() > 0.05

    monkeypatch.setattr(engine, "llama_server", lambda *_, **__: pytest.fail("served again"))
    again = engine_losses(base, adapter, tokens, VOCABULARY, tmp_path / "with")
    assert again.tolist() == found.tolist()
    more = replace(tokens, tokens=(*tokens.tokens, tokens.tokens[0]))
    with pytest.raises(pytest.fail.Exception):
        engine_losses(base, adapter, more, VOCABULARY, tmp_path / "with")
