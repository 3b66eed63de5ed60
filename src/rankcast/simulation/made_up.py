"""A base model and adapters of random weights, in folders as transformers and PEFT write them.

They need no torch and no hub. What they answer means nothing; everything about delivering them is
real.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rankcast.codec.formats.base_folder import WEIGHTS as BASE_WEIGHTS
from rankcast.codec.formats.native import ORIGINAL
from rankcast.codec.formats.peft import CONFIG, WEIGHTS
from rankcast.codec.formats.tensor_file import TensorFile, write_tensor_file
from rankcast.codec.quantiser import Float32Array

_LAYERS, _WIDTH, _INNER, _WORDS, _RANK = 4, 256, 256, 256, 8
_ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = {"gate_proj": (_INNER, _WIDTH), "up_proj": (_INNER, _WIDTH), "down_proj": (_WIDTH, _INNER)}
_FALL = 0.7
"""Of each component of the adapter beside the one before."""
_CHANGE = 0.05
"""Of the weights from one training to the next, as a share of their root mean square."""


def write_base_model(folder: Path, seed: int) -> None:
    """Write a tiny Llama: configuration and weights, without a tokenizer.

    Args:
        folder: new.
        seed: of the weights.
    """
    rng = np.random.default_rng(seed)
    shapes = {f"self_attn.{kind}": (_WIDTH, _WIDTH) for kind in _ADAPTED}
    shapes |= {f"mlp.{kind}": shape for kind, shape in _MLP.items()}
    tensors = {"model.embed_tokens.weight": _drawn(rng, _WORDS, _WIDTH)}
    norms = ["model.norm.weight"]
    for layer in range(_LAYERS):
        place = f"model.layers.{layer}."
        tensors |= {f"{place}{n}.weight": _drawn(rng, *shape) for n, shape in shapes.items()}
        norms += [f"{place}{n}_layernorm.weight" for n in ("input", "post_attention")]
    tensors |= {name: np.ones(_WIDTH, np.float32) for name in norms}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32",
        "hidden_size": _WIDTH, "intermediate_size": _INNER, "num_hidden_layers": _LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": _WORDS,
        "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    _save(folder, "config.json", config, BASE_WEIGHTS, tensors)


def write_adapter(folder: Path, seed: int) -> None:
    """Write a LoRA of `write_base_model`'s attention, as PEFT would save it.

    Args:
        folder: new.
        seed: of the weights.
    """
    rng, tensors = np.random.default_rng(seed), {}
    fall = (_FALL ** np.arange(_RANK)).astype(np.float32)
    for layer in range(_LAYERS):
        for kind in _ADAPTED:
            name = f"base_model.model.model.layers.{layer}.self_attn.{kind}.lora_"
            tensors[f"{name}A.weight"] = fall[:, None] * _drawn(rng, _RANK, _WIDTH)
            tensors[f"{name}B.weight"] = fall * _drawn(rng, _WIDTH, _RANK)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": _RANK, "lora_alpha": 2 * _RANK,
        "target_modules": list(_ADAPTED), "base_model_name_or_path": "made-up",
    }  # fmt: skip
    _save(folder, CONFIG, config, WEIGHTS, tensors)


def write_next_adapter(before: Path, folder: Path, seed: int) -> None:
    """Write a stand-in for an adapter after more training: every weight changed a little.

    Args:
        before: folder of the adapter, of PEFT or of rankcast.
        folder: new.
        seed: of the changes.

    Raises:
        CodecError: weights that cannot be read.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for path in sorted(p for p in before.iterdir() if p.suffix in (".json", ".safetensors")):
        if path.suffix == ".json":
            shutil.copyfile(path, folder / path.name)
            continue
        file, tensors = TensorFile.open(path), {}
        for name, entry in file.entries.items():
            values = file.array(name)
            if entry.is_float and not name.startswith(ORIGINAL):
                size = _CHANGE * float(np.sqrt(np.square(values).mean() if values.size else 0.0))
                values = values + size * rng.standard_normal(values.shape, np.float32)
            tensors[name] = np.ascontiguousarray(values)
        _write(folder / path.name, tensors, file.metadata)


def _drawn(rng: np.random.Generator, rows: int, columns: int) -> Float32Array:
    return 0.02 * rng.standard_normal((rows, columns), np.float32)


def _save(
    folder: Path,
    description: str,
    config: Mapping[str, object],
    weights: str,
    tensors: Mapping[str, Float32Array],
) -> None:
    folder.mkdir(parents=True)
    (folder / description).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    _write(folder / weights, tensors)


def _write(
    path: Path, tensors: Mapping[str, Float32Array], metadata: Mapping[str, str] | None = None
) -> None:
    shapes = {name: (values.shape, values.dtype) for name, values in tensors.items()}
    write_tensor_file(path, shapes, tensors.values(), metadata)
