"""Merged models answer as the base model with PEFT's adapter on it, for families and tasks of all
kinds, and are whole.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from helpers.base_models import answer, tiny_base
from helpers.commands import Call
from rankcast.adapters.fingerprint import base_fingerprint
from rankcast.codec.container import Container
from rankcast.errors import ConfigError, ModelError, UnavailableError
from rankcast.packaging.export import export
from rankcast.packaging.pack import pack


@dataclass(frozen=True)
class Case:
    """An adapter on a class, for a base model that was saved from another one.

    Attributes:
        kind: model type.
        base: class that was saved.
        adapted: class that was adapted.
        task: PEFT's word.
        targets: modules.
        saved: modules in full.
        settings: of both classes.
        labels: of the adapted class.
    """

    kind: str
    base: str
    adapted: str
    task: str | None
    targets: tuple[str, ...]
    saved: tuple[str, ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    labels: int | None = None

    @property
    def name(self) -> str:
        return f"{self.base}-{self.adapted}-{self.task}-{self.targets[-1]}"


QV = ("query", "value")
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
SEQ = "ForSequenceClassification"
CASES = [
    Case("bert", f"Bert{SEQ}", f"Bert{SEQ}", "SEQ_CLS", QV),
    Case("bert", "BertModel", f"Bert{SEQ}", "SEQ_CLS", QV, labels=5),
    Case("bert", "BertForPreTraining", f"Bert{SEQ}", "SEQ_CLS", QV, labels=5),
    Case("bert", "BertForMaskedLM", "BertForTokenClassification", "TOKEN_CLS", QV, labels=5),
    Case(
        "bert", "BertForMaskedLM", "BertForQuestionAnswering", "QUESTION_ANS", QV, ("qa_outputs",)
    ),
    Case("bert", "BertForMaskedLM", "BertForMaskedLM", None, QV),
    Case("bert", "BertForPreTraining", "BertModel", "FEATURE_EXTRACTION", QV),
    Case("bert", "BertForPreTraining", "BertModel", None, QV),
    Case("roberta", "RobertaModel", f"Roberta{SEQ}", "SEQ_CLS", QV, labels=3),
    Case("xlm-roberta", "XLMRobertaForMaskedLM", f"XLMRoberta{SEQ}", "SEQ_CLS", QV, labels=3),
    Case("distilbert", "DistilBertModel", f"DistilBert{SEQ}", "SEQ_CLS", ("q_lin",), labels=3),
    Case(
        "deberta-v2", "DebertaV2Model", f"DebertaV2{SEQ}", "SEQ_CLS", ("query_proj",),
        ("classifier", "pooler"), labels=3,
    ),
    Case("electra", "ElectraForPreTraining", f"Electra{SEQ}", "SEQ_CLS", QV, labels=3),
    Case("albert", "AlbertModel", f"Albert{SEQ}", "SEQ_CLS", QV, labels=3),
    Case("llama", "LlamaForCausalLM", f"Llama{SEQ}", "SEQ_CLS", ("q_proj",), labels=4),
    Case("llama", "LlamaForCausalLM", "LlamaForCausalLM", "CAUSAL_LM", ("q_proj", "lm_head"),
         settings=TIED),
    Case("llama", "LlamaForCausalLM", "LlamaForCausalLM", "CAUSAL_LM", ("q_proj", "lm_head"),
         settings=UNTIED),
    Case("llama", "LlamaForCausalLM", "LlamaForCausalLM", None, ("q_proj",), ("lm_head",), TIED),
    Case("qwen3", "Qwen3ForCausalLM", "Qwen3ForCausalLM", "CAUSAL_LM", ("q_proj",)),
    Case("gemma3_text", "Gemma3ForCausalLM", "Gemma3ForCausalLM", "CAUSAL_LM", ("q_proj",)),
    Case("phi3", "Phi3ForCausalLM", "Phi3ForCausalLM", "CAUSAL_LM", ("qkv_proj",)),
    Case("opt", "OPTForCausalLM", "OPTForCausalLM", "CAUSAL_LM", ("q_proj",)),
    Case("gpt2", "GPT2LMHeadModel", "GPT2LMHeadModel", "CAUSAL_LM", ("c_attn",)),
    Case("gpt2", "GPT2LMHeadModel", f"GPT2{SEQ}", "SEQ_CLS", ("c_attn",), labels=3),
    Case("mixtral", "MixtralForCausalLM", "MixtralForCausalLM", "CAUSAL_LM", ("q_proj",)),
    Case("t5", "T5ForConditionalGeneration", "T5ForConditionalGeneration", "SEQ_2_SEQ_LM",
         ("q", "wo")),
    Case("bart", "BartModel", "BartForConditionalGeneration", "SEQ_2_SEQ_LM", ("q_proj",)),
    Case("whisper", "WhisperForConditionalGeneration", "WhisperForConditionalGeneration", None,
         ("q_proj",)),
    Case("vit", "ViTModel", "ViTForImageClassification", None, ("q_proj",), ("classifier",),
         labels=3),
    Case("llava", "LlavaForConditionalGeneration", "LlavaForConditionalGeneration", "CAUSAL_LM",
         ("q_proj",)),
    Case("llama", "LlamaForCausalLM", "LlamaForCausalLM", "CAUSAL_LM", ("q_proj", "embed_tokens"),
         settings=TIED),
    Case("gpt2", "GPT2LMHeadModel", "GPT2LMHeadModel", "CAUSAL_LM", ("wte",)),
    Case("bert", "BertForMaskedLM", "BertForMaskedLM", None, ("word_embeddings",)),
    Case("t5", "T5ForConditionalGeneration", "T5ForConditionalGeneration", "SEQ_2_SEQ_LM",
         ("q", "shared")),
    Case("t5", "T5ForConditionalGeneration", "T5ForConditionalGeneration", "SEQ_2_SEQ_LM",
         ("q", "lm_head")),
    Case("wav2vec2", "Wav2Vec2Model", f"Wav2Vec2{SEQ}", None, ("q_proj",),
         ("classifier", "projector"), labels=3),
]  # fmt: skip
LLAMA = CASES[16]


def trained(case: Case, folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Container]:
    """Save a base model, train an adapter on it at random, and pack it as finely as can be."""
    tiny_base(getattr(tf, case.base), case.kind, **case.settings).to(dtype).save_pretrained(
        folder / "base"
    )
    labels = {} if case.labels is None else {"num_labels": case.labels}
    model = getattr(tf, case.adapted).from_pretrained(folder / "base", dtype="auto", **labels)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=list(case.targets), task_type=case.task,
        modules_to_save=None if case.saved is None else list(case.saved),
    )  # fmt: skip
    adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    for name, p in adapted.named_parameters():
        if p.requires_grad and "original_module" not in name:
            p.data = (0.15 * torch.randn(p.shape, generator=generator)).to(p.dtype)
    adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)
    return adapted, pack(folder / "adapter", budget_bits=1e12, base_model=folder / "base")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_merged_model_answers_as_the_adapted_one(case: Case, tmp_path: Path) -> None:
    adapted, container = trained(case, tmp_path)
    assert container.header.base.fingerprint == base_fingerprint(adapted)
    export(container, "merged", tmp_path / "out", base_model=tmp_path / "base")
    merged = getattr(tf, case.adapted).from_pretrained(tmp_path / "out")
    assert merged.config.architectures == [case.adapted]
    expected = answer(adapted, case.kind)
    with adapted.disable_adapter():
        change = (answer(adapted, case.kind) - expected).norm()
    assert change > 0
    assert (answer(merged, case.kind) - expected).norm() < 2e-3 * change.clamp_min(0.1)


@pytest.mark.parametrize("settings", [TIED, UNTIED], ids=["tied", "untied"])
def test_an_adapted_output_layer_leaves_the_embedding_alone(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    case = Case("llama", LLAMA.base, LLAMA.adapted, "CAUSAL_LM", ("lm_head",), settings=settings)
    _, container = trained(case, tmp_path)
    export(container, "merged", tmp_path / "out", base_model=tmp_path / "base")
    base, merged = (load_file(tmp_path / n / "model.safetensors") for n in ("base", "out"))
    embedding = "model.embed_tokens.weight"
    assert torch.equal(base[embedding], merged[embedding])
    assert not torch.allclose(merged["lm_head.weight"], base.get("lm_head.weight", base[embedding]))
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    )


def test_an_untied_output_layer_of_t5_survives(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.kind == "t5")
    trained(case, tmp_path)
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["shared.weight"] + 1
    save_file(tensors, path, {"format": "pt"})
    export(pack(tmp_path / "adapter"), "merged", tmp_path / "out", base_model=tmp_path / "base")
    merged = tf.T5ForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert torch.equal(merged.lm_head.weight, tensors["lm_head.weight"])
    assert torch.equal(merged.shared.weight, tensors["shared.weight"])


def test_the_precision_is_the_base_models(tmp_path: Path) -> None:
    adapted, container = trained(LLAMA, tmp_path, torch.bfloat16)
    export(container, "merged", tmp_path / "out", base_model=tmp_path / "base")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    expected = adapted.merge_and_unload().state_dict()
    for name, tensor in tensors.items():
        error = (tensor.float() - expected[name].float()).abs()
        assert (error <= 2**-7 * expected[name].float().abs() + 1e-3).all(), name


def test_everything_but_weights_and_notes_goes_along(tmp_path: Path) -> None:
    _, container = trained(LLAMA, tmp_path)
    base, out = tmp_path / "base", tmp_path / "out"
    beside = (
        "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "merges.txt", "vocab.json",
        "added_tokens.json", "special_tokens_map.json", "chat_template.jinja",
        "preprocessor_config.json", "processor_config.json", "additional_chat_templates/tool.jinja",
        "config_sentence_transformers.json",
    )  # fmt: skip
    left = (
        "README.md", "LICENSE.txt", "pytorch_model.bin", "pytorch_model.bin.index.json",
        "training_args.json", "code.py", ".gitattributes", ".cache/x.json", "onnx/model.onnx",
        "onnx/config.json",
    )  # fmt: skip
    for name in (*beside, *left):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(name)
    strange = {"temperature": 0.3, "eos_token_id": [2, 9]}  # without do_sample: refused on saving
    (base / "generation_config.json").write_text(json.dumps(strange))
    export(container, "merged", out, base_model=base)
    found = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert found == {*beside, "config.json", "generation_config.json", "model.safetensors"}
    assert all((out / name).read_text() == name for name in beside)
    assert json.loads((out / "generation_config.json").read_text()) == strange


def test_a_model_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, container = trained(LLAMA, tmp_path)
    base, out = tmp_path / "base", tmp_path / "out"

    def full_disk(self: Any, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    def broken(self: Any, folder: Path) -> None:
        raise RuntimeError("of another library")

    for fails, error in ((full_disk, UnavailableError), (broken, ModelError)):
        monkeypatch.setattr(tf.LlamaForCausalLM, "save_pretrained", fails)
        with pytest.raises(error):
            export(container, "merged", out, base_model=base)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base"]
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="not empty"):
        export(container, "merged", base, base_model=base)
    export(container, "merged", out, base_model=base)


def test_what_cannot_be_merged_is_said_in_a_sentence(tmp_path: Path, call: Call) -> None:
    _, container = trained(LLAMA, tmp_path)
    container.save(tmp_path / "a.rcast")
    arguments = [
        "export",
        str(tmp_path / "a.rcast"),
        "--format",
        "merged",
        "-o",
        str(tmp_path / "out"),
    ]

    def refused(folder: str) -> str:
        said = call.refused(*arguments, "--base-model", str(tmp_path / folder))
        assert not (tmp_path / "out").exists()
        return said

    tiny_base(tf.LlamaForCausalLM, "llama", seed=1, **UNTIED).save_pretrained(tmp_path / "other")
    assert "The adapter was made for" in refused("other")
    tiny_base(tf.GPT2LMHeadModel, "gpt2").save_pretrained(tmp_path / "gpt2")
    assert "does not fit the gpt2" in refused("gpt2")
    (tmp_path / "base" / "adapter_config.json").write_text("{}")
    assert "holds an adapter beside the model" in refused("base")
    (tmp_path / "base" / "adapter_config.json").unlink()
    (tmp_path / "base" / "model.safetensors").write_bytes(b"")
    assert "cannot be loaded" in refused("base")
    assert "no base model" in refused("absent")


@pytest.mark.parametrize("vision", ["vision_tower.vision_model.", "elsewhere."])
def test_names_of_older_versions_are_peft_s_to_find(vision: str, tmp_path: Path) -> None:
    """As transformers 4.51 named the parts of LLaVA; and what PEFT does not find is not dropped."""
    case = next(case for case in CASES if case.kind == "llava")
    adapted, _ = trained(case, tmp_path)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    start = "base_model.model."
    older = {
        name.replace(f"{start}model.language_model.", f"{start}language_model.model.").replace(
            f"{start}model.vision_tower.", f"{start}{vision}"
        ): tensor
        for name, tensor in load_file(path).items()
    }
    assert older.keys() != load_file(path).keys()
    save_file(older, path)
    container = pack(tmp_path / "adapter", budget_bits=1e12)
    if vision == "elsewhere.":
        with pytest.raises(ModelError, match="missing adapter keys"):
            export(container, "merged", tmp_path / "out", base_model=tmp_path / "base")
        return
    export(container, "merged", tmp_path / "out", base_model=tmp_path / "base")
    merged = tf.LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").state_dict()
    expected = adapted.merge_and_unload().state_dict()
    assert all(torch.allclose(merged[name], expected[name], atol=1e-3) for name in expected)


def test_other_methods_are_merged_as_far_as_peft_can(tmp_path: Path, call: Call) -> None:
    model = tiny_base(tf.LlamaForCausalLM, "llama")
    model.save_pretrained(tmp_path / "base")
    ia3 = peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, ia3)
    generator = torch.Generator().manual_seed(1)
    for p in adapted.parameters():
        if p.requires_grad:
            p.data += 0.3 * torch.randn(p.shape, generator=generator)
    expected = answer(adapted, "llama")
    adapted.save_pretrained(tmp_path / "ia3")
    file, base = str(tmp_path / "a.rcast"), str(tmp_path / "base")
    call.ok("pack", str(tmp_path / "ia3"), "-o", file, "--budget-bits", "1e9")
    out = call.ok("export", file, "-o", str(tmp_path / "peft"))
    assert "peft: IA3, of" in out
    assert "rank" not in out.removeprefix(str(tmp_path))
    call.ok("export", file, "--format", "merged", "--base-model", base, "-o", str(tmp_path / "out"))
    merged = tf.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(answer(merged, "llama"), expected, atol=1e-3)

    prompt = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    peft.get_peft_model(tf.LlamaForCausalLM.from_pretrained(base), prompt).save_pretrained(
        tmp_path / "prompt"
    )
    call.ok("pack", str(tmp_path / "prompt"), "-o", file)
    err = call.refused(
        "export", file, "--format", "merged", "--base-model", base, "-o", str(tmp_path / "x")
    )
    assert "cannot be merged" in err
