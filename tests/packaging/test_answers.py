"""Adapters of language models on prompts with answers: measured, and trained on rounded weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.commands import Call
from helpers.language_models import ANSWERS, language_model, save_language_model, write_questions
from rankcast.codec.container import load
from rankcast.codec.header import MEASURE, measure_of
from rankcast.config.codec import CodecConfig
from rankcast.errors import ConfigError, DeliveryError
from rankcast.learner.objectives import AdapterSnapshot
from rankcast.learner.qat import QatConfig, learner_for
from rankcast.packaging.measure import setup_for
from rankcast.packaging.pack import pack, read_adapter
from rankcast.packaging.qat import SizeConfig, train_on_rounded_weights, train_to_size
from rankcast.packaging.texts import Texts


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a base model, an adapter of it, and questions."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("answers")
    save_language_model(folder / "base")
    write_questions(folder / "texts.jsonl")
    write_questions(folder / "others.jsonl", n=6)
    settings = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj"])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = get_peft_model(language_model("llama"), settings)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder / "lora")
    return folder


def texts(at: Path, *, whole: bool = False, **more: Any) -> Texts:
    known = {} if whole else ANSWERS
    return Texts(texts=str(at / "texts.jsonl"), base_model=str(at / "base"), **known, **more)


def test_a_ladder_is_measured_on_answers(at: Path) -> None:
    file = pack(at / "lora", measure=True, texts=texts(at))
    assert measure_of(file.header.task) == "loss"
    setup = setup_for(read_adapter(at / "lora"), at / "lora", texts(at))
    learner = learner_for(file.tensors(), setup.config, setup.splits)
    found = learner.evaluate("validation")
    assert file.header.chunks[-1].loss == pytest.approx(found.loss, abs=2e-5)
    assert file.header.chunks[-1].accuracy == pytest.approx(found.accuracy, abs=2e-5)
    _, _, count = learner.judge_texts("validation", None)
    assert set(count.tolist()) == {2.0}


def test_plain_texts_measure_the_divergence_from_the_adapter(at: Path) -> None:
    file = pack(at / "lora", quality="fine", measure=True, texts=texts(at, whole=True))
    assert dict(file.header.task) == {"task_type": "CAUSAL_LM", MEASURE: "divergence"}
    losses = [entry.loss for entry in file.header.chunks]
    assert all(entry.accuracy is None for entry in file.header.chunks)
    assert losses[0] is not None
    assert losses[-1] is not None
    assert 0 <= losses[-1] < 0.6 * losses[0]  # more chunks are nearer to the adapter
    again = load_bytes(file.to_bytes(), at)
    assert measure_of(again.header.task) == "divergence"
    assert [entry.loss for entry in again.header.chunks] == pytest.approx(losses)


def load_bytes(data: bytes, at: Path) -> Any:
    (at / "again.rcast").write_bytes(data)
    return load(at / "again.rcast")


def test_divergence_by_hand(at: Path) -> None:
    setup = setup_for(read_adapter(at / "lora"), at / "lora", texts(at, whole=True))
    learner = setup.learner()
    whole = AdapterSnapshot(learner.adapter)
    assert learner.divergence_from(whole, "validation") == pytest.approx(0.0, abs=1e-6)
    tokens = learner._splits["validation"]
    none = np.zeros(learner.layout.n_projections, dtype=int)
    total = n = 0.0
    for i in range(len(tokens)):
        ids = torch.from_numpy(tokens.tokens[i])[None]
        with torch.no_grad():
            theirs = learner.adapter.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            with learner.adapter.at_ranks(none):
                ours = learner.adapter.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        total += float((theirs.exp() * (theirs - ours)).sum())
        n += len(ours)
    learner.adapter.set_ranks(none)
    assert learner.divergence_from(whole, "validation") == pytest.approx(total / n, rel=1e-4)


def test_a_budget_holds_what_is_measured(at: Path) -> None:
    for whole in (False, True):
        file = pack(at / "lora", budget_bits=8 * 700, measure=True, texts=texts(at, whole=whole))
        assert file.n_bits <= 8 * 700
        assert file.header.chunks[-1].loss is not None


def test_files_of_different_measures_are_no_release(at: Path) -> None:
    from rankcast.release.publish import _manifest

    files = [pack(at / "lora", texts=texts(at, whole=whole)) for whole in (False, True)]
    with pytest.raises(DeliveryError, match="different tasks"):
        _manifest(files, "a", ())
    release = _manifest(files[1:], "a", ())
    from rankcast.edge.state import ReleasePrefix

    prefix = ReleasePrefix.of(release, 0, 1)
    assert prefix.measure == "divergence"
    assert ReleasePrefix.from_plain(prefix.to_plain()) == prefix
    usual = ReleasePrefix.of(_manifest(files[:1], "a", ()), 0, 1)
    assert "measure" not in usual.to_plain()  # as it was written before there were two
    assert ReleasePrefix.from_plain(usual.to_plain()) == usual


def test_qat_reports_on_texts_that_it_never_trained_on(at: Path, tmp_path: Path) -> None:
    held = texts(at, held_out=str(at / "others.jsonl"), batch_size=8, max_length=20)
    setup = setup_for(read_adapter(at / "lora"), at / "lora", held)
    assert (setup.config.batch_size, setup.config.max_length) == (8, 20)
    assert len(setup.splits.train) == 40
    before = setup.learner().evaluate("validation")
    qat = QatConfig(steps=3, relative_step=1.0, distil=False)
    result = train_on_rounded_weights(at / "lora", tmp_path / "out", qat, held)
    assert result is not None
    assert result.before == before
    assert result.after.n_examples == 6
    assert result.after.exact_match is not None
    assert result.after.loss != before.loss


def test_a_size_is_trained_on_answers(at: Path, tmp_path: Path) -> None:
    config = SizeConfig(CodecConfig(target_bytes=700, teachers=0), steps=4)
    found = train_to_size(at / "lora", tmp_path / "out", config, texts(at, batch_size=8))
    assert found is not None
    assert found.file.n_bits <= 8 * 700
    assert {"perplexity", "exact_match", "loss_before"} <= found.to_plain().keys()


def test_answers_are_for_language_models(at: Path) -> None:
    source = read_adapter(at / "lora")
    from dataclasses import replace

    classifier = replace(source, task={"task_type": "SEQ_CLS"})
    with pytest.raises(ConfigError, match="set the objective to causal"):
        setup_for(classifier, None, texts(at)).learner()


def options(at: Path) -> list[str]:
    return ["--base-model", str(at / "base"), "--texts", str(at / "texts.jsonl"),
            "--prompt-column", "prompt", "--completion-column", "completion"]  # fmt: skip


def test_commands_say_what_happened_to_answers(at: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "qat"
    said = call.ok("qat", str(at / "lora"), "-o", str(out), "--steps", "2", "--held-out",
                       str(at / "others.jsonl"), "--batch-size", "8", "--json",
                       *options(at))  # fmt: skip
    plain = json.loads(said)
    assert plain["n_texts"] == 6
    assert plain["loss_rose"] == (plain["loss"] > plain["loss_before"])
    assert {"perplexity", "exact_match_before"} <= plain.keys()
    file = tmp_path / "a.rcast"
    whole = ["--base-model", str(at / "base"), "--texts", str(at / "texts.jsonl")]
    call.ok("pack", str(at / "lora"), "-o", str(file), "--max-length", "32", *whole)
    assert json.loads(call.ok("info", str(file), "--json"))["measure"] == "divergence"
    assert "divergence" in call.ok("info", str(file))
