"""Losses and divergences of answers by hand, and training that goes on where it stopped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.numpy import load_file

from rankcast.codec.formats.peft import WEIGHTS, read_peft
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.config.learner import FinetuneConfig
from rankcast.errors import CheckpointError, ConfigError, ModelError, RankcastError
from rankcast.learner.batching import TokenisedDataset, tokenise
from rankcast.learner.conversations import Completion
from rankcast.learner.texts import TextDataset
from studies.harness.spec import RunContext
from studies.llm import base as base_module
from studies.llm import judging, training
from studies.llm.base import TINY, VARIABLE, LoweredLinear, base_of, load_base, round_frozen
from studies.llm.judging import AnswerJudge, digest
from studies.llm.training import LoraTrainer, before_of, trained_once

WORDS = [f"word{i}" for i in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("llm") / "scratch" / "job"
    return base_of(TINY, RunContext(scratch, "quick", {}, {}, None), [" ".join(WORDS)]).folder


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_module, "fast_type", lambda: torch.float32)


def tokens_of(folder: Path, n: int = 7) -> TokenisedDataset:
    rng = np.random.default_rng(3)

    def text(size: int) -> str:
        return " ".join(WORDS[i] for i in rng.integers(40, size=size))

    rows = [Completion(text(2 + i % 3), " " + text(1 + i % 4)) for i in range(n)]
    return tokenise(TextDataset.of_answers(rows), load_base(folder)[1], 64)


def random_adapter(folder: Path, tmp_path: Path, rank: int = 2, scale: float = 0.3) -> Any:
    """Return an adapter with numbers of its own, and PEFT's model with it."""
    config = FinetuneConfig(r_max=rank, alpha=2.0 * rank, total_steps=1, batch_size=2)
    trainer = LoraTrainer(load_base(folder)[0], config, tokens_of(folder))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer._trained.values():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return read_peft(trainer.save(tmp_path / "adapter"))[0], trainer.model.eval()


def by_hand(model: Any, tokens: TokenisedDataset) -> list[torch.Tensor]:
    """Return the log-probabilities before each token of each answer, from whole logits."""
    found = []
    assert tokens.is_answer is not None
    for ids, marks in zip(tokens.tokens, tokens.is_answer, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0].float()
        found.append(logits.log_softmax(-1)[np.flatnonzero(marks) - 1])
    return found


def targets(tokens: TokenisedDataset) -> Iterator[torch.Tensor]:
    assert tokens.is_answer is not None
    for ids, marks in zip(tokens.tokens, tokens.is_answer, strict=True):
        yield torch.from_numpy(ids[marks])


@pytest.mark.usefixtures("in_float32")
def test_losses_and_divergence_are_those_of_whole_logits(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "COMPARED", 1)
    monkeypatch.setattr(judging, "SLICE", 3)
    monkeypatch.setattr(judging, "BATCH", 4)
    tokens = tokens_of(folder)
    adapter, model = random_adapter(folder, tmp_path)
    judge = AnswerJudge(load_base(folder)[0], tokens)
    found = judge.judge(adapter, judge.states(None))
    with_it = by_hand(model, tokens)
    alone = by_hand(load_base(folder)[0], tokens)
    pairs = list(zip(with_it, targets(tokens), strict=True))
    losses = [float(F.nll_loss(p, t, reduction="sum")) for p, t in pairs]
    assert found.loss == pytest.approx(losses, abs=1e-4)
    assert found.count.tolist() == judge.counts.tolist() == [len(t) for t in targets(tokens)]
    right = [int((p.argmax(-1) == t).sum()) for p, t in pairs]
    assert found.right.tolist() == right
    p, q = torch.cat(alone), torch.cat(with_it)
    kl = float((p.exp() * (p - q)).sum(-1).mean())
    assert kl > 0.01  # the adapter changes something
    assert found.divergence == pytest.approx(kl, abs=1e-4)
    assert found.agreement == float((p.argmax(-1) == q.argmax(-1)).double().mean())
    plain = found.to_plain()
    assert plain["loss"] == pytest.approx(sum(losses) / found.count.sum())
    assert plain["exact_match"] == float((found.right == found.count).mean())


@pytest.mark.usefixtures("in_float32")
def test_an_adapter_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    judge = AnswerJudge(load_base(folder)[0], tokens_of(folder))
    adapter, _ = random_adapter(folder, tmp_path)
    before, changed, after = (judge.judge(a).loss for a in (None, adapter, None))
    assert (before == after).all()
    assert not np.allclose(before, changed)
    itself = judge.judge(adapter, judge.states(adapter))
    assert itself.divergence == pytest.approx(0.0, abs=1e-6)
    assert itself.agreement == 1.0


def test_bfloat16_is_near_float32(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, _ = random_adapter(folder, tmp_path, scale=0.1)
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(base_module, "fast_type", lambda dtype=dtype: dtype)
        judge = AnswerJudge(load_base(folder)[0], tokens_of(folder))
        losses.append(judge.judge(adapter).mean_loss)
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], abs=0.05)


def test_what_was_judged_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = AnswerJudge(load_base(folder)[0], tokens_of(folder))
    first = judge.judge_once(None, None, tmp_path / "judged")
    monkeypatch.setattr(judge, "judge", lambda *_: pytest.fail("judged again"))
    assert judge.judge_once(None, None, tmp_path / "judged") == first


def test_a_map_that_the_model_lacks_is_refused(folder: Path, tmp_path: Path) -> None:
    adapter, _ = random_adapter(folder, tmp_path)
    projections = (replace(adapter.projections[0], name="model.nowhere"), *adapter.projections[1:])
    judge = AnswerJudge(load_base(folder)[0], tokens_of(folder))
    with pytest.raises(ModelError, match=r"model\.nowhere"):
        judge.use(replace(adapter, projections=projections))


def test_digests_tell_adapters_apart(folder: Path, tmp_path: Path) -> None:
    adapter, _ = random_adapter(folder, tmp_path)
    first = adapter.factors[0]
    other = Factors(np.nextafter(first.left, np.float32(9)), first.right)
    changed: AdapterTensors = replace(adapter, factors=(other, *adapter.factors[1:]))
    assert len({digest(None), digest(adapter), digest(changed)}) == 3


def test_frozen_maps_are_lowered_and_others_are_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_module, "fast_type", lambda: torch.bfloat16)
    model = load_base(folder)[0]
    free = model.model.layers[0].self_attn.q_proj.requires_grad_(requires_grad=True)
    round_frozen(model)
    head = model.get_output_embeddings()
    assert isinstance(head, LoweredLinear)
    assert head.weight.dtype is torch.bfloat16
    assert model.get_input_embeddings().weight.dtype is torch.float32
    assert free.weight.dtype is torch.float32
    rows = torch.randn(2, head.in_features, generator=torch.Generator().manual_seed(0))
    wanted = (rows.bfloat16().float() @ head.weight.float().T).bfloat16().float()
    assert torch.allclose(head(rows), wanted, rtol=0.02, atol=0.02)
    assert head(rows).dtype is torch.float32


CONFIG = FinetuneConfig(
    r_max=2, alpha=4.0, lr=5e-3, total_steps=6, warmup_steps=1, batch_size=3, weight_decay=0.0,
    pass_tokens=16,
)  # fmt: skip


def trainer(folder: Path, config: FinetuneConfig = CONFIG) -> LoraTrainer:
    return LoraTrainer(load_base(folder)[0], config, tokens_of(folder))


def test_training_goes_on_bit_by_bit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 2)
    whole = trained_once(lambda: trainer(folder), tmp_path / "whole" / "adapter")
    step, steps = LoraTrainer.step, []

    def interrupted(self: LoraTrainer) -> float:
        if len(steps) == 5:
            raise KeyboardInterrupt
        steps.append(self.n_steps)
        return step(self)

    monkeypatch.setattr(LoraTrainer, "step", interrupted)
    place = tmp_path / "parts" / "adapter"
    with pytest.raises(KeyboardInterrupt):
        trained_once(lambda: trainer(folder), place)
    assert not place.exists()
    steps[:] = steps[:2]
    trained_once(lambda: trainer(folder), place)
    assert steps == [0, 1, 4, 5]
    assert digest(read_peft(place)[0]) == digest(read_peft(whole)[0])
    before, after = (load_file(at / WEIGHTS) for at in (before_of(place), place))
    assert all((x == 0).all() == (".lora_B." in name) for name, x in before.items())
    assert any((after[name] != x).any() for name, x in before.items())
    trained_once(lambda: pytest.fail("trained again"), place)


def test_the_size_of_a_pass_changes_nothing_but_memory(folder: Path) -> None:
    losses = [
        [one.step() for _ in range(3)]
        for one in (trainer(folder), trainer(folder, replace(CONFIG, pass_tokens=1_000)))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    assert losses[0][0] > 1


def test_training_learns(folder: Path) -> None:
    one = trainer(folder, replace(CONFIG, total_steps=60, lr=2e-2, batch_size=7))
    losses = [one.step() for _ in range(60)]
    assert losses[-1] < losses[0] - 1


def test_a_checkpoint_of_another_rank_is_refused(folder: Path) -> None:
    state = trainer(folder).state_dict()
    with pytest.raises(CheckpointError, match="another rank"):
        trainer(folder, replace(CONFIG, r_max=3)).load_state_dict(state)


def test_a_loss_that_is_not_finite_is_an_error(folder: Path) -> None:
    one = trainer(folder)
    with torch.no_grad():
        next(iter(one._trained.values())).fill_(float("nan"))
    with pytest.raises(RankcastError, match="diverged"):
        one.step()


@pytest.mark.parametrize("named", [None, "/nowhere/model.gguf"])
def test_the_variable_is_named_without_a_model(
    named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if named:
        monkeypatch.setenv(VARIABLE, named)
    context = RunContext(tmp_path / "scratch" / "job", "default", {}, {}, None)
    with pytest.raises(ConfigError, match=f"{VARIABLE}.*(is not set|no file)"):
        base_of("gemma3-270m", context)


def test_what_is_no_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(64))
    monkeypatch.setenv(VARIABLE, str(file))
    context = RunContext(tmp_path / "scratch" / "job", "default", {}, {}, None)
    with pytest.raises(ModelError, match="cannot read"):
        base_of("gemma3-270m", context)
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["gemma3-270m.lock"]
