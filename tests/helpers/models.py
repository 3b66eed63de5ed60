"""Transformers small enough for a unit test, and a task that they learn in a few steps.

Their weights are drawn from a seed; nothing is downloaded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from rankcast.adapters.elastic import ElasticAdapter
from rankcast.learner.texts import DatasetSplits, TextDataset

ARCHITECTURES = ("bert", "roberta", "minilm", "opt", "gpt2", "llama", "t5")
CAUSAL = ("opt", "gpt2", "llama")
VOCABULARY = 37
PAD, EOS = 0, 1


def _config(architecture: str, n_layers: int) -> Any:
    import transformers as tf

    tokens = {
        "vocab_size": VOCABULARY,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": 2,
        "num_labels": 2,
    }
    bert = {
        "hidden_size": 16,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if architecture in ("bert", "minilm"):
        return tf.BertConfig(**tokens, **bert)
    if architecture == "roberta":
        return tf.RobertaConfig(**tokens, **bert)
    if architecture == "opt":
        return tf.OPTConfig(
            hidden_size=16,
            word_embed_proj_dim=16,
            ffn_dim=24,
            num_hidden_layers=n_layers,
            num_attention_heads=2,
            max_position_embeddings=64,
            dropout=0.0,
            **tokens,
        )
    if architecture == "gpt2":
        return tf.GPT2Config(
            n_embd=16,
            n_inner=24,
            n_layer=n_layers,
            n_head=2,
            n_positions=64,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **tokens,
        )
    if architecture == "llama":
        return tf.LlamaConfig(
            hidden_size=16,
            num_hidden_layers=n_layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=24,
            max_position_embeddings=64,
            **tokens,
        )
    if architecture == "t5":
        return tf.T5Config(
            d_model=16,
            num_layers=n_layers,
            num_decoder_layers=n_layers,
            num_heads=2,
            d_kv=8,
            d_ff=24,
            dropout_rate=0.0,
            decoder_start_token_id=PAD,
            **tokens,
        )
    raise ValueError(architecture)


def tiny_model(architecture: str, *, causal: bool = False, seed: int = 0, n_layers: int = 2) -> Any:
    """Build a tiny sequence classifier, or a causal language model, in eval mode.

    The weights are drawn wider than the libraries do, so that every projection matters.
    """
    import transformers as tf

    config = _config(architecture, n_layers)
    auto = tf.AutoModelForCausalLM if causal else tf.AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.3)
    return model.eval()


def tiny_batch(
    *, seed: int = 0, batch: int = 3, length: int = 7, causal: bool = False
) -> dict[str, torch.Tensor]:
    """Draw token ids without padding, each ending in one end-of-sequence token, and labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
    ids[:, -1] = EOS
    labels = ids.clone() if causal else torch.randint(0, 2, (batch,), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def randomise(adapter: Any, seed: int = 0, scale: float = 0.3) -> None:
    """Give every component of an adapter a value, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for factors in adapter.factors():
            for factor in factors:
                factor.copy_(torch.randn(factor.shape, generator=generator) * scale)


def adapted(
    architecture: str = "bert",
    *,
    causal: bool = False,
    seed: int = 0,
    scale: float = 0.2,
    r_max: int = 4,
    alpha: float = 6.0,
    modules: list[str] | None = None,
) -> Any:
    """Return an adapter on a tiny model, with every weight that travels as if it were trained."""
    adapter = ElasticAdapter.attach(
        tiny_model(architecture, causal=causal), r_max=r_max, alpha=alpha, modules_to_save=modules
    )
    randomise(adapter, seed, scale)
    generator = torch.Generator().manual_seed(seed + 1)
    for module in adapter.extra_modules().values():
        for p in module.parameters():
            p.data += 0.1 * torch.randn(p.shape, generator=generator)
    adapter.model.eval()
    return adapter


def logits(model: Any, *, causal: bool = False) -> torch.Tensor:
    """Return what a model answers to the tiny batch."""
    with torch.no_grad():
        return model(**tiny_batch(causal=causal)).logits


KEYWORDS = ("river", "engine")
FILLER = ("the", "a", "of", "and", "under", "quickly", "seven", "grey", "window", "it")


def keyword_splits(seed: int = 0, n_train: int = 96, n_held_out: int = 24) -> DatasetSplits:
    """Return texts each full of one of two words, which is their class."""
    rng = np.random.default_rng(seed)

    def texts(n: int) -> TextDataset:
        labels = rng.integers(0, 2, n)
        words = [
            [KEYWORDS[y]] * 6 + rng.choice(FILLER, rng.integers(1, 9)).tolist() for y in labels
        ]
        return TextDataset(
            tuple(" ".join(rng.permutation(w)) for w in words), tuple(labels.tolist()), KEYWORDS
        )

    return DatasetSplits(texts(n_train), texts(n_held_out), texts(n_held_out))
