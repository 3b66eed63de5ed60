"""Tiny models of many families, as somebody saves and loads them with transformers."""

from __future__ import annotations

from typing import Any

import torch

_SIZES: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 40, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_TWO_STACKS: dict[str, Any] = {
    "vocab_size": 48, "d_model": 16, "encoder_layers": 2, "decoder_layers": 3,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "forced_eos_token_id": None, "max_position_embeddings": 40,
}  # fmt: skip
_T5: dict[str, Any] = {
    "vocab_size": 48, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
    "decoder_start_token_id": 0,
}  # fmt: skip
_PICTURE = {"image_size": 8, "patch_size": 4}
_MORE: dict[str, dict[str, Any]] = {
    **{
        kind: {"head_dim": 8, "num_key_value_heads": 1}
        for kind in ("gemma", "gemma2", "gemma3_text", "glm4", "helium")
    },
    **{kind: {"num_key_value_heads": 1} for kind in ("llama", "mistral", "qwen2", "qwen3", "phi3")},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40},
    "gptj": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "rotary_dim": 4},
    "gpt_neo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    "bloom": {"n_layer": 2, "n_head": 2},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "opt": {"word_embed_proj_dim": 8, "ffn_dim": 24},
    "albert": {"embedding_size": 8},
    "electra": {"embedding_size": 8},
    "roberta": {"pad_token_id": 1},
    "deberta-v2": {
        "relative_attention": True, "position_buckets": 4, "pos_att_type": ["p2c", "c2p"],
        "pooler_hidden_size": 16,
    },
    "mixtral": {"num_local_experts": 2, "num_key_value_heads": 1},
    "vit": _PICTURE,
    "wav2vec2": {
        "conv_dim": [8], "conv_kernel": [10], "conv_stride": [5], "num_feat_extract_layers": 1,
        "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
    },
}  # fmt: skip


def tiny_config(kind: str, **settings: Any) -> Any:
    """Return a small configuration of a model type."""
    import transformers as tf

    if kind == "llava":
        text = {**_SIZES, "model_type": "llama", "num_key_value_heads": 1}
        sees = {**_SIZES, **_PICTURE, "model_type": "clip_vision_model", "projection_dim": 16}
        return tf.LlavaConfig(
            text_config=text, vision_config=sees, image_token_index=47, **settings
        )
    if kind in ("bart", "mbart"):
        sizes = _TWO_STACKS
    elif kind == "whisper":
        sizes = {
            **_TWO_STACKS, "num_mel_bins": 8, "max_source_positions": 10,
            "max_target_positions": 10,
        }  # fmt: skip
    elif kind in ("t5", "mt5"):
        sizes = _T5
    else:
        sizes = {**_SIZES, **_MORE.get(kind, {})}
    return tf.AutoConfig.for_model(kind, **{**sizes, **settings})


def tiny_base(cls: Any, kind: str, *, seed: int = 0, **settings: Any) -> Any:
    """Return a small model of a class whose weights, all of them, are drawn from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(tiny_config(kind, **settings))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def tiny_inputs(kind: str) -> dict[str, torch.Tensor]:
    """Return what a model of a type can be asked."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 46, (2, 8), generator=generator)
    ids[:, -1] = 2
    sounds = torch.randn(2, 8, 20, generator=generator)
    pictures = torch.randn(2, 3, 8, 8, generator=generator)
    if kind == "vit":
        return {"pixel_values": pictures}
    if kind == "wav2vec2":
        return {"input_values": torch.randn(2, 200, generator=generator)}
    if kind == "whisper":
        return {"input_features": sounds, "decoder_input_ids": ids[:, :5]}
    if kind in ("t5", "mt5", "bart", "mbart"):
        return {"input_ids": ids, "decoder_input_ids": ids[:, :5]}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def answer(model: Any, kind: str) -> torch.Tensor:
    """Return the first thing that a model answers."""
    found = model.eval()(**tiny_inputs(kind))
    logits = getattr(found, "logits", None)
    return (found[0] if logits is None else logits).float()
