"""Losses from slices of hidden states beside those from all logits, on heads of several kinds."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from helpers.language_models import (
    ARCHITECTURES,
    language_model,
    learner_of,
    save_language_model,
    word_tokenizer,
    write_questions,
)
from rankcast.adapters.elastic import ElasticAdapter
from rankcast.errors import OutOfMemoryError
from rankcast.learner import answer_head
from rankcast.learner.answer_head import AnswerHead, WholeLogits, answering_for
from rankcast.learner.batching import Batch, tokenise
from rankcast.learner.conversations import Completion
from rankcast.learner.objectives import AdapterSnapshot, CausalLM
from rankcast.learner.texts import TextDataset
from rankcast.learner.transformer import TransformerLearner

ROWS = [
    Completion("which animal barks", " a dog"),
    Completion("what", " it says meow meow"),
    Completion("please tell me now", " no"),
]


@pytest.fixture(autouse=True)
def two_tokens_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_head, "SLICE_BYTES", 2 * 4 * 29 + 3)


def adapted(architecture: str) -> ElasticAdapter:
    adapter = ElasticAdapter.attach(language_model(architecture), r_max=2, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, _, P in adapter.factors():
            P.copy_(0.3 * torch.randn(P.shape, generator=generator))
    adapter.model.eval()
    return adapter


def batch(*, answers: bool = True) -> Batch:
    data = TextDataset.of_answers(ROWS) if answers else TextDataset(tuple(r.text for r in ROWS))
    return tokenise(data, word_tokenizer(), 64).collate(np.arange(3))


def both(adapter: ElasticAdapter, texts: Batch) -> Any:
    """Return head, states and run of slices, and of whole logits."""
    model = adapter.model

    def run() -> Any:
        return model(input_ids=texts.input_ids, attention_mask=texts.attention_mask)

    plain = lambda: torch.autocast("cpu", enabled=False)  # noqa: E731
    head = answering_for(CausalLM(), model, plain, is_causal=True)
    assert isinstance(head, AnswerHead)
    whole = WholeLogits(CausalLM())
    return (head, head.states(run, texts)), (whole, whole.states(run, texts))


def gradients(adapter: ElasticAdapter, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [P for _, _, P in adapter.factors()]))


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_and_gradients_are_those_of_whole_logits(architecture: str, answers: bool) -> None:
    adapter, texts = adapted(architecture), batch(answers=answers)
    (head, states), (whole, logits) = both(adapter, texts)
    assert states.shape == (CausalLM().count(texts), 32)
    ours, theirs = head.judge(states, texts), whole.judge(logits, texts)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-4, atol=1e-5)
    assert ours.correct.tolist() == theirs.correct.tolist()
    assert ours.count.tolist() == theirs.count.tolist()
    weights = torch.tensor([1.0, 0.5, 2.0])  # each text's gradient counts by itself
    for a, b in zip(
        gradients(adapter, (ours.loss * weights).sum()),
        gradients(adapter, (theirs.loss * weights).sum()),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("weight", [1.0, 0.4])
@pytest.mark.parametrize("n_teachers", [1, 2])
def test_divergences_are_those_of_whole_logits(n_teachers: int, weight: float) -> None:
    adapter, texts = adapted("gemma2"), batch()
    snapshots = [AdapterSnapshot(adapter)]
    with torch.no_grad():
        for _, _, P in adapter.factors():
            P.mul_(-0.5)
    snapshots.append(AdapterSnapshot(adapter))
    with torch.no_grad():
        for Q, _, _ in adapter.factors():
            Q.mul_(1.5)
    taught: Any = [], []
    for snapshot in snapshots[:n_teachers]:
        with snapshot.answering():
            for kept, (_, states) in zip(taught, both(adapter, texts), strict=True):
                kept.append(states)
    found = []
    for (answering, states), teachers in zip(both(adapter, texts), taught, strict=True):
        loss = answering.towards(states, teachers, weight, texts)
        found.append((loss, gradients(adapter, loss.sum())))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_no_more_logits_than_a_slice_are_ever_there(tmp_path: Path) -> None:
    texts = write_questions(tmp_path / "q.jsonl")
    live = learner_of(save_language_model(tmp_path / "m"), texts, whole=True)
    seen = []
    layer = live.adapter.model.get_output_embeddings()
    layer.register_forward_hook(lambda layer, given, out: seen.append(tuple(out.shape)))
    live.learn_from([AdapterSnapshot(live.adapter)], 0.5)
    live.train_step()
    live.evaluate("validation")
    tokens = {rows * length for rows, length, _ in seen}
    assert max(tokens) == 2  # those of a slice
    assert len(seen) > 20


def test_a_head_that_trains_or_mixes_tokens_needs_all_logits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = lambda: torch.autocast("cpu", enabled=False)  # noqa: E731
    model = language_model("llama").requires_grad_(requires_grad=True)
    with caplog.at_level(logging.WARNING):
        assert isinstance(answering_for(CausalLM(), model, plain, is_causal=True), WholeLogits)
    assert "the output layer of LlamaForCausalLM trains" in caplog.text
    model.requires_grad_(requires_grad=False)
    usual = model.forward

    def mixes(*args: Any, **kwargs: Any) -> Any:
        logits = usual(*args, **kwargs).logits
        return SimpleNamespace(logits=logits + logits.cumsum(1))

    model.forward = mixes
    with caplog.at_level(logging.WARNING):
        assert isinstance(answering_for(CausalLM(), model, plain, is_causal=True), WholeLogits)
    assert "LlamaForCausalLM makes other logits of single tokens" in caplog.text


def learned(live: TransformerLearner) -> list[float]:
    losses = [live.train_step() for _ in range(3)]
    return [*losses, live.evaluate("validation").loss]


def test_parts_of_a_batch_change_nothing(tmp_path: Path) -> None:
    folder = save_language_model(tmp_path / "m")
    texts = write_questions(tmp_path / "q.jsonl")
    parts, whole = learner_of(folder, texts, pass_tokens=10), learner_of(folder, texts)
    assert len(parts._next_parts()) > 2
    assert len(whole._next_parts()) == 1
    assert learned(parts) == pytest.approx(learned(whole), rel=1e-4)


def test_bfloat16_trains_and_float32_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_language_model(tmp_path / "m")
    texts = write_questions(tmp_path / "q.jsonl")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    low = learner_of(folder, texts, mixed_precision="auto")
    usual = learner_of(folder, texts)
    assert low.evaluate("validation") == usual.evaluate("validation")
    losses = low.train_step(), usual.train_step()
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)  # 8 bits of a mantissa
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert learner_of(folder, texts, mixed_precision="auto").train_step() == losses[1]


def test_a_language_model_learns_its_answers_alone(tmp_path: Path) -> None:
    live = learner_of(
        save_language_model(tmp_path / "m"), write_questions(tmp_path / "q.jsonl"), lr=3e-2
    )
    before = live.evaluate("validation")
    for _ in range(30):
        live.train_step()
    after = live.evaluate("validation")
    assert after.loss < 0.1 < before.loss
    assert after.exact_match == 1.0
    assert after.perplexity == pytest.approx(np.exp(after.loss))
    _, _, count = live.judge_texts("validation", None)
    assert set(count.tolist()) == {2.0}  # the word and the end of the sequence


def test_exact_match_by_hand(tmp_path: Path) -> None:
    live = learner_of(save_language_model(tmp_path / "m"), write_questions(tmp_path / "q.jsonl"))
    count, correct = np.array([2.0, 2.0, 1.0, 0.0]), np.array([2.0, 1.0, 1.0, 0.0])
    found = live.evaluation_of(np.array([1.0, 2.0, 2.0, 0.0]), correct, count)
    assert found.loss == 1.0  # 5 nats over 5 tokens
    assert found.accuracy == pytest.approx(4 / 5)
    assert found.exact_match == pytest.approx(2 / 3)  # a text without predictions says nothing
    assert found.to_plain("_x") == pytest.approx(
        {"loss_x": 1.0, "accuracy_x": 0.8, "perplexity_x": np.e, "exact_match_x": 2 / 3}
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_shortage_of_memory_names_the_options(tmp_path: Path, error: Exception) -> None:
    live = learner_of(save_language_model(tmp_path / "m"), write_questions(tmp_path / "q.jsonl"))

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error

    live.adapter.model.forward = fails
    for call in (live.train_step, lambda: live.evaluate("validation")):
        with pytest.raises(OutOfMemoryError, match=r"--batch-size, .*now 8.*pass_tokens .now 256"):
            call()


def test_another_runtime_error_stays_what_it_is(tmp_path: Path) -> None:
    live = learner_of(save_language_model(tmp_path / "m"), write_questions(tmp_path / "q.jsonl"))

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("shapes do not match")

    live.adapter.model.forward = fails
    with pytest.raises(RuntimeError, match="shapes do not match"):
        live.train_step()
