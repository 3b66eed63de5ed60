"""The fingerprint of a base model, whatever adapters it carries."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
import transformers as tf

from helpers.models import tiny_model
from rankcast.adapters.elastic import ElasticAdapter
from rankcast.adapters.fingerprint import base_fingerprint, base_tensors

_BERT = ["query", "value"]
METHODS: dict[str, Any] = {
    "lora": peft.LoraConfig(target_modules=_BERT, modules_to_save=["classifier", "pooler"]),
    "embedding": peft.LoraConfig(target_modules=[*_BERT, "word_embeddings"]),
    "dora": peft.LoraConfig(target_modules=_BERT, use_dora=True, bias="all"),
    "tokens": peft.LoraConfig(
        target_modules=_BERT, trainable_token_indices={"word_embeddings": [1, 2]}
    ),
    "ia3": peft.IA3Config(target_modules=_BERT, feedforward_modules=[]),
    "vera": peft.VeraConfig(target_modules=_BERT, r=2),
    "fourier": peft.FourierFTConfig(target_modules=_BERT, n_frequency=10),
    "oft": peft.OFTConfig(target_modules=_BERT, r=2, oft_block_size=0),
    "norms": peft.LNTuningConfig(target_modules=["LayerNorm"]),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="SEQ_CLS"),
}


@pytest.mark.parametrize("method", METHODS)
def test_adapters_of_any_method_do_not_count(method: str) -> None:
    bare = base_fingerprint(tiny_model("bert"))
    assert base_fingerprint(peft.get_peft_model(tiny_model("bert"), METHODS[method])) == bare


def test_elastic_adapters_do_not_count() -> None:
    bare = base_fingerprint(tiny_model("bert"))
    adapter = ElasticAdapter.attach(tiny_model("bert"), r_max=3)
    assert base_fingerprint(adapter.model) == bare


def test_two_parameters_of_one_module_count_once_each() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    model = tf.MixtralForCausalLM(tf.MixtralConfig(vocab_size=32, **sizes, **heads))
    bare, names = base_fingerprint(model), [name for name, _ in base_tensors(model)]
    experts = ["experts.gate_up_proj", "experts.down_proj"]
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["q_proj"], target_parameters=experts)
    )
    assert [name for name, _ in base_tensors(adapted)] == names
    assert base_fingerprint(adapted) == bare
