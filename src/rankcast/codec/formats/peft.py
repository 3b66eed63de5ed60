"""LoRA adapters on disk, as PEFT and vLLM know them, read and written without torch."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

from rankcast.codec.quantiser import Float32Array
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.errors import CodecError
from rankcast.files import new_folder
from rankcast.naming import ORDER, kind_of, layer_number
from rankcast.records import Projection

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_ADALORA_EPSILON = 1e-5
"""PEFT adds it to the rank by which it divides AdaLoRA's alpha."""
_EMBEDDINGS = ("embed", "wte", "wpe")
"""Parts of names that say that a module is an embedding."""
_REFUSED = {
    "lora_magnitude_vector": "DoRA's magnitudes, which change weights and not only add to them",
    "lora_embedding_": "a LoRA of an embedding",
}


def read_peft(directory: str | os.PathLike[str]) -> tuple[AdapterTensors, dict[str, Any]]:
    """Return a LoRA or AdaLoRA adapter that PEFT saved, and its configuration.

    The scale of every projection (alpha over rank, or over its root for rank-stabilised LoRA, each
    with its pattern) is multiplied in; components are sorted by the singular values of ΔW.

    Raises:
        CodecError: no such adapter, a damaged one, or one with parts that a low-rank adapter
            cannot carry; names them.
    """
    config, path = _read_config(Path(directory) / CONFIG), Path(directory) / WEIGHTS
    try:
        raw = dict(safetensors.deserialize(path.read_bytes()))
    except (OSError, safetensors.SafetensorError) as error:
        raise CodecError(
            f"{path} is missing or damaged ({error}); save the adapter again."
        ) from error
    # safetensors returns them in another order each time.
    tensors = {name.removeprefix(_PREFIX): _float32(name, raw[name]) for name in sorted(raw)}
    modules = {name: values for name, values in tensors.items() if ".lora_" not in name}
    _check_modules(modules, config)
    adapted = {name.partition(".lora_")[0] for name in tensors if ".lora_" in name}
    factors = {name: _factors(name, tensors, config).sorted() for name in adapted}
    names = sorted(factors, key=_place)
    projections = tuple(
        Projection(
            n, layer_number(n), kind_of(n), factors[n].right.shape[1], factors[n].left.shape[0]
        )
        for n in names
    )
    ordered = tuple(factors[n] for n in names)
    return AdapterTensors(projections, ordered, modules, dict.fromkeys(modules, "full")), config


def write_peft(
    tensors: AdapterTensors,
    directory: str | os.PathLike[str],
    *,
    base_model_name: str | None = None,
    task_type: str | None = None,
    uniform_rank: bool = False,
    fan_in_fan_out: bool = False,
) -> Path:
    """Write a plain LoRA whose scale is 1 under every reader's rule.

    `lora_alpha` equals `r` and `alpha_pattern` equals `rank_pattern`. Projections of rank 0 are
    left out. With `uniform_rank` every projection is padded with zeros to one rank and there are no
    patterns: vLLM and SGLang divide one alpha by one rank, and take no modules saved in full.

    Args:
        tensors: the adapter.
        directory: made if absent; files of the same names in it are replaced.
        base_model_name: for the configuration.
        task_type: PEFT's word for the task.
        uniform_rank: see above.
        fan_in_fan_out: the base model keeps its weights input-first, as GPT-2's do.

    Raises:
        CodecError: no component; modules where none can be carried; or modules that travel as a
            difference, which cannot be written without the base model.
    """
    kept = {p.name: f for p, f in zip(tensors.projections, tensors.factors, strict=True) if f.rank}
    _check_writable(kept, tensors, uniform_rank=uniform_rank)
    ranks = {name: factors.rank for name, factors in kept.items()}
    if uniform_rank:
        ranks = dict.fromkeys(ranks, max(ranks.values()))
        kept = {name: _padded(factors, ranks[name]) for name, factors in kept.items()}
    config = _lora_config(ranks, tensors.modules, base_model_name, task_type) | {
        "fan_in_fan_out": fan_in_fan_out
    }
    target = Path(directory)
    with new_folder(target) as folder:
        _save(folder / WEIGHTS, kept, tensors.modules)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (folder / CONFIG).write_text(text, "utf-8")
    return target


def _check_writable(
    kept: Mapping[str, Factors], tensors: AdapterTensors, *, uniform_rank: bool
) -> None:
    """Raise if a LoRA cannot carry the adapter."""
    if not kept:
        raise CodecError(
            "No component of the adapter has arrived, so there is no LoRA to write; decode more "
            "chunks."
        )
    if uniform_rank and tensors.modules:
        raise CodecError(
            f"This reader takes no modules saved in full, and the adapter has "
            f"{', '.join(tensors.modules)}. Export merged weights instead."
        )
    relative = [name for name, how in tensors.carriage.items() if how == "difference"]
    if relative:
        raise CodecError(
            f"{', '.join(relative)} travel as differences from the base model: use rankcast export "
            f"with --base-model."
        )


def _check_modules(names: Iterable[str], config: Mapping[str, Any]) -> None:
    """Raise on tensors beside the factors that are no modules saved in full, and on embeddings."""
    saved = {name.rpartition(".")[2] for name in config.get("modules_to_save") or ()}
    for name in names:
        parts = name.split(".")[:-1]
        if saved.isdisjoint(parts):
            raise CodecError(
                f"The adapter has {name}, which is neither a LoRA nor of a module in "
                f"modules_to_save (a trained bias, or an embedding that was resized): not carried."
            )
        if any(word in part for part in parts for word in _EMBEDDINGS):
            raise CodecError(f"The adapter has an embedding saved in full ({name}): not carried.")


def _save(path: Path, kept: Mapping[str, Factors], modules: Mapping[str, Float32Array]) -> None:
    """Write the tensors under PEFT's names."""
    named = {}
    for name, f in kept.items():
        named[f"{_PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(f.right)
        named[f"{_PREFIX}{name}.lora_B.weight"] = np.ascontiguousarray(f.left)
    for name, values in modules.items():
        named[_PREFIX + name] = np.ascontiguousarray(values)
    save_file(named, path, metadata={"format": "pt"})


def _lora_config(
    ranks: Mapping[str, int],
    modules: Iterable[str],
    base_model_name: str | None,
    task_type: str | None,
) -> dict[str, Any]:
    """Return what PEFT's LoraConfig would save."""
    largest = max(ranks.values())
    patterns = {} if set(ranks.values()) == {largest} else dict(ranks)
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model_name,
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "target_modules": list(ranks),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in modules}) or None,
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }


def _padded(factors: Factors, rank: int) -> Factors:
    """Return factors of a larger rank with the same product."""
    more = rank - factors.rank
    return Factors(
        np.pad(factors.left, ((0, 0), (0, more))), np.pad(factors.right, ((0, more), (0, 0)))
    )


def _factors(
    module: str, tensors: Mapping[str, Float32Array], config: Mapping[str, Any]
) -> Factors:
    """Return B·scale and A of one module, with AdaLoRA's singular values multiplied in.

    Raises:
        CodecError: a factor is missing or of another rank.
    """
    right = _find(tensors, module, "A")
    left = _find(tensors, module, "B")
    if right.ndim != 2 or left.ndim != 2 or left.shape[1] != right.shape[0]:
        raise CodecError(
            f"{module} has factors of shapes {left.shape} and {right.shape}; only linear maps can "
            f"be coded."
        )
    if config["peft_type"] == "ADALORA":
        values = _find(tensors, module, "E")
        rank = float(np.float32(config["init_r"]) + np.float32(_ADALORA_EPSILON))
        alpha = config["lora_alpha"]
        scale = (alpha if alpha > 0 else config["init_r"]) / rank
        return Factors((scale * left * values.reshape(-1)).astype(np.float32), right)
    alpha = _of_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    rank = _of_pattern(config.get("rank_pattern"), module, config["r"])
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Factors((scale * left).astype(np.float32), right)


def _find(tensors: Mapping[str, Float32Array], module: str, part: str) -> Float32Array:
    for name in (f"{module}.lora_{part}.weight", f"{module}.lora_{part}"):
        if name in tensors:
            return tensors[name]
    raise CodecError(f"The adapter lacks lora_{part} of {module}; save it again.")


def _of_pattern(pattern: Mapping[str, float] | None, module: str, default: float) -> float:
    """Return the value of the first of PEFT's patterns that a module's name ends in."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _read_config(path: Path) -> dict[str, Any]:
    """Return PEFT's description of the adapter.

    Raises:
        CodecError: not readable, or of a kind of adapter that is not low-rank.
    """
    try:
        config = json.loads(path.read_text("utf-8"))
        kind = config["peft_type"]
        needed = ("init_r", "lora_alpha") if kind == "ADALORA" else ("r", "lora_alpha")
        missing = [key for key in needed if not isinstance(config.get(key), int | float)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CodecError(
            f"{path} is no readable description of a PEFT adapter ({error!r})."
        ) from error
    if kind not in ("LORA", "ADALORA"):
        raise CodecError(f"{path} describes a {kind} adapter; only LORA and ADALORA can be coded.")
    if missing:
        raise CodecError(f"{path} lacks {', '.join(missing)}.")
    if config.get("use_dora"):
        raise CodecError(f"The adapter has {_REFUSED['lora_magnitude_vector']}: not carried.")
    return config


def _float32(name: str, entry: Mapping[str, Any]) -> Float32Array:
    """Return a stored tensor in float32; bfloat16, which NumPy does not know, by its bits.

    Raises:
        CodecError: a tensor of a kind that is not carried, or not finite.
    """
    refused = next((words for part, words in _REFUSED.items() if part in name), None)
    if refused is not None:
        raise CodecError(f"The adapter has {refused} ({name}): not carried.")
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    if entry["dtype"] not in kinds:
        raise CodecError(f"{name} is stored as {entry['dtype']}; save it as a float.")
    values = np.frombuffer(entry["data"], dtype=kinds[entry["dtype"]])
    if entry["dtype"] == "BF16":
        values = (values.astype("<u4") << 16).view("<f4")
    if not np.isfinite(values).all():
        raise CodecError(f"{name} holds NaN or infinite weights; its training has diverged.")
    return values.astype(np.float32).reshape(entry["shape"])


def _place(name: str) -> tuple[int, int, str]:
    """Return where a projection stands: layer by layer, in the order of use."""
    kind = kind_of(name)
    return layer_number(name), ORDER.index(kind) if kind in ORDER else len(ORDER), name
