"""Folders of base models: the fingerprint without torch is that of the model in memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from transformers.conversion_mapping import get_model_conversion_mapping

from helpers.base_models import tiny_base, tiny_config
from helpers.commands import fresh_python
from rankcast.adapters.fingerprint import base_fingerprint
from rankcast.codec.formats.base_folder import INDEX, PREFIXES, WEIGHTS, BaseFolder
from rankcast.errors import ModelError

_DECODERS = {
    kind: ("", "CausalLM")
    for kind, prefix in PREFIXES.items()
    if prefix in ("model", "transformer", "gpt_neox")
}
_ENCODERS = {
    kind: ("", "MaskedLM", "SequenceClassification")
    for kind, prefix in PREFIXES.items()
    if prefix in ("bert", "distilbert", "electra", "albert", "mpnet", "roberta", "deberta")
}
HEADS = {
    **_DECODERS, **_ENCODERS,
    "modernbert": _ENCODERS["bert"],
    "llama": ("", "CausalLM", "SequenceClassification", "QuestionAnswering"),
    **dict.fromkeys(("bart", "mbart"), ("", "Seq2SeqLM", "SequenceClassification")),
    **dict.fromkeys(("t5", "mt5"), ("", "Seq2SeqLM")),
    "whisper": ("", "SpeechSeq2Seq"),
}  # fmt: skip


def auto(head: str) -> Any:
    return getattr(tf, f"AutoModelFor{head}" if head else "AutoModel")


def tiny(kind: str, head: str, **settings: Any) -> Any:
    return tiny_base(auto(head).from_config, kind, **settings)


def in_memory(folder: Path, head: str | None = None) -> str:
    """Load with transformers, by the class that the configuration names unless told otherwise."""
    named = json.loads((folder / "config.json").read_text())["architectures"][0]
    cls = getattr(tf, named) if head is None else auto(head)
    return base_fingerprint(cls.from_pretrained(folder))


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def change(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def test_every_family_is_tried_here() -> None:
    assert HEADS.keys() == PREFIXES.keys()


@pytest.mark.parametrize("kind", HEADS)
def test_bare_models_and_heads_in_files_of_all_kinds(kind: str, tmp_path: Path) -> None:
    """From the bare class and under its heads; float32 and bfloat16; in one file and in several."""
    for i, head in enumerate(HEADS[kind]):
        model, folder = tiny(kind, head, seed=i), tmp_path / f"base{i}"
        if i % 2:
            model.to(torch.bfloat16)
        model.save_pretrained(folder, max_shard_size="4KB" if i % 2 else "1GB")
        base = BaseFolder.open(folder)
        assert (folder / INDEX).exists() == bool(i % 2)
        assert base.doubt() is None
        assert base.fingerprint() == in_memory(folder) == base_fingerprint(model)


@pytest.mark.parametrize("kind", HEADS)
def test_no_family_is_renamed_as_it_is_loaded(kind: str) -> None:
    """What transformers changes later is noticed here, not on a device."""
    with torch.device("meta"):
        model = tf.AutoModel.from_config(tiny_config(kind))
    assert not get_model_conversion_mapping(model, add_legacy=False)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "t5", "whisper", "xlm-roberta"])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied(kind: str, tied: bool, tmp_path: Path) -> None:
    head = HEADS[kind][1]
    tiny(kind, head, tie_word_embeddings=tied).save_pretrained(tmp_path)
    assert BaseFolder.open(tmp_path).fingerprint() == in_memory(tmp_path)


def test_an_untied_output_layer_of_t5_counts(tmp_path: Path) -> None:
    """T5 has no prefix, so that its output layer is not outside."""
    tiny("t5", "Seq2SeqLM", tie_word_embeddings=False).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["lm_head.weight"] = tensors["shared.weight"] + 1
    save_file(tensors, tmp_path / WEIGHTS, {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    change(tmp_path, config | {"tie_word_embeddings": True})
    assert "lm_head is tied" in str(BaseFolder.open(tmp_path).doubt())
    change(tmp_path, config | {"tie_word_embeddings": False})
    base = BaseFolder.open(tmp_path)
    assert base.fingerprint() == in_memory(tmp_path)
    assert base.fingerprint() != base.fingerprint("FEATURE_EXTRACTION")


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet", "albert"])
def test_the_task_says_whether_there_is_a_pooler(kind: str, tmp_path: Path) -> None:
    """Published models hold one; some heads ignore it."""
    tiny(kind, "").save_pretrained(tmp_path)
    base, found = BaseFolder.open(tmp_path), {}
    for task, head in (
        ("SEQ_CLS", "SequenceClassification"), ("TOKEN_CLS", "TokenClassification"),
        ("QUESTION_ANS", "QuestionAnswering"), ("FEATURE_EXTRACTION", ""), (None, ""),
    ):  # fmt: skip
        found[task] = base.fingerprint(task)
        assert found[task] == in_memory(tmp_path, head), task
    assert found["TOKEN_CLS"] != found["FEATURE_EXTRACTION"]


def test_names_say_whether_the_bare_model_was_adapted(tmp_path: Path) -> None:
    """BERT was saved to guess masked words, with a pooler, and its bare model has an adapter."""
    tiny("bert", "PreTraining").save_pretrained(tmp_path)
    change(tmp_path, read(tmp_path) | {"architectures": ["BertForMaskedLM"]})
    base = BaseFolder.open(tmp_path)
    name = "encoder.layer.0.attention.self.query"
    assert base.fingerprint() == in_memory(tmp_path, "MaskedLM")
    assert base.fingerprint(None, [f"bert.{name}"]) == in_memory(tmp_path, "MaskedLM")
    assert base.fingerprint(None, [name]) == in_memory(tmp_path, "")
    assert base.fingerprint("SEQ_CLS", [f"bert.{name}"]) == in_memory(
        tmp_path, "SequenceClassification"
    )


def test_old_names_and_buffers_do_not_count(tmp_path: Path) -> None:
    tiny("bert", "PreTraining").save_pretrained(tmp_path / "bert")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(tmp_path / "bert" / WEIGHTS).items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(40)[None]
    expected = in_memory(tmp_path / "bert")
    save_file(old, tmp_path / "bert" / WEIGHTS, {"format": "pt"})
    assert BaseFolder.open(tmp_path / "bert").fingerprint() == expected
    assert in_memory(tmp_path / "bert") == expected

    tiny("gpt2", "CausalLM").save_pretrained(tmp_path / "gpt2")
    tensors = load_file(tmp_path / "gpt2" / WEIGHTS)
    expected = in_memory(tmp_path / "gpt2")
    for i in range(2):
        tensors[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 40, 40).tril()
        tensors[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, tmp_path / "gpt2" / WEIGHTS, {"format": "pt"})
    assert BaseFolder.open(tmp_path / "gpt2").fingerprint() == expected
    assert in_memory(tmp_path / "gpt2") == expected


def test_published_t5_has_copies_of_its_embedding(tmp_path: Path) -> None:
    tiny("t5", "Seq2SeqLM").save_pretrained(tmp_path)
    tensors, expected = load_file(tmp_path / WEIGHTS), in_memory(tmp_path)
    for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head"):
        tensors[f"{name}.weight"] = tensors["shared.weight"].clone()
    cross = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    tensors[cross] = torch.zeros(32, 2)
    save_file(tensors, tmp_path / WEIGHTS, {"format": "pt"})
    assert BaseFolder.open(tmp_path).fingerprint() == expected == in_memory(tmp_path)
    tensors["decoder.embed_tokens.weight"] += 1
    save_file(tensors, tmp_path / WEIGHTS, {"format": "pt"})
    assert "differ between encoder and decoder" in str(BaseFolder.open(tmp_path).doubt())


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ("llama", {"model_type": "mixtral"}, "renamed"),
        ("llama", {"dtype": "bfloat16"}, "stored as F32 and loaded as bfloat16"),
        ("llama", {"dtype": None, "torch_dtype": "torch.float16"}, "loaded as torch.float16"),
        ("llama", {"num_hidden_layers": 3}, "layers.* are not the layers"),
        ("bert", {"architectures": ["BertForPreTraining"]}, "lack the pooler"),
        ("bart", {"architectures": ["BartForCausalLM"]}, "only a part"),
        ("bart", {"tie_word_embeddings": False}, "not tied"),
        ("t5", {"architectures": ["T5ForTokenClassification"]}, "only a part"),
    ],
)
def test_what_a_configuration_leaves_open(
    kind: str, settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    tiny(kind, HEADS[kind][1]).save_pretrained(tmp_path)
    base = BaseFolder.open(tmp_path)
    assert base.doubt() is None
    change(tmp_path, read(tmp_path) | settings)
    base = BaseFolder.open(tmp_path)
    assert words in str(base.doubt())
    with pytest.raises(ModelError, match="not known without torch") as refused:
        base.fingerprint()
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.layers.1.mlp.experts.w1", "may be a parameter or not"),
        ("model.layers.2.mlp.new.weight", "are not the layers"),
        ("model.layers.3.mlp.up_proj.weight", "are not the layers"),
        ("lm_head.extra", None),
    ],
)
def test_what_a_name_leaves_open(name: str, words: str | None, tmp_path: Path) -> None:
    tiny("llama", "CausalLM", num_hidden_layers=3).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    save_file(tensors | {name: torch.zeros(3)}, tmp_path / WEIGHTS)
    doubt = BaseFolder.open(tmp_path).doubt()
    assert doubt is None if words is None else words in str(doubt)


def test_whole_numbers_and_mixed_prefixes_are_doubtful(tmp_path: Path) -> None:
    tiny("llama", "CausalLM").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    key = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {key: tensors[key].to(torch.int8)}, tmp_path / WEIGHTS)
    assert "stored as F32 and I8" in str(BaseFolder.open(tmp_path).doubt())
    with pytest.raises(ModelError, match="quantised"):
        BaseFolder.open(tmp_path).weight(key.removesuffix(".weight"))
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(bare, tmp_path / WEIGHTS)
    assert "mix names" in str(BaseFolder.open(tmp_path).doubt())


@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2", "llama", "whisper"])
def test_a_weight_is_found_under_the_names_of_both_classes(kind: str, tmp_path: Path) -> None:
    for head in HEADS[kind][:2]:
        model = tiny(kind, head).to(torch.bfloat16)
        model.save_pretrained(tmp_path / f"saved{head}", max_shard_size="5KB")
        base = BaseFolder.open(tmp_path / f"saved{head}")
        for asked in HEADS[kind][:2]:
            with torch.device("meta"):
                named = auto(asked).from_config(tiny_config(kind))
            found = 0
            for name, module in model.base_model.named_modules():
                full = f"{named.base_model_prefix}.{name}" if asked else name
                if isinstance(getattr(module, "weight", None), torch.Tensor) and full in dict(
                    named.named_modules()
                ):
                    values = base.weight(full)
                    assert values.dtype == "float32"
                    assert torch.equal(torch.from_numpy(values), module.weight.float())
                    found += 1
            assert found > 10


def test_both_layouts_of_models_that_see(tmp_path: Path) -> None:
    """`language_model.model.…` in old files, `model.language_model.…` in the class since."""
    expected = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    part = "layers.0.self_attn.q_proj"
    for old in (f"language_model.model.{part}", f"model.language_model.{part}", f"model.{part}"):
        save_file({f"{old}.weight": expected}, tmp_path / WEIGHTS)
        change(tmp_path, {"model_type": "llava"})
        base = BaseFolder.open(tmp_path)
        found = torch.from_numpy(base.weight(f"model.language_model.{part}"))
        assert torch.equal(found, expected), old
    with pytest.raises(ModelError, match="no weight of model"):
        base.weight("model.visual")


def test_folders_that_hold_no_whole_model(tmp_path: Path) -> None:
    def refused() -> str:
        with pytest.raises(ModelError) as error:
            BaseFolder.open(tmp_path)
        return str(error.value)

    assert "config.json" in refused()
    (tmp_path / "config.json").write_text("[]")
    assert "no description" in refused()
    tiny("llama", "CausalLM").save_pretrained(tmp_path, max_shard_size="5KB")
    places = json.loads((tmp_path / INDEX).read_text())
    shards = sorted(tmp_path.glob("*.safetensors"))
    whole = shards[0].read_bytes()
    shards[0].write_bytes(whole[:-1])
    assert "missing or damaged" in refused()
    shards[0].unlink()
    assert shards[0].name in refused()
    shards[0].write_bytes(whole)
    key = next(k for k, name in places["weight_map"].items() if name == shards[0].name)
    for wrong in ({**places["weight_map"], key: "../x"}, [], {key: 3}):
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": wrong}))
        assert "does not say where" in refused()
    elsewhere = {**places["weight_map"], key: shards[-1].name}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": elsewhere}))
    assert "does not fit" in refused()
    (tmp_path / INDEX).unlink()
    assert "save_pretrained" in refused()


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    tiny("llama", "CausalLM").save_pretrained(tmp_path)
    base = BaseFolder.open(tmp_path)
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:3000])
    with pytest.raises(ModelError, match="no whole model"):
        base.fingerprint()


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    """The embedding, 1 MiB, is the largest of 3.4 MB in bfloat16, whose conversion takes twice."""
    model = tiny("llama", "CausalLM", vocab_size=4096, hidden_size=64, intermediate_size=2048)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    largest = 4096 * 64 * 4
    tracemalloc.start()
    BaseFolder.open(tmp_path).fingerprint()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * largest


def test_no_torch_is_imported(tmp_path: Path) -> None:
    tiny("bert", "MaskedLM").save_pretrained(tmp_path)
    code = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from rankcast.codec.formats.base_folder import BaseFolder
print(BaseFolder.open({str(tmp_path)!r}).fingerprint())
"""
    assert fresh_python(code).stdout.strip() == in_memory(tmp_path)


@pytest.mark.parametrize("kind", ["roberta", "bert", "llama"])
def test_a_device_expects_adapters_of_any_task(kind: str, tmp_path: Path) -> None:
    """Classes of one family load different parts of the files, such as RoBERTa's pooler."""
    tiny(kind, "").save_pretrained(tmp_path)
    heads = ("", "SequenceClassification", "TokenClassification")
    of_heads = {in_memory(tmp_path, head) for head in heads}
    assert set(BaseFolder.open(tmp_path).fingerprints()) == of_heads
    assert len(of_heads) == (1 if kind == "llama" else 2)
