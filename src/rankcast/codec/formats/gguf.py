"""An adapter as a GGUF LoRA for llama.cpp, with the extra `gguf`.

llama.cpp adds scale·B·A to a weight, where scale is adapter.lora.alpha over the rank of the tensor,
or 1 if alpha is 0. Ranks differ between projections, so alpha is 0 here and the scale is in the
factors. Its converter orders the rows of some weights otherwise than Hugging Face does; B's rows
follow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rankcast.codec.quantiser import Float32Array
from rankcast.codec.tensors import AdapterTensors
from rankcast.errors import CodecError, ConfigError
from rankcast.files import replace_file

_ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "phi3": "phi3",
    "gpt2": "gpt2",
}
"""llama.cpp's words for `model_type` of a Hugging Face configuration."""
_INTERLEAVED = ("llama", "mistral")
"""Model types of which llama.cpp's converter reorders query and key for its rotary embedding."""
_TIED = ("gemma", "gemma2", "gpt2")
"""Model types whose output layer is their embedding unless the configuration says otherwise."""


def write_gguf(
    tensors: AdapterTensors, path: str | os.PathLike[str], base_config: Mapping[str, Any] | None
) -> Path:
    """Write the components of an adapter as a GGUF file that `llama-cli --lora` reads.

    Args:
        tensors: a decoded adapter of a causal language model.
        path: file to write.
        base_config: `config.json` of the base model (`read_base_config`): `model_type`, and the
            numbers of layers and heads.

    Raises:
        CodecError: no component, modules beside the projections, a projection that llama.cpp has
            no name for, or an output layer that is the embedding.
        ConfigError: no configuration, an architecture that llama.cpp does not know, or the extra is
            missing.
    """
    if base_config is None:
        raise ConfigError(
            "GGUF needs the base model's config.json: name its folder with --base-model."
        )
    gguf = _library()
    kind = base_config.get("model_type")
    if kind not in _ARCHITECTURES:
        raise ConfigError(
            f"A GGUF adapter can be written for {', '.join(_ARCHITECTURES)}; this model is "
            f"{kind!r}. Export merged weights and convert those instead."
        )
    if tensors.is_general:
        raise CodecError(
            f"llama.cpp takes plain LoRAs only, and this adapter is in general form "
            f"({tensors.config['peft_type']})."
        )
    if tensors.modules:
        raise CodecError(
            f"llama.cpp takes no modules saved in full, and the adapter has "
            f"{', '.join(tensors.modules)}. Export merged weights instead."
        )
    if not tensors.ranks.any():
        raise CodecError("No component of the adapter has arrived; decode more chunks.")
    names = _names(gguf, tensors, base_config, kind)
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, lambda partial: _write(gguf, partial, tensors, names, base_config))
    return file


def read_base_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return `config.json` of a base model.

    Raises:
        ConfigError: there is none that can be read.
    """
    path = Path(folder) / "config.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no readable configuration of a model ({error}).") from error


def permuted(rows: Float32Array, n_heads: int) -> Float32Array:
    """Return the rows of each head with halves interleaved: 0, h/2, 1, h/2 + 1, … .

    Hugging Face rotates the two halves of a head against each other, llama.cpp neighbours.

    Args:
        rows: (n_heads · head_dim, …).
        n_heads: heads that share the rows.
    """
    split = rows.reshape(n_heads, 2, rows.shape[0] // n_heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(rows.shape))


def _names(
    gguf: Any, tensors: AdapterTensors, config: Mapping[str, Any], kind: str
) -> dict[int, str]:
    """Return llama.cpp's names of the projections that have components, by their number."""
    layers = int(config.get("num_hidden_layers") or config.get("n_layer") or 0)
    architecture = getattr(gguf.MODEL_ARCH, _ARCHITECTURES[kind].upper())
    known = gguf.get_tensor_name_map(architecture, layers)
    tied, names = config.get("tie_word_embeddings"), {}
    for i, p in enumerate(tensors.projections):
        if not tensors.ranks[i]:
            continue
        name = known.get_name(f"{p.name}.weight", try_suffixes=(".weight",))
        if p.kind == "lm_head" and (kind in _TIED if tied is None else tied):
            raise CodecError(
                f"The adapter changes {p.name}, which in this {kind} is tied to the embedding, so "
                f"that llama.cpp has no such tensor. Export merged weights instead."
            )
        if name is None:
            raise CodecError(f"llama.cpp has no name for {p.name}; export merged weights instead.")
        names[i] = name
    return names


def _write(
    gguf: Any,
    path: Path,
    tensors: AdapterTensors,
    names: Mapping[int, str],
    config: Mapping[str, Any],
) -> None:
    """Write one projection after another."""
    kind = str(config["model_type"])
    writer = gguf.GGUFWriter(path, _ARCHITECTURES[kind])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0.0)
    for i, name in names.items():
        p, rank = tensors.projections[i], int(tensors.ranks[i])
        for part, shape in (("a", (rank, p.d_in)), ("b", (p.d_out, rank))):
            size = 4 * shape[0] * shape[1]
            writer.add_tensor_info(f"{name}.lora_{part}", shape, np.dtype(np.float32), size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for i in names:
        f = tensors.factors[i]
        writer.write_tensor_data(np.ascontiguousarray(f.right))
        left = _reordered(f.left, tensors.projections[i].kind, kind, config)
        writer.write_tensor_data(np.ascontiguousarray(left))
    writer.close()


def _reordered(
    left: Float32Array, projection: str, kind: str, config: Mapping[str, Any]
) -> Float32Array:
    """Return a left factor with its rows where llama.cpp's converter puts those of the weight."""
    if kind not in _INTERLEAVED or projection not in ("q", "k"):
        return left
    heads = int(config["num_attention_heads"])
    if projection == "k":
        heads = int(config.get("num_key_value_heads") or heads)
    return permuted(left, heads)


def _library() -> Any:
    try:
        import gguf  # noqa: PLC0415 an extra
    except ImportError as error:
        raise ConfigError(
            "Writing GGUF needs the package gguf: pip install 'rankcast[gguf]'."
        ) from error
    return gguf
