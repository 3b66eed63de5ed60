"""The base model in a folder: its fingerprint where transformers has to help, and its class."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import transformers as tf
from safetensors.torch import load_file, save_file

from helpers.base_models import tiny_base
from rankcast.adapters.fingerprint import base_fingerprint
from rankcast.codec.formats.base_folder import WEIGHTS, BaseFolder
from rankcast.errors import ConfigError, ModelError
from rankcast.packaging.base_model import Adapted, base_fingerprint_of_folder, load_base

RENAMED = {
    "mixtral": (tf.MixtralModel, tf.MixtralForCausalLM),
    "vit": (tf.ViTModel, tf.ViTForImageClassification),
    "llava": (tf.LlavaModel, tf.LlavaForConditionalGeneration),
    "wav2vec2": (tf.Wav2Vec2Model, tf.Wav2Vec2ForSequenceClassification),
}


@pytest.mark.parametrize("kind", RENAMED)
def test_what_classes_rename_or_join_is_loaded_with_transformers(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cls in RENAMED[kind]:
        folder = tmp_path / cls.__name__
        model = tiny_base(cls, kind)
        model.save_pretrained(folder)
        assert base_fingerprint_of_folder(folder) == base_fingerprint(model)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=rf"{kind} may be renamed.*\n?.*rankcast\[train\]"):
        base_fingerprint_of_folder(tmp_path / RENAMED[kind][0].__name__)


def test_rounded_weights_count_as_they_are_loaded(tmp_path: Path) -> None:
    tiny_base(tf.LlamaForCausalLM, "llama").save_pretrained(tmp_path)
    plain = base_fingerprint_of_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    rounded = base_fingerprint_of_folder(tmp_path)
    assert rounded != plain
    assert rounded == base_fingerprint(tf.AutoModelForCausalLM.from_pretrained(tmp_path))


def test_weights_that_would_be_drawn_have_no_fingerprint(tmp_path: Path) -> None:
    """A BERT that guesses masked words has no pooler, which one that classifies has."""
    tiny_base(tf.BertForMaskedLM, "bert").save_pretrained(tmp_path)
    assert base_fingerprint_of_folder(tmp_path, "TOKEN_CLS") == base_fingerprint_of_folder(tmp_path)
    with pytest.raises(ModelError, match=r"lacks bert\.pooler\.dense\.bias"):
        base_fingerprint_of_folder(tmp_path, "SEQ_CLS")
    with pytest.raises(ModelError, match="its files lack the pooler"):
        BaseFolder.open(tmp_path).fingerprint("SEQ_CLS")


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("SEQ_CLS", "BertForSequenceClassification"),
        ("TOKEN_CLS", "BertForTokenClassification"),
        ("QUESTION_ANS", "BertForQuestionAnswering"),
        ("CAUSAL_LM", "BertLMHeadModel"),
        ("FEATURE_EXTRACTION", "BertModel"),
        (None, "BertForMaskedLM"),
        ("A_NEW_TASK", "BertForMaskedLM"),
    ],
)
def test_the_class_follows_the_task(task: str | None, expected: str, tmp_path: Path) -> None:
    tiny_base(tf.BertForPreTraining, "bert").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"architectures": ["BertForMaskedLM"]})
    )
    heads = {
        "SEQ_CLS": {"classifier.weight": (3, 16), "classifier.bias": (3,)},
        "TOKEN_CLS": {"classifier.weight": (2, 16), "classifier.bias": (2,)},
        "QUESTION_ANS": {"qa_outputs.weight": (2, 16), "qa_outputs.bias": (2,)},
    }
    model = load_base(tmp_path, Adapted(task, shapes=heads.get(task or "", {})))
    assert type(model).__name__ == expected
    assert model.config.num_labels == (3 if task == "SEQ_CLS" else 2)


def test_names_decide_where_the_task_does_not(tmp_path: Path) -> None:
    tiny_base(tf.ViTModel, "vit").save_pretrained(tmp_path)
    head = {"classifier.weight": (4, 16), "classifier.bias": (4,)}
    bare = load_base(tmp_path, Adapted(names=("layers.0.attention.q_proj",)))
    assert type(bare) is tf.ViTModel
    names = ("vit.layers.0.attention.q_proj",)
    model = load_base(tmp_path, Adapted(names=names, shapes=head))
    assert type(model) is tf.ViTForImageClassification
    assert model.config.num_labels == 4
    with pytest.raises(ModelError, match=r"lacks classifier\.bias"):
        load_base(tmp_path, Adapted(names=names))
    with pytest.raises(ModelError, match="ViTModel has no transformer") as refused:
        load_base(tmp_path, Adapted(names=("transformer.h.0",)))
    assert "saved from the same class" in str(refused.value)


def test_labels_are_counted_on_the_last_layer_of_a_head(tmp_path: Path) -> None:
    """DistilBERT's pre_classifier comes later in the alphabet, and is as wide as the model."""
    tiny_base(tf.DistilBertModel, "distilbert").save_pretrained(tmp_path)
    shapes = {
        "classifier.weight": (5, 16), "classifier.bias": (5,),
        "pre_classifier.weight": (16, 16), "pre_classifier.bias": (16,),
    }  # fmt: skip
    model = load_base(tmp_path, Adapted("SEQ_CLS", shapes=shapes))
    assert model.classifier.weight.shape == (5, 16)
    assert model.config.id2label == {i: f"LABEL_{i}" for i in range(5)}
    wrong = {**shapes, "pre_classifier.weight": (16, 12)}
    with pytest.raises(ModelError, match="in another shape"):
        load_base(tmp_path, Adapted("SEQ_CLS", shapes=wrong))


def test_names_of_labels_are_kept_where_there_are_as_many(tmp_path: Path) -> None:
    names = {0: "bad", 1: "so-so", 2: "good"}
    model = tiny_base(tf.BertForSequenceClassification, "bert", id2label=names)
    model.save_pretrained(tmp_path)
    for n, expected in ((3, names), (2, {0: "LABEL_0", 1: "LABEL_1"})):
        head = {"classifier.weight": (n, 16), "classifier.bias": (n,)}
        assert load_base(tmp_path, Adapted("SEQ_CLS", shapes=head)).config.id2label == expected


def test_folders_that_cannot_be_loaded(tmp_path: Path) -> None:
    def refused(folder: Path, error: Any, words: str) -> None:
        with pytest.raises(error, match=words):
            load_base(folder, Adapted("CAUSAL_LM"))

    refused(tmp_path / "absent", ConfigError, "no base model")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, ConfigError, "no base model")
    (tmp_path / "config.json").write_text(
        json.dumps({
            "model_type": "strange", "architectures": ["StrangeForCausalLM"],
            "auto_map": {"AutoConfig": "code.StrangeConfig"},
        })
    )  # fmt: skip
    refused(tmp_path, ConfigError, "trust_remote_code|custom code")
    model = tiny_base(tf.LlamaForCausalLM, "llama")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    strange = {"architectures": ["StrangeForCausalLM"], "auto_map": {"AutoModel": "code.Strange"}}
    (tmp_path / "config.json").write_text(json.dumps(config | strange))
    refused(tmp_path, ConfigError, "StrangeForCausalLM, whose code comes with it")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / WEIGHTS).write_bytes(b"x" * 100)
    refused(tmp_path, ModelError, "cannot be loaded as")
    (tmp_path / WEIGHTS).unlink()
    refused(tmp_path, ModelError, WEIGHTS)


def test_a_folder_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    tiny_base(tf.LlamaForCausalLM, "llama").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / WEIGHTS, {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        load_base(tmp_path, Adapted("CAUSAL_LM"))
