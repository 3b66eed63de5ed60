"""What `adapter_config.json` says, field by field: carried, without effect, or refused by name.

A LoRA or AdaLoRA is carried as factors if every field that changes what the adapter does is
understood here. One that PEFT can load but factors cannot express, and every other kind of adapter,
is carried in general form: its tensors and its configuration as they are.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rankcast.codec.formats.base_folder import HEADS
from rankcast.errors import CodecError

CONFIG = "adapter_config.json"
LOW_RANK = ("LORA", "ADALORA")
ADALORA_EPSILON = 1e-5
"""PEFT adds it to the rank by which it divides AdaLoRA's alpha."""
SELECTION = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""Fields that say which modules of a model are adapted."""
WRITTEN_AGAIN = (
    "modules_to_save", "lora_bias", "target_parameters", "trainable_token_indices", "revision",
    *SELECTION,
)  # fmt: skip
"""Fields of a low-rank adapter that travel if whoever writes it could not infer them."""
_UNDERSTOOD = {
    "peft_type", "task_type", "base_model_name_or_path", "r", "init_r", "lora_alpha",
    "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "init_lora_weights",
    *WRITTEN_AGAIN,
}  # fmt: skip
_WITHOUT_EFFECT = {
    # of training only
    "lora_dropout", "inference_mode", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2",
    "orth_reg_weight", "total_step",
    # of initialisations; `init_lora_weights` says whether one matters
    "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    # of the program that wrote or loads it
    "peft_version", "auto_mapping", "runtime_config", "megatron_core", "merge_weights",
    "lora_dtype", "lorap_lr_ratio", "lorap_emb_lr",
    # of a switch that is listed below
    "qalora_group_size",
}  # fmt: skip
_OF_TASKS = {
    **dict.fromkeys(("SEQ_CLS", "TOKEN_CLS"), ("classifier", "score")),
    "QUESTION_ANS": ("qa_outputs",),
}
"""Modules that PEFT saves in full for a task, be they in `modules_to_save` or not."""
_GENERAL = (
    "use_dora", "bias", "alora_invocation_tokens", "use_qalora", "monteclora_config",
    "layer_replication", "use_bdlora", "arrow_config", "kasa_config", "velora_config",
    "megatron_config", "ensure_weight_tying",
)  # fmt: skip
"""Fields by which a LoRA is more than factors, unless they are switched off."""
_HARMLESS = ("gaussian", "orthogonal", "eva", "mica")
"""Initialisations by name that leave the base model's weights alone."""
_OUTSIDE = re.compile(r"(adapters|.*_(path|file|dir|folder))")
_NAMES = ("base_model_name_or_path", "tokenizer_name_or_path")


def read_config(path: Path) -> dict[str, Any]:
    """Return PEFT's description of an adapter, every field of which has a value of its kind.

    Raises:
        CodecError: not readable, or a field that is missing, not known, or of another kind.
    """
    try:
        config = json.loads(path.read_text("utf-8"))
        kind = config["peft_type"]
        json.dumps(config, allow_nan=False)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CodecError(
            f"{path} is no readable description of a PEFT adapter ({error!r})."
        ) from error
    if not isinstance(kind, str) or not kind:
        raise CodecError(f"{path} has peft_type {kind!r}, which is no kind of adapter.")
    if kind in LOW_RANK:
        _check_fields(config, path)
    return config


def saved_in_full(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of modules that PEFT saves in full, which ends of longer names suit."""
    named = config.get("modules_to_save") or ()
    return (*named, *_OF_TASKS.get(str(config.get("task_type")), ()))


def is_off(field: str, value: Any) -> bool:
    """Whether a field asks for nothing."""
    empty = value is None or value is False or (isinstance(value, str | list | dict) and not value)
    return empty or (field == "bias" and value == "none")


def general_reason(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return what makes an adapter one for the general form; None for a low-rank one.

    Args:
        config: of the adapter.
        shapes: of its tensors by their names.
    """
    if config["peft_type"] not in LOW_RANK:
        return f"it is of kind {config['peft_type']}"
    active = [name for name in _GENERAL if not is_off(name, config.get(name))]
    if active:
        return f"{active[0]}: {_shortened(config[active[0]])}"
    for name, shape in shapes.items():
        if ".lora_embedding_" in name:
            return f"a LoRA of an embedding ({name})"
        if re.search(r"\.lora_[AB]\.([^.]+\.)?weight$", name) and len(shape) != 2:
            return f"a LoRA of a convolution ({name} of shape {shape})"
    patterns = any(config.get(name) for name in ("rank_pattern", "alpha_pattern"))
    if config.get("target_parameters") and patterns:
        return "target_parameters with rank_pattern or alpha_pattern"
    return None


def general_words(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return why an adapter that is in general form is so; see `general_reason`."""
    return general_reason(config, shapes) or "it has no factors other than zero"


def changes_base(config: Mapping[str, Any]) -> bool:
    """Whether PEFT, as it loads an adapter, takes its initial value out of the base model."""
    if config["peft_type"] != "LORA":  # others take the field for a switch
        return False
    how = config.get("init_lora_weights", True)
    return not (how is None or isinstance(how, bool) or str(how).lower() in _HARMLESS)


def general_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a configuration that matter wherever the adapter is loaded.

    Raises:
        CodecError: the adapter needs files that are not in its folder.
    """
    kept = {}
    for name, value in config.items():
        if name in ("runtime_config", "corda_config"):  # the latter names files of the training
            continue
        if _OUTSIDE.fullmatch(name) and name not in _NAMES and not is_off(name, value):
            raise CodecError(
                f"The {config['peft_type']} adapter refers to other files by {name}: "
                f"{_shortened(value)}. They would not travel with it, so it is not carried."
            )
        kept[name] = value
    return kept


def scale_of(config: Mapping[str, Any], module: str) -> float:
    """Return the factor by which PEFT multiplies B·A of a module."""
    if config["peft_type"] == "ADALORA":
        alpha, rank = config["lora_alpha"], config["init_r"]
        return (alpha if alpha > 0 else rank) / (rank + ADALORA_EPSILON)
    alpha = _of_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    rank = rank_of(config, module)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def rank_of(config: Mapping[str, Any], module: str) -> int:
    """Return the rank that the configuration of a LoRA gives a module."""
    return int(_of_pattern(config.get("rank_pattern"), module, config["r"]))


def _of_pattern(pattern: Mapping[str, float] | None, module: str, default: float) -> float:
    """Return the value of the first of PEFT's patterns that a module's name ends in."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _check_fields(config: Mapping[str, Any], path: Path) -> None:
    """Raise on a field of a LoRA that is not known, or that has a value of another kind."""
    needed = ("init_r", "lora_alpha") if config["peft_type"] == "ADALORA" else ("r", "lora_alpha")
    missing = [name for name in needed if config.get(name) is None]
    if missing:
        raise CodecError(f"{path} lacks {', '.join(missing)}.")
    known = _UNDERSTOOD | _WITHOUT_EFFECT | set(_GENERAL)
    for name, value in config.items():
        if name not in known and not is_off(name, value):
            raise CodecError(
                f"{path} has {name}: {_shortened(value)}, which this version does not know, so it "
                f"cannot say what the adapter does. Update rankcast, or train without it."
            )
        fits = _KINDS.get(name)
        if fits is not None and value is not None and not fits(value):
            raise CodecError(f"{path} has {name}: {_shortened(value)}, which is no value for it.")
    if config["peft_type"] == "LORA":
        ranks = config.get("rank_pattern") or {}
        if not (isinstance(ranks, dict) and all(map(_is_rank, ranks.values()))):
            raise CodecError(f"{path} has rank_pattern: {_shortened(ranks)}, which are no ranks.")
        _check_patterns((*ranks, *(config.get("alpha_pattern") or {})), path)


def _check_patterns(patterns: tuple[str, ...], path: Path) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise CodecError(f"{path} has the pattern {pattern!r}, which is none.") from error


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _are_tokens(value: Any) -> bool:
    lists = list(value.values()) if isinstance(value, dict) else [value]
    return all(isinstance(ids, list) and all(isinstance(i, int) for i in ids) for ids in lists)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


_KINDS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("r", "init_r"), _is_rank),
    "lora_alpha": _is_number,
    "alpha_pattern": _are_numbers,
    **dict.fromkeys(("use_rslora", "lora_bias", "fan_in_fan_out"), _is_switch),
    **dict.fromkeys(("base_model_name_or_path", "revision"), _is_text),
    "task_type": lambda value: value in ("", *HEADS),
    **dict.fromkeys(("modules_to_save", "target_parameters"), _are_texts),
    "target_modules": lambda value: isinstance(value, str) or _are_texts(value),
    "trainable_token_indices": _are_tokens,
}


def _shortened(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
