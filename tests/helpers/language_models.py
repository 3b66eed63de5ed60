"""Folders of tiny language models with word tokenizers and a chat template, and a task for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from rankcast.config.learner import DatasetConfig, FinetuneConfig
from rankcast.learner.datasets import load_dataset
from rankcast.learner.transformer import TransformerLearner

_TEXT = (
    "which animal barks meows what is it the a dog cat yes no says woof meow today please tell me"
)
WORDS = (*_TEXT.split(), "now", "answer")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<{{ m['role'] }}> {{ m['content'] }} <end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
QUESTIONS = {"barks": "dog", "meows": "cat"}
ANSWERS = {"prompt_column": "prompt", "completion_column": "completion"}
_HEADS = {"head_dim": 8, "query_pre_attn_scalar": 8}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "opt": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gpt2": ("GPT2", {}),
    "gemma2": ("Gemma2", {**_HEADS, "final_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3", _HEADS),
    "cohere": ("Cohere", {"logit_scale": 0.3}),
    "granite": ("Granite", {"logits_scaling": 4.0}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
}
"""Among them those whose forward pass does more after the output layer."""


def word_tokenizer(*, template: str | None = TEMPLATE, eos: bool = True) -> Any:
    """Return a tokenizer of whole words, <bos> first."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    marks = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    turns = ["<user>", "<assistant>", "<end>"]
    vocabulary = {token: i for i, token in enumerate([*marks.values(), *turns, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=marks["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    known = marks if eos else {name: mark for name, mark in marks.items() if name != "eos_token"}
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, additional_special_tokens=turns, **known
    )
    found.chat_template = template
    return found


def language_model(architecture: str, seed: int = 0) -> Any:
    """Build a tiny causal language model, in eval mode, with weights that matter."""
    import transformers as tf

    name, more = ARCHITECTURES[architecture]
    settings = {
        "vocab_size": 7 + len(WORDS), "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    } | more  # fmt: skip
    config = getattr(tf, "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config")(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tf.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def save_language_model(folder: Path, architecture: str = "llama", **tokenizer: Any) -> Path:
    """Write such a model and its tokenizer as `save_pretrained` does."""
    language_model(architecture).save_pretrained(folder)
    word_tokenizer(**tokenizer).save_pretrained(folder)
    return folder


def write_questions(file: Path, n: int = 40) -> Path:
    """Write prompts of changing lengths with answers of one word, and both as text."""
    fillers = ("", "please", "tell me", "please tell me now")
    rows = []
    for i in range(n):
        verb = ("barks", "meows")[i % 2]
        prompt = f"{fillers[i % 4]} which animal {verb}".strip()
        rows.append({"prompt": prompt, "completion": f" {QUESTIONS[verb]}"})
    lines = (json.dumps(row | {"text": row["prompt"] + row["completion"]}) for row in rows)
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return file


def learner_of(folder: Path, texts: Path, *, whole: bool = False, **settings: Any) -> Any:
    """Return a learner of the questions, or of whole texts."""
    usual = {
        "model": str(folder), "objective": "causal", "lr": 2e-2, "r_max": 4, "alpha": 4.0,
        "total_steps": 30, "warmup_steps": 0, "batch_size": 8, "mixed_precision": "no",
        "orthogonality_weight": 0.0, "measure_reference": False,
    }  # fmt: skip
    config = FinetuneConfig(**(usual | settings))
    data = DatasetConfig(source=str(texts), label_column=None, **({} if whole else ANSWERS))
    return TransformerLearner(config, load_dataset(data))
