"""Tiny base models as GGUF, written as llama.cpp's converter writes them, by rules restated here.

Prompts are sent as ids of tokens, so that the tokenizer is only there to be loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

VOCABULARY = 320
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 128},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 128},
    "phi3": {"original_max_position_embeddings": 128},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "bloom": {"n_layer": 2, "n_head": 4},
    "gpt_neox": {"rotary_pct": 0.5},
    "falcon": {"num_kv_heads": 2, "new_decoder_architecture": True, "alibi": False},
    "cohere": {"logit_scale": 1.0},
    "granite": {"attention_multiplier": 0.25, "logits_scaling": 2.0, "residual_multiplier": 0.5},
}
"""What a model type has beside the sizes, and what its configuration class calls otherwise."""
NAMES = {
    "gemma3_text": "gemma3", "gpt_neox": "gptneox", "mistral": "llama", "cohere": "command-r",
}  # fmt: skip
LAYER_NORM = ("gpt2", "bloom", "gpt_neox", "falcon", "cohere", "starcoder2", "olmo")
ALL_HEADS = ("gpt2", "bloom", "gpt_neox")
"""Model types of which every head has keys and values of its own."""
INTERLEAVED = ("llama", "mistral", "granite", "smollm3", "arcee", "olmo")


def tiny_causal_model(kind: str, *, seed: int = 0, **changes: int) -> Any:
    """Return a model whose weights are drawn widely enough that every map of it matters."""
    import transformers as tf

    sizes = {**SIZES, **MORE.get(kind, {}), **changes}
    if kind in ALL_HEADS:
        del sizes["num_key_value_heads"]
    config = tf.AutoConfig.for_model(kind, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        for key, parameter in model.named_parameters():
            is_norm = (
                parameter.ndim == 1 and key.endswith("weight") and not kind.startswith("gemma")
            )
            torch.nn.init.normal_(parameter, mean=float(is_norm), std=0.15)
    return model.float().eval()


def write_base(
    model: Any,
    path: Path,
    *,
    dtype: Any = np.float32,
    quantised: gguf.GGMLQuantizationType | None = None,
) -> Path:
    """Write a model for llama.cpp.

    Args:
        model: of `tiny_causal_model`.
        path: file to write.
        dtype: of weights with two axes.
        quantised: as what these are written instead.
    """
    kind = model.config.model_type
    name = NAMES.get(kind, kind)
    known = {word: number for number, word in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(known[name], 2)
    writer = gguf.GGUFWriter(path, name)
    _describe(writer, model.config)
    _tokenizer(writer)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for key, value in model.state_dict().items():
        tries = (key, key.removeprefix("transformer."))
        found = [names.get_name(k, try_suffixes=(".weight", ".bias")) for k in tries]
        there = found[0] or found[1]
        if tied and key == "lm_head.weight":
            continue
        assert there is not None, key
        array = _as_converted(key, value.detach().numpy(), model.config)
        if quantised is not None and array.ndim == 2:
            writer.add_tensor(there, gguf.quants.quantize(array, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(there, array.astype(dtype if array.ndim == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _as_converted(key: str, array: NDArray[Any], config: Any) -> NDArray[Any]:
    """Return a tensor as llama.cpp's converter changes it."""
    kind, module = config.model_type, key.split(".")[-2]
    heads = config.num_attention_heads
    if kind in INTERLEAVED and module in ("q_proj", "k_proj"):
        return interleaved(array, heads if module == "q_proj" else config.num_key_value_heads)
    if kind == "gpt2" and module in ("c_attn", "c_proj", "c_fc") and array.ndim == 2:
        return np.ascontiguousarray(array.T)
    if kind.startswith("gemma") and module.endswith("norm"):
        return array + 1
    if module == "query_key_value":
        groups = config.num_kv_heads if kind == "falcon" else heads
        return _queries_first(array, groups, heads // groups)
    return array


def interleaved(array: NDArray[Any], n_heads: int) -> NDArray[Any]:
    """Row i of a head goes where llama.cpp's converter puts it, one row at a time."""
    size = array.shape[0] // n_heads
    order = [h * size + half * size // 2 + i for h in range(n_heads) for i in range(size // 2)
             for half in (0, 1)]  # fmt: skip
    return array[order]


def _queries_first(array: NDArray[Any], groups: int, per_group: int) -> NDArray[Any]:
    """Of every group's queries, key and value, put all queries first, then keys, then values."""
    size = array.shape[0] // (groups * (per_group + 2))
    head = [list(range(i * size, (i + 1) * size)) for i in range(groups * (per_group + 2))]
    kinds: list[list[int]] = [[], [], []]
    for i, rows in enumerate(head):
        place = i % (per_group + 2)
        kinds[max(0, place - per_group + 1)] += rows
    queries, keys, values = kinds
    return array[queries + keys + values]


def _describe(writer: Any, config: Any) -> None:
    """Write the numbers of a configuration."""

    def get(*words: str, default: Any = None) -> Any:
        return next((getattr(config, w) for w in words if hasattr(config, w)), default)

    kind, heads, width = config.model_type, config.num_attention_heads, config.hidden_size
    rope = get("rope_parameters", default=None) or {}
    rope = rope.get("full_attention", rope)
    kv_heads = get("num_kv_heads", "num_key_value_heads", default=heads)
    head_dim = get("head_dim", default=None) or width // heads
    writer.add_context_length(get("max_position_embeddings", "n_positions", default=128))
    writer.add_embedding_length(width)
    writer.add_block_count(config.num_hidden_layers)
    inner = 4 * width if kind in ("gpt2", "bloom", "falcon") else config.intermediate_size
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    if kind in LAYER_NORM:
        eps = get("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", default=1e-5)
        writer.add_layer_norm_eps(eps)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if kind not in (*ALL_HEADS, "falcon"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if kind not in ("gpt2", "bloom"):
        writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    writer.add_vocab_size(VOCABULARY)
    _describe_more(writer, config)


def _describe_more(writer: Any, config: Any) -> None:
    """Write what only some architectures have."""
    more: dict[str, Callable[[], object]] = {
        "phi3": lambda: (
            writer.add_rope_scaling_orig_ctx_len(128), writer.add_sliding_window(0),
        ),
        "cohere": lambda: writer.add_logit_scale(config.logit_scale),
        "gemma2": lambda: (
            writer.add_attn_logit_softcapping(config.attn_logit_softcapping),
            writer.add_final_logit_softcapping(config.final_logit_softcapping),
            writer.add_sliding_window(config.sliding_window),
        ),
        "gemma3_text": lambda: writer.add_sliding_window(config.sliding_window),
        "gpt_neox": lambda: writer.add_parallel_residual(config.use_parallel_residual),
        "granite": lambda: (
            writer.add_attention_scale(config.attention_multiplier),
            writer.add_embedding_scale(config.embedding_multiplier),
            writer.add_residual_scale(config.residual_multiplier),
            writer.add_logit_scale(config.logits_scaling),
        ),
    }  # fmt: skip
    more.get(config.model_type, lambda: None)()


def _tokenizer(writer: Any) -> None:
    """Write a tokenizer of invented words: no bytes, of which an answer that ends early is told
    without probabilities."""
    words = [b"<unk>", b"<s>", b"</s>"]
    words += [f"word{i}".encode() for i in range(VOCABULARY - len(words))]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2]
    kinds += [gguf.TokenType.NORMAL] * (VOCABULARY - len(kinds))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_scores([-float(i) for i in range(VOCABULARY)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
