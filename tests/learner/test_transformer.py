from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.models import keyword_splits, tiny_model
from rankcast.config.learner import FinetuneConfig
from rankcast.errors import CheckpointError, ConfigError, DataError, ModelError, RankcastError
from rankcast.learner.base_models import load_model
from rankcast.learner.objectives import CausalLM, SequenceClassification
from rankcast.learner.protocol import Learner
from rankcast.learner.texts import DatasetSplits, TextDataset
from rankcast.learner.transformer import TransformerLearner

CONFIG = FinetuneConfig(
    model="tiny",
    lr=2e-2,
    r_max=4,
    alpha=4.0,
    total_steps=40,
    warmup_steps=2,
    batch_size=16,
    mixed_precision="no",
)
DATA = keyword_splits()


def learner(**changes: Any) -> Any:
    return TransformerLearner(replace(CONFIG, **changes), DATA)


def run(live: Any, n_steps: Any, rank: Any = 4) -> Any:
    results = []
    for _ in range(n_steps):
        live.apply(np.full((1, live.layout.n_projections), rank))
        results.append(live.step())
    return results


def losses(results: Any) -> Any:
    return [float(result.task_loss[0]) for result in results]


def weights(live: Any) -> Any:
    return live.adapter.state_dict()


def test_it_is_a_learner_of_the_six_projections() -> None:
    live = learner()
    assert isinstance(live, Learner)
    assert live.n_envs == 1
    assert live.layout.n_projections == 12
    assert live.layout.kinds == ("q", "k", "v", "o", "fc1", "fc2")


def test_it_learns() -> None:
    live = learner()
    before = live.evaluate("test")
    curve = losses(run(live, 40))
    after = live.evaluate("test")
    assert np.mean(curve[-5:]) < 0.3 * curve[0]
    assert after.accuracy > max(0.9, before.accuracy)
    assert after.n_examples == 24


def test_next_text_describes_the_batch_that_is_trained() -> None:
    live = learner()
    first = live.next_text()
    assert live.next_text() == first
    chosen = live._batches.peek()
    from rankcast.learner.text_complexity import TextComplexity

    expected = TextComplexity(live.tokenizer).batch([DATA.train.texts[i] for i in chosen])
    assert first.lexical_entropy == pytest.approx(expected.lexical_entropy)
    assert first.oov_rate == pytest.approx(expected.oov_rate)
    run(live, 1)
    assert live.next_text().lexical_entropy != first.lexical_entropy


def test_only_the_active_prefix_is_trained() -> None:
    live = learner()
    before = weights(live)
    ranks = np.arange(12) % 5
    live.apply(ranks[None])
    live.step()
    live.step()
    for projection, rank in zip(live.layout.projections, ranks, strict=True):
        for part, axis in (("Q", 0), ("lam", 0), ("P", 1)):
            old = before[f"{projection.name}.{part}"].movedim(axis, 0)
            new = weights(live)[f"{projection.name}.{part}"].movedim(axis, 0)
            assert torch.equal(old[rank:], new[rank:])
            assert rank == 0 or not torch.equal(old[:rank], new[:rank])


def test_the_reference_is_the_same_batch_at_full_rank() -> None:
    live = learner(lr=5e-3)
    run(live, 10)
    batch = live._batches.peek()
    indices = {text: i for i, text in enumerate(DATA.train.texts)}
    assert len(indices) == len(DATA.train)
    full = live.judge_texts("train", np.full(12, 4), None)[0][batch].mean()
    none = live.judge_texts("train", np.zeros(12, dtype=int), None)[0][batch].mean()
    (result,) = run(live, 1, rank=0)
    assert result.reference_loss is not None
    assert result.reference_loss[0] == pytest.approx(full, rel=1e-5)
    assert result.task_loss[0] == pytest.approx(none, rel=1e-5)
    (result,) = run(live, 1, rank=4)
    assert result.reference_loss is not None
    assert result.task_loss[0] == pytest.approx(result.reference_loss[0], rel=1e-6)


def test_dropout_is_in_neither_of_two_compared_losses() -> None:
    live = learner(dropout=0.5, base_dropout=True)
    for result in run(live, 3):
        assert result.reference_loss is not None
        assert result.task_loss[0] == result.reference_loss[0]
    assert run(learner(measure_reference=False), 1)[0].reference_loss is None


@pytest.mark.parametrize(
    "changes", [{}, {"dropout": 0.3, "base_dropout": True}, {"nested_prob": 0.5}]
)
def test_continuing_is_bit_exact(changes: Any) -> None:
    live = learner(**changes)
    run(live, 4, rank=2)
    state = live.state_dict()
    torch.manual_seed(999)  # the global generator must not matter
    expected = losses(run(live, 4, rank=3))
    other = learner(**changes)
    other.load_state_dict(state)
    torch.rand(7)
    assert losses(run(other, 4, rank=3)) == expected
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(live).values(), weights(other).values(), strict=True)
    )


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    run(learner(dropout=0.3, base_dropout=True), 2)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    whole, parts = learner(lr=1e-3), learner(lr=1e-3, grad_accumulation=3)
    assert losses(run(parts, 3)) == pytest.approx(losses(run(whole, 3)), rel=1e-5)
    for a, b in zip(weights(whole).values(), weights(parts).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_nested_training_reports_the_loss_of_the_plan() -> None:
    live, plain = learner(nested_prob=1.0), learner()
    assert losses(run(live, 1, rank=1)) == pytest.approx(losses(run(plain, 1, rank=1)))
    assert live.adapter.ranks.tolist() == [1] * 12
    tail = [tensor for name, tensor in weights(live).items() if name.endswith("lam")]
    assert any(bool(lam[1:].any()) for lam in tail)  # ranks above the plan's were trained


def test_texts_agree_with_evaluation() -> None:
    live = learner()
    run(live, 5)
    for ranks in (None, np.zeros(12, dtype=int)):
        _, right, count = live.judge_texts("validation", ranks)
        assert set(right.tolist()) <= {0.0, 1.0}
        assert set(count.tolist()) == {1.0}
        assert right.mean() == pytest.approx(live.evaluate("validation", ranks).accuracy)
    _, some, _ = live.judge_texts("validation", None, max_examples=7)
    assert len(some) == 7
    assert some.tolist() == live.judge_texts("validation", None, max_examples=7)[1].tolist()
    assert live.adapter.ranks.tolist() == [4] * 12


def test_a_causal_model_learns_the_next_word() -> None:
    texts = tuple(DATA.train.texts)
    data = DatasetSplits(*[TextDataset(texts)] * 3)
    live = TransformerLearner(replace(CONFIG, objective="causal", lr=3e-2), data)
    before = live.evaluate("test")
    run(live, 20)
    after = live.evaluate("test")
    assert after.loss < before.loss
    assert 0 <= after.accuracy <= 1
    live.apply(np.zeros((1, 12), dtype=int))
    live.step()  # nothing is trainable at rank 0, and that is no error


def test_without_labels_there_is_nothing_to_classify() -> None:
    with pytest.raises(DataError, match="no labels"):
        TransformerLearner(CONFIG, DatasetSplits(*[TextDataset(DATA.train.texts)] * 3))
    unlabelled = replace(DATA, test=TextDataset(DATA.test.texts))
    with pytest.raises(DataError, match="this split has none"):
        TransformerLearner(CONFIG, unlabelled).evaluate("test")


@pytest.mark.parametrize(
    ("ranks", "error"),
    [
        (np.zeros(12, dtype=int), ModelError),
        (np.zeros((1, 11), dtype=int), ModelError),
        (np.full((1, 12), 5), ConfigError),
        (np.full((1, 12), -1), ConfigError),
        (np.full((1, 12), 1.5), ConfigError),
    ],
)
def test_impossible_ranks(ranks: Any, error: Any) -> None:
    with pytest.raises(error):
        learner().apply(ranks)


def test_a_diverged_loss_is_an_error() -> None:
    live = learner()
    with torch.no_grad():
        live.adapter.other_parameters()[0].fill_(float("nan"))
    with pytest.raises(RankcastError, match="loss is nan at step 0"):
        run(live, 1)


def test_infinite_gradients_are_an_error() -> None:
    live = learner(measure_reference=False)
    parameter = live.adapter.other_parameters()[0]
    parameter.register_hook(lambda grad: grad * float("inf"))
    before = weights(live)
    with pytest.raises(RankcastError, match="gradients are not finite at step 0"):
        run(live, 1)
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), weights(live).values(), strict=True)
    )


def test_a_state_of_another_run_is_refused() -> None:
    state = learner().state_dict()
    with pytest.raises(CheckpointError, match="other batches"):
        learner(batch_size=8).load_state_dict(state)
    with pytest.raises(CheckpointError):
        learner(r_max=3).load_state_dict(state)
    with pytest.raises(CheckpointError, match="lacks ranks"):
        learner().load_state_dict({k: v for k, v in state.items() if k != "ranks"})


def test_the_learning_rate_rises_and_falls() -> None:
    config = FinetuneConfig(lr=1.0, warmup_steps=4, total_steps=14)
    assert [config.lr_at(step) for step in (0, 1, 3, 4, 9, 14, 20)] == pytest.approx(
        [0.25, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("lr", float("nan")),
        ("batch_size", 0),
        ("nested_prob", 1.5),
        ("objective", "regression"),
        ("mixed_precision", "fp8"),
        ("orthogonality_weight", -1.0),
    ],
)
def test_settings_out_of_range(name: Any, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        replace(CONFIG, **{name: value})


def test_models_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Cannot load the base model"):
        load_model(str(tmp_path), SequenceClassification(2), seed=0)
    with pytest.raises(ConfigError, match="at least two classes"):
        SequenceClassification(1)


def test_minilm_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"rankcast\[demo\]"):
        load_model("minilm", SequenceClassification(2), seed=0)


@pytest.mark.parametrize(
    ("architecture", "causal", "head"),
    [
        ("bert", False, ("classifier", "pooler")),
        ("roberta", False, ("classifier",)),
        ("opt", False, ("score",)),
        ("gpt2", False, ("score",)),
        ("llama", True, ()),
    ],
)
def test_models_from_a_folder(tmp_path: Path, architecture: Any, causal: Any, head: Any) -> None:
    from rankcast.learner.base_models import _tiny_tokenizer

    tiny_model(architecture, causal=causal).save_pretrained(tmp_path)
    tokenizer = _tiny_tokenizer(["a river"])
    tokenizer.pad_token = None
    tokenizer.eos_token = "[SEP]"  # noqa: S105
    tokenizer.save_pretrained(tmp_path)
    objective = CausalLM() if causal else SequenceClassification(3)
    base = load_model(str(tmp_path), objective, seed=0, train_pooler=True)
    assert base.head == head
    assert base.tokenizer.pad_token_id == base.model.config.pad_token_id == 3
    assert base.max_length <= 64
    ids = torch.tensor(base.tokenizer(["a river"])["input_ids"])
    logits = base.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert logits.shape[-1] == (37 if causal else 3)
